/* Weights in the loop: W^ lies on the grid of the rotated basis, and the gradient of R1 and R2
 * through it against differences of the loss with the rounding held, D(t) = C(t) D C(t)^T. */
#include "base/gemm.h"
#include "model/capture.h"
#include "model/weight_site.h"
#include "tests/unit/small_model.h"

enum { PARTS = 7, T = 24 };
enum { Q, K, V, O, GATE, UP, DOWN };

static const wquant how = {.bits = 4, .symmetric = true, .scale_type = SCALE_F32};

typedef struct setting {
    small_model m;
    llama_sites sites;
    double *R1;
    double *R2[4]; /* dense, by layer and KV head */
    rotation *r1, *r4, *r2[4];
    llama_pass_shape shape;
    llama_work *work;
    llama_layers *layers;
    weight_site *w;
} setting;

static wmat *linear_at(llama_stage *s, int64_t layer, int k) {
    return llama_layer_linear(&s->layers[layer], k);
}

/* linear_end: one layer after whose attention nothing comes. */
static void open_setting(setting *s, bool per_head, int act_bits, int64_t layers, bool linear_end) {
    *s = (setting){.sites = llama_sites_none()};
    s->m.cfg = (llama_config){.hidden = 48,
                              .intermediate = 80,
                              .layers = layers,
                              .heads = 6,
                              .kv_heads = 2,
                              .head_dim = 8,
                              .vocab = 16,
                              .max_positions = 64,
                              .rms_eps = 1e-5,
                              .rope_theta = 10000};
    small_model_fill(&s->m, true);
    if (linear_end) {
        wmat *down = linear_at(&s->m.stage, 0, DOWN);
        memset(down->data, 0, (size_t)(down->rows * down->cols) * sizeof(float));
    }
    const int64_t n = s->m.cfg.hidden, d = s->m.cfg.head_dim;
    s->R1 = random_orthogonal(n);
    assert_ok(rotation_create_dense(n, s->R1, &s->r1));
    assert_ok(rotation_create_hadamard(s->m.cfg.intermediate, NULL, &s->r4));
    for (int i = 0; i < 4; i++) {
        s->R2[i] = random_orthogonal(d);
        assert_ok(rotation_create_dense(d, s->R2[i], &s->r2[i]));
    }
    s->sites.act = (aquant){.bits = act_bits, .clip = {1, 1}};
    s->sites.o_per_head = true;
    s->sites.R1 = s->r1;
    s->sites.R2 = (const rotation *const *)s->r2; /* [2 layers], or [2 layers, 2 KV heads] */
    s->sites.r2_per_head = per_head;
    s->sites.R4 = s->r4;
    s->shape =
        (llama_pass_shape){.compute = COMPUTE_F64, .window = T, .slice = T, .r1 = true, .r2 = true};
    assert_ok(llama_work_create(&s->m.cfg, &s->sites, &s->shape, &s->work));
    assert_ok(llama_work_put_r1(s->work, s->r1));
    assert_ok(
        llama_layers_create(&s->m.cfg, &s->sites, &s->shape, s->m.cfg.layers, false, &s->layers));
    assert_ok(weight_site_create(&s->m.stage, &how, &s->shape, &s->sites, &s->w));
    assert_ok(weight_site_refresh(s->w, &s->sites));
}

static void close_setting(setting *s) {
    weight_site_destroy(&s->w);
    llama_work_destroy(&s->work);
    llama_layers_destroy(&s->layers);
    rotation_destroy(&s->r1);
    rotation_destroy(&s->r4);
    for (int i = 0; i < 4; i++) {
        rotation_destroy(&s->r2[i]);
        mem_free(s->R2[i]);
    }
    mem_free(s->R1);
    llama_stage_clear(&s->m.stage);
}

static const double *r2_of(const setting *s, int64_t layer, int64_t kv) {
    return s->R2[s->sites.r2_per_head ? layer * s->m.cfg.kv_heads + kv : layer];
}

/* W with its gains, as the products of 16-bit weights would take it. */
static double *plain_of(setting *s, int64_t layer, int k) {
    const wmat *w = linear_at(&s->m.stage, layer, k);
    const llama_layer *l = &s->m.stage.layers[layer];
    const float *gain = k < O ? l->attn_norm : k == GATE || k == UP ? l->mlp_norm : NULL;
    double *out = room(w->rows * w->cols, sizeof *out);
    for (int64_t i = 0; i < w->rows * w->cols; i++) {
        const float v = ((const float *)w->data)[i];
        out[i] = (double)(gain ? v * gain[i % w->cols] : v);
    }
    return out;
}

