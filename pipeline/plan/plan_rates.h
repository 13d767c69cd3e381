/* plan_rates - how fast a core of the CPUs at hand, or of those that a plan is made for, does each
 * kind of work: products by type, a pass of vector work, the search of scales, hashes; and how fast
 * a node reads, writes and sends. Measured here in a fraction of a second, or taken from a table of
 * CPU kinds. Not a benchmark (bench/) and not times of phases (pipeline/plan/plan_time.h). Stands
 * at "options -> plan". */
#ifndef SPINSHARD_PIPELINE_PLAN_PLAN_RATES_H
#define SPINSHARD_PIPELINE_PLAN_PLAN_RATES_H

#include "base/err.h"

#include <stdbool.h>

typedef struct plan_rates {
    double bf16, f32, f64; /* flop/s of products on a core */
    double search; /* candidates times numbers a second, of the search of scales, on a core */
    double vector; /* numbers a second of norms, quantizers, transforms, softmax, on a core */
    double hash;   /* bytes a second of SHA-256 on a core */
    double read, write, network; /* bytes a second of a node */
    double latency;              /* seconds of a short message between nodes */
    double spread;               /* times may be so many times as long, */
    double faster;               /* or so many times as short, as where few cores are busy */
    bool measured;
    char blas[24];  /* OPENBLAS_CORETYPE that suits; "" where the library knows best */
    char from[128]; /* where the numbers come from, for people; and those of the network */
    char network_from[64];
} plan_rates;

/* Local. Of the table: kind "auto" is this machine's CPU, by its name, else by what its products
 * run on; other kinds by name, as "genoa". Fails with ERR_USAGE, naming the kinds. */
err plan_rates_of(const char *kind, plan_rates *out);

/* Local. What a node sends, into r->network: 10GbE, 25GbE, 100GbE, 100G, HDR100, HDR, NDR, of whose
 * line rate 0.8 is taken, or bytes a second as 12G. Fails with ERR_USAGE. */
err plan_rates_network(const char *text, plan_rates *r);

/* Local, threaded. Products, search and hash of this machine as they are now, shared over the
 * threads of gemm_threads(); disk and network stay those of the table. Takes some 0.2 s of work.
 * Fails with ERR_NOFIT. */
err plan_rates_measure(plan_rates *out);

#endif
