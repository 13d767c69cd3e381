/* A thread reads tensors into a ring of bytes, waiting on a condition variable for room; the user
 * takes them in the same order and gives each back before the next. */
#include "pipeline/weights/read_ahead.h"

#include "base/mem.h"
#include "base/size.h"
#include "pipeline/weights/source_tensor.h"

#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGN = 64, MOST_AHEAD = 64, SLACK = 32 << 20 };

static uint64_t aligned(uint64_t bytes) {
    return (bytes + ALIGN - 1) / ALIGN * ALIGN;
}

/* A tensor that is being read, or is read and not yet given back. */
typedef struct slot {
    const hf_tensor *t;
    uint64_t begin, bytes; /* in the ring */
    char hex[SHA256_HEX];
    err e;
} slot;

/* Tensors stand one after the other in a ring of bytes; one that does not fit before the end begins
 * at 0. The reader waits for room, the user for the next tensor. */
struct read_ahead {
    const hf_checkpoint *ck;
    char **names;
    int64_t n;
    char *ring;
    uint64_t size;
    slot slots[MOST_AHEAD]; /* tensor i in i % MOST_AHEAD */
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int64_t read, given, freed; /* tensors read; handed out; whose bytes are free again */
    bool stop;
    pthread_t reader;
};

/* Under the lock. Where `bytes` of tensor i can go now; false: no room yet. */
static bool place(const read_ahead *r, int64_t i, uint64_t bytes, uint64_t *begin) {
    *begin = 0;
    if (i == r->freed) return bytes <= r->size;
    if (i - r->freed == MOST_AHEAD) return false;
    const slot *first = &r->slots[r->freed % MOST_AHEAD], *last = &r->slots[(i - 1) % MOST_AHEAD];
    uint64_t end = aligned(last->begin + last->bytes);
    if (last->begin >= first->begin) { /* free: behind the last one, and before the first */
        *begin = end + bytes <= r->size ? end : 0;
        return end + bytes <= r->size || bytes < first->begin;
    }
    *begin = end;
    return end + bytes < first->begin;
}

/* False where the user is gone. */
static bool wait_for_room(read_ahead *r, int64_t i, slot *s) {
    pthread_mutex_lock(&r->lock);
    while (!r->stop && !place(r, i, s->bytes, &s->begin)) pthread_cond_wait(&r->changed, &r->lock);
    bool go = !r->stop;
    pthread_mutex_unlock(&r->lock);
    return go;
}

static bool wait_for_slot(read_ahead *r, int64_t i) {
    pthread_mutex_lock(&r->lock);
    while (!r->stop && i - r->freed >= MOST_AHEAD) pthread_cond_wait(&r->changed, &r->lock);
    bool go = !r->stop;
    pthread_mutex_unlock(&r->lock);
    return go;
}

static void *read_all(void *arg) {
    read_ahead *r = arg;
    for (int64_t i = 0; i < r->n && wait_for_slot(r, i); i++) {
        slot *s = &r->slots[i % MOST_AHEAD];
        s->e = source_tensor_find(r->ck, r->names[i], &s->t);
        s->bytes = s->e.code ? 0 : hf_tensor_bytes(s->t);
        if (!wait_for_room(r, i, s)) break;
        if (!s->e.code) s->e = hf_checkpoint_read(r->ck, s->t, r->ring + s->begin, s->hex);
        pthread_mutex_lock(&r->lock);
        r->read = i + 1;
        pthread_cond_broadcast(&r->changed);
        pthread_mutex_unlock(&r->lock);
        if (s->e.code) break;
    }
    return NULL;
}

uint64_t read_ahead_bytes(const hf_checkpoint *ck, char *const *names, int64_t n, bool ahead) {
    uint64_t most = 0, sum = 0, before = 0, largest = 0;
    for (int64_t i = 0; i < n; i++) {
        const hf_tensor *t;
        if (source_tensor_find(ck, names[i], &t).code) continue;
        uint64_t bytes = aligned(hf_tensor_bytes(t));
        if (before + bytes > most) most = before + bytes;
        if (bytes > largest) largest = bytes;
        before = bytes;
        sum += bytes;
    }
    if (!ahead) return largest + ALIGN;
    return (sum < most + SLACK ? sum : most + SLACK) + ALIGN;
}

static void clear(read_ahead *r) {
    pthread_cond_destroy(&r->changed);
    pthread_mutex_destroy(&r->lock);
    for (int64_t i = 0; i < r->n; i++) free(r->names[i]);
    free(r->names);
    mem_free(r->ring);
    free(r);
}

err read_ahead_create(const hf_checkpoint *ck, char *const *names, int64_t n, bool ahead,
                      read_ahead **out) {
    *out = NULL;
    void *ring;
    uint64_t size = read_ahead_bytes(ck, names, n, ahead);
    err e = mem_alloc_unset((int64_t)size, 1, "tensors as read", &ring);
    if (e.code) return e;
    read_ahead *r = calloc(1, sizeof *r);
    if (!r || !(r->names = calloc((size_t)n + 1, sizeof *r->names))) abort();
    r->ck = ck;
    r->n = n;
    r->ring = ring;
    r->size = size;
    for (int64_t i = 0; i < n; i++)
        if (!(r->names[i] = strdup(names[i]))) abort();
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->changed, NULL);
    if (pthread_create(&r->reader, NULL, read_all, r) != 0) {
        clear(r);
        return err_make(ERR_NOFIT, "tensors as read", "raise the limit of processes (ulimit -u)",
                        "no thread to read them can be started");
    }
    *out = r;
    return e;
}

void read_ahead_destroy(read_ahead **pr) {
    read_ahead *r = *pr;
    if (!r) return;
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_broadcast(&r->changed);
    pthread_mutex_unlock(&r->lock);
    pthread_join(r->reader, NULL);
    clear(r);
    *pr = NULL;
}

err read_ahead_next(read_ahead *r, const char *name, const hf_tensor **t, const void **data,
                    char hex[SHA256_HEX]) {
    int64_t i = r->given;
    if (i == r->n || strcmp(name, r->names[i]))
        return err_make(ERR_BUG, name, NULL, "not the tensor that was to be read next (%s)",
                        i == r->n ? "none" : r->names[i]);
    pthread_mutex_lock(&r->lock);
    r->freed = r->given; /* the one before is no longer used */
    r->given++;
    pthread_cond_broadcast(&r->changed);
    while (r->read <= i) pthread_cond_wait(&r->changed, &r->lock);
    pthread_mutex_unlock(&r->lock);
    const slot *s = &r->slots[i % MOST_AHEAD];
    if (s->e.code) return s->e;
    *t = s->t;
    *data = r->ring + s->begin;
    memcpy(hex, s->hex, SHA256_HEX);
    return s->e;
}
