/* Fusion against the matrix algebra written out in fp64, and against the function of the layers
 * that it must not change. */
#include "base/err.h"
#include "base/half.h"
#include "base/rng.h"
#include "model/fuse.h"
#include "tests/unit/assert_ok.h"

#include <math.h>
#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { HIDDEN = 48, HEADS = 6, KV = 3, HEAD = 8, INNER = 88, LAYERS = 2 };

static void *room(int64_t count, size_t size) {
    void *p = calloc((size_t)count, size);
    assert_non_null(p);
    return p;
}

static void fill(float *x, int64_t n, uint64_t seed) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)rng_normal(seed, RNG_TEST, (uint64_t)i);
}

/* c [m, n] = a [m, k] b [k, n]. */
static void product(const double *a, const double *b, int64_t m, int64_t k, int64_t n, double *c) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t l = 0; l < k; l++) sum += a[i * k + l] * b[l * n + j];
            c[i * n + j] = sum;
        }
}

static double *unit(int64_t n) {
    double *u = room(n * n, sizeof(double));
    for (int64_t i = 0; i < n; i++) u[i * n + i] = 1;
    return u;
}

static double *dense_of(const rotation *r, int64_t n) {
    double *R = unit(n);
    if (r) assert_ok(rotation_to_dense(r, R));
    return R;
}

/* Block-diagonal matrix of the R2 of the KV head of each of n heads. */
static double *heads_of(const rotation_set *set, int64_t layer, int64_t n_heads) {
    const int64_t n = n_heads * HEAD;
    double *B = room(n * n, sizeof(double));
    for (int64_t h = 0; h < n_heads; h++) {
        double *R = dense_of(rotation_set_r2(set, layer, h / (n_heads / KV)), HEAD);
        for (int64_t i = 0; i < HEAD; i++)
            for (int64_t j = 0; j < HEAD; j++)
                B[(h * HEAD + i) * n + h * HEAD + j] = R[i * HEAD + j];
        free(R);
    }
    return B;
}

/* The long way: out^T W diag(gain) in. */
static double *long_way(const float *w, int64_t rows, int64_t cols, const float *gain,
                        const double *in, const double *out) {
    double *a = room(rows * cols, sizeof(double)), *b = room(rows * cols, sizeof(double));
    double *t = room(rows * rows, sizeof(double));
    for (int64_t i = 0; i < rows * cols; i++)
        a[i] = (double)w[i] * (gain ? (double)gain[i % cols] : 1.0);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < rows; j++) t[i * rows + j] = out[j * rows + i];
    product(a, in, rows, cols, cols, b);
    product(t, b, rows, rows, cols, a);
    free(b);
    free(t);
    return a;
}

/* Rows must come in order, and all of them. */
typedef struct collected {
    float *w;
    int64_t cols, next;
} collected;

static err collect(void *arg, int64_t row0, int64_t rows, const float *w) {
    collected *c = arg;
    assert_int_equal(row0, c->next);
    memcpy(c->w + row0 * c->cols, w, (size_t)(rows * c->cols) * sizeof(float));
    c->next += rows;
    return err_none();
}

/* Rows come once each, from any thread. */
static err collect_any(void *arg, int64_t row0, int64_t rows, const float *w) {
    collected *c = arg;
    memcpy(c->w + row0 * c->cols, w, (size_t)(rows * c->cols) * sizeof(float));
#pragma omp atomic
    c->next += rows;
    return err_none();
}

/* The probe of a fused matrix, wherever this test fuses one: right as it came, wrong once a number
 * of the size of the largest has lost its sign. */
