#include "pipeline/read_ahead.h"

#include "base/mem.h"
#include "base/task.h"
#include "pipeline/source_tensor.h"

#include <stdlib.h>
#include <string.h>

/* Where one tensor is read to; the two take turns. */
typedef struct slot {
    const hf_checkpoint *ck;
    const char *name;
    const hf_tensor *t;
    void *data;
    uint64_t room;
    char hex[SHA256_HEX];
    err e;
} slot;

struct read_ahead {
    char **names;
    int64_t n, at; /* at: the next one to hand out */
    slot slots[2];
    task *reading; /* of tensor `at` */
};

static err make_room(slot *s, uint64_t bytes) {
    if (bytes <= s->room) return err_none();
    mem_free(s->data);
    s->room = 0;
    err e = mem_alloc((int64_t)bytes, 1, s->name, &s->data);
    if (!e.code) s->room = bytes;
    return e;
}

static void read_slot(void *arg) {
    slot *s = arg;
    s->e = source_tensor_find(s->ck, s->name, &s->t);
    if (!s->e.code) s->e = make_room(s, hf_tensor_bytes(s->t));
    if (!s->e.code) s->e = hf_checkpoint_read(s->ck, s->t, s->data, s->hex);
}

static void start(read_ahead *r) {
    if (r->at == r->n) return;
    slot *s = &r->slots[r->at & 1];
    s->name = r->names[r->at];
    r->reading = task_start(read_slot, s);
}

err read_ahead_create(const hf_checkpoint *ck, char *const *names, int64_t n, read_ahead **out) {
    read_ahead *r = calloc(1, sizeof *r);
    if (!r) abort();
    r->names = calloc((size_t)n + 1, sizeof *r->names);
    if (!r->names) abort();
    r->n = n;
    for (int64_t i = 0; i < n; i++)
        if (!(r->names[i] = strdup(names[i]))) abort();
    r->slots[0].ck = r->slots[1].ck = ck;
    *out = r;
    start(r);
    return err_none();
}

void read_ahead_destroy(read_ahead **pr) {
    read_ahead *r = *pr;
    if (!r) return;
    task_wait(&r->reading);
    for (int i = 0; i < 2; i++) mem_free(r->slots[i].data);
    for (int64_t i = 0; i < r->n; i++) free(r->names[i]);
    free(r->names);
    free(r);
    *pr = NULL;
}

err read_ahead_next(read_ahead *r, const char *name, const hf_tensor **t, const void **data,
                    char hex[SHA256_HEX]) {
    if (r->at == r->n || strcmp(name, r->names[r->at]))
        return err_make(ERR_BUG, name, NULL, "not the tensor that was to be read next (%s)",
                        r->at == r->n ? "none" : r->names[r->at]);
    slot *s = &r->slots[r->at & 1];
    task_wait(&r->reading);
    err e = s->e;
    r->at++;
    if (e.code) return e;
    start(r);
    *t = s->t;
    *data = s->data;
    memcpy(hex, s->hex, SHA256_HEX);
    return e;
}
