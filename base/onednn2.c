/* oneDNN 2: descriptors are structs, an operation has one before the primitive's. */
#include "version.h"

#if SPINSHARD_DNNL == 2
#include "base/onednn.h"

typedef struct factors {
    dnnl_memory_desc_t a, b, c;
} factors;

static dnnl_status_t describe(const matmul_key *k, factors *f) {
    const dnnl_dims_t da = {k->m, k->k}, db = {k->k, k->n}, dc = {k->m, k->n};
    const dnnl_dims_t sa = {k->lda, 1}, sc = {k->ldc, 1};
    const dnnl_dims_t sb = {k->trans_b ? 1 : k->ldb, k->trans_b ? k->ldb : 1};
    dnnl_status_t s = dnnl_memory_desc_init_by_strides(&f->a, 2, da, dnnl_bf16, sa);
    if (!s && k->packed)
        s = dnnl_memory_desc_init_by_tag(&f->b, 2, db, dnnl_bf16, dnnl_format_tag_any);
    else if (!s)
        s = dnnl_memory_desc_init_by_strides(&f->b, 2, db, dnnl_bf16, sb);
    if (!s) s = dnnl_memory_desc_init_by_strides(&f->c, 2, dc, dnnl_f32, sc);
    return s;
}

static dnnl_status_t add_to_c(dnnl_primitive_attr_t attr) {
    dnnl_post_ops_t ops;
    dnnl_status_t s = dnnl_post_ops_create(&ops);
    if (s) return s;
    s = dnnl_post_ops_append_sum(ops, 1.0f);
    if (!s) s = dnnl_primitive_attr_set_post_ops(attr, ops);
    dnnl_post_ops_destroy(ops);
    return s;
}

dnnl_status_t onednn_matmul_create(dnnl_engine_t engine, const matmul_key *k, matmul *out) {
    factors f;
    dnnl_matmul_desc_t d;
    dnnl_primitive_attr_t attr = NULL;
    dnnl_primitive_desc_t pd = NULL;
    dnnl_status_t s = describe(k, &f);
    if (!s) s = dnnl_matmul_desc_init(&d, &f.a, &f.b, NULL, &f.c);
    if (!s) s = dnnl_primitive_attr_create(&attr);
    if (!s && k->add) s = add_to_c(attr);
    if (!s) s = dnnl_primitive_desc_create(&pd, &d, attr, engine, NULL);
    if (!s) s = dnnl_primitive_create(&out->primitive, pd);
    if (!s) {
        const dnnl_memory_desc_t *b = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
        const dnnl_dims_t db = {k->k, k->n};
        dnnl_memory_desc_t pairs;
        s = dnnl_memory_desc_init_by_tag(&pairs, 2, db, dnnl_bf16, dnnl_BA16a64b2a);
        out->in_pairs = !s && k->packed && dnnl_memory_desc_equal(&pairs, b);
        out->b_bytes = dnnl_memory_desc_get_size(b);
        if (!s) s = dnnl_memory_create(&out->a, &f.a, engine, DNNL_MEMORY_NONE);
        if (!s) s = dnnl_memory_create(&out->b, b, engine, DNNL_MEMORY_NONE);
        if (!s) s = dnnl_memory_create(&out->c, &f.c, engine, DNNL_MEMORY_NONE);
    }
    if (pd) dnnl_primitive_desc_destroy(pd);
    if (attr) dnnl_primitive_attr_destroy(attr);
    out->key = *k;
    return s;
}

dnnl_status_t onednn_pack_create(dnnl_engine_t engine, bool trans_b, int64_t ldb, matmul *p) {
    const dnnl_memory_desc_t *to;
    dnnl_memory_desc_t from;
    dnnl_primitive_desc_t pd = NULL;
    const dnnl_dims_t d = {p->key.k, p->key.n}, strides = {trans_b ? 1 : ldb, trans_b ? ldb : 1};
    dnnl_status_t s = dnnl_memory_get_memory_desc(p->b, &to);
    if (!s) s = dnnl_memory_desc_init_by_strides(&from, 2, d, dnnl_bf16, strides);
    if (!s) s = dnnl_memory_create(&p->loose, &from, engine, DNNL_MEMORY_NONE);
    if (!s) s = dnnl_memory_create(&p->packed, to, engine, DNNL_MEMORY_NONE);
    if (!s) s = dnnl_reorder_primitive_desc_create(&pd, &from, engine, to, engine, NULL);
    if (!s) s = dnnl_primitive_create(&p->pack, pd);
    if (pd) dnnl_primitive_desc_destroy(pd);
    return s;
}

#endif
