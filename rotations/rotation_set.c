/* R1, R3 and R4 are made at creation, R2 of a layer when it is first asked for, each from its own
 * random numbers, so a rank that asks for some layers gets the same matrices as one that asks for
 * all. */
#include "rotations/rotation_set.h"

#include "base/mem.h"
#include "rotations/cache_rotation.h"
#include "rotations/hadamard.h"

#include <assert.h>
#include <inttypes.h>
#include <math.h>

struct rotation_set {
    rotation_options opts;
    rotation_sizes sizes;
    rotation *r1, *r3, *r4, *cache;
    rotation **r2;  /* [layers, r2_count] */
    bool *prepared; /* [layers] */
    int64_t r2_count;
    rotation **r3_heads;  /* [layers, kv_heads]; NULL: r3 for all */
    scale_set *scales;    /* NULL: none */
    clip_set *clips;      /* NULL: none */
    double *cache_scales; /* [layers, 2]; NULL: ones */
};

static err check_order(const char *what, const char *hint, int64_t n) {
    err e = hadamard_orders(n, NULL, NULL, NULL);
    if (!e.code) return e;
    return err_make(ERR_INPUT, what, hint, "no Hadamard matrix of order %" PRId64 " is known here",
                    n);
}

/* Everything that can be refused is refused here, before anything is read or allocated. */
static err check(const rotation_options *o, const rotation_sizes *s) {
    err e = err_none();
    if (o->start == START_HAD && o->r1)
        e = check_order(
            "R1 (hidden size)",
            "set rotate.start=orthogonal (or pca, womi), which take any size, or rotate.r1=false",
            s->hidden);
    if (!e.code && o->start == START_HAD && o->r2 != R2_NONE && !o->r2_later)
        e = check_order(
            "R2 (head size)",
            "set rotate.start=orthogonal (or pca, womi), which take any size, or rotate.r2=none",
            s->head_dim);
    if (!e.code && o->r3)
        e = check_order("R3 (head size)", "leave r3 out of rotate.online", s->head_dim);
    if (e.code || !o->r4) return e;
    if (o->r4_block && (o->r4_block < 1 || s->intermediate % o->r4_block))
        return err_make(ERR_USAGE, "rotate.r4_block", "choose a block that divides the size",
                        "blocks of %" PRId64 " do not divide the intermediate size %" PRId64,
                        o->r4_block, s->intermediate);
    return check_order("R4 (intermediate size)",
                       "set rotate.r4_block to a divisor that has one, such as a power of two, or "
                       "leave r4 out of rotate.online",
                       o->r4_block ? o->r4_block : s->intermediate);
}

static err allocate(rotation_set *s) {
    err e = MEM_NEW(&s->r2, s->sizes.layers * s->r2_count, "R2 of all layers");
    if (e.code) return e;
    e = MEM_NEW(&s->prepared, s->sizes.layers, "R2 of all layers");
    return e;
}

static err fill(rotation_set *s) {
    err e = err_none();
    if (s->opts.r1 && s->opts.start == START_IDENTITY)
        e = rotation_create_identity(s->sizes.hidden, &s->r1);
    if (s->opts.r1 && s->opts.start == START_HAD)
        e = rotation_create_random_hadamard(s->sizes.hidden, s->opts.seed, RNG_R1_SIGNS, 0, &s->r1);
    if (!e.code && s->opts.r3) e = rotation_create_hadamard(s->sizes.head_dim, NULL, &s->r3);
    if (!e.code && s->opts.r4)
        e = rotation_create_blocks(s->sizes.intermediate,
                                   s->opts.r4_block ? s->opts.r4_block : s->sizes.intermediate,
                                   NULL, &s->r4);
    if (!e.code && s->opts.cache) e = cache_rotation_create(s->sizes.head_dim, &s->cache);
    return e;
}

err rotation_set_create(const rotation_options *opts, const rotation_sizes *sizes,
                        rotation_set **out) {
    *out = NULL;
    err e = check(opts, sizes);
    if (e.code) return e;
    rotation_set *s;
    e = MEM_NEW(&s, 1, "rotations of the model");
    if (e.code) return e;
    s->opts = *opts;
    s->sizes = *sizes;
    s->r2_count = opts->r2 == R2_HEAD ? sizes->kv_heads : opts->r2 == R2_LAYER ? 1 : 0;
    e = allocate(s);
    if (!e.code) e = fill(s);
    if (e.code) rotation_set_destroy(&s);
    *out = s;
    return e;
}

void rotation_set_destroy(rotation_set **set) {
    rotation_set *s = *set;
    if (!s) return;
    rotation_destroy(&s->r1);
    rotation_destroy(&s->r3);
    rotation_destroy(&s->r4);
    rotation_destroy(&s->cache);
    for (int64_t i = 0; s->r2 && i < s->sizes.layers * s->r2_count; i++)
        rotation_destroy(&s->r2[i]);
    mem_free(s->r2);
    mem_free(s->prepared);
    for (int64_t i = 0; s->r3_heads && i < s->sizes.layers * s->sizes.kv_heads; i++)
        rotation_destroy(&s->r3_heads[i]);
    mem_free(s->r3_heads);
    scale_set_destroy(&s->scales);
    clip_set_destroy(&s->clips);
    mem_free(s->cache_scales);
    mem_free(s);
    *set = NULL;
}

const rotation *rotation_set_r1(const rotation_set *s) {
    return s->r1;
}

const rotation *rotation_set_r3(const rotation_set *s) {
    return s->r3;
}

const rotation *rotation_set_r4(const rotation_set *s) {
    return s->r4;
}

const rotation *rotation_set_cache(const rotation_set *s) {
    return s->cache;
}

