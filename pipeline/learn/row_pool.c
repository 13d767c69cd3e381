/* Every so many tokens of each window a row is taken, rounded to bf16 or fixed point, weighted by
 * its gradient's norm, and at the end normalised and shuffled within each layer's set. */
#include "pipeline/learn/row_pool.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Adding 1.5 2^23 units and taking them away rounds to whole units, half to even. */
void row_fix(bf16 *x, int64_t n) {
    const float most = 128, round = 0x1.8p23F / (1 << ROW_FIXED_BITS);
    for (int64_t i = 0; i < n; i++) {
        const float v = half_from_bf16(x[i]), held = v < most ? v > -most ? v : -most : most;
        x[i] = (bf16)(half_bits((held + round) - round) >> 16);
    }
}

static int64_t sets_of(const row_pool *p, pool_kind kind) {
    return kind == POOL_R1 ? 2 * p->n_layers : p->n_layers;
}

static int64_t rows_per_token(const row_pool *p, pool_kind kind) {
    return kind == POOL_R1 ? 1 : kind == POOL_VALUE ? p->kv_heads : p->heads;
}

static err set_init(row_set *s, int64_t n, int64_t width, bf16 *x) {
    *s = (row_set){.n = n, .width = width, .x = x};
    return MEM_NEW(&s->w, n, "weights of rows");
}

err row_pool_init(const llama_config *cfg, int64_t first, int64_t n, int64_t tokens,
                  row_pool *out) {
    *out = (row_pool){.first_layer = first,
                      .n_layers = n,
                      .hidden = cfg->hidden,
                      .head_dim = cfg->head_dim,
                      .heads = cfg->heads,
                      .kv_heads = cfg->kv_heads,
                      .tokens = tokens};
    err e = err_none();
    for (int k = 0; k < POOL_KINDS && !e.code; k++) {
        int64_t count = sets_of(out, (pool_kind)k);
        out->sets[k] = calloc((size_t)count + 1, sizeof *out->sets[k]);
        if (!out->sets[k]) abort();
        const int64_t width = k == POOL_R1 ? cfg->hidden : cfg->head_dim,
                      each = tokens * rows_per_token(out, (pool_kind)k);
        e = MEM_NEW(&out->rows[k], count * each * width, "sampled rows");
        for (int64_t i = 0; i < count && !e.code; i++)
            e = set_init(&out->sets[k][i], each, width, out->rows[k] + i * each * width);
    }
    return e;
}

static int put_set(const row_set *s, byte_piece *out) {
    out[0] = (byte_piece){s->x, (uint64_t)(s->n * s->width) * sizeof *s->x};
    out[1] = (byte_piece){s->w, (uint64_t)s->n * sizeof *s->w};
    return 2;
}

int row_pool_pieces(const row_pool *p, row_pool_part part, int64_t layer,
                    byte_piece out[ROW_POOL_PIECES]) {
    const int64_t l = layer - p->first_layer;
    int n = 0;
    if (!p->sets[POOL_R1]) return 0; /* no pool was made */
    for (int site = 0; site < 2; site++) {
        const row_set *s = &p->sets[POOL_R1][2 * l + site];
        if (part == ROW_POOL_ROWS) n += put_set(s, out + n);
        if (part == ROW_POOL_DRAWN && p->drawn) n += put_set(&p->drawn[2 * l + site], out + n);
        if (part == ROW_POOL_GRADIENTS && s->g)
            out[n++] = (byte_piece){s->g, (uint64_t)(s->n * s->width) * sizeof *s->g};
    }
    for (int k = POOL_VALUE; k < POOL_KINDS && part == ROW_POOL_ROWS; k++)
        n += put_set(&p->sets[k][l], out + n);
    return n;
}

void row_pool_clear(row_pool *p) {
    for (int k = 0; k < POOL_KINDS; k++) {
        for (int64_t i = 0; p->sets[k] && i < sets_of(p, (pool_kind)k); i++) {
            mem_free(p->sets[k][i].w);
            mem_free(p->sets[k][i].g);
        }
        mem_free(p->rows[k]);
        free(p->sets[k]);
    }
    for (int64_t i = 0; p->drawn && i < sets_of(p, POOL_R1); i++) mem_free(p->drawn[i].w);
    mem_free(p->drawn_rows);
    free(p->drawn);
    memset(p, 0, sizeof *p);
}

