/* Contiguous blocks of rows, as even as can be, by rank order. Putting copies the rows of the
 * rank's own share; getting broadcasts each owner's rows in turn. */
#include "mpi/dealt_rows.h"

#include "base/mem.h"
#include "base/size.h"

#include <string.h>

struct dealt_rows {
    const comm *c;
    int64_t n, width, share; /* share: rows of a rank; of the last ones fewer, or none */
    double *mine;
};

static int64_t first_row(const dealt_rows *d, int rank) {
    return size_min(d->n, rank * d->share);
}

err dealt_rows_create(const comm *c, int64_t n, int64_t width, const char *what, dealt_rows **out) {
    dealt_rows *body = NULL;
    double *mine = NULL;
    const int64_t share = size_ceil_div(n, comm_size(c));
    *out = NULL;
    err e = MEM_NEW(&body, 1, what);
    if (!e.code) e = MEM_NEW(&mine, share * width, what);
    e = comm_agree(c, e, what, NULL);
    if (e.code) {
        mem_free(body);
        mem_free(mine);
        return e;
    }
    *out = body;
    **out = (dealt_rows){.c = c, .n = n, .width = width, .share = share, .mine = mine};
    return e;
}

void dealt_rows_destroy(dealt_rows **d) {
    if (!*d) return;
    mem_free((*d)->mine);
    mem_free(*d);
    *d = NULL;
}

void dealt_rows_put(dealt_rows *d, int64_t row, int64_t rows, const double *from) {
    const int64_t first = first_row(d, comm_rank(d->c)), end = first_row(d, comm_rank(d->c) + 1),
                  a = size_max(row, first), b = size_min(row + rows, end);
    if (a < b)
        memcpy(d->mine + (a - first) * d->width, from + (a - row) * d->width,
               (size_t)((b - a) * d->width) * sizeof *from);
}

void dealt_rows_get(const dealt_rows *d, int64_t row, int64_t rows, double *out) {
    for (int64_t at = row; at < row + rows;) {
        const int owner = (int)(at / d->share);
        const int64_t b = size_min(first_row(d, owner + 1), row + rows) - at;
        double *to = out + (at - row) * d->width;
        if (owner == comm_rank(d->c))
            memcpy(to, d->mine + (at - first_row(d, owner)) * d->width,
                   (size_t)(b * d->width) * sizeof *to);
        comm_bcast(d->c, to, (uint64_t)(b * d->width) * sizeof *to, owner);
        at += b;
    }
}

void dealt_rows_get_f32(const dealt_rows *d, int64_t row, int64_t rows, void *out) {
    const double *from = out;
    float *to = out;
    dealt_rows_get(d, row, rows, out);
    for (int64_t i = 0; i < rows * d->width; i++) {
        const float v = (float)from[i]; /* read before the smaller one is written over it */
        memcpy(&to[i], &v, sizeof v);
    }
}

uint64_t dealt_rows_bytes(const dealt_rows *d) {
    return (uint64_t)(d->share * d->width) * sizeof *d->mine;
}
