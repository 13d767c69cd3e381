/* Rows of weights as samples of range: what they cost and its gradient by R1 and R2 against a plain
 * double version that rotates whole matrices; draws that mean the whole; exact sums. Moments of
 * gradients and of weights against plain sums. */
#include "base/gemm.h"
#include "pipeline/learn/weight_mix.h"
#include "pipeline/learn/weight_start.h"
#include "tests/unit/small_model.h"

#include <omp.h>
#include <stdlib.h>

enum { N = 32, HEADS = 4, KV = 2, D = 8, MID = 48, LAYERS = 2, PARTS = 7 };

static llama_config cfg = {.hidden = N,
                           .intermediate = MID,
                           .layers = LAYERS,
                           .heads = HEADS,
                           .kv_heads = KV,
                           .head_dim = D,
                           .vocab = 16};
static llama_stage stage;

static wmat *matrix(int64_t layer, int part) {
    return llama_layer_linear(&stage.layers[layer], part);
}

static const float *gain_of(int64_t layer, int part) {
    const llama_layer *l = &stage.layers[layer];
    return part < 3 ? l->attn_norm : part == 4 || part == 5 ? l->mlp_norm : NULL;
}

static double value(int64_t layer, int part, int64_t i, int64_t j) {
    const wmat *w = matrix(layer, part);
    const float *gain = gain_of(layer, part);
    /* the product of a row with its gains is taken in fp32 */
    const float v = half_from_bf16(((const bf16 *)w->data)[i * w->cols + j]);
    return (double)(gain ? v * gain[j] : v);
}

/* Rows of unlike size, some entries large. */
static void fill_bf16(wmat *w, int64_t rows, int64_t cols) {
    double *v = random_f64(rows * cols, 1);
    assert_ok(wmat_init(w, WMAT_BF16, rows, cols, "test"));
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < cols; j++) {
            const double large = (i * 7 + j) % 41 == 0 ? 5 : 1;
            ((bf16 *)w->data)[i * cols + j] =
                half_to_bf16((float)(v[i * cols + j] * large * (0.2 + 0.1 * (double)(i % 9))));
        }
    mem_free(v);
}

static int make_stage(void **state) {
    (void)state;
    const int64_t rows[PARTS] = {HEADS * D, KV * D, KV * D, N, MID, MID, N},
                  cols[PARTS] = {N, N, N, HEADS * D, N, N, MID};
    assert_ok(llama_stage_init(&stage, &cfg, 0, LAYERS));
    for (int64_t l = 0; l < LAYERS; l++) {
        stage.layers[l].attn_norm = random_f32(N, 0.3, 1);
        stage.layers[l].mlp_norm = random_f32(N, 0.3, 1);
        for (int p = 0; p < PARTS; p++) fill_bf16(matrix(l, p), rows[p], cols[p]);
    }
    return 0;
}

static int clear_stage(void **state) {
    (void)state;
    llama_stage_clear(&stage);
    return 0;
}

/* ---- moments that are wanted: shown as one token ---- */

static const hook_place places[PARTS] = {HOOK_QUERY_OUT, HOOK_KEY_OUT, HOOK_VALUE,   HOOK_O_OUT,
                                         HOOK_GATE_OUT,  HOOK_UP_OUT,  HOOK_DOWN_OUT};

static void show_length(llama_hook *hook, int64_t layer, hook_place out, hook_place in,
                        int64_t width, double moment) {
    float *g = room(N, sizeof *g), *x = room(width, sizeof *x);
    g[3] = (float)sqrt(moment);
    x[1] = (float)sqrt((double)N);
    assert_ok(hook->take(hook->ctx, layer, out, 0, 1, N, NULL, g));
    assert_ok(hook->take(hook->ctx, layer, in, 0, 1, width, x, x));
    mem_free(g);
    mem_free(x);
}

/* m[part][row] for each layer. */
typedef double wanted[LAYERS][PARTS][MID];

