/* grid - the scalar rules of the quantizer, each written once: scale, zero point, rounding,
 * clamping. Weights (rtn.c, scale_search.c) and activations (fake_quant.c) all come here, so that
 * ties fall the same way everywhere. Not loops and not storage types. On the way: "fused weight ->
 * INT4 codes".
 *
 * asymmetric, b bits: s = (hi - lo)/(2^b - 1), 1 if hi = lo; z = rint(-lo/s);
 *                     u = clamp(rint(x/s) + z, 0, 2^b - 1); value (u - z) s
 * symmetric:          s = max|x|/(2^(b-1) - 1), 1 if 0; q = clamp(rint(x/s), -2^(b-1), 2^(b-1) -
 * 1); stored in offset form u = q + 2^(b-1), that is z = 2^(b-1); value (u - z) s The quotient is
 * an fp32 division, not a product with a reciprocal, and rint is half to even. */
#ifndef SPINSHARD_QUANT_GRID_H
#define SPINSHARD_QUANT_GRID_H

#include <math.h>
#include <stdint.h>

/* Local. Largest code in offset form: 2^b - 1. */
static inline int grid_top(int bits) {
    return (1 << bits) - 1;
}

/* Local. Offset of symmetric codes: 2^(b-1). */
static inline int grid_middle(int bits) {
    return 1 << (bits - 1);
}

/* Local. The tie rule: half to even on the quotient. Needs the default rounding mode. */
static inline float quant_code(float x, float s) {
    return rintf(x / s);
}
static inline double quant_code_f64(double x, double s) {
    return rint(x / s);
}

/* Local. v held to [lo, hi]; NaN gives lo, so that a cast to an integer stays defined. */
static inline float quant_clamp(float v, float lo, float hi) {
    float up = v > lo ? v : lo;
    return up < hi ? up : hi;
}
static inline double quant_clamp_f64(double v, double lo, double hi) {
    double up = v > lo ? v : lo;
    return up < hi ? up : hi;
}

/* Local. Scale of a range; the caller has put 0 into it where the rule says so. */
static inline float quant_scale_asym(float lo, float hi, int bits) {
    float s = (hi - lo) / (float)grid_top(bits);
    return s > 0 ? s : 1.0f;
}
static inline double quant_scale_asym_f64(double lo, double hi, int bits) {
    double s = (hi - lo) / (double)grid_top(bits);
    return s > 0 ? s : 1.0;
}

/* Local. Zero point of a range as an integer-valued float. Not clamped: activations whose range
 * lacks 0 have it outside [0, 2^b - 1]. */
static inline float quant_zero_asym(float lo, float s) {
    return quant_code(-lo, s);
}
static inline double quant_zero_asym_f64(double lo, double s) {
    return quant_code_f64(-lo, s);
}

static inline float quant_scale_sym(float max_abs, int bits) {
    float s = max_abs / (float)(grid_middle(bits) - 1);
    return s > 0 ? s : 1.0f;
}
static inline double quant_scale_sym_f64(double max_abs, int bits) {
    double s = max_abs / (double)(grid_middle(bits) - 1);
    return s > 0 ? s : 1.0;
}

/* Local. Code in offset form as an integer-valued float in [0, top]. */
static inline float quant_offset_code(float x, float s, float z, float top) {
    return quant_clamp(quant_code(x, s) + z, 0.0f, top);
}
static inline double quant_offset_code_f64(double x, double s, double z, double top) {
    return quant_clamp_f64(quant_code_f64(x, s) + z, 0.0, top);
}

#endif