uint64_t row_pool_bytes(const llama_config *cfg, int64_t n, int64_t tokens) {
    uint64_t per_token = 2 * (2 * (uint64_t)cfg->hidden + 4) +
                         (uint64_t)(cfg->heads + cfg->kv_heads) * (2 * (uint64_t)cfg->head_dim + 4);
    return (uint64_t)n * (uint64_t)tokens * per_token;
}

err row_pool_keep_gradients(row_pool *p) {
    err e = err_none();
    for (int64_t i = 0; i < sets_of(p, POOL_R1) && !e.code; i++) {
        row_set *s = &p->sets[POOL_R1][i];
        e = MEM_NEW(&s->g, s->n * s->width, "gradients of sampled rows");
    }
    return e;
}

uint64_t row_pool_gradient_bytes(const llama_config *cfg, int64_t n, int64_t tokens) {
    return 4 * (uint64_t)n * (uint64_t)tokens * (uint64_t)cfg->hidden;
}

void row_pool_put(row_pool *p, pool_kind kind, int64_t layer, int site, int64_t at,
                  int64_t n_tokens, int64_t first, int64_t stride, const float *x, const float *g) {
    int64_t l = layer - p->first_layer, per = rows_per_token(p, kind);
    row_set *s = &p->sets[kind][kind == POOL_R1 ? 2 * l + site : l];
    for (int64_t t = first; t < n_tokens && at < p->tokens; t += stride, at++) {
        for (int64_t h = 0; h < per; h++) {
            int64_t from = (t * per + h) * s->width, row = at * per + h;
            half_array_to_bf16(x + from, s->width, s->x + row * s->width);
            if (s->g) half_array_to_bf16(g + from, s->width, s->g + row * s->width);
            double sum = 0;
            for (int64_t j = 0; j < s->width; j++) sum += (double)g[from + j] * (double)g[from + j];
            s->w[row] = (float)sum;
        }
    }
}

static int by_value(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return x < y ? -1 : x > y;
}

/* All weights of a kind, layers in order, on every rank. Ranks own layers in rank order. */
static float *gather_weights(const comm *c, const row_pool *p, pool_kind kind, int64_t *n) {
    int64_t count = sets_of(p, kind), each = count ? p->sets[kind][0].n : 0;
    float *mine = malloc((size_t)(count * each + 1) * sizeof *mine);
    size_t len;
    if (!mine) abort();
    for (int64_t i = 0; i < count; i++)
        memcpy(mine + i * each, p->sets[kind][i].w, (size_t)each * sizeof *mine);
    void *all = comm_gather_joined(c, mine, (size_t)(count * each) * sizeof *mine, &len);
    comm_bcast_blob(c, &all, &len, 0);
    free(mine);
    *n = (int64_t)(len / sizeof(float));
    return all;
}

static void swap_bytes(void *a, void *b, size_t n) {
    char *p = a, *q = b;
    for (size_t i = 0; i < n; i++) {
        const char c = p[i];
        p[i] = q[i];
        q[i] = c;
    }
}

/* Each place takes one of the rows that are left (Fisher and Yates). `site` counts over the model.
 */
static void shuffle(row_set *s, int64_t site) {
    const size_t row = (size_t)s->width * sizeof *s->x;
    for (int64_t i = 0; i < s->n - 1; i++) {
        const uint64_t r = rng_u64(0, RNG_POOL_ORDER, (uint64_t)(site * s->n + i)) >> 32;
        const int64_t j = i + (int64_t)(r % (uint64_t)(s->n - i));
        if (j == i) continue;
        swap_bytes(s->x + i * s->width, s->x + j * s->width, row);
        if (s->g) swap_bytes(s->g + i * s->width, s->g + j * s->width, row);
        const float w = s->w[i];
        s->w[i] = s->w[j];
        s->w[j] = w;
    }
}

