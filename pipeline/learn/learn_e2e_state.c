/* The first numbers are named below; R2, then scales, follow, each layer from the rank that steps
 * it in the first replica. */
#include "pipeline/learn/learn_e2e_state.h"
#include "model/sites.h"
#include "pipeline/learn/learn_e2e_internal.h"

enum {
    STATE_STEP,
    STATE_EXPONENT_R1,
    STATE_EXPONENT_R2,
    STATE_STEPS_R2,
    STATE_JUDGE,
    STATE_R2 = STATE_JUDGE + JUDGE_DOUBLES
};
enum { SCALES_EXPONENT, SCALES_STEPS, SCALES_LAYERS }; /* behind R2 */

/* Where what scales have begins. */
static int64_t state_scales(const learn_e2e *l) {
    return STATE_R2 +
           l->cfg->layers * l->o.r2_heads * r2_part_state_each(l->o.kind, l->cfg->head_dim);
}

int64_t learn_e2e_state_count(const learn_e2e *l) {
    const scale_sizes sizes = llama_scale_sizes(l->cfg);
    const int64_t layers = l->cfg->layers * scale_part_state_each(&sizes, l->o.scales);
    return state_scales(l) + (l->w->shape.scales ? SCALES_LAYERS + layers : 0);
}

int learn_e2e_state_cell(learn_e2e *l, byte_piece out[CAYLEY_STATE_PIECES]) {
    return l->r1 ? cayley_dist_state_pieces(l->r1, out) : 0;
}

err learn_e2e_state_save(learn_e2e *l, double *common) {
    const bool root = comm_rank(l->c) == 0;
    if (root) {
        common[STATE_STEP] = (double)l->step;
        common[STATE_EXPONENT_R1] = l->exponents[SUM_R1];
        common[STATE_EXPONENT_R2] = l->exponents[SUM_R2];
        common[STATE_STEPS_R2] = l->r2 ? (double)r2_part_steps_done(l->r2) : 0;
        learn_judge_save(&l->judge, common + STATE_JUDGE);
    }
    if (l->o.r2_heads)
        r2_part_state_save(l->r2, l->c, l->replica == 0, root ? common + STATE_R2 : NULL);
    if (!l->scales) return err_none();
    double *at = root ? common + state_scales(l) : NULL;
    if (root) {
        at[SCALES_EXPONENT] = l->exponents[SUM_SCALES];
        at[SCALES_STEPS] = (double)scale_part_steps_done(l->scales);
    }
    scale_part_state_save(l->scales, l->c, l->replica == 0, root ? at + SCALES_LAYERS : NULL);
    return err_none();
}

err learn_e2e_state_load(learn_e2e *l, const double *common) {
    l->step = (int64_t)common[STATE_STEP];
    l->exponents[SUM_R1] = (int)common[STATE_EXPONENT_R1];
    l->exponents[SUM_R2] = (int)common[STATE_EXPONENT_R2];
    learn_judge_load(&l->judge, common + STATE_JUDGE);
    if (l->r1) {
        cayley_dist_state_taken(l->r1);
        learn_e2e_share_r1(l);
    }
    if (l->o.r2_heads) {
        r2_part_state_load(l->r2, (int64_t)common[STATE_STEPS_R2], common + STATE_R2);
        learn_e2e_share_r2(l);
    }
    if (!l->scales) return err_none();
    const double *at = common + state_scales(l);
    l->exponents[SUM_SCALES] = (int)at[SCALES_EXPONENT];
    err e = scale_part_state_load(l->scales, (int64_t)at[SCALES_STEPS], at + SCALES_LAYERS);
    return comm_agree(l->c, e, "the state of scales", NULL);
}