static void assert_probe(const fuse_job *job, float *w) {
    float *t = room(job->cols, sizeof(float));
    double before, after[2] = {0, 0}, square = 0;
    int64_t most = 0, n = job->rows * job->cols;
    fuse_probe_signs(job->cols, t);
    assert_ok(fuse_probe_source(job, t, &before));
    for (int64_t i = 0; i < n; i++)
        if (fabsf(w[i]) > fabsf(w[most])) most = i;
    for (int damaged = 0; damaged < 2; damaged++) {
        for (int64_t r = 0; r < job->rows; r++) {
            double dot = 0;
            for (int64_t j = 0; j < job->cols; j++) {
                int64_t i = r * job->cols + j;
                dot += (double)t[j] * (double)(damaged && i == most ? -w[i] : w[i]);
                if (!damaged) square += (double)w[i] * (double)w[i];
            }
            after[damaged] += dot * dot;
        }
    }
    assert_ok(fuse_probe_check(before, after[0], square, job->cols));
    if (n > 64 && fabs(sqrt(after[1]) - sqrt(after[0])) > 1e-5 * sqrt(square))
        assert_int_equal(fuse_probe_check(before, after[1], square, job->cols).code, ERR_NUMERICS);
    free(t);
}

static float *fused(fuse_job *job) {
    const int64_t n = job->rows * job->cols;
    collected c = {room(n, sizeof(float)), job->cols, 0},
              any = {room(n, sizeof(float)), job->cols, 0};
    assert_ok(fuse_matrix(job, collect, &c));
    assert_int_equal(job->non_finite, 0);
    assert_int_equal(c.next, job->rows);
    assert_ok(fuse_matrix_each(job, collect_any, &any));
    assert_int_equal(any.next, job->rows);
    assert_memory_equal(c.w, any.w, (size_t)n * sizeof(float));
    assert_probe(job, c.w);
    free(any.w);
    return c.w;
}

static void assert_near(const float *w, const double *expected, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        assert_true(fabs((double)w[i] - expected[i]) <= 1e-12 + 1e-7 * fabs(expected[i]));
}

static rotation *dense_rotation(int64_t n, uint64_t seed) {
    rotation *r;
    double *R = unit(n), *v = room(n, sizeof(double));
    for (int k = 0; k < 3; k++) {
        double norm = 0;
        for (int64_t i = 0; i < n; i++) {
            v[i] = rng_normal(seed, RNG_TEST, (uint64_t)(k * n + i));
            norm += v[i] * v[i];
        }
        for (int64_t i = 0; i < n; i++) {
            double dot = 0;
            for (int64_t j = 0; j < n; j++) dot += R[i * n + j] * v[j];
            for (int64_t j = 0; j < n; j++) R[i * n + j] -= 2 * dot / norm * v[j];
        }
    }
    assert_ok(rotation_create_dense(n, R, &r));
    free(R);
    free(v);
    return r;
}

/* kind 0: Hadamard, R2 per head, R4; 1: one R2 a layer, no R4; 2: dense R1 and R2; 3: nothing. */
static rotation_set *make_set(int kind) {
    rotation_options opts = {.r1 = kind != 3,
                             .r2 = kind == 3   ? R2_NONE
                                   : kind == 1 ? R2_LAYER
                                               : R2_HEAD,
                             .r3 = true,
                             .r4 = kind == 0 || kind == 2,
                             .r4_block = kind == 2 ? 44 : 0,
                             .start = START_HAD,
                             .seed = 77};
    rotation_sizes sizes = {HIDDEN, LAYERS, HEADS, KV, HEAD, INNER, false};
    rotation_set *set;
    assert_ok(rotation_set_create(&opts, &sizes, &set));
    for (int64_t l = 0; l < LAYERS; l++) assert_ok(rotation_set_prepare_r2(set, l));
    if (kind != 2) return set;
    rotation *r = dense_rotation(HIDDEN, 1);
    assert_ok(rotation_set_put_r1(set, &r));
    for (int64_t h = 0; h < KV; h++) {
        r = dense_rotation(HEAD, 10 + (uint64_t)h);
        assert_ok(rotation_set_put_r2(set, 1, h, &r));
    }
    return set;
}

