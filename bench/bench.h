/* bench - what the benchmarks share: ending on an error, buffers, the time of the slowest rank, the
 * measured peak of products, a model of random weights. Not a clock (base/clock.h), and nothing
 * that the program itself uses. */
#ifndef SPINSHARD_BENCH_BENCH_H
#define SPINSHARD_BENCH_BENCH_H

#include "base/err.h"
#include "model/forward.h"
#include "mpi/comm.h"

#include <stdint.h>

/* Local. Prints an error and ends this benchmark, on all ranks. */
void bench_need(err e);

/* Local. count zeros of `size` bytes (mem_free); ends the benchmark where there is no memory. */
void *bench_room(int64_t count, size_t size);

/* Local. The number in place i of the command line, or the standard one. */
int64_t bench_argument(int argc, char **argv, int i, int64_t standard);

/* Collective on c. Seconds since start of the slowest rank. */
double bench_slowest(const comm *c, double start);

/* Collective on c. Flop/s of fp64 products of order n on all ranks at once, together: the best of
 * so many, after one that is not counted. */
double bench_peak_f64(const comm *c, int64_t n, int repeats);

/* Local. All layers of a model with random bf16 weights that keep the size of what goes through
 * them, made ready for products; `ends`: with embedding and head. llama_stage_clear frees. */
void bench_stage(const llama_config *cfg, bool ends, compute_type compute, llama_stage *out);

#endif