err row_pool_finish(const comm *c, row_pool *p, pool_kind kind) {
    int64_t n;
    float *all = gather_weights(c, p, kind, &n);
    if (!n) {
        free(all);
        return err_make(ERR_BUG, "row_pool", NULL, "no rows");
    }
    qsort(all, (size_t)n, sizeof *all, by_value);
    float most = all[(int64_t)(0.999 * (double)n)];
    double sum = 0;
    for (int64_t i = 0; i < n; i++) sum += all[i] < most ? all[i] : most;
    free(all);
    if (!(sum > 0) || !isfinite(sum))
        return err_make(ERR_NUMERICS, "range", "check the calibration text",
                        "all sensitivities are zero or not finite");
    float scale = (float)((double)n / sum);
    p->mean[kind] = sum / (double)n;
    for (int64_t i = 0; i < sets_of(p, kind); i++) {
        row_set *s = &p->sets[kind][i];
        for (int64_t r = 0; r < s->n; r++) s->w[r] = (s->w[r] < most ? s->w[r] : most) * scale;
        if (kind != POOL_R1) continue;
        row_fix(s->x, s->n * s->width);
        shuffle(s, 2 * p->first_layer + i);
    }
    return err_none();
}

/* ---- rows drawn by importance ---- */

/* A row's sensitivity and how many rows it stands for. */
typedef struct drawn_row {
    double w, stands_for;
} drawn_row;

static int by_sensitivity(const void *a, const void *b) {
    const double x = ((const drawn_row *)a)->w, y = ((const drawn_row *)b)->w;
    return x < y ? -1 : x > y;
}

static double sensitivity(const noise_set *s, int64_t i) {
    double sum = 0;
    for (int64_t j = 0; j < s->width; j++) {
        const double g = half_from_bf16(s->g[i * s->width + j]);
        sum += g * g;
    }
    return sum;
}

uint64_t row_pool_drawn_bytes(const llama_config *cfg, int64_t n, int64_t tokens) {
    const uint64_t rows = 2 * (uint64_t)(n * tokens);
    return rows * (2 * (uint64_t)cfg->hidden + sizeof(float) + sizeof(drawn_row));
}

/* Collective. The clamp of all rows of the model, n of them on this rank; the same on every rank:
 * ranks own layers in order, and equal sensitivities have the same value whoever comes first. */
static double clamp_of(const comm *c, const drawn_row *mine, int64_t n) {
    size_t len;
    drawn_row *rows = comm_gather_joined(c, mine, (size_t)n * sizeof *mine, &len);
    const size_t count = len / sizeof *rows;
    double total = 0, below = 0, most = 0;
    if (rows) qsort(rows, count, sizeof *rows, by_sensitivity);
    for (size_t i = 0; i < count; i++) total += rows[i].stands_for;
    for (size_t i = 0; i < count && below <= 0.9999 * total; i++) {
        below += rows[i].stands_for;
        most = rows[i].w;
    }
    comm_bcast(c, &most, sizeof most, 0);
    free(rows);
    return most;
}

static void take_drawn(row_set *s, const noise_set *from, const drawn_row *rows, double most) {
    for (int64_t i = 0; i < from->n; i++) {
        memcpy(s->x + i * s->width, from->x + i * s->width, (size_t)s->width * sizeof *s->x);
        s->w[i] = (float)(fmin(rows[i].w, most) * rows[i].stands_for);
    }
}

err row_pool_make_drawn(row_pool *p) {
    const int64_t sets = sets_of(p, POOL_R1);
    p->drawn = calloc((size_t)sets + 1, sizeof *p->drawn);
    if (!p->drawn) abort();
    err e = MEM_NEW(&p->drawn_rows, sets * p->tokens * p->hidden, "drawn rows");
    for (int64_t i = 0; i < sets && !e.code; i++)
        e = set_init(&p->drawn[i], p->tokens, p->hidden, p->drawn_rows + i * p->tokens * p->hidden);
    return e;
}

/* Collective. The sum of weights over the model; sets in order, so the same for any ranks. */
static double weights_in_all(const comm *c, const row_pool *p) {
    const int64_t sets = sets_of(p, POOL_R1);
    double *sums = calloc((size_t)sets + 1, sizeof *sums), total = 0;
    size_t len;
    if (!sums) abort();
    for (int64_t i = 0; i < sets; i++)
        for (int64_t r = 0; r < p->drawn[i].n; r++) sums[i] += (double)p->drawn[i].w[r];
    double *all = comm_gather_joined(c, sums, (size_t)sets * sizeof *sums, &len);
    for (size_t i = 0; i < len / sizeof *sums; i++) total += all[i];
    comm_bcast(c, &total, sizeof total, 0);
    free(all);
    free(sums);
    return total;
}

