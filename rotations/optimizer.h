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
 * adam: M <- 0.95 M + 0.05 W', v <- 0.99 v + 0.01 |W'|_2^2, one scalar a matrix;
 *   A = lr (0.95 M + 0.05 W') / (1 - 0.95^(t+1)) / (sqrt(v / (1 - 0.99^t)) + 1e-12), t from 1.
 *   0.95 M + 0.05 W' is what M would be if the gradient came once more: Nesterov's momentum, which
 *   looks a step ahead, in the form of Dozat, Incorporating Nesterov momentum into Adam, 2016. Its
 *   weights add up to 1 - 0.95^(t+1). docs/DECISIONS.md has what it gained.
 *   W' is W; with channels it is W_ij / sqrt((c_i + c_j) / 2 mean(c)),
 *   where c_i <- 0.99 c_i + 0.01 sum_j W_ij^2 is one number a channel.
 *
 * With channels all of them turn. Row i of the gradient of R grows with the size of channel i of
 * the rows that R turns, so in W the planes of a few outlier channels are many times the others,
 * and a step whose size they bound leaves the others where they are. Adam divides each entry by the
 * root of its own mean square, which takes n^2 numbers more and knows each from its own noise
 * alone; here that mean square is (c_i + c_j) / 2 but for a factor that all have in common: what
 * channels i and j have on average, in n numbers (as Adafactor keeps rows and columns; Shazeer and
 * Stern, 2018). W' is exactly skew, because c_i + c_j is, to the bit, c_j + c_i. It is for R1 in
 * `range`, whose loss has corners: the largest entry of a row changes as R1 turns, so a step that
 * few planes make is soon of no use. End-to-end objectives must first turn the outliers themselves,
 * which one scalar a matrix does faster.
 *
 * The rate of adam is an angle. |A|_2, the largest of the angles by which a step turns a vector, is
 * lr while gradients agree, less where they do not, and never above 1.82 lr: A is a sum of b_k
 * W'_(t-k) with b_0 = 1 - 0.95^2 and b_k = 0.05 0.95^(k+1), and by Cauchy-Schwarz its norm is at
 * most the root of v times that of sum b_k^2 / (0.01 0.99^k) = 3.278, which is 1.811 (for small t,
 * with both corrections, less). So the rate means the same at every order n, and for gradients that
 * turn one plane as for gradients that turn them all; the Frobenius norm or the RMS entry of A,
 * which grow with n and with the number of planes, do not have this property.
 *
 * A step promises: to first order it lowers the loss L by <W, A>, since dL = <G, A R> = -<W, A>.
 * L is not linear, so a step that promises most of L cannot keep its word: where a gradient comes
 * from few entries of the data (one outlier at one place of a row of n), the angle that is worth
 * turning falls as 1/sqrt(n), whatever the rate. So A is shortened until <W, A> <=
 * OPTIMIZER_PROMISE L (Polyak's step towards the target (1 - OPTIMIZER_PROMISE) L; B. T. Polyak,
 * 1969). This depends on neither n nor the unit of the loss.
 *
 * Where <W, M> < 0 the momentum leads uphill, and M begins anew as 0.05 W' (the gradient restart of
 * O'Donoghue and Candes, Adaptive restart for accelerated gradient schemes, 2015). So <W, A> is
 * never below 0.
 *
 * Needs no transport: M lives in the Lie algebra, on the left of R. Parallel transport along a step
 * (of the metric that neither side changes) is M -> Q M Q^T with Q = exp(A / 2). To first order
 * that adds [A, M] / 2, and of A = f (0.95 M + 0.05 W') the first part commutes with M. What is
 * left, 0.05 f [W', M] / 2, has a norm of at most 0.05 f |W'|_2 |M|_2, about a twentieth of the
 * rate times that of M, since f is the rate over what |W'|_2 was of late: gradients of other rows
 * differ by more. v is one number that no rotation changes; c belongs to channels, which R does
 * not turn. docs/DECISIONS.md has what other choices gave.
 */
#ifndef SPINSHARD_ROTATIONS_OPTIMIZER_H
#define SPINSHARD_ROTATIONS_OPTIMIZER_H

#include "base/byte_piece.h"
#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

/* The first two have names in a recipe; `range` takes the third where the recipe says adam. */
typedef enum optimizer_kind {
    OPTIMIZER_ADAM,
    OPTIMIZER_SGD_PUBLISHED,
    OPTIMIZER_ADAM_CHANNELS
} optimizer_kind;

/* Local. Whether it has momentum: adam of either form. */
static inline bool optimizer_is_adam(optimizer_kind kind) {
    return kind != OPTIMIZER_SGD_PUBLISHED;
}

typedef enum lr_schedule { SCHEDULE_COSINE, SCHEDULE_LINEAR, SCHEDULE_CONSTANT } lr_schedule;

/* Local. Rate of step t = 0 .. steps - 1. cosine: lr (1 + cos(pi t / steps)) / 2; linear:
 * lr (1 - t / steps). */
double lr_schedule_at(lr_schedule schedule, double lr, int64_t t, int64_t steps);

/* What a step did, for events; the largest over a batch. */
typedef struct optimizer_report {
    double angle;     /* |A|_2: the largest angle by which a vector turns, radians */
    double rms_angle; /* |A|_F / sqrt(n): the RMS angle by which vectors turn, radians */
    double alpha;     /* factor on W (sgd-published) or on 0.95 M + 0.05 W' (adam); last matrix */
    double gradient;  /* |W|_F */
    double promise; /* <W, A> / L, what the step promises as a share of the loss; 0: L not given */
} optimizer_report;

typedef struct optimizer optimizer;

/* Local. For `count` matrices [n, n]; starts at step 0 with empty momentum. Holds count n^2 doubles
 * for adam, none for sgd-published. Caller owns *out. Fails with ERR_NOFIT. */
err optimizer_create(optimizer_kind kind, int64_t n, int64_t count, optimizer **out);
void optimizer_destroy(optimizer **o); /* local; NULL is fine; sets NULL */

/* Local. One step of every matrix: W [count, n, n] skew directions (cayley_skew), overwritten by
 * A; R [count, n, n] moved in place. loss [count]: the loss whose gradient W is, in the unit of W,
 * or a share of it, of which a step of adam may promise OPTIMIZER_PROMISE; NULL, or 0 of a matrix:
 * not known. Every 100 steps
 * R is polished by one Newton-Schulz step, so that the defect does not add up. report may be NULL.
 * Fails with ERR_NOFIT, and ERR_NUMERICS where W is not finite: state and R are then as before.
 * Same bits for any number of threads. */
err optimizer_step(optimizer *o, double lr, const double *loss, double *W, double *R,
                   optimizer_report *report);

/* Local. The two halves of a step around the move R <- Cayley(A) R, for callers that compute it in
 * another way (rotations/cayley_team.h): W becomes A, and the report is made; then the step is
 * counted and R polished where it is time. Fail as optimizer_step. */
err optimizer_direct(optimizer *o, double lr, const double *loss, double *W, const double *R,
                     optimizer_report *report);
err optimizer_moved(optimizer *o, double *R);

/* Local. Momentum and second moments as at the start: after R was taken back to where it stood
 * before, what led astray must not lead on. */
void optimizer_forget(optimizer *o);

int64_t optimizer_steps_done(const optimizer *o); /* local; since the start, or optimizer_forget */

/* Local. State as raw doubles where they stand, to be read or written there: steps, v [count],
 * c [count, n] where there are channels, and M [count, n, n] of adam; how many pieces. The kind and
 * sizes are the caller's to know. A restored state continues bit for bit. */
enum { OPTIMIZER_PIECES = 2 };
int optimizer_state_pieces(optimizer *o, byte_piece out[OPTIMIZER_PIECES]);

/* Local. State matrix by matrix, for those that another rank may take over: the steps, which all
 * matrices have in common (optimizer_steps_done), and of matrix k optimizer_matrix_count doubles:
 * v, c and M as far as the kind has them, nothing of sgd-published. */
int64_t optimizer_matrix_count(optimizer_kind kind, int64_t n);
void optimizer_matrix_save(const optimizer *o, int64_t k, double *out);
void optimizer_matrix_load(optimizer *o, int64_t k, const double *in);
void optimizer_put_steps(optimizer *o, int64_t steps);

/* Local. The scalars of a step, shared with the distributed form. adam: factor on 0.95 M + 0.05 W'
 * from |W'|_2, then shortened by what it promises, `inner` = <W, 0.95 M + 0.05 W'>; sgd-published:
 * factor on W from |W'|_1. `step` counts from 1. */
double optimizer_adam_factor(double lr, int64_t step, double angle, double *v);
double optimizer_bound_promise(double factor, double inner, double loss, double *promise);
double optimizer_sgd_factor(double lr, double norm_1);

/* Local. c [n] takes in `squares` [n], the sums of squares of the rows of W; returns its mean. */
double optimizer_adam_channels(int64_t n, const double *squares, double *c);

/* Of a matrix the part that a rank has, as lines that lie one behind the other (rows, or columns
 * where it is stored by columns: W is skew), with c of the channel of each line and of each entry
 * of a line; mean: of all of c. Without channels of_line is NULL, and W' is W. */
typedef struct optimizer_part {
    int64_t lines, length;
    const double *of_line, *of_entry; /* [lines], [length] */
    double mean;
} optimizer_part;

/* Local, threaded. The entries of a step of adam, shared likewise: W becomes W', which M takes in;
 * sums: <W, M> and <W, W'> over this part, in a fixed order. And when its factor is known, W <-
 * factor (0.95 M + 0.05 W'), `count` entries of them. */
void optimizer_adam_take(const optimizer_part *p, double *W, double *M, double sums[2]);
void optimizer_adam_direct(int64_t count, double factor, const double *M, double *W);
/* Local, threaded. M begins anew, 0.05 W', where it leads uphill: `inner` = <W, M> below 0, with
 * `squares` = <W, W'>, both over the whole matrix. Returns <W, 0.95 M + 0.05 W'>. */
double optimizer_adam_inner(int64_t count, double inner, double squares, const double *W,
                            double *M);

enum { OPTIMIZER_POLISH_EVERY = 100 };
#define OPTIMIZER_BETA_1  0.95
#define OPTIMIZER_PROMISE 0.05

#endif
