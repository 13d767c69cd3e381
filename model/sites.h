/* sites - which site stands where in a block: the five places of llama_sites as values of `site`.
 * A NULL llama_sites gives sites that do nothing. */
#ifndef SPINSHARD_MODEL_SITES_H
#define SPINSHARD_MODEL_SITES_H

#include "model/forward.h"
#include "model/site.h"

/* Local. The sizes of the scales of a model. */
static inline scale_sizes llama_scale_sizes(const llama_config *cfg) {
    return (scale_sizes){.hidden = cfg->hidden,
                         .layers = cfg->layers,
                         .kv_heads = cfg->kv_heads,
                         .head_dim = cfg->head_dim,
                         .intermediate = cfg->intermediate,
                         .qk_norm = cfg->qk_norm};
}

/* Local. Attention or MLP input: R1; which: NORM_ATTN, NORM_MLP. */
enum { NORM_ATTN, NORM_MLP, NORMS };
site sites_input(const llama_sites *s, const llama_config *cfg, int64_t layer, int which);
/* Local. Keys after RoPE, per head: R3, or what the runtime rotates the cache by. */
site sites_keys(const llama_sites *s, const llama_config *cfg, int64_t layer);
site sites_values(const llama_sites *s, const llama_config *cfg,
                  int64_t layer); /* per head: R2, and that */
site sites_output(const llama_sites *s, const llama_config *cfg, int64_t layer); /* o_proj: R2 */
site sites_down(const llama_sites *s, const llama_config *cfg, int64_t layer);   /* down_proj: R4 */

#endif
