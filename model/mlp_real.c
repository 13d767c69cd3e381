/* silu(gate) * up, a tile of both at a time. */
#include "model/block_internal.h"

#include "base/gemm.h"
#include "base/vecmath.h"
#include "model/backward_internal.h"
#include "model/norm.h"
#include "model/sites.h"

#include "base/real.h"

static void silu_times(const real *g, const real *u, int64_t n, real *to) {
#pragma omp simd
    for (int64_t j = 0; j < n; j++) to[j] = vec_silu(g[j]) * u[j];
}

static void silu_factors(const real *g, const real *u, int64_t n, compute_type compute, void *to) {
    if (compute != COMPUTE_BF16) {
        silu_times(g, u, n, to);
        return;
    }
    bf16 *half = to;
#pragma omp simd
    for (int64_t j = 0; j < n; j++) half[j] = half_to_bf16((float)(vec_silu(g[j]) * u[j]));
}

/* silu(gate) up of a tile; gate and up are saved where the backward has room for them. */
static void mid_tile(const block_pass *p, wmat_rect r, bool wide, real *g, real *u) {
    const llama_layer *l = p->weights;
    const size_t factor = compute_factor_bytes(p->compute);
    const int64_t width = p->cfg->intermediate;
    for (int64_t t = 0; t < r.m; t++) {
        real *gt = g + t * r.n, *ut = u + t * r.n;
        const int64_t at = (r.i + t) * width + r.j, saved_at = at + p->t0 * width;
        norm_add_bias_f32(gt, l->bgate ? l->bgate + r.j : NULL, r.n);
        norm_add_bias_f32(ut, l->bup ? l->bup + r.j : NULL, r.n);
        if (p->saved->gate) {
            norm_factors_f32(gt, r.n, NULL, p->compute, bytes_at(p->saved->gate, saved_at, factor));
            norm_factors_f32(ut, r.n, NULL, p->compute, bytes_at(p->saved->up, saved_at, factor));
        }
        if (wide) {
            silu_times(gt, ut, r.n, (real *)p->wide_mid + at);
        } else {
            silu_factors(gt, ut, r.n, p->compute, bytes_at(p->mid, at, factor));
        }
    }
}

/* mid = silu(gate(h)) * up(h), a tile of both at a time, so that neither is ever held whole in
 * reals. */
static void gate_up(const block_pass *p, bool wide) {
    const llama_layer *l = p->weights;
    const wmat_tiles tiles = wmat_tiles_of(p->n_tokens, l->gate.rows);
    const int64_t hidden = l->gate.cols;
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < tiles.count; i++) {
        const wmat_rect r = wmat_tiles_at(&tiles, i);
        real *g = block_thread_reals(p), *u = g + WMAT_TILE_ROWS * WMAT_TILE_COLUMNS;
        const void *h = bytes_at(p->input, r.i * hidden, compute_factor_bytes(p->compute));
        wmat_tile(&l->gate, p->compute, h, hidden, r.m, r.j, r.n, GEMM_SET, g, r.n,
                  block_thread_tile(p));
        wmat_tile(&l->up, p->compute, h, hidden, r.m, r.j, r.n, GEMM_SET, u, r.n,
                  block_thread_tile(p));
        mid_tile(p, r, wide, g, u);
    }
}

const void *mlp_mid_f32(const block_pass *p) {
    const site down = sites_down(p->sites, p->cfg, p->layer);
    const bool acts = site_acts(&down);
    gate_up(p, acts);
    if (!acts) return p->mid;
    block_site_f32(p, &down, p->wide_mid, NULL, &p->saved->down);
    if (p->mid != p->wide_mid)
        norm_row_factors_f32(p->wide_mid, p->n_tokens, down.n, NULL, p->compute, p->mid);
    return p->mid;
}
