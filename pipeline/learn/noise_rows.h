/* noise_rows - rows on which a quantizer's noise can be judged: inputs x of a site with the
 * gradient g = dL/dx^ of the summed cross entropy in full precision, drawn from all tokens of the
 * capture by how much the loss feels them. Not the judging (pipeline/learn/noise_cost.h); not the
 * rows of `range` (row_pool.h), which have weights in place of gradients. Stands between the
 * capture and the search of clips.
 *
 * A few tokens carry most of the sensitivity (the first of a window 1e4 times the median), so even
 * draws would miss or overrate them. This is priority sampling (Duffield, Lund, Thorup, Priority
 * sampling for estimation of arbitrary subset sums, JACM 54, 2007): row i has the size p_i =
 * (|g_i|^2)^(3/4) and the priority q_i = p_i / U_i, U_i uniform in (0, 1]; the m rows of highest
 * priority stay, and with t the (m + 1)st priority the sum of any f over all rows is estimated
 * without bias by the sum of f_i / min(1, p_i / t) over those that stay. U_i depends on the place
 * of the row alone, so the draw depends neither on the order of windows nor on ranks. */
#ifndef SPINSHARD_PIPELINE_LEARN_NOISE_ROWS_H
#define SPINSHARD_PIPELINE_LEARN_NOISE_ROWS_H

#include "base/byte_piece.h"
#include "base/half.h"
#include "model/backward.h"
#include "rotations/clip_set.h"

/* Rows of one site; in the order of their tokens once they are finished. */
typedef struct noise_set {
    int64_t n, width;
    const bf16 *x, *g;    /* [n, width] */
    const double *weight; /* [n] 1 / min(1, p / t): how many rows of the capture it stands for */
} noise_set;

typedef struct noise_rows noise_rows;

/* Local. For layers [first, first + n) of cfg, windows of `window` tokens, at most `rows` rows of
 * each place that `places` names (bits 1 << clip_place). Caller owns *out. Fails with ERR_NOFIT. */
err noise_rows_create(const llama_config *cfg, int64_t first, int64_t n, uint32_t places,
                      int64_t window, int64_t rows, noise_rows **out);
void noise_rows_destroy(noise_rows **p); /* local; NULL is fine; sets NULL */
uint64_t noise_rows_bytes(const llama_config *cfg, int64_t n, uint32_t places,
                          int64_t rows); /* local */

/* Local. The hook that offers the rows of a backward pass; *window, borrowed, is the number of the
 * window whose rows come (capture_hooks.window). Windows may come in any order. */
llama_hook noise_rows_hook(noise_rows *p, const int64_t *window);

/* Local. Rows of the two norms' sites are from now on taken behind the gains of this stage
 * (borrowed while rows come): where nothing is rotated there, quantizers stand behind them
 * (site_behind_gain). With u = x gain, dL/du is g / gain; 0 where the gain is. */
void noise_rows_behind(noise_rows *p, const llama_stage *stage);

/* Local. Once, when all rows have been offered: weights and order. */
void noise_rows_finish(noise_rows *p);
/* Local. After noise_rows_finish; borrowed. n 0 where the place is not asked for. */
noise_set noise_rows_get(const noise_rows *p, clip_place place, int64_t layer);

/* Local. What a finished draw is for one layer, for a restart (base/byte_piece.h): the same bytes
 * in whatever order the windows came, of one size for all layers; returns how many pieces. The same
 * pieces of a fresh noise_rows are where they are read into; it is finished then. */
enum { NOISE_ROWS_PIECES = 4 * CLIP_PLACES };
int noise_rows_pieces(noise_rows *p, int64_t layer, byte_piece out[NOISE_ROWS_PIECES]);
uint64_t noise_rows_saved_bytes(const llama_config *cfg, uint32_t places, int64_t rows); /* local */

/* Local. The hook of a place, and entries of its rows. */
hook_place noise_hook_place(clip_place place);
int64_t noise_width(const llama_config *cfg, clip_place place);

#endif
