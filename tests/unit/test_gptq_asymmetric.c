/* Asymmetric calibration of one matrix against a minimisation of its objective, from the inputs, at
 * every column. */
#include "tests/unit/small_gptq.h"

/* r = w - q of the free places p.. that makes J least while those before stand:
 * r_F Hd_FF = -(r_P Hd_PF + alpha (w C)_F). */
static double best_next(const sample *s, const double *hd, const double *wc, int64_t p, double *r) {
    const int64_t n = s->n, free_n = n - p;
    double *a = doubles(free_n * free_n), out = 0;
    for (int64_t i = 0; i < free_n; i++)
        for (int64_t j = 0; j < free_n; j++) a[i * free_n + j] = hd[(p + i) * n + p + j];
    invert(free_n, a);
    for (int64_t i = 0; i < free_n; i++) {
        double right = s->alpha * wc[s->order->column[p + i]];
        for (int64_t k = 0; k < p; k++) right += r[k] * hd[k * n + p + i];
        out -= right * a[i * free_n];
    }
    free(a);
    return out;
}

/* c |X~ (w - q) + alpha dX w|^2 - alpha^2 c |dX w|^2 from the inputs. */
static double objective(const sample *s, const double *seen, const double *full, int64_t tokens,
                        int64_t row, const int *codes) {
    double sum = 0;
    for (int64_t t = 0; t < tokens; t++) {
        double y = 0, d = 0;
        for (int64_t j = 0; j < s->n; j++) {
            const double w = (double)s->w[row * s->n + j];
            y += seen[t * s->n + j] * (w - value(s->q, row, j, codes[j]));
            d += (full[t * s->n + j] - seen[t * s->n + j]) * w;
        }
        d *= s->alpha;
        sum += ((y + d) * (y + d) - d * d) * 2 / (double)tokens;
    }
    return sum;
}

static void asymmetric_row(const sample *s, const double *seen, const double *full, int64_t tokens,
                           int64_t row) {
    const int64_t n = s->n, *at = s->order->column;
    double *hd = damped(s), *r = doubles(n);
    int *codes = zeros(n, sizeof *codes), *plain = zeros(n, sizeof *plain);
    const double *wc = s->cross + row * n;
    for (int64_t p = 0; p < n; p++) {
        const double w = (double)s->w[row * n + at[p]];
        const double free_w = w - best_next(s, hd, wc, p, r);
        codes[at[p]] = code_of(s->q, row, at[p], free_w);
        plain[at[p]] = code_of(s->q, row, at[p], w);
        r[p] = w - value(s->q, row, at[p], codes[at[p]]);
    }
    const gptq_loss *l = s->loss + row;
    const double rtn = objective(s, seen, full, tokens, row, plain);
    const double best = objective(s, seen, full, tokens, row, codes);
    assert_true(fabs(l->gptq - best) <= 1e-9 * l->energy);
    assert_true(fabs(l->rtn - rtn) <= 1e-9 * l->energy);
    for (int64_t j = 0; j < n; j++)
        assert_int_equal(s->q->codes[row * n + j], l->fell_back ? plain[j] : codes[j]);
    free(hd), free(r), free(codes), free(plain);
}

static void asymmetric_calibration_is_exact(void **state) {
    (void)state;
    const int64_t n = 40, tokens = 120, rows = 3, blocks[] = {1, 8, 16, 40};
    for (int k = 0; k < 4; k++) {
        const wquant how = {
            .bits = 4, .group = k & 1 ? 8 : 0, .symmetric = !(k & 2), .scale_type = SCALE_BF16};
        sample s = sample_create(rows, n, tokens, &how);
        double *seen = inputs(3, tokens, n), *full = doubles(tokens * n), *c;
        double *d = doubles(tokens * n);
        for (int64_t i = 0; i < tokens * n; i++) {
            d[i] = 0.3 * uniform(50, i) - 0.1 * seen[i];
            full[i] = seen[i] + d[i];
        }
        c = moment(d, seen, tokens, n);
        s.cross = doubles(rows * n);
        assert_ok(gptq_cross_add(s.w, rows, n, 0, 24, c, n, s.cross));
        assert_ok(gptq_cross_add(s.w, rows, n, 24, 16, c + 24 * n, n, s.cross));
        s.alpha = k == 3 ? 1 : 0.6;
        s.options.block = blocks[k];
        run(&s, true);
        gptq_report with = {0};
        gptq_report_add(s.loss, rows, &with);
        for (int64_t row = 0; row < rows; row++) asymmetric_row(&s, seen, full, tokens, row);
        assert_true(with.chosen < with.rtn);
        free(seen), free(full), free(c), free(d);
        sample_destroy(&s);
    }
}

/* A strength of 0 is no correction, to the last code. */
static void no_strength_no_correction(void **state) {
    (void)state;
    const wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_BF16};
    sample a = sample_create(70, 100, 200, &how), b = sample_create(70, 100, 200, &how);
    run(&a, true);
    b.cross = doubles(70 * 100);
    for (int64_t i = 0; i < 7000; i++) b.cross[i] = uniform(9, i);
    run(&b, true);
    same_bits(&a, &b);
    sample_destroy(&a);
    sample_destroy(&b);
}

/* Strengths that go through the panels together give what each gives alone; rows stand elsewhere in
 * their matrices. */
static void strengths_go_together(void **state) {
    (void)state;
    const int64_t rows = 70, n = 100;
    const double alpha[] = {0, 0.3, 0.9};
    const wquant how = {.bits = 4, .group = 20, .scale_type = SCALE_BF16};
    sample all = sample_create(rows, n, 200, &how), s = sample_create(rows, n, 200, &how);
    gptq_whole whole = {NULL, n};
    gptq_try tries[3];
    all.cross = doubles(rows * n), s.cross = doubles(rows * n);
    for (int64_t i = 0; i < rows * n; i++) s.cross[i] = all.cross[i] = uniform(9, i);
    factor(&all, true);
    whole.u = all.u;
    for (int i = 0; i < 3; i++) {
        tries[i] = (gptq_try){alpha[i], NULL, zeros(rows, sizeof(gptq_loss))};
        assert_ok(qmatrix_create(rows + 3, n, &how, &tries[i].q));
    }
    assert_ok(gptq_rows(&all.options, all.order, all.done.lambda, gptq_panels_of(&whole), all.w,
                        all.cross, rows, 3, tries, 3));
    for (int i = 0; i < 3; i++) {
        const qmatrix *q = tries[i].q;
        s.alpha = alpha[i];
        run(&s, true);
        assert_memory_equal(q->codes + 3 * n, s.q->codes, (size_t)(rows * n));
        assert_memory_equal(q->scales + 15, s.q->scales, (size_t)(rows * 5) * sizeof *q->scales);
        assert_memory_equal(q->zeros + 15, s.q->zeros, (size_t)(rows * 5));
        assert_memory_equal(tries[i].loss, s.loss, (size_t)rows * sizeof *s.loss);
        if (i) assert_memory_not_equal(q->codes, tries[i - 1].q->codes, (size_t)((rows + 3) * n));
    }
    for (int i = 0; i < 3; i++) qmatrix_destroy(&tries[i].q), free(tries[i].loss);
    sample_destroy(&all);
    sample_destroy(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(asymmetric_calibration_is_exact),
        cmocka_unit_test(no_strength_no_correction),
        cmocka_unit_test(strengths_go_together),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
