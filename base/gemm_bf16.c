/* The bf16 product: oneDNN's matmul where it is there and the CPU multiplies bf16 faster than fp32,
 * which is by AMX, or by AVX512_BF16 on AMD; else the fp32 product of widened factors. Intel's
 * AVX512_BF16 is slower than its fp32 product (docs/DECISIONS.md). */
#include "base/gemm.h"

#include "base/gemm_internal.h"
#include "base/size.h"
#include "version.h"

#ifdef __x86_64__
#include <cpuid.h>
#endif
#include <omp.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if SPINSHARD_DNNL
#include "base/onednn.h"
#endif

/* Which instructions of this CPU multiply bf16 faster than fp32. By what it says of itself and not
 * by a timing, so equal CPUs give equal bytes. */
typedef enum bf16_units { BF16_NONE, BF16_AVX512, BF16_AMX } bf16_units;

#ifdef __x86_64__
static bool made_by_amd(void) {
    unsigned most, name[3];
    if (!__get_cpuid(0, &most, &name[0], &name[2], &name[1])) return false;
    return memcmp(name, "AuthenticAMD", sizeof name) == 0 ||
           memcmp(name, "HygonGenuine", sizeof name) == 0;
}

static bf16_units cpu_bf16_units(void) {
    unsigned a, b, c, d;
    if (__get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & 1u << 22)) return BF16_AMX; /* AMX-BF16 */
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 5) && made_by_amd())
        return BF16_AVX512; /* AVX512_BF16 */
    return BF16_NONE;
}
#else
static bf16_units cpu_bf16_units(void) {
    return BF16_NONE;
}
#endif

/* Without bf16 kernels. */

/* What a thread keeps from call to call is freed when it ends: OpenMP ends threads where it is
 * asked for fewer than it has. */
static pthread_key_t buffer_key;

static void make_buffer_key(void) {
    if (pthread_key_create(&buffer_key, free)) abort();
}

float *gemm_widen_buffer(int64_t count, int64_t m, int64_t n, int64_t k) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static _Thread_local float *buffer;
    static _Thread_local int64_t room;
    if (count > room) {
        pthread_once(&once, make_buffer_key);
        free(buffer);
        buffer = aligned_alloc(64, (size_t)size_ceil_div(count, 16) * 64);
        if (!buffer) gemm_abort("out of memory for fp32 copies of bf16 factors", m, n, k);
        if (pthread_setspecific(buffer_key, buffer)) abort();
        room = count;
    }
    return buffer;
}

/* A tile's factors are widened so many columns at a time, while twice as many are left: whole,
 * sides of 512 rows and 8192 columns are 32 MiB that go through memory on their way to the product.
 * The number is twice that by which OpenBLAS cuts an fp32 product for AVX-512, so its sums, and
 * with them the bits, are there those of one call. */
enum { WIDE_COLUMNS = 896 };

static void tile_widened(gemm_op op_b, int64_t m, int64_t n, int64_t k, const bf16 *a, int64_t lda,
                         const bf16 *b, int64_t ldb, gemm_into into, float *c, int64_t ldc) {
    const int64_t most = size_min(2 * WIDE_COLUMNS - 1, k);
    float *wide_a = gemm_widen_buffer((m + n) * most, m, n, k), *wide_b = wide_a + m * most;
    int64_t k0 = 0;
    do { /* once where k is 0, for the zeros */
        const int64_t d = k - k0 >= 2 * WIDE_COLUMNS ? WIDE_COLUMNS : k - k0;
        const int64_t b_rows = op_b == GEMM_T ? n : d, b_cols = op_b == GEMM_T ? d : n;
        const bf16 *b0 = b + (op_b == GEMM_T ? k0 : k0 * ldb);
        for (int64_t i = 0; i < m; i++) half_array_from_bf16(a + i * lda + k0, d, wide_a + i * d);
        for (int64_t i = 0; i < b_rows; i++)
            half_array_from_bf16(b0 + i * ldb, b_cols, wide_b + i * b_cols);
        gemm_tile_f32(GEMM_N, op_b, m, n, d, wide_a, d, wide_b, b_cols, k0 > 0 ? GEMM_ADD : into, c,
                      ldc);
        k0 += d;
    } while (k0 < k);
}

#if SPINSHARD_DNNL

/* With oneDNN. A matmul is made for one shape; each thread keeps those it has used, so that no lock
 * and no creation stands in the way of a tile. */
enum { CACHE_SLOTS = 256, CACHE_PROBES = 8 };