err row_pool_draw(const comm *c, row_pool *p, const noise_rows *rows, int64_t tokens) {
    const int64_t sets = sets_of(p, POOL_R1);
    drawn_row *mine = NULL;
    err e = row_pool_make_drawn(p);
    if (!e.code) e = MEM_NEW(&mine, sets * p->tokens, "drawn rows");
    e = comm_agree(c, e, "drawn rows", NULL);
    int64_t n = 0, all = sets;
    for (int64_t i = 0; i < sets && !e.code; i++) {
        const noise_set s =
            noise_rows_get(rows, i % 2 ? CLIP_MLP : CLIP_ATTN, p->first_layer + i / 2);
        for (int64_t r = 0; r < s.n; r++) mine[n++] = (drawn_row){sensitivity(&s, r), s.weight[r]};
    }
    const double most = e.code ? 0 : clamp_of(c, mine, n);
    n = 0;
    for (int64_t i = 0; i < sets && !e.code; i++) {
        const noise_set s =
            noise_rows_get(rows, i % 2 ? CLIP_MLP : CLIP_ATTN, p->first_layer + i / 2);
        take_drawn(&p->drawn[i], &s, mine + n, most);
        n += s.n;
    }
    mem_free(mine);
    if (e.code) return e;
    comm_sum_i64(c, &all, 1);
    const double sum = weights_in_all(c, p);
    if (!(sum > 0) || !isfinite(sum))
        return err_make(ERR_NUMERICS, "range", "check the calibration text",
                        "all sensitivities are zero or not finite");
    p->drawn_mean = sum / ((double)all * (double)tokens);
    const float scale = (float)((double)all * (double)p->tokens / sum);
    for (int64_t i = 0; i < sets; i++) {
        row_set *s = &p->drawn[i];
        for (int64_t r = 0; r < s->n; r++) s->w[r] *= scale;
        row_fix(s->x, s->n * s->width);
        shuffle(s, 2 * p->first_layer + i);
    }
    return e;
}

void row_pool_switch(row_pool *p) {
    row_set *sets = p->sets[POOL_R1];
    bf16 *rows = p->rows[POOL_R1];
    const double mean = p->mean[POOL_R1];
    p->sets[POOL_R1] = p->drawn;
    p->rows[POOL_R1] = p->drawn_rows;
    p->mean[POOL_R1] = p->drawn_mean;
    p->drawn = sets;
    p->drawn_rows = rows;
    p->drawn_mean = mean;
}

void row_pool_normalise(row_pool *p, pool_kind kind) {
    for (int64_t i = 0; i < sets_of(p, kind); i++) {
        row_set *s = &p->sets[kind][i];
        double most = 0;
        for (int64_t r = 0; r < s->n; r++) {
            double sum = 0;
            for (int64_t j = 0; j < s->width; j++) {
                double v = half_from_bf16(s->x[r * s->width + j]);
                sum += v * v;
            }
            most = fmax(most, sum);
        }
        if (!(most > 0)) continue; /* all zero */
        int power = (int)ceil(log2(sqrt(most / (double)s->width)));
        for (int64_t k = 0; k < s->n * s->width; k++) /* exact but for numbers that vanish */
            s->x[k] = half_to_bf16(ldexpf(half_from_bf16(s->x[k]), -power));
        row_fix(s->x, s->n * s->width);
        for (int64_t r = 0; r < s->n; r++) s->w[r] = ldexpf(s->w[r], 2 * power);
    }
}

/* sum x^T x of one set in fp32 by fixed tiles: the unit that is summed exactly over the model. */
static void moment_of(const row_set *s, float *wide, float *out) {
    half_array_from_bf16(s->x, s->n * s->width, wide);
    gemm_f32(GEMM_T, GEMM_N, s->width, s->width, s->n, wide, s->width, wide, s->width, GEMM_SET,
             out, s->width);
}

/* Collective. Bits of the fixed point: sums of all rows of the model stay below 2^62. x is a
 * normalised row, so no entry of x^T x is above its length |x|^2 <= hidden (1 + rounding of bf16).
 */
static int moment_exponent(const comm *c, const row_pool *p) {
    int64_t rows = 0;
    for (int64_t i = 0; i < sets_of(p, POOL_R1); i++) rows += p->sets[POOL_R1][i].n;
    comm_sum_i64(c, &rows, 1);
    return 62 - (int)ceil(log2(1.1 * (double)p->hidden * (double)(rows + 1)));
}

