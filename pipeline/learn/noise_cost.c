/* Rows are rotated once; each pair of ends then quantizes them again and weighs the errors. */
#include "pipeline/learn/noise_cost.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"

#include <math.h>
#include <string.h>

struct noise_cost {
    int64_t n, tokens;
    site at;
    float *u, *h;  /* [rows, width]: the row, and the square of its gradient */
    float *error;  /* [threads, width] */
    int64_t width; /* room of a row */
    double *parts; /* [rows] what each row adds */
    double *weight;
};

uint64_t noise_cost_bytes(int64_t rows, int64_t width, int threads) {
    return (uint64_t)((2 * rows + threads) * width) * sizeof(float) +
           2 * (uint64_t)rows * sizeof(double);
}

err noise_cost_create(int64_t rows, int64_t width, noise_cost **out) {
    *out = NULL;
    noise_cost *c;
    err e = MEM_NEW(&c, 1, "noise of a quantizer");
    if (e.code) return e;
    c->width = width;
    e = MEM_NEW(&c->u, rows * width, "rows of a quantizer");
    if (!e.code) e = MEM_NEW(&c->h, rows * width, "their gradients");
    if (!e.code) e = MEM_NEW(&c->error, gemm_threads() * width, "errors of a row");
    if (!e.code) e = MEM_NEW(&c->parts, rows, "noise of rows");
    if (!e.code) e = MEM_NEW(&c->weight, rows, "weights of rows");
    if (e.code) noise_cost_destroy(&c);
    *out = c;
    return e;
}

void noise_cost_destroy(noise_cost **out) {
    noise_cost *c = *out;
    if (!c) return;
    void *all[] = {c->u, c->h, c->error, c->parts, c->weight};
    for (int i = 0; i < 5; i++) mem_free(all[i]);
    mem_free(c);
    *out = NULL;
}

void noise_cost_take(noise_cost *c, const noise_set *rows, const site *at, int64_t tokens) {
    const int64_t n = rows->n, width = rows->width;
    c->at = *at;
    c->n = n;
    c->tokens = tokens;
    memcpy(c->weight, rows->weight, (size_t)n * sizeof *c->weight);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        half_array_from_bf16(rows->x + i * width, width, c->u + i * width);
        half_array_from_bf16(rows->g + i * width, width, c->h + i * width);
    }
    site_scale_f32(at, c->u, n, true);
    site_scale_f32(at, c->h, n, false);
    site_rotate_f32(at, c->u, n, false);
    site_rotate_f32(at, c->h, n, false);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float *u = c->u + i * width, *h = c->h + i * width;
        if (at->after) scale_times_f32(at->after->inverse32, width, u);
        if (at->after) scale_times_f32(at->after->s32, width, h);
        for (int64_t j = 0; j < width; j++) h[j] *= h[j];
    }
}

void noise_cost_put_bits(noise_cost *c, int bits) {
    c->at.quant.bits = bits;
}

double noise_cost_of(noise_cost *c, const double ends[2]) {
    const int64_t width = c->at.n, range = site_range(&c->at);
    aquant q = c->at.quant;
    for (int k = 0; k < 2; k++) q.clip[k] = (float)ends[k];
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < c->n; i++) {
        float *to = c->error + (int64_t)gemm_thread() * c->width;
        const float *u = c->u + i * width, *h = c->h + i * width;
        fake_quant_rows(&q, c->at.include_zero, u, width / range, range, range, to);
        double sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < width; j++) {
            const float e = to[j] - u[j];
            sum += (double)(h[j] * e * e);
        }
        c->parts[i] = sum;
    }
    double total = 0; /* in the order of the rows */
    for (int64_t i = 0; i < c->n; i++) total += c->weight[i] * c->parts[i];
    return 0.5 * total / (double)c->tokens;
}

/* From wider than the range, which the noise of rare tokens may ask for, to where Gaussian rows of
 * some thousand entries have their optimum. */
static const double list[] = {1.05, 1.02, 1,    0.97, 0.94, 0.91, 0.88,
                              0.85, 0.82, 0.79, 0.76, 0.73, 0.70, 0.67};
enum { LIST = sizeof list / sizeof *list };
#define NEAR 0.1 /* how far the two ends may go from the best single number */

/* The best of the list for one end, the other held; the cost of *ends is *cost. True: it moved. */
static bool search_end(noise_cost *c, int end, double middle, double ends[2], double *cost) {
    bool moved = false;
    for (int i = 0; i < LIST; i++) {
        double next[2] = {ends[0], ends[1]};
        if (fabs(list[i] - middle) > NEAR || list[i] == ends[end]) continue;
        next[end] = list[i];
        const double d = noise_cost_of(c, next);
        if (!(d < *cost)) continue;
        *cost = d;
        ends[end] = list[i];
        moved = true;
    }
    return moved;
}

void noise_cost_search(noise_cost *c, double ends[2], double *before, double *after) {
    enum { ROUNDS = 3 };
    const double one[2] = {1, 1};
    ends[0] = ends[1] = 1;
    *before = *after = noise_cost_of(c, one);
    for (int i = 0; i < LIST; i++) {
        const double next[2] = {list[i], list[i]};
        const double d = list[i] == 1 ? *before : noise_cost_of(c, next);
        if (!(d < *after)) continue;
        *after = d;
        ends[0] = ends[1] = list[i];
    }
    const double middle = ends[0];
    bool moved = !c->at.quant.symmetric; /* one end alone counts there */
    for (int round = 0; moved && round < ROUNDS; round++) {
        moved = search_end(c, 0, middle, ends, after);
        if (search_end(c, 1, middle, ends, after)) moved = true;
    }
}