typedef struct matmul_cache {
    dnnl_stream_t stream;
    matmul slots[CACHE_SLOTS];
} matmul_cache;

static dnnl_engine_t engine;
static bf16_units in_use; /* once started */

/* Those of the CPU that oneDNN knows, and that ONEDNN_MAX_CPU_ISA leaves it. */
static bf16_units usable_units(void) {
    static const dnnl_cpu_isa_t isas[] = {
        [BF16_AVX512] = dnnl_cpu_isa_avx512_core_bf16, [BF16_AMX] = dnnl_cpu_isa_avx512_core_amx};
    const bf16_units units = cpu_bf16_units();
    const dnnl_cpu_isa_t isa = isas[units];
    return units != BF16_NONE && (dnnl_get_effective_cpu_isa() & isa) == isa ? units : BF16_NONE;
}

static void start_onednn(void) {
    in_use = usable_units();
    if (in_use != BF16_NONE && dnnl_engine_create(&engine, dnnl_cpu, 0) != dnnl_success)
        in_use = BF16_NONE;
}

static bf16_units units_in_use(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, start_onednn);
    return in_use;
}

void gemm_bf16_kernels(char *buf, size_t size) {
    const dnnl_version_t *v = dnnl_version();
    if (units_in_use() != BF16_NONE)
        snprintf(buf, size, "oneDNN %d.%d.%d %s bf16", v->major, v->minor, v->patch,
                 units_in_use() == BF16_AMX ? "AMX" : "AVX-512");
    else
        snprintf(buf, size, "bf16 in fp32%s",
                 cpu_bf16_units() == BF16_NONE ? ", the faster of the two here" : "");
}

static void need(dnnl_status_t status, const matmul_key *k) {
    if (status == dnnl_success) return;
    gemm_abort(status == dnnl_out_of_memory ? "oneDNN is out of memory" : "oneDNN refused it", k->m,
               k->n, k->k);
}

/* The order of AMX kernels: columns in blocks of PAIRS_COLS, in each the rows of b two by two, as
 * [k/2][PAIRS_COLS][2]; zeros where k or n end within a block. */
enum { PAIRS_COLS = 64, PAIRS_ROWS = 32, AHEAD = 16 };

static void pack_destroy(matmul *p) {
    if (!p->pack) return;
    dnnl_primitive_destroy(p->pack);
    dnnl_memory_destroy(p->loose);
    dnnl_memory_destroy(p->packed);
    p->pack = NULL;
}

static void matmul_destroy(matmul *p) {
    pack_destroy(p);
    dnnl_primitive_destroy(p->primitive);
    dnnl_memory_destroy(p->a);
    dnnl_memory_destroy(p->b);
    dnnl_memory_destroy(p->c);
    *p = (matmul){0};
}

static uint64_t key_hash(const matmul_key *k) {
    const int64_t v[] = {
        k->m, k->n, k->k, k->lda, k->ldb, k->ldc, k->packed * 4 + k->trans_b * 2 + k->add};
    uint64_t h = 0;
    for (size_t i = 0; i < sizeof v / sizeof *v; i++) {
        h = (h ^ (uint64_t)v[i]) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return h;
}

static matmul *matmul_find(matmul_cache *cache, const matmul_key *k) {
    uint64_t first = key_hash(k);
    matmul *p = NULL;
    for (uint64_t i = 0; i < CACHE_PROBES; i++) {
        p = &cache->slots[(first + i) % CACHE_SLOTS];
        if (!p->primitive) break;
        if (memcmp(&p->key, k, sizeof *k) == 0) return p;
    }
    if (p->primitive) matmul_destroy(p); /* all probed are taken: the last makes room */
    need(onednn_matmul_create(engine, k, p), k);
    return p;
}

static pthread_key_t cache_key;

static void cache_destroy(void *of_thread) {
    matmul_cache *cache = of_thread;
    for (int i = 0; i < CACHE_SLOTS; i++)
        if (cache->slots[i].primitive) matmul_destroy(&cache->slots[i]);
    dnnl_stream_destroy(cache->stream);
    free(cache);
}

static void make_cache_key(void) {
    if (pthread_key_create(&cache_key, cache_destroy)) abort();
}

static matmul_cache *thread_cache(const matmul_key *k) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    static _Thread_local matmul_cache *cache;
    if (!cache) {
        pthread_once(&once, make_cache_key);
        cache = calloc(1, sizeof *cache);
        if (!cache) gemm_abort("out of memory for the cache of shapes", k->m, k->n, k->k);
        need(dnnl_stream_create(&cache->stream, engine, dnnl_stream_default_flags), k);
        if (pthread_setspecific(cache_key, cache)) abort();
    }
    return cache;
}

