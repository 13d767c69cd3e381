/* Learning end to end: the same bits over replicas x stages, with and without recompute, over a
 * restart; the summed gradient against plain passes over whole windows; sums that overflow are done
 * again; numbers that stop being finite are named. A rank alone (a communicator of one) gives what
 * all ranks together are held against. */
#include "base/gemm.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"
#include "model/objective.h"
#include "model/sites.h"
#include "pipeline/learn/e2e_batch.h"
#include "pipeline/learn/learn_e2e.h"
#include "pipeline/learn/learn_e2e_state.h"
#include "pipeline/learn/scale_part.h"
#include "rotations/cayley.h"
#include "rotations/start.h"
#include "tests/mpi/on_ranks.h"
#include "tests/mpi/state_copy.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    HIDDEN = 32,
    LAYERS = 3,
    HEADS = 4,
    KV = 2,
    DIM = 8,
    WIDE = 48,
    VOCAB = 90,
    WINDOW = 20,
    SLICE = 8,
    BATCH = 3,
    WINDOWS = 4,
    LENGTH = 45,
    STEPS = 4
};
enum { N1 = HIDDEN * HIDDEN, DD = DIM * DIM };
enum { ALL_KINDS = (1 << SCALE_KINDS) - 1, SCALES = 2 * HIDDEN + 2 * KV * DIM + WIDE };

static void *room(int64_t count, size_t size) {
    void *p;
    OK(mem_alloc(count, size, "test", &p));
    return p;
}

/* ---- a model, the same on every rank ---- */

static float *numbers(int64_t n, double scale, double mean) {
    static uint64_t stream;
    float *v = room(n, sizeof *v);
    stream++;
    for (int64_t i = 0; i < n; i++)
        v[i] = (float)(mean + scale * rng_normal(5, RNG_TEST, (stream << 32) + (uint64_t)i));
    return v;
}

static wmat matrix(int64_t rows, int64_t cols) {
    return (wmat){.kind = WMAT_F32,
                  .rows = rows,
                  .cols = cols,
                  .data = numbers(rows * cols, 1 / sqrt((double)cols), 0)};
}

static const llama_config cfg = {.hidden = HIDDEN,
                                 .intermediate = WIDE,
                                 .layers = LAYERS,
                                 .heads = HEADS,
                                 .kv_heads = KV,
                                 .head_dim = DIM,
                                 .vocab = VOCAB,
                                 .max_positions = 2048,
                                 .rms_eps = 1e-5,
                                 .rope_theta = 10000};

static void make_model(llama_stage *s) {
    OK(llama_stage_init(s, &cfg, 0, LAYERS));
    for (int i = 0; i < LAYERS; i++) {
        llama_layer *l = &s->layers[i];
        l->q = matrix(HEADS * DIM, HIDDEN);
        l->k = matrix(KV * DIM, HIDDEN);
        l->v = matrix(KV * DIM, HIDDEN);
        l->o = matrix(HIDDEN, HEADS * DIM);
        l->gate = matrix(WIDE, HIDDEN);
        l->up = matrix(WIDE, HIDDEN);
        l->down = matrix(HIDDEN, WIDE);
        l->attn_norm = numbers(HIDDEN, 0.2, 1);
        l->mlp_norm = numbers(HIDDEN, 0.2, 1);
    }
    s->embed = matrix(VOCAB, HIDDEN);
    s->head = matrix(VOCAB, HIDDEN);
    s->final_norm = numbers(HIDDEN, 0.2, 1);
    OK(llama_stage_prepare(s, COMPUTE_BF16));
}

/* Layers of the model as a stage; borrows them. */
static llama_stage part_of(const llama_stage *model, const e2e_layout *l, int number) {
    llama_stage s = *model;
    s.first_layer = l->ranges[number].first;
    s.n_layers = l->ranges[number].n;
    s.layers = model->layers + s.first_layer;
    if (number > 0) s.embed = (wmat){.kind = WMAT_NONE};
    if (number < l->stages - 1) {
        s.head = (wmat){.kind = WMAT_NONE};
        s.final_norm = NULL;
    }
    return s;
}

