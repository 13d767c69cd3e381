/* learn_judge - whether learning goes the right way: a rotation is measured now and then on rows
 * that it is not learned from, and where it has become worse than the best so far by more than
 * noise, it is taken back to that best one and its rate is halved; so it is where it ends above its
 * start. Where some measurements in a row bring nothing better, steps are too long to get lower,
 * and the rate is halved too, but nothing is taken back; where three in a row are the best, a
 * halved rate is doubled, and so is a whole one where it may be (most). What a phase ends with is
 * never worse than what it began with, by its own measure. Knows losses alone: who measures and who
 * moves is pipeline/learn/learn_range.h and learn_e2e.h.
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
    double noise;       /* share of the best by which a loss may be above it */
    double most;        /* that gains may double the rate to, after the first 8 steps, while nothing
                         * was taken back; above 1 */
    int64_t patience;  /* measurements in a row without a better one that halve the rate; 0: none */
    double rate;       /* factor on the rate of the recipe and on what a step may promise
                        * (rotations/optimizer.h), which is often what bounds it; 1 at first */
    int64_t best_step; /* steps that were done when the best was measured */
    int64_t taken_back; /* how often */
    int64_t waited;     /* measurements in a row that were close to the best, not better */
    int64_t gained;     /* measurements in a row that were the best, since the rate last changed */
} learn_judge;

typedef enum judge_word {
    JUDGE_SNAPSHOT, /* the best so far: remember it */
    JUDGE_GO_ON,    /* not the best, but close to it */
    JUDGE_RESTORE,  /* go back to the best */
} judge_word;

/* Worse by more than this share of the best is worse than by noise. The rows are the same each
 * time, so the noise is that of differences. Of `range` its standard deviation is below
 * 1/sqrt(rows) of the loss for rows that each change by less than they are, and thousands of rows
 * are measured; a cross entropy is mostly what no rotation changes. A divergence from the teacher
 * is nothing but what quantization does, which is chaotic (docs/DESIGN.md, 2.4), over few windows.
 */
#define JUDGE_NOISE    0.02
#define JUDGE_NOISE_KL 0.25

/* Of `range`, whose held-out rows are many. End to end one batch of windows is held out, and
 * whether it is better is often noise: patience 0. */
enum { JUDGE_PATIENCE = 2 };

static inline learn_judge learn_judge_new(double noise, int64_t patience, double most) {
    return (learn_judge){.rate = 1, .noise = noise, .patience = patience, .most = most};
}

/* Local. The verdict on a loss measured after `step` steps; `last`: nothing comes after, so it must
 * not be above the start either. The first loss is that of the start. A loss that is not a number
 * is worse than any. */
judge_word learn_judge_hear(learn_judge *j, double loss, int64_t step, bool last);

/* Local. Steps between measurements of a phase of `steps` steps of `range`, whose measurement costs
 * less than a step: a power of two from 8 to 32. A step that leads astray is found when less than a
 * tenth of a short phase is lost; 32 costs 2 % of the time of a long one. */
int64_t learn_judge_every(int64_t steps);

/* Local. What gains may double the rate to in a phase of so many steps of `range`: 2 in one so
 * short that it is measured every 8 steps, 1 in a longer one, which gets there at the recipe's
 * rate. */
double learn_judge_most(int64_t steps);

/* Local. True where the rotations are measured after `step` of `steps` steps: at the start and the
 * end, after 1, 2, 4, ... steps, when a rate that is far too high shows, and then after every
 * `every` steps (a power of two; 0: at the start and the end alone). */
bool learn_judge_due(int64_t step, int64_t steps, int64_t every);

/* Local. How often that is in a phase that is not stopped. */
int64_t learn_judge_looks(int64_t steps, int64_t every);

/* Local. The state as doubles, JUDGE_DOUBLES of them. */
enum { JUDGE_DOUBLES = 8 };
void learn_judge_save(const learn_judge *j, double *out);
void learn_judge_load(learn_judge *j, const double *in);

#endif