static void tile_onednn(const matmul_key *k, const bf16 *a, const bf16 *b, float *c) {
    /* oneDNN asks OpenMP for the number of threads when it picks a kernel and when it runs one. */
    int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    matmul_cache *cache = thread_cache(k);
    matmul *p = matmul_find(cache, k);
    need(dnnl_memory_set_data_handle(p->a, (void *)(uintptr_t)a), k);
    need(dnnl_memory_set_data_handle(p->b, (void *)(uintptr_t)b), k);
    need(dnnl_memory_set_data_handle(p->c, c), k);
    const dnnl_exec_arg_t args[] = {
        {DNNL_ARG_SRC, p->a}, {DNNL_ARG_WEIGHTS, p->b}, {DNNL_ARG_DST, p->c}};
    need(dnnl_primitive_execute(p->primitive, cache->stream, 3, args), k);
    need(dnnl_stream_wait(cache->stream), k);
    omp_set_num_threads(threads);
}

static matmul_key packed_key(int64_t m, int64_t n, int64_t k) {
    return (matmul_key){.m = m, .n = n, .k = k, .lda = k, .ldc = n, .packed = 1};
}

/* Two rows of a block of columns, `cols` of them there, side by side; second: NULL for zeros. */
static void pair_rows(const bf16 *first, const bf16 *second, int64_t cols, bf16 *out) {
    if (cols == PAIRS_COLS && second) {
        for (int64_t j = 0; j < PAIRS_COLS; j++) {
            const uint32_t both = first[j] | (uint32_t)second[j] << 16;
            memcpy(out + 2 * j, &both, sizeof both);
        }
        return;
    }
    memset(out, 0, 2 * PAIRS_COLS * sizeof *out);
    for (int64_t j = 0; j < cols && first; j++) out[2 * j] = first[j];
    for (int64_t j = 0; j < cols && second; j++) out[2 * j + 1] = second[j];
}

/* b [k,n] row by row, which oneDNN's own reorder does several times as slowly. Rows are pages
 * apart, so the CPU must be told what comes. */
static void pack_pairs(const matmul_key *k, const bf16 *b, int64_t ldb, bf16 *out) {
    const int64_t height = size_ceil_div(k->k, PAIRS_ROWS) * PAIRS_ROWS;
    for (int64_t i = 0; i < height; i += 2)
        for (int64_t j = 0; j < k->n; j += PAIRS_COLS) {
            for (int64_t r = i + AHEAD; r < i + AHEAD + 2 && r < k->k; r++) {
                __builtin_prefetch(b + r * ldb + j);
                __builtin_prefetch(b + r * ldb + j + PAIRS_COLS / 2);
            }
            pair_rows(i < k->k ? b + i * ldb + j : NULL,
                      i + 1 < k->k ? b + (i + 1) * ldb + j : NULL, size_min(PAIRS_COLS, k->n - j),
                      out + j * height + i * PAIRS_COLS);
        }
}

/* b into the order that the kernel of this key asks for. */
static void pack_onednn(const matmul_key *k, gemm_op op_b, const bf16 *b, int64_t ldb, void *out) {
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    matmul_cache *cache = thread_cache(k);
    matmul *p = matmul_find(cache, k);
    if (p->in_pairs && op_b == GEMM_N) {
        omp_set_num_threads(threads);
        pack_pairs(k, b, ldb, out);
        return;
    }
    if (p->pack && (p->loose_trans != (op_b == GEMM_T) || p->loose_ld != ldb)) pack_destroy(p);
    if (!p->pack) {
        need(onednn_pack_create(engine, op_b == GEMM_T, ldb, p), k);
        p->loose_trans = op_b == GEMM_T;
        p->loose_ld = ldb;
    }
    need(dnnl_memory_set_data_handle(p->loose, (void *)(uintptr_t)b), k);
    need(dnnl_memory_set_data_handle(p->packed, out), k);
    const dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, p->loose}, {DNNL_ARG_TO, p->packed}};
    need(dnnl_primitive_execute(p->pack, cache->stream, 2, args), k);
    need(dnnl_stream_wait(cache->stream), k);
    omp_set_num_threads(threads);
}

static size_t packed_bytes(const matmul_key *k) {
    return matmul_find(thread_cache(k), k)->b_bytes;
}

#else

static bf16_units units_in_use(void) {
    return BF16_NONE;
}

