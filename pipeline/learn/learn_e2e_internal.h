/* learn_e2e_internal - a phase of learning end to end as its two files share it: its life and its
 * steps (learn_e2e.c), and what a restart needs (learn_e2e_state.c). Not for others. */
#ifndef SPINSHARD_PIPELINE_LEARN_LEARN_E2E_INTERNAL_H
#define SPINSHARD_PIPELINE_LEARN_LEARN_E2E_INTERNAL_H

#include "pipeline/learn/e2e_pass.h"
#include "pipeline/learn/learn_e2e.h"
#include "pipeline/learn/learn_judge.h"
#include "pipeline/learn/r2_part.h"
#include "pipeline/learn/scale_part.h"

enum { E2E_BAND = 64 };                    /* rows of R1 and its gradient that pass at a time */
enum { SUM_R1, SUM_R2, SUM_SCALES, SUMS }; /* of gradients */

struct learn_e2e {
    const comm *c;
    learn_e2e_options o;
    const e2e_wish *w;
    const e2e_layout *l;
    const llama_config *cfg;
    int replica, number; /* number of the stage */
    bool active;
    comm *stages, *peers; /* ranks of the replica; those that have the same stage */
    stage_range range;
    schedule *order;
    e2e_pass *pass;
    weight_site *weights; /* in the loop; NULL */
    cayley_dist *r1;
    r2_part *r2;
    scale_part *scales; /* NULL: not learned */
    rotation *R1;
    rotation **R2; /* [layers, r2_heads]; own layers */
    fixed_sum sums[SUMS];
    int exponents[SUMS];
    double *G2, *GS;
    void *band; /* 8-byte [E2E_BAND, hidden] */
    int64_t n_mine;
    e2e_window *windows; /* [n_mine] */
    double *loss;        /* [n_mine] */
    int64_t *pick;       /* [batch] */
    int64_t step, passes;
    learn_judge judge; /* of R1 and R2 together */
    double peak;       /* flop/s of all active ranks */
};

/* Collective. Rows of R1 to every rank, after each change; active ones put them into the rotation
 * that the sites use: in fp32, unless reals are doubles. */
void learn_e2e_share_r1(learn_e2e *l);

/* Local. R2 of this rank's layers into the rotations that the sites use, after each change. */
void learn_e2e_share_r2(learn_e2e *l);

#endif