/* to = op(A) from op(B), A [rows, rows] and B [cols, cols] as dense matrices. */
static void sandwich(const double *A, bool trans_a, const double *from, const double *B,
                     bool trans_b, int64_t rows, int64_t cols, double *to) {
    double *half = room(rows * cols, sizeof *half);
    gemm_f64(trans_a, false, rows, cols, rows, A, rows, from, cols, false, half, cols);
    gemm_f64(false, trans_b, rows, cols, cols, half, cols, B, cols, false, to, cols);
    mem_free(half);
}

static double *identity(int64_t n) {
    double *I = room(n * n, sizeof *I);
    for (int64_t i = 0; i < n; i++) I[i * n + i] = 1;
    return I;
}

/* [n / d] copies or parts of R2-like blocks on the diagonal: block h is blocks[h / share]. */
static double *diagonal(double *const *blocks, int64_t n, int64_t d, int64_t share) {
    double *out = room(n * n, sizeof *out);
    for (int64_t h = 0; h < n / d; h++)
        for (int64_t i = 0; i < d; i++)
            memcpy(out + (h * d + i) * n + h * d, blocks[h / share] + i * d,
                   (size_t)d * sizeof *out);
    return out;
}

/* What stands on the outputs (A) and inputs (B) of a linear; blocks: one for each KV head. */
static double *side_of(const setting *s, int k, bool outputs, const double *whole,
                       double *const *blocks) {
    const llama_config *c = &s->m.cfg;
    const int64_t n = c->hidden, d = c->head_dim;
    const bool r1 = outputs ? k == O || k == DOWN : k != O && k != DOWN;
    if (r1) {
        double *out = room(n * n, sizeof *out);
        memcpy(out, whole, (size_t)(n * n) * sizeof *out);
        return out;
    }
    if (k == V) return diagonal(blocks, c->kv_heads * d, d, 1);
    if (k == O) return diagonal(blocks, c->heads * d, d, c->heads / c->kv_heads);
    return identity(outputs && k < O ? linear_at((llama_stage *)&s->m.stage, 0, k)->rows
                                     : c->intermediate);
}

static void weights_lie_on_the_grid(void **state) {
    (void)state;
    for (int per_head = 0; per_head < 2; per_head++) {
        setting s;
        open_setting(&s, per_head, 16, 2, false);
        double *R4 = room(80 * 80, sizeof *R4);
        assert_ok(rotation_to_dense(s.r4, R4));
        for (int64_t layer = 0; layer < 2; layer++)
            for (int k = 0; k < PARTS; k++) {
                double *blocks[2] = {(double *)r2_of(&s, layer, 0), (double *)r2_of(&s, layer, 1)};
                const wmat *used = linear_at((llama_stage *)weight_site_stage(s.w), layer, k);
                const int64_t rows = used->rows, cols = used->cols;
                double *A = side_of(&s, k, true, s.R1, blocks), *W = plain_of(&s, layer, k),
                       *B = side_of(&s, k, false, s.R1, blocks);
                if (k == DOWN) memcpy(B, R4, (size_t)(cols * cols) * sizeof *B);
                double *want = room(rows * cols, sizeof *want),
                       *got = room(rows * cols, sizeof *got);
                sandwich(A, true, W, B, false, rows, cols, want);
                for (int64_t i = 0; i < rows * cols; i++) W[i] = (double)((float *)used->data)[i];
                sandwich(A, true, W, B, false, rows, cols, got);
                for (int64_t i = 0; i < rows; i++) {
                    double most = 0;
                    for (int64_t j = 0; j < cols; j++) most = fmax(most, fabs(want[i * cols + j]));
                    for (int64_t j = 0; j < cols; j++) {
                        const double v = got[i * cols + j] * 7 / most;
                        assert_true(fabs(v - rint(v)) <= 1e-4);
                        assert_true(fabs(v - want[i * cols + j] * 7 / most) <= 0.5 + 1e-4);
                    }
                }
                mem_free(A);
                mem_free(B);
                mem_free(W);
                mem_free(want);
                mem_free(got);
            }
        mem_free(R4);
        close_setting(&s);
    }
}

/* exp(t S) by its series; |t S| is below 1. */
static double *turn_by(const double *S, int64_t n, double t) {
    double *out = identity(n), *term = identity(n), *next = room(n * n, sizeof *next);
    for (int k = 1; k < 14; k++) {
        gemm_f64(false, false, n, n, n, term, n, S, n, false, next, n);
        for (int64_t i = 0; i < n * n; i++) out[i] += term[i] = next[i] * t / k;
    }
    mem_free(term);
    mem_free(next);
    return out;
}