static weight_moments *moments_of(wanted m) {
    weight_moments *out;
    assert_ok(weight_moments_create(&cfg, 0, LAYERS, 1, &out));
    llama_hook hook = weight_moments_hook(out);
    for (int64_t l = 0; l < LAYERS; l++) {
        show_length(&hook, l, HOOK_DOWN_OUT, HOOK_DOWN_IN, MID, m[l][6][0]);
        show_length(&hook, l, HOOK_O_OUT, HOOK_O_IN, HEADS * D, m[l][3][0]);
        for (int p = 0; p < PARTS; p++) {
            float g[MID];
            if (p == 3 || p == 6) continue;
            for (int64_t i = 0; i < matrix(l, p)->rows; i++) g[i] = (float)sqrt(m[l][p][i] / N);
            assert_ok(hook.take(hook.ctx, l, places[p], 0, 1, matrix(l, p)->rows, NULL, g));
        }
    }
    return out;
}

static double energy(int64_t layer, int part, int64_t i) {
    double sum = 0;
    for (int64_t j = 0; j < matrix(layer, part)->cols; j++)
        sum += value(layer, part, i, j) * value(layer, part, i, j);
    return sum;
}

/* ---- the plain way ---- */

typedef struct setting {
    wquant how;
    bool r1, r4;
    int64_t r2_heads;
} setting;

static const setting settings[] = {
    {{4, 0, true, false, SCALE_F32}, true, false, 1},
    {{4, 8, false, false, SCALE_F32}, true, false, KV},
    {{4, 0, true, false, SCALE_F32}, true, true, 1},
    {{4, 16, true, false, SCALE_F32}, true, true, 0},
    {{4, 0, false, false, SCALE_F32}, false, false, 1},
};
enum { SETTINGS = sizeof settings / sizeof settings[0] };

typedef struct rotations {
    double R1[N * N], R2[LAYERS * KV * D * D], R4[MID * MID];
} rotations;

static const double *r2_of(const setting *s, const rotations *r, int64_t layer, int64_t kv) {
    return r->R2 + (layer * s->r2_heads + (s->r2_heads > 1 ? kv : 0)) * D * D;
}

/* c [m, n] = op(a) b, all double. */
static void times(bool trans, int64_t m, int64_t n, int64_t k, const double *a, int64_t lda,
                  const double *b, int64_t ldb, double *c, int64_t ldc) {
    for (int64_t i = 0; i < m; i++)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t e = 0; e < k; e++)
                sum += (trans ? a[e * lda + i] : a[i * lda + e]) * b[e * ldb + j];
            c[i * ldc + j] = sum;
        }
}

/* z = A^T W and u = z B of a whole matrix. */
static void rotate(const setting *s, const rotations *r, int64_t layer, int part, double *z,
                   double *u) {
    const wmat *w = matrix(layer, part);
    double *W = room(w->rows * w->cols, sizeof *W);
    for (int64_t i = 0; i < w->rows; i++)
        for (int64_t j = 0; j < w->cols; j++) W[i * w->cols + j] = value(layer, part, i, j);
    memcpy(z, W, (size_t)(w->rows * w->cols) * sizeof *z);
    if (part == 2 && s->r2_heads)
        for (int64_t h = 0; h < KV; h++)
            times(true, D, N, D, r2_of(s, r, layer, h), D, W + h * D * N, N, z + h * D * N, N);
    if ((part == 3 || part == 6) && s->r1)
        times(true, N, w->cols, N, r->R1, N, W, w->cols, z, w->cols);
    memcpy(u, z, (size_t)(w->rows * w->cols) * sizeof *u);
    if (part != 3 && part != 6 && s->r1) times(false, w->rows, N, N, z, N, r->R1, N, u, N);
    for (int64_t h = 0; part == 3 && s->r2_heads && h < HEADS; h++)
        times(false, N, D, D, z + h * D, HEADS * D, r2_of(s, r, layer, h / (HEADS / KV)), D,
              u + h * D, HEADS * D);
    if (part == 6 && s->r4) times(false, N, MID, MID, z, MID, r->R4, MID, u, MID);
    mem_free(W);
}

