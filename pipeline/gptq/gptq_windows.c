/* A shelf for each window and kind of data, in memory or in an unlinked file that is read and
 * written at offsets. */
#include "pipeline/gptq/gptq_windows.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/size.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Residual streams, then inputs, of one stream after the other. */
enum { SHELVES = 4 };

typedef struct shelf {
    uint64_t slot_bytes;
    char *slots;    /* owned; all windows in memory, or room for one */
    uint64_t first; /* in the file */
} shelf;

struct gptq_windows {
    const comm *c;
    gptq_windows_options o;
    int64_t own;
    shelf shelves[SHELVES];
    char *path; /* of the file; NULL: all in memory */
    int in, out;
};

static int shelf_of(int stream, bool input) {
    return 2 * stream + input;
}

static int64_t own_of(const gptq_windows_options *o, int ranks, int rank) {
    return o->count / ranks + (rank < o->count % ranks);
}

static uint64_t slot_bytes(const gptq_windows_options *o, bool input) {
    const llama_config *c = o->cfg;
    const int64_t widest = size_max(size_max(c->hidden, c->intermediate), c->heads * c->head_dim);
    return (uint64_t)o->length *
           (input ? (uint64_t)widest * sizeof(bf16) : (uint64_t)c->hidden * sizeof(float));
}

static uint64_t all_slots(const gptq_windows_options *o) {
    return (uint64_t)o->streams * (slot_bytes(o, false) + slot_bytes(o, true));
}

uint64_t gptq_windows_bytes(const gptq_windows_options *o, int ranks, int rank) {
    const int64_t own = own_of(o, ranks, rank);
    return all_slots(o) * (uint64_t)(o->scratch ? size_min(own, 1) : own);
}

uint64_t gptq_windows_file_bytes(const gptq_windows_options *o, int ranks, int rank) {
    return o->scratch ? all_slots(o) * (uint64_t)own_of(o, ranks, rank) : 0;
}

static err open_file(gptq_windows *w) {
    char host[64] = "";
    gethostname(host, sizeof host - 1);
    err e = file_make_dirs(w->o.scratch);
    if (e.code) return e;
    if (asprintf(&w->path, "%s/spinshard-%s-%ld.tmp", w->o.scratch, host, (long)getpid()) < 0)
        abort();
    e = file_create(w->path, &w->out);
    if (e.code) {
        w->out = -1;
        return e;
    }
    e = file_open_read(w->path, &w->in, NULL);
    if (e.code) w->in = -1;
    unlink(w->path);
    const uint64_t bytes = gptq_windows_file_bytes(&w->o, comm_size(w->c), comm_rank(w->c));
    int failed = 0;
    do /* a signal that asks to stop must not look like a full disk */
        if (!e.code && bytes) failed = posix_fallocate(w->out, 0, (off_t)bytes);
    while (failed == EINTR);
    if (!failed) return e;
    errno = failed;
    return err_errno(w->path, "take room for the activations");
}

static err make_shelves(gptq_windows *w) {
    uint64_t at = 0;
    err e = err_none();
    for (int i = 0; i < 2 * w->o.streams && !e.code; i++) {
        shelf *s = &w->shelves[i];
        void *p = NULL;
        *s = (shelf){.slot_bytes = slot_bytes(&w->o, i % 2), .first = at};
        at += s->slot_bytes * (uint64_t)w->own;
        e = mem_alloc(w->o.scratch ? size_min(w->own, 1) : w->own, s->slot_bytes,
                      i % 2 ? "inputs of linears" : "residual streams", &p);
        s->slots = p;
    }
    return e;
}

err gptq_windows_create(const comm *c, const gptq_windows_options *o, gptq_windows **out) {
    gptq_windows *w = calloc(1, sizeof *w);
    if (!w) abort();
    *w = (gptq_windows){
        .c = c, .o = *o, .own = own_of(o, comm_size(c), comm_rank(c)), .in = -1, .out = -1};
    err e = o->scratch ? open_file(w) : err_none();
    if (!e.code) e = make_shelves(w);
    e = comm_agree(c, e, "room for activations", NULL);
    if (e.code) gptq_windows_destroy(&w);
    *out = w;
    return e;
}

void gptq_windows_destroy(gptq_windows **w) {
    if (!*w) return;
    for (int i = 0; i < SHELVES; i++) mem_free((*w)->shelves[i].slots);
    if ((*w)->in >= 0) close((*w)->in);
    if ((*w)->out >= 0) close((*w)->out);
    free((*w)->path);
    free(*w);
    *w = NULL;
}

const gptq_windows_options *gptq_windows_get_options(const gptq_windows *w) {
    return &w->o;
}

int64_t gptq_windows_own(const gptq_windows *w) {
    return w->own;
}

int64_t gptq_windows_number(const gptq_windows *w, int64_t i) {
    return i * comm_size(w->c) + comm_rank(w->c);
}

const int32_t *gptq_windows_ids(const gptq_windows *w, int64_t i) {
    return w->o.ids + gptq_windows_number(w, i) * w->o.length;
}

bool gptq_windows_in_memory(const gptq_windows *w) {
    return !w->o.scratch;
}

static err get(gptq_windows *w, int which, int64_t i, void **slot) {
    const shelf *s = &w->shelves[which];
    *slot = s->slots + (w->o.scratch ? 0 : (uint64_t)i * s->slot_bytes);
    if (!w->o.scratch) return err_none();
    return file_pread(w->in, w->path, *slot, s->slot_bytes, s->first + (uint64_t)i * s->slot_bytes);
}

static err put(gptq_windows *w, int which, int64_t i) {
    const shelf *s = &w->shelves[which];
    if (!w->o.scratch) return err_none();
    return file_pwrite(w->out, w->path, s->slots, s->slot_bytes,
                       s->first + (uint64_t)i * s->slot_bytes);
}

err gptq_windows_get_x(gptq_windows *w, int stream, int64_t i, float **x) {
    void *slot;
    err e = get(w, shelf_of(stream, false), i, &slot);
    *x = slot;
    return e;
}

err gptq_windows_put_x(gptq_windows *w, int stream, int64_t i) {
    return put(w, shelf_of(stream, false), i);
}

err gptq_windows_get_input(gptq_windows *w, int stream, int64_t i, bf16 **input) {
    void *slot;
    err e = get(w, shelf_of(stream, true), i, &slot);
    *input = slot;
    return e;
}

err gptq_windows_put_input(gptq_windows *w, int stream, int64_t i) {
    return put(w, shelf_of(stream, true), i);
}
