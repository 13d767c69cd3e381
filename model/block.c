/* The instances of block_body.h for float and double: one decoder block, norm, attention, norm,
 * gated MLP, with activation quantizers in between. */
#include "model/block_internal.h"

#include "base/gemm.h"
#include "model/norm.h"
#include "model/rope.h"
#include "model/sites.h"

#define REAL_BITS 32
#include "model/block_body.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "model/block_body.h"
