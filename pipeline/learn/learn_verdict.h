/* learn_verdict - what measuring the rotations on held-out rows gave: what every phase of learning
 * tells the loop of steps (jobs/phases/learn_steps.c), whatever its objective. A plain value, the
 * same on every rank. */
#ifndef SPINSHARD_PIPELINE_LEARN_LEARN_VERDICT_H
#define SPINSHARD_PIPELINE_LEARN_LEARN_VERDICT_H

#include "pipeline/learn/learn_judge.h"

typedef struct learn_verdict {
    int64_t step;             /* steps done when it was measured */
    bool r1, r2;              /* which are learned, and so were judged */
    double loss, loss_r2;     /* as measured; end to end both stand in loss */
    judge_word word, word_r2; /* what became of R1 and R2 */
    learn_judge j, j_r2;      /* best and start losses, rates */
    /* Of the first-order push on R1 (the sum of |gradient| over rows): the share of the attention
     * inputs of all layers, of the heaviest site, and of the heaviest row. 0: not measured. */
    double push_attn, push_site, push_row;
    int64_t heaviest_site; /* 2 layer, or 2 layer + 1 for the MLP input */
} learn_verdict;

#endif
