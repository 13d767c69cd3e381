/* Hadamard matrices, the fast transform and rotations, against identities and the long way. */
#include "base/err.h"
#include "base/rng.h"
#include "rotations/cache_rotation.h"
#include "rotations/fwht.h"
#include "rotations/hadamard.h"
#include "rotations/rotation.h"
#include "rotations/rotation_set.h"
#include "tests/unit/assert_ok.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <float.h>

static void *room(int64_t count, size_t size) {
    void *p = calloc((size_t)(count > 0 ? count : 1), size);
    assert_non_null(p);
    return p;
}

static void fill_normal(double *x, int64_t n, uint64_t seed) {
    for (int64_t i = 0; i < n; i++) x[i] = rng_normal(seed, RNG_TEST, (uint64_t)i);
}

/* H H^T = n I in integers, entries 1 and -1, constant first row. */
static void check_matrix(int64_t n) {
    int8_t *h = room(n * n, 1);
    assert_ok(hadamard_matrix(n, h));
    for (int64_t j = 0; j < n; j++) assert_int_equal(h[j], 1);
    for (int64_t i = 0; i < n * n; i++) assert_true(h[i] == 1 || h[i] == -1);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j <= i; j++) {
            int64_t sum = 0;
            for (int64_t k = 0; k < n; k++) sum += h[i * n + k] * h[j * n + k];
            assert_int_equal(sum, i == j ? n : 0);
        }
    free(h);
}

static void matrices_are_hadamard(void **state) {
    (void)state;
    const int64_t orders[] = {1,   2,   4,   8,   12,  16,  20,  24,  28,  36,  40,
                              44,  48,  56,  60,  52,  64,  72,  100, 108, 128, 144,
                              200, 244, 256, 288, 340, 344, 352, 576, 688, 768, 924};
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) check_matrix(orders[i]);
}

static void orders_of_models(void **state) {
    (void)state;
    static const struct {
        int64_t n, core, power;
        hadamard_kind kind;
    } expected[] = {
        {1, 1, 1, HADAMARD_SYLVESTER},       {128, 1, 128, HADAMARD_SYLVESTER},
        {8192, 1, 8192, HADAMARD_SYLVESTER}, {12, 12, 1, HADAMARD_PALEY1},
        {48, 12, 4, HADAMARD_PALEY1},        {768, 12, 64, HADAMARD_PALEY1},
        {1536, 12, 128, HADAMARD_PALEY1},    {5120, 20, 256, HADAMARD_PALEY1},
        {352, 44, 8, HADAMARD_PALEY1},       {13824, 108, 128, HADAMARD_PALEY1},
        {25600, 200, 128, HADAMARD_PALEY1},  {11008, 344, 32, HADAMARD_PALEY1},
        {28672, 28, 1024, HADAMARD_PALEY2},  {14336, 28, 512, HADAMARD_PALEY2},
        {288, 36, 8, HADAMARD_PALEY2},       {576, 36, 16, HADAMARD_PALEY2},
        {29568, 924, 32, HADAMARD_PALEY2},   {18944, 148, 128, HADAMARD_PALEY2},
        {100, 100, 1, HADAMARD_PALEY2},      {3200, 200, 16, HADAMARD_PALEY1},
        {52, 52, 1, HADAMARD_PALEY2},        {104, 104, 1, HADAMARD_PALEY1},
    };
    for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
        int64_t core = 0, power = 0;
        hadamard_kind kind = HADAMARD_SYLVESTER;
        assert_ok(hadamard_orders(expected[i].n, &core, &power, &kind));
        assert_int_equal(core, expected[i].core);
        assert_int_equal(power, expected[i].power);
        assert_int_equal(kind, expected[i].kind);
    }
}

static void lacking_orders_are_named(void **state) {
    (void)state;
    const int64_t lacking[] = {172, 3, 6, 0, -4, 22, 92};
    for (size_t i = 0; i < sizeof lacking / sizeof *lacking; i++) {
        assert_false(hadamard_exists(lacking[i]));
        err e = hadamard_orders(lacking[i], NULL, NULL, NULL);
        char text[32];
        snprintf(text, sizeof text, "order %lld", (long long)lacking[i]);
        assert_int_equal(e.code, ERR_INPUT);
        assert_non_null(strstr(e.what, text));
    }
}

/* The first row of Paley I is constant as it is, so no column changes its sign, and without its
 * border the core over a prime field is a circulant: row i is row 1 shifted by i - 1. */
