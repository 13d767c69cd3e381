/* tool_stats FILE WIDTH TURNED: statistics of rows of floats in a file, as JSON: {"kurtosis",
 * "max_over_rms", "log_qsur"} as they are and rotated by the Hadamard matrix of that order (where
 * none is known: in blocks of the greatest power of two); the rotated rows go to TURNED. */
#include "base/file.h"
#include "base/gemm.h"
#include "model/site_stats.h"
#include "rotations/rotation.h"

#include <stdio.h>
#include <stdlib.h>

static void tell(const char *name, const float *x, int64_t rows, int64_t width) {
    site_stats s = {.width = width};
    double log_det;
    site_stats_add(&s, x, rows);
    if (site_log_det(x, rows, width, &log_det).code) exit(1);
    printf("\"%s\": {\"kurtosis\": %.17g, \"max_over_rms\": %.17g, \"log_qsur\": %.17g}", name,
           site_kurtosis(&s), s.most / site_rms(&s), site_log_qsur(width, log_det, s.most));
}

int main(int argc, char **argv) {
    char *bytes = NULL;
    size_t len = 0;
    rotation *r = NULL;
    if (argc != 4) return 2;
    gemm_init(1);
    const int64_t width = strtoll(argv[2], NULL, 10);
    if (width < 1 || file_read_all(argv[1], (int64_t)1 << 31, &bytes, &len).code) return 1;
    float *x = (float *)(void *)bytes;
    const int64_t rows = (int64_t)(len / sizeof *x) / width;
    printf("{");
    tell("before", x, rows, width);
    if (rotation_create_hadamard(width, NULL, &r).code &&
        rotation_create_blocks(width, width & -width, NULL, &r).code)
        return 1;
    rotation_apply_f32(r, x, rows, width, false);
    printf(", ");
    tell("after", x, rows, width);
    puts("}");
    rotation_destroy(&r);
    const err e = file_publish(argv[3], bytes, len);
    free(bytes);
    return e.code;
}