/* ---- what is to be learned ---- */

typedef struct setting {
    const char *name;
    compute_type compute;
    bool kl, through, per_head;
    optimizer_kind kind;
    int act, kv; /* bits */
    bool scales;
} setting;

typedef struct given {
    llama_stage model;
    double *R1, *R2; /* [LAYERS, KV, DIM, DIM]: the first of each layer where one is enough */
    double *S;       /* [LAYERS, SCALES] */
    int32_t *ids;
    rotation *R3, *R4;
} given;

static void make_given(given *g) {
    make_model(&g->model);
    g->R1 = room(N1, sizeof *g->R1);
    g->R2 = room(LAYERS * KV * DD, sizeof *g->R2);
    OK(start_orthogonal(HIDDEN, 1, RNG_TEST, 0, g->R1));
    for (int i = 0; i < LAYERS * KV; i++)
        OK(start_orthogonal(DIM, 2, RNG_TEST, (uint64_t)(i * DD), g->R2 + i * DD));
    g->S = room(LAYERS * SCALES, sizeof *g->S);
    for (int64_t i = 0; i < LAYERS * SCALES; i++)
        g->S[i] = exp(0.3 * rng_normal(4, RNG_TEST, (uint64_t)i));
    for (int64_t i = 0; i < LAYERS * KV * DIM; i++) { /* qk, after the norms and vo: pairs */
        double *qk = g->S + i / (KV * DIM) * SCALES + 2 * HIDDEN + KV * DIM;
        const int64_t j = i % (KV * DIM);
        if (j % DIM >= DIM / 2) qk[j] = qk[j - DIM / 2];
    }
    OK(rotation_create_hadamard(DIM, NULL, &g->R3));
    OK(rotation_create_hadamard(WIDE, NULL, &g->R4));
    g->ids = room(WINDOWS * LENGTH, sizeof *g->ids);
    for (int64_t i = 0; i < WINDOWS * LENGTH; i++)
        g->ids[i] = (int32_t)(rng_uniform(9, RNG_TEST, (uint64_t)i) * VOCAB);
}

static learn_e2e_options options_of(const given *g, const setting *s) {
    learn_e2e_options o = {.steps = 10,
                           .kind = s->kind,
                           .schedule = SCHEDULE_COSINE,
                           .lr_r1 = s->kind == OPTIMIZER_ADAM ? 0.02 : 1.5,
                           .lr_r2 = s->kind == OPTIMIZER_ADAM ? 0.03 : 1.5,
                           .seed = 3,
                           .grid = {1, 1},
                           .blas_threads = 1,
                           .r1 = true,
                           .r2_heads = s->per_head ? KV : 1,
                           .sites = llama_sites_none(),
                           .ids = g->ids,
                           .n_windows = WINDOWS,
                           .length = LENGTH,
                           .scales = s->scales ? ALL_KINDS : 0,
                           .lr_scale = 0.02,
                           .scale_start = g->S};
    o.sites.act.bits = s->act;
    o.sites.kv.bits = s->kv;
    o.sites.o_per_head = true;
    o.sites.R3 = g->R3;
    o.sites.R4 = g->R4;
    return o;
}

static e2e_wish wish_of(const learn_e2e_options *o, const setting *s, int ranks) {
    e2e_wish w = {
        .ranks = ranks,
        .batch = BATCH,
        .load = {.cfg = &cfg, .compute = s->compute},
        .sites = &o->sites,
        .shape = {.compute = s->compute, .window = WINDOW, .slice = SLICE, .through = s->through},
        .objective = e2e_objective_of(s->kl ? OBJECTIVE_KL_TOP : OBJECTIVE_CE),
        .top_k = 7};
    OK(learn_e2e_check(o, &w.shape));
    return w;
}

