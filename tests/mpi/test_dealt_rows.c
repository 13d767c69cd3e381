/* Rows dealt over the ranks: what is put comes back on every rank, whatever the sizes, the bands
 * and the number of ranks, and no rank holds more than its share. */
#include "mpi/dealt_rows.h"
#include "tests/mpi/on_ranks.h"

#include <stdio.h>
#include <stdlib.h>

static double value(int64_t i, int64_t j) {
    return (double)(i * 1000 + j) + 0.5;
}

static void fill(double *v, int64_t row, int64_t rows, int64_t width) {
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < width; j++) v[i * width + j] = value(row + i, j);
}

/* In bands of `put` rows, back in bands of `get`. */
static void round_trip(const comm *c, int64_t n, int64_t width, int64_t put, int64_t get) {
    dealt_rows *d;
    double *v = calloc((size_t)(n * width), sizeof *v);
    if (!v) abort();
    check(!dealt_rows_create(c, n, width, "test", &d).code, "create");
    const int64_t size = comm_size(c), share = (n + size - 1) / size;
    check(dealt_rows_bytes(d) == (uint64_t)(share * width) * sizeof *v, "a share and no more");
    for (int64_t row = 0; row < n; row += put) {
        const int64_t b = put < n - row ? put : n - row;
        fill(v, row, b, width);
        dealt_rows_put(d, row, b, v);
    }
    bool same = true;
    for (int64_t row = 0; row < n; row += get) {
        const int64_t b = get < n - row ? get : n - row;
        for (int64_t k = 0; k < b * width; k++) v[k] = -1;
        dealt_rows_get(d, row, b, v);
        for (int64_t k = 0; k < b * width; k++) same &= v[k] == value(row + k / width, k % width);
    }
    check(same, "what was put comes back");
    dealt_rows_destroy(&d);
    check(!d, "destroy sets NULL");
    free(v);
}

int main(int argc, char **argv) {
    const comm *c = ranks_start(&argc, &argv);
    round_trip(c, 13, 7, 5, 4);
    round_trip(c, 13, 7, 13, 1);
    round_trip(c, 12, 3, 1, 12);
    round_trip(c, 1, 5, 1, 1); /* more ranks than rows */
    round_trip(c, 5, 1, 2, 3); /* on 4 ranks the last one has none */
    return ranks_end();
}