static double *random_skew(int64_t n) {
    double *a = random_f64(n * n, 0.5 / sqrt((double)n)), *S = room(n * n, sizeof *S);
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) S[i * n + j] = a[i * n + j] - a[j * n + i];
    mem_free(a);
    return S;
}

typedef struct line {
    setting *s;
    llama_stage moved; /* matrices of its own */
    double *D[2][PARTS], *W[2][PARTS];
    double *S1, *S2[4]; /* directions of R1 and each R2 */
    const double *x, *c;
    uint32_t parts; /* bit k: linears that move */
} line;

static const double *s2_of(const line *l, int64_t layer, int64_t kv) {
    return l->S2[l->s->sites.r2_per_head ? layer * l->s->m.cfg.kv_heads + kv : layer];
}

/* Loss <c, output> where the rotations have turned by t and the roundings went with them. */
static double loss_at(line *l, double t) {
    setting *s = l->s;
    const llama_config *c = &s->m.cfg;
    const int64_t n = T * c->hidden;
    double *C1 = turn_by(l->S1, c->hidden, t), *y = room(n, sizeof *y);
    for (int64_t layer = 0; layer < c->layers; layer++) {
        double *C2[2];
        for (int64_t h = 0; h < 2; h++) C2[h] = turn_by(s2_of(l, layer, h), c->head_dim, t);
        for (int k = 0; k < PARTS; k++) {
            wmat *to = linear_at(&l->moved, layer, k);
            const int64_t rows = to->rows, cols = to->cols;
            double *A = side_of(s, k, true, C1, C2), *B = side_of(s, k, false, C1, C2),
                   *D = room(rows * cols, sizeof *D);
            if (l->parts & 1u << k)
                sandwich(A, false, l->D[layer][k], B, true, rows, cols, D);
            else
                memcpy(D, l->D[layer][k], (size_t)(rows * cols) * sizeof *D);
            for (int64_t i = 0; i < rows * cols; i++)
                ((float *)to->data)[i] = (float)(l->W[layer][k][i] + D[i]);
            mem_free(A);
            mem_free(B);
            mem_free(D);
        }
        mem_free(C2[0]);
        mem_free(C2[1]);
    }
    memcpy(y, l->x, (size_t)n * sizeof *y);
    assert_ok(llama_layers_keep(s->layers, &l->moved, &s->sites, T, y, s->work));
    const double loss = dot_f64(y, l->c, n);
    mem_free(C1);
    mem_free(y);
    return loss;
}

static void open_line(line *l, setting *s, uint32_t parts) {
    const llama_stage *used = weight_site_stage(s->w);
    *l = (line){.s = s, .moved = *used, .parts = parts};
    l->moved.layers = room(s->m.cfg.layers, sizeof(llama_layer));
    for (int64_t layer = 0; layer < s->m.cfg.layers; layer++) {
        l->moved.layers[layer] = used->layers[layer];
        for (int k = 0; k < PARTS; k++) {
            wmat *to = linear_at(&l->moved, layer, k);
            const float *from = to->data;
            const int64_t all = to->rows * to->cols;
            l->W[layer][k] = plain_of(s, layer, k);
            l->D[layer][k] = room(all, sizeof(double));
            for (int64_t i = 0; i < all; i++)
                l->D[layer][k][i] = (double)from[i] - l->W[layer][k][i];
            assert_ok(wmat_init(to, WMAT_F32, to->rows, to->cols, "test"));
        }
    }
    l->S1 = random_skew(s->m.cfg.hidden);
    for (int i = 0; i < 4; i++) l->S2[i] = random_skew(s->m.cfg.head_dim);
    l->x = random_f64(T * s->m.cfg.hidden, 1);
    l->c = random_f64(T * s->m.cfg.hidden, 1);
}

static void close_line(line *l) {
    for (int64_t layer = 0; layer < l->s->m.cfg.layers; layer++)
        for (int k = 0; k < PARTS; k++) {
            wmat_clear(linear_at(&l->moved, layer, k));
            mem_free(l->W[layer][k]);
            mem_free(l->D[layer][k]);
        }
    mem_free(l->moved.layers);
    mem_free(l->S1);
    for (int i = 0; i < 4; i++) mem_free(l->S2[i]);
    mem_free((double *)l->x);
    mem_free((double *)l->c);
}