static double range_of(const double *u, int64_t n, bool symmetric) {
    double hi = 0, lo = 0; /* asymmetric ranges of weights hold zero */
    for (int64_t j = 0; j < n; j++) {
        hi = fmax(hi, u[j]);
        lo = fmin(lo, u[j]);
    }
    return symmetric ? 2 * fmax(hi, -lo) : hi - lo;
}

static bool learns(const setting *s, int part) {
    return s->r1 || ((part == 2 || part == 3) && s->r2_heads);
}

/* sum m_i range^2 / groups over everything that learns. */
static double slow(const setting *s, const rotations *r, wanted m) {
    double sum = 0, z[MID * MID], u[MID * MID];
    for (int64_t l = 0; l < LAYERS; l++)
        for (int p = 0; p < PARTS; p++) {
            const int64_t cols = matrix(l, p)->cols, group = s->how.group ? s->how.group : cols;
            if (!learns(s, p)) continue;
            rotate(s, r, l, p, z, u);
            for (int64_t i = 0; i < matrix(l, p)->rows; i++)
                for (int64_t j = 0; j < cols; j += group) {
                    const double range = range_of(u + i * cols + j, group, s->how.symmetric);
                    const int64_t row = p == 3 || p == 6 ? 0 : i;
                    sum += m[l][p][row] * range * range * (double)group / (double)cols;
                }
        }
    return sum;
}

/* Numbers that bf16 holds; orthogonal or not is nothing to what is tested. */
static rotations *random_rotations(void) {
    rotations *r = room(1, sizeof *r);
    rotation *h;
    fill_normal(r->R1, N * N, 1 / sqrt((double)N));
    fill_normal(r->R2, LAYERS * KV * D * D, 1 / sqrt((double)D));
    for (int i = 0; i < N * N; i++) r->R1[i] = half_from_bf16(half_to_bf16((float)r->R1[i]));
    for (int i = 0; i < LAYERS * KV * D * D; i++)
        r->R2[i] = half_from_bf16(half_to_bf16((float)r->R2[i]));
    assert_ok(rotation_create_hadamard(MID, NULL, &h));
    assert_ok(rotation_to_dense(h, r->R4));
    rotation_destroy(&h);
    return r;
}

/* ---- the way of the program ---- */

typedef struct answer {
    double loss, G1[N * N], G2[LAYERS * KV * D * D];
    int64_t grad[N * N];
} answer;

static void run(const setting *s, const rotations *r, weight_rows *w, int64_t step, answer *out) {
    range_work *work;
    bf16 R1[N * N];
    memset(out, 0, sizeof *out);
    assert_ok(range_work_create(N, weight_rows_direct(w) + 1, weight_rows_groups(w), &work));
    range_begin(work, r->R1);
    weight_rows_add(w, step, 1, work);
    range_batch b = {.n = N, .unit = 1, .grad = out->grad};
    if (s->r1) range_finish(work, weight_rows_heaviest(w), &b);
    memcpy(R1, range_rotation(work), sizeof R1);
    weight_rows_mix(w, step, 1, s->r1 ? R1 : NULL, r->R2, &b, out->G2);
    out->loss = (double)b.loss * RANGE_LOSS_UNIT;
    for (int64_t i = 0; i < N; i++)
        for (int64_t j = 0; j < N; j++) out->G1[i * N + j] = (double)out->grad[j * N + i] * b.unit;
    range_work_destroy(&work);
}

static weight_rows *rows_of(const setting *s, wanted m, int64_t rows, rotation **h) {
    weight_moments *mo = moments_of(m);
    weight_rows *w;
    *h = NULL;
    if (s->r4) assert_ok(rotation_create_hadamard(MID, NULL, h));
    const weight_rows_options o = {.how = s->how,
                                   .r1 = s->r1,
                                   .r2_heads = s->r2_heads,
                                   .R4 = *h,
                                   .rows = rows,
                                   .layers = LAYERS,
                                   .seed = 3};
    assert_ok(weight_rows_create(comm_world(), &o, &stage, mo, &w));
    weight_moments_destroy(&mo);
    return w;
}

