/* A product is cut into tiles by its shape alone; OpenMP deals tiles to threads, and a tile is one
 * call of a library that is kept to one thread. So the bits of a result do not depend on the
 * number of threads. */
#include "base/gemm.h"

#include "base/blas.h"
#include "base/gemm_internal.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/restart.h"
#include "base/size.h"
#include "base/space.h"

#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The two calls of CBLAS that are made. Declared here, since every library puts its header in
 * another place and under another name; the calls are the same in all of them, with 32-bit sizes.
 */
enum { ROW_MAJOR = 101, AS_IS = 111, TRANSPOSED = 112 };
void cblas_sgemm(int order, int trans_a, int trans_b, int m, int n, int k, float alpha,
                 const float *a, int lda, const float *b, int ldb, float beta, float *c, int ldc);
void cblas_dgemm(int order, int trans_a, int trans_b, int m, int n, int k, double alpha,
                 const double *a, int lda, const double *b, int ldb, double beta, double *c,
                 int ldc);

/* Start. */

static void start_blas(void) {
    blas_set_threads(1);
}

void gemm_ensure_blas(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start_blas);
}

void gemm_enter_blas(void) {
    gemm_ensure_blas();
    if (blas_take_buffers()) return;
    const err e = err_make(ERR_NOFIT, "memory",
                           "raise the limit (ulimit -v), or take fewer threads (OMP_NUM_THREADS)",
                           "address space is limited, and %d threads take 128 MiB each of it for "
                           "products",
                           gemm_threads());
    log_failure(&e); /* a product has no error to give */
    _exit(e.code);
}

/* A thread that cannot be started later ends the process in libgomp, without an error of ours: so
 * they start while there is address space, and where there is little there is one alone. */
static void start_threads(void) {
    const size_t each = (size_t)64 << 20; /* a stack, and that of each team within a team */
    int threads = 0;
    if (!space_limited()) return;
    if (!space_fits((size_t)omp_get_max_threads() * each)) omp_set_num_threads(1);
#pragma omp parallel reduction(+ : threads)
    threads++;
}

int gemm_init(int ranks_on_node) {
    gemm_ensure_blas();
    const char *asked = getenv("OMP_NUM_THREADS");
    if (!asked || !*asked) {
        int threads = machine_cores() / (ranks_on_node > 0 ? ranks_on_node : 1);
        omp_set_num_threads(threads > 0 ? threads : 1);
    }
    start_threads();
    return omp_get_max_threads();
}

int gemm_threads(void) {
    return omp_get_max_threads();
}

void gemm_blas_threads(int threads) {
    gemm_ensure_blas();
    blas_set_threads(threads);
}

int gemm_thread(void) {
    return omp_get_thread_num();
}

/* What runs. */

void gemm_kernels(char *buf, size_t size) {
    gemm_ensure_blas();
    char blas[160], bf16_part[160];
    blas_name(blas, sizeof blas);
    gemm_bf16_kernels(bf16_part, sizeof bf16_part);
    snprintf(buf, size, "%s fp32 fp64; %s", blas, bf16_part);
}

bool gemm_slow_kernels(char *buf, size_t size) {
    const char *core = blas_openblas_core(), *better = restart_better_core(core);
    const char *set = getenv("OPENBLAS_CORETYPE");
    if (!better) return false;
    if (set && *set) {
        snprintf(buf, size,
                 "OPENBLAS_CORETYPE=%s leaves OpenBLAS with its %s kernels, at half the speed of "
                 "this CPU or less; unset, the program would ask for %s",
                 set, core, better);
    } else {
        snprintf(buf, size,
                 "OpenBLAS runs its %s kernels at half the speed of this CPU or less: leave out "
                 "--keep-kernels and SPINSHARD_KEEP_KERNELS, or set OPENBLAS_CORETYPE=%s",
                 core, better);
    }
    return true;
}

/* Tiles. */

_Noreturn void gemm_abort(const char *what, int64_t m, int64_t n, int64_t k) {
    fprintf(stderr, "spinshard: bug: matrix product of shape [%lld, %lld, %lld]: %s\n",
            (long long)m, (long long)n, (long long)k, what);
    abort();
}

static int blas_int(int64_t v, int64_t m, int64_t n, int64_t k) {
    int i;
    if (v < 0 || size_to_int(v, "size", &i).code) gemm_abort("does not fit an int", m, n, k);
    return i;
}

/* BLAS wants a stride of at least 1 even where there is one row. */
static int blas_stride(int64_t ld, int64_t m, int64_t n, int64_t k) {
    return blas_int(size_max(ld, 1), m, n, k);
}

void gemm_tile_f32(gemm_op op_a, gemm_op op_b, int64_t m, int64_t n, int64_t k, const float *a,
                   int64_t lda, const float *b, int64_t ldb, gemm_into into, float *c,
                   int64_t ldc) {
    gemm_enter_blas();
    if (m == 0 || n == 0 || (k == 0 && into == GEMM_ADD)) return;
    if (k == 0) {
        for (int64_t i = 0; i < m; i++) memset(c + i * ldc, 0, (size_t)n * sizeof *c);
        return;
    }
    cblas_sgemm(ROW_MAJOR, op_a == GEMM_T ? TRANSPOSED : AS_IS, op_b == GEMM_T ? TRANSPOSED : AS_IS,
                blas_int(m, m, n, k), blas_int(n, m, n, k), blas_int(k, m, n, k), 1.0f, a,
                blas_stride(lda, m, n, k), b, blas_stride(ldb, m, n, k),
                into == GEMM_ADD ? 1.0f : 0.0f, c, blas_stride(ldc, m, n, k));
}

