/* rotation_internal - a rotation's fields and its products with rows of either type, shared by
 * rotation.c and rotation_real.c. Nobody else includes it. */
#ifndef SPINSHARD_ROTATIONS_ROTATION_INTERNAL_H
#define SPINSHARD_ROTATIONS_ROTATION_INTERNAL_H

#include "rotations/fwht.h"
#include "rotations/rotation.h"

enum { ROTATION_SMALL = 256 }; /* dense orders up to this work in panels on the stack */

struct rotation {
    rotation_kind kind;
    int64_t n, block;
    int8_t *signs; /* Hadamard: [n] or NULL */
    fwht *hadamard;
    double *dense;  /* [n, n]; NULL where R is held in fp32 alone */
    float *dense32; /* [n, n] up to F32_COPY, or where dense is NULL; else NULL */
    void *panel;    /* n > ROTATION_SMALL: [panel_rows, n] doubles */
    float *columns; /* n > F32_COPY: [n, F32_COLUMNS] */
    int64_t panel_rows;
};

/* Local, threaded. A Hadamard rotation, or its transpose, on rows in place. */
void rotation_hadamard_rows_f32(const rotation *r, float *x, int64_t rows, int64_t ld,
                                bool transpose);
void rotation_hadamard_rows_f64(const rotation *r, double *x, int64_t rows, int64_t ld,
                                bool transpose);

/* Local, threaded. Rows of length n at distance ld to rows without gaps. */
void rotation_copy_rows_f32(const float *x, int64_t rows, int64_t ld, int64_t n, float *to);
void rotation_copy_rows_f64(const double *x, int64_t rows, int64_t ld, int64_t n, double *to);

/* Local, threaded. R [n, n] of an order up to ROTATION_SMALL on rows in place. */
void rotation_small_dense_rows_f32(const rotation *r, const float *R, float *x, int64_t rows,
                                   int64_t ld, bool transpose);
void rotation_small_dense_rows_f64(const rotation *r, const double *R, double *x, int64_t rows,
                                   int64_t ld, bool transpose);

#endif