/* ---- runs ---- */

typedef struct outcome {
    double R1[N1], R2[LAYERS * KV * DD], S[LAYERS * SCALES], loss[STEPS], angle[STEPS];
    int64_t passes;
} outcome;

/* A learner over c in the given layout; everything it borrows lives as long as it. */
typedef struct run {
    learn_e2e_options o;
    e2e_wish w;
    e2e_layout l;
    llama_stage stage;
    dealt_rows *R1;
    learn_e2e *learn;
} run;

static void run_begin(const comm *c, const given *g, const setting *s, int replicas, int stages,
                      recompute_wish recompute, run *r) {
    const int rank = comm_rank(c);
    r->o = options_of(g, s);
    r->w = wish_of(&r->o, s, comm_size(c));
    r->w.replicas = replicas;
    r->w.stages = stages;
    r->w.recompute = recompute;
    OK(e2e_layout_choose(&r->w, &r->l));
    const bool active = rank < r->l.replicas * r->l.stages;
    if (active) r->stage = part_of(&g->model, &r->l, rank % r->l.stages);
    OK(dealt_rows_create(c, HIDDEN, HIDDEN, "R1", &r->R1));
    dealt_rows_put(r->R1, 0, HIDDEN, g->R1);
    double *R2 = room(LAYERS * KV * DD, sizeof *R2);
    const int64_t heads = r->o.r2_heads;
    for (int64_t i = 0; i < LAYERS * heads; i++)
        memcpy(R2 + i * DD, g->R2 + i * (KV / heads) * DD, DD * sizeof *R2);
    OK(learn_e2e_create(c, &r->o, &r->w, &r->l, active ? &r->stage : NULL, r->R1, R2, &r->learn));
    mem_free(R2);
}

static void run_end(run *r, outcome *out) {
    learn_e2e_take(r->learn, r->R1, out->R2);
    learn_e2e_take_scales(r->learn, out->S);
    dealt_rows_get(r->R1, 0, HIDDEN, out->R1);
    out->passes = learn_e2e_passes(r->learn);
    learn_e2e_destroy(&r->learn);
    dealt_rows_destroy(&r->R1);
    e2e_layout_clear(&r->l);
}

/* Collective on c. State of r into new buffers, common on every rank. */
static void state_of(const comm *c, run *r, double **common, double **cell) {
    byte_piece pieces[CAYLEY_STATE_PIECES];
    const int64_t n_common = learn_e2e_state_count(r->learn);
    const int n = learn_e2e_state_cell(r->learn, pieces);
    *common = room(n_common, sizeof **common);
    *cell = room(byte_pieces_doubles(pieces, n), sizeof **cell);
    OK(learn_e2e_state_save(r->learn, *common));
    state_copy_out(pieces, n, *cell);
    comm_bcast(c, *common, (uint64_t)n_common * sizeof **common, 0);
}

/* Collective. And into a learner. */
static void give_state(run *r, const double *common, const double *cell) {
    byte_piece pieces[CAYLEY_STATE_PIECES];
    state_copy_in(cell, pieces, learn_e2e_state_cell(r->learn, pieces));
    OK(learn_e2e_state_load(r->learn, common));
}

/* cut: after so many steps the state goes into a learner of another layout; 0: never. */
static void learn(const comm *c, const given *g, const setting *s, int replicas, int stages,
                  recompute_wish recompute, int cut, outcome *out) {
    run r;
    learn_report report;
    memset(out, 0, sizeof *out);
    run_begin(c, g, s, replicas, stages, recompute, &r);
    for (int i = 0; i < STEPS; i++) {
        if (cut && i == cut) {
            double *common, *cell;
            outcome unused;
            memset(&unused, 0, sizeof unused);
            state_of(c, &r, &common, &cell);
            run_end(&r, &unused);
            run_begin(c, g, s, 1, 1, RECOMPUTE_AUTO, &r);
            give_state(&r, common, cell);
            mem_free(common);
            mem_free(cell);
        }
        OK(learn_e2e_step(r.learn, &report));
        check(report.step == i + 1, "steps are counted");
        check(report.orthogonality < 1e-13, "orthogonal");
        out->loss[i] = report.loss;
        out->angle[i] = report.angle_r1 + report.angle_r2;
    }
    run_end(&r, out);
}

