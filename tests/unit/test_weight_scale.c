/* Scales about weights in the loop: their gradient, through the range, against differences of the
 * loss with the rounding held in steps of the range, which goes with U; and that of the rotations
 * under them. */
#include "tests/unit/small_weights.h"

/* What a row, a column before the rotation, or one after it is multiplied by at s exp(t v). */
typedef struct scale_line {
    line l;
    double *v[2][SCALE_KINDS]; /* directions, by layer */
    double *U[2][PARTS], *E[2][PARTS];
} scale_line;

static double factor(const scale_line *l, int64_t layer, int kind, int64_t at, int64_t share,
                     double t) {
    const setting *s = l->l.s;
    const int64_t d = kind == SCALE_VO || kind == SCALE_QK ? s->m.cfg.head_dim : 1000;
    const int64_t j = at / d / share * d + at % d;
    return scale_set_get(s->scales, (scale_kind)kind, layer)->s[j] * exp(t * l->v[layer][kind][j]);
}

static double factor_of_row(const scale_line *l, int64_t layer, int k, int64_t r, double t) {
    if (k == Q) return factor(l, layer, SCALE_QK, r, 3, t);
    if (k == K) return 1 / factor(l, layer, SCALE_QK, r, 1, t);
    if (k == V) return 1 / factor(l, layer, SCALE_VO, r, 1, t);
    return k == UP ? 1 / factor(l, layer, SCALE_UD, r, 1, t) : 1;
}

static double factor_before(const scale_line *l, int64_t layer, int k, int64_t j, double t) {
    if (k == O) return factor(l, layer, SCALE_VO, j, 3, t);
    return k == DOWN ? factor(l, layer, SCALE_UD, j, 1, t) : 1;
}

static double factor_after(const scale_line *l, int64_t layer, int k, int64_t j, double t) {
    if (k == O || k == DOWN) return 1;
    return factor(l, layer, k < O ? SCALE_ATTN : SCALE_MLP, j, 1, t);
}

/* m to the basis in which weights are rounded, with the scales at t; or from there. */
static double *moved_basis(const scale_line *l, int64_t layer, int k, const double *m, double t,
                           bool back) {
    setting *s = l->l.s;
    double *blocks[2] = {(double *)r2_of(s, layer, 0), (double *)r2_of(s, layer, 1)};
    const wmat *w = linear_at(&s->m.stage, layer, k);
    const int64_t rows = w->rows, cols = w->cols, all = rows * cols;
    double *A = side_of(s, k, true, s->R1, blocks), *B = side_of(s, k, false, s->R1, blocks),
           *from = room(all, sizeof *from), *to = room(all, sizeof *to);
    if (k == DOWN) assert_ok(rotation_to_dense(s->r4, B));
    for (int64_t i = 0; i < all; i++)
        from[i] = m[i] * (back ? 1 / factor_after(l, layer, k, i % cols, t)
                               : factor_of_row(l, layer, k, i / cols, t) *
                                     factor_before(l, layer, k, i % cols, t));
    sandwich(A, gemm_op_of(!back), from, B, gemm_op_of(back), rows, cols, to);
    for (int64_t i = 0; i < all; i++)
        to[i] *= back ? 1 / (factor_of_row(l, layer, k, i / cols, t) *
                             factor_before(l, layer, k, i % cols, t))
                      : factor_after(l, layer, k, i % cols, t);
    mem_free(A);
    mem_free(B);
    mem_free(from);
    return to;
}

/* The range of u [n] by the ends of at [n], so that it is smooth along a line that begins there. */
static double range_of(const wquant *how, const double *u, const double *at, int64_t n) {
    int64_t hi = 0, lo = 0;
    for (int64_t j = 0; j < n; j++) {
        if (at[j] > at[hi]) hi = j;
        if (at[j] < at[lo]) lo = j;
    }
    if (how->symmetric) return at[hi] >= -at[lo] ? u[hi] : -u[lo];
    return (at[hi] > 0 ? u[hi] : 0) - (at[lo] < 0 ? u[lo] : 0);
}

