/* bench_tokenizer TOKENIZER.JSON TEXT... - seconds to load, then MB/s of input text on one thread,
 * the best of five runs a file, each with a cold cache of words. */
#include "base/clock.h"
#include "base/file.h"
#include "base/mem.h"
#include "io/text.h"
#include "io/tokenizer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static int complain(const err *e) {
    fprintf(stderr, "%s: %s\n", e->where, e->what);
    return e->code;
}

static err load(const char *path, tokenizer **t) {
    char *json;
    size_t len;
    double start = clock_now_s();
    err e = file_read_all(path, 1u << 30, &json, &len);
    if (e.code) return e;
    e = tokenizer_create(json, len, path, t);
    free(json);
    if (!e.code)
        printf("%s: loaded in %.3f s, %.1f MB; peak RSS %.0f MiB\n", path, clock_now_s() - start,
               (double)len * 1e-6, (double)mem_peak_rss_bytes() / (1 << 20));
    return e;
}

static err measure(const tokenizer *t, const char *path) {
    char *text;
    size_t len;
    int64_t n = 0;
    double best = 1e300;
    err e = text_read(path, &text, &len);
    for (int run = 0; run < 5 && !e.code; run++) {
        int32_t *ids;
        double start = clock_now_s();
        e = tokenizer_encode(t, text, len, false, &ids, &n);
        double seconds = clock_now_s() - start;
        free(ids);
        if (seconds < best) best = seconds;
    }
    if (e.code) return e;
    printf("  %-60s %9zu bytes %9" PRId64 " ids  %6.1f MB/s\n", path, len, n,
           (double)len * 1e-6 / best);
    free(text);
    return e;
}

int main(int argc, char **argv) {
    tokenizer *t;
    if (argc < 3) {
        fprintf(stderr, "usage: %s TOKENIZER.JSON TEXT...\n", argv[0]);
        return ERR_USAGE;
    }
    err e = load(argv[1], &t);
    if (e.code) return complain(&e);
    for (int i = 2; i < argc; i++) {
        e = measure(t, argv[i]);
        if (e.code) return complain(&e);
    }
    tokenizer_destroy(&t);
    return 0;
}
