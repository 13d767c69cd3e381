/* optimizer - from gradients to steps on the orthogonal group, for one matrix (R1) or a batch of
 * equal order (R2 of many layers and heads). Not the gradient, not over ranks
 * (rotations/cayley_dist.h runs the same rules on a distributed matrix). Its state is part of the
 * run state: raw doubles, out and in.
 *
 * sgd-published: A = alpha W, alpha = min(lr, 1 / (|W'|_1 + 1e-8)), W' = R^T W R, largest column
 *   sum, no momentum. The published step is R <- R Cayley(alpha W'), which equals
 *   Cayley(alpha W) R; the norm is not invariant, so it is that of W' (Liu et al., SpinQuant, 2024;
 *   Li, Fuxin, Todorovic, Efficient Riemannian optimization on the Stiefel manifold via the Cayley
 *   transform, ICLR 2020).
 * adam: M <- 0.9 M + 0.1 W, v <- 0.99 v + 0.01 mean(W_ij^2), one scalar a matrix;
 *   A = lr (M / (1 - 0.9^t)) / (sqrt(v / (1 - 0.99^t)) + 1e-12). lr is the RMS entry of the skew
 *   step while gradients agree. Needs no transport: M lives in the Lie algebra, from the left. */
#ifndef SPINSHARD_ROTATIONS_OPTIMIZER_H
#define SPINSHARD_ROTATIONS_OPTIMIZER_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum optimizer_kind { OPTIMIZER_ADAM, OPTIMIZER_SGD_PUBLISHED } optimizer_kind;
typedef enum lr_schedule { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT } lr_schedule;

/* Local. Rate of step t = 0 .. steps - 1. cosine: lr (1 + cos(pi t / steps)) / 2; linear:
 * lr (1 - t / steps). */
double lr_schedule_at(lr_schedule schedule, double lr, int64_t t, int64_t steps);

/* What a step did, for events; the largest over a batch. */
typedef struct optimizer_report {
    double angle_rms;  /* RMS entry of A, |A|_F / n: what lr asks for, radians */
    double angle_turn; /* |A|_F / sqrt(n): RMS angle by which a vector turns (small angles) */
    double alpha;      /* factor on W (sgd-published) or on the corrected M (adam); last matrix */
    double gradient;   /* |W|_F */
} optimizer_report;

typedef struct optimizer optimizer;

/* Local. For `count` matrices [n, n]; starts at step 0 with empty momentum. Holds count n^2 doubles
 * for adam, none for sgd-published. Caller owns *out. Fails with ERR_NOFIT. */
err optimizer_create(optimizer_kind kind, int64_t n, int64_t count, optimizer **out);
void optimizer_destroy(optimizer **o); /* local; NULL is fine; sets NULL */

/* Local. One step of every matrix: W [count, n, n] skew directions (cayley_skew), overwritten by
 * A; R [count, n, n] moved in place. Every 100 steps R is polished by one Newton-Schulz step, so
 * that the defect does not add up. report may be NULL. Fails with ERR_NOFIT, and ERR_NUMERICS where
 * W is not finite: state and R are then as before. Same bits for any number of threads. */
err optimizer_step(optimizer *o, double lr, double *W, double *R, optimizer_report *report);

/* Local. The two halves of a step around the move R <- Cayley(A) R, for callers that compute it in
 * another way (rotations/cayley_team.h): W becomes A, and the report is made; then the step is
 * counted and R polished where it is time. Fail as optimizer_step. */
err optimizer_direct(optimizer *o, double lr, double *W, const double *R, optimizer_report *report);
err optimizer_moved(optimizer *o, double *R);

int64_t optimizer_steps_done(const optimizer *o); /* local */

/* Local. State as raw doubles, optimizer_state_count of them: steps, v [count], M [count, n, n];
 * the kind and sizes are the caller's to know. A restored state continues bit for bit. */
int64_t optimizer_state_count(const optimizer *o);
void optimizer_state_save(const optimizer *o, double *out);
void optimizer_state_load(optimizer *o, const double *in);

/* Local. The scalars of a step, shared with the distributed form: factor on M or W from the sum of
 * squares of W (adam) or |W'|_1 (sgd-published). `step` counts from 1. */
double optimizer_adam_factor(double lr, int64_t step, double sum_squares, int64_t n, double *v);
double optimizer_sgd_factor(double lr, double norm_1);

enum { OPTIMIZER_POLISH_EVERY = 100 };
#define OPTIMIZER_BETA_1 0.9

#endif
