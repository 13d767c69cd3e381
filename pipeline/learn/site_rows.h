/* site_rows - a few rows of the inputs of every linear of this rank's layers, kept from the capture
 * until rotations are known, so that a report can show both sides of them (pipeline/site_look.h)
 * where no GPTQ sees the inputs again. Nothing is learned from them: rows of `range` are in
 * row_pool.h, rows of clips in noise_rows.h. Which rows are kept does not depend on ranks. */
#ifndef SPINSHARD_PIPELINE_LEARN_SITE_ROWS_H
#define SPINSHARD_PIPELINE_LEARN_SITE_ROWS_H

#include "base/byte_piece.h"
#include "model/backward.h"
#include "pipeline/site_look.h"

typedef struct site_rows site_rows;

/* Local. Of layers [first, first + n) of cfg, from `windows` windows of `length` tokens. Caller
 * owns *out. Fails with ERR_NOFIT. */
err site_rows_create(const llama_config *cfg, int64_t first, int64_t n, int64_t windows,
                     int64_t length, site_rows **out);
void site_rows_destroy(site_rows **p); /* local; NULL is fine; sets NULL */
uint64_t site_rows_bytes(const llama_config *cfg, int64_t first, int64_t n); /* local; at most */

/* Local. The hook that keeps them from a backward pass; *window, borrowed, is the number of the
 * window whose rows come (capture_hooks.window). Windows may come in any order. */
llama_hook site_rows_hook(site_rows *p, const int64_t *window);

/* Local. Rows of the two norms' sites are from now on taken behind the gains of this stage
 * (borrowed while rows come): what linears read where the gain stays in the norm. */
void site_rows_behind(site_rows *p, const llama_stage *stage);

/* Local. The rows of one layer, to be kept for a restart and to be read into; bytes of n layers. */
int site_rows_pieces(const site_rows *p, int64_t layer, byte_piece out[STEP_COUNT]);
uint64_t site_rows_saved_bytes(const llama_config *cfg, int64_t first, int64_t n, int64_t windows,
                               int64_t length);

/* Local, threaded. Look at the rows of a step of one of the layers, after the last has come; set as
 * it is by then. As site_look_take; out->there stays false where memory is short. */
err site_rows_look(const site_rows *p, rotation_set *set, int64_t layer, llama_step step,
                   site_look *out);

#endif
