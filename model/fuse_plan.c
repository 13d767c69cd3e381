/* What is folded into each matrix of a model: the rotations and scales of its role. */
#include "base/mem.h"
#include "model/fuse.h"

#include <string.h>

/* R2 of the layer as the heads of one side. */
static err take_r2(fuse_plan *p, rotation_set *set, int64_t layer, int64_t n_heads,
                   fuse_heads *side) {
    const int64_t count = rotation_set_r2_count(set);
    if (!count) return err_none();
    err e = rotation_set_prepare_r2(set, layer);
    if (e.code) return e;
    e = MEM_NEW(&p->r2, count, "R2 of a layer");
    if (e.code) return e;
    for (int64_t h = 0; h < count; h++) p->r2[h] = rotation_set_r2(set, layer, h);
    *side = (fuse_heads){.rotations = p->r2, .n_heads = n_heads, .per_rotation = n_heads / count};
    return e;
}

/* Scales of KV heads, or over them, for the n_heads heads of one side: head h takes those of KV
 * head h / (n_heads / kv_heads). */
static err take_heads(fuse_plan *p, const rotation_sizes *z, const scale_vector *v, scale_way way,
                      int64_t n_heads, const double **side) {
    if (!v) return err_none();
    const double *from = way == SCALE_OVER ? v->inverse : v->s;
    const int64_t d = z->head_dim, share = n_heads / z->kv_heads;
    err e = MEM_NEW(&p->scales, n_heads * d, "scales of heads");
    if (e.code) return e;
    for (int64_t h = 0; h < n_heads; h++)
        memcpy(p->scales + h * d, from + h / share * d, (size_t)d * sizeof *from);
    *side = p->scales;
    return e;
}

/* What a linear divides by, or multiplies with, on its own. */
static err plan_scales(llama_role role, int64_t layer, const rotation_set *set, fuse_plan *p) {
    const rotation_sizes *z = rotation_set_sizes(set);
    const scale_set *all = rotation_set_scales(set);
    if (layer < 0) return err_none(); /* embedding, head */
    const scale_vector *ud = scale_set_get(all, SCALE_UD, layer);
    const scale_vector *qk = scale_set_get(all, SCALE_QK, layer);
    const scale_vector *vo = scale_set_get(all, SCALE_VO, layer);
    switch (role) {
    case ROLE_Q:
    case ROLE_Q_BIAS:
        if (z->qk_norm) return err_none();
        return take_heads(p, z, qk, SCALE_TIMES, z->heads, &p->job.out_scale);
    case ROLE_K:
    case ROLE_K_BIAS:
        if (z->qk_norm) return err_none();
        return take_heads(p, z, qk, SCALE_OVER, z->kv_heads, &p->job.out_scale);
    case ROLE_Q_NORM: /* the same for all heads: those of the first */
        if (qk) p->job.out_scale = qk->s;
        return err_none();
    case ROLE_K_NORM:
        if (qk) p->job.out_scale = qk->inverse;
        return err_none();
    case ROLE_V:
    case ROLE_V_BIAS:
        return take_heads(p, z, vo, SCALE_OVER, z->kv_heads, &p->job.out_scale);
    case ROLE_O:
        return take_heads(p, z, vo, SCALE_TIMES, z->heads, &p->job.in_scale);
    case ROLE_UP:
    case ROLE_UP_BIAS:
        if (ud) p->job.out_scale = ud->inverse;
        return err_none();
    case ROLE_DOWN:
        if (ud) p->job.in_scale = ud->s;
        return err_none();
    default:
        return err_none();
    }
}

static void plan_norm_scales(llama_role role, int64_t layer, const rotation_set *set,
                             fuse_plan *p) {
    const bool attn = role == ROLE_Q || role == ROLE_K || role == ROLE_V;
    if (!attn && role != ROLE_GATE && role != ROLE_UP) return;
    const scale_vector *v =
        scale_set_get(rotation_set_scales(set), attn ? SCALE_ATTN : SCALE_MLP, layer);
    if (v) p->job.after_scale = v->s;
}

static err plan_rotations(llama_role role, int64_t layer, rotation_set *set, fuse_plan *out) {
    const rotation *r1 = rotation_set_r1(set);
    const rotation_sizes *sizes = rotation_set_sizes(set);
    switch (role) {
    case ROLE_Q_BIAS:
    case ROLE_K_BIAS:
    case ROLE_Q_NORM:
    case ROLE_K_NORM:
    case ROLE_GATE_BIAS:
    case ROLE_UP_BIAS:
        return err_none();
    case ROLE_EMBED:
    case ROLE_HEAD:
    case ROLE_Q:
    case ROLE_K:
    case ROLE_GATE:
    case ROLE_UP:
        out->job.in = r1;
        return err_none();
    case ROLE_V:
        out->job.in = r1;
        return take_r2(out, set, layer, sizes->kv_heads, &out->job.out_heads);
    case ROLE_V_BIAS:
        return take_r2(out, set, layer, sizes->kv_heads, &out->job.out_heads);
    case ROLE_O:
        out->job.out = r1;
        return take_r2(out, set, layer, sizes->heads, &out->job.in_heads);
    case ROLE_DOWN:
        out->job.in = rotation_set_r4(set);
        out->job.out = r1;
        return err_none();
    case ROLE_O_BIAS:
    case ROLE_DOWN_BIAS:
        out->job.out = r1;
        return err_none();
    default:
        return err_make(ERR_BUG, "fusion", NULL, "%s takes no rotation", llama_role_name(role));
    }
}

err fuse_plan_init(llama_role role, int64_t layer, rotation_set *set, fuse_plan *out) {
    *out = (fuse_plan){0};
    err e = plan_rotations(role, layer, set, out);
    if (!e.code) e = plan_scales(role, layer, set, out);
    if (!e.code) plan_norm_scales(role, layer, set, out);
    return e;
}

void fuse_plan_clear(fuse_plan *p) {
    mem_free(p->r2);
    mem_free(p->scales);
    *p = (fuse_plan){0};
}

static const scale_vector *norm_scales(const rotation_set *set, llama_role norm, int64_t layer) {
    if (norm == ROLE_FINAL_NORM) return NULL;
    return scale_set_get(rotation_set_scales(set), norm == ROLE_ATTN_NORM ? SCALE_ATTN : SCALE_MLP,
                         layer);
}

bool fuse_folds_gain(const rotation_set *set, llama_role norm, int64_t layer) {
    return rotation_set_r1(set) || norm_scales(set, norm, layer);
}

void fuse_gain_left(const rotation_set *set, llama_role norm, int64_t layer, int64_t n,
                    float *gain) {
    const scale_vector *v = norm_scales(set, norm, layer);
    for (int64_t j = 0; j < n; j++) gain[j] = v ? v->inverse32[j] : 1;
}