static void check_role(rotation_set *set, llama_role role, int64_t rows, int64_t cols, bool gain) {
    const int64_t layer = 1;
    float *w = room(rows * cols, sizeof(float)), *g = room(cols, sizeof(float));
    fill(w, rows * cols, 100 + (uint64_t)role);
    fill(g, cols, 200 + (uint64_t)role);
    fuse_plan plan;
    assert_ok(fuse_plan_init(role, layer, set, &plan));
    plan.job.source = w;
    plan.job.dtype = FUSE_F32;
    plan.job.rows = rows;
    plan.job.cols = cols;
    plan.job.in_gain = gain ? g : NULL;
    float *ours = fused(&plan.job);
    const rotation *r1 = rotation_set_r1(set);
    double *in = role == ROLE_O      ? heads_of(set, layer, HEADS)
                 : role == ROLE_DOWN ? dense_of(rotation_set_r4(set), cols)
                                     : dense_of(r1, cols);
    double *out = role == ROLE_O || role == ROLE_DOWN ? dense_of(r1, rows)
                  : role == ROLE_V                    ? heads_of(set, layer, KV)
                                                      : unit(rows);
    double *expected = long_way(w, rows, cols, gain ? g : NULL, in, out);
    assert_near(ours, expected, rows * cols);
    fuse_plan_clear(&plan);
    free(w);
    free(g);
    free(ours);
    free(in);
    free(out);
    free(expected);
}

static void every_role_against_the_algebra(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        rotation_set *set = make_set(kind);
        check_role(set, ROLE_EMBED, 70, HIDDEN, false);
        check_role(set, ROLE_HEAD, 70, HIDDEN, true);
        check_role(set, ROLE_Q, HEADS * HEAD, HIDDEN, true);
        check_role(set, ROLE_K, KV * HEAD, HIDDEN, true);
        check_role(set, ROLE_V, KV * HEAD, HIDDEN, true);
        check_role(set, ROLE_O, HIDDEN, HEADS * HEAD, false);
        check_role(set, ROLE_GATE, INNER, HIDDEN, true);
        check_role(set, ROLE_UP, INNER, HIDDEN, true);
        check_role(set, ROLE_DOWN, HIDDEN, INNER, false);
        rotation_set_destroy(&set);
    }
}

static void check_bias(rotation_set *set, llama_role role, int64_t n) {
    float b[HIDDEN], ours[HIDDEN];
    fill(b, n, 300 + (uint64_t)role);
    memcpy(ours, b, sizeof b);
    fuse_plan plan;
    assert_ok(fuse_plan_init(role, 1, set, &plan));
    assert_ok(fuse_bias(&plan.job, ours, n));
    fuse_plan_clear(&plan);
    double *R = role == ROLE_V_BIAS ? heads_of(set, 1, KV) : dense_of(rotation_set_r1(set), n);
    double wide[HIDDEN], expected[HIDDEN];
    for (int64_t i = 0; i < n; i++) wide[i] = b[i];
    product(wide, R, 1, n, n, expected);
    assert_near(ours, expected, n);
    free(R);
}

static void biases_against_the_algebra(void **state) {
    (void)state;
    for (int kind = 0; kind < 4; kind++) {
        rotation_set *set = make_set(kind);
        check_bias(set, ROLE_O_BIAS, HIDDEN);
        check_bias(set, ROLE_DOWN_BIAS, HIDDEN);
        check_bias(set, ROLE_V_BIAS, KV * HEAD);
        float b[4] = {1, 2, 3, 4}, same[4] = {1, 2, 3, 4};
        const llama_role unchanged[] = {ROLE_Q_BIAS, ROLE_K_BIAS, ROLE_GATE_BIAS, ROLE_UP_BIAS};
        for (int i = 0; i < 4; i++) {
            fuse_plan plan;
            assert_ok(fuse_plan_init(unchanged[i], 1, set, &plan));
            assert_ok(fuse_bias(&plan.job, b, 4));
            assert_memory_equal(b, same, sizeof b);
        }
        fuse_plan plan;
        assert_int_equal(fuse_plan_init(ROLE_FINAL_NORM, 0, set, &plan).code, ERR_BUG);
        rotation_set_destroy(&set);
    }
}

