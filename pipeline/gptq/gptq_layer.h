/* gptq_layer - GPTQ of one layer after the other with all ranks on one layer: windows are dealt to
 * ranks for the forward and the sums, rows of weights for the rounding. The four inputs of a layer
 * come one after the other, each with what stands before it already quantized (q k v, then o, then
 * gate up, then down); the residual streams go on through the quantized layer. With GPTAQ a second
 * stream of full precision goes beside, from the first layer on or from the input of each layer.
 * Only the layer at hand and the activations are resident. Not files and not the run state
 * (jobs/phases/quantize_gptq.c). Stands at "fused weight -> INT4 codes + scales" where
 * weights.method is gptq or gptaq.
 *
 * Codes are equal on any number of ranks and threads (over a grid: for equal numerics), since sums
 * are exact, rows are rounded in fixed units, and a factor is made by one rank or one grid. */
#ifndef SPINSHARD_PIPELINE_GPTQ_GPTQ_LAYER_H
#define SPINSHARD_PIPELINE_GPTQ_GPTQ_LAYER_H

#include "pipeline/gptq/gptq_source.h"
#include "pipeline/gptq/gptq_windows.h"
#include "pipeline/gptq/hessian_factor.h"
#include "pipeline/site_look.h"

typedef struct gptq_settings {
    const comm *c;            /* borrowed, as all below */
    const quantize_job *job;  /* cfg, checkpoint, rotations, how */
    const llama_sites *sites; /* of the quantized stream: what weights hold already is left out */
    const llama_sites *full;  /* of the stream of full precision, likewise */
    const int32_t *ids;       /* [n_windows * length] calibration windows, on every rank */
    int64_t n_windows, length;
    int64_t n_distinct;  /* of the windows; the others repeat them */
    const char *scratch; /* folder for activations; NULL: in memory */
    int64_t batches;     /* parts in which a rank rounds its rows, 1 or more: each part goes through
                          * the whole factor; from 2 on no tensor is read ahead either */
    bool asymmetric;     /* GPTAQ */
    bool from_layer;     /* the stream of full precision begins anew at each layer's input */
    double alpha;        /* its strength at most */
    bool act_order;
    bool tell_sites; /* look at the inputs: gptq_layer_report.sites */
    hessian_factor_options factor;
} gptq_settings;

/* What is reported of a linear. */
typedef struct gptq_linear_report {
    gptq_report loss;
    bool measured; /* GPTAQ: losses are those of outputs (gptq_stack.h) */
    gptq_damping damping;
    double alpha; /* GPTAQ: the strength that was taken */
} gptq_linear_report;

typedef struct gptq_layer_report {
    gptq_linear_report linears[LLAMA_LINEARS];
    double step_s[STEP_COUNT];   /* of the step: inputs, sums, factor, rows */
    site_look sites[STEP_COUNT]; /* on the first rank: of the stream of full precision, if any */
    fused_spread spreads[LLAMA_LINEARS];
    char source_sha256[SHA256_HEX];
    qerror error; /* of the codes against the fused weights, as rounding to nearest tells it */
} gptq_layer_report;

typedef struct gptq_run gptq_run;

/* Collective. Embed the windows, so that the streams stand at the input of the first layer, and
 * begin to read the weights of `layers` (ascending), which must then be quantized in this order.
 * Caller owns *out. Fails, agreed, with ERR_NOFIT, ERR_SPACE and what reading gives. */
err gptq_run_create(const gptq_settings *s, const int64_t *layers, int64_t n, gptq_run **out);
void gptq_run_destroy(gptq_run **r); /* collective; NULL is fine; sets NULL */

/* Collective. Quantize a layer, streams at its input before and at its output after. Results go to
 * `sink` on the rank that has one (NULL elsewhere). `last`: the streams are not needed
 * afterwards and are not advanced.
 * Fails, agreed, with ERR_INPUT, ERR_NUMERICS, ERR_NOFIT, ERR_SPACE, and what the sink gives. */
err gptq_run_layer(gptq_run *r, int64_t layer, const quantize_sink *sink, bool last,
                   gptq_layer_report *report);

/* Where a finished layer comes from: fills codes, scales and zero points of a linear into q (made
 * for it), and a norm or bias as stored into `to`. Called on every rank. */
typedef struct gptq_saved {
    void *arg;
    err (*codes)(void *arg, const llama_tensor *t, qmatrix *q);
    err (*vector)(void *arg, const llama_tensor *t, float *to);
} gptq_saved;

/* Collective. Advance the streams through a layer that is quantized already. */
err gptq_run_pass(gptq_run *r, int64_t layer, const gptq_saved *saved);

/* Local. The most parts that a rank's rows can be rounded in; of s, job->cfg alone is looked at. */
int64_t gptq_run_most_batches(const gptq_settings *s, int ranks);

/* Local. Bytes of one of so many ranks when it holds most, by what they are for; s->c and s->ids
 * are not looked at. */
typedef struct gptq_bytes {
    uint64_t activations, weights, sums, factor, rows, scratch_file;
} gptq_bytes;
gptq_bytes gptq_run_bytes(const gptq_settings *s, int ranks, int rank);
uint64_t gptq_bytes_total(const gptq_bytes *b); /* local; without the file */

#endif