/* Moments with which every row has share 1: as many samples as rows take each row once. */
static int64_t even_shares(const setting *s, wanted m) {
    int64_t rows = 0;
    for (int64_t l = 0; l < LAYERS; l++)
        for (int p = 0; p < PARTS; p++) {
            const int64_t n = matrix(l, p)->rows, part = p == 2 && s->r2_heads ? D : n;
            const bool mixed = p == 3 || p == 6 || (p == 2 && s->r2_heads);
            for (int64_t i = 0; i < n; i++) {
                double sum = 0;
                for (int64_t k = i / part * part; k < i / part * part + part; k++)
                    sum += energy(l, p, k);
                m[l][p][i] = mixed ? (double)part / sum : 1 / energy(l, p, i);
            }
            if (learns(s, p)) rows += n;
        }
    return rows;
}

/* d slow / d (one number) by central differences: slow is quadratic in it but at kinks. */
static double slope(const setting *s, rotations *r, wanted m, double *at) {
    const double h = 1e-6, kept = *at;
    *at = kept + h;
    const double up = slow(s, r, m);
    *at = kept - h;
    const double down = slow(s, r, m);
    *at = kept;
    return (up - down) / (2 * h);
}

/* By R1, then by R2: all numbers of a setting. */
static int64_t slopes(const setting *s, rotations *r, wanted m, double *out) {
    int64_t n = 0;
    for (int i = 0; s->r1 && i < N * N; i++) out[n++] = slope(s, r, m, &r->R1[i]);
    for (int i = 0; i < LAYERS * s->r2_heads * D * D; i++) out[n++] = slope(s, r, m, &r->R2[i]);
    return n;
}

static int64_t gradients(const setting *s, const answer *a, double *out) {
    const int64_t n1 = s->r1 ? N * N : 0, n2 = LAYERS * s->r2_heads * D * D;
    memcpy(out, a->G1, (size_t)n1 * sizeof *out);
    memcpy(out + n1, a->G2, (size_t)n2 * sizeof *out);
    return n1 + n2;
}

enum { NUMBERS = N * N + LAYERS * KV * D * D };

static double distance(const double *a, double scale, const double *b, int64_t n) {
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += (a[i] * scale - b[i]) * (a[i] * scale - b[i]);
    return sqrt(sum);
}

/* Products have bf16 factors: numbers of the way back are rounded (2^-9), and drawn rows before
 * they go forward, which now and then makes another entry of a row the largest. */
#define ROUNDING 0x1p-6

static void every_row_once_is_the_whole(void **state) {
    (void)state;
    rotations *r = random_rotations();
    answer *a = room(1, sizeof *a);
    double want[NUMBERS], got[NUMBERS];
    const double zero[NUMBERS] = {0};
    for (int k = 0; k < SETTINGS; k++) {
        const setting *s = &settings[k];
        static wanted m;
        rotation *h;
        const int64_t rows = even_shares(s, m);
        weight_rows *w = rows_of(s, m, rows, &h);
        assert_true(weight_rows_samples(w) >=
                    rows); /* small parts are drawn twice at half weight */
        run(s, r, w, 5, a);
        /* rows are scaled to |z|^2 = N, and share 1 each: m |z|^2 = 1 */
        const double loss = slow(s, r, m);
        assert_true(fabs(a->loss / N - loss) <= 2e-3 * loss);
        const int64_t n = slopes(s, r, m, want);
        assert_int_equal(gradients(s, a, got), n);
        assert_true(distance(got, 1.0 / N, want, n) <= ROUNDING * distance(want, 1, zero, n));
        weight_rows_destroy(&w);
        rotation_destroy(&h);
    }
    mem_free(a);
    mem_free(r);
}

/* Few samples of rows with unlike moments: their mean over many steps is the whole, in nats, as
 * near as its own scatter lets it come. */
