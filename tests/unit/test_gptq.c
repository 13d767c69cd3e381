/* GPTQ of one matrix against a slow reference: columns one by one with the inverse of the Hessian
 * updated explicitly (OBQ), losses from (w - q) H (w - q)^T itself; its edges, and what ends it. */
#include "base/fault.h"
#include "base/mem.h"
#include "quant/rtn.h"
#include "tests/unit/small_gptq.h"

#include <omp.h>

/* Codes by column of one row; inverse is by place and is destroyed. */
static void obq_row(const sample *s, int64_t row, double *inverse, int *codes) {
    const int64_t n = s->n, *at = s->order->column;
    double *w = doubles(n);
    for (int64_t p = 0; p < n; p++) w[p] = (double)s->w[row * n + at[p]];
    for (int64_t p = 0; p < n; p++) {
        codes[at[p]] = code_of(s->q, row, at[p], w[p]);
        const double e = w[p] - value(s->q, row, at[p], codes[at[p]]);
        const double pivot = inverse[p * n + p];
        for (int64_t k = p; k < n; k++) w[k] -= e / pivot * inverse[p * n + k];
        for (int64_t i = p + 1; i < n; i++)
            for (int64_t k = n - 1; k > p; k--)
                inverse[i * n + k] -= inverse[i * n + p] * inverse[p * n + k] / pivot;
    }
    free(w);
}

/* (w - q) H (w - q)^T by column. NULL: w H w^T. */
static double loss_of(const sample *s, int64_t row, const int *codes) {
    const int64_t n = s->n;
    double *d = doubles(n), sum = 0;
    for (int64_t j = 0; j < n; j++) {
        d[j] = (double)s->w[row * n + j] - (codes ? value(s->q, row, j, codes[j]) : 0);
        if (s->order->dead[j]) d[j] = 0;
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) sum += d[i] * s->h[i * n + j] * d[j];
    free(d);
    return sum;
}

static void assert_close(double a, double b, double relative, const char *what) {
    if (!(fabs(a - b) <= relative * fabs(b))) fail_msg("%s: %.15g, not %.15g", what, a, b);
}

/* Everything about one result, against the reference. */
static void check_sample(const sample *s) {
    const int64_t n = s->n;
    double *hd = damped(s), *inverse = doubles(n * n);
    int *codes = zeros(n, sizeof *codes), *plain = zeros(n, sizeof *plain);
    invert(n, hd);
    for (int64_t row = 0; row < s->rows; row++) {
        const gptq_loss *l = s->loss + row;
        memcpy(inverse, hd, (size_t)(n * n) * sizeof *hd);
        obq_row(s, row, inverse, codes);
        for (int64_t j = 0; j < n; j++) plain[j] = code_of(s->q, row, j, (double)s->w[row * n + j]);
        assert_close(l->gptq, loss_of(s, row, codes), 1e-9, "loss of the loop");
        assert_close(l->rtn, loss_of(s, row, plain), 1e-9, "loss of rounding to nearest");
        assert_close(l->energy, loss_of(s, row, NULL), 1e-9, "energy");
        assert_true(l->fell_back == (l->gptq > l->rtn));
        assert_true(l->chosen == (l->fell_back ? l->rtn : l->gptq));
        for (int64_t j = 0; j < n; j++)
            assert_int_equal(s->q->codes[row * n + j], l->fell_back ? plain[j] : codes[j]);
    }
    free(hd), free(inverse), free(codes), free(plain);
}

static void equals_the_reference(void **state) {
    (void)state;
    const int64_t n = 160, blocks[] = {1, 32, 128, 160};
    for (int k = 0; k < 8; k++) {
        const wquant how = {.bits = 4,
                            .group = k & 1 ? 32 : 0,
                            .symmetric = !(k & 2),
                            .search = k >= 6,
                            .scale_type = SCALE_BF16};
        sample s = sample_create(3, n, 300, &how);
        for (int b = 0; b < 4; b++) {
            s.options.block = blocks[b];
            run(&s, k & 4);
            assert_int_equal(s.done.raises, 0);
            check_sample(&s);
        }
        sample_destroy(&s);
    }
}

