/* Frequencies in double, from which the tables of both types are filled. */
#include "model/rope.h"

#include "base/mem.h"

err rope_tables(const llama_config *cfg, compute_type compute, int64_t n_tokens, void *cos_t,
                void *sin_t) {
    const int64_t half = cfg->head_dim / 2;
    const double gain = llama_rope_gain(cfg);
    double *inv;
    err e = MEM_NEW(&inv, half, "rotary frequencies");
    if (e.code) return e;
    llama_inv_freq(cfg, inv);
    if (compute == COMPUTE_F64)
        rope_fill_tables_f64(inv, gain, half, n_tokens, cos_t, sin_t);
    else
        rope_fill_tables_f32(inv, gain, half, n_tokens, cos_t, sin_t);
    mem_free(inv);
    return e;
}