static bool same(const outcome *a, const outcome *b) {
    return memcmp(a->R1, b->R1, sizeof a->R1) == 0 && memcmp(a->R2, b->R2, sizeof a->R2) == 0 &&
           memcmp(a->S, b->S, sizeof a->S) == 0 && memcmp(a->loss, b->loss, sizeof a->loss) == 0 &&
           memcmp(a->angle, b->angle, sizeof a->angle) == 0;
}

static double off_by(const double *a, const double *b, int64_t n) {
    double most = 0;
    for (int64_t i = 0; i < n; i++) most = fmax(most, fabs(a[i] - b[i]));
    return most;
}

static const setting settings[] = {
    {"ce, bf16, scales", COMPUTE_BF16, false, true, false, OPTIMIZER_ADAM, 4, 4, true},
    {"ce, fp32, detached, R2 by head, scales", COMPUTE_F32, false, false, true,
     OPTIMIZER_SGD_PUBLISHED, 4, 4, true},
    {"kl-top, fp64", COMPUTE_F64, true, true, true, OPTIMIZER_ADAM, 4, 16, false},
    {"ce, cache alone", COMPUTE_BF16, false, true, false, OPTIMIZER_ADAM, 16, 4, false},
};
enum { SETTINGS = sizeof settings / sizeof settings[0] };

static void test_layouts(const comm *alone, const given *g) {
    const comm *all = comm_world();
    const int size = comm_size(all);
    static outcome want, got;
    char what[160];
    for (int k = 0; k < SETTINGS; k++) {
        learn(alone, g, &settings[k], 1, 1, RECOMPUTE_OFF, 0, &want);
        check(want.passes == STEPS + 1, "the first step takes two passes, the others one");
        const bool r1_learned = memcmp(want.R1, g->R1, sizeof want.R1) != 0;
        check(r1_learned == (settings[k].act < 16), "R1 moves where its sites quantize");
        const bool moved = off_by(want.S, g->S, LAYERS * SCALES) > 1e-3;
        check(!settings[k].scales || moved, "scales move");
        for (int stages = 1; stages <= size && stages <= LAYERS; stages++)
            for (int replicas = 1; replicas <= size / stages; replicas++)
                for (int recompute = RECOMPUTE_ON; recompute <= RECOMPUTE_OFF; recompute++) {
                    learn(all, g, &settings[k], replicas, stages, recompute, 0, &got);
                    snprintf(what, sizeof what, "%s: %d x %d, recompute %s", settings[k].name,
                             replicas, stages, recompute == RECOMPUTE_ON ? "on" : "off");
                    check(same(&want, &got), what);
                }
        learn(all, g, &settings[k], 0, 0, RECOMPUTE_AUTO, 0, &got);
        check(same(&want, &got), "the layout chosen");
        learn(all, g, &settings[k], 1, size < LAYERS ? size : LAYERS, RECOMPUTE_AUTO, 2, &got);
        check(same(&want, &got), "a restart in the middle, on other stages");
    }
}

static void test_threads(const comm *alone, const given *g) {
    static outcome want, got;
    const int threads = gemm_threads();
    learn(alone, g, &settings[0], 1, 1, RECOMPUTE_OFF, 0, &want);
    setenv("OMP_NUM_THREADS", "3", 1);
    gemm_init(1);
    learn(alone, g, &settings[0], 1, 1, RECOMPUTE_OFF, 0, &got);
    char before[16];
    snprintf(before, sizeof before, "%d", threads);
    setenv("OMP_NUM_THREADS", before, 1);
    gemm_init(1);
    check(same(&want, &got), "three threads");
}