/* The gain of the whole affair, lest the reference share an error: half of the loss at least. */
static void is_better_than_nearest(void **state) {
    (void)state;
    const wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_BF16};
    sample s = sample_create(64, 96, 400, &how);
    gptq_report sum = {0};
    run(&s, true);
    gptq_report_add(s.loss, s.rows, &sum);
    assert_int_equal(sum.rows, 64);
    assert_true(sum.chosen < 0.5 * sum.rtn);
    assert_true(sum.chosen > 0 && sum.rtn < sum.energy);
    sample_destroy(&s);
}

/* U is upper and U^T U Hd = I, for orders around the blocks. */
static void factor_is_the_inverse(void **state) {
    (void)state;
    const int64_t orders[] = {1, 2, 127, 128, 129, 257, 300};
    for (int k = 0; k < 7; k++) {
        const int64_t n = orders[k];
        const wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_F32};
        sample s = sample_create(1, n, 2 * n + 8, &how);
        factor(&s, true);
        double *hd = damped(&s), most = 0, condition = 0;
        for (int64_t i = 0; i < n; i++) condition = fmax(condition, hd[i * n + i]);
        condition *= (double)n / s.done.lambda;
        for (int64_t i = 0; i < n; i++) {
            double *row = doubles(n), *out = doubles(n);
            for (int64_t m = 0; m <= i; m++)
                for (int64_t j = m; j < n; j++) row[j] += s.u[m * n + i] * s.u[m * n + j];
            for (int64_t j = 0; j < n; j++)
                for (int64_t m = 0; m < n; m++) out[m] += row[j] * hd[j * n + m];
            for (int64_t m = 0; m < n; m++) most = fmax(most, fabs(out[m] - (m == i)));
            for (int64_t m = 0; m < i; m++) assert_true(s.u[i * n + m] == 0);
            free(row), free(out);
        }
        assert_true(most <= condition * 0x1p-52);
        free(hd);
        sample_destroy(&s);
    }
}

static void threads_and_cuts_change_nothing(void **state) {
    (void)state;
    const wquant how = {.bits = 4, .group = 64, .symmetric = true, .scale_type = SCALE_BF16};
    sample a = sample_create(200, 640, 800, &how), b = sample_create(200, 640, 800, &how);
    a.options.energy = false; /* and it is asked for or not */
    omp_set_num_threads(1);
    run(&a, true);
    omp_set_num_threads(3);
    run(&b, true);
    same_bits(&a, &b);
    omp_set_num_threads(2);
    factor(&b, true);
    round_rows(&b, 128, 72);
    round_rows(&b, 0, 64);
    round_rows(&b, 64, 64);
    round_rows(&b, 0, 0);
    same_bits(&a, &b);
    assert_true(b.loss[0].energy > 0);
    sample_destroy(&a);
    sample_destroy(&b);
}

/* Columns without input are rounded to nearest and disturb nobody. */
static void dead_columns(void **state) {
    (void)state;
    for (int k = 0; k < 4; k++) {
        const wquant how = {
            .bits = 4, .group = k & 1 ? 32 : 0, .symmetric = !(k & 2), .scale_type = SCALE_BF16};
        sample s = sample_create(3, 96, 200, &how);
        for (int64_t j = 5; j < 96; j += 40)
            for (int64_t i = 0; i < 96; i++) s.h[i * 96 + j] = s.h[j * 96 + i] = 0;
        run(&s, true);
        assert_int_equal(s.order->n_dead, 3);
        for (int64_t i = 0; i < 3; i++)
            assert_int_equal(s.q->codes[i * 96 + 45],
                             code_of(s.q, i, 45, (double)s.w[i * 96 + 45]));
        check_sample(&s);
        sample_destroy(&s);
    }
}

