/* Each rate is the best of a few runs of a fraction of a second; named CPUs have rates from clock,
 * vector width and instructions. */
#include "pipeline/plan/plan_rates.h"

#include "base/clock.h"
#include "base/gemm.h"
#include "base/machine.h"
#include "base/mem.h"
#include "base/sha256.h"
#include "base/size.h"
#include "pipeline/plan/product_peak.h"
#include "quant/scale_search.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Sustained rates of a core: 75 % of the peak in fp32, 70 % in bf16, 40 % of it in AMX, by clock
 * and width of the vectors, all cores busy. A core among idle ones has its highest clock: that over
 * the clock of the rates is its boost. Genoa's was measured (docs/MEASUREMENTS.md). */
static const struct {
    const char *kind, *cpus; /* parts of the names of CPUs, separated by '|' */
    double bf16, f32;        /* Gflop/s */
    double boost;            /* a core among idle ones is so many times as fast */
    const char *blas;        /* kernels of OpenBLAS 0.3.21 */
} kinds[] = {
    {"turin", "EPYC 9.55|EPYC 9.65|EPYC 9755|EPYC 9965|Zen 5", 230, 115, 1.7, "Cooperlake"},
    {"genoa", "EPYC 9.54|EPYC 9654|EPYC 9554|EPYC 9754|Zen 4", 110, 58, 1.7, "Cooperlake"},
    {"milan", "EPYC 7", 58, 58, 1.5, "Zen"},
    {"granite-rapids", "Xeon 6|6980P|6960P|Granite", 1600, 96, 1.9, "SkylakeX"},
    {"sapphire-rapids", "Platinum 84|Gold 64|Gold 54|Platinum 85|Gold 65|Gold 55|CPU Max", 1600, 96,
     1.9, "SkylakeX"},
    {"ice-lake", "Platinum 83|Gold 63|Gold 53", 105, 105, 1.6, "SkylakeX"},
    {"cascade-lake", "Platinum 82|Gold 62|Gold 52|Platinum 92|Platinum 81|Gold 61|Skylake", 90, 90,
     1.9, "SkylakeX"},
    {"grace", "Grace|Neoverse-V2", 270, 75, 1.1, ""},
    {"avx512", NULL, 80, 80, 1.7, "SkylakeX"}, /* by instruction set, where the name says nothing */
    {"avx2", NULL, 40, 40, 1.7, "Haswell"},
};
enum { KINDS = sizeof kinds / sizeof *kinds, KIND_AMX = 4, KIND_BF16 = 1, KIND_AVX512 = 8 };

/* Times by counted work and the right rates may be so many times as long, or as short. */
#define COUNTED 1.5

/* Of vector work and the search only the ratio to fp32 products is known, from the machine that the
 * constants of pipeline/plan/plan_time.c were measured on. */
#define VECTOR_OF_F32 5.6e-3
#define SEARCH_OF_F32 8e-3

/* A dot in a part stands for any character. */
static bool name_has(const char *name, const char *part, size_t n) {
    for (; strlen(name) >= n; name++) {
        size_t i = 0;
        while (i < n && (part[i] == '.' || part[i] == name[i])) i++;
        if (i == n) return true;
    }
    return false;
}

static int kind_of_name(const char *name) {
    for (int k = 0; k < KINDS; k++)
        for (const char *p = kinds[k].cpus; p && *p;) {
            const size_t n = strcspn(p, "|");
            if (name_has(name, p, n)) return k;
            p += n + (p[n] == '|');
        }
    return -1;
}

/* What products of bf16 run on tells a CPU that a virtual machine hides. */
static int kind_of_kernels(void) {
    char kernels[256];
    gemm_kernels(kernels, sizeof kernels);
    if (strstr(kernels, "AMX")) return KIND_AMX;
    if (gemm_has_bf16()) return KIND_BF16;
    return KIND_AVX512 + !__builtin_cpu_supports("avx512f");
}

static err unknown_kind(const char *kind) {
    char names[200] = "auto";
    for (int k = 0; k < KINDS; k++) {
        const size_t used = strlen(names);
        snprintf(names + used, sizeof names - used, ", %s", kinds[k].kind);
    }
    return err_make(ERR_USAGE, "--cpu", NULL, "\"%.40s\" is none of: %s", kind, names);
}

err plan_rates_of(const char *kind, plan_rates *out) {
    char cpu[128];
    int k = -1;
    machine_cpu_name(cpu, sizeof cpu);
    if (!strcmp(kind, "auto")) {
        k = kind_of_name(cpu);
        if (k < 0) k = kind_of_kernels();
    } else {
        for (int i = 0; i < KINDS; i++)
            if (!strcmp(kind, kinds[i].kind)) k = i;
    }
    if (k < 0) return unknown_kind(kind);
    const double f32 = kinds[k].f32 * 1e9;
    *out = (plan_rates){.bf16 = kinds[k].bf16 * 1e9,
                        .f32 = f32,
                        .f64 = f32 / 2,
                        .search = SEARCH_OF_F32 * f32,
                        .vector = VECTOR_OF_F32 * f32,
                        .hash = 1.2e9,
                        .read = 2e9,
                        .write = 1.2e9,
                        .network = 10e9,
                        .latency = 2e-6,
                        .spread = 2,
                        .faster = COUNTED * kinds[k].boost};
    snprintf(out->blas, sizeof out->blas, "%s", kinds[k].blas);
    snprintf(out->from, sizeof out->from, "a table: %s cores; not measured", kinds[k].kind);
    snprintf(out->network_from, sizeof out->network_from, "100G is taken: say it with --network");
    return err_none();
}