static void draws_mean_the_whole(void **state) {
    (void)state;
    enum { STEPS = 300 };
    rotations *r = random_rotations();
    answer *a = room(1, sizeof *a);
    double want[NUMBERS], got[NUMBERS], sum[NUMBERS];
    const double zero[NUMBERS] = {0};
    for (int k = 0; k < SETTINGS; k++) {
        const setting *s = &settings[k];
        const double levels = s->how.symmetric ? 14 : 15, scale = 1 / (24 * levels * levels);
        static wanted m;
        rotation *h;
        for (int64_t l = 0; l < LAYERS; l++)
            for (int p = 0; p < PARTS; p++)
                for (int64_t i = 0; i < MID; i++) {
                    const int64_t at = p == 2 && s->r2_heads ? i / D : i; /* R2 mixes a head */
                    m[l][p][i] =
                        0.5 + 3 * rng_uniform(9, RNG_TEST, (uint64_t)((l * PARTS + p) * MID + at));
                }
        weight_rows *w = rows_of(s, m, 150, &h);
        const double unit = weight_rows_unit(w) / scale;
        double loss = 0, squares = 0, g_squares = 0;
        int64_t n = 0;
        memset(sum, 0, sizeof sum);
        for (int64_t step = 0; step < STEPS; step++) {
            run(s, r, w, step, a);
            loss += a->loss * unit / STEPS;
            squares += pow(a->loss * unit, 2) / STEPS;
            n = gradients(s, a, got);
            for (int64_t i = 0; i < n; i++) {
                sum[i] += got[i] * unit / STEPS;
                g_squares += pow(got[i] * unit, 2) / STEPS;
            }
        }
        const double whole = slow(s, r, m), error = sqrt((squares - loss * loss) / STEPS);
        assert_true(fabs(loss - whole) <= 4 * error + 2e-3 * whole);
        assert_true(error < 0.01 * whole); /* else nothing was shown */
        slopes(s, r, m, want);
        const double size = distance(want, 1, zero, n), mean = distance(sum, 1, zero, n),
                     g_error = sqrt(fmax(0, g_squares - mean * mean) / STEPS);
        assert_true(distance(sum, 1, want, n) <= 1.2 * g_error + ROUNDING * size);
        assert_true(g_error < 0.3 * size);
        weight_rows_destroy(&w);
        rotation_destroy(&h);
    }
    mem_free(a);
    mem_free(r);
}

static void threads_change_nothing(void **state) {
    (void)state;
    rotations *r = random_rotations();
    answer *one = room(1, sizeof *one), *three = room(1, sizeof *three);
    static wanted m;
    rotation *h;
    const setting *s = &settings[1];
    const int64_t rows = even_shares(s, m);
    const int threads = omp_get_max_threads();
    weight_rows *w = rows_of(s, m, rows / 2, &h);
    omp_set_num_threads(1);
    run(s, r, w, 7, one);
    omp_set_num_threads(3);
    run(s, r, w, 7, three);
    omp_set_num_threads(threads);
    assert_memory_equal(one, three, sizeof *one);
    weight_rows_destroy(&w);
    mem_free(one);
    mem_free(three);
    mem_free(r);
}