static void all_columns_dead(void **state) {
    (void)state;
    const wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_BF16};
    sample s = sample_create(2, 40, 8, &how);
    memset(s.h, 0, 40 * 40 * sizeof *s.h);
    run(&s, true);
    for (int64_t i = 0; i < 80; i++)
        assert_int_equal(s.q->codes[i], code_of(s.q, i / 40, i % 40, (double)s.w[i]));
    assert_true(s.loss[0].chosen == 0 && !s.loss[0].fell_back);
    sample_destroy(&s);
}

/* A Hessian that rounding made indefinite: damping is raised until it is not, and said. */
static void damping_is_raised(void **state) {
    (void)state;
    const wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_BF16};
    sample s = sample_create(2, 600, 40, &how); /* fewer tokens than columns */
    s.damp = 0;
    run(&s, true);
    assert_true(s.done.raises > 0);
    assert_close(s.done.lambda, 1e-7 * s.order->mean_live * pow(10, s.done.raises), 1e-12,
                 "lambda");
    for (int64_t j = 0; j < 600; j++) s.h[j * 600 + j] -= 0.5 * s.order->mean_live;
    for (int64_t j = 0; j < 600; j++) s.h[j * 600 + j] = fmax(s.h[j * 600 + j], 0.1);
    s.damp = 0.01;
    run(&s, false);
    assert_true(s.done.raises > 0);
    check_sample(&s);
    sample_destroy(&s);
}

static void bad_hessians(void **state) {
    (void)state;
    const int64_t n = 200;
    const wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_BF16};
    sample s = sample_create(1, n, 400, &how);
    gptq_order *o;
    gptq_damping done;
    double *diagonal = doubles(n), *h = doubles(n * n);
    for (int64_t j = 0; j < n; j++) diagonal[j] = s.h[j * n + j];
    assert_ok(gptq_order_create(n, diagonal, true, &o));
    memcpy(h, s.h, (size_t)(n * n) * sizeof *h);
    h[17 * n + 3] = h[3 * n + 17] = NAN;
    err e = gptq_factor(o, 0.01, h, &done);
    assert_int_equal(e.code, ERR_NUMERICS);
    assert_non_null(strstr(e.where, "column 3"));
    for (int64_t i = 0; i < n * n; i++) h[i] = 0;
    for (int64_t i = 0; i + 1 < n; i += 2) h[i * n + i + 1] = h[(i + 1) * n + i] = 1e9;
    for (int64_t i = 0; i < n; i++) h[i * n + i] = 1;
    e = gptq_factor(o, 0.01, h, &done);
    assert_int_equal(e.code, ERR_NUMERICS);
    gptq_order_destroy(&o);
    diagonal[9] = INFINITY;
    e = gptq_order_create(n, diagonal, true, &o);
    assert_int_equal(e.code, ERR_NUMERICS);
    assert_non_null(strstr(e.where, "column 9"));
    assert_null(o);
    free(diagonal), free(h);
    sample_destroy(&s);
}

/* Two bits with shrunk ranges: errors are pushed into columns that are clipped, and some rows end
 * above rounding to nearest. check_sample holds the kept codes against both. */
static void rows_fall_back(void **state) {
    (void)state;
    const wquant how = {
        .bits = 2, .group = 32, .symmetric = true, .search = true, .scale_type = SCALE_BF16};
    sample s = sample_create(100, 32, 100, &how);
    gptq_report sum = {0};
    for (int64_t i = 0; i < 32; i++)
        for (int64_t j = 0; j < 32; j++) s.h[i * 32 + j] *= i == j ? 1 : 0.2;
    run(&s, false);
    check_sample(&s);
    gptq_report_add(s.loss, s.rows, &sum);
    assert_true(sum.fell_back > 0 && sum.fell_back < 50);
    for (int64_t i = 0; i < s.rows; i++) assert_true(s.loss[i].chosen <= s.loss[i].rtn);
    sample_destroy(&s);
}