static double loss_of_scales(scale_line *l, double t) {
    setting *s = l->l.s;
    const int64_t n = T * s->m.cfg.hidden;
    double *y = room(n, sizeof *y);
    for (int64_t layer = 0; layer < s->m.cfg.layers; layer++)
        for (int k = 0; k < PARTS; k++) {
            wmat *to = linear_at(&l->l.moved, layer, k);
            const int64_t all = to->rows * to->cols, group = s->how.group ? s->how.group : to->cols;
            double *U = moved_basis(l, layer, k, l->l.W[layer][k], t, false),
                   *E = room(all, sizeof *E);
            for (int64_t i = 0; i < all; i++) {
                const int64_t g = i / group * group;
                const double *at = l->U[layer][k] + g;
                E[i] = l->E[layer][k][i] * range_of(&s->how, U + g, at, group) /
                       range_of(&s->how, at, at, group);
            }
            double *D = moved_basis(l, layer, k, E, t, true);
            for (int64_t i = 0; i < all; i++)
                ((float *)to->data)[i] = (float)(l->l.W[layer][k][i] + D[i]);
            mem_free(U);
            mem_free(E);
            mem_free(D);
        }
    memcpy(y, l->l.x, (size_t)n * sizeof *y);
    assert_ok(llama_layers_save(s->layers, &l->l.moved, &s->sites, T, y, s->work));
    const double loss = dot_f64(y, l->l.c, n);
    mem_free(y);
    return loss;
}

static void open_scale_line(scale_line *l, setting *s) {
    *l = (scale_line){.l = {.s = s}};
    open_line(&l->l, s, 0);
    for (int64_t layer = 0; layer < 2; layer++) {
        for (int k = 0; k < SCALE_KINDS; k++)
            l->v[layer][k] = random_f64(scale_set_length(s->scales, (scale_kind)k), 0.5);
        for (int k = 0; k < PARTS; k++) {
            l->U[layer][k] = moved_basis(l, layer, k, l->l.W[layer][k], 0, false);
            l->E[layer][k] = moved_basis(l, layer, k, l->l.D[layer][k], 0, false);
        }
    }
}

static void close_scale_line(scale_line *l) {
    for (int64_t layer = 0; layer < 2; layer++) {
        for (int k = 0; k < SCALE_KINDS; k++) mem_free(l->v[layer][k]);
        for (int k = 0; k < PARTS; k++) {
            mem_free(l->U[layer][k]);
            mem_free(l->E[layer][k]);
        }
    }
    close_line(&l->l);
}

/* By kind: the program's <dL / d log s, v> over both layers. */
static void slopes_of_scales(scale_line *l, double sum[SCALE_KINDS]) {
    setting *s = l->l.s;
    const llama_config *c = &s->m.cfg;
    const int64_t n = T * c->hidden;
    const llama_stage *used = weight_site_stage(s->w);
    const llama_hook hook = weight_site_hook(s->w, &s->sites);
    double *x = room(n, sizeof *x), *g = room(n, sizeof *g);
    memcpy(x, l->l.x, (size_t)n * sizeof *x);
    memcpy(g, l->l.c, (size_t)n * sizeof *g);
    llama_saved *saved[2];
    for (int64_t i = 0; i < 2; i++) {
        assert_ok(llama_saved_create(c, &s->sites, &s->shape, &saved[i]));
        assert_ok(llama_block_forward_save(used, i, &s->sites, 0, T, x, saved[i], s->work));
    }
    for (int64_t i = 1; i >= 0; i--) {
        rotation_grads grads = {.R1 = NULL};
        for (int k = 0; k < SCALE_KINDS; k++)
            grads.scales[k] = room(scale_set_length(s->scales, (scale_kind)k), sizeof(double));
        assert_ok(
            llama_block_backward(used, i, &s->sites, 0, T, g, saved[i], &grads, &hook, s->work));
        weight_site_add(s->w, i, &grads);
        for (int k = 0; k < SCALE_KINDS; k++) {
            sum[k] +=
                dot_f64(grads.scales[k], l->v[i][k], scale_set_length(s->scales, (scale_kind)k));
            mem_free(grads.scales[k]);
        }
        llama_saved_destroy(&saved[i]);
    }
    mem_free(x);
    mem_free(g);
}