/* ---- the gradient, the plain way: whole windows, one after the other ---- */

/* G1 [HIDDEN, HIDDEN], G2 [LAYERS, DIM, DIM], GS [LAYERS, SCALES] are added to. */
static void plain_gradients(const given *g, run *r, double *G1, double *G2, double *GS,
                            double *loss) {
    llama_pass_shape shape = r->w.shape;
    shape.slice = WINDOW;
    shape.head = true;
    llama_sites sites = r->o.sites;
    rotation *R1, *R2[LAYERS];
    llama_work *work;
    llama_saved *saved[LAYERS];
    scale_part *scales;
    const scale_sizes sizes = llama_scale_sizes(&cfg);
    int64_t pick[BATCH];
    double *x = room(WINDOW * HIDDEN, sizeof *x), sum;
    OK(rotation_create_dense(HIDDEN, g->R1, &R1));
    for (int i = 0; i < LAYERS; i++) OK(rotation_create_dense(DIM, g->R2 + i * KV * DD, &R2[i]));
    OK(scale_part_create(&sizes, ALL_KINDS, 0, LAYERS, g->S, &scales));
    sites.R1 = R1;
    sites.R2 = (const rotation *const *)R2;
    sites.r2_per_head = false;
    sites.scales = scale_part_set(scales);
    OK(llama_work_create(&cfg, &sites, &shape, &work));
    OK(llama_work_put_r1(work, R1));
    for (int i = 0; i < LAYERS; i++) OK(llama_saved_create(&cfg, &sites, &shape, &saved[i]));
    /* of the eight pieces the last is held out */
    e2e_batch_draw(3, 0, BATCH, WINDOWS * (LENGTH / WINDOW) - 1, pick);
    *loss = 0;
    for (int b = 0; b < BATCH; b++) {
        const int32_t *ids = g->ids + pick[b] / 2 * LENGTH + pick[b] % 2 * WINDOW;
        int32_t next[WINDOW];
        for (int t = 0; t < WINDOW; t++) next[t] = t + 1 < WINDOW ? ids[t + 1] : -1;
        const double weight = 1.0 / (BATCH * (WINDOW - 1));
        OK(llama_embed(&g->model, COMPUTE_F64, ids, WINDOW, x));
        for (int i = 0; i < LAYERS; i++)
            OK(llama_block_forward_save(&g->model, i, &sites, 0, WINDOW, x, saved[i], work));
        OK(llama_ce_backward(&g->model, WINDOW, x, next, weight, x, &sum, NULL, work));
        for (int i = LAYERS - 1; i >= 0; i--) {
            rotation_grads to = {.R1 = G1, .R2 = G2 + i * DD};
            for (int k = 0; k < SCALE_KINDS; k++)
                to.scales[k] = GS + i * SCALES + scale_sizes_at(&sizes, ALL_KINDS, k);
            OK(llama_block_backward(&g->model, i, &sites, 0, WINDOW, x, saved[i], &to, NULL, work));
        }
        *loss += sum * weight;
    }
    llama_work_destroy(&work);
    scale_part_destroy(&scales);
    rotation_destroy(&R1);
    for (int i = 0; i < LAYERS; i++) {
        llama_saved_destroy(&saved[i]);
        rotation_destroy(&R2[i]);
    }
    mem_free(x);
}

/* The first step of Adam goes as far as its rate wherever a gradient is not tiny; channels of a
 * RoPE pair take the sum of both; then the geometric mean of each vector is one. */
