#include "model/norm.h"

#define REAL_BITS 32
#include "model/norm_body.h"
#undef REAL_BITS
#define REAL_BITS 64
#include "model/norm_body.h"