/* The loss where R1 and R2 turn by t under scales that stay, and E stays. */
static double loss_of_turn(scale_line *l, double t) {
    setting *s = l->l.s;
    const llama_config *c = &s->m.cfg;
    const int64_t n = c->hidden, d = c->head_dim;
    double *R1 = s->R1, *R2[4];
    memcpy(R2, s->R2, sizeof R2);
    double *C = turn_by(l->l.S1, n, t);
    s->R1 = times(false, false, n, n, n, C, R1);
    mem_free(C);
    for (int i = 0; i < 4; i++) {
        C = turn_by(l->l.S2[i], d, t);
        s->R2[i] = times(false, false, d, d, d, C, R2[i]);
        mem_free(C);
    }
    for (int64_t layer = 0; layer < c->layers; layer++)
        for (int k = 0; k < PARTS; k++) {
            wmat *to = linear_at(&l->l.moved, layer, k);
            double *D = moved_basis(l, layer, k, l->E[layer][k], 0, true);
            for (int64_t i = 0; i < to->rows * to->cols; i++)
                ((float *)to->data)[i] = (float)(l->l.W[layer][k][i] + D[i]);
            mem_free(D);
        }
    mem_free(s->R1);
    s->R1 = R1;
    for (int i = 0; i < 4; i++) mem_free(s->R2[i]);
    memcpy(s->R2, R2, sizeof R2);
    double *y = room(T * n, sizeof *y);
    memcpy(y, l->l.x, (size_t)(T * n) * sizeof *y);
    assert_ok(llama_layers_save(s->layers, &l->l.moved, &s->sites, T, y, s->work));
    const double loss = dot_f64(y, l->l.c, T * n);
    mem_free(y);
    return loss;
}

static void gradient_of_rotations_under_scales(void **state) {
    (void)state;
    const double h = 0x1p-5;
    for (int per_head = 0; per_head < 2; per_head++) {
        setting s;
        scale_line l;
        open_setting_of(&s, per_head, 16, 2, false, &plain_how);
        open_scale_line(&l, &s);
        for (int i = 0; i < 2; i++) {
            near(slope_of(&l.l, UINT32_MAX),
                 (8 * (loss_of_turn(&l, h) - loss_of_turn(&l, -h)) -
                  (loss_of_turn(&l, 2 * h) - loss_of_turn(&l, -2 * h))) /
                     (12 * h));
            memset(l.l.S1, 0, 48 * 48 * sizeof(double)); /* then R2 alone */
        }
        close_scale_line(&l);
        close_setting(&s);
    }
}

static void gradient_of_scales_is_that_of_the_loss(void **state) {
    (void)state;
    static const wquant ways[] = {{.bits = 4, .symmetric = true, .scale_type = SCALE_F32},
                                  {.bits = 3, .symmetric = false, .scale_type = SCALE_F32},
                                  {.bits = 4, .symmetric = true, .group = 16}};
    const double h = 0x1p-5;
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        setting s;
        scale_line l;
        double got[SCALE_KINDS] = {0};
        open_setting_of(&s, i % 2 == 0, 16, 2, false, &ways[i]);
        open_scale_line(&l, &s);
        slopes_of_scales(&l, got);
        for (int k = 0; k < SCALE_KINDS; k++) {
            double *v[2][SCALE_KINDS];
            memcpy(v, l.v, sizeof v);
            for (int other = 0; other < SCALE_KINDS; other++) /* this kind alone */
                for (int layer = 0; other != k && layer < 2; layer++)
                    l.v[layer][other] = room(scale_set_length(s.scales, (scale_kind)other), 8);
            const double want = (8 * (loss_of_scales(&l, h) - loss_of_scales(&l, -h)) -
                                 (loss_of_scales(&l, 2 * h) - loss_of_scales(&l, -2 * h))) /
                                (12 * h);
            print_message("way %d, kind %d: %.9g, differences %.9g\n", (int)i, k, got[k], want);
            if (k == SCALE_QK) /* rows that nothing mixes: each has steps of its own */
                assert_true(got[k] == 0 && fabs(want) <= 1e-4);
            else
                near(got[k], want);
            for (int other = 0; other < SCALE_KINDS; other++)
                for (int layer = 0; other != k && layer < 2; layer++) mem_free(l.v[layer][other]);
            memcpy(l.v, v, sizeof v);
        }
        close_scale_line(&l);
        close_setting(&s);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gradient_of_scales_is_that_of_the_loss),
        cmocka_unit_test(gradient_of_rotations_under_scales),
    };
    gemm_init(1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