void gemm_bf16_kernels(char *buf, size_t size) {
    snprintf(buf, size, "bf16 in fp32 (built without oneDNN)");
}

#endif

bool gemm_has_bf16(void) {
    return units_in_use() != BF16_NONE;
}

/* AMX gains nothing beyond 256. */
int64_t gemm_bf16_side(void) {
    return units_in_use() == BF16_AMX ? 256 : 512;
}

void gemm_tile_bf16(gemm_op op_b, int64_t m, int64_t n, int64_t k, const bf16 *a, int64_t lda,
                    const bf16 *b, int64_t ldb, gemm_into into, float *c, int64_t ldc) {
    if (m == 0 || n == 0 || (k == 0 && into == GEMM_ADD)) return;
#if SPINSHARD_DNNL
    if (gemm_has_bf16() && k > 0) {
        /* oneDNN 3.7.2 writes behind the last column of a row where rows lie apart: it gets rows
         * of its own then, which are copied. */
        const bool apart = SPINSHARD_DNNL == 3 && ldc != n;
        float *own = apart ? gemm_widen_buffer(m * n, m, n, k) : c;
        for (int64_t i = 0; apart && into == GEMM_ADD && i < m; i++)
            memcpy(own + i * n, c + i * ldc, (size_t)n * sizeof *c);
        const matmul_key key = {.m = m,
                                .n = n,
                                .k = k,
                                .lda = lda,
                                .ldb = ldb,
                                .ldc = apart ? n : ldc,
                                .trans_b = op_b == GEMM_T,
                                .add = into == GEMM_ADD};
        tile_onednn(&key, a, b, own);
        for (int64_t i = 0; apart && i < m; i++)
            memcpy(c + i * ldc, own + i * n, (size_t)n * sizeof *c);
        return;
    }
#endif
    tile_widened(op_b, m, n, k, a, lda, b, ldb, into, c, ldc);
}

/* A factor packed once. Without bf16 kernels it is a plain [k, n], widened. */

uint64_t gemm_packed_bytes(int64_t m, int64_t n, int64_t k) {
#if SPINSHARD_DNNL
    if (gemm_has_bf16()) {
        const int threads = omp_get_max_threads();
        omp_set_num_threads(1);
        const matmul_key key = packed_key(m, n, k);
        const uint64_t bytes = packed_bytes(&key);
        omp_set_num_threads(threads);
        return bytes;
    }
#endif
    (void)m;
    return (uint64_t)(n * k) * sizeof(float);
}

void gemm_pack_bf16(gemm_op op_b, int64_t m, int64_t n, int64_t k, const bf16 *b, int64_t ldb,
                    void *packed) {
#if SPINSHARD_DNNL
    if (gemm_has_bf16()) {
        const matmul_key key = packed_key(m, n, k);
        pack_onednn(&key, op_b, b, ldb, packed);
        return;
    }
#endif
    (void)m;
    float *to = packed;
    for (int64_t i = 0; i < k && op_b == GEMM_N; i++)
        half_array_from_bf16(b + i * ldb, n, to + i * n);
    for (int64_t i = 0; i < k && op_b == GEMM_T; i++)
        for (int64_t j = 0; j < n; j++) to[i * n + j] = half_from_bf16(b[j * ldb + i]);
}

void gemm_tile_packed_bf16(int64_t m, int64_t n, int64_t k, const bf16 *a, const void *packed,
                           float *c) {
#if SPINSHARD_DNNL
    if (gemm_has_bf16()) {
        const matmul_key key = packed_key(m, n, k);
        tile_onednn(&key, a, packed, c);
        return;
    }
#endif
    float *wide = gemm_widen_buffer(m * k, m, n, k);
    half_array_from_bf16(a, m * k, wide);
    gemm_tile_f32(GEMM_N, GEMM_N, m, n, k, wide, k, packed, n, GEMM_SET, c, n);
}

/* What a user should know of the choice. */

bool gemm_slow_bf16(char *buf, size_t size) {
    const bf16_units units = cpu_bf16_units();
    if (gemm_has_bf16() || units == BF16_NONE) return false;
    snprintf(buf, size, "the CPU has %s, but %s: products in bf16 run in fp32, at %s of the speed",
             units == BF16_AMX ? "AMX" : "AVX512_BF16",
             SPINSHARD_DNNL ? "oneDNN does not use it (ONEDNN_MAX_CPU_ISA, or an old kernel)"
                            : "this program was built without oneDNN",
             units == BF16_AMX ? "a quarter" : "half");
    return true;
}
