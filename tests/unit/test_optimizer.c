/* Optimisers against a published golden, closed forms, a slow reference written apart, and restart
 * bit for bit. */
#include "base/file.h"
#include "io/safetensors.h"
#include "rotations/cayley.h"
#include "rotations/optimizer.h"
#include "rotations/start.h"
#include "tests/unit/assert_ok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static double *room(int64_t count) {
    double *p = calloc((size_t)count, sizeof *p);
    assert_non_null(p);
    return p;
}

static double *copy(int64_t count, const double *from) {
    double *p = room(count);
    memcpy(p, from, (size_t)count * sizeof *p);
    return p;
}

static void fill_skew(int64_t n, uint64_t seed, double scale, double *A) {
    for (int64_t i = 0; i < n; i++) {
        A[i * n + i] = 0;
        for (int64_t j = 0; j < i; j++) {
            A[i * n + j] = scale * rng_normal(seed, RNG_TEST, (uint64_t)(i * n + j));
            A[j * n + i] = -A[i * n + j];
        }
    }
}

static double *orthogonal(int64_t n, uint64_t seed) {
    double *R = room(n * n);
    assert_ok(start_orthogonal(n, seed, RNG_TEST, 1u << 30, R));
    return R;
}

static double distance(int64_t count, const double *a, const double *b) {
    double most = 0;
    for (int64_t i = 0; i < count; i++)
        most = isfinite(a[i] - b[i]) ? fmax(most, fabs(a[i] - b[i])) : INFINITY;
    return most;
}

static double *product(int64_t n, const double *a, const double *b, bool tb) {
    double *c = room(n * n);
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < n; k++)
            for (int64_t j = 0; j < n; j++)
                c[i * n + j] += a[i * n + k] * (tb ? b[j * n + k] : b[k * n + j]);
    return c;
}

/* Goldens of the published step (tests/tools/goldens.py): alpha and R after it, where the cap binds
 * and where it does not. */

static double *tensor(int fd, const char *path, const st_header *h, int which, const char *part,
                      int64_t *n) {
    char name[32];
    snprintf(name, sizeof name, "case%d.%s", which, part);
    const st_tensor *t = st_header_find(h, name);
    if (!t) return NULL;
    assert_int_equal(t->dtype, ST_F64);
    double *x = room((int64_t)(t->end - t->begin) / 8);
    assert_ok(file_pread(fd, path, x, t->end - t->begin, st_header_data_offset(h) + t->begin));
    if (n) *n = t->shape[0];
    return x;
}

static void check_case(int64_t n, double *R, const double *Wd, double lr, double alpha,
                       const double *R_next) {
    /* The golden's direction acts from the right; ours is W = R Wd R^T. */
    double *RW = product(n, R, Wd, false), *W = product(n, RW, R, true);
    for (int64_t i = 0; i < n; i++) /* exactly skew, as cayley_skew makes it */
        for (int64_t j = 0; j <= i; j++)
            W[j * n + i] = -(W[i * n + j] = (W[i * n + j] - W[j * n + i]) / 2);
    optimizer *o;
    optimizer_report said;
    assert_ok(optimizer_create(OPTIMIZER_SGD_PUBLISHED, n, 1, &o));
    assert_ok(optimizer_step(o, lr, NULL, W, R, &said));
    assert_true(fabs(said.alpha - alpha) < 1e-12 * alpha);
    assert_true(distance(n * n, R, R_next) < 1e-12);
    optimizer_destroy(&o);
    free(RW), free(W);
}

static void published_step_is_the_golden(void **state) {
    (void)state;
    const char *data = getenv("SPINSHARD_TEST_DATA");
    char *path = file_join(data ? data : "tests/data", "goldens/step.safetensors");
    int fd, seen = 0, capped = 0;
    uint64_t bytes;
    st_header *h;
    assert_ok(file_open_read(path, &fd, &bytes));
    assert_ok(st_header_read(fd, path, 0, bytes, &h));
    for (double *R;; seen++) {
        int64_t n;
        if (!(R = tensor(fd, path, h, seen, "R", &n))) break;
        double *Wd = tensor(fd, path, h, seen, "Wd", NULL),
               *lr = tensor(fd, path, h, seen, "lr", NULL);
        double *alpha = tensor(fd, path, h, seen, "alpha", NULL);
        double *next = tensor(fd, path, h, seen, "R_next", NULL);
        capped += *alpha < *lr;
        check_case(n, R, Wd, *lr, *alpha, next);
        free(R), free(Wd), free(lr), free(alpha), free(next);
    }
    assert_true(seen >= 3 && capped >= 1 && capped < seen);
    st_header_destroy(&h);
    close(fd);
    free(path);
}

