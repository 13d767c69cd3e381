/* Resident weights: packed words widened as their format says, and products with every kind. */
#include "base/gemm.h"
#include "base/half.h"
#include "base/mem.h"
#include "base/rng.h"
#include "model/wmat.h"
#include "tests/unit/assert_ok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <string.h>

static void *room(int64_t count, size_t size) {
    void *p;
    assert_ok(mem_alloc(count, size, "test", &p));
    return p;
}

static uint64_t stream;

static float *random_f32(int64_t n, double scale, double mean) {
    float *v = room(n, sizeof *v);
    stream++;
    for (int64_t i = 0; i < n; i++) {
        v[i] = (float)(mean + scale * rng_normal(11, RNG_TEST, (stream << 32) + (uint64_t)i));
    }
    return v;
}

/* Packed words against values worked out by hand, all widths, with and without zero points. */
static void test_packed_weights(void **state) {
    (void)state;
    for (int bits = 2; bits <= 8; bits++) {
        for (int symmetric = 0; symmetric < 2; symmetric++) {
            enum { ROWS = 3, COLS = 48, GROUP = 16 };
            wmat w;
            assert_ok(wmat_init_packed(&w, ROWS, COLS, bits, GROUP, symmetric, "test"));
            assert_int_equal(w.words, (COLS * bits + 31) / 32);
            float want[ROWS * COLS], got[ROWS * COLS];
            double wide[ROWS * COLS];
            uint8_t *bytes = w.data; /* little-endian words are a little-endian bit string */
            for (int i = 0; i < ROWS; i++) {
                for (int j = 0; j < COLS; j++) {
                    unsigned code = (unsigned)(i * 7 + j * 5) % (1u << bits);
                    for (int b = 0; b < bits; b++) {
                        int at = j * bits + b;
                        if (code >> b & 1)
                            bytes[(size_t)i * (size_t)w.words * 4 + (size_t)at / 8] |=
                                (uint8_t)(1u << at % 8);
                    }
                    int group = i * (COLS / GROUP) + j / GROUP,
                        zero = symmetric ? 1 << (bits - 1) : group % (1 << bits);
                    float scale = 0.37f + (float)group;
                    w.scales[group] = scale;
                    if (!symmetric) w.zeros[group] = (uint8_t)zero;
                    want[i * COLS + j] = ((float)(int)code - (float)zero) * scale;
                }
            }
            wmat_expand_f32(&w, 0, ROWS, 0, COLS, got, COLS);
            assert_memory_equal(got, want, sizeof got);
            wmat_expand_f32(&w, 1, 1, 19, 22, got, COLS); /* from the middle of a group */
            assert_memory_equal(got, want + COLS + 19, 22 * sizeof *got);
            wmat_expand_f64(&w, 0, ROWS, 0, COLS, wide, COLS);
            for (int i = 0; i < ROWS * COLS; i++) assert_true(wide[i] == want[i]);
            assert_ok(wmat_prepare(&w, COMPUTE_BF16));
            assert_int_equal(w.kind, WMAT_BF16);
            for (int i = 0; i < ROWS * COLS; i++)
                assert_int_equal(((bf16 *)w.data)[i], half_to_bf16(want[i]));
            wmat_clear(&w);
        }
    }
    wmat w;
    assert_int_equal(wmat_init_packed(&w, 2, 48, 4, 32, true, "test").code, ERR_INPUT);
}

/* Products with resident weights of every kind and more inputs than one expanded tile is deep. */
static void test_products_of_kinds(void **state) {
    (void)state;
    enum { ROWS = 300, COLS = 2500, M = 5 };
    float *w = random_f32(ROWS * COLS, 1, 0), *x = random_f32(M * COLS, 1, 0);
    double *want = room(M * ROWS, sizeof *want);
    for (int i = 0; i < ROWS * COLS; i++) w[i] = half_from_bf16(half_to_bf16(w[i]));
    for (int i = 0; i < M * COLS; i++) x[i] = half_from_bf16(half_to_bf16(x[i]));
    for (int i = 0; i < M; i++) {
        for (int j = 0; j < ROWS; j++) {
            for (int k = 0; k < COLS; k++)
                want[i * ROWS + j] += (double)x[i * COLS + k] * w[j * COLS + k];
        }
    }
    for (int kind = WMAT_BF16; kind <= WMAT_F32; kind++) {
        wmat m;
        assert_ok(wmat_init(&m, kind, ROWS, COLS, "test"));
        if (kind == WMAT_BF16) half_array_to_bf16(w, ROWS * COLS, m.data);
        if (kind == WMAT_F16)
            half_array_to_fp16(w, ROWS * COLS, m.data); /* small values lose bits */
        if (kind == WMAT_F32) memcpy(m.data, w, ROWS * COLS * sizeof *w);
        for (int compute = COMPUTE_F32; compute <= COMPUTE_F64; compute++) {
            const uint64_t bytes = wmat_tile_scratch_bytes(compute);
            void *scratch = room(gemm_threads(), bytes),
                 *y = room(M * ROWS, compute_sum_bytes(compute));
            double *wide = room(M * COLS, sizeof *wide);
            for (int i = 0; i < M * COLS; i++) wide[i] = x[i];
            wmat_product(&m, compute, compute == COMPUTE_F64 ? (void *)wide : x, M, GEMM_SET, y,
                         scratch, bytes);
            wmat_product(&m, compute, compute == COMPUTE_F64 ? (void *)wide : x, M, GEMM_ADD, y,
                         scratch, bytes);
            const double tol = kind == WMAT_F16 ? 1e-3 : compute == COMPUTE_F64 ? 1e-12 : 1e-4;
            for (int i = 0; i < M * ROWS; i++) {
                double got = compute == COMPUTE_F64 ? ((double *)y)[i] : ((float *)y)[i];
                assert_true(fabs(got - 2 * want[i]) <= tol * 2 * sqrt(COLS));
            }
            mem_free(scratch);
            mem_free(y);
            mem_free(wide);
        }
        wmat_clear(&m);
    }
    mem_free(w);
    mem_free(x);
    mem_free(want);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_packed_weights),
        cmocka_unit_test(test_products_of_kinds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