err row_pool_moment_r1(const comm *c, const row_pool *p, double *out) {
    int64_t n = p->hidden * p->hidden, sets = sets_of(p, POOL_R1);
    float *wide = NULL, *one = NULL;
    int64_t *sum = NULL;
    const int exponent = moment_exponent(c, p);
    err e = MEM_NEW(&wide, sets ? p->sets[POOL_R1][0].n * p->hidden : 0, "rows in fp32");
    if (!e.code) e = MEM_NEW(&one, n, "second moment");
    if (!e.code) e = MEM_NEW(&sum, n, "second moment");
    e = comm_agree(c, e, "second moments", NULL);
    for (int64_t i = 0; i < sets && !e.code; i++) {
        moment_of(&p->sets[POOL_R1][i], wide, one);
        for (int64_t k = 0; k < n; k++) sum[k] += llrint(ldexp(one[k], exponent));
    }
    if (!e.code) comm_sum_i64(c, sum, n);
    for (int64_t k = 0; k < n && !e.code; k++) out[k] = ldexp((double)sum[k], -exponent);
    for (int64_t i = 0; i < p->hidden && !e.code; i++) /* products of two halves may round apart */
        for (int64_t j = 0; j < i; j++) {
            double m = 0.5 * (out[i * p->hidden + j] + out[j * p->hidden + i]);
            out[i * p->hidden + j] = out[j * p->hidden + i] = m;
        }
    mem_free(wide);
    mem_free(one);
    mem_free(sum);
    return e;
}

enum { MOMENT_BAND = 256 }; /* rows of the moment that are made and summed at a time */

/* Rows [row, row + b) of sum x^T x over this rank's sets, in fixed point. */
static void moment_rows(const row_pool *p, int64_t row, int64_t b, int exponent, float *wide,
                        float *one, int64_t *sum) {
    const int64_t n = p->hidden;
    memset(sum, 0, (size_t)(b * n) * sizeof *sum);
    for (int64_t i = 0; i < sets_of(p, POOL_R1); i++) {
        const row_set *s = &p->sets[POOL_R1][i];
#pragma omp parallel for
        for (int64_t r = 0; r < s->n; r++) half_array_from_bf16(s->x + r * n, n, wide + r * n);
        gemm_f32(GEMM_T, GEMM_N, b, n, s->n, wide + row, n, wide, n, GEMM_SET, one, n);
#pragma omp parallel for
        for (int64_t k = 0; k < b * n; k++) sum[k] += llrint(ldexp(one[k], exponent));
    }
}

err row_pool_moment_r1_dist(const row_pool *p, dmat *out) {
    const comm *c = dgrid_comm(dmat_grid(out));
    const int64_t n = p->hidden;
    float *wide = NULL, *one = NULL;
    int64_t *sum = NULL;
    const int exponent = moment_exponent(c, p);
    const int64_t rows = sets_of(p, POOL_R1) ? p->sets[POOL_R1][0].n : 0;
    err e = MEM_NEW(&wide, rows * n, "rows in fp32");
    if (!e.code) e = MEM_NEW(&one, MOMENT_BAND * n, "second moment");
    if (!e.code) e = MEM_NEW(&sum, MOMENT_BAND * n, "second moment");
    e = comm_agree(c, e, "second moments", NULL);
    for (int64_t row = 0; !e.code && row < n; row += MOMENT_BAND) {
        const int64_t b = n - row < MOMENT_BAND ? n - row : MOMENT_BAND;
        moment_rows(p, row, b, exponent, wide, one, sum);
        dmat_sum_rows_i64(out, row, b, sum, -exponent, sizeof(int64_t));
    }
    mem_free(wide);
    mem_free(one);
    mem_free(sum);
    return e;
}

err row_pool_moment_r2(const row_pool *p, int64_t layer, int64_t kv_head, double *out) {
    const row_set *s = &p->sets[POOL_O][layer - p->first_layer];
    int64_t d = p->head_dim, per = p->heads / p->kv_heads;
    memset(out, 0, (size_t)(d * d) * sizeof *out);
    for (int64_t r = 0; r < s->n; r++) {
        int64_t head = r % p->heads;
        if (kv_head >= 0 && head / per != kv_head) continue;
        const bf16 *x = s->x + r * d;
        for (int64_t i = 0; i < d; i++) {
            double a = half_from_bf16(x[i]);
            for (int64_t j = 0; j < d; j++) out[i * d + j] += a * (double)half_from_bf16(x[j]);
        }
    }
    return err_none();
}