/* sgd-published by hand: n = 2, W' = W (the plane commutes), |W'|_1 = |w|. */
static void published_step_by_hand(void **state) {
    (void)state;
    static const struct {
        double w, lr, alpha;
    } cases[] = {{0.25, 1.5, 1.5}, {4, 1.5, 0.25}, {-8, 0.5, 0.125}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double w = cases[i].w, W[4] = {0, -w, w, 0}, R[4] = {0.6, -0.8, 0.8, 0.6};
        optimizer *o;
        optimizer_report said;
        assert_ok(optimizer_create(OPTIMIZER_SGD_PUBLISHED, 2, 1, &o));
        assert_ok(optimizer_step(o, cases[i].lr, NULL, W, R, &said));
        double t = atan2(0.8, 0.6) + 2 * atan(cases[i].alpha * w / 2);
        double want[4] = {cos(t), -sin(t), sin(t), cos(t)};
        assert_true(fabs(said.alpha - cases[i].alpha) < 1e-8);
        assert_true(distance(4, R, want) < 1e-8);
        optimizer_destroy(&o);
    }
}

/* While gradients agree, adam turns by lr whatever their size, from the first step on: n = 2, the
 * angle after k steps is 2 k atan(lr / 2). */
static void adam_steps_by_the_rate(void **state) {
    (void)state;
    const double sizes[] = {1e-6, 1, 3e5}, lr = 0.01;
    for (int s = 0; s < 3; s++) {
        double R[4] = {1, 0, 0, 1};
        optimizer *o;
        assert_ok(optimizer_create(OPTIMIZER_ADAM, 2, 1, &o));
        for (int k = 1; k <= 50; k++) {
            double W[4] = {0, -sizes[s], sizes[s], 0};
            optimizer_report said;
            assert_ok(optimizer_step(o, lr, NULL, W, R, &said));
            double t = 2 * k * atan(lr / 2);
            assert_true(fabs(R[2] - sin(t)) < 1e-5 && fabs(R[0] - cos(t)) < 1e-5);
            assert_true(fabs(said.angle / lr - 1) < 1e-5);
            assert_true(fabs(said.rms_angle / said.angle - 1) < 1e-12);
            assert_true(fabs(said.gradient / (sqrt(2) * sizes[s]) - 1) < 1e-12);
        }
        optimizer_destroy(&o);
    }
}

/* W = sum over the planes (2k, 2k + 1) of s_k (p q^T - q p^T) in a random basis Q: its angles are
 * s_k.
 */
static void fill_planes(int64_t n, const double *Q, const double *s, double *W) {
    memset(W, 0, (size_t)(n * n) * sizeof *W);
    for (int64_t k = 0; k < n / 2; k++)
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < n; j++) {
                const double *p = Q + 2 * k * n, *q = p + n;
                W[i * n + j] += s[k] * (p[i] * q[j] - q[i] * p[j]);
            }
    for (int64_t i = 0; i < n; i++) /* exactly skew */
        for (int64_t j = 0; j <= i; j++)
            W[j * n + i] = -(W[i * n + j] = (W[i * n + j] - W[j * n + i]) / 2);
}

/* With a_k^2 the energy of the first vector in plane k, m products give
 * sqrt(sum a_k^2 s_k^2m / sum a_k^2 s_k^(2m-2)): what cayley_angle must say, for gradients that sit
 * in one plane, in a few, and in all. The rounding of m products of length n is below m n eps. */
