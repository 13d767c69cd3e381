/* fake_quant_body - the body of fake_quant.c, compiled for float and for double. The includer
 * defines REAL, REAL_NAME(x) and REAL_CODE (the tie rule for the type). */

typedef struct REAL_NAME(range) {
    REAL lo, hi;
} REAL_NAME(range);

static REAL_NAME(range) REAL_NAME(row_range)(const REAL *x, int64_t n) {
    REAL lo = x[0], hi = x[0];
#pragma omp simd reduction(min : lo) reduction(max : hi)
    for (int64_t j = 0; j < n; j++) {
        lo = x[j] < lo ? x[j] : lo;
        hi = x[j] > hi ? x[j] : hi;
    }
    return (REAL_NAME(range)){lo, hi};
}

/* Ends that are not clipped keep their bits. */
static void REAL_NAME(shrink)(const aquant *q, bool include_zero, REAL_NAME(range) * r) {
    const REAL low = (REAL)q->clip[0], high = (REAL)q->clip[1];
    if (include_zero || q->symmetric) {
        r->lo *= low;
        r->hi *= high;
        return;
    }
    const REAL half = (r->hi - r->lo) / 2;
    r->lo += (1 - low) * half;
    r->hi -= (1 - high) * half;
}

/* Comparisons are written so that NaN stays NaN: a broken activation must reach the loss. */
static void REAL_NAME(row_to_grid)(const REAL *x, int64_t n, REAL s, REAL z, REAL least, REAL most,
                                   REAL *out) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) {
        REAL v = REAL_CODE(x[j], s) + z;
        v = v < least ? least : v;
        v = v > most ? most : v;
        out[j] = (v - z) * s;
    }
}

static void REAL_NAME(row_symmetric)(const aquant *q, REAL_NAME(range) r, const REAL *x, int64_t n,
                                     REAL *out) {
    REAL top = r.hi > -r.lo ? r.hi : -r.lo;
    REAL s = q->compressed_tensors_scale ? top / ((REAL)grid_top(q->bits) / 2)
                                         : REAL_NAME(quant_scale_sym)(top, q->bits);
    REAL middle = (REAL)grid_middle(q->bits);
    REAL_NAME(row_to_grid)(x, n, s > 0 ? s : 1, 0, -middle, middle - 1, out);
}

static void REAL_NAME(row_asymmetric)(const aquant *q, REAL_NAME(range) r, const REAL *x, int64_t n,
                                      REAL *out) {
    REAL s = REAL_NAME(quant_scale_asym)(r.lo, r.hi, q->bits);
    REAL z = REAL_NAME(quant_zero_asym)(r.lo, s);
    REAL_NAME(row_to_grid)(x, n, s, z, 0, (REAL)grid_top(q->bits), out);
}

void REAL_NAME(fake_quant_rows)(const aquant *q, bool include_zero, const REAL *x, int64_t rows,
                                int64_t n, int64_t stride, REAL *out) {
    if (n == 0) return;
    for (int64_t i = 0; i < rows; i++) {
        const REAL *row = x + i * stride;
        REAL_NAME(range) r = REAL_NAME(row_range)(row, n);
        if (include_zero) {
            r.lo = r.lo < 0 ? r.lo : 0;
            r.hi = r.hi > 0 ? r.hi : 0;
        }
        REAL_NAME(shrink)(q, include_zero, &r);
        if (q->symmetric)
            REAL_NAME(row_symmetric)(q, r, row, n, out + i * stride);
        else
            REAL_NAME(row_asymmetric)(q, r, row, n, out + i * stride);
    }
}
