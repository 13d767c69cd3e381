/* Checks and rooms of the losses at the end of the model; their passes over the vocabulary are in
 * objective_real.c. */
#include "model/objective.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "model/backward_internal.h"
#include "model/objective_internal.h"

#include <inttypes.h>
#include <string.h>

static err find_head(const llama_stage *s, int64_t n_rows, const llama_work *w, const wmat **head) {
    *head = s->head_is_embed ? &s->embed : &s->head;
    if ((*head)->kind == WMAT_NONE || !s->final_norm)
        return err_make(ERR_BUG, "loss", NULL, "the head is not on this rank");
    if (!w->shape.head || n_rows < 1 || n_rows > w->shape.slice)
        return err_make(ERR_BUG, "loss", NULL, "no room for the losses of %" PRId64 " rows",
                        n_rows);
    if (gemm_threads() > w->threads)
        return err_make(ERR_BUG, "loss", NULL, "%d threads in buffers for %d", gemm_threads(),
                        w->threads);
    return err_none();
}

/* The rows' losses to the caller, and their sum in order. */
static void hand_over(const llama_work *w, int64_t n_rows, double *sum, double *each) {
    *sum = 0;
    for (int64_t t = 0; t < n_rows; t++) *sum += w->row_loss[t];
    if (each) memcpy(each, w->row_loss, (size_t)n_rows * sizeof *each);
}

static err check_top(const wmat *head, const llama_work *w) {
    if (w->shape.top_k >= 1 && w->shape.top_k <= head->rows) return err_none();
    return err_make(ERR_BUG, "kl-top", NULL, "the %" PRId64 " likeliest of %" PRId64 " tokens",
                    w->shape.top_k, head->rows);
}

static err check_next(const wmat *head, const objective_rows *r) {
    for (int64_t t = 0; t < r->n; t++) {
        if (r->next[t] >= head->rows)
            return err_make(ERR_INPUT, "token ids", "use the tokenizer of this model",
                            "id %" PRId32 " is outside the vocabulary of %" PRId64, r->next[t],
                            head->rows);
    }
    return err_none();
}

err llama_objective_backward(objective_kind kind, const llama_stage *stage, const objective_rows *r,
                             double *sum, double *each, llama_work *work) {
    const wmat *head;
    *sum = 0;
    err e = find_head(stage, r->n, work, &head);
    if (!e.code && kind == OBJECTIVE_RANGE)
        e = err_make(ERR_BUG, "loss", NULL, "range has none at the end of the model");
    if (!e.code && r->next) e = check_next(head, r);
    if (!e.code && r->teacher) e = check_top(head, work);
    if (e.code) return e;
    if (work->shape.compute == COMPUTE_F64)
        objective_backward_f64(kind, head, stage->final_norm, r, work);
    else
        objective_backward_f32(kind, head, stage->final_norm, r, work);
    hand_over(work, r->n, sum, each);
    return e;
}

err llama_ce_backward(const llama_stage *stage, int64_t n_rows, const void *x, const int32_t *next,
                      double weight, void *dx, double *nll_sum, double *nll, llama_work *work) {
    const objective_rows r = {.n = n_rows, .x = x, .next = next, .weight = weight, .dx = dx};
    return llama_objective_backward(OBJECTIVE_CE, stage, &r, nll_sum, nll, work);
}

err llama_teacher_save(const llama_stage *stage, int64_t n_rows, const void *x, llama_teacher *out,
                       llama_work *work) {
    const wmat *head;
    candidate *candidates;
    err e = find_head(stage, n_rows, work, &head);
    if (!e.code) e = check_top(head, work);
    if (!e.code)
        e = MEM_NEW(&candidates, work->threads * TEACHER_ROWS * 2 * work->shape.top_k,
                    "candidates of the teacher");
    if (e.code) return e;
    if (work->shape.compute == COMPUTE_F64)
        objective_teacher_f64(head, stage->final_norm, n_rows, x, out, candidates, work);
    else
        objective_teacher_f32(head, stage->final_norm, n_rows, x, out, candidates, work);
    mem_free(candidates);
    return e;
}