static void the_angle_is_that_of_its_formula(void **state) {
    (void)state;
    for (int64_t n = 6; n <= 130; n = 2 * n + 10) {
        for (int kind = 0; kind < 3; kind++) {
            double *Q = orthogonal(n, 9), *W = room(n * n), *s = room(n / 2), got;
            double most = 0, above = 0, below = 0;
            const int m = CAYLEY_ANGLE_PRODUCTS;
            for (int64_t k = 0; k < n / 2; k++) {
                const double u = rng_uniform(4, RNG_TEST, (uint64_t)k);
                s[k] = kind == 0 ? (k == 1 ? 3 : 0) : kind == 1 ? exp(-3 * (double)k) : u;
                most = fmax(most, s[k]);
            }
            fill_planes(n, Q, s, W);
            for (int64_t k = 0; k < n / 2; k++) {
                double a = 0, b = 0;
                for (int64_t i = 0; i < n; i++) {
                    a += Q[2 * k * n + i] * cayley_angle_start(i);
                    b += Q[(2 * k + 1) * n + i] * cayley_angle_start(i);
                }
                above += (a * a + b * b) * pow(s[k], 2 * m);
                below += (a * a + b * b) * pow(s[k], 2 * m - 2);
            }
            assert_ok(cayley_angle(n, W, &got));
            const double eps = 2.3e-16 * m * (double)n;
            assert_true(fabs(got / sqrt(above / below) - 1) <= 4 * eps);
            assert_true(got <= most * (1 + eps));
            if (kind < 2) assert_true(got >= 0.99 * most);
            free(Q), free(W), free(s);
        }
    }
    double zero[16] = {0}, got = 1;
    assert_ok(cayley_angle(4, zero, &got));
    assert_true(got == 0);
}

/* The rate is the largest angle at every order, for a gradient in one plane and for one in all. */
static void the_rate_is_an_angle_at_every_order(void **state) {
    (void)state;
    const double lr = 0.05;
    for (int64_t n = 8; n <= 256; n *= 2)
        for (int planes = 0; planes < 2; planes++) {
            double *R = orthogonal(n, 1), *W = room(n * n);
            optimizer *o;
            optimizer_report said;
            assert_ok(optimizer_create(OPTIMIZER_ADAM, n, 1, &o));
            for (int k = 0; k < 3; k++) {
                if (planes)
                    fill_skew(n, 5, 1, W);
                else
                    memset(W, 0, (size_t)(n * n) * sizeof *W), W[1] = -7, W[n] = 7;
                assert_ok(optimizer_step(o, lr, NULL, W, R, &said));
                assert_true(fabs(said.angle / lr - 1) < 1e-9);
                assert_true(said.rms_angle <= said.angle);
            }
            optimizer_destroy(&o);
            free(R), free(W);
        }
}

/* No step promises more than its share of the loss: of L = |R x - y|^2, whose gradient is exact, a
 * rate of a radian takes away OPTIMIZER_PROMISE to first order, and where nothing is left to gain
 * the rate alone counts. */
static void steps_promise_their_share_at_most(void **state) {
    (void)state;
    const int64_t n = 24;
    const double losses[] = {1e-3, 1, 1e6};
    for (int i = 0; i < 3; i++) {
        double *R = orthogonal(n, 1), *W = room(n * n), *G = room(n * n), promised = 0;
        optimizer *o;
        optimizer_report said;
        assert_ok(optimizer_create(OPTIMIZER_ADAM, n, 1, &o));
        fill_skew(n, 5, 1, W);
        memcpy(G, W, (size_t)(n * n) * sizeof *G);
        assert_ok(optimizer_step(o, 0.5, &losses[i], W, R, &said));
        for (int64_t k = 0; k < n * n; k++) promised += G[k] * W[k]; /* W is A by now */
        promised /= losses[i];
        assert_true(fabs(said.promise / promised - 1) < 1e-12);
        assert_true(promised <= OPTIMIZER_PROMISE * (1 + 1e-12));
        if (i < 2) assert_true(promised > OPTIMIZER_PROMISE * (1 - 1e-12) && said.angle < 0.5);
        if (i == 2) assert_true(fabs(said.angle / 0.5 - 1) < 1e-9);
        optimizer_destroy(&o);
        free(R), free(W), free(G);
    }
}

/* After optimizer_forget a run is that of a new optimiser. */
static void forgetting_is_a_new_beginning(void **state) {
    (void)state;
    const int64_t n = 20, size = n * n;
    double *R = orthogonal(n, 1), *S = copy(size, R), *start = copy(size, R), *W = room(size);
    optimizer *used, *fresh;
    assert_ok(optimizer_create(OPTIMIZER_ADAM_CHANNELS, n, 1, &used));
    assert_ok(optimizer_create(OPTIMIZER_ADAM_CHANNELS, n, 1, &fresh));
    for (uint64_t t = 0; t < 7; t++) {
        fill_skew(n, 100 + t, 3, W);
        assert_ok(optimizer_step(used, 0.1, NULL, W, R, NULL));
    }
    optimizer_forget(used);
    memcpy(R, start, (size_t)size * sizeof *R);
    for (uint64_t t = 0; t < 7; t++) {
        fill_skew(n, 200 + t, 1, W);
        assert_ok(optimizer_step(used, 0.1, NULL, W, R, NULL));
        fill_skew(n, 200 + t, 1, W);
        assert_ok(optimizer_step(fresh, 0.1, NULL, W, S, NULL));
    }
    assert_memory_equal(R, S, (size_t)size * sizeof *R);
    optimizer_destroy(&used), optimizer_destroy(&fresh);
    free(R), free(S), free(start), free(W);
}

