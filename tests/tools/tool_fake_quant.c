/* tool_fake_quant BITS GROUP RULE N - rows of N fp32 numbers from stdin, as a site of symmetric
 * inputs sees them, to stdout. GROUP 0: a range per row. RULE: published or compressed-tensors. For
 * scripts that hold other programs against the quantizer of eval. */
#include "base/err.h"
#include "model/site.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
    if (argc != 5) return ERR_USAGE;
    const int64_t n = atoll(argv[4]);
    const site s = {.quant = {.bits = atoi(argv[1]),
                              .symmetric = true,
                              .clip = {1, 1},
                              .compressed_tensors_scale = !strcmp(argv[3], "compressed-tensors"),
                              .group = atoll(argv[2])},
                    .include_zero = true,
                    .n = n,
                    .segment = n,
                    .share = 1,
                    .before_share = 1};
    float *row = malloc((size_t)n * sizeof *row);
    if (!row || n < 1 || (s.quant.group && n % s.quant.group)) return ERR_USAGE;
    while (fread(row, sizeof *row, (size_t)n, stdin) == (size_t)n) {
        site_apply_f32(&s, row, 1, NULL);
        fwrite(row, sizeof *row, (size_t)n, stdout);
    }
    free(row);
    return 0;
}
