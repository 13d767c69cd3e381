/* recipe_asks - what a recipe asks a run to do, as yes or no: which phases it has, and what these
 * need. Asked by plans and runs alike. Not how a phase does it (jobs/phases/). */
#ifndef SPINSHARD_JOBS_SETUP_RECIPE_ASKS_H
#define SPINSHARD_JOBS_SETUP_RECIPE_ASKS_H

#include "jobs/setup/settings.h"

/* Local. R1 or R2 starts there. */
bool quantize_starts_at(const settings *s, start_point point);

/* Local. True where the recipe needs calibration text: where it learns, and for GPTQ. */
bool quantize_needs_calibration(const settings *s);
/* Local. True where it learns from that text: phases, a start or scales from
 * activations, R3 from the keys, a search of clips. */
bool quantize_learns(const settings *s);
/* Local. True where R3 is made from the keys of that text; where that or a search of clips is asked
 * for. */
bool quantize_learns_r3(const settings *s);
bool quantize_tunes_sites(const settings *s);
/* Local. And where the noise of quantizers is judged, for that or to choose their bits. */
bool quantize_judges_sites(const settings *s);
/* Local. True where an FP8 cache gets its scales from that text. */
bool quantize_scales_cache(const settings *s);
bool quantize_uses_gptq(const settings *s); /* local; weights are rounded by gptq or gptaq */
/* Local. Name of the phase that makes the items of the archive, as plans, log and events say it, by
 * what it does to weights: "gptq", "round" (to nearest), or "fuse" where they are not rounded. */
const char *quantize_items_phase(const settings *s);

/* Local. True where the objective of a phase stands at the end of the model: ce, kl-top. */
bool learn_e2e_is(const learn_settings *phase);
/* Local. True where a phase, or any, learns scales: an objective at the end of the model, with
 * lr_scale, and pairs to learn. */
bool learn_scales_by(const settings *s, const learn_settings *phase);
bool learn_scales_any(const settings *s);
/* Local. True where phase `first` or a later one takes rows, or, at a fresh start, the start. */
bool learn_needs_rows(const settings *s, int64_t first, bool fresh);

/* Local. True where rows of weights are samples of this phase, or of any. */
bool learn_weights_count(const settings *s, const learn_settings *phase);
bool learn_weights_needed(const settings *s);

/* Local. True where this phase, or any, learns R1 from rows drawn by importance. */
bool learn_draws(const settings *s, const learn_settings *phase);
bool learn_draws_any(const settings *s);

#endif
