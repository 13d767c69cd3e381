/* The instances of rope_body.h: a rotation of the channel pairs (i, i + head_dim/2) by position
 * times frequency. */
#include "model/rope.h"

#define REAL_BITS 32
#include "model/rope_body.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "model/rope_body.h"
