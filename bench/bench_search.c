/* bench_search - candidate errors (element x candidate) a second of the scale search, on one
 * thread. Prints the rate of whole searches, counting all 80 candidates although duplicates are
 * skipped and losers are given up early, and the rate of candidates evaluated to their end, which
 * is the honest speed of the kernel. */
#include "base/clock.h"
#include "base/mem.h"
#include "base/rng.h"
#include "quant/scale_search.h"

#include <inttypes.h>
#include <stdio.h>

static double seconds_of_full_errors(const wquant *how, const float *x, int64_t n, int64_t group,
                                     float *sink) {
    double t = clock_now_s();
    for (int64_t g = 0; g + group <= n; g += group)
        for (int k = 0; k < SCALE_SEARCH_CANDIDATES; k++)
            *sink += scale_error(how, x + g, group, 0.3f - 0.002f * (float)k, 7);
    return clock_now_s() - t;
}

static double seconds_of_searches(const wquant *how, const float *x, int64_t n, int64_t group,
                                  float *sink) {
    double t = clock_now_s();
    for (int64_t g = 0; g + group <= n; g += group) {
        float scale;
        int zero;
        scale_search(how, x + g, group, &scale, &zero);
        *sink += scale;
    }
    return clock_now_s() - t;
}

int main(void) {
    const int64_t n = 1 << 20;
    void *memory;
    err e = mem_alloc(n, sizeof(float), "weights", &memory);
    if (e.code) return e.code;
    float *x = memory, sink = 0;
    for (int64_t i = 0; i < n; i++) x[i] = (float)rng_normal(1, RNG_TEST, (uint64_t)i);
    printf("%-8s %-10s %20s %20s\n", "group", "grid", "evaluated [1/s]", "searched [1/s]");
    const int64_t groups[] = {32, 64, 128, 8192};
    for (int i = 0; i < 4; i++)
        for (int symmetric = 0; symmetric < 2; symmetric++) {
            wquant how = {.bits = 4, .group = groups[i], .symmetric = symmetric, .search = true};
            double count = (double)n * SCALE_SEARCH_CANDIDATES;
            double full = seconds_of_full_errors(&how, x, n, groups[i], &sink);
            double search = seconds_of_searches(&how, x, n, groups[i], &sink);
            printf("%-8" PRId64 " %-10s %20.3g %20.3g\n", groups[i],
                   symmetric ? "symmetric" : "asymmetric", count / full, count / search);
        }
    printf("(%g)\n", (double)sink);
    mem_free(memory);
    return 0;
}
