/* Sums go in the order of windows and tokens, so they do not depend on the ranks. */
#include "jobs/eval_distance.h"

#include "base/size.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

eval_mean eval_mean_of(const double *windows, int64_t n) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; i++) sum += windows[i];
    const double mean = sum / (double)n;
    for (int64_t i = 0; i < n; i++) squares += (windows[i] - mean) * (windows[i] - mean);
    return (eval_mean){mean, n > 1 ? sqrt(squares / (double)(n - 1) / (double)n) : NAN};
}

eval_mean eval_mean_exp(eval_mean m) {
    return (eval_mean){exp(m.mean), exp(m.mean) * m.error};
}

json_t *eval_number(double x) {
    return isfinite(x) ? json_real(x) : json_null();
}

static int rising(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The value that a share of the sorted ones does not exceed, interpolated. */
static double quantile(const double *sorted, int64_t n, double share) {
    const double at = fmin(fmax(share, 0), 1) * (double)(n - 1), below = floor(at);
    const int64_t i = (int64_t)below, next = size_min(i + 1, n - 1);
    return sorted[i] + (at - below) * (sorted[next] - sorted[i]);
}

static double take_nll_p(const divergence *d) {
    return d->nll_p;
}

static double take_more(const divergence *d) {
    return d->nll_q - d->nll_p;
}

static double take_kl(const divergence *d) {
    return d->kl;
}

static double take_same(const divergence *d) {
    return d->same_top;
}

static eval_mean over_windows(const divergence *tokens, int64_t n, int64_t rows,
                              double (*take)(const divergence *)) {
    double *means = calloc((size_t)n + 1, sizeof *means);
    if (!means) abort();
    for (int64_t w = 0; w < n; w++) {
        for (int64_t t = 0; t < rows; t++) means[w] += take(&tokens[w * rows + t]);
        means[w] /= (double)rows;
    }
    const eval_mean m = eval_mean_of(means, n);
    free(means);
    return m;
}

eval_distance eval_distance_of(const divergence *tokens, int64_t n, int64_t rows) {
    const double share = 0.99, off = sqrt(share * (1 - share) / (double)(n * rows));
    double *kl = calloc((size_t)(n * rows) + 1, sizeof *kl);
    if (!kl) abort();
    for (int64_t i = 0; i < n * rows; i++) kl[i] = tokens[i].kl;
    qsort(kl, (size_t)(n * rows), sizeof *kl, rising);
    const double above = quantile(kl, n * rows, share + off),
                 below = quantile(kl, n * rows, share - off);
    eval_distance d = {.nll_p = over_windows(tokens, n, rows, take_nll_p),
                       .nll_more = over_windows(tokens, n, rows, take_more),
                       .kl = over_windows(tokens, n, rows, take_kl),
                       .same_top = over_windows(tokens, n, rows, take_same),
                       .kl_99 = {quantile(kl, n * rows, share), (above - below) / 2},
                       .kl_most = kl[n * rows - 1]};
    free(kl);
    return d;
}

static void put(json_t *to, const char *name, eval_mean m) {
    char error[64];
    snprintf(error, sizeof error, "%s_stderr", name);
    json_object_set_new(to, name, eval_number(m.mean));
    json_object_set_new(to, error, eval_number(m.error));
}

json_t *eval_distance_json(const eval_distance *d, const char *against) {
    json_t *v = json_pack("{s:s}", "source", against);
    put(v, "nll", d->nll_p);
    put(v, "ppl", eval_mean_exp(d->nll_p));
    put(v, "nll_more", d->nll_more);
    put(v, "kl_mean", d->kl);
    put(v, "kl_99", d->kl_99);
    json_object_set_new(v, "kl_max", eval_number(d->kl_most));
    put(v, "same_top", d->same_top);
    return v;
}

void eval_distance_head(const char *against) {
    printf("against %s\n%-40s %10s %21s %19s %19s %8s %18s\n", against, "text", "perplexity",
           "nats/token more", "KL, mean", "KL, 99 %", "largest", "same top token");
}

/* "0.0421 +- 0.0012"; without an error where there is none. */
static const char *with_error(eval_mean m, double times, int digits, char text[48]) {
    int n = snprintf(text, 48, "%.*f", digits, times * m.mean);
    if (isfinite(m.error) && n > 0 && n < 40)
        snprintf(text + n, 48 - (size_t)n, " +- %.*f", digits, times * m.error);
    return text;
}

void eval_distance_print(const eval_distance *d, const char *text) {
    char more[48], kl[48], kl_99[48], same[48];
    printf("%-40s %10.4f %21s %19s %19s %8.4f %16s %%\n", text, exp(d->nll_p.mean),
           with_error(d->nll_more, 1, 6, more), with_error(d->kl, 1, 5, kl),
           with_error(d->kl_99, 1, 4, kl_99), d->kl_most, with_error(d->same_top, 100, 2, same));
}