static void order_twelve_is_a_bordered_circulant(void **state) {
    (void)state;
    int8_t h[144];
    assert_ok(hadamard_core(12, h));
    for (int i = 2; i < 12; i++)
        for (int j = 1; j < 12; j++) {
            int back = (j - 1 - (i - 1) + 22) % 11 + 1;
            assert_int_equal(h[i * 12 + j], h[12 + back]);
        }
}

/* y = x H / sqrt(n), the long way. */
static void long_way(const int8_t *h, int64_t n, const double *x, bool transpose, double *y) {
    for (int64_t j = 0; j < n; j++) {
        double sum = 0;
        for (int64_t i = 0; i < n; i++) sum += x[i] * (transpose ? h[j * n + i] : h[i * n + j]);
        y[j] = sum / sqrt((double)n);
    }
}

static void check_transform(int64_t n, int64_t rows, bool transpose) {
    const int64_t ld = n + 3;
    int8_t *h = room(n * n, 1);
    double *x = room(rows * ld, sizeof(double)), *y = room(n, sizeof(double));
    double *wide = room(rows * ld, sizeof(double));
    float *narrow = room(rows * ld, sizeof(float));
    fwht *f;
    fill_normal(x, rows * ld, (uint64_t)n);
    memcpy(wide, x, (size_t)(rows * ld) * sizeof(double));
    for (int64_t i = 0; i < rows * ld; i++) narrow[i] = (float)x[i];
    assert_ok(hadamard_matrix(n, h));
    assert_ok(fwht_create(n, &f));
    assert_int_equal(fwht_size(f), n);
    fwht_rows_f64(f, wide, rows, ld, transpose);
    fwht_rows_f32(f, narrow, rows, ld, transpose);
    for (int64_t r = 0; r < rows; r++) {
        long_way(h, n, x + r * ld, transpose, y);
        for (int64_t j = 0; j < n; j++) {
            assert_true(fabs(wide[r * ld + j] - y[j]) < 1e-13 * sqrt((double)n));
            assert_true(fabs(narrow[r * ld + j] - y[j]) < 2e-6 * sqrt(sqrt((double)n)));
        }
        /* What lies between rows stays. */
        for (int64_t j = n; j < ld; j++) assert_true(wide[r * ld + j] == x[r * ld + j]);
    }
    fwht_destroy(&f);
    free(h);
    free(x);
    free(y);
    free(wide);
    free(narrow);
}

static void transform_is_the_product(void **state) {
    (void)state;
    const int64_t orders[] = {1,  2,  4,  8,   16,  32,  64,  128, 12,
                              20, 48, 56, 288, 344, 352, 576, 1536};
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++)
        for (int transpose = 0; transpose < 2; transpose++) {
            check_transform(orders[i], 1, transpose);
            check_transform(orders[i], 11, transpose);
        }
}

/* A row's bits depend neither on how many rows go together nor on the threads. */
static void transform_of_a_row_is_fixed(void **state) {
    (void)state;
    enum { N = 1536, ROWS = 37 };
    double *x = room(N * ROWS, sizeof(double)), *one = room(N * ROWS, sizeof(double));
    fwht *f;
    assert_ok(fwht_create(N, &f));
    fill_normal(x, N * ROWS, 3);
    memcpy(one, x, sizeof(double) * N * ROWS);
    fwht_rows_f64(f, x, ROWS, N, false);
    for (int r = 0; r < ROWS; r++) fwht_rows_f64(f, one + r * N, 1, N, false);
    assert_memory_equal(x, one, sizeof(double) * N * ROWS);
    fwht_destroy(&f);
    free(x);
    free(one);
}

/* The random orthogonal matrix of some Householder reflections. */
static double *dense_orthogonal(int64_t n, uint64_t seed) {
    double *R = room(n * n, sizeof(double)), *v = room(n, sizeof(double));
    for (int64_t i = 0; i < n; i++) R[i * n + i] = 1;
    for (int k = 0; k < 4; k++) {
        fill_normal(v, n, seed * 100 + (uint64_t)k);
        double norm = 0;
        for (int64_t i = 0; i < n; i++) norm += v[i] * v[i];
        for (int64_t i = 0; i < n; i++) {
            double dot = 0;
            for (int64_t j = 0; j < n; j++) dot += R[i * n + j] * v[j];
            for (int64_t j = 0; j < n; j++) R[i * n + j] -= 2 * dot / norm * v[j];
        }
    }
    free(v);
    return R;
}