static void plain_scale_step(double rate, double *GS, double *S) {
    static const int64_t length[SCALE_KINDS] = {HIDDEN, HIDDEN, KV * DIM, KV * DIM, WIDE};
    for (int64_t i = 0; i < LAYERS; i++) {
        for (int k = 0; k < SCALE_KINDS; k++) {
            double mean = 0;
            for (int64_t j = 0; j < length[k]; j++) {
                const int64_t other = j % DIM < DIM / 2 ? j + DIM / 2 : j - DIM / 2;
                const double g = GS[j] + (k == SCALE_QK ? GS[other] : 0);
                S[j] *= exp(-rate * g / (fabs(g) + 1e-8));
                mean += log(S[j]) / (double)length[k];
            }
            for (int64_t j = 0; j < length[k]; j++) S[j] /= exp(mean);
            GS += length[k];
            S += length[k];
        }
    }
}

/* One published step from the plain sums. */
static void test_gradient(const given *g) {
    const setting s = {"gradient", COMPUTE_F64, false, true, false, OPTIMIZER_SGD_PUBLISHED,
                       4,          4,           true};
    run r;
    learn_report report;
    static outcome got;
    double loss, *G1 = room(N1, sizeof *G1), *G2 = room(LAYERS * DD, sizeof *G2);
    double *GS = room(LAYERS * SCALES, sizeof *GS), *S = room(LAYERS * SCALES, sizeof *S);
    run_begin(comm_world(), g, &s, 0, 0, RECOMPUTE_AUTO, &r);
    plain_gradients(g, &r, G1, G2, GS, &loss);
    OK(learn_e2e_step(r.learn, &report));
    check(fabs(report.loss - loss) < 1e-12 * loss, "loss against whole windows");
    run_end(&r, &got);
    double *R1 = room(N1, sizeof *R1), *R2 = room(LAYERS * DD, sizeof *R2);
    optimizer *o1, *o2;
    memcpy(R1, g->R1, N1 * sizeof *R1);
    for (int i = 0; i < LAYERS; i++) memcpy(R2 + i * DD, g->R2 + i * KV * DD, DD * sizeof *R2);
    OK(optimizer_create(s.kind, HIDDEN, 1, &o1));
    OK(optimizer_create(s.kind, DIM, LAYERS, &o2));
    OK(cayley_skew(HIDDEN, G1, R1, G1));
    for (int i = 0; i < LAYERS; i++) OK(cayley_skew(DIM, G2 + i * DD, R2 + i * DD, G2 + i * DD));
    OK(optimizer_step(o1, 1.5, NULL, G1, R1, NULL));
    OK(optimizer_step(o2, 1.5, NULL, G2, R2, NULL));
    check(off_by(R1, g->R1, N1) > 1e-6, "the step is one");
    check(off_by(R1, got.R1, N1) < 1e-11, "R1 against whole windows");
    check(off_by(R2, got.R2, LAYERS * DD) < 1e-11, "R2 against whole windows");
    memcpy(S, g->S, LAYERS * SCALES * sizeof *S);
    plain_scale_step(r.o.lr_scale, GS, S);
    check(off_by(S, g->S, LAYERS * SCALES) > 0.01, "scales move");
    /* a gradient as small as 1e-8 is known to 1e-15, and Adam multiplies by up to 1e8 */
    check(off_by(S, got.S, LAYERS * SCALES) < 1e-6, "scales against whole windows");
    optimizer_destroy(&o1);
    optimizer_destroy(&o2);
    void *all[] = {G1, G2, R1, R2, GS, S};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
}

/* ---- sums that overflow ---- */

