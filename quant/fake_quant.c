/* The quantizer of grid.h applied to rows in place. The body is compiled for float and for double;
 * vectors of the compiler carry the float version, with the same rounding. */
#include "quant/fake_quant.h"

#include "quant/grid.h"

/* The float rules carry no suffix in grid.h. */
#define REAL         float
#define REAL_NAME(x) x
#define REAL_CODE    quant_code
#include "quant/fake_quant_body.h"
#undef REAL
#undef REAL_NAME
#undef REAL_CODE

#define REAL         double
#define REAL_NAME(x) x##_f64
#define REAL_CODE    quant_code_f64
#include "quant/fake_quant_body.h"