static float *fuse_role(rotation_set *set, llama_role role, const float *w, int64_t rows,
                        int64_t cols, const float *gain) {
    fuse_plan plan;
    assert_ok(fuse_plan_init(role, 1, set, &plan));
    plan.job.source = w;
    plan.job.dtype = FUSE_F32;
    plan.job.rows = rows;
    plan.job.cols = cols;
    plan.job.in_gain = gain;
    float *out = fused(&plan.job);
    fuse_plan_clear(&plan);
    return out;
}

/* y = x W^T + b for one row. */
static void linear(const float *w, const float *b, const double *x, int64_t rows, int64_t cols,
                   double *y) {
    for (int64_t i = 0; i < rows; i++) {
        double sum = b ? (double)b[i] : 0;
        for (int64_t j = 0; j < cols; j++) sum += x[j] * (double)w[i * cols + j];
        y[i] = sum;
    }
}

/* Value path: v of a normed token to its query heads, to o with its bias. Turned weights on a
 * rotated stream must give the rotated result. */
static void value_path_keeps_its_function(void **state) {
    (void)state;
    for (int kind = 0; kind < 3; kind++) {
        rotation_set *set = make_set(kind);
        static float v[KV * HEAD * HIDDEN], o[HIDDEN * HEADS * HEAD];
        float gain[HIDDEN], bv[KV * HEAD], bo[HIDDEN];
        double x[HIDDEN], scaled[HIDDEN], kv[KV * HEAD], heads[HEADS * HEAD], plain[HIDDEN],
            rotated[HIDDEN];
        fill(v, KV * HEAD * HIDDEN, 1);
        fill(o, HIDDEN * HEADS * HEAD, 2);
        fill(gain, HIDDEN, 3);
        fill(bv, KV * HEAD, 4);
        fill(bo, HIDDEN, 5);
        for (int i = 0; i < HIDDEN; i++) x[i] = rng_normal(6, RNG_TEST, (uint64_t)i);
        for (int i = 0; i < HIDDEN; i++) scaled[i] = x[i] * (double)gain[i];
        linear(v, bv, scaled, KV * HEAD, HIDDEN, kv);
        for (int i = 0; i < HEADS * HEAD; i++)
            heads[i] = kv[i / HEAD / (HEADS / KV) * HEAD + i % HEAD];
        linear(o, bo, heads, HIDDEN, HEADS * HEAD, plain);
        rotation_apply_f64(rotation_set_r1(set), plain, 1, HIDDEN, false);
        float *v2 = fuse_role(set, ROLE_V, v, KV * HEAD, HIDDEN, gain);
        float *o2 = fuse_role(set, ROLE_O, o, HIDDEN, HEADS * HEAD, NULL);
        fuse_plan plan;
        assert_ok(fuse_plan_init(ROLE_V_BIAS, 1, set, &plan));
        assert_ok(fuse_bias(&plan.job, bv, KV * HEAD));
        fuse_plan_clear(&plan);
        assert_ok(fuse_plan_init(ROLE_O_BIAS, 1, set, &plan));
        assert_ok(fuse_bias(&plan.job, bo, HIDDEN));
        rotation_apply_f64(rotation_set_r1(set), x, 1, HIDDEN, false);
        linear(v2, bv, x, KV * HEAD, HIDDEN, kv);
        for (int i = 0; i < HEADS * HEAD; i++)
            heads[i] = kv[i / HEAD / (HEADS / KV) * HEAD + i % HEAD];
        linear(o2, bo, heads, HIDDEN, HEADS * HEAD, rotated);
        for (int i = 0; i < HIDDEN; i++) assert_true(fabs(plain[i] - rotated[i]) < 1e-4);
        free(v2);
        free(o2);
        rotation_set_destroy(&set);
    }
}

