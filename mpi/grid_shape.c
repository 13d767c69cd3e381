/* Which grids are chosen for which orders, and how many rows and columns of a block-cyclic matrix
 * a cell has (the counting rule of ScaLAPACK's NUMROC). */
#include "mpi/grid_shape.h"

#include "base/size.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

grid_shape grid_choose(int64_t n, int ranks) {
    int side = 1;
    if (n < GRID_MIN_ORDER || ranks < 2) return (grid_shape){1, 1};
    if (ranks < 4) return (grid_shape){2, 1};
    while ((side + 1) * (side + 1) <= ranks) side++;
    return (grid_shape){side, side};
}

err grid_resolve(const char *key, const char *text, int64_t n, int ranks, grid_shape *out) {
    grid_shape g = {0, 0};
    char rest;
    if (!strcmp(text, "auto")) {
        *out = grid_choose(n, ranks);
        return err_none();
    }
    if (sscanf(text, "%6dx%6d%c", &g.rows, &g.cols, &rest) != 2 || g.rows < 1 || g.cols < 1)
        return err_make(ERR_USAGE, key, "write auto, or rows x columns as in 2x2",
                        "\"%s\" is no grid", text);
    if ((int64_t)g.rows * g.cols > ranks)
        return err_make(ERR_MISMATCH, key,
                        "start at least that many ranks, or begin a new run with another grid",
                        "a grid of %s needs %" PRId64 " ranks, there are %d", text,
                        (int64_t)g.rows * g.cols, ranks);
    *out = g;
    return err_none();
}

const char *grid_text(grid_shape g, char buf[24]) {
    snprintf(buf, 24, "%dx%d", g.rows, g.cols);
    return buf;
}

int64_t grid_part(int64_t n, int64_t nb, int which, int of) {
    int64_t blocks = n / nb, rest = n % nb;
    int64_t mine = blocks / of * nb;
    if (which < blocks % of) mine += nb;
    if (which == blocks % of) mine += rest;
    return mine;
}

int64_t grid_cell_entries(grid_shape g, int64_t n, int64_t nb) {
    return grid_part(n, nb, 0, g.rows) * grid_part(n, nb, 0, g.cols);
}
