/* capture - what the layer-local objectives and the closed scales know of a model: rows and
 * gradients of every site, from one full-precision forward and backward of a window. Not a sampler:
 * whoever takes the rows picks and weighs them. Stands before "gradient of R at each site" of the
 * objective range.
 *
 * llama_capture runs a stage that is the whole model. A pipeline over several stages does the same
 * with llama_layers_save, llama_ce_backward on the last stage, and llama_layers_backward. */
#ifndef SPINSHARD_MODEL_CAPTURE_H
#define SPINSHARD_MODEL_CAPTURE_H

#include "model/backward.h"

/* The layers of a stage with one window inside: saved activations of each layer, or, with
 * recompute, the input of each layer and the saved activations of one, which are made again. */
typedef struct llama_layers llama_layers;

err llama_layers_create(const llama_config *cfg, const llama_sites *sites,
                        const llama_pass_shape *shape, int64_t n_layers, bool recompute,
                        llama_layers **out); /* local; caller owns *out; ERR_NOFIT */
/* Local. The layers of one more window on its way: inputs of its own, and the saved activations of
 * `with`, which must be made for recompute and outlive *out: one window at a time is inside a
 * block. */
err llama_layers_create_beside(const llama_layers *with, llama_layers **out); /* ERR_NOFIT */
void llama_layers_destroy(llama_layers **l); /* local; NULL is fine; sets NULL */
uint64_t llama_layers_bytes(const llama_config *cfg, const llama_sites *sites,
                            const llama_pass_shape *shape, int64_t n_layers,
                            bool recompute); /* local; without the work */
uint64_t llama_layers_beside_bytes(const llama_config *cfg, const llama_pass_shape *shape,
                                   int64_t n_layers); /* local */

/* Local, threaded. x [n_tokens, hidden] real through all layers of the stage, in place: the whole
 * window as one slice. sites may be NULL. */
err llama_layers_save(llama_layers *l, const llama_stage *stage, const llama_sites *sites,
                      int64_t n_tokens, void *x, llama_work *work);

/* Local, threaded. True where [n_tokens, hidden] real of such layers holds no NaN and no infinity.
 */
bool llama_layers_finite(const llama_layers *l, int64_t n_tokens, const void *x);
/* Local. After llama_layers_save with recompute, x what it gave: the first layer, of the stage,
 * that gave a NaN or an infinity; -1: none. */
int64_t llama_layers_first_bad(const llama_layers *l, int64_t n_tokens, const void *x);

/* Local, threaded. dx through the layers backwards, in place, after llama_layers_save with the same
 * sites. R1: [hidden, hidden] real, added to, or NULL; R2: one pointer per layer of the stage as in
 * rotation_grads, or NULL. hook may be NULL. */
err llama_layers_backward(llama_layers *l, const llama_stage *stage, const llama_sites *sites,
                          int64_t n_tokens, void *dx, void *R1, void *const *R2,
                          const llama_hook *hook, llama_work *work);

/* Local, threaded. Window ids [n_tokens] through a stage that is the whole model, no quantization:
 * hook gets every place it wants, layers from last to first, gradients of the summed cross entropy
 * of ids[1] .. ids[n_tokens - 1]. *nll_sum may be NULL. layers and work are made for sites NULL,
 * with head. For tests: a run goes through the stages (pipeline/learn/capture_run.h). */
err llama_capture(const llama_stage *stage, const int32_t *ids, int64_t n_tokens,
                  const llama_hook *hook, double *nll_sum, llama_layers *layers, llama_work *work);

#endif
