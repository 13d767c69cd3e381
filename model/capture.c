/* All layers forward in full precision with saved inputs, the loss backward, and at each layer a
 * hook that sees activations and gradients of every activation quantizer. */
#include "model/capture.h"

#include "base/mem.h"
#include "model/objective.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

struct llama_layers {
    int64_t n_layers, hidden;
    llama_pass_shape shape;
    bool recompute, borrows; /* borrows: the room for saved activations is that of other layers */
    llama_saved **saved;     /* [n_layers], or one */
    char *inputs;            /* real [n_layers, window, hidden]; recompute only */
};

static size_t input_bytes(const llama_layers *l) {
    return (size_t)(l->shape.window * l->hidden) * llama_real_bytes(l->shape.compute);
}

uint64_t llama_layers_bytes(const llama_config *cfg, const llama_sites *sites,
                            const llama_pass_shape *shape, int64_t n_layers, bool recompute) {
    const uint64_t saved = llama_saved_bytes(cfg, sites, shape), n = (uint64_t)n_layers;
    const llama_layers l = {.hidden = cfg->hidden, .shape = *shape};
    return recompute ? saved + n * input_bytes(&l) : n * saved;
}

uint64_t llama_layers_beside_bytes(const llama_config *cfg, const llama_pass_shape *shape,
                                   int64_t n_layers) {
    const llama_layers l = {.hidden = cfg->hidden, .shape = *shape};
    return (uint64_t)n_layers * input_bytes(&l);
}

static err create_inputs(llama_layers *l) {
    void *p;
    err e = mem_alloc(l->n_layers, input_bytes(l), "inputs of the layers", &p);
    if (!e.code) l->inputs = p;
    return e;
}

err llama_layers_create(const llama_config *cfg, const llama_sites *sites,
                        const llama_pass_shape *shape, int64_t n_layers, bool recompute,
                        llama_layers **out) {
    *out = NULL;
    llama_layers *l;
    err e = MEM_NEW(&l, 1, "layers of a window");
    if (e.code) return e;
    *l = (llama_layers){
        .n_layers = n_layers, .hidden = cfg->hidden, .shape = *shape, .recompute = recompute};
    e = MEM_NEW(&l->saved, n_layers, "layers of a window");
    for (int64_t i = 0; !e.code && i < (recompute ? 1 : n_layers); i++) {
        e = llama_saved_create(cfg, sites, shape, &l->saved[i]);
    }
    if (!e.code && recompute) e = create_inputs(l);
    if (e.code) llama_layers_destroy(&l);
    *out = l;
    return e;
}

err llama_layers_create_beside(const llama_layers *with, llama_layers **out) {
    *out = NULL;
    if (!with->recompute)
        return err_make(ERR_BUG, "layers of a window", NULL,
                        "each layer saves its activations apart");
    llama_layers *l;
    err e = MEM_NEW(&l, 1, "layers of a window");
    if (e.code) return e;
    *l = *with;
    l->borrows = true;
    l->inputs = NULL;
    e = create_inputs(l);
    if (e.code) llama_layers_destroy(&l);
    *out = l;
    return e;
}

void llama_layers_destroy(llama_layers **l) {
    if (!*l) return;
    if (!(*l)->borrows) {
        for (int64_t i = 0; (*l)->saved && i < (*l)->n_layers; i++)
            llama_saved_destroy(&(*l)->saved[i]);
        mem_free((*l)->saved);
    }
    mem_free((*l)->inputs);
    mem_free(*l);
    *l = NULL;
}

static err check_layers(const llama_layers *l, const llama_stage *stage, int64_t n_tokens) {
    if (l->n_layers == stage->n_layers && n_tokens <= l->shape.slice) return err_none();
    return err_make(ERR_BUG, "backward pass", NULL,
                    "%" PRId64 " tokens, %" PRId64 " layers in buffers for %" PRId64, n_tokens,
                    stage->n_layers, l->n_layers);
}

err llama_layers_save(llama_layers *l, const llama_stage *stage, const llama_sites *sites,
                      int64_t n_tokens, void *x, llama_work *work) {
    err e = check_layers(l, stage, n_tokens);
    const size_t bytes = (size_t)(n_tokens * l->hidden) * llama_real_bytes(l->shape.compute);
    for (int64_t i = 0; !e.code && i < l->n_layers; i++) {
        if (l->recompute) memcpy(l->inputs + (size_t)i * input_bytes(l), x, bytes);
        e = llama_block_forward_save(stage, stage->first_layer + i, sites, 0, n_tokens, x,
                                     l->saved[l->recompute ? 0 : i], work);
    }
    return e;
}

bool llama_layers_finite(const llama_layers *l, int64_t n_tokens, const void *x) {
    const int64_t n = n_tokens * l->hidden;
    const bool wide = llama_real_bytes(l->shape.compute) == sizeof(double);
    int64_t bad = 0;
#pragma omp parallel for reduction(+ : bad)
    for (int64_t i = 0; i < n; i++)
        bad += wide ? !isfinite(((const double *)x)[i]) : !isfinite(((const float *)x)[i]);
    return bad == 0;
}

int64_t llama_layers_first_bad(const llama_layers *l, int64_t n_tokens, const void *x) {
    if (llama_layers_finite(l, n_tokens, x)) return -1;
    for (int64_t i = 1; i < l->n_layers; i++)
        if (!llama_layers_finite(l, n_tokens, l->inputs + (size_t)i * input_bytes(l))) return i - 1;
    return l->n_layers - 1;
}

err llama_layers_backward(llama_layers *l, const llama_stage *stage, const llama_sites *sites,
                          int64_t n_tokens, void *dx, void *R1, void *const *R2,
                          const llama_hook *hook, llama_work *work) {
    err e = check_layers(l, stage, n_tokens);
    for (int64_t i = l->n_layers - 1; !e.code && i >= 0; i--) {
        const int64_t layer = stage->first_layer + i;
        llama_saved *saved = l->saved[l->recompute ? 0 : i];
        if (l->recompute)
            e = llama_block_forward_save(stage, layer, sites, 0, n_tokens,
                                         l->inputs + (size_t)i * input_bytes(l), saved, work);
        const rotation_grads grads = {.R1 = R1, .R2 = R2 ? R2[i] : NULL};
        if (!e.code)
            e = llama_block_backward(stage, layer, sites, 0, n_tokens, dx, saved, &grads, hook,
                                     work);
    }
    return e;
}

err llama_capture(const llama_stage *stage, const int32_t *ids, int64_t n_tokens,
                  const llama_hook *hook, double *nll_sum, llama_layers *layers, llama_work *work) {
    const compute_type compute = layers->shape.compute;
    double sum;
    void *x;
    int32_t *next;
    err e = mem_alloc(n_tokens * layers->hidden, llama_real_bytes(compute), "residual stream", &x);
    if (e.code) return e;
    e = MEM_NEW(&next, n_tokens, "targets");
    if (!e.code) {
        memcpy(next, ids + 1, (size_t)(n_tokens - 1) * sizeof *ids);
        next[n_tokens - 1] = -1;
        e = llama_embed(stage, compute, ids, n_tokens, x);
        if (!e.code) e = llama_layers_save(layers, stage, NULL, n_tokens, x, work);
        if (!e.code) e = llama_ce_backward(stage, n_tokens, x, next, 1, x, &sum, NULL, work);
        if (!e.code)
            e = llama_layers_backward(layers, stage, NULL, n_tokens, x, NULL, NULL, hook, work);
        if (!e.code && nll_sum) *nll_sum = sum;
        mem_free(next);
    }
    mem_free(x);
    return e;
}
