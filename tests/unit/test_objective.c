/* Losses and their gradients against a softmax over whole rows of logits, written here, and its
 * five-point differences: cross entropy, what is kept of a teacher, kl-top. */
#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"
#include "model/norm.h"
#include "model/objective.h"
#include "tests/unit/small_model.h"

/* Derivative of a function of a line by five points. */
typedef double (*line)(void *ctx, double t);

static double five_point(line f, void *ctx, double h) {
    return (8 * (f(ctx, h) - f(ctx, -h)) - (f(ctx, 2 * h) - f(ctx, -2 * h))) / (12 * h);
}

static void near_relative(double got, double want, double tolerance) {
    if (fabs(got - want) > tolerance * fabs(want))
        print_error("%.17g where %.17g is wanted (%.2g)\n", got, want, fabs(got / want - 1));
    assert_true(fabs(got - want) <= tolerance * fabs(want));
}

/* Losses, against a softmax over whole rows of logits. */

typedef struct slow_head {
    const small_model *m;
    const float *weights; /* of the head */
} slow_head;

static double slow_logits(const slow_head *s, const double *x, double *z) {
    const llama_config *c = &s->m->cfg;
    double y[64], most = -1e300, total = 0;
    norm_rows_f64(x, 1, c->hidden, c->rms_eps, s->m->stage.final_norm, y);
    for (int64_t v = 0; v < c->vocab; v++) {
        z[v] = 0;
        for (int64_t j = 0; j < c->hidden; j++)
            z[v] += y[j] * (double)s->weights[v * c->hidden + j];
        most = fmax(most, z[v]);
    }
    for (int64_t v = 0; v < c->vocab; v++) total += exp(z[v] - most);
    return most + log(total);
}

static int32_t *some_targets(int64_t rows, int64_t vocab) {
    int32_t *next = room(rows, sizeof *next);
    for (int64_t t = 0; t < rows; t++) next[t] = t % 7 == 3 ? -1 : (int32_t)(t * 37 % vocab);
    return next;
}

typedef struct loss_line {
    const slow_head *head;
    const double *x, *v;
    const int32_t *next;
    const llama_teacher *teacher;
    int64_t rows, k;
} loss_line;

static double along_loss(void *ctx, double t) {
    const loss_line *l = ctx;
    const int64_t hidden = l->head->m->cfg.hidden;
    double sum = 0, z[700], x[64];
    for (int64_t i = 0; i < l->rows; i++) {
        for (int64_t j = 0; j < hidden; j++) x[j] = l->x[i * hidden + j] + t * l->v[i * hidden + j];
        const double lse = slow_logits(l->head, x, z);
        if (l->next && l->next[i] >= 0) sum += lse - z[l->next[i]];
        for (int64_t j = 0; l->teacher && j < l->k; j++) {
            const double lp = (double)l->teacher->log_p[i * l->k + j];
            sum += exp(lp) * (lp - (z[l->teacher->token[i * l->k + j]] - lse));
        }
    }
    return sum;
}

static void open_head(small_model *m, const llama_pass_shape *shape, llama_work **work) {
    small_model_make(m, false, 0);
    assert_ok(llama_work_create(&m->cfg, NULL, shape, work));
}

