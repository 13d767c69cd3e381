/* gptq_stack - the linears that share one input, as one matrix, while they are rounded:
 * the part of gptq_layer.c that knows rows and codes, and no streams. Nobody else includes it but
 * gptq_network.c and its tests (tests/mpi/test_gptq_alpha.c, test_gptq_cross.c). */
#ifndef SPINSHARD_PIPELINE_GPTQ_GPTQ_STACK_H
#define SPINSHARD_PIPELINE_GPTQ_GPTQ_STACK_H

#include "pipeline/gptq/gptq_layer.h"

struct gptq_run {
    gptq_settings s;
    gptq_windows *windows;
    gptq_source *source;
    gptq_moments moments;
    llama_scratch *scratch;
};

/* Squared errors of the outputs X_full W^T of each linear of a stack, and their squared norms, over
 * the windows that are held out; over all where there are too few to hold any out. */
typedef struct gptq_outputs {
    double error[LLAMA_LINEARS], energy[LLAMA_LINEARS];
} gptq_outputs;

/* The linears of a step one below the other: they share their inputs, so they are one matrix. */
typedef struct gptq_stack {
    gptq_run *r;
    llama_step step;
    int first_linear, n_linears;
    int64_t rows, cols;
    int64_t own0, own_n;          /* rows of this rank */
    float *w;                     /* owned; [own_n, cols] */
    float *all;                   /* owned; [rows, cols] until W C is made; or NULL */
    double *cross;                /* owned; [own_n, cols] or NULL */
    qmatrix *q;                   /* owned; [rows, cols] */
    gptq_loss *loss;              /* owned; [rows] */
    qerror *errors;               /* owned; [rows] */
    bool measured;                /* GPTAQ: nearest and chosen are known */
    gptq_outputs nearest, chosen; /* by rounding to nearest; by the codes in q */
    int64_t at;                   /* first row of the linear whose bands come */
    wmat *full;                   /* of that linear in the stream of full precision; NULL: none */
} gptq_stack;

/* Local. Rows and columns, and the rows of one of so many ranks: whole units, in rank order. */
void gptq_stack_shape(const gptq_settings *s, int ranks, int rank, llama_step step, gptq_stack *k);
/* Local. The most parts that a rank's rows can be rounded in. */
int64_t gptq_stack_most_batches(const gptq_settings *s, int ranks);
/* Local. Rows that any rank rounds at a time: whole units. */
int64_t gptq_stack_batch(const gptq_settings *s, int ranks, const gptq_stack *k);
err gptq_stack_init(gptq_run *r, llama_step step, gptq_stack *k); /* collective; ERR_NOFIT */
void gptq_stack_clear(gptq_stack *k);                             /* local */

/* Local. GPTAQ's term is there. */
bool gptq_stack_corrects(const gptq_settings *s);
/* Collective. Room for that term, before the weights are taken; none where it is not there. Fails
 * with ERR_NOFIT. */
err gptq_stack_init_cross(gptq_stack *k);

/* Collective. The rows of this rank; where there is a stream of full precision also the whole
 * linears, into its layer. */
err gptq_stack_take(gptq_stack *k, llama_stage *full);

/* Collective. W C of this rank's rows, for the inputs at hand; fails as gptq_moments_cross. */
err gptq_stack_cross(gptq_stack *k);
/* Local. Bytes for it: of the weights of all rows, from gptq_stack_init_cross on; and beside the
 * sums. */
uint64_t gptq_stack_all_bytes(const gptq_settings *s, int ranks, const gptq_stack *k);
uint64_t gptq_stack_cross_bytes(const gptq_settings *s, int ranks, int rank, const gptq_stack *k);

/* Collective. Codes of all rows, on every rank, with their losses. */
err gptq_stack_round(gptq_stack *k, const gptq_order *o, hessian_factor *factor, double alpha);

/* Local. Strengths that gptq_stack_round_best tries, and bytes of this rank's rows by each. */
int gptq_stack_tries(const gptq_settings *s);
uint64_t gptq_stack_tries_bytes(const gptq_settings *s, const gptq_stack *k);

/* Collective. For GPTAQ: the same with the strength of `first`, its half and 0 that leaves least
 * error in the outputs of the windows that are held out; *alpha: the one taken. Both streams'
 * inputs are at hand, `full` has the linears in full precision. The outputs are measured: losses of
 * GPTAQ lack a constant that only they tell. Fails with ERR_NUMERICS where one is not finite, by
 * window. */
err gptq_stack_round_best(gptq_stack *k, const gptq_order *o, hessian_factor *factor,
                          llama_stage *full, double first, double *alpha);

/* Local. Bytes of a trial of gptq_stack_round_best: values of the codes, outputs of a window. */
uint64_t gptq_stack_trial_bytes(const gptq_settings *s, const gptq_stack *k);

/* Local. The values of codes as products take them. Collective: those of the stack into a layer;
 * the rows of this rank are given back. */
err gptq_stack_values(const qmatrix *q, wmat *to);
err gptq_stack_use(gptq_stack *k, llama_layer *layer);

/* Local. Into the report of the layer. Collective: to the sink of the rank that has one. */
void gptq_stack_report(const gptq_stack *k, const hessian_factor *factor, double alpha,
                       gptq_layer_report *report);
err gptq_stack_hand_over(const gptq_stack *k, int64_t layer, const quantize_sink *sink);

#endif