/* The formulas of the header, once more, with a Gauss elimination of its own. */

static void gauss(int64_t n, double *M, double *B) {
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = k + 1; i < n; i++) {
            double f = M[i * n + k] / M[k * n + k];
            for (int64_t j = k; j < n; j++) M[i * n + j] -= f * M[k * n + j];
            for (int64_t j = 0; j < n; j++) B[i * n + j] -= f * B[k * n + j];
        }
    for (int64_t k = n - 1; k >= 0; k--)
        for (int64_t j = 0; j < n; j++) {
            for (int64_t i = k + 1; i < n; i++) B[k * n + j] -= M[k * n + i] * B[i * n + j];
            B[k * n + j] /= M[k * n + k];
        }
}

static void slow_adam(bool channels, int64_t n, int64_t t, double lr, const double *W, double *c,
                      double *M, double *v, double *R) {
    double *L = room(n * n), *B = room(n * n), *even = room(n * n), angle, mean = 0;
    for (int64_t i = 0; i < n; i++) {
        double squares = 0;
        for (int64_t j = 0; j < n; j++) squares += W[i * n + j] * W[i * n + j];
        c[i] = 0.99 * c[i] + 0.01 * squares;
        mean += c[i] / (double)n;
    }
    for (int64_t i = 0; i < n; i++)
        for (int64_t j = 0; j < n; j++)
            even[i * n + j] = !channels         ? W[i * n + j]
                              : c[i] + c[j] > 0 ? W[i * n + j] / sqrt((c[i] + c[j]) / 2 / mean)
                                                : 0;
    assert_ok(cayley_angle(n, even, &angle)); /* held by a test of its own */
    *v = 0.99 * *v + 0.01 * angle * angle;
    double inner = 0;
    for (int64_t i = 0; i < n * n; i++) inner += (0.95 * M[i] + 0.05 * even[i]) * W[i];
    for (int64_t i = 0; i < n * n; i++) {
        M[i] = (inner < 0 ? 0 : 0.95 * M[i]) + 0.05 * even[i];
        L[i] = -0.5 * lr * (0.95 * M[i] + 0.05 * even[i]) / (1 - pow(0.95, (double)t + 1)) /
               (sqrt(*v / (1 - pow(0.99, (double)t))) + 1e-12);
    }
    for (int64_t i = 0; i < n * n; i++) B[i] = R[i];
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = 0; k < n; k++)
            for (int64_t j = 0; j < n; j++) B[i * n + j] -= L[i * n + k] * R[k * n + j];
    for (int64_t i = 0; i < n; i++) L[i * n + i] += 1;
    gauss(n, L, B);
    memcpy(R, B, (size_t)(n * n) * sizeof *R);
    free(L), free(B), free(even);
}

/* The planes of one channel are many times the others, and channel 7 has no gradient. */
static void adam_is(optimizer_kind kind) {
    const int64_t n = 33, size = n * n;
    double *R = orthogonal(n, 1), *slow = copy(size, R), *M = room(size), *W = room(size),
           *c = room(n), v = 0;
    optimizer *o;
    assert_ok(optimizer_create(kind, n, 1, &o));
    for (int64_t t = 1; t <= 40; t++) {
        fill_skew(n, 100 + (uint64_t)t, t == 20 ? 50 : 1, W); /* one gradient far too large */
        for (int64_t i = 0; i < n; i++) W[3 * n + i] *= 300, W[i * n + 3] *= 300;
        for (int64_t i = 0; i < n; i++) W[7 * n + i] = W[i * n + 7] = 0;
        slow_adam(kind == OPTIMIZER_ADAM_CHANNELS, n, t, 0.02, W, c, M, &v, slow);
        assert_ok(optimizer_step(o, 0.02, NULL, W, R, NULL));
        assert_true(distance(size, R, slow) < 1e-12);
    }
    assert_int_equal(optimizer_steps_done(o), 40);
    optimizer_destroy(&o);
    free(R), free(slow), free(M), free(W), free(c);
}