static void test_cross_entropy(void **state) {
    (void)state;
    const int64_t rows = 300;
    const llama_pass_shape shape = {
        .compute = COMPUTE_F64, .window = rows, .slice = rows, .head = true};
    small_model m;
    llama_work *work;
    open_head(&m, &shape, &work);
    const slow_head slow = {&m, m.stage.head.data};
    const int64_t n = rows * m.cfg.hidden;
    double *x = random_f64(n, 2), *dx = room(n, sizeof *dx), *nll = room(rows, sizeof *nll), sum;
    int32_t *next = some_targets(rows, m.cfg.vocab);
    assert_ok(llama_ce_backward(&m.stage, rows, x, next, 0.25, dx, &sum, nll, work));
    double z[700];
    for (int64_t t = 0; t < rows; t++) {
        const double lse = slow_logits(&slow, x + t * m.cfg.hidden, z);
        const double want = next[t] < 0 ? 0 : lse - z[next[t]];
        assert_true(fabs(nll[t] - want) <= 1e-12 * (1 + want));
    }
    for (int i = 0; i < 5; i++) {
        double *v = random_f64(n, 1);
        loss_line l = {.head = &slow, .x = x, .v = v, .next = next, .rows = rows};
        near_relative(dot_f64(dx, v, n), 0.25 * five_point(along_loss, &l, 1e-3), 1e-8);
        mem_free(v);
    }
    /* in place, and a token that is none */
    double again;
    assert_ok(llama_ce_backward(&m.stage, rows, x, next, 0.25, x, &again, NULL, work));
    assert_memory_equal(x, dx, (size_t)n * sizeof *x);
    assert_true(again == sum);
    next[0] = (int32_t)m.cfg.vocab;
    assert_int_equal(llama_ce_backward(&m.stage, rows, x, next, 1, dx, &sum, NULL, work).code,
                     ERR_INPUT);
    mem_free(x);
    mem_free(dx);
    mem_free(nll);
    mem_free(next);
    llama_work_destroy(&work);
    llama_stage_clear(&m.stage);
}

static void check_kl(int64_t k) {
    const int64_t rows = 90;
    const llama_pass_shape shape = {
        .compute = COMPUTE_F64, .window = rows, .slice = rows, .head = true, .top_k = k};
    small_model m;
    llama_work *work;
    open_head(&m, &shape, &work);
    const slow_head slow = {&m, m.stage.head.data};
    const int64_t n = rows * m.cfg.hidden, hidden = m.cfg.hidden;
    double *x = random_f64(n, 2), *y = random_f64(n, 2), *dx = room(n, sizeof *dx);
    double *kl = room(rows, sizeof *kl), sum, z[700];
    llama_teacher teacher = {.token = room(rows * k, sizeof(int32_t)),
                             .log_p = room(rows * k, sizeof(float))};
    assert_ok(llama_teacher_save(&m.stage, rows, x, &teacher, work));
    for (int64_t t = 0; t < rows; t++) {
        const double lse = slow_logits(&slow, x + t * hidden, z);
        double least = 1e300;
        for (int64_t j = 0; j < k; j++) {
            const int32_t id = teacher.token[t * k + j];
            assert_true(j == 0 || id > teacher.token[t * k + j - 1]);
            assert_true(fabs((double)teacher.log_p[t * k + j] - (z[id] - lse)) <= 1e-5);
            least = fmin(least, z[id]);
        }
        int64_t above = 0;
        for (int64_t v = 0; v < m.cfg.vocab; v++) above += z[v] >= least;
        assert_int_equal(above, k);
    }
    objective_rows r = {.n = rows, .x = y, .teacher = &teacher, .weight = 3, .dx = dx};
    assert_ok(llama_objective_backward(OBJECTIVE_KL_TOP, &m.stage, &r, &sum, kl, work));
    loss_line l = {.head = &slow, .x = y, .v = y, .teacher = &teacher, .rows = rows, .k = k};
    near_relative(sum, along_loss(&l, 0), 1e-12);
    for (int i = 0; i < 3; i++) {
        double *v = random_f64(n, 1);
        l.v = v;
        near_relative(dot_f64(dx, v, n), 3 * five_point(along_loss, &l, 1e-3), 1e-7);
        mem_free(v);
    }
    /* the teacher against itself: no divergence but the rounding of log p, no gradient */
    r.x = x;
    r.weight = 1;
    assert_ok(llama_objective_backward(OBJECTIVE_KL_TOP, &m.stage, &r, &sum, kl, work));
    for (int64_t t = 0; t < rows; t++) assert_true(fabs(kl[t]) <= 1e-6);
    for (int64_t i = 0; i < n; i++) assert_true(k < m.cfg.vocab || fabs(dx[i]) <= 1e-5);
    void *all[] = {x, y, dx, kl, teacher.token, teacher.log_p};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
    llama_work_destroy(&work);
    llama_stage_clear(&m.stage);
}

static void test_kl_top(void **state) {
    (void)state;
    check_kl(1);
    check_kl(50);
    check_kl(700);
}

int main(void) {
    gemm_init(1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_cross_entropy),
                                       cmocka_unit_test(test_kl_top)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
