/* The activation quantizer in learning form, in bf16. Two ways of computing a value need not round
 * to the same bf16 number there, so it is not compared with a reference computation: its output,
 * the error it saved and the ends of its range must agree with each other, and its gradients with
 * what it saved, within the precision of bf16. */
#include "base/gemm.h"
#include "model/site_backward.h"
#include "rotations/rotation.h"
#include "tests/unit/small_sites.h"

static double widest_of(const double *v, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs(v[i]));
    return most;
}

static void check_near(const char *what, const double *got, const double *want, int64_t n,
                       double tolerance) {
    const double size = widest_of(want, n);
    double off = 0;
    for (int64_t i = 0; i < n; i++) off = fmax(off, fabs(got[i] - want[i]));
    print_message("bf16, %s off by %.2g\n", what, off / size);
    assert_true(size > 0 && off <= tolerance * size);
}

static double *wide_copy(const void *from, int64_t n, bool half) {
    double *to = room(n, sizeof *to);
    for (int64_t i = 0; i < n; i++)
        to[i] = half ? (double)half_from_bf16(((const bf16 *)from)[i])
                     : (double)((const float *)from)[i];
    return to;
}

static void *half_copy(const double *from, int64_t n) {
    bf16 *to = room(n, sizeof *to);
    for (int64_t i = 0; i < n; i++) to[i] = half_to_bf16((float)from[i]);
    return to;
}

static void check_half(bool through, bool with_factors, bool scaled) {
    const llama_config c = some_config();
    enum { N = HIDDEN, COUNT = TOKENS * HIDDEN };
    double *R = random_orthogonal(N), *x = random_f64(COUNT, 1), *g = random_f64(COUNT, 1);
    double R_t[N * N];
    float R_t32[N * N], x32[COUNT], g32[COUNT];
    for (int i = 0; i < N * N; i++) R_t[i] = R[i % N * N + i / N];
    for (int i = 0; i < N * N; i++) R_t32[i] = (float)R_t[i];
    rotation *r1 = dense(R, N);
    llama_sites sites = llama_sites_none();
    sites.act.bits = 4;
    sites.R1 = r1;
    scale_set *scales = random_scales(&c, 0.5);
    if (scaled) sites.scales = scales;
    const site s = sites_input(&sites, &c, 0, NORM_ATTN);
    double *S = scales_of_row(&s, false);
    bf16 *R_half = half_copy(R, N * N), *x_half = half_copy(x, COUNT);
    for (int i = 0; i < COUNT; i++) {
        x[i] = (double)half_from_bf16(x_half[i]);
        x32[i] = (float)x[i];
        g32[i] = (float)g[i];
    }
    site_saved saved = {.error = room(COUNT, sizeof(bf16))};
    if (through) saved.moved = room(COUNT, sizeof(bf16));
    if (through) saved.ends = room(TOKENS, sizeof(site_ends_f32));
    const site_work work = {.compute = COMPUTE_BF16,
                            .panel = room(COUNT, sizeof(float)),
                            .panel_room = COUNT,
                            .half = room(COUNT, sizeof(bf16)),
                            .slopes = room(2 * TOKENS, sizeof(float)),
                            .threads = room(gemm_threads() * 4096, 1),
                            .thread_bytes = 4096,
                            .R_half = R_half,
                            .R_t = R_t32};
    site_save_f32(&s, x32, TOKENS, with_factors ? x_half : NULL, &saved, &work);
    float *dR32 = room(N * N, sizeof *dR32);
    site_backward_f32(&s, g32, TOKENS, x_half, &saved, dR32, &work);

    double *error = wide_copy(saved.error, COUNT, true), *after = wide_copy(x32, COUNT, false);
    double *u = times(false, false, TOKENS, N, N, x, R);
    double *moved = times(false, true, TOKENS, N, N, error, R);
    for (int i = 0; i < COUNT; i++) after[i] -= x[i];
    check_near("x^ - x against e R^T", after, moved, COUNT, 0.02);
    double *du = room(COUNT, sizeof *du);
    for (int t = 0; t < TOKENS; t++) {
        double *row = u + t * N, e[N];
        for (int j = 0; j < N; j++) {
            row[j] /= S[j];
            e[j] = error[t * N + j] / S[j];
        }
        const double step = step_of(&s.quant, true, row, N);
        assert_true(widest_of(e, N) <= 0.5 * step * 1.05);
        assert_true(widest_of(e, N) >= 0.3 * step);
        if (!through) continue;
        /* the ends in bf16 may be others, but not much smaller */
        const site_ends_f32 *ends = (const site_ends_f32 *)saved.ends + t;
        const int hi = ends->hi, lo = ends->lo;
        for (int j = 0; j < N; j++)
            assert_true(row[hi] >= row[j] - 0.1 * step && row[lo] <= row[j] + 0.1 * step);
        const double slope = dot_f64(g + t * N, after + t * N, N) / (15 * step);
        du[t * N + hi] = slope / S[hi];
        du[t * N + lo] = -slope / S[lo];
    }
    double *want = times(true, false, N, N, TOKENS, g, error);
    double *range = times(true, false, N, N, TOKENS, x, du), *got = wide_copy(dR32, N * N, false);
    for (int i = 0; i < N * N; i++) want[i] += range[i];
    check_near(through ? "dR through" : "dR", got, want, N * N, 0.02);
    double *want_g = times(false, true, TOKENS, N, N, du, R), *got_g = wide_copy(g32, COUNT, false);
    for (int i = 0; i < COUNT; i++) want_g[i] += g[i];
    check_near("dx", got_g, want_g, COUNT, through ? 0.02 : 1e-6);
    void *all[] = {R,           x,          g,          R_half,    x_half,       saved.error,
                   saved.moved, saved.ends, work.panel, work.half, work.slopes,  error,
                   after,       u,          moved,      du,        want,         range,
                   got,         want_g,     got_g,      dR32,      work.threads, S};
    scale_set_destroy(&scales);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
    rotation_destroy(&r1);
}

static void test_half(void **state) {
    (void)state;
    for (int k = 0; k < 8; k++) check_half(k % 2, k / 2 % 2, k / 4);
}

int main(void) {
    gemm_init(1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_half)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