static void check_rotation(const rotation *r, const double *R) {
    enum { ROWS = 70 };
    const int64_t n = rotation_size(r), ld = n + 1;
    double *x = room(ROWS * ld, sizeof(double)), *y = room(ROWS * ld, sizeof(double));
    float *z = room(ROWS * ld, sizeof(float));
    for (int transpose = 0; transpose < 2; transpose++) {
        fill_normal(x, ROWS * ld, 5);
        memcpy(y, x, sizeof(double) * (size_t)(ROWS * ld));
        for (int64_t i = 0; i < ROWS * ld; i++) z[i] = (float)x[i];
        rotation_apply_f64(r, y, ROWS, ld, transpose);
        rotation_apply_f32(r, z, ROWS, ld, transpose);
        for (int64_t i = 0; i < ROWS; i += 23)
            for (int64_t j = 0; j < n; j++) {
                double sum = 0;
                for (int64_t k = 0; k < n; k++)
                    sum += x[i * ld + k] * (transpose ? R[j * n + k] : R[k * n + j]);
                assert_true(fabs(y[i * ld + j] - sum) < 1e-11);
                assert_true(fabs((double)z[i * ld + j] - sum) < 2e-5);
            }
    }
    double most;
    assert_ok(rotation_orthogonality(r, &most));
    assert_true(most < 1e-12);
    double *dense = room(n * n, sizeof(double));
    assert_ok(rotation_to_dense(r, dense));
    for (int64_t i = 0; i < n * n; i++) assert_true(fabs(dense[i] - R[i]) < 1e-12);
    free(dense);
    free(x);
    free(y);
    free(z);
}

static void dense_rotations(void **state) {
    (void)state;
    const int64_t orders[] = {3, 48, 256, 300};
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        rotation *r;
        double *R = dense_orthogonal(orders[i], 7);
        assert_ok(rotation_create_dense(orders[i], R, &r));
        check_rotation(r, R);
        rotation_destroy(&r);
        assert_null(r);
        R[0] += 0.5;
        double most;
        assert_ok(rotation_create_dense(orders[i], R, &r));
        assert_ok(rotation_orthogonality(r, &most));
        assert_true(most > 0.1);
        rotation_destroy(&r);
        free(R);
    }
}

/* Beyond the order whose fp32 copy is held: columns are rounded in panels. */
static void large_dense_rotation_in_fp32(void **state) {
    (void)state;
    enum { N = 2100 };
    double *R = dense_orthogonal(N, 9);
    float *x = room(3 * N, sizeof(float)), *y = room(3 * N, sizeof(float));
    rotation *r;
    assert_ok(rotation_create_dense(N, R, &r));
    for (int i = 0; i < 3 * N; i++) y[i] = x[i] = (float)rng_normal(2, RNG_TEST, (uint64_t)i);
    for (int transpose = 0; transpose < 2; transpose++) {
        memcpy(y, x, sizeof(float) * 3 * N);
        rotation_apply_f32(r, y, 3, N, transpose);
        for (int j = 0; j < N; j += 41) {
            double sum = 0;
            for (int k = 0; k < N; k++)
                sum +=
                    (double)x[N + k] * (transpose ? R[(int64_t)j * N + k] : R[(int64_t)k * N + j]);
            assert_true(fabs((double)y[N + j] - sum) < 1e-4);
        }
    }
    rotation_destroy(&r);
    free(R);
    free(x);
    free(y);
}

static void hadamard_rotations(void **state) {
    (void)state;
    enum { N = 96 };
    int8_t h[N * N], small[24 * 24];
    double R[N * N];
    rotation *r;
    assert_ok(hadamard_matrix(N, h));
    assert_ok(rotation_create_random_hadamard(N, 42, RNG_R1_SIGNS, 1000, &r));
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            R[i * N + j] = rng_sign(42, RNG_R1_SIGNS, 1000 + (uint64_t)i) * h[i * N + j] / sqrt(N);
    check_rotation(r, R);
    rotation_destroy(&r);
    assert_ok(hadamard_matrix(24, small));
    assert_ok(rotation_create_blocks(N, 24, NULL, &r));
    assert_int_equal(rotation_block(r), 24);
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++)
            R[i * N + j] = i / 24 == j / 24 ? small[i % 24 * 24 + j % 24] / sqrt(24) : 0;
    check_rotation(r, R);
    rotation_destroy(&r);
    assert_int_equal(rotation_create_blocks(N, 36, NULL, &r).code, ERR_USAGE);
    assert_null(r);
    assert_int_equal(rotation_create_hadamard(172, NULL, &r).code, ERR_INPUT);
    assert_null(r);
}

