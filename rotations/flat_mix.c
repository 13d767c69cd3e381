/* The fast Hadamard transform where the order has one, else a product with a stored Hartley matrix,
 * in blocks of rows. */
#include "rotations/flat_mix.h"

#include "base/gemm.h"
#include "base/mem.h"
#include "base/size.h"
#include "rotations/fwht.h"
#include "rotations/hadamard.h"

#include <math.h>
#include <string.h>

struct flat_mix {
    int64_t n;
    fwht *hadamard;
    double *hartley; /* [n, n], and behind it a block of rows as they came; NULL with a Hadamard */
};

static void fill(int64_t n, double *T) {
    const double turn = 6.283185307179586476925286766559 / (double)n, size = 1 / sqrt((double)n);
#pragma omp parallel for
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++) {
            const double angle = turn * (double)(i * j % n);
            T[i * n + j] = size * (cos(angle) + sin(angle));
        }
}

err flat_mix_create(int64_t n, flat_mix **out) {
    double *p;
    *out = NULL;
    flat_mix *m;
    err e = MEM_NEW(&m, 1, "mixing matrix");
    if (e.code) return e;
    m->n = n;
    if (hadamard_exists(n)) {
        e = fwht_create(n, &m->hadamard);
    } else {
        e = MEM_NEW(&p, (n + FLAT_MIX_ROWS) * n, "mixing matrix");
        if (!e.code) fill(n, m->hartley = p);
    }
    if (e.code) flat_mix_destroy(&m);
    *out = m;
    return e;
}

void flat_mix_destroy(flat_mix **m) {
    if (!*m) return;
    fwht_destroy(&(*m)->hadamard);
    mem_free((*m)->hartley);
    mem_free(*m);
    *m = NULL;
}

void flat_mix_rows(const flat_mix *m, double *x, int64_t rows) {
    const int64_t n = m->n;
    if (m->hadamard) {
        fwht_rows_f64(m->hadamard, x, rows, n, false);
        return;
    }
    double *came = m->hartley + n * n;
    for (int64_t row = 0; row < rows; row += FLAT_MIX_ROWS) {
        const int64_t b = size_min(FLAT_MIX_ROWS, rows - row);
        memcpy(came, x + row * n, (size_t)(b * n) * sizeof *x);
        gemm_f64(GEMM_N, GEMM_N, b, n, n, came, n, m->hartley, n, GEMM_SET, x + row * n, n);
    }
}
