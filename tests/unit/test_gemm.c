/* The matrix product against a plain triple loop in long double, for every kind of factor and
 * transpose, odd shapes and strides; and the same bits for any number of threads. */
#include "base/gemm.h"
#include "base/half.h"
#include "base/machine.h"
#include "base/restart.h"
#include "base/rng.h"
#include "tests/unit/product_bound.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct shape {
    int64_t m, n, k, pad;
} shape;

static const shape shapes[] = {{1, 1, 1, 0},      {3, 5, 7, 2},       {64, 192, 576, 0},
                               {130, 257, 65, 3}, {513, 300, 129, 1}, {1, 300, 64, 0},
                               {257, 1, 33, 4},   {600, 600, 32, 0},  {7, 5, 2701, 3}};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

static double *random_f64(int64_t n, uint64_t stream) {
    double *v = malloc((size_t)n * sizeof *v + 8);
    assert_non_null(v);
    for (int64_t i = 0; i < n; i++) {
        /* bf16 values, so that all three kinds of factors hold the same numbers */
        float x = (float)rng_normal(7, RNG_TEST, (stream << 32) + (uint64_t)i);
        v[i] = half_from_bf16(half_to_bf16(x));
    }
    return v;
}

static float *to_f32(const double *v, int64_t n) {
    float *f = malloc((size_t)n * sizeof *f + 8);
    assert_non_null(f);
    for (int64_t i = 0; i < n; i++) f[i] = (float)v[i];
    return f;
}

static bf16 *to_bf16(const double *v, int64_t n) {
    bf16 *h = malloc((size_t)n * sizeof *h + 8);
    assert_non_null(h);
    for (int64_t i = 0; i < n; i++) h[i] = half_to_bf16((float)v[i]);
    return h;
}

/* Everything about one product: factors in three types and the sums as they must be. */
typedef struct problem {
    shape s;
    bool ta, tb, add;
    int64_t lda, ldb, ldc, na, nb, nc;
    double *a, *b, *c, *want, *size; /* size: sum of |products|, for the tolerance */
} problem;

static void problem_make(problem *p, shape s, bool ta, bool tb, bool add) {
    *p = (problem){.s = s, .ta = ta, .tb = tb, .add = add};
    p->lda = (ta ? s.m : s.k) + s.pad;
    p->ldb = (tb ? s.k : s.n) + s.pad;
    p->ldc = s.n + s.pad;
    p->na = (ta ? s.k : s.m) * p->lda;
    p->nb = (tb ? s.n : s.k) * p->ldb;
    p->nc = s.m * p->ldc;
    p->a = random_f64(p->na, 1);
    p->b = random_f64(p->nb, 2);
    p->c = random_f64(p->nc, 3);
    p->want = calloc((size_t)p->nc, sizeof *p->want);
    p->size = calloc((size_t)p->nc, sizeof *p->size);
    for (int64_t i = 0; i < s.m; i++) {
        for (int64_t j = 0; j < s.n; j++) {
            long double sum = add ? p->c[i * p->ldc + j] : 0, size = fabsl(sum);
            for (int64_t l = 0; l < s.k; l++) {
                double x = p->a[ta ? l * p->lda + i : i * p->lda + l];
                double y = p->b[tb ? j * p->ldb + l : l * p->ldb + j];
                sum += (long double)x * y;
                size += fabsl((long double)x * y);
            }
            p->want[i * p->ldc + j] = (double)sum;
            p->size[i * p->ldc + j] = (double)size;
        }
    }
}

static void problem_free(problem *p) {
    free(p->a);
    free(p->b);
    free(p->c);
    free(p->want);
    free(p->size);
}

