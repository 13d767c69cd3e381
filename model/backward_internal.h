/* backward_internal - the buffers of backward.h, shared by backward.c, hook.c, objective.c and the
 * passes (block_real.c, mlp_real.c, block_backward_real.c, objective_real.c). Nobody else includes
 * it. "Real" is float or double, "factor" what products take: bf16, float or double. W is
 * shape.window, S shape.slice. Rows are tokens. */
#ifndef SPINSHARD_MODEL_BACKWARD_INTERNAL_H
#define SPINSHARD_MODEL_BACKWARD_INTERNAL_H

#include "model/attention.h"
#include "model/backward.h"
#include "model/site_backward.h"
#include "model/site_scale.h"
#include "model/sites.h"

/* Of the norm of heads: rows before the gain, and 1 / rms; NULL where the model has no such norm.
 */
typedef struct head_norm_saved {
    void *y;     /* factor [W, heads head_dim] */
    void *scale; /* real [W, heads] */
} head_norm_saved;

struct llama_saved {
    llama_config cfg;
    llama_pass_shape shape;
    void *block;             /* owned: one allocation, the rest points into it */
    void *y[NORMS];          /* factor [W, hidden]: rms(x) before site and gain */
    void *scale[NORMS];      /* real [W]: 1 / rms */
    site_saved input[NORMS]; /* [W, hidden] */
    head_norm_saved q_norm, k_norm;
    void *q, *k, *v;                   /* factor, by KV head, see attention.h */
    void *lse;                         /* real [kv_heads, W, heads / kv_heads] */
    void *o;                           /* factor [W, heads head_dim]: before the site */
    void *k_in, *v_in;                 /* factor [W, kv_heads head_dim]: before the site, or NULL */
    site_saved keys, values, out;      /* [W, ...] */
    void *gate, *up;                   /* factor [W, intermediate] */
    site_saved down;                   /* [W, intermediate] */
    void *dk, *dv;                     /* real [kv_heads, W, head_dim] */
    unsigned on;                       /* the sites that there is room for */
    int64_t forward_tok, backward_tok; /* tokens done forward; tokens still to go backward */
};

struct llama_work {
    llama_config cfg;
    llama_pass_shape shape;
    int threads;
    unsigned on;            /* the sites that there is room for */
    void *block;            /* owned */
    void *cos_t, *sin_t;    /* real [W, head_dim / 2] */
    void *wide;             /* real [S, max(hidden, heads head_dim)] */
    void *input;            /* factor, the same shape */
    void *dh;               /* real [S, hidden] */
    void *q, *k, *v;        /* real [S, heads head_dim], [S, kv_heads head_dim] */
    void *k_half, *v_half;  /* factor [S, kv_heads head_dim] */
    void *mid;              /* real [S, intermediate] */
    void *mid_a, *mid_b;    /* factor [S, intermediate] */
    void *d_out;            /* factor, in the layout of llama_saved.q */
    void *dot;              /* real, in the layout of lse */
    void *dq;               /* real, see attention_backward */
    float *hook_x, *hook_g; /* [S, widest] */
    site_work site;
    bf16 *r1_half;      /* owned; [hidden, hidden], COMPUTE_BF16 and a dense R1 */
    void *r1_t;         /* owned; real [hidden, hidden], through and a dense R1 */
    const rotation *r1; /* of which these are copies */
    void *per_thread;   /* thread_bytes for each thread */
    uint64_t thread_bytes;
    /* the head: */
    int64_t head_parts;            /* parts of the vocabulary, each with sums of its own */
    void *head_sums;               /* real [head_parts, S, hidden] */
    double *head_max, *head_total; /* [head_parts, rows] */
    double *head_hit;              /* [S]: logit of the token that follows */
    double *kl_hit;                /* [head_parts, rows], kl-top */
    double *row_lse, *row_mass;    /* [S], kl-top: log sum exp; sum of p */
    double *row_loss;              /* [S] */
    int32_t *next;                 /* [S] */
};

/* Local. The part of the calling thread, after the tile scratch of wmat_tile. */
void *work_of_thread(const llama_work *w);
void *work_tile_of_thread(const llama_work *w);

/* Local. The attention of tokens t0 .. t0 + n of a window. */
attention_shape work_attention(const llama_work *w, int64_t layer, int64_t t0, int64_t n);

/* Local. The work of a site; with the copies of R1, where the site rotates by it. */
site_work work_site(const llama_work *w, const site *at);

/* Local. True where the hook listens at `place`; and its call, with x (factors, or NULL) and g
 * (reals) as floats. */
bool hook_wants(const llama_hook *hook, hook_place place);
err hook_tell(const llama_hook *hook, int64_t layer, hook_place place, int64_t t0, int64_t n_tokens,
              int64_t width, const void *x, const void *g, llama_work *w);

/* Local. `base` moved by `count` elements of `size` bytes; NULL stays. */
static inline void *bytes_at(const void *base, int64_t count, size_t size) {
    return base ? (char *)base + (size_t)count * size : NULL;
}

/* Local, threaded. As llama_block_backward, which checks. */
err block_backward_f32(const llama_layer *l, int64_t layer, const llama_sites *sites, int64_t t0,
                       int64_t n_tokens, float *dx, llama_saved *saved, const rotation_grads *grads,
                       const llama_hook *hook, llama_work *w);
err block_backward_f64(const llama_layer *l, int64_t layer, const llama_sites *sites, int64_t t0,
                       int64_t n_tokens, double *dx, llama_saved *saved,
                       const rotation_grads *grads, const llama_hook *hook, llama_work *w);

/* Parts of the vocabulary for rows at most: by the shape alone. */
int64_t head_parts_of(int64_t rows, int64_t vocab);
enum { HEAD_ROWS = 256 }; /* rows of a unit of the head */

#endif
