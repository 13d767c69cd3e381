/* fuse - fold RMSNorm gains, rotations and scales into one weight matrix, in fp64, rounded once to
 * fp32.
 * W is [out, in] as in the checkpoint, y = x W^T:
 *   embedding                E' = E R1
 *   q, k, gate, up, lm_head  W' = W diag(gain) R1
 *   v                        W'_h = R2^T W_h diag(gain) R1 for each KV head h
 *   o                        W' = R1^T W blockdiag(R2 of the KV head of each query head)
 *   down                     W' = R1^T W R4
 *   biases                   o, down: b' = b R1; v: b'_h = b_h R2
 * With scales S (rotations/scale_set.h): q, k, v, gate, up are also times diag(S of the norm) on
 * the right; v / S_vo, k / S_qk, up / S_ud on the left, before R2, with their biases, and q
 * likewise times S_qk (with norms of heads their gains instead: rotations/scale_set.h); o times
 * S_vo of the KV head of each query head and down times S_ud on the right, before R2 and R4. Rows
 * come out in order, in tiles, for a sink that quantizes them while they are hot. Not reading and
 * not quantizing. On the way: safetensors tensor, learned R1, R2 -> fused weight. */
#ifndef SPINSHARD_MODEL_FUSE_H
#define SPINSHARD_MODEL_FUSE_H

#include "base/err.h"
#include "model/tensors.h"
#include "rotations/rotation.h"
#include "rotations/rotation_set.h"

#include <stdint.h>

typedef enum fuse_dtype { FUSE_BF16, FUSE_F16, FUSE_F32 } fuse_dtype;

/* Rotations of the n heads of one side: head h uses rotations[h / per_rotation]. */
typedef struct fuse_heads {
    const rotation *const *rotations; /* borrowed; NULL: none; an entry may be NULL (identity) */
    int64_t n_heads;                  /* 0 where rotations is NULL */
    int64_t per_rotation;
} fuse_heads;

/* What to do with one matrix; a value one fills in; all pointers are borrowed. */
typedef struct fuse_job {
    const void *source; /* [rows, cols] as on disk, little-endian, need not be aligned */
    fuse_dtype dtype;
    int64_t rows, cols;
    const float *in_gain;               /* [cols] RMSNorm gain; NULL: ones */
    const double *in_scale, *out_scale; /* [cols], [rows]: factors of the source; NULL: ones */
    const double *after_scale;          /* [cols]: factors after `in`; NULL: ones */
    const rotation *in;                 /* right factor W R, order cols; NULL: none */
    fuse_heads in_heads;                /* right factor per head (o); not together with in */
    const rotation *out;                /* left factor R^T W, order rows; NULL: none */
    fuse_heads out_heads;               /* left factor per head (v); not together with out */
    const rotation *dense; /* for fuse_scratch_bytes: this one will be a dense matrix; NULL: none */
    int64_t non_finite;    /* result: NaN and Inf seen in source */
} fuse_job;

/* Takes fused rows in fp64, before they are rounded to fp32. */
typedef err (*fuse_wide_sink)(void *arg, int64_t row0, int64_t rows, const double *w);

/* Takes rows [row0, row0 + rows) of the fused matrix as w [rows, cols], valid during the call.
 * Tiles come in order from the calling thread, outside any parallel region. */
typedef err (*fuse_sink)(void *arg, int64_t row0, int64_t rows, const float *w);

/* Local. Fuse and hand over. The source is checked first: where it holds NaN or Inf, non_finite is
 * set and the sink is not called (success: the caller names the tensor). Fails with ERR_NOFIT,
 * ERR_BUG (orders that do not fit the matrix) or the sink's error. */
err fuse_matrix(fuse_job *job, fuse_sink sink, void *arg);

/* As fuse_sink, but called by several threads at a time, each with rows of its own, in any order.
 */
typedef err (*fuse_each_sink)(void *arg, int64_t row0, int64_t rows, const float *w);

/* Local. As fuse_matrix, but the threads that fused the rows call the sink while the rows are in
 * their cache. If several calls fail, the error of the lowest row is returned. */
err fuse_matrix_each(fuse_job *job, fuse_each_sink sink, void *arg);

/* Local. As fuse_matrix, in fp64 and without rounding. For tests. */
err fuse_matrix_wide(fuse_job *job, fuse_wide_sink sink, void *arg);

/* Local. Bytes that fuse_matrix or fuse_matrix_each allocates for this job at most: tiles, or the
 * matrix in fp64 where rows are mixed. */
uint64_t fuse_scratch_bytes(const fuse_job *job);

/* A random probe against silent errors: with t of signs [cols] and W' the fused matrix,
 * |W' t| = |W_g R (a t)|, W_g the source with gains and scales, R the right factor, a what stands
 * after it; the left factor keeps the norm. Rounding W' to fp32 changes it by at most
 * 2^-24 sqrt(cols) |W'|_F (Cauchy-Schwarz), plus that of fp64.
 * fuse_probe_signs: local; t [cols]. fuse_probe_source: local; |W_g R (a t)|^2, from the source
 * alone. Fails with ERR_NOFIT; bytes: what it allocates. fuse_probe_check: local; it against
 * |W' t|^2 and |W'|_F^2. Fails with ERR_NUMERICS. */
void fuse_probe_signs(int64_t cols, float *t);
err fuse_probe_source(const fuse_job *job, const float *t, double *norm2);
uint64_t fuse_probe_source_bytes(const fuse_job *job);
err fuse_probe_check(double before2, double after2, double square, int64_t cols);

/* Local. NaN and Inf among n elements of a tensor as on disk. */
int64_t fuse_count_non_finite(const void *source, fuse_dtype dtype, int64_t n);

/* Local. n elements as on disk to fp32 (exact). */
void fuse_to_f32(const void *source, fuse_dtype dtype, int64_t n, float *out);

/* A job and the storage that it points to; a value; keep it in place while the job is used. */
typedef struct fuse_plan {
    fuse_job job;
    const rotation **r2; /* owned; NULL or [R2 of a layer] */
    double *scales;      /* owned; NULL or the factors of one side, a head at a time */
} fuse_plan;

/* Local. Fill the rotations of a matrix (embedding, head or one of the seven linears), of the bias
 * of a linear or of the norm of heads behind it from the set; R2 of the layer is prepared if
 * needed. The caller then sets source, dtype, rows, cols and in_gain. R4 is folded into down where
 * the set has one. fuse_plan_clear frees. Fails with ERR_NOFIT, and ERR_BUG for a role that takes
 * no rotation. */
err fuse_plan_init(llama_role role, int64_t layer, rotation_set *set, fuse_plan *out);
void fuse_plan_clear(fuse_plan *p); /* local */

/* Local. Scale and turn a bias b [n], or the gain of a norm of heads (the fp32 values as stored),
 * in place: by the out_scale, out and out_heads of its plan; in fp64, or rounded once. */
err fuse_bias(const fuse_job *job, float *b, int64_t n);
err fuse_bias_wide(const fuse_job *job, double *b, int64_t n);

/* Local. True where the gain of a norm (ROLE_ATTN_NORM, ROLE_MLP_NORM or ROLE_FINAL_NORM of a
 * layer) is folded into the linears after it. What stays of it then, [n]: 1/S, or ones. */
bool fuse_folds_gain(const rotation_set *set, llama_role norm, int64_t layer);
void fuse_gain_left(const rotation_set *set, llama_role norm, int64_t layer, int64_t n,
                    float *gain);

#endif
