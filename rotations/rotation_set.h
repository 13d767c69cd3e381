/* rotation_set - the rotations R1, R2, R3, R4 of one model (DESIGN: "Where the rotations stand"),
 * and the scales and clips that stand beside them. A NULL rotation is the identity. R2 is made when
 * first asked for, so a rank pays only for its layers. Not files (the caller reads and writes
 * rotations.safetensors) and no LLaMA beyond sizes.
 */
#ifndef SPINSHARD_ROTATIONS_ROTATION_SET_H
#define SPINSHARD_ROTATIONS_ROTATION_SET_H

#include "rotations/clip_set.h"
#include "rotations/rotation.h"
#include "rotations/scale_set.h"

typedef enum rotation_r2 { R2_NONE, R2_LAYER, R2_HEAD } rotation_r2;
/* Where R1 and R2 begin. START_LATER: they are NULL until they are put, for a set that is read from
 * a file. */
typedef enum rotation_start { START_IDENTITY, START_HAD, START_LATER } rotation_start;

typedef struct rotation_options {
    bool r1;
    rotation_r2 r2;       /* none, one a layer, one a KV head */
    bool r3, r4, cache;   /* cache: keys and values are rotated by the runtime (cache_rotation.h) */
    int64_t r4_block;     /* 0: one Hadamard matrix of the whole width */
    rotation_start start; /* of R1 and R2; R4 is plain Hadamard, and R3 until others are put */
    bool r2_later;        /* R2 are identities, of any size, until they are put */
    uint64_t seed;
} rotation_options;

typedef struct rotation_sizes {
    int64_t hidden, layers, heads, kv_heads, head_dim, intermediate;
    bool qk_norm; /* heads of queries and keys go through a norm: scale_sizes.qk_norm */
} rotation_sizes;

typedef struct rotation_set rotation_set;

/* Local. The set; all orders are checked now, so later calls fail only for memory. Caller owns
 * *out. Fails with ERR_INPUT naming the rotation and the size that has no Hadamard matrix, with
 * ERR_USAGE for a block that does not divide, and ERR_NOFIT. */
err rotation_set_create(const rotation_options *opts, const rotation_sizes *sizes,
                        rotation_set **out);
void rotation_set_destroy(rotation_set **s); /* local; NULL is fine; sets NULL */

/* Local. Borrowed; NULL is the identity. */
const rotation *rotation_set_r1(const rotation_set *s);
const rotation *rotation_set_r3(const rotation_set *s);
const rotation *rotation_set_r4(const rotation_set *s);
/* Local. What the runtime rotates each head of keys and values by; NULL: it does not. */
const rotation *rotation_set_cache(const rotation_set *s);

/* Local. Make R2 of a layer (all its KV heads) if it is not there. Not for several threads at once.
 */
err rotation_set_prepare_r2(rotation_set *s, int64_t layer);
/* Local. R2 of a layer and KV head (any head if one a layer); borrowed; the layer must be prepared.
 */
const rotation *rotation_set_r2(const rotation_set *s, int64_t layer, int64_t kv_head);
/* Local. How many R2 a layer has: 0, 1 or kv_heads. */
int64_t rotation_set_r2_count(const rotation_set *s);

const rotation_options *rotation_set_options(const rotation_set *s); /* local; borrowed */
const rotation_sizes *rotation_set_sizes(const rotation_set *s);     /* local; borrowed */

/* Local. Replace a rotation, for example by one from a file; takes *r over and sets it NULL; a NULL
 * *r puts the identity. Sizes are checked: fails with ERR_INPUT and leaves *r. put_r2 needs the set
 * to have R2 of that layer and head. */
err rotation_set_put_r1(rotation_set *s, rotation **r);
err rotation_set_put_r2(rotation_set *s, int64_t layer, int64_t kv_head, rotation **r);

/* Local. R3 of each layer and KV head, [layers * kv_heads], borrowed; NULL: rotation_set_r3 is that
 * of all. put takes *r over and sets it NULL; the set must have R3, and all are to be put before
 * one is used. */
const rotation *const *rotation_set_r3_heads(const rotation_set *s);
err rotation_set_put_r3(rotation_set *s, int64_t layer, int64_t kv_head, rotation **r);

/* Local. The clips; borrowed; NULL: none. put takes *clips over (NULL: none) and sets it NULL. */
const clip_set *rotation_set_clips(const rotation_set *s);
void rotation_set_put_clips(rotation_set *s, clip_set **clips);

/* Local. The fixed scales of an FP8 cache, [layers, 2], of keys and of values; borrowed; NULL:
 * ones. put: those of a layer; all are to be put before one is used. Fails with ERR_NOFIT. */
const double *rotation_set_cache_scales(const rotation_set *s);
err rotation_set_put_cache_scales(rotation_set *s, int64_t layer, double key, double value);

/* Local. The scales; borrowed; NULL: ones everywhere. put takes *scales over (NULL: none) and sets
 * it NULL. */
const scale_set *rotation_set_scales(const rotation_set *s);
void rotation_set_put_scales(rotation_set *s, scale_set **scales);
/* Local. An empty scale_set of the sizes of s. Caller owns *out. Fails with ERR_NOFIT. */
err rotation_set_new_scales(const rotation_set *s, scale_set **out);

/* Local. max over the rotations made so far of max |R^T R - I|. */
err rotation_set_orthogonality(const rotation_set *s, double *max);

#endif
