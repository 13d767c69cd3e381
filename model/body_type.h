/* body_type - the type of the *_body.h headers, which are compiled once for float and once for
 * double. Not guarded: the includer defines REAL_BITS as 32 or 64 and includes a body, which
 * includes this. A function written REAL_FN(name) becomes name_f32 or name_f64. */
#include "base/half.h"
#include "base/vecmath.h"

#include <math.h>

#undef REAL
#undef REAL_FN
#undef REAL_EXP
#undef REAL_LOG
#undef REAL_SILU
#undef REAL_SCALE
#undef REAL_INVERSE

#if REAL_BITS == 32
#define REAL         float
#define REAL_FN(x)   x##_f32
#define REAL_EXP     vec_exp
#define REAL_LOG     logf
#define REAL_SILU    vec_silu
#define REAL_SCALE   s32 /* of a scale_vector */
#define REAL_INVERSE inverse32
#elif REAL_BITS == 64
#define REAL         double
#define REAL_FN(x)   x##_f64
#define REAL_EXP     exp
#define REAL_LOG     log
#define REAL_SILU(x) ((x) / (1 + exp(-(x))))
#define REAL_SCALE   s
#define REAL_INVERSE inverse
#else
#error "define REAL_BITS"
#endif
