/* Sampled rows lie evenly: the i-th of n is row floor(i rows / n). A piece of a row is a row of a
 * narrow matrix, so that the covariance of pieces is the one that sites have. */
#include "pipeline/weights/weight_spread.h"

#include "base/mem.h"
#include "base/size.h"

#include <math.h>

enum { LEAST_ROWS = 16, MOST_ROWS = 128, ONE_IN = 16, LEAST_GROUP = 1 };

int64_t spread_rows(int64_t rows) {
    return size_min(rows, size_min(MOST_ROWS, size_max(LEAST_ROWS, rows / ONE_IN)));
}

bool spread_samples(int64_t rows, int64_t row, int64_t *at) {
    const int64_t n = spread_rows(rows);
    *at = size_ceil_div(row * n, rows);
    return *at < n && *at * rows / n == row;
}

static err nearest_error(const wquant *how, const float *sample, int64_t rows, int64_t cols,
                         double *out) {
    wquant plain = *how;
    qmatrix *q;
    qerror *errors = NULL, sum = {.max_error = 0};
    plain.search = false;
    err e = qmatrix_create(rows, cols, &plain, &q);
    if (e.code) return e;
    e = MEM_NEW(&errors, rows, "errors of rows");
    if (!e.code) {
        rtn_quantize_rows(&plain, sample, rows, cols, 0, q);
        for (int64_t i = 0; i < rows; i++) errors[i] = qmatrix_row_error(q, sample + i * cols, i);
        qerror_add(errors, rows, &sum);
        *out = sum.sum_sq_weight > 0 ? sqrt(sum.sum_sq_error / sum.sum_sq_weight) : NAN;
    }
    mem_free(errors);
    qmatrix_destroy(&q);
    return e;
}

err spread_of(const site_row *all, int64_t rows, int64_t cols, const float *sample,
              const wquant *how, spread *out) {
    const int64_t n = spread_rows(rows);
    site_stats s = {.width = cols};
    for (int64_t i = 0; i < rows; i++) site_stats_add_row(&s, &all[i]);
    const double rms = site_rms(&s);
    double log_det;
    int64_t d = SPREAD_PIECE;
    while (cols % d) d /= 2;
    *out = (spread){site_kurtosis(&s), rms > 0 ? s.most / rms : NAN, NAN, NAN};
    err e = site_log_det(sample, n * cols / d, d, &log_det);
    if (!e.code && rms > 0) out->log_qsur = site_log_qsur(d, log_det, s.most);
    if (!e.code && how && how->bits < 16)
        e = nearest_error(how, sample, n, cols, &out->nearest_error);
    return e;
}

uint64_t spread_bytes(int64_t rows, int64_t cols) {
    const wquant smallest = {.bits = 8, .group = LEAST_GROUP};
    const uint64_t n = (uint64_t)spread_rows(rows);
    return n * (uint64_t)cols * sizeof(float) + n * sizeof(qerror) +
           qmatrix_bytes((int64_t)n, cols, &smallest) + site_log_det_bytes(SPREAD_PIECE);
}
