/* The judgement of a phase of `range`: R1 and R2 measured on rows that no step draws, remembered
 * where they are the best so far, taken back where they have become worse (learn_judge.h).
 *
 * Where only activations are quantized, the loss of R1 does not depend on R2 nor that of R2 on R1,
 * and each is judged by its own. Rows of weights may see both: then the loss of both stands in that
 * of R1, and what it says counts for both. */
#include "pipeline/learn/learn_range_held.h"

#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"
#include "pipeline/learn/learn_range_internal.h"
#include "pipeline/learn/weight_mix.h"

#include <stdlib.h>
#include <string.h>

/* The draw of rows of weights that stands for held-out rows: beyond all steps. The weights are the
 * whole of what is to be rounded, not a sample of it, so nothing has to be kept from learning. */
#define HELD_DRAW ((INT64_C(1) << 20) - 1)

/* Collective. The loss of R1 and of rows of weights on this rank's held rows, over the model; what
 * pushes R1 into *v. */
static int64_t held_loss_r1(learn_range *l, learn_verdict *v) {
    const bool act = aquant_on(&l->o.act);
    const int64_t sites = 2 * l->o.layers, mine = 2 * l->pool->n_layers;
    int64_t *push = calloc((size_t)sites + 1, sizeof *push), loss = 0, largest = 0, all = 0,
            attn = 0;
    if (!push) abort();
    if (l->o.r1) {
        range_begin_bf16(l->work1, l->R1);
        if (act) learn_range_draw_r1(l, RANGE_HELD);
        if (l->weights) weight_rows_add(l->weights, HELD_DRAW, (float)l->factor1, l->work1);
        loss = range_loss(l->work1);
        for (int64_t i = 0; act && i < mine; i++)
            push[2 * l->pool->first_layer + i] =
                range_push(l->work1, i * l->per_site, l->per_site, &largest);
    }
    if (l->weights) {
        range_batch mixed = {.n = l->n, .unit = 1, .loss = loss};
        weight_rows_mix(l->weights, HELD_DRAW, (float)l->factor1,
                        l->o.r1 ? range_rotation(l->work1) : NULL, l->R2, &mixed, NULL);
        loss = mixed.loss;
    }
    push[sites] = loss;
    comm_sum_i64(l->c, push, sites + 1);
    comm_max_i64(l->c, &largest, 1);
    loss = push[sites];
    for (int64_t i = 0; i < sites; i++) {
        all += push[i];
        attn += i % 2 ? 0 : push[i];
        if (push[i] > push[v->heaviest_site]) v->heaviest_site = i;
    }
    if (all > 0) {
        v->push_attn = (double)attn / (double)all;
        v->push_site = (double)push[v->heaviest_site] / (double)all;
        v->push_row = (double)largest / (double)all;
    }
    free(push);
    return loss;
}

/* Collective. */
static int64_t held_loss_r2(learn_range *l) {
    int64_t loss = 0;
    for (int64_t m = 0; m < l->n_r2; m++) {
        for (int pass = 0; pass < learn_range_passes_r2(l); pass++) {
            learn_range_draw_r2(l, m, RANGE_HELD, pass);
            loss += range_loss(l->work2);
        }
    }
    comm_sum_i64(l->c, &loss, 1);
    return loss;
}

static void obey_r1(learn_range *l, judge_word word) {
    if (word == JUDGE_SNAPSHOT) cayley_dist_snapshot(l->r1);
    if (word != JUDGE_RESTORE) return;
    cayley_dist_restore(l->r1);
    learn_range_share_r1(l);
}

static void obey_r2(learn_range *l, judge_word word) {
    const size_t bytes = (size_t)(l->n_r2 * l->d * l->d) * sizeof(double);
    if (!l->n_r2) return;
    if (word == JUDGE_SNAPSHOT) memcpy(l->kept2, l->R2, bytes);
    if (word != JUDGE_RESTORE) return;
    memcpy(l->R2, l->kept2, bytes);
    optimizer_forget(l->r2);
}

err learn_range_judge(learn_range *l, learn_verdict *v) {
    const bool last = l->step == l->o.steps, both = l->weights != NULL;
    *v = (learn_verdict){.step = l->step, .r1 = l->o.r1 || both, .r2 = l->o.r2_heads > 0};
    if (v->r1) {
        v->loss = learn_range_loss_r1(l, held_loss_r1(l, v));
        v->word = learn_judge_hear(&l->judge1, v->loss, l->step, last);
    }
    if (v->r2) {
        const bool own = range_values_count(&l->o) || range_outputs_count(&l->o);
        v->loss_r2 = own ? learn_range_loss_r2(l, held_loss_r2(l)) : 0;
        v->word_r2 = both ? v->word : learn_judge_hear(&l->judge2, v->loss_r2, l->step, last);
        if (both) l->judge2 = l->judge1;
    }
    if (l->o.r1) obey_r1(l, v->word);
    if (v->r2) obey_r2(l, v->word_r2);
    v->j = l->judge1;
    v->j_r2 = l->judge2;
    return err_none();
}
