/* task - one function on a thread of its own, waited for later: to let reading, hashing and
 * flushing run beside computing. Not a pool and not for computing (that is OpenMP's). */
#ifndef SPINSHARD_BASE_TASK_H
#define SPINSHARD_BASE_TASK_H

typedef struct task task;

/* Local. Run work(arg); where no thread can be had, it has run when this returns. arg is borrowed
 * until task_wait; the work may call neither MPI nor the log. */
task *task_start(void (*work)(void *arg), void *arg);

/* Local. Wait for its end and free it; NULL is fine; sets NULL. */
void task_wait(task **t);

#endif
