/* The instances of norm_body.h: y = x / sqrt(mean x^2 + eps) * gain, and its backward. */
#include "model/norm.h"

#define REAL_BITS 32
#include "model/norm_body.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "model/norm_body.h"