static void test_overflow(const given *g) {
    const comm *all = comm_world();
    const setting s = {"overflow", COMPUTE_F64, false, true, false, OPTIMIZER_SGD_PUBLISHED,
                       4,          4,           true};
    static outcome plain, repeated;
    for (int small = 0; small < 2; small++) {
        run r;
        learn_report report;
        double *common, *cell;
        memset(small ? &repeated : &plain, 0, sizeof plain);
        run_begin(all, g, &s, 0, 0, RECOMPUTE_AUTO, &r);
        OK(learn_e2e_step(r.learn, &report));
        state_of(all, &r, &common, &cell);
        /* exponents of all sums: far too fine; that of scales is the first of what they have */
        const int64_t of_scales = learn_e2e_state_count(r.learn) - 2 - 4 * LAYERS * SCALES;
        if (small) {
            for (int i = 1; i <= 2; i++) common[i] -= 30;
            common[of_scales] -= 30;
        }
        give_state(&r, common, cell);
        OK(learn_e2e_step(r.learn, &report));
        run_end(&r, small ? &repeated : &plain);
        mem_free(common);
        mem_free(cell);
    }
    check(plain.passes == 3 && repeated.passes == 4, "a step whose sums overflow is done again");
    check(off_by(plain.R1, repeated.R1, N1) < 1e-10, "to the same R1");
    check(off_by(plain.R2, repeated.R2, LAYERS * DD) < 1e-10, "and R2");
    check(off_by(plain.S, repeated.S, LAYERS * SCALES) < 1e-6, "and scales");
}

/* ---- numbers that stop being finite ---- */

static void test_not_finite(given *g) {
    const comm *all = comm_world();
    static outcome got;
    bf16 *down = g->model.layers[1].down.data;
    float *norm = g->model.final_norm;
    for (int where = 0; where < 2; where++) {
        run r;
        learn_report report;
        const float norm_was = norm[3];
        const bf16 down_was = down[0];
        run_begin(all, g, &settings[1], 0, 0, RECOMPUTE_AUTO, &r);
        if (where)
            norm[3] = INFINITY;
        else
            down[0] = half_to_bf16(INFINITY);
        err e = learn_e2e_step(r.learn, &report);
        norm[3] = norm_was;
        down[0] = down_was;
        check(e.code == ERR_NUMERICS, "numbers that are not finite are an error");
        check(strstr(e.where, where ? "loss" : "layer 1") != NULL, "of the layer");
        check(strstr(e.what, "step 1") && strstr(e.what, "sequence "), "of step and sequence");
        check(report.step == 0, "no step was made");
        memset(&got, 0, sizeof got);
        run_end(&r, &got);
        check(off_by(got.R1, g->R1, N1) == 0, "R1 is as it was");
    }
}

static void test_refusals(const given *g) {
    const int size = comm_size(comm_world());
    learn_e2e_options o = options_of(g, &settings[0]);
    e2e_wish w = wish_of(&o, &settings[0], size);
    e2e_layout l;
    w.stages = LAYERS + 1;
    check(e2e_layout_choose(&w, &l).code == ERR_USAGE, "more stages than layers");
    w.stages = 0;
    w.replicas = size + 1;
    check(e2e_layout_choose(&w, &l).code == ERR_USAGE, "more replicas than ranks");
    w.shape.window = LENGTH + 1;
    check(learn_e2e_check(&o, &w.shape).code == ERR_USAGE, "windows longer than the text's");
    o.sites.act.bits = o.sites.kv.bits = 16;
    w.shape.window = LENGTH;
    check(learn_e2e_check(&o, &w.shape).code == ERR_USAGE, "nothing to learn");
    o.scales = ALL_KINDS;
    check(learn_e2e_check(&o, &w.shape).code == ERR_USAGE, "nor scales");
}

int main(int argc, char **argv) {
    const comm *c = ranks_start(&argc, &argv);
    log_set_level(LOG_ERROR);
    gemm_init(comm_node_size());
    comm *alone;
    given g;
    OK(comm_split(c, comm_rank(c), "alone", &alone));
    make_given(&g);
    test_layouts(alone, &g);
    test_threads(alone, &g);
    test_gradient(&g);
    test_overflow(&g);
    test_not_finite(&g);
    test_refusals(&g);
    comm_destroy(&alone);
    return ranks_end();
}
