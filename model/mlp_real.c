/* silu(gate) * up, a tile of both at a time. */
#include "model/block_internal.h"

#include "base/gemm.h"
#include "base/vecmath.h"
#include "model/norm.h"
#include "model/sites.h"

#include <string.h>

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

/* mid = silu(gate(h)) * up(h), a tile of both at a time, so that neither is ever held whole. */
static void gate_up(const llama_layer *l, bool keep_real, int64_t n_tokens, llama_scratch *s) {
    const wmat_tiles tiles = wmat_tiles_of(n_tokens, l->gate.rows);
    const size_t factor = compute_factor_bytes(s->compute);
    const int64_t width = l->gate.rows;
#pragma omp parallel for schedule(dynamic)
    for (int64_t i = 0; i < tiles.count; i++) {
        const wmat_rect r = wmat_tiles_at(&tiles, i);
        real *g = scratch_of_thread(s), *u = g + WMAT_TILE_ROWS * WMAT_TILE_COLUMNS;
        const char *h = (const char *)s->input + (size_t)(r.i * l->gate.cols) * factor;
        wmat_tile(&l->gate, s->compute, h, l->gate.cols, r.m, r.j, r.n, GEMM_SET, g, r.n,
                  scratch_tile_of_thread(s));
        wmat_tile(&l->up, s->compute, h, l->up.cols, r.m, r.j, r.n, GEMM_SET, u, r.n,
                  scratch_tile_of_thread(s));
        for (int64_t t = 0; t < r.m; t++) {
            real *gt = g + t * r.n, *ut = u + t * r.n;
            const int64_t at = (r.i + t) * width + r.j;
            norm_add_bias_f32(gt, l->bgate ? l->bgate + r.j : NULL, r.n);
            norm_add_bias_f32(ut, l->bup ? l->bup + r.j : NULL, r.n);
            if (keep_real) {
                silu_times(gt, ut, r.n, (real *)s->wide_mid + at);
            } else {
                silu_factors(gt, ut, r.n, s->compute, (char *)s->mid + (size_t)at * factor);
            }
        }
    }
}

const void *mlp_mid_f32(const llama_layer *l, int64_t layer, const llama_sites *sites,
                        int64_t n_tokens, llama_scratch *s) {
    const site down = sites_down(sites, &s->cfg, layer);
    const bool acts = site_acts(&down);
    const int64_t width = s->cfg.intermediate;
    gate_up(l, acts, n_tokens, s);
    if (!acts) return s->mid;
    real *mid = s->wide_mid;
    site_apply_f32(&down, mid, n_tokens, &s->site);
    if (s->mid == s->wide_mid) return s->mid;
    const size_t row = (size_t)width * compute_factor_bytes(s->compute);
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_tokens; t++) {
        norm_factors_f32(mid + t * width, width, NULL, s->compute,
                         (char *)s->mid + (size_t)t * row);
    }
    return s->mid;
}