/* Tokens in two windows, in either order: the same integers, and the plain sums. */
static void moments_are_means_of_products(void **state) {
    (void)state;
    enum { T = 5 };
    double want_gate[MID] = {0}, want_down = 0, got[2][MID + 1];
    float *g_mid[2], *g_out[2], *x[2];
    for (int k = 0; k < 2; k++) {
        g_mid[k] = random_f32(T * MID, 1e-3, 0);
        g_out[k] = random_f32(T * N, 1e-3, 0);
        x[k] = random_f32(T * MID, 30, 1);
        for (int64_t t = 0; t < T; t++) {
            double gg = 0, xx = 0;
            for (int64_t j = 0; j < N; j++) gg += pow((double)g_out[k][t * N + j], 2);
            for (int64_t j = 0; j < MID; j++) {
                xx += pow((double)x[k][t * MID + j], 2);
                want_gate[j] += N * pow((double)g_mid[k][t * MID + j], 2) / (2 * T);
            }
            want_down += gg * xx / N / (2 * T);
        }
    }
    for (int order = 0; order < 2; order++) {
        weight_moments *m;
        assert_ok(weight_moments_create(&cfg, 1, 1, T, &m));
        llama_hook hook = weight_moments_hook(m);
        for (int i = 0; i < 2; i++) {
            const int k = order ? 1 - i : i;
            assert_ok(hook.take(hook.ctx, 1, HOOK_DOWN_OUT, 0, T, N, NULL, g_out[k]));
            assert_ok(hook.take(hook.ctx, 1, HOOK_DOWN_IN, 0, T, MID, x[k], x[k]));
            assert_ok(hook.take(hook.ctx, 1, HOOK_GATE_OUT, 0, T, MID, NULL, g_mid[k]));
        }
        for (int64_t j = 0; j < MID; j++) got[order][j] = weight_moments_row(m, 1, ROLE_GATE, j);
        got[order][MID] = weight_moments_row(m, 1, ROLE_DOWN, 17);
        g_mid[0][1] = NAN;
        assert_int_equal(hook.take(hook.ctx, 1, HOOK_GATE_OUT, 0, T, MID, NULL, g_mid[0]).code,
                         ERR_NUMERICS);
        g_mid[0][1] = 0;
        weight_moments_destroy(&m);
        if (order == 0) want_gate[1] = got[0][1]; /* that number is gone now */
    }
    for (int64_t j = 0; j < MID; j++) {
        assert_true(fabs(got[0][j] - want_gate[j]) <= 1e-12 * want_gate[j]);
        if (j != 1) assert_true(got[0][j] == got[1][j]);
    }
    assert_true(fabs(got[0][MID] - want_down) <= 1e-12 * want_down);
    assert_true(got[0][MID] == got[1][MID]);
    for (int k = 0; k < 2; k++) {
        mem_free(g_mid[k]);
        mem_free(g_out[k]);
        mem_free(x[k]);
    }
}

static void moments_of_weights_are_plain_sums(void **state) {
    (void)state;
    double got[N * N], want[N * N] = {0}, head[D * D], want_head[D * D] = {0};
    assert_ok(weight_start_moment_r1(comm_world(), &stage, got));
    for (int64_t l = 0; l < LAYERS; l++)
        for (int p = 0; p < PARTS; p++) {
            const bool writes = p == 3 || p == 6;
            const int64_t inner = writes ? matrix(l, p)->cols : matrix(l, p)->rows;
            for (int64_t i = 0; i < N; i++)
                for (int64_t j = 0; j < N; j++)
                    for (int64_t k = 0; k < inner; k++)
                        want[i * N + j] += writes ? value(l, p, i, k) * value(l, p, j, k)
                                                  : value(l, p, k, i) * value(l, p, k, j);
        }
    double trace = 0;
    for (int64_t i = 0; i < N; i++) trace += want[i * N + i];
    for (int64_t i = 0; i < N * N; i++) assert_true(fabs(got[i] - want[i]) <= 1e-6 * trace);
    for (int64_t kv = 0; kv < KV; kv++) { /* the heads together are the sum over each */
        double one[D * D];
        assert_ok(weight_start_moment_r2(&stage, 1, kv, one));
        for (int64_t i = 0; i < D; i++)
            for (int64_t j = 0; j < D; j++) {
                double sum = 0;
                for (int64_t k = 0; k < N; k++)
                    sum += value(1, 2, kv * D + i, k) * value(1, 2, kv * D + j, k);
                for (int64_t h = kv * HEADS / KV; h < (kv + 1) * HEADS / KV; h++)
                    for (int64_t k = 0; k < N; k++)
                        sum += value(1, 3, k, h * D + i) * value(1, 3, k, h * D + j);
                assert_true(fabs(one[i * D + j] - sum) <= 1e-5 * (fabs(sum) + 1));
                want_head[i * D + j] += one[i * D + j];
            }
    }
    assert_ok(weight_start_moment_r2(&stage, 1, -1, head));
    for (int64_t i = 0; i < D * D; i++)
        assert_true(fabs(head[i] - want_head[i]) <= 1e-12 * (fabs(want_head[i]) + 1));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_row_once_is_the_whole),
        cmocka_unit_test(draws_mean_the_whole),
        cmocka_unit_test(threads_change_nothing),
        cmocka_unit_test(moments_are_means_of_products),
        cmocka_unit_test(moments_of_weights_are_plain_sums),
    };
    gemm_init(1);
    return cmocka_run_group_tests(tests, make_stage, clear_stage);
}
