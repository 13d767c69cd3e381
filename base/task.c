/* A POSIX thread and its join; where no thread can be made the work is done at once by the caller.
 */
#include "base/task.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>

struct task {
    void (*work)(void *);
    void *arg;
    pthread_t thread;
    bool threaded;
};

static void *run(void *self) {
    task *t = self;
    t->work(t->arg);
    return NULL;
}

task *task_start(void (*work)(void *arg), void *arg) {
    task *t = calloc(1, sizeof *t);
    if (!t) abort();
    t->work = work;
    t->arg = arg;
    t->threaded = pthread_create(&t->thread, NULL, run, t) == 0;
    if (!t->threaded) work(arg);
    return t;
}

void task_wait(task **t) {
    if (!*t) return;
    if ((*t)->threaded) pthread_join((*t)->thread, NULL);
    free(*t);
    *t = NULL;
}
