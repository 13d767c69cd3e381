/* noise_cost - what the noise of a quantizer costs, in nats a token, by second order of the loss
 * and without running the model; and the clips of a site that cost least. Not the rows it is judged
 * on (noise_rows.h). Stands after the rotations and scales are known.
 *
 * Let u be what the quantizer sees (x after scales and rotation), h = dL/du the gradient of the
 * summed cross entropy in full precision, e = Q(u) - u. For noise that is independent from entry to
 * entry the Fisher matrix stands for the Hessian, and a token adds
 *     D = 1/2 mean over tokens of sum_j h_j^2 e_j^2.
 * With y = x S^-1 R for scales before the rotation h = (g S) R, with y = x R S^-1 h = (g R) S: the
 * inverse transpose of what x goes through. Rows that were drawn count by noise_set.weight. */
#ifndef SPINSHARD_PIPELINE_LEARN_NOISE_COST_H
#define SPINSHARD_PIPELINE_LEARN_NOISE_COST_H

#include "model/site.h"
#include "pipeline/learn/noise_rows.h"

typedef struct noise_cost noise_cost;

/* Local. Room for so many rows of a site of at most `width` entries. Caller owns *out. Fails with
 * ERR_NOFIT. */
err noise_cost_create(int64_t rows, int64_t width, noise_cost **out);
void noise_cost_destroy(noise_cost **c); /* local; NULL is fine; sets NULL */
uint64_t noise_cost_bytes(int64_t rows, int64_t width, int threads); /* local */

/* Local, threaded. The rows of a site in its quantizer's basis; `tokens`: how many the capture
 * offered. `at` is borrowed until the next call. */
void noise_cost_take(noise_cost *c, const noise_set *rows, const site *at, int64_t tokens);

/* Local. From now on the quantizer has so many bits, whatever the site says. */
void noise_cost_put_bits(noise_cost *c, int bits);

/* Local, threaded. D of the site with the clips `ends`, and otherwise as it is. The same bits for
 * any number of threads. */
double noise_cost_of(noise_cost *c, const double ends[2]);

/* Local, threaded. The ends that cost least: first one number for both, then each of the two in
 * turn near it, on a fixed list. ends: out; of a symmetric quantizer both are one number. *before,
 * *after: D with (1, 1), and with what was found. */
void noise_cost_search(noise_cost *c, double ends[2], double *before, double *after);

#endif
