/* The best loss so far is the measure; worse by more than noise goes back to it. */
#include "pipeline/learn/learn_judge.h"

enum {
    OFTEN = 8, /* steps between the measurements of a short phase */
    TRUST = 3  /* measurements in a row that were the best, before it is doubled again */
};

judge_word learn_judge_hear(learn_judge *j, double loss, int64_t step, bool last) {
    if (!j->begun) {
        j->begun = true;
        j->start = j->best = loss;
        j->best_step = step;
        return JUDGE_SNAPSHOT;
    }
    if (loss <= j->best) {
        j->best = loss;
        j->best_step = step;
        j->waited = 0;
        const double most = j->taken_back ? 1 : j->most;
        if (j->rate < most && (j->rate < 1 || step > OFTEN) && ++j->gained == TRUST) {
            j->rate *= 2;
            j->gained = 0;
        }
        return JUDGE_SNAPSHOT;
    }
    j->gained = 0;
    if (loss <= j->best * (1 + j->noise) && !(last && loss > j->start)) {
        if (++j->waited >= j->patience && j->patience) j->rate /= 2;
        return JUDGE_GO_ON;
    }
    j->rate /= 2;
    j->waited = 0;
    j->taken_back++;
    return JUDGE_RESTORE;
}

int64_t learn_judge_every(int64_t steps) {
    int64_t every = OFTEN;
    while (every < 32 && every * 24 <= steps) every *= 2;
    return every;
}

double learn_judge_most(int64_t steps) {
    return learn_judge_every(steps) == OFTEN ? 2 : 1;
}

bool learn_judge_due(int64_t step, int64_t steps, int64_t every) {
    if (step == 0 || step == steps) return true;
    if (every == 0) return false;
    return step < every ? (step & (step - 1)) == 0 : step % every == 0;
}

int64_t learn_judge_looks(int64_t steps, int64_t every) {
    int64_t looks = 0;
    for (int64_t i = 0; i <= steps; i++) looks += learn_judge_due(i, steps, every);
    return looks;
}

void learn_judge_save(const learn_judge *j, double *out) {
    const double all[JUDGE_DOUBLES] = {j->begun,     j->start,      j->best,   j->rate,
                                       j->best_step, j->taken_back, j->waited, j->gained};
    for (int i = 0; i < JUDGE_DOUBLES; i++) out[i] = all[i];
}

void learn_judge_load(learn_judge *j, const double *in) {
    *j = (learn_judge){.noise = j->noise,
                       .patience = j->patience,
                       .most = j->most,
                       .begun = in[0] != 0,
                       .start = in[1],
                       .best = in[2],
                       .rate = in[3],
                       .best_step = (int64_t)in[4],
                       .taken_back = (int64_t)in[5],
                       .waited = (int64_t)in[6],
                       .gained = (int64_t)in[7]};
}
