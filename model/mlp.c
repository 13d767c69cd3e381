/* The instances of mlp_body.h: silu(gate) * up, and its derivative. */
#include "model/block_internal.h"

#include "base/gemm.h"
#include "model/norm.h"
#include "model/sites.h"

#include <string.h>

#define REAL_BITS 32
#include "model/mlp_body.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "model/mlp_body.h"
