#include "model/rope.h"

#define REAL_BITS 32
#include "model/rope_body.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "model/rope_body.h"