err plan_rates_network(const char *text, plan_rates *r) {
    static const struct {
        const char *name;
        double gigabits;
    } nets[] = {{"10GbE", 10},   {"25GbE", 25}, {"100GbE", 100}, {"100G", 100},
                {"HDR100", 100}, {"EDR", 100},  {"HDR", 200},    {"NDR", 400}};
    const double reached = 0.8; /* of the line rate, by long messages of MPI */
    uint64_t bytes;
    snprintf(r->network_from, sizeof r->network_from, "--network");
    for (size_t i = 0; i < sizeof nets / sizeof *nets; i++)
        if (!strcasecmp(text, nets[i].name)) {
            r->network = reached * nets[i].gigabits * 1e9 / 8;
            return err_none();
        }
    if (!size_parse(text, &bytes).code && bytes) {
        r->network = (double)bytes;
        return err_none();
    }
    return err_make(ERR_USAGE, "--network",
                    "10GbE, 25GbE, 100GbE, 100G, HDR100, EDR, HDR, NDR, or bytes a second as 12G",
                    "\"%s\" is no network that is known here", text);
}

/* ---- measured ---- */

enum { TIMES = 6 };

/* Seconds of the fastest of a few runs, the first to warm up. */
static double best_of(void (*work)(void *), void *arg) {
    double best = 0;
    for (int i = 0; i <= TIMES; i++) {
        const double start = clock_now_s();
        work(arg);
        const double s = clock_now_s() - start;
        if (i > 0 && (best == 0 || s < best)) best = s;
    }
    return best;
}

enum { PRODUCT_ROWS = 512, PRODUCT_SIDE = 512 };

static void multiply_f32(void *arg) {
    float *a = arg, *b = a + PRODUCT_ROWS * PRODUCT_SIDE, *c = b + PRODUCT_SIDE * PRODUCT_SIDE;
    gemm_f32(GEMM_N, GEMM_T, PRODUCT_ROWS, PRODUCT_SIDE, PRODUCT_SIDE, a, PRODUCT_SIDE, b,
             PRODUCT_SIDE, GEMM_SET, c, PRODUCT_SIDE);
}

static void multiply_f64(void *arg) {
    double *a = arg, *b = a + PRODUCT_ROWS * PRODUCT_SIDE, *c = b + PRODUCT_SIDE * PRODUCT_SIDE;
    gemm_f64(GEMM_N, GEMM_T, PRODUCT_ROWS, PRODUCT_SIDE, PRODUCT_SIDE, a, PRODUCT_SIDE, b,
             PRODUCT_SIDE, GEMM_SET, c, PRODUCT_SIDE);
}

enum { SEARCH_GROUP = 64, SEARCH_GROUPS = 64 };

/* On one thread: whoever searches shares rows out. */
static void search(void *arg) {
    const wquant how = {.bits = 4, .group = SEARCH_GROUP, .symmetric = true, .search = true};
    const float *x = arg;
    float scale;
    int zero;
    for (int i = 0; i < SEARCH_GROUPS; i++)
        scale_search(&how, x + i * SEARCH_GROUP, SEARCH_GROUP, &scale, &zero);
}

enum { HASHED = 4 << 20 };

static void hash(void *arg) {
    char hex[SHA256_HEX];
    sha256_of(arg, HASHED, hex);
}

err plan_rates_measure(plan_rates *out) {
    const double cores = gemm_threads(), flop = 2.0 * PRODUCT_ROWS * PRODUCT_SIDE * PRODUCT_SIDE;
    void *room;
    err e = plan_rates_of("auto", out);
    if (!e.code)
        e = mem_alloc(3 * PRODUCT_ROWS * PRODUCT_SIDE, sizeof(double), "measuring rates", &room);
    if (e.code) return e;
    float *x = room;
    for (int i = 0; i < SEARCH_GROUP * SEARCH_GROUPS; i++) x[i] = (float)((i * 7919) % 1009 - 504);
    out->search = SEARCH_GROUP * SEARCH_GROUPS * SCALE_SEARCH_CANDIDATES / best_of(search, room);
    out->hash = HASHED / best_of(hash, room);
    memset(room, 0, 3 * PRODUCT_ROWS * PRODUCT_SIDE * sizeof(double));
    out->f32 = flop / best_of(multiply_f32, room) / cores;
    out->f64 = flop / best_of(multiply_f64, room) / cores;
    mem_free(room);
    const double half = product_peak(COMPUTE_BF16) / cores;
    if (half > 0) out->bf16 = half;
    /* The search is vector work itself, and sees how fast this core is now. */
    out->vector = out->search * VECTOR_OF_F32 / SEARCH_OF_F32;
    out->spread = out->faster = COUNTED;
    out->measured = true;
    snprintf(out->from, sizeof out->from,
             "measured: %.0f, %.0f, %.0f Gflop/s a core in bf16, fp32, fp64", out->bf16 * 1e-9,
             out->f32 * 1e-9, out->f64 * 1e-9);
    return e;
}