/* <dL/dR, S R> summed over R1 and the R2 of all layers, by the program; only places of `places`. */
static double slope_of(line *l, uint32_t places) {
    setting *s = l->s;
    const llama_config *c = &s->m.cfg;
    const int64_t n = c->hidden, d = c->head_dim, heads = s->sites.r2_per_head ? c->kv_heads : 1;
    const llama_stage *used = weight_site_stage(s->w);
    llama_tap tap = weight_site_tap(s->w, &s->sites);
    double *G1 = room(n * n, sizeof *G1), *SR = room(n * n, sizeof *SR), sum = 0,
           *x = room(T * n, sizeof *x), *g = room(T * n, sizeof *g);
    tap.places &= places;
    memcpy(x, l->x, (size_t)(T * n) * sizeof *x);
    memcpy(g, l->c, (size_t)(T * n) * sizeof *g);
    llama_stash *stash[2];
    for (int64_t i = 0; i < c->layers; i++) {
        assert_ok(llama_stash_create(c, &s->sites, &s->shape, &stash[i]));
        assert_ok(llama_block_forward_keep(used, i, &s->sites, 0, T, x, stash[i], s->work));
    }
    for (int64_t i = c->layers - 1; i >= 0; i--) {
        double G2[2 * 8 * 8] = {0};
        const rotation_grads grads = {.R1 = G1, .R2 = G2};
        assert_ok(llama_block_backward(used, i, &s->sites, 0, T, g, stash[i], NULL, &tap, s->work));
        weight_site_add(s->w, i, &grads);
        for (int64_t h = 0; h < heads; h++) {
            gemm_f64(false, false, d, d, d, s2_of(l, i, h), d, r2_of(s, i, h), d, false, SR, d);
            sum += dot_f64(G2 + h * d * d, SR, d * d);
        }
        llama_stash_destroy(&stash[i]);
    }
    gemm_f64(false, false, n, n, n, l->S1, n, s->R1, n, false, SR, n);
    sum += dot_f64(G1, SR, n * n);
    mem_free(G1);
    mem_free(SR);
    mem_free(x);
    mem_free(g);
    return sum;
}

static double difference(line *l) {
    const double h = 0x1p-5;
    return (8 * (loss_at(l, h) - loss_at(l, -h)) - (loss_at(l, 2 * h) - loss_at(l, -2 * h))) /
           (12 * h);
}

/* D and the sums are fp32: 2^-24 of W in D, which is a tenth of it; over two layers. */
static void near(double got, double want) {
    if (fabs(got - want) > 2e-4 * fabs(want)) print_error("%.9g where %.9g is wanted\n", got, want);
    assert_true(fabs(got - want) <= 2e-4 * fabs(want));
}

static void gradient_is_that_of_the_loss(void **state) {
    (void)state;
    for (int per_head = 0; per_head < 2; per_head++) {
        setting s;
        line l;
        open_setting(&s, per_head, 16, 2, false);
        open_line(&l, &s, (1u << PARTS) - 1);
        near(slope_of(&l, UINT32_MAX), difference(&l));
        /* R1 alone, each R2 alone */
        for (int i = 0; i < 4; i++) memset(l.S2[i], 0, 64 * sizeof(double));
        near(slope_of(&l, UINT32_MAX), difference(&l));
        memset(l.S1, 0, 48 * 48 * sizeof(double));
        l.S2[1][1] = 0.7; /* entries (0, 1) and (1, 0) */
        l.S2[1][8] = -0.7;
        near(slope_of(&l, UINT32_MAX), difference(&l));
        close_line(&l);
        close_setting(&s);
    }
}

/* Where activations are quantized too, inputs of products are x^: seen at the last down_proj and,
 * where nothing comes after it, at o_proj: there the loss is linear in the weights. */
static void inputs_are_the_quantized_ones(void **state) {
    (void)state;
    for (int part = O; part <= DOWN; part += DOWN - O) {
        const bool o = part == O;
        setting s;
        line l;
        open_setting(&s, true, 4, 1, o);
        open_line(&l, &s, 1u << part);
        near(slope_of(&l, o ? 1u << TAP_O_OUT | 1u << TAP_O_IN
                            : 1u << TAP_DOWN_OUT | 1u << TAP_DOWN_IN),
             difference(&l));
        close_line(&l);
        close_setting(&s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_lie_on_the_grid),
        cmocka_unit_test(gradient_is_that_of_the_loss),
        cmocka_unit_test(inputs_are_the_quantized_ones),
    };
    gemm_init(1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