/* The result, and what lies between the rows, which must not be touched. */
static void check(const problem *p, const double *got, double eps) {
    for (int64_t i = 0; i < p->s.m; i++) {
        for (int64_t j = 0; j < p->ldc; j++) {
            int64_t at = i * p->ldc + j;
            if (j >= p->s.n) {
                assert_true(got[at] == p->c[at]);
            } else {
                assert_true(fabs(got[at] - p->want[at]) <=
                            product_bound(p->s.k + 1, eps) * p->size[at]);
            }
        }
    }
}

static void run_f64(const problem *p) {
    double *c = malloc((size_t)p->nc * sizeof *c);
    memcpy(c, p->c, (size_t)p->nc * sizeof *c);
    gemm_f64(gemm_op_of(p->ta), gemm_op_of(p->tb), p->s.m, p->s.n, p->s.k, p->a, p->lda, p->b,
             p->ldb, gemm_into_of(p->add), c, p->ldc);
    check(p, c, DBL_EPSILON);
    free(c);
}

static void check_f32(const problem *p, const float *got) {
    double *wide = malloc((size_t)p->nc * sizeof *wide);
    for (int64_t i = 0; i < p->nc; i++) wide[i] = got[i];
    check(p, wide, FLT_EPSILON);
    free(wide);
}

static void run_f32(const problem *p) {
    float *a = to_f32(p->a, p->na), *b = to_f32(p->b, p->nb), *c = to_f32(p->c, p->nc);
    gemm_f32(gemm_op_of(p->ta), gemm_op_of(p->tb), p->s.m, p->s.n, p->s.k, a, p->lda, b, p->ldb,
             gemm_into_of(p->add), c, p->ldc);
    check_f32(p, c);
    free(a);
    free(b);
    free(c);
}

static void run_bf16(const problem *p) {
    bf16 *a = to_bf16(p->a, p->na), *b = to_bf16(p->b, p->nb);
    float *c = to_f32(p->c, p->nc);
    gemm_bf16(gemm_op_of(p->tb), p->s.m, p->s.n, p->s.k, a, p->lda, b, p->ldb, gemm_into_of(p->add),
              c, p->ldc);
    check_f32(p, c);
    free(a);
    free(b);
    free(c);
}

/* The product with its second factor packed first; contiguous rows alone. `alike`: by the one whose
 * rows round alike, which takes a second factor as it is. */
static void run_packed(const problem *p, bool alike) {
    const int64_t m = p->s.m, n = p->s.n, k = p->s.k;
    bf16 *a = to_bf16(p->a, p->na), *b = to_bf16(p->b, p->nb);
    float *c = to_f32(p->c, p->nc);
    const uint64_t bytes = alike ? gemm_alike_bytes(m, n, k) : gemm_packed_bytes(m, n, k);
    void *packed = aligned_alloc(64, (bytes + 63) / 64 * 64);
    assert_non_null(packed);
    if (alike) {
        gemm_alike_pack(m, n, k, b, p->ldb, packed);
        gemm_alike_tile(m, n, k, a, packed, c);
    } else {
        gemm_pack_bf16(gemm_op_of(p->tb), m, n, k, b, p->ldb, packed);
        gemm_tile_packed_bf16(m, n, k, a, packed, c);
    }
    check_f32(p, c);
    free(packed);
    free(a);
    free(b);
    free(c);
}

static void test_products(void **state) {
    (void)state;
    for (int i = 0; i < N_SHAPES; i++) {
        for (int variant = 0; variant < 8; variant++) {
            problem p;
            problem_make(&p, shapes[i], variant & 1, variant & 2, variant & 4);
            run_f64(&p);
            run_f32(&p);
            if (!p.ta) run_bf16(&p);
            if (!p.ta && !p.add && !p.s.pad) run_packed(&p, false);
            if (!p.ta && !p.tb && !p.add && !p.s.pad) run_packed(&p, true);
            problem_free(&p);
        }
    }
}

/* Rows of a tile moved to other places, among other rows, keep their bits. Shapes have short and
 * whole pieces of columns, and rows that are no multiple of what kernels take at a time. */
