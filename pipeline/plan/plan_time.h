/* plan_time - how long the phases of a run take, by counting their work: products by type, vector
 * work, the search of scales, bytes. Arithmetic on shapes and rates alone; the constants were
 * fitted on SmolLM2-135M (docs/MEASUREMENTS.md), where vector work weighs most; of a large model
 * products do. Not a simulation of ranks: who works and who waits comes from the partition and the
 * schedule. Stands at "options -> plan". Seconds throughout. */
#ifndef SPINSHARD_PIPELINE_PLAN_PLAN_TIME_H
#define SPINSHARD_PIPELINE_PLAN_PLAN_TIME_H

#include "model/config.h"
#include "pipeline/plan/plan_rates.h"

#include <stdbool.h>
#include <stdint.h>

/* One rank: so many cores of such rates. */
typedef struct plan_rank {
    const plan_rates *rates; /* borrowed */
    double cores;
} plan_rank;

/* Local, all of them. Weights of a stage from the file into memory. */
double plan_time_load(const plan_rank *r, uint64_t bytes);

/* A window of `window` tokens in full precision forward, again forward, and backward, through n
 * layers, and through the head where it is here. */
double plan_time_capture(const plan_rank *r, const llama_config *cfg, int64_t n_layers, bool head,
                         int64_t window);

/* A window forward through one layer, its inputs quantized or not. */
double plan_time_forward(const plan_rank *r, const llama_config *cfg, int64_t window);

/* The start point `pca` of n layers: `tokens` tokens of each site. */
double plan_time_pca(const plan_rank *r, const llama_config *cfg, int64_t n_layers, int64_t tokens);

/* A step of range: `rows` rows of R1 on this rank, R2 of n layers with r2_heads matrices each; the
 * step of R1 itself comes on top (plan_time_cayley). And a judgement on as many held-out rows, of
 * which the loss is taken, and no gradient. */
double plan_time_range(const plan_rank *r, const llama_config *cfg, int64_t n_layers, double rows,
                       int64_t r2_heads);
double plan_time_range_look(const plan_rank *r, const llama_config *cfg, int64_t n_layers,
                            double rows, int64_t r2_heads);

/* The peak of products in bf16, measured once by each phase of steps. */
double plan_time_peak(const plan_rank *r);

/* What every phase takes besides its work: a commit is flushed, ranks meet, small files are
 * written. Of tiny models it is most of packing and verifying. */
double plan_time_fixed(void);

/* Quantizers of sites tried `trials` times on `numbers` numbers. */
double plan_time_trials(const plan_rank *r, double trials, double numbers);

/* Rows of `sites` sites behind norms and their gradients, `rows` of a site, times R1. */
double plan_time_turned(const plan_rank *r, int64_t hidden, int64_t sites, double rows);

/* Scales of the norms of n sites from `rows` rows each: rows and their gradients rotated (r1), then
 * `looks` looks at all of them. */
double plan_time_norms(const plan_rank *r, int64_t hidden, int64_t sites, double rows, bool r1,
                       int64_t looks);
double plan_time_cayley(const plan_rank *r, int64_t n, int cells);

/* One token forward and backward through all layers and the head with every site on, by one rank
 * that never waits. */
typedef struct plan_pass {
    int64_t window;
    bool r1, through, recompute, teacher;
} plan_pass;
double plan_time_pass(const plan_rank *r, const llama_config *cfg, const plan_pass *p);

/* So many numbers of weights fused by R1 (dense: a learned one; else a transform) and rounded to
 * nearest, with the scale of the range or the best of 80; tables are fused alone. */
double plan_time_fuse(const plan_rank *r, int64_t hidden, double numbers, bool r1, bool dense);
double plan_time_round(const plan_rank *r, double numbers, bool search);

/* GPTQ of a layer on `ranks` such ranks: fused weights, forward, Hessians, factors, rounding. */
typedef struct plan_gptq {
    double tokens; /* of calibration */
    int64_t window;
    int ranks, cells;  /* all; those of the grid that factors Hessians */
    int64_t grid_from; /* columns from which it does */
    bool asymmetric;   /* GPTAQ: a second stream, and codes to nearest to compare with */
    bool corrects;     /* its term: cross terms of the streams */
    int tries;         /* strengths of it that rows are rounded with; 1 without it */
    bool search;       /* scales by search */
} plan_gptq;
double plan_time_gptq_layer(const plan_rank *r, const llama_config *cfg, const plan_gptq *g);

#endif