static void adam_is_its_formula(void **state) {
    (void)state;
    adam_is(OPTIMIZER_ADAM);
    adam_is(OPTIMIZER_ADAM_CHANNELS);
}

static void orthogonal_after_1099_steps(void **state) {
    (void)state;
    for (int64_t n = 64; n <= 96; n += 32)
        for (int kind = 0; kind < 3; kind++) {
            const int64_t size = n * n;
            double *R = orthogonal(n, 2), *G = room(size), *W = room(size), max;
            optimizer *o;
            assert_ok(optimizer_create((optimizer_kind)kind, n, 1, &o));
            for (int64_t t = 0; t < 1099; t++) {
                for (int64_t i = 0; i < size; i++)
                    G[i] = rng_normal(3, RNG_TEST, (uint64_t)(t * size + i));
                assert_ok(cayley_skew(n, G, R, W));
                assert_ok(optimizer_step(o, optimizer_is_adam((optimizer_kind)kind) ? 0.05 : 1.5,
                                         NULL, W, R, NULL));
            }
            assert_ok(cayley_orthogonality(n, R, &max));
            assert_true(max <= 1e-12); /* 99 steps after the last polish */
            print_message("order %d, %s: |R^T R - I| %.1e after 1099 steps\n", (int)n,
                          kind == OPTIMIZER_SGD_PUBLISHED ? "sgd-published"
                          : kind == OPTIMIZER_ADAM        ? "adam"
                                                          : "adam, channels",
                          max);
            optimizer_destroy(&o);
            free(R), free(G), free(W);
        }
}

/* `steps` steps from `first`, on `count` matrices. */
static void run(optimizer *o, int64_t n, int64_t count, int64_t first, int64_t steps, double *R) {
    double *W = room(count * n * n);
    for (int64_t t = first; t < first + steps; t++) {
        for (int64_t k = 0; k < count; k++)
            fill_skew(n, (uint64_t)(1000 * t + k), 1 + (double)k, W + k * n * n);
        assert_ok(optimizer_step(o, 0.03, NULL, W, R, NULL));
    }
    free(W);
}

static double *starts(int64_t n, int64_t count) {
    double *R = room(count * n * n);
    for (int64_t k = 0; k < count; k++) {
        double *Q = orthogonal(n, 50 + (uint64_t)k);
        memcpy(R + k * n * n, Q, (size_t)(n * n) * sizeof *R);
        free(Q);
    }
    return R;
}

static void restart_continues_bit_for_bit(void **state) {
    (void)state;
    const int64_t n = 20, count = 3, size = count * n * n;
    for (int kind = 0; kind < 3; kind++) {
        double *whole = starts(n, count), *cut = copy(size, whole);
        optimizer *a, *b, *c;
        assert_ok(optimizer_create((optimizer_kind)kind, n, count, &a));
        assert_ok(optimizer_create((optimizer_kind)kind, n, count, &b));
        assert_ok(optimizer_create((optimizer_kind)kind, n, count, &c));
        run(a, n, count, 0, 120, whole); /* over a polish */
        run(b, n, count, 0, 47, cut);
        const int64_t doubles = optimizer_matrix_count((optimizer_kind)kind, n);
        const int64_t of_kind[] = {[OPTIMIZER_ADAM] = 1 + n * n,
                                   [OPTIMIZER_SGD_PUBLISHED] = 0,
                                   [OPTIMIZER_ADAM_CHANNELS] = 1 + n + n * n};
        assert_int_equal(doubles, of_kind[kind]);
        double *kept = room(count * doubles + 1);
        for (int64_t k = 0; k < count; k++) {
            optimizer_matrix_save(b, k, kept + k * doubles);
            optimizer_matrix_load(c, k, kept + k * doubles);
        }
        optimizer_put_steps(c, optimizer_steps_done(b));
        assert_int_equal(optimizer_steps_done(c), 47);
        run(c, n, count, 47, 73, cut);
        assert_memory_equal(whole, cut, (size_t)size * sizeof *cut);
        optimizer_destroy(&a), optimizer_destroy(&b), optimizer_destroy(&c);
        free(whole), free(cut), free(kept);
    }
}

