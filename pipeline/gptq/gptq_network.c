/* Almost everything that is sent reaches all other ranks and nodes or comes from all of them.
 * Numbers that all ranks sum count twice: on their way to the sum, and as a part of it; those of
 * which each gets a part once. */
#include "pipeline/gptq/gptq_network.h"

#include "base/size.h"
#include "mpi/dmat.h"
#include "pipeline/gptq/gptq_moments.h"
#include "pipeline/gptq/gptq_stack.h"
#include "quant/gptq.h"
#include "quant/pack.h"

/* Numbers of the upper triangle of n by n in bands of so many rows, each from its diagonal on. */
static uint64_t triangle(int64_t n, int64_t band) {
    uint64_t sum = 0;
    for (int64_t first = 0; first < n; first += band)
        sum += (uint64_t)(size_min(band, n - first) * (n - first));
    return sum;
}

/* Sums of an input of n columns, and the panels of its factor for each part of the rows. */
static uint64_t input_bytes(const gptq_settings *s, int64_t n) {
    const bool grid = n >= s->factor.dist_from && s->factor.grid.rows * s->factor.grid.cols > 1;
    const int64_t panel = gptq_moments_panel_rows(n),
                  band = grid ? DMAT_BLOCK : size_min(s->factor.block, n);
    const uint64_t square = (uint64_t)(n * n), diagonal = 2 * (uint64_t)n,
                   sums = triangle(n, panel), cross = gptq_stack_corrects(s) ? square : 0;
    return sizeof(int64_t) * (diagonal + sums + cross) +
           sizeof(double) * (uint64_t)s->batches * triangle(n, band);
}

/* Codes of a row of n columns, and what goes with them. */
static uint64_t row_bytes(const wquant *how, int64_t n) {
    const uint64_t groups = (uint64_t)(how->group ? size_ceil_div(n, how->group) : 1);
    return (uint64_t)pack_words(n, how->bits) * sizeof(int32_t) +
           groups * (sizeof(float) + !how->symmetric) + sizeof(gptq_loss) + sizeof(qerror);
}

uint64_t gptq_network_bytes(const gptq_settings *s, int parties) {
    /* GPTAQ compares codes to nearest and of each strength; where not the last is the best, that
     * one's go to all once more. */
    const int tries = gptq_stack_tries(s);
    const double shared = tries + s->asymmetric + (tries > 1 ? 0.5 : 0);
    uint64_t sum = 0, numbers = 0, codes = 0;
    for (int step = 0; step < STEP_COUNT; step++) {
        const int first = gptq_step_first((llama_step)step);
        llama_tensor t;
        for (int k = first; k < first + gptq_step_count((llama_step)step); k++) {
            llama_tensor_of(s->job->cfg, llama_linears[k], 0, &t);
            numbers += (uint64_t)(t.rows * t.cols);
            codes += (uint64_t)t.rows * row_bytes(&s->job->how, t.cols);
        }
        sum += input_bytes(s, t.cols);
    }
    /* An error and an energy for each window, of each linear and trial. */
    const uint64_t outputs = s->asymmetric ? (uint64_t)(4 * LLAMA_LINEARS * s->n_windows) : 0;
    /* Products with cross terms go from their columns to their rows: to each party its own. */
    const uint64_t products = gptq_stack_corrects(s) ? numbers * sizeof(double) : 0;
    return sum + numbers * sizeof(float) + products / (uint64_t)parties +
           (uint64_t)(shared * (double)codes) +
           (uint64_t)(shared * (double)(outputs * sizeof(double)));
}
