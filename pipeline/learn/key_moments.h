/* key_moments - sums over the tokens of a full-precision pass of k and k^T k, keys after RoPE, by
 * KV head; and the R3 they give. Not R3 online (model/sites.c). Stands between the capture and R3.
 *
 * RoPE turns fast pairs through all angles, and slow ones hardly at all: those keep what a key's
 * projection has in common, a large constant part. A plain Hadamard matrix spreads it with both
 * signs, so that the zero point cannot take it. R3 may be any rotation of a KV head, since queries
 * of its group are rotated likewise and q k^T stays. Two that know the mean:
 *     pca    V T, V the eigenvectors of E[k^T k], largest first, T flat with a constant first row:
 *            the main direction becomes an offset of all channels, as in the start of R2
 *     signs  H diag(sign(E[k] H)): every channel has its mean on the same side of zero */
#ifndef SPINSHARD_PIPELINE_LEARN_KEY_MOMENTS_H
#define SPINSHARD_PIPELINE_LEARN_KEY_MOMENTS_H

#include "base/byte_piece.h"
#include "model/backward.h"

typedef struct key_moments key_moments;

/* Local. For layers [first, first + n) of cfg. Caller owns *out. Fails with ERR_NOFIT. */
err key_moments_create(const llama_config *cfg, int64_t first, int64_t n, key_moments **out);
void key_moments_destroy(key_moments **m);                      /* local; NULL is fine; sets NULL */
uint64_t key_moments_bytes(const llama_config *cfg, int64_t n); /* local */

/* Local. The hook that adds the keys of a pass to *m. Sums are integers, so windows may come in any
 * order. */
llama_hook key_moments_hook(key_moments *m);

/* Local. The sums of one layer, to be kept for a restart and to be read into. */
byte_piece key_moments_piece(const key_moments *m, int64_t layer);

/* Local. R3 [head_dim, head_dim] of a KV head. S: its part of the scales of qk [head_dim], which
 * stand before R3; NULL: ones. Fails with ERR_NOFIT, ERR_NUMERICS. */
err key_moments_pca(const key_moments *m, int64_t layer, int64_t kv_head, const double *S,
                    double *R3);
err key_moments_signs(const key_moments *m, int64_t layer, int64_t kv_head, const double *S,
                      double *R3);

#endif