static void orthogonal_to_twelve_digits(void **state) {
    (void)state;
    const int64_t orders[] = {64, 576, 1536, 2048, 344};
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++) {
        rotation *r;
        double most;
        assert_ok(rotation_create_random_hadamard(orders[i], 1, RNG_R1_SIGNS, 0, &r));
        assert_ok(rotation_orthogonality(r, &most));
        assert_true(most <= 1e-12);
        rotation_destroy(&r);
    }
}

static rotation_options all_on(void) {
    return (rotation_options){
        .r1 = true, .r2 = R2_HEAD, .r3 = true, .r4 = true, .start = START_HAD, .seed = 5};
}

/* Signs that PyTorch 2.15 gives for vLLM's seed, bit i for channel i, 1 for +1; and a head size of
 * five blocks of 16, which have the same signs each. */
static void the_rotation_of_a_cache(void **state) {
    (void)state;
    const uint64_t low = UINT64_C(0x808035b16573590d), high = UINT64_C(0x6b7f5438a6443d6c);
    int8_t signs[128];
    cache_rotation_signs(128, signs);
    for (int i = 0; i < 128; i++) {
        const uint64_t word = i < 64 ? low : high;
        assert_int_equal(signs[i], word >> (i % 64) & 1 ? 1 : -1);
    }
    rotation *r;
    assert_ok(cache_rotation_create(80, &r));
    double got[80] = {0};
    got[17] = 1; /* channel 1 of the second block */
    rotation_apply_f64(r, got, 1, 80, false);
    for (int j = 0; j < 80; j++) {
        const double want = j / 16 == 1 ? signs[1] * (j & 1 ? -0.25 : 0.25) : 0;
        assert_true(fabs(got[j] - want) <= 4 * DBL_EPSILON);
    }
    rotation_destroy(&r);
    assert_int_equal(cache_rotation_create(65, &r).code, ERR_USAGE);
}

static void set_of_a_model(void **state) {
    (void)state;
    rotation_options opts = all_on();
    rotation_sizes sizes = {64, 3, 8, 4, 8, 352, false};
    rotation_set *s;
    double most;
    assert_ok(rotation_set_create(&opts, &sizes, &s));
    assert_int_equal(rotation_size(rotation_set_r1(s)), 64);
    assert_int_equal(rotation_size(rotation_set_r3(s)), 8);
    assert_int_equal(rotation_size(rotation_set_r4(s)), 352);
    assert_int_equal(rotation_set_r2_count(s), 4);
    assert_ok(rotation_set_prepare_r2(s, 2));
    const int8_t *signs = rotation_signs(rotation_set_r2(s, 2, 3));
    for (uint64_t i = 0; i < 8; i++)
        assert_int_equal(signs[i], rng_sign(5, RNG_R2_SIGNS, (2ull << 40) + (3ull << 20) + i));
    assert_ok(rotation_set_orthogonality(s, &most));
    assert_true(most <= 1e-12);
    rotation *wrong;
    assert_ok(rotation_create_identity(9, &wrong));
    assert_int_equal(rotation_set_put_r2(s, 1, 1, &wrong).code, ERR_INPUT);
    assert_non_null(wrong);
    rotation_destroy(&wrong);
    double *R = dense_orthogonal(8, 3);
    rotation *mine;
    assert_ok(rotation_create_dense(8, R, &mine));
    const rotation *same = mine;
    assert_ok(rotation_set_put_r2(s, 1, 1, &mine));
    assert_null(mine);
    assert_ok(rotation_set_prepare_r2(s, 1));
    assert_ptr_equal(rotation_set_r2(s, 1, 1), same);
    free(R);
    rotation_set_destroy(&s);
}

static void set_refuses_by_name(void **state) {
    (void)state;
    rotation_options opts = all_on();
    rotation_sizes sizes = {64, 3, 8, 4, 8, 172, false};
    rotation_set *s;
    err e = rotation_set_create(&opts, &sizes, &s);
    assert_int_equal(e.code, ERR_INPUT);
    assert_non_null(strstr(e.where, "R4"));
    assert_non_null(strstr(e.what, "172"));
    assert_non_null(strstr(e.hint, "rotate.r4_block"));
    opts.r4_block = 4;
    assert_ok(rotation_set_create(&opts, &sizes, &s));
    assert_int_equal(rotation_block(rotation_set_r4(s)), 4);
    rotation_set_destroy(&s);
    opts.r4_block = 8;
    assert_int_equal(rotation_set_create(&opts, &sizes, &s).code, ERR_USAGE);
    opts.r4 = false;
    opts.start = START_IDENTITY;
    sizes.hidden = 70;
    assert_ok(rotation_set_create(&opts, &sizes, &s)); /* the identity has any order */
    rotation_set_destroy(&s);
}

