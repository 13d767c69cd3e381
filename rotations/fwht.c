/* Butterflies over the Sylvester part, in an order that the size alone fixes, and a small dense
 * product for the core. */
#include "rotations/fwht.h"

#include "base/mem.h"
#include "base/size.h"
#include "rotations/hadamard.h"

#include <math.h>
#include <string.h>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

enum {
    BATCH = 8,
    MAX_LD = HADAMARD_MAX_CORE + 64, /* longest padded row of a core */
    SMALL_CORE = 16,                 /* smaller cores take Sylvester factors in, to fill vectors */
    BLOCK = 1 << 12,                 /* numbers in a block of rows */
    PARALLEL_FROM = 1 << 14,         /* numbers that are worth waking threads for */
};

/* H = Sylvester(n / c) x core(c); the core here is Paley's with a few Sylvester factors multiplied
 * in. */
struct fwht {
    int64_t n, c;
    float *core_f32[2]; /* the core and its transpose, in panels */
    double *core_f64[2];
};

typedef float float16 __attribute__((vector_size(64)));
typedef double double8 __attribute__((vector_size(64)));

/* Vectors are never passed to functions: below AVX-512 that would change the ABI. */
#if defined(__AVX512F__)
#define MADD_F32(a, b, c) ((float16)_mm512_fmadd_ps((__m512)(a), (__m512)(b), (__m512)(c)))
#define MADD_F64(a, b, c) ((double8)_mm512_fmadd_pd((__m512d)(a), (__m512d)(b), (__m512d)(c)))
#else
#define MADD_F32(a, b, c) ((a) * (b) + (c))
#define MADD_F64(a, b, c) ((a) * (b) + (c))
#endif

#define REAL    float
#define VEC     float16
#define LANES   16
#define MADD    MADD_F32
#define NAME(x) x##_f32
#include "rotations/fwht_body.h"
#undef REAL
#undef VEC
#undef LANES
#undef MADD
#undef NAME

#define REAL    double
#define VEC     double8
#define LANES   8
#define MADD    MADD_F64
#define NAME(x) x##_f64
#include "rotations/fwht_body.h"
#undef REAL
#undef VEC
#undef LANES
#undef MADD
#undef NAME

static err fill(fwht *f) {
    void *core;
    err e = mem_alloc(f->c * f->c, 1, "core of a Hadamard matrix", &core);
    if (!e.code) e = hadamard_matrix(f->c, core);
    for (int t = 0; t < 2 && !e.code; t++) {
        void *p;
        e = mem_alloc(f->c * padded_f32(f->c), sizeof(float), "core of a Hadamard matrix", &p);
        if (e.code) break;
        f->core_f32[t] = p;
        fill_core_f32(core, f->c, t == 1, f->core_f32[t]);
        e = mem_alloc(f->c * padded_f64(f->c), sizeof(double), "core of a Hadamard matrix", &p);
        if (e.code) break;
        f->core_f64[t] = p;
        fill_core_f64(core, f->c, t == 1, f->core_f64[t]);
    }
    mem_free(core);
    return e;
}

err fwht_create(int64_t n, fwht **out) {
    int64_t core, power;
    *out = NULL;
    err e = hadamard_orders(n, &core, &power, NULL);
    if (e.code) return e;
    void *memory;
    e = mem_alloc(1, sizeof(fwht), "Hadamard transform", &memory);
    if (e.code) return e;
    fwht *f = memory;
    f->n = n;
    f->c = core;
    while (f->c < SMALL_CORE && f->c < n) f->c *= 2;
    e = fill(f);
    if (e.code) fwht_destroy(&f);
    *out = f;
    return e;
}

void fwht_destroy(fwht **f) {
    if (!*f) return;
    for (int t = 0; t < 2; t++) {
        mem_free((*f)->core_f32[t]);
        mem_free((*f)->core_f64[t]);
    }
    mem_free(*f);
    *f = NULL;
}

int64_t fwht_size(const fwht *f) {
    return f->n;
}

void fwht_rows_f32(const fwht *f, float *x, int64_t rows, int64_t ld, bool transpose) {
    rows_f32(f, f->core_f32[transpose], x, rows, ld);
}

void fwht_rows_f64(const fwht *f, double *x, int64_t rows, int64_t ld, bool transpose) {
    rows_f64(f, f->core_f64[transpose], x, rows, ld);
}