static void test_rows_alike(void **state) {
    (void)state;
    const shape moved[] = {{128, 64, 64, 0}, {128, 576, 576, 0}, {128, 300, 129, 0},
                           {16, 40, 32, 0},  {50, 100, 100, 0},  {7, 200, 2701, 0}};
    for (size_t s = 0; s < sizeof moved / sizeof *moved; s++) {
        const int64_t m = moved[s].m, n = moved[s].n, k = moved[s].k, by = m / 2 - 1;
        problem p;
        problem_make(&p, moved[s], false, false, false);
        bf16 *a = to_bf16(p.a, p.na), *b = to_bf16(p.b, p.nb), *other = to_bf16(p.a, p.na);
        float *c = calloc((size_t)(m * n), sizeof *c), *d = calloc((size_t)(m * n), sizeof *d);
        void *packed = aligned_alloc(64, (gemm_alike_bytes(m, n, k) + 63) / 64 * 64);
        assert_true(c && d && packed);
        gemm_alike_pack(m, n, k, b, n, packed);
        gemm_alike_tile(m, n, k, a, packed, c);
        for (int64_t i = by; i < m; i++) /* row i - by to place i; those before are others */
            memcpy(other + i * k, a + (i - by) * k, (size_t)k * sizeof *a);
        for (int64_t i = 0; i < by; i++)
            memcpy(other + i * k, a + (m - 1) * k, (size_t)k * sizeof *a);
        gemm_alike_tile(m, n, k, other, packed, d);
        for (int64_t i = by; i < m; i++)
            assert_memory_equal(d + i * n, c + (i - by) * n, (size_t)n * sizeof *c);
        for (int64_t i = 0; i < by; i++)
            assert_memory_equal(d + i * n, c + (m - 1) * n, (size_t)n * sizeof *c);
        free(packed);
        free(a);
        free(b);
        free(other);
        free(c);
        free(d);
        problem_free(&p);
    }
}

static void test_empty(void **state) {
    (void)state;
    float c[6] = {1, 2, 3, 4, 5, 6};
    gemm_f32(GEMM_N, GEMM_T, 2, 3, 0, c, 1, c, 1, GEMM_ADD, c, 3);
    assert_true(c[0] == 1 && c[5] == 6);
    gemm_f32(GEMM_N, GEMM_T, 0, 3, 0, c, 1, c, 1, GEMM_SET, c, 3);
    assert_true(c[0] == 1 && c[5] == 6);
    float none = 0;
    bf16 half_none = 0;
    gemm_f32(GEMM_N, GEMM_T, 2, 3, 0, &none, 1, &none, 1, GEMM_SET, c, 3);
    for (int i = 0; i < 6; i++) assert_true(c[i] == 0);
    c[1] = 7;
    gemm_bf16(GEMM_T, 2, 3, 0, &half_none, 1, &half_none, 1, GEMM_SET, c, 3);
    assert_true(c[1] == 0);
}

static void test_threads_same_bits(void **state) {
    (void)state;
    problem p;
    problem_make(&p, (shape){700, 900, 300, 0}, false, true, false);
    float *a = to_f32(p.a, p.na), *b = to_f32(p.b, p.nb);
    bf16 *ha = to_bf16(p.a, p.na), *hb = to_bf16(p.b, p.nb);
    size_t n = (size_t)p.nc;
    float *first = malloc(n * 4), *other = malloc(n * 4);
    double *first64 = malloc(n * 8), *other64 = malloc(n * 8);
    for (int kind = 0; kind < 3; kind++) {
        for (int threads = 1; threads <= 4; threads++) {
            omp_set_num_threads(threads);
            float *c = threads == 1 ? first : other;
            double *d = threads == 1 ? first64 : other64;
            if (kind == 0)
                gemm_f32(GEMM_N, GEMM_T, 700, 900, 300, a, 300, b, 300, GEMM_SET, c, 900);
            if (kind == 1) gemm_bf16(GEMM_T, 700, 900, 300, ha, 300, hb, 300, GEMM_SET, c, 900);
            if (kind == 2)
                gemm_f64(GEMM_N, GEMM_T, 700, 900, 300, p.a, 300, p.b, 300, GEMM_SET, d, 900);
            if (threads == 1) continue;
            if (kind < 2) assert_memory_equal(first, other, n * 4);
            if (kind == 2) assert_memory_equal(first64, other64, n * 8);
        }
    }
    free(a);
    free(b);
    free(ha);
    free(hb);
    free(first);
    free(other);
    free(first64);
    free(other64);
    problem_free(&p);
}

