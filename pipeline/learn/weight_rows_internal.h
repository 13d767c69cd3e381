/* weight_rows_internal - one matrix as weight_rows.c deals it out and weight_mix.c turns it. Not
 * for others. */
#ifndef SPINSHARD_PIPELINE_LEARN_WEIGHT_ROWS_INTERNAL_H
#define SPINSHARD_PIPELINE_LEARN_WEIGHT_ROWS_INTERNAL_H

#include "pipeline/learn/weight_rows.h"

typedef enum weight_side { SIDE_NONE, SIDE_R1, SIDE_R2, SIDE_R4 } weight_side;

/* A linear, or the rows of v of one KV head. */
typedef struct weight_matrix {
    const wmat *w;       /* borrowed */
    const float *gain;   /* of its inputs, borrowed; NULL: ones */
    weight_side in, out; /* B and A */
    int64_t layer;       /* of this rank, from 0 */
    llama_role role;
    int64_t row0, rows; /* of w */
    int64_t slot;       /* its number in the layer */
    double share;       /* K: its part of what is to be lost */
    double scale;       /* out: rows are scaled by it */
    double *edges;      /* no out: [rows] running sums of K_i; owned */
    int64_t count;      /* samples of a step */
    float weight;       /* of each */
} weight_matrix;

enum { MIX_ROWS = 256 }; /* mixed rows that are rotated together */

/* Buffers of weight_rows_mix, for any matrix of a stage. */
typedef struct weight_mix {
    bf16 *a;       /* [MIX_ROWS, rows] columns of A; then of B du^T [MIX_ROWS, cols] */
    float *z;      /* [MIX_ROWS, cols] */
    float *u;      /* [MIX_ROWS, cols] */
    float *da;     /* [MIX_ROWS, rows] */
    int32_t *at;   /* [MIX_ROWS] rows of the matrix */
    int64_t *loss; /* [MIX_ROWS] */
} weight_mix;

struct weight_rows {
    weight_rows_options o;
    const llama_stage *stage;
    weight_matrix *m;          /* [n_matrices] of this rank */
    int64_t n_matrices, slots; /* slots: matrices of a layer */
    int64_t widest;            /* of rows and columns */
    int64_t direct, samples;
    double total; /* K over the model */
    double heaviest;
    float *row; /* [widest] */
    weight_mix mix;
    float *R2; /* [r2_heads, d, d] of the layer at hand */
};

/* Local. Number `i` of the random numbers of a matrix in a step. */
uint64_t weight_rows_index(const weight_rows *w, const weight_matrix *m, int64_t step, int64_t i);

/* Local. Row `row` of a matrix with its gains, times scale, into out [cols]. */
void weight_rows_take(const weight_matrix *m, int64_t row, double scale, float *out);

#endif