/* A batch is so many single matrices, for any number of threads; each has its own scalars. */
static void batch_is_single_matrices(void **state) {
    (void)state;
    const int64_t n = 40, count = 4, size = n * n;
    const int before = omp_get_max_threads();
    for (int kind = 0; kind < 3; kind++)
        for (int threads = 1; threads <= 3; threads++) {
            omp_set_num_threads(threads);
            double *R = starts(n, count), *W = room(size);
            optimizer *o, *one;
            assert_ok(optimizer_create((optimizer_kind)kind, n, count, &o));
            run(o, n, count, 0, 5, R);
            for (int64_t k = 0; k < count; k++) {
                double *Q = orthogonal(n, 50 + (uint64_t)k);
                assert_ok(optimizer_create((optimizer_kind)kind, n, 1, &one));
                for (int64_t t = 0; t < 5; t++) {
                    fill_skew(n, (uint64_t)(1000 * t + k), 1 + (double)k, W);
                    assert_ok(optimizer_step(one, 0.03, NULL, W, Q, NULL));
                }
                assert_memory_equal(Q, R + k * size, (size_t)size * sizeof *Q);
                optimizer_destroy(&one);
                free(Q);
            }
            optimizer_destroy(&o);
            free(R), free(W);
        }
    omp_set_num_threads(before);
}

static void nan_leaves_all_as_it_was(void **state) {
    (void)state;
    const int64_t n = 16, count = 2, size = count * n * n;
    double *R = starts(n, count), *W = room(size);
    optimizer *o;
    assert_ok(optimizer_create(OPTIMIZER_ADAM_CHANNELS, n, count, &o));
    run(o, n, count, 0, 3, R);
    byte_piece state_of[OPTIMIZER_PIECES];
    const int pieces = optimizer_state_pieces(o, state_of);
    assert_int_equal(pieces, 2);
    assert_true(state_of[0].n == (1 + count + count * n) * sizeof(double));
    assert_true(state_of[1].n == size * sizeof(double));
    double *before[2], *kept = copy(size, R);
    for (int i = 0; i < pieces; i++)
        before[i] = copy((int64_t)(state_of[i].n / sizeof(double)), state_of[i].p);
    W[n * n + 5] = NAN;
    err e = optimizer_step(o, 0.1, NULL, W, R, NULL);
    assert_int_equal(e.code, ERR_NUMERICS);
    assert_non_null(strstr(e.what, "matrix 1"));
    for (int i = 0; i < pieces; i++) assert_memory_equal(before[i], state_of[i].p, state_of[i].n);
    assert_memory_equal(R, kept, (size_t)size * sizeof *R);
    optimizer_destroy(&o);
    free(R), free(W), free(before[0]), free(before[1]), free(kept);
}

static void schedules_and_names(void **state) {
    (void)state;
    /* Rates of the first steps of a published run of 100 steps. */
    const double want[] = {1.5, 1.4996299202742986, 1.4985200463212036, 1.4966714734523099};
    for (int t = 0; t < 4; t++)
        assert_true(fabs(lr_schedule_at(SCHEDULE_COSINE, 1.5, t, 100) - want[t]) < 1e-15);
    assert_true(fabs(lr_schedule_at(SCHEDULE_COSINE, 2, 50, 100) - 1) < 1e-15);
    assert_true(lr_schedule_at(SCHEDULE_LINEAR, 2, 25, 100) == 1.5);
    assert_true(lr_schedule_at(SCHEDULE_CONSTANT, 2, 99, 100) == 2);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(published_step_is_the_golden),
        cmocka_unit_test(published_step_by_hand),
        cmocka_unit_test(adam_steps_by_the_rate),
        cmocka_unit_test(the_angle_is_that_of_its_formula),
        cmocka_unit_test(the_rate_is_an_angle_at_every_order),
        cmocka_unit_test(steps_promise_their_share_at_most),
        cmocka_unit_test(forgetting_is_a_new_beginning),
        cmocka_unit_test(adam_is_its_formula),
        cmocka_unit_test(orthogonal_after_1099_steps),
        cmocka_unit_test(restart_continues_bit_for_bit),
        cmocka_unit_test(batch_is_single_matrices),
        cmocka_unit_test(nan_leaves_all_as_it_was),
        cmocka_unit_test(schedules_and_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
