/* With a = z_p - max z_p, b = z_q - max z_q, A = sum e^a and B = sum e^b:
 * log p - log q = (a - b) - (log A - log B), so KL = sum e^a (a - b) / A - log A + log B. */
#include "model/divergence.h"

#include <math.h>

static int64_t greatest(const double *z, int64_t n) {
    int64_t best = 0;
    for (int64_t j = 1; j < n; j++)
        if (z[j] > z[best]) best = j;
    return best;
}

static divergence of_row(const double *p, const double *q, int64_t vocab, int32_t next) {
    const int64_t top_p = greatest(p, vocab), top_q = greatest(q, vocab);
    double sum_p = 0, sum_q = 0, dot = 0;
    for (int64_t j = 0; j < vocab; j++) {
        const double a = p[j] - p[top_p], b = q[j] - q[top_q], e = exp(a);
        sum_p += e;
        sum_q += exp(b);
        dot += e * (a - b);
    }
    const double log_p = log(sum_p), log_q = log(sum_q);
    return (divergence){.kl = dot / sum_p - log_p + log_q,
                        .nll_p = log_p - (p[next] - p[top_p]),
                        .nll_q = log_q - (q[next] - q[top_q]),
                        .same_top = top_p == top_q};
}

void divergence_rows(const double *p, const double *q, int64_t n_rows, int64_t vocab,
                     const int32_t *next, divergence *out) {
#pragma omp parallel for schedule(static)
    for (int64_t t = 0; t < n_rows; t++)
        out[t] = of_row(p + t * vocab, q + t * vocab, vocab, next[t]);
}
