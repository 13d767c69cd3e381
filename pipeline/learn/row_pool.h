/* row_pool - a sample of the inputs of the rotated sites of this rank's layers, with a weight for
 * each row: what the layer-local objective `range` learns from, and second moments for `pca`.
 * Rows come from one full-precision forward and backward pass (pipeline/learn/capture_run.h). Which
 * rows are kept does not depend on ranks. Not activations of a step: nothing here is ever
 * propagated. */
#ifndef SPINSHARD_PIPELINE_LEARN_ROW_POOL_H
#define SPINSHARD_PIPELINE_LEARN_ROW_POOL_H

#include "base/byte_piece.h"
#include "base/err.h"
#include "base/half.h"
#include "model/config.h"
#include "mpi/comm.h"
#include "mpi/dmat.h"
#include "pipeline/learn/noise_rows.h"

#include <stdint.h>

/* Groups of sites that share what is learned from them. */
typedef enum pool_kind {
    POOL_R1,    /* attention and MLP inputs, rows of `hidden`; two sites a layer */
    POOL_VALUE, /* values, rows of head_dim, one a KV head */
    POOL_O,     /* o_proj inputs, rows of head_dim, one a query head */
    POOL_KINDS,
} pool_kind;

/* Sums over rows are exact: entries of finished rows are multiples of 2^-12, at most 128 in size,
 * which bf16 holds as well as any. */
enum { ROW_FIXED_BITS = 12 };
void row_fix(bf16 *x, int64_t n); /* local; rounds to such multiples; twice is as once */

/* Rows of one site: bf16 [n, width] and their weights. */
typedef struct row_set {
    int64_t n, width;
    bf16 *x;  /* in the pool's block of its kind */
    float *w; /* owned; sensitivity |dL/dx|^2 of the row, scaled by row_pool_finish */
    bf16 *g;  /* owned; dL/dx of the row; NULL: not kept */
} row_set;

typedef struct row_pool {
    int64_t first_layer, n_layers; /* of this rank */
    int64_t hidden, head_dim, heads, kv_heads;
    int64_t tokens;            /* tokens kept of each site */
    row_set *sets[POOL_KINDS]; /* R1: [2 n_layers]; value, o: [n_layers] */
    bf16 *rows[POOL_KINDS];    /* of all sets of a kind, one block: rows are drawn at random, and
                                * large pages spare most of the look-ups of addresses */
    double mean[POOL_KINDS];   /* of the weights before row_pool_finish made it 1 */
    /* Of row_pool_draw: other sets of POOL_R1, whose rows are drawn by importance (NULL: none),
     * the block of their rows, and the mean of their weights. */
    row_set *drawn;
    bf16 *drawn_rows;
    double drawn_mean;
} row_pool;

/* Local. Room for `tokens` tokens of each site of layers [first, first + n). Caller clears
 * (row_pool_clear), also after an error. Fails with ERR_NOFIT. */
err row_pool_init(const llama_config *cfg, int64_t first, int64_t n, int64_t tokens, row_pool *out);
void row_pool_clear(row_pool *p);

/* Local. Bytes that row_pool_init takes. */
uint64_t row_pool_bytes(const llama_config *cfg, int64_t n, int64_t tokens);

/* Local. Keep the gradients of the rows of POOL_R1 too; to be called before the first row comes.
 * They are kept row by row: a second moment would take hidden^2 numbers a site, which is more than
 * 4096 rows in bf16 from hidden 2048 on. Fails with ERR_NOFIT. */
err row_pool_keep_gradients(row_pool *p);
uint64_t row_pool_gradient_bytes(const llama_config *cfg, int64_t n, int64_t tokens);

/* Local. Put the kept tokens of a window into a site's set. x and g are [n_tokens, width_all]
 * (hidden, kv_heads head_dim, heads head_dim); token t of the window is kept where
 * t % stride == first; `at` is the pool token that the first kept one becomes. */
void row_pool_put(row_pool *p, pool_kind kind, int64_t layer, int site, int64_t at,
                  int64_t n_tokens, int64_t first, int64_t stride, const float *x, const float *g);

/* Collective on c. Once for each kind, when all rows are there. Clamp the weights of a kind at
 * their 99.9 % quantile over all layers of the model and scale them to mean 1, the same for any
 * number of ranks. Sets of POOL_R1 are shuffled, each in its own order, so that steps may take rows
 * as they lie: neighbours in a text would be alike; their entries are in fixed point then. */
err row_pool_finish(const comm *c, row_pool *p, pool_kind kind);

/* Collective on c. Rows of POOL_R1 once more, as many, drawn by importance (noise_rows.h: places
 * CLIP_ATTN and CLIP_MLP of the same layers, finished, `tokens` offered of each): p->drawn. With
 * p_i the probability of a row its weight is min(w_i, q) / min(1, p_i / t), q the 99.99 % quantile
 * of w over all tokens of the model: the sum over rows estimates that over all tokens, but sees the
 * few that matter more often. Unclamped, some of these would be learned by heart. Sets with fewer
 * rows end in rows of weight 0. Fails with ERR_NOFIT, ERR_NUMERICS. */
err row_pool_draw(const comm *c, row_pool *p, const noise_rows *rows, int64_t tokens);
uint64_t row_pool_drawn_bytes(const llama_config *cfg, int64_t n, int64_t tokens); /* local */

/* Local. Room for p->drawn, which row_pool_draw makes itself: to read drawn rows into. Fails with
 * ERR_NOFIT. */
err row_pool_make_drawn(row_pool *p);

/* Local. What a pool that is finished, normalised and drawn holds of one layer, for a restart
 * (base/byte_piece.h); mean and drawn_mean are saved beside it. Returns how many pieces there are,
 * 0 of a part that the pool does not have. They do not depend on ranks. A restart asks a fresh pool
 * for the same pieces and reads into them. */
typedef enum row_pool_part { ROW_POOL_ROWS, ROW_POOL_GRADIENTS, ROW_POOL_DRAWN } row_pool_part;
enum { ROW_POOL_PIECES = 8 };
int row_pool_pieces(const row_pool *p, row_pool_part part, int64_t layer,
                    byte_piece out[ROW_POOL_PIECES]);

/* Local. Exchange the sets of POOL_R1 and the drawn ones: steps then take these. A second call
 * undoes it. */
void row_pool_switch(row_pool *p);

/* Local. Scale the rows of the sets of a kind, each by one power of two, so that |x| <=
 * sqrt(width); weights are scaled back by its square, so that no objective changes but by rounding;
 * entries are in fixed point then. */
void row_pool_normalise(row_pool *p, pool_kind kind);

/* Collective on c. Second moment of all rows of POOL_R1 over the whole model, sum x^T x as
 * [hidden, hidden] on every rank; exact in any order, so the same for any number of ranks. */
err row_pool_moment_r1(const comm *c, const row_pool *p, double *out);

/* Collective on the communicator of out's grid. As row_pool_moment_r1, into a block-cyclic matrix
 * and in bands of rows, so that no rank holds the whole. Only the lower triangle of *out is
 * defined. */
err row_pool_moment_r1_dist(const row_pool *p, dmat *out);

/* Local. Second moment of the o_proj inputs of a layer: of all query heads, or (kv_head >= 0) of
 * those of one KV head; [head_dim, head_dim]. */
err row_pool_moment_r2(const row_pool *p, int64_t layer, int64_t kv_head, double *out);

#endif
