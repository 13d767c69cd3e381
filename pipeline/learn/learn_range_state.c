/* What a phase of `range` keeps for a restart: in common the numbers of the phase, then for each R2
 * the matrix with its optimiser; of R1 each cell of the grid its own. */
#include "pipeline/learn/learn_range_state.h"

#include "pipeline/learn/learn_range_internal.h"

#include <stdlib.h>
#include <string.h>

/* What stands before the matrices in the common part. */
enum { STATE_STEP, STATE_STEPS_R2, STATE_JUDGES, STATE_R2 = STATE_JUDGES + 2 * JUDGE_DOUBLES };

/* In the file matrices stand one after the other (R2, R2 as it was, what the optimiser keeps of
 * it), so that a restart on other ranks finds those of its layers. */
static int64_t matrix_state(const learn_range *l) {
    return 2 * l->d * l->d + optimizer_matrix_count(l->o.kind, l->d);
}

int64_t learn_range_state_count(const learn_range *l) {
    return STATE_R2 + l->o.layers * l->o.r2_heads * matrix_state(l);
}

static void pack_r2(const learn_range *l, double *out) {
    const int64_t dd = l->d * l->d, each = matrix_state(l);
    for (int64_t m = 0; m < l->n_r2; m++) {
        double *to = out + m * each;
        memcpy(to, l->R2 + m * dd, (size_t)dd * sizeof *out);
        memcpy(to + dd, l->kept2 + m * dd, (size_t)dd * sizeof *out);
        optimizer_matrix_save(l->r2, m, to + 2 * dd);
    }
}

static void unpack_r2(learn_range *l, double steps, const double *in) {
    const int64_t dd = l->d * l->d, each = matrix_state(l);
    for (int64_t m = 0; m < l->n_r2; m++) {
        const double *from = in + m * each;
        memcpy(l->R2 + m * dd, from, (size_t)dd * sizeof *in);
        memcpy(l->kept2 + m * dd, from + dd, (size_t)dd * sizeof *in);
        optimizer_matrix_load(l->r2, m, from + 2 * dd);
    }
    if (l->r2) optimizer_put_steps(l->r2, (int64_t)steps);
}

/* Root has layers wherever there are any, and all optimisers of R2 have done as many steps. */
static void save_numbers(const learn_range *l, double *out) {
    out[STATE_STEP] = (double)l->step;
    out[STATE_STEPS_R2] = l->r2 ? (double)optimizer_steps_done(l->r2) : 0;
    learn_judge_save(&l->judge1, out + STATE_JUDGES);
    learn_judge_save(&l->judge2, out + STATE_JUDGES + JUDGE_DOUBLES);
}

int learn_range_state_cell(learn_range *l, byte_piece out[CAYLEY_STATE_PIECES]) {
    return l->o.r1 ? cayley_dist_state_pieces(l->r1, out) : 0;
}

err learn_range_state_save(learn_range *l, double *common) {
    const int64_t each = matrix_state(l);
    if (comm_rank(l->c) == 0) save_numbers(l, common);
    if (!l->o.r2_heads) return err_none();
    double *mine = malloc((size_t)(l->n_r2 * each + 1) * sizeof *mine);
    size_t len;
    if (!mine) abort();
    pack_r2(l, mine);
    void *all = comm_gather_joined(l->c, mine, (size_t)(l->n_r2 * each) * sizeof *mine, &len);
    if (all) memcpy(common + STATE_R2, all, len);
    free(all);
    free(mine);
    return err_none();
}

err learn_range_state_load(learn_range *l, const double *common) {
    l->step = (int64_t)common[STATE_STEP];
    learn_judge_load(&l->judge1, common + STATE_JUDGES);
    learn_judge_load(&l->judge2, common + STATE_JUDGES + JUDGE_DOUBLES);
    if (l->o.r1) {
        cayley_dist_state_taken(l->r1);
        learn_range_share_r1(l);
    }
    if (l->o.r2_heads)
        unpack_r2(l, common[STATE_STEPS_R2],
                  common + STATE_R2 + l->pool->first_layer * l->o.r2_heads * matrix_state(l));
    return err_none();
}