/* down with the online transform of its input gives the rotated result. */
static void online_r4_is_undone(void **state) {
    (void)state;
    for (int kind = 0; kind < 3; kind += 2) {
        rotation_set *set = make_set(kind);
        static float down[HIDDEN * INNER];
        double x[INNER], plain[HIDDEN], rotated[HIDDEN];
        fill(down, HIDDEN * INNER, 8);
        for (int i = 0; i < INNER; i++) x[i] = rng_normal(9, RNG_TEST, (uint64_t)i);
        linear(down, NULL, x, HIDDEN, INNER, plain);
        rotation_apply_f64(rotation_set_r1(set), plain, 1, HIDDEN, false);
        float *down2 = fuse_role(set, ROLE_DOWN, down, HIDDEN, INNER, NULL);
        rotation_apply_f64(rotation_set_r4(set), x, 1, INNER, false);
        linear(down2, NULL, x, HIDDEN, INNER, rotated);
        for (int i = 0; i < HIDDEN; i++) assert_true(fabs(plain[i] - rotated[i]) < 1e-4);
        free(down2);
        rotation_set_destroy(&set);
    }
}

/* 16-bit sources at odd addresses, and no rotation: the values come out as they are. */
static void sixteen_bit_sources(void **state) {
    (void)state;
    enum { ROWS = 5, COLS = 2100 };
    static char bytes[ROWS * COLS * 2 + 1];
    static float expected[ROWS * COLS];
    for (int dtype = FUSE_BF16; dtype <= FUSE_F16; dtype++) {
        for (int i = 0; i < ROWS * COLS; i++) {
            float v = (float)rng_normal(12, RNG_TEST, (uint64_t)i);
            uint16_t h = dtype == FUSE_BF16 ? half_to_bf16(v) : half_to_fp16(v);
            expected[i] = dtype == FUSE_BF16 ? half_from_bf16(h) : half_from_fp16(h);
            memcpy(bytes + 1 + 2 * i, &h, 2);
        }
        fuse_job job = {
            .source = bytes + 1, .dtype = (fuse_dtype)dtype, .rows = ROWS, .cols = COLS};
        float *w = fused(&job);
        assert_memory_equal(w, expected, sizeof expected);
        free(w);
    }
}

static err never(void *arg, int64_t row0, int64_t rows, const float *w) {
    (void)arg;
    (void)row0;
    (void)rows;
    (void)w;
    fail_msg("the sink was called");
    return err_none();
}

static void non_finite_numbers_are_counted(void **state) {
    (void)state;
    static float wide[3000];
    static uint16_t narrow[3000];
    const int bad[] = {0, 1023, 1024, 2999};
    for (int i = 0; i < 3000; i++) {
        wide[i] = i % 2 ? 3.4e38f : -1e-40f;
        narrow[i] = i % 2 ? 0x7bff : 0x8001;
    }
    assert_int_equal(fuse_count_non_finite(wide, FUSE_F32, 3000), 0);
    assert_int_equal(fuse_count_non_finite(narrow, FUSE_F16, 3000), 0);
    for (int i = 0; i < 4; i++) {
        wide[bad[i]] = i == 0 ? NAN : i == 1 ? -INFINITY : INFINITY;
        narrow[bad[i]] = i == 0 ? 0x7e00 : i == 1 ? 0xfc00 : 0x7c01;
    }
    assert_int_equal(fuse_count_non_finite(narrow, FUSE_F16, 3000), 4);
    fuse_job job = {.source = wide, .dtype = FUSE_F32, .rows = 10, .cols = 300};
    assert_ok(fuse_matrix(&job, never, NULL));
    assert_ok(fuse_matrix_each(&job, never, NULL));
    assert_int_equal(job.non_finite, 4);
    for (int i = 0; i < 3000; i++) narrow[i] = 0x7f7f;
    narrow[7] = 0x7f80;
    narrow[8] = 0xffc0;
    assert_int_equal(fuse_count_non_finite(narrow, FUSE_BF16, 3000), 2);
}

static err stops(void *arg, int64_t row0, int64_t rows, const float *w) {
    (void)w;
    *(int *)arg += 1;
    (void)row0;
    (void)rows;
    return err_make(ERR_SPACE, "disk", NULL, "full");
}