/* A start at the identity is matrices like any other; what is put later is NULL until then. */
static void set_at_identity(void **state) {
    (void)state;
    rotation_options opts = all_on();
    const rotation_sizes sizes = {70, 2, 4, 2, 6, 352, false};
    double R[70 * 70];
    rotation_set *s;
    opts.start = START_IDENTITY;
    opts.r3 = false;
    assert_ok(rotation_set_create(&opts, &sizes, &s));
    assert_ok(rotation_set_prepare_r2(s, 1));
    for (int k = 0; k < 2; k++) {
        const rotation *r = k ? rotation_set_r2(s, 1, 1) : rotation_set_r1(s);
        const int64_t n = k ? 6 : 70;
        assert_non_null(r);
        assert_int_equal(rotation_size(r), n);
        assert_ok(rotation_to_dense(r, R));
        for (int64_t i = 0; i < n * n; i++) assert_true(R[i] == (i / n == i % n));
    }
    rotation_set_destroy(&s);
    opts.start = START_LATER;
    assert_ok(rotation_set_create(&opts, &sizes, &s));
    assert_null(rotation_set_r1(s));
    assert_ok(rotation_set_prepare_r2(s, 0));
    assert_null(rotation_set_r2(s, 0, 0));
    rotation_set_destroy(&s);
}

/* A dense rotation that comes in rows is the one given whole; in fp32 alone it turns rows to the
 * same bits, and gives R back rounded once. */
static void dense_in_rows(void **state) {
    (void)state;
    const int64_t sizes[] = {48, 300};
    for (int k = 0; k < 2; k++) {
        const int64_t n = sizes[k], rows = 5;
        double *R = room(n * n, sizeof *R), *back = room(n * n, sizeof *back);
        float *x[3], *half = room(n * n, sizeof *half);
        rotation *r[3];
        fill_normal(R, n * n, 4);
        for (int64_t i = 0; i < n * n; i++) half[i] = (float)R[i];
        assert_ok(rotation_create_dense(n, R, &r[0]));
        assert_ok(rotation_create_dense(n, NULL, &r[1]));
        assert_ok(rotation_create_dense_f32(n, &r[2]));
        for (int64_t row = 0; row < n; row += 7) {
            const int64_t b = row + 7 <= n ? 7 : n - row;
            rotation_put_rows(r[1], row, b, R + row * n);
            rotation_put_rows_f32(r[2], row, b, half + row * n);
        }
        rotation_dense_rows(r[1], 0, n, back);
        assert_memory_equal(back, R, (size_t)(n * n) * sizeof *R);
        rotation_dense_rows(r[2], 3, n - 3, back);
        for (int64_t i = 0; i < (n - 3) * n; i++) assert_true(back[i] == (double)half[3 * n + i]);
        for (int rotated = 0; rotated < 2; rotated++) {
            for (int i = 0; i < 3; i++) {
                x[i] = room(rows * n, sizeof *x[i]);
                for (int64_t j = 0; j < rows * n; j++)
                    x[i][j] = (float)rng_normal(5, RNG_TEST, (uint64_t)j);
                rotation_apply_f32(r[i], x[i], rows, n, rotated);
            }
            for (int i = 1; i < 3; i++)
                assert_memory_equal(x[0], x[i], (size_t)(rows * n) * sizeof(float));
            for (int i = 0; i < 3; i++) free(x[i]);
        }
        for (int i = 0; i < 3; i++) rotation_destroy(&r[i]);
        free(R);
        free(back);
        free(half);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(matrices_are_hadamard),
        cmocka_unit_test(orders_of_models),
        cmocka_unit_test(lacking_orders_are_named),
        cmocka_unit_test(order_twelve_is_a_bordered_circulant),
        cmocka_unit_test(transform_is_the_product),
        cmocka_unit_test(transform_of_a_row_is_fixed),
        cmocka_unit_test(dense_rotations),
        cmocka_unit_test(large_dense_rotation_in_fp32),
        cmocka_unit_test(hadamard_rotations),
        cmocka_unit_test(orthogonal_to_twelve_digits),
        cmocka_unit_test(dense_in_rows),
        cmocka_unit_test(the_rotation_of_a_cache),
        cmocka_unit_test(set_of_a_model),
        cmocka_unit_test(set_at_identity),
        cmocka_unit_test(set_refuses_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
