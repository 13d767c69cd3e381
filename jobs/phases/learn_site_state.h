/* learn_site_state - which quantizers a recipe wants tuned, where what is found for them stands in
 * a learner, and what the capture has to keep for it. It is found by learn_sites.h. */
#ifndef SPINSHARD_JOBS_PHASES_LEARN_SITE_STATE_H
#define SPINSHARD_JOBS_PHASES_LEARN_SITE_STATE_H

#include "jobs/phases/learner.h"

/* Rows that are drawn of each quantizer. */
enum { LEARN_SITE_ROWS = 1024 };

/* What is found of a quantizer of some bits. */
typedef struct found_noise {
    double ends[2];
    double before, after; /* nats a token without clips, and with them */
} found_noise;

/* Of one quantizer. */
typedef struct found_site {
    double bits;       /* that it has in the end; 0: it is not judged */
    found_noise now;   /* with these */
    found_noise eight; /* with 8, where activations.average may choose it and did not; else 0 */
} found_site;
enum { FOUND_SITE = sizeof(found_site) / sizeof(double) };

/* Local. What the recipe asks for and the model has, into l->sites. */
err learn_sites_init(learner *l);
/* Local. May activations.average give the inputs of a place and layer 8 bits? */
bool learn_site_may_be_eight(const learner *l, clip_place place, int64_t layer);
bool learn_sites_done(const learner *l); /* local; also where nothing is asked for */

/* Local. What the capture has to keep for it, made (l->keys, l->peaks, l->noise), and its bytes. */
err learn_sites_samples(learner *l, int64_t window);
uint64_t learn_sites_samples_bytes(const learner *l);

/* Local. In l->sites: the quantizers of a layer, [CLIP_PLACES]; its R3, [kv_heads, d, d]; and how
 * many numbers these are, 0 where R3 is not made here. */
found_site *learn_site_found(const learner *l, int64_t layer);
double *learn_site_r3(const learner *l, int64_t layer);
int64_t learn_site_r3_entries(const learner *l);
/* Local. And the largest keys and values of a layer, as cache_peaks_get has them; how many, 0 where
 * no cache is scaled. */
double *learn_site_peaks(const learner *l, int64_t layer);
int64_t learn_site_peak_entries(const learner *l);

#endif
