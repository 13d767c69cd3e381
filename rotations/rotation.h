/* rotation - an orthogonal n x n matrix R that acts from the right: y = x R.
 * Kinds: Hadamard R = diag(signs) H / sqrt(n), the same in blocks down the diagonal, dense,
 * identity. Opaque; changed after creation by rotation_put_rows alone. Not the set of a model
 * (rotation_set.h), not learning. On the way: learned R1, R2 -> fused weight, and the sites of
 * eval. */
#ifndef SPINSHARD_ROTATIONS_ROTATION_H
#define SPINSHARD_ROTATIONS_ROTATION_H

#include "base/err.h"
#include "base/rng.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum rotation_kind { ROTATION_IDENTITY, ROTATION_HADAMARD, ROTATION_DENSE } rotation_kind;

typedef struct rotation rotation;

/* Local. Caller owns *out (rotation_destroy). Fail with ERR_INPUT (an order without a Hadamard
 * matrix), ERR_USAGE (a block that does not divide n), ERR_NOFIT. */
err rotation_create_identity(int64_t n, rotation **out);
/* signs: [n] of 1 or -1, copied; NULL: all 1. */
err rotation_create_hadamard(int64_t n, const int8_t *signs, rotation **out);
/* Signs are rng_sign(seed, purpose, first_index + channel). */
err rotation_create_random_hadamard(int64_t n, uint64_t seed, rng_purpose purpose,
                                    uint64_t first_index, rotation **out);
/* n / block Hadamard blocks of order `block`, the signs before them as above. */
err rotation_create_blocks(int64_t n, int64_t block, const int8_t *signs, rotation **out);
/* R [n, n] row-major, copied; not checked for orthogonality (rotation_orthogonality). NULL: zeros,
 * until rotation_put_rows has filled it. */
err rotation_create_dense(int64_t n, const double *R, rotation **out);
/* A dense R that is stored in fp32 alone, which takes half the memory: zeros, until
 * rotation_put_rows_f32 has filled it. It may be given to rotation_apply_f32 and
 * rotation_dense_rows; functions that work in fp64 may not be called on it. */
err rotation_create_dense_f32(int64_t n, rotation **out);
uint64_t rotation_dense_bytes(int64_t n); /* local; of a dense one in fp64, for plans */
void rotation_destroy(rotation **r);      /* local; NULL is fine; sets NULL */

/* Local. Rows [row, row + rows) of a dense R from R [rows, n]: for an R that is learned, and that
 * comes in rows. Not while another thread applies it. */
void rotation_put_rows(rotation *r, int64_t row, int64_t rows, const double *R);
void rotation_put_rows_f32(rotation *r, int64_t row, int64_t rows, const float *R);

int64_t rotation_size(const rotation *r);
rotation_kind rotation_get_kind(const rotation *r);
int64_t
rotation_block(const rotation *r); /* order of the Hadamard blocks; n if one or not Hadamard */
const int8_t *rotation_signs(const rotation *r); /* borrowed; NULL if none; for tests */

/* Local. y = x R, or x R^T, in place on rows of length n at distance ld (>= n). A NULL rotation is
 * the identity. Threads are used inside; bits of a row do not depend on them. Safe to call from
 * several threads, where calls on one large dense rotation wait for each other. */
void rotation_apply_f64(const rotation *r, double *x, int64_t rows, int64_t ld, bool transpose);
void rotation_apply_f32(const rotation *r, float *x, int64_t rows, int64_t ld, bool transpose);

/* Local. y = x R for a dense R, out of place, rows [rows, n] without gaps; y may not overlap x. One
 * large product: for callers that have rows by the thousand and memory for both. */
void rotation_product_f64(const rotation *r, const double *x, int64_t rows, double *y);

/* Local. R as out [n, n] row-major; or its rows [row, row + rows) as out [rows, n]. */
err rotation_to_dense(const rotation *r, double *out);
void rotation_dense_rows(const rotation *r, int64_t row, int64_t rows, double *out);

/* Local. *max = max |R^T R - I| in fp64. Fails with ERR_NOFIT only; the caller judges the number.
 */
err rotation_orthogonality(const rotation *r, double *max);

#endif