void gemm_tile_f64(gemm_op op_a, gemm_op op_b, int64_t m, int64_t n, int64_t k, const double *a,
                   int64_t lda, const double *b, int64_t ldb, gemm_into into, double *c,
                   int64_t ldc) {
    gemm_enter_blas();
    if (m == 0 || n == 0 || (k == 0 && into == GEMM_ADD)) return;
    if (k == 0) {
        for (int64_t i = 0; i < m; i++) memset(c + i * ldc, 0, (size_t)n * sizeof *c);
        return;
    }
    cblas_dgemm(ROW_MAJOR, op_a == GEMM_T ? TRANSPOSED : AS_IS, op_b == GEMM_T ? TRANSPOSED : AS_IS,
                blas_int(m, m, n, k), blas_int(n, m, n, k), blas_int(k, m, n, k), 1.0, a,
                blas_stride(lda, m, n, k), b, blas_stride(ldb, m, n, k),
                into == GEMM_ADD ? 1.0 : 0.0, c, blas_stride(ldc, m, n, k));
}

/* Large tiles spare the libraries' packing, small ones keep many cores busy: the largest side that
 * gives enough tiles (512, 256 or 128 for 64 of them; of bf16, which packs or widens both factors
 * for each tile, gemm_bf16_side, 256 or 128 for 16). */
void gemm_tile_shape(int64_t m, int64_t n, int64_t k, size_t element, int64_t *tile_m,
                     int64_t *tile_n) {
    (void)k;
    const bool half = element == sizeof(bf16);
    const int64_t enough = half ? 16 : 64;
    int64_t side = half ? gemm_bf16_side() : 512;
    while (side > 128 && size_ceil_div(m, side) * size_ceil_div(n, side) < enough) side /= 2;
    *tile_m = side;
    *tile_n = side;
}

/* The rectangle of tile number t. */
typedef struct tile_rect {
    int64_t i, m, j, n;
} tile_rect;

static tile_rect tile_at(int64_t t, int64_t m, int64_t n, int64_t tile_m, int64_t tile_n) {
    int64_t down = size_ceil_div(m, tile_m);
    tile_rect r = {.i = t % down * tile_m, .j = t / down * tile_n};
    r.m = size_min(tile_m, m - r.i);
    r.n = size_min(tile_n, n - r.j);
    return r;
}

void gemm_f32(gemm_op op_a, gemm_op op_b, int64_t m, int64_t n, int64_t k, const float *a,
              int64_t lda, const float *b, int64_t ldb, gemm_into into, float *c, int64_t ldc) {
    int64_t tm, tn;
    gemm_tile_shape(m, n, k, sizeof *a, &tm, &tn);
    int64_t tiles = size_ceil_div(m, tm) * size_ceil_div(n, tn);
#pragma omp parallel for schedule(dynamic) if (tiles > 1)
    for (int64_t t = 0; t < tiles; t++) {
        tile_rect r = tile_at(t, m, n, tm, tn);
        gemm_tile_f32(op_a, op_b, r.m, r.n, k, a + (op_a == GEMM_T ? r.i : r.i * lda), lda,
                      b + (op_b == GEMM_T ? r.j * ldb : r.j), ldb, into, c + r.i * ldc + r.j, ldc);
    }
}

void gemm_f64(gemm_op op_a, gemm_op op_b, int64_t m, int64_t n, int64_t k, const double *a,
              int64_t lda, const double *b, int64_t ldb, gemm_into into, double *c, int64_t ldc) {
    int64_t tm, tn;
    gemm_tile_shape(m, n, k, sizeof *a, &tm, &tn);
    int64_t tiles = size_ceil_div(m, tm) * size_ceil_div(n, tn);
#pragma omp parallel for schedule(dynamic) if (tiles > 1)
    for (int64_t t = 0; t < tiles; t++) {
        tile_rect r = tile_at(t, m, n, tm, tn);
        gemm_tile_f64(op_a, op_b, r.m, r.n, k, a + (op_a == GEMM_T ? r.i : r.i * lda), lda,
                      b + (op_b == GEMM_T ? r.j * ldb : r.j), ldb, into, c + r.i * ldc + r.j, ldc);
    }
}

void gemm_bf16(gemm_op op_b, int64_t m, int64_t n, int64_t k, const bf16 *a, int64_t lda,
               const bf16 *b, int64_t ldb, gemm_into into, float *c, int64_t ldc) {
    int64_t tm, tn;
    gemm_tile_shape(m, n, k, sizeof *a, &tm, &tn);
    int64_t tiles = size_ceil_div(m, tm) * size_ceil_div(n, tn);
#pragma omp parallel for schedule(dynamic) if (tiles > 1)
    for (int64_t t = 0; t < tiles; t++) {
        tile_rect r = tile_at(t, m, n, tm, tn);
        gemm_tile_bf16(op_b, r.m, r.n, k, a + r.i * lda, lda,
                       b + (op_b == GEMM_T ? r.j * ldb : r.j), ldb, into, c + r.i * ldc + r.j, ldc);
    }
}
