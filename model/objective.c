/* Two passes over slices of the vocabulary: the first finds each row's maximum and log-sum-exp,
 * the second makes logits again and multiplies softmax minus target (or minus the teacher) with
 * the head. The teacher's top k is found by quickselect on candidates of each slice. */
#include "model/objective.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "model/backward_internal.h"
#include "model/norm.h"
#include "model/wmat_back.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What a pass over the vocabulary makes of a tile of logits. */
typedef enum head_mode {
    HEAD_SUMS,  /* greatest logit and sum of exponentials */
    HEAD_MEANS, /* these, and the mean of W's rows weighed by them, with a running maximum */
    HEAD_KL,    /* the sums are known: mass softmax - p of the teacher, times W */
} head_mode;

typedef struct head_pass {
    head_mode mode;
    const wmat *head;
    int64_t rows;
    const llama_teacher *teacher;
    llama_work *w;
} head_pass;

/* The greatest logit and log of the sum of exponentials of row i, from the parts in their order. */
static double lse_of_row(const llama_work *w, int64_t rows, int64_t i, double *max) {
    double most = -INFINITY, total = 0;
    for (int64_t p = 0; p < w->head_parts; p++) {
        const double m = w->head_max[p * rows + i];
        most = m > most ? m : most;
    }
    for (int64_t p = 0; p < w->head_parts; p++) {
        total += w->head_total[p * rows + i] * exp(w->head_max[p * rows + i] - most);
    }
    *max = most;
    return log(total);
}

/* First vocabulary row of a part: whole tiles. */
static int64_t part_begin(const wmat *head, const llama_work *w, int64_t part) {
    const int64_t tiles = size_ceil_div(head->rows, WMAT_TILE_COLUMNS);
    return size_min(head->rows, tiles * part / w->head_parts * WMAT_TILE_COLUMNS);
}

/* First of a row's kept tokens that is not below `id`; they are in order. */
static int64_t first_token(const int32_t *token, int64_t k, int64_t id) {
    int64_t lo = 0, hi = k;
    while (lo < hi) {
        const int64_t mid = (lo + hi) / 2;
        if (token[mid] < id)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

/* The teacher's choice: candidates of one row. */

typedef struct candidate {
    double logit;
    int32_t id;
} candidate;

static bool better(candidate a, candidate b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

/* The k best to the front (Hoare's quickselect); no two are equal, so the set is one. */
static void select_best(candidate *c, int64_t n, int64_t k) {
    int64_t lo = 0, hi = n - 1;
    while (lo < hi) {
        const candidate pivot = c[lo + (hi - lo) / 2];
        int64_t i = lo, j = hi;
        while (i <= j) {
            while (better(c[i], pivot)) i++;
            while (better(pivot, c[j])) j--;
            if (i > j) break;
            const candidate t = c[i];
            c[i++] = c[j];
            c[j--] = t;
        }
        if (k - 1 <= j)
            hi = j;
        else if (k - 1 >= i)
            lo = i;
        else
            return;
    }
}

static int by_id(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

/* Rows whose candidates one thread holds. */
enum { TEACHER_ROWS = 32 };

typedef struct teacher_rows {
    candidate *c; /* [TEACHER_ROWS, 2 top_k] */
    int64_t count[TEACHER_ROWS];
    double worst[TEACHER_ROWS]; /* of the top_k, once there are so many */
    double max[TEACHER_ROWS], total[TEACHER_ROWS];
} teacher_rows;

static void offer(teacher_rows *t, int64_t i, int64_t k, double logit, int64_t id) {
    candidate *c = t->c + i * 2 * k;
    if (!(logit > t->worst[i])) return;
    c[t->count[i]++] = (candidate){logit, (int32_t)id};
    if (t->count[i] < 2 * k) return;
    select_best(c, 2 * k, k);
    t->count[i] = k;
    t->worst[i] = c[0].logit;
    for (int64_t j = 1; j < k; j++) t->worst[i] = fmin(t->worst[i], c[j].logit);
}

static void take_best(teacher_rows *t, int64_t i, int64_t k, int32_t *token, float *log_p) {
    candidate *c = t->c + i * 2 * k;
    const double lse = t->max[i] + log(t->total[i]);
    select_best(c, t->count[i], k);
    qsort(c, (size_t)k, sizeof *c, by_id);
    for (int64_t j = 0; j < k; j++) {
        token[j] = c[j].id;
        log_p[j] = (float)(c[j].logit - lse);
    }
}

#define REAL_BITS 32
#include "model/objective_body.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "model/objective_body.h"

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

err llama_ce_backward(const llama_stage *stage, int64_t n_rows, const void *x, const int32_t *next,
                      double weight, void *dx, double *nll_sum, double *nll, llama_work *work) {
    const wmat *head;
    *nll_sum = 0;
    err e = find_head(stage, n_rows, work, &head);
    for (int64_t t = 0; !e.code && t < n_rows; t++) {
        if (next[t] >= head->rows)
            e = err_make(ERR_INPUT, "token ids", "use the tokenizer of this model",
                         "id %" PRId32 " is outside the vocabulary of %" PRId64, next[t],
                         head->rows);
    }
    if (e.code) return e;
    if (work->shape.compute == COMPUTE_F64)
        ce_back_f64(head, stage->final_norm, n_rows, x, next, weight, dx, work);
    else
        ce_back_f32(head, stage->final_norm, n_rows, x, next, weight, dx, work);
    hand_over(work, n_rows, nll_sum, nll);
    return e;
}

static err check_top(const wmat *head, const llama_work *w) {
    if (w->shape.top_k >= 1 && w->shape.top_k <= head->rows) return err_none();
    return err_make(ERR_BUG, "kl-top", NULL, "the %" PRId64 " likeliest of %" PRId64 " tokens",
                    w->shape.top_k, head->rows);
}

err llama_teacher_keep(const llama_stage *stage, int64_t n_rows, const void *x, llama_teacher *out,
                       llama_work *work) {
    const wmat *head;
    void *candidates;
    err e = find_head(stage, n_rows, work, &head);
    if (!e.code) e = check_top(head, work);
    if (!e.code)
        e = mem_alloc(work->threads * TEACHER_ROWS * 2 * work->shape.top_k, sizeof(candidate),
                      "candidates of the teacher", &candidates);
    if (e.code) return e;
    if (work->shape.compute == COMPUTE_F64)
        teacher_keep_f64(head, stage->final_norm, n_rows, x, out, candidates, work);
    else
        teacher_keep_f32(head, stage->final_norm, n_rows, x, out, candidates, work);
    mem_free(candidates);
    return e;
}

err llama_kl_backward(const llama_stage *stage, int64_t n_rows, const void *x,
                      const llama_teacher *teacher, double weight, void *dx, double *kl_sum,
                      double *kl, llama_work *work) {
    const wmat *head;
    *kl_sum = 0;
    err e = find_head(stage, n_rows, work, &head);
    if (!e.code) e = check_top(head, work);
    if (e.code) return e;
    if (work->shape.compute == COMPUTE_F64)
        kl_back_f64(head, stage->final_norm, n_rows, x, teacher, weight, dx, work);
    else
        kl_back_f32(head, stage->final_norm, n_rows, x, teacher, weight, dx, work);
    hand_over(work, n_rows, kl_sum, kl);
    return e;
}