static void errors_come_back(void **state) {
    (void)state;
    float w[16] = {0};
    int calls = 0;
    rotation *r;
    assert_ok(rotation_create_identity(5, &r));
    fuse_job job = {.source = w, .dtype = FUSE_F32, .rows = 4, .cols = 4};
    assert_int_equal(fuse_matrix(&job, stops, &calls).code, ERR_SPACE);
    assert_int_equal(calls, 1);
    assert_int_equal(fuse_matrix_each(&job, stops, &calls).code, ERR_SPACE);
    job.out = r;
    assert_int_equal(fuse_matrix(&job, never, NULL).code, ERR_BUG);
    rotation_destroy(&r);
}

/* Large enough for tiles, blocks of columns and the dense paths; a few entries the long way. */
static void check_large(const rotation *in, const rotation *out, int64_t rows, int64_t cols) {
    float *w = room(rows * cols, sizeof(float));
    fill(w, rows * cols, 21);
    fuse_job job = {
        .source = w, .dtype = FUSE_F32, .rows = rows, .cols = cols, .in = in, .out = out};
    float *ours = fused(&job);
    double *wide = room(rows * cols, sizeof(double)), *column = room(rows, sizeof(double));
    for (int64_t i = 0; i < rows * cols; i++) wide[i] = w[i];
    for (int64_t i = 0; i < rows; i++) rotation_apply_f64(in, wide + i * cols, 1, cols, false);
    for (int64_t j = 0; j < cols; j += 37) {
        for (int64_t i = 0; i < rows; i++) column[i] = wide[i * cols + j];
        rotation_apply_f64(out, column, 1, rows, false);
        for (int64_t i = 0; i < rows; i++)
            assert_true(fabs((double)ours[i * cols + j] - column[i]) < 1e-6);
    }
    free(w);
    free(ours);
    free(wide);
    free(column);
}

static void large_matrices(void **state) {
    (void)state;
    rotation *had, *dense, *inner;
    assert_ok(rotation_create_random_hadamard(320, 3, RNG_R1_SIGNS, 0, &had));
    dense = dense_rotation(320, 4);
    assert_ok(rotation_create_hadamard(1408, NULL, &inner));
    check_large(had, NULL, 2000, 320);
    check_large(dense, NULL, 2000, 320);
    check_large(inner, had, 320, 1408);
    check_large(inner, dense, 320, 1408);
    rotation_destroy(&had);
    rotation_destroy(&dense);
    rotation_destroy(&inner);
}

/* Any number of threads gives equal bits. */
static void threads_make_no_difference(void **state) {
    (void)state;
    enum { ROWS = 320, COLS = 1408 };
    float *w = room(ROWS * COLS, sizeof(float)), *ours[4];
    const int before = omp_get_max_threads();
    fill(w, ROWS * COLS, 31);
    rotation *inner, *out[2];
    assert_ok(rotation_create_hadamard(COLS, NULL, &inner));
    assert_ok(rotation_create_random_hadamard(ROWS, 3, RNG_R1_SIGNS, 0, &out[0]));
    out[1] = dense_rotation(ROWS, 4);
    for (int k = 0; k < 4; k++) {
        omp_set_num_threads(k % 2 ? 3 : 1);
        fuse_job job = {.source = w,
                        .dtype = FUSE_F32,
                        .rows = ROWS,
                        .cols = COLS,
                        .in = inner,
                        .out = out[k / 2]};
        ours[k] = fused(&job);
    }
    omp_set_num_threads(before);
    for (int k = 0; k < 4; k += 2)
        assert_memory_equal(ours[k], ours[k + 1], sizeof(float) * ROWS * COLS);
    for (int k = 0; k < 4; k++) free(ours[k]);
    for (int k = 0; k < 2; k++) rotation_destroy(&out[k]);
    rotation_destroy(&inner);
    free(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_role_against_the_algebra),
        cmocka_unit_test(biases_against_the_algebra),
        cmocka_unit_test(value_path_keeps_its_function),
        cmocka_unit_test(online_r4_is_undone),
        cmocka_unit_test(sixteen_bit_sources),
        cmocka_unit_test(non_finite_numbers_are_counted),
        cmocka_unit_test(errors_come_back),
        cmocka_unit_test(large_matrices),
        cmocka_unit_test(threads_make_no_difference),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