static err broken_panel(void *context, int64_t first, int64_t rows, const double **panel,
                        int64_t *stride) {
    int *calls = context;
    (void)first, (void)rows, (void)panel, (void)stride;
    ++*calls;
    return err_make(ERR_SPACE, "scratch", NULL, "gone");
}

static void errors_of_panels_end_it(void **state) {
    (void)state;
    const wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_BF16};
    sample s = sample_create(2, 64, 100, &how);
    int calls = 0;
    factor(&s, true);
    s.options.block = 16;
    const gptq_try one = {0, s.q, s.loss};
    err e = gptq_rows(&s.options, s.order, 0, (gptq_panels){broken_panel, &calls}, s.w, NULL, 2, 0,
                      &one, 1);
    assert_int_equal(e.code, ERR_SPACE);
    assert_int_equal(calls, 1);
    e = gptq_rows(&s.options, s.order, 0, (gptq_panels){broken_panel, &calls}, s.w, NULL, 2, 1,
                  &one, 1);
    assert_int_equal(e.code, ERR_BUG);
    sample_destroy(&s);
}

typedef struct counted {
    const sample *s;
    int64_t calls;
} counted;

static err counted_panel(void *context, int64_t first, int64_t rows, const double **panel,
                         int64_t *stride) {
    counted *c = context;
    assert_int_equal(first, c->calls++ * c->s->options.block);
    assert_true(first + rows <= c->s->n);
    *panel = c->s->u + first * c->s->n + first;
    *stride = c->s->n;
    return err_none();
}

/* Panels may come from all ranks at once: one that lacks memory must leave no other waiting. */
static void ask_for_panels(int n_tries) {
    const wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_BF16};
    sample s = sample_create(2, 64, 100, &how);
    factor(&s, true);
    s.options.block = 24; /* the last one is smaller */
    gptq_try tries[GPTQ_MAX_TRIES];
    for (int i = 0; i < n_tries; i++) {
        tries[i] = (gptq_try){0.5 * i, NULL, s.loss};
        assert_ok(qmatrix_create(2, 64, &how, &tries[i].q));
    }
    s.cross = n_tries > 1 ? doubles(2 * 64) : NULL;
    const uint64_t held = mem_held_bytes();
    err e;
    int k = 0;
    do {
        char spec[32];
        counted c = {&s, 0};
        snprintf(spec, sizeof spec, "malloc:%d", ++k);
        fault_arm(spec);
        e = gptq_rows(&s.options, s.order, 0, (gptq_panels){counted_panel, &c}, s.w, s.cross, 2, 0,
                      tries, n_tries);
        assert_int_equal(c.calls, 3);
        assert_int_equal(e.code, fault_armed() ? ERR_OK : ERR_NOFIT);
        assert_int_equal(mem_held_bytes(), held);
    } while (e.code);
    fault_arm("");
    /* four buffers each, the cross terms, and none missing */
    assert_int_equal(k, 4 * n_tries + (n_tries > 1) + 1);
    for (int i = 0; i < n_tries; i++) qmatrix_destroy(&tries[i].q);
    sample_destroy(&s);
}

static void all_panels_are_asked_for_once(void **state) {
    (void)state;
    ask_for_panels(1);
    ask_for_panels(GPTQ_MAX_TRIES);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(factor_is_the_inverse),
        cmocka_unit_test(equals_the_reference),
        cmocka_unit_test(is_better_than_nearest),
        cmocka_unit_test(threads_and_cuts_change_nothing),
        cmocka_unit_test(dead_columns),
        cmocka_unit_test(all_columns_dead),
        cmocka_unit_test(damping_is_raised),
        cmocka_unit_test(bad_hessians),
        cmocka_unit_test(rows_fall_back),
        cmocka_unit_test(errors_of_panels_end_it),
        cmocka_unit_test(all_panels_are_asked_for_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
