/* learn_judge - whether learning goes the right way: a rotation is measured now and then on rows
 * that it is not learned from, and where it has become worse than the best so far by more than a
 * little, it is taken back to that best one and its rate is halved. So what a phase ends with is
 * never worse than what it began with, by its own measure. Knows losses alone: who measures and
 * who moves is pipeline/learn/learn_range.h and learn_e2e.h.
 *
 * All inputs are sums that are the same on every rank, and the state goes into the run state, so
 * verdicts do not depend on ranks, kills or restarts. */
#ifndef SPINSHARD_PIPELINE_LEARN_LEARN_JUDGE_H
#define SPINSHARD_PIPELINE_LEARN_LEARN_JUDGE_H

#include <stdbool.h>
#include <stdint.h>

typedef struct learn_judge {
    bool begun;         /* the start has been measured */
    double start, best; /* losses; best is never above start */
    double rate;        /* factor on the rate of the recipe; 1 at first */
    int64_t best_step;  /* steps that were done when the best was measured */
    int64_t taken_back; /* how often */
} learn_judge;

typedef enum judge_word {
    JUDGE_KEEP,      /* the best so far: remember it */
    JUDGE_GO_ON,     /* not the best, but close to it */
    JUDGE_TAKE_BACK, /* go back to the best */
} judge_word;

/* Worse by more than this share of the best is worse than by noise. The rows are the same each
 * time, so the noise is that of differences: its standard deviation is below 1/sqrt(rows) of the
 * loss for rows that each change by less than they are, and thousands of rows are measured. */
#define JUDGE_NOISE 0.02

static inline learn_judge learn_judge_new(void) {
    return (learn_judge){.rate = 1};
}

/* Local. The verdict on a loss measured after `step` steps; `last`: nothing comes after, so nothing
 * but the best is good enough. The first loss is that of the start. A loss that is not a number is
 * worse than any. */
judge_word learn_judge_hear(learn_judge *j, double loss, int64_t step, bool last);

/* Local. True where the rotations are measured after `step` of `steps` steps: at the start and the
 * end, after 1, 2, 4, ... steps, when a rate that is far too high shows, and then after every
 * `every` steps (a power of two; 0: at the start and the end alone). */
bool learn_judge_due(int64_t step, int64_t steps, int64_t every);

/* Local. The state as doubles, JUDGE_DOUBLES of them. */
enum { JUDGE_DOUBLES = 6 };
void learn_judge_save(const learn_judge *j, double *out);
void learn_judge_load(learn_judge *j, const double *in);

#endif
