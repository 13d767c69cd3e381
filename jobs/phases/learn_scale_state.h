/* learn_scale_state - which scales a recipe asks for, where they stand in a learner, and what the
 * capture has to sum for them. They are found by learn_scales.h. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_SCALE_STATE_H
#define SPINSHARD_JOBS_PHASES_LEARN_SCALE_STATE_H

#include "jobs/phases/learner.h"

/* Local. The kinds that a recipe finds or learns, bits 1 << scale_kind. */
uint32_t learn_scale_kinds(const settings *s);

/* Local. Bytes of the scales of all layers, as numbers and in the set of the model. */
uint64_t learn_scales_bytes(const settings *s, const llama_config *cfg);
uint64_t learn_scales_set_bytes(const settings *s, const llama_config *cfg);

/* Local. What the recipe asks for and what helps, into l->scale_kinds, l->scales: ones, which are
 * done, where phases learn them from there. */
err learn_scales_init(learner *l);
bool learn_scales_done(const learner *l);           /* local; also where none are asked for */
bool learn_scales_need_gradients(const learner *l); /* local; of the rows of the pool */
bool learn_scales_smooth(const learner *l);         /* local; scale.start is smooth */

/* Local. One kind: found for this model; of a norm; numbers of a layer; where those of a layer
 * stand in l->scales. */
bool learn_scale_wanted(const learner *l, scale_kind kind);
bool learn_scale_is_norm(scale_kind kind);
int64_t learn_scale_length(const learner *l, scale_kind kind);
double *learn_scale_at(const learner *l, scale_kind kind, int64_t layer);

/* Local. l->scales [1 ..] to v [layers, scale_sizes_at of l->scale_kinds], or (load) from v. */
void learn_scales_by_layer(const learner *l, double *v, bool load);

/* Local. The quantizers that scales are found for: R1 and R2 fused, R4 as an identity in the
 * weights. */
err learn_scale_sites(const learner *l, llama_sites *sites);

/* Local. What the capture pass has to sum, into l->scale_moments or l->scale_peaks (NULL: nothing);
 * its bytes. */
err learn_scales_moments(learner *l);
uint64_t learn_scales_moments_bytes(const learner *l);

#endif