int64_t rotation_set_r2_count(const rotation_set *s) {
    return s->r2_count;
}

const rotation_options *rotation_set_options(const rotation_set *s) {
    return &s->opts;
}

const rotation_sizes *rotation_set_sizes(const rotation_set *s) {
    return &s->sizes;
}

err rotation_set_prepare_r2(rotation_set *s, int64_t layer) {
    assert(layer >= 0 && layer < s->sizes.layers);
    if (s->prepared[layer]) return err_none();
    for (int64_t h = 0; h < s->r2_count && s->opts.start != START_LATER; h++) {
        rotation **r = &s->r2[layer * s->r2_count + h];
        if (*r) continue;
        uint64_t first = ((uint64_t)layer << 40) + ((uint64_t)h << 20);
        err e = s->opts.start == START_IDENTITY || s->opts.r2_later
                    ? rotation_create_identity(s->sizes.head_dim, r)
                    : rotation_create_random_hadamard(s->sizes.head_dim, s->opts.seed, RNG_R2_SIGNS,
                                                      first, r);
        if (e.code) return e;
    }
    s->prepared[layer] = true;
    return err_none();
}

const rotation *rotation_set_r2(const rotation_set *s, int64_t layer, int64_t kv_head) {
    if (!s->r2_count) return NULL;
    assert(s->prepared[layer]);
    return s->r2[layer * s->r2_count + (s->r2_count > 1 ? kv_head : 0)];
}

static err put(rotation **slot, rotation **r, int64_t n, const char *what) {
    if (*r && rotation_size(*r) != n)
        return err_make(ERR_INPUT, what, NULL, "order %" PRId64 " where %" PRId64 " is needed",
                        rotation_size(*r), n);
    rotation_destroy(slot);
    *slot = *r;
    *r = NULL;
    return err_none();
}

err rotation_set_put_r1(rotation_set *s, rotation **r) {
    return put(&s->r1, r, s->sizes.hidden, "R1");
}

err rotation_set_put_r2(rotation_set *s, int64_t layer, int64_t kv_head, rotation **r) {
    if (layer < 0 || layer >= s->sizes.layers || kv_head < 0 || kv_head >= s->r2_count)
        return err_make(ERR_BUG, "R2", NULL, "no place for layer %" PRId64 ", head %" PRId64, layer,
                        kv_head);
    err e = rotation_set_prepare_r2(s, layer);
    if (e.code) return e;
    return put(&s->r2[layer * s->r2_count + kv_head], r, s->sizes.head_dim, "R2");
}

const rotation *const *rotation_set_r3_heads(const rotation_set *s) {
    return (const rotation *const *)s->r3_heads;
}

err rotation_set_put_r3(rotation_set *s, int64_t layer, int64_t kv_head, rotation **r) {
    if (!s->r3 || layer < 0 || layer >= s->sizes.layers || kv_head < 0 ||
        kv_head >= s->sizes.kv_heads)
        return err_make(ERR_BUG, "R3", NULL, "no place for layer %" PRId64 ", head %" PRId64, layer,
                        kv_head);
    if (!s->r3_heads) {
        err e = MEM_NEW(&s->r3_heads, s->sizes.layers * s->sizes.kv_heads, "R3");
        if (e.code) return e;
    }
    return put(&s->r3_heads[layer * s->sizes.kv_heads + kv_head], r, s->sizes.head_dim, "R3");
}

const clip_set *rotation_set_clips(const rotation_set *s) {
    return s->clips;
}

void rotation_set_put_clips(rotation_set *s, clip_set **clips) {
    clip_set_destroy(&s->clips);
    s->clips = *clips;
    *clips = NULL;
}

const double *rotation_set_cache_scales(const rotation_set *s) {
    return s->cache_scales;
}

err rotation_set_put_cache_scales(rotation_set *s, int64_t layer, double key, double value) {
    err e = s->cache_scales ? err_none()
                            : MEM_NEW(&s->cache_scales, 2 * s->sizes.layers, "scales of the cache");
    if (e.code) return e;
    s->cache_scales[2 * layer] = key;
    s->cache_scales[2 * layer + 1] = value;
    return e;
}

const scale_set *rotation_set_scales(const rotation_set *s) {
    return s->scales;
}

void rotation_set_put_scales(rotation_set *s, scale_set **scales) {
    scale_set_destroy(&s->scales);
    s->scales = *scales;
    *scales = NULL;
}

err rotation_set_new_scales(const rotation_set *s, scale_set **out) {
    const scale_sizes sizes = {.hidden = s->sizes.hidden,
                               .layers = s->sizes.layers,
                               .kv_heads = s->sizes.kv_heads,
                               .head_dim = s->sizes.head_dim,
                               .intermediate = s->sizes.intermediate,
                               .qk_norm = s->sizes.qk_norm};
    return scale_set_create(&sizes, out);
}

static err widen(const rotation *r, double *max) {
    double d = 0;
    err e = r ? rotation_orthogonality(r, &d) : err_none();
    if (!e.code) *max = fmax(*max, d);
    return e;
}

err rotation_set_orthogonality(const rotation_set *s, double *max) {
    *max = 0;
    err e = widen(s->r1, max);
    if (!e.code) e = widen(s->r3, max);
    if (!e.code) e = widen(s->r4, max);
    for (int64_t i = 0; i < s->sizes.layers * s->r2_count && !e.code; i++) e = widen(s->r2[i], max);
    for (int64_t i = 0; s->r3_heads && i < s->sizes.layers * s->sizes.kv_heads && !e.code; i++)
        e = widen(s->r3_heads[i], max);
    return e;
}