/* More shapes than the cache of kernels holds: old ones must make room and come back right. */
static void test_many_shapes(void **state) {
    (void)state;
    bf16 a[40 * 8], b[40 * 8];
    for (int i = 0; i < 40 * 8; i++) {
        a[i] = half_to_bf16((float)(i % 5 - 2));
        b[i] = half_to_bf16((float)(i % 7 - 3));
    }
    for (int round = 0; round < 2; round++) {
        for (int m = 1; m <= 24; m++) {
            for (int n = 1; n <= 24; n++) {
                float c[24 * 24];
                gemm_tile_bf16(GEMM_T, m, n, 8, a, 8, b, 8, GEMM_SET, c, n);
                float want = 0;
                for (int l = 0; l < 8; l++) {
                    want += half_from_bf16(a[(m - 1) * 8 + l]) * half_from_bf16(b[(n - 1) * 8 + l]);
                }
                assert_true(c[m * n - 1] == want);
            }
        }
    }
}

static void test_machine(void **state) {
    (void)state;
    char line[512], cpu[128];
    assert_true(machine_cores() >= 1 && machine_cores() <= 65536);
    assert_true(machine_numa_nodes() >= 1);
    assert_true(machine_memory_bytes() > (1u << 20));
    assert_true(strlen(machine_cpu_name(cpu, sizeof cpu)) > 0);
    assert_true(machine_affinity_key() == machine_affinity_key());
    gemm_kernels(line, sizeof line);
    assert_non_null(strstr(line, "fp32 fp64"));
    assert_non_null(strstr(line, "bf16"));
    printf("%s on %s, %d cores\n", line, cpu, machine_cores());
    if (gemm_slow_kernels(line, sizeof line)) printf("%s\n", line);
}

/* Which kernels are asked for in place of those that OpenBLAS chose. */
static void test_better_kernels(void **state) {
    (void)state;
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const bool half = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    assert_null(restart_better_core(NULL)); /* another library */
    assert_null(restart_better_core("SkylakeX"));
    assert_null(restart_better_core("sapphirerapids"));
    const char *for_old = restart_better_core("Prescott"), *for_half = restart_better_core("Zen");
    if (!half) {
        assert_null(for_old);
    } else {
        assert_string_equal(for_old, wide ? "SkylakeX" : "Haswell");
        if (wide)
            assert_string_equal(for_half, "SkylakeX");
        else
            assert_null(for_half);
    }
}

static void test_init_threads(void **state) {
    (void)state;
    unsetenv("OMP_NUM_THREADS");
    assert_int_equal(gemm_init(1), machine_cores());
    assert_int_equal(gemm_init(1000000), 1);
    omp_set_num_threads(3);
    setenv("OMP_NUM_THREADS", "3", 1);
    assert_int_equal(gemm_init(1), 3);
    assert_int_equal(gemm_threads(), 3);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_products),       cmocka_unit_test(test_rows_alike),
        cmocka_unit_test(test_empty),          cmocka_unit_test(test_threads_same_bits),
        cmocka_unit_test(test_many_shapes),    cmocka_unit_test(test_machine),
        cmocka_unit_test(test_better_kernels), cmocka_unit_test(test_init_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
