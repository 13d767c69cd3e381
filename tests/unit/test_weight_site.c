/* Weights in the loop: W^ lies on the grid of the rotated basis, and the gradient of R1 and R2
 * through it against differences of the loss with the rounding held, D(t) = C(t) D C(t)^T. */
#include "tests/unit/small_weights.h"

static void weights_lie_on_the_grid(void **state) {
    (void)state;
    for (int way = 0; way < 4; way++) {
        const bool per_head = way & 1;
        setting s;
        open_setting_as(&s, per_head, 16, 2, false, NULL, way < 2);
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
                sandwich(A, GEMM_T, W, B, GEMM_N, rows, cols, want);
                for (int64_t i = 0; i < rows * cols; i++) W[i] = (double)((float *)used->data)[i];
                sandwich(A, GEMM_T, W, B, GEMM_N, rows, cols, got);
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

/* Loss <c, output> where the rotations have moved on by t and the roundings went with them. */
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
                sandwich(A, GEMM_N, l->D[layer][k], B, GEMM_T, rows, cols, D);
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
    assert_ok(llama_layers_save(s->layers, &l->moved, &s->sites, T, y, s->work));
    const double loss = dot_f64(y, l->c, n);
    mem_free(C1);
    mem_free(y);
    return loss;
}

static double difference(line *l) {
    const double h = 0x1p-5;
    return (8 * (loss_at(l, h) - loss_at(l, -h)) - (loss_at(l, 2 * h) - loss_at(l, -2 * h))) /
           (12 * h);
}

static void gradient_is_that_of_the_loss(void **state) {
    (void)state;
    for (int way = 0; way < 4; way++) {
        setting s;
        line l;
        open_setting_as(&s, way & 1, 16, 2, false, NULL, way < 2); /* without R1 behind gains */
        open_line(&l, &s, (1u << PARTS) - 1);
        near(slope_of(&l, UINT32_MAX), difference(&l));
        /* R1 alone, each R2 alone */
        for (int i = 0; i < (s.R1 ? 4 : 1); i++) memset(l.S2[i], 0, 64 * sizeof(double));
        near(slope_of(&l, UINT32_MAX), difference(&l));
        if (!s.R1) { /* one entry alone has a slope among the roundings of fp32 */
            close_line(&l);
            close_setting(&s);
            continue;
        }
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
    for (int way = 0; way < 4; way++) {
        const bool o = way & 1;
        const int part = o ? O : DOWN;
        setting s;
        line l;
        open_setting_as(&s, true, 4, 1, o, NULL, way < 2);
        open_line(&l, &s, 1u << part);
        near(slope_of(&l, o ? 1u << HOOK_O_OUT | 1u << HOOK_O_IN
                            : 1u << HOOK_DOWN_OUT | 1u << HOOK_DOWN_IN),
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
