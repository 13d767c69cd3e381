/* Learning against tests/data/goldens, which PyTorch made the long way (tests/tools/goldens.py):
 * the loss and the skew gradients R^T G - G^T R of R1 and R2 of the shipped trained model with
 * every site on, at the start point, in fp64 and fp32; and four published steps, as learning makes
 * them, in fp64. */
#include "base/gemm.h"
#include "base/json.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"
#include "io/hf_checkpoint.h"
#include "model/backward.h"
#include "model/objective.h"
#include "model/tensors.h"
#include "pipeline/learn/learn_e2e.h"
#include "rotations/rotation.h"
#include "tests/unit/small_model.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void data_path(const char *tail, char *path, size_t size) {
    const char *data = getenv("SPINSHARD_TEST_DATA");
    snprintf(path, size, "%s/%s", data ? data : "tests/data", tail);
}

/* A checkpoint into a stage that holds the whole model, all matrices in fp32. */

static wmat *matrix_slot(llama_stage *s, const llama_tensor *t) {
    for (int i = 0; i < LLAMA_LINEARS; i++)
        if (t->role == llama_linears[i]) return llama_layer_linear(&s->layers[t->layer], i);
    return t->role == ROLE_EMBED ? &s->embed : &s->head;
}

static float **vector_slot(llama_stage *s, const llama_tensor *t) {
    if (t->role == ROLE_FINAL_NORM) return &s->final_norm;
    llama_layer *l = &s->layers[t->layer];
    return t->role == ROLE_ATTN_NORM ? &l->attn_norm : &l->mlp_norm;
}

static void load(const char *dir, small_model *m) {
    fileset *fs;
    hf_checkpoint *ck;
    assert_ok(fileset_open_dir(comm_world(), dir, &fs));
    assert_ok(hf_checkpoint_open(comm_world(), fs, &ck));
    assert_ok(llama_config_parse(hf_checkpoint_config(ck), dir, &m->cfg));
    assert_false(m->cfg.qkv_bias || m->cfg.o_bias || m->cfg.mlp_bias);
    assert_ok(llama_stage_init(&m->stage, &m->cfg, 0, m->cfg.layers));
    for (int64_t i = 0; i < llama_tensor_count(&m->cfg); i++) {
        llama_tensor t;
        llama_tensor_at(&m->cfg, i, &t);
        const hf_tensor *in = hf_checkpoint_find(ck, t.name);
        if (!in && t.role == ROLE_EMBED) in = hf_checkpoint_find(ck, "lm_head.weight");
        assert_non_null(in);
        const st_dtype d = in->info.dtype;
        wmat w;
        assert_ok(wmat_init(&w,
                            d == ST_F32   ? WMAT_F32
                            : d == ST_F16 ? WMAT_F16
                                          : WMAT_BF16,
                            t.rows, t.cols, t.name));
        assert_ok(hf_checkpoint_read(ck, in, w.data, NULL));
        if (t.n_dims == 2) {
            *matrix_slot(&m->stage, &t) = w;
        } else {
            float **slot = vector_slot(&m->stage, &t);
            *slot = room(t.rows, sizeof(float));
            wmat_expand_f32(&w, 0, t.rows, 0, 1, *slot, 1);
            wmat_clear(&w);
        }
    }
    m->stage.head_is_embed = m->cfg.tied;
    hf_checkpoint_destroy(&ck);
    fileset_destroy(&fs);
}

/* Tensors of a golden file. */

typedef struct golden {
    int fd;
    st_header *header;
} golden;

static void golden_open(const char *path, golden *g) {
    g->fd = open(path, O_RDONLY);
    assert_true(g->fd >= 0);
    const off_t end = lseek(g->fd, 0, SEEK_END);
    assert_ok(st_header_read(g->fd, path, 0, (uint64_t)end, &g->header));
}

static void *golden_read(const golden *g, const char *name, int64_t count) {
    const st_tensor *t = st_header_find(g->header, name);
    assert_non_null(t);
    assert_int_equal(t->end - t->begin, count * 8);
    void *to = room(count, 8);
    const off_t at = (off_t)(st_header_data_offset(g->header) + t->begin);
    assert_int_equal(pread(g->fd, to, (size_t)count * 8, at), count * 8);
    return to;
}

/* R^T G - G^T R. */
static void skew_of(const double *R, const double *G, int64_t n, double *out) {
    double *p = room(n * n, sizeof *p);
    gemm_f64(GEMM_T, GEMM_N, n, n, n, R, n, G, n, GEMM_SET, p, n);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < n; j++) out[i * n + j] = p[i * n + j] - p[j * n + i];
    }
    mem_free(p);
}

static double off_by(const double *got, const double *want, int64_t n) {
    double off = 0, size = 0;
    for (int64_t i = 0; i < n; i++) {
        off += (got[i] - want[i]) * (got[i] - want[i]);
        size += want[i] * want[i];
    }
    return sqrt(off / size);
}

typedef struct rotations {
    double *R1, *R2;
    rotation *r1, *r2[8], *r3, *r4;
} rotations;

static void rotations_read(const golden *g, const llama_config *c, rotations *r) {
    const int64_t n = c->hidden, d = c->head_dim, m = c->intermediate;
    r->R1 = golden_read(g, "R1_0", n * n);
    r->R2 = golden_read(g, "R2_0", c->layers * d * d);
    double *R3 = golden_read(g, "R3", d * d), *R4 = golden_read(g, "R4", m * m);
    assert_ok(rotation_create_dense(n, r->R1, &r->r1));
    for (int64_t i = 0; i < c->layers; i++)
        assert_ok(rotation_create_dense(d, r->R2 + i * d * d, &r->r2[i]));
    assert_ok(rotation_create_dense(d, R3, &r->r3));
    assert_ok(rotation_create_dense(m, R4, &r->r4));
    mem_free(R3);
    mem_free(R4);
}

static void rotations_free(rotations *r) {
    rotation_destroy(&r->r1);
    for (int i = 0; i < 8; i++) rotation_destroy(&r->r2[i]);
    rotation_destroy(&r->r3);
    rotation_destroy(&r->r4);
    mem_free(r->R1);
    mem_free(r->R2);
}

static llama_sites sites_of(const char *setting, const rotations *r) {
    llama_sites sites = llama_sites_none();
    sites.act.bits = 4;
    sites.kv.bits = strcmp(setting, "a4kv4") == 0 ? 4 : 16;
    sites.o_per_head = true;
    sites.R1 = r->r1;
    sites.R2 = (const rotation *const *)r->r2;
    sites.R3 = r->r3;
    sites.R4 = r->r4;
    return sites;
}

/* Loss per predicted token, and gradients of it as doubles; the window in slices. */
static double gradients(const small_model *m, const llama_sites *sites, compute_type compute,
                        int64_t slice, const int32_t *ids, int64_t tokens, double *G1, double *G2) {
    const llama_config *c = &m->cfg;
    const int64_t n1 = c->hidden * c->hidden, n2 = c->head_dim * c->head_dim;
    const llama_pass_shape shape = {
        .compute = compute, .window = tokens, .slice = slice, .r1 = true, .r2 = true, .head = true};
    const size_t real = llama_real_bytes(compute);
    llama_work *work;
    llama_saved *saved[8];
    assert_ok(llama_work_create(c, sites, &shape, &work));
    assert_ok(llama_work_put_r1(work, sites->R1));
    int32_t next[64];
    for (int64_t t = 0; t < tokens; t++) next[t] = t + 1 < tokens ? ids[t + 1] : -1;
    char *x = room(tokens * c->hidden, sizeof(double));
    void *R1 = room(n1, sizeof(double)), *R2[8];
    assert_ok(llama_embed(&m->stage, compute, ids, tokens, x));
    for (int64_t l = 0; l < c->layers; l++) {
        R2[l] = room(n2, sizeof(double));
        assert_ok(llama_saved_create(c, sites, &shape, &saved[l]));
        for (int64_t t = 0; t < tokens; t += slice)
            assert_ok(llama_block_forward_save(&m->stage, l, sites, t, size_min(slice, tokens - t),
                                               x + (size_t)(t * c->hidden) * real, saved[l], work));
    }
    const double weight = 1 / (double)(tokens - 1);
    double loss = 0, sum;
    for (int64_t t = 0; t < tokens; t += slice) {
        char *part = x + (size_t)(t * c->hidden) * real;
        assert_ok(llama_ce_backward(&m->stage, size_min(slice, tokens - t), part, next + t, weight,
                                    part, &sum, NULL, work));
        loss += sum * weight;
    }
    for (int64_t l = c->layers - 1; l >= 0; l--) {
        const rotation_grads grads = {.R1 = R1, .R2 = R2[l]};
        for (int64_t t = (tokens - 1) / slice * slice; t >= 0; t -= slice)
            assert_ok(llama_block_backward(&m->stage, l, sites, t, size_min(slice, tokens - t),
                                           x + (size_t)(t * c->hidden) * real, saved[l], &grads,
                                           NULL, work));
        llama_saved_destroy(&saved[l]);
    }
    const bool wide = compute == COMPUTE_F64;
    for (int64_t i = 0; i < n1; i++) G1[i] = wide ? ((double *)R1)[i] : (double)((float *)R1)[i];
    for (int64_t l = 0; l < c->layers; l++) {
        for (int64_t i = 0; i < n2; i++)
            G2[l * n2 + i] = wide ? ((double *)R2[l])[i] : (double)((float *)R2[l])[i];
        mem_free(R2[l]);
    }
    mem_free(x);
    mem_free(R1);
    llama_work_destroy(&work);
    return loss;
}

/* Four bits are chaotic: where an fp64 value lies within fp32 noise of a tie, some fp32 runs round
 * it the other way and all that follows differs. Which, depends on the CPU's kernels. Other cuts
 * into slices round differently too, so: fp64 must agree for every cut, fp32 for some cut.
 * Agreement of thousands of numbers to 1e-4 does not come by chance. */
static const int64_t cuts[] = {64, 33, 17, 8, 5, 50};
enum { CUTS = sizeof cuts / sizeof *cuts };

static void check_setting(const char *setting, const golden *g, const small_model *m,
                          const json_t *steps) {
    const llama_config *c = &m->cfg;
    const int64_t n = c->hidden, d = c->head_dim, tokens = 64;
    rotations r = {0};
    rotations_read(g, c, &r);
    int64_t *wide_ids = golden_read(g, "ids", tokens);
    int32_t ids[64];
    for (int64_t t = 0; t < tokens; t++) ids[t] = (int32_t)wide_ids[t];
    const llama_sites sites = sites_of(setting, &r);
    char key[64];
    snprintf(key, sizeof key, "%s.skew_R1", setting);
    double *want1 = golden_read(g, key, n * n);
    snprintf(key, sizeof key, "%s.skew_R2", setting);
    double *want2 = golden_read(g, key, c->layers * d * d);
    const json_t *first = json_array_get(json_object_get(steps, setting), 0);
    const double want = json_number_value(json_object_get(first, "loss"));
    assert_true(want > 0);
    double *G1 = room(n * n, sizeof *G1), *G2 = room(c->layers * d * d, sizeof *G2);
    int agreed = 0;
    for (int i = 0; i < 2 * CUTS; i++) {
        const compute_type compute = i < CUTS ? COMPUTE_F64 : COMPUTE_F32;
        const int64_t slice = cuts[i % CUTS];
        if (compute == COMPUTE_F32 && agreed) break;
        const double loss = gradients(m, &sites, compute, slice, ids, tokens, G1, G2);
        skew_of(r.R1, G1, n, G1);
        for (int64_t l = 0; l < c->layers; l++)
            skew_of(r.R2 + l * d * d, G2 + l * d * d, d, G2 + l * d * d);
        const double off1 = off_by(G1, want1, n * n), off2 = off_by(G2, want2, c->layers * d * d);
        const double off = fabs(loss / want - 1);
        print_message("%s, %s, slices of %d: loss off by %.2g, R1 by %.2g, R2 by %.2g\n", setting,
                      compute == COMPUTE_F64 ? "fp64" : "fp32", (int)slice, off, off1, off2);
        if (compute == COMPUTE_F64)
            assert_true(off <= 1e-10 && off1 <= 1e-9 && off2 <= 1e-9);
        else
            agreed += off <= 1e-5 && off1 <= 1e-4 && off2 <= 1e-4;
    }
    assert_true(agreed);
    void *all[] = {wide_ids, want1, want2, G1, G2};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
    rotations_free(&r);
}

/* Four published steps of pipeline/learn/learn_e2e.h: the whole of it on one rank, in slices. */
static void check_steps(const char *setting, const golden *g, const small_model *m,
                        const json_t *steps) {
    enum { STEPS = 4 };
    const llama_config *c = &m->cfg;
    const int64_t n1 = c->hidden * c->hidden, n2 = c->layers * c->head_dim * c->head_dim;
    rotations r = {0};
    char key[64];
    int32_t ids[64];
    rotations_read(g, c, &r);
    int64_t *wide_ids = golden_read(g, "ids", 64);
    for (int t = 0; t < 64; t++) ids[t] = (int32_t)wide_ids[t];
    learn_e2e_options o = {.steps = 100,
                           .kind = OPTIMIZER_SGD_PUBLISHED,
                           .schedule = SCHEDULE_COSINE,
                           .lr_r1 = 1.5,
                           .lr_r2 = 1.5,
                           .grid = {1, 1},
                           .blas_threads = 1,
                           .r1 = true,
                           .r2_heads = 1,
                           .sites = sites_of(setting, &r),
                           .ids = ids,
                           .n_windows = 1,
                           .length = 64};
    e2e_wish w = {.ranks = 1,
                  .objective = e2e_objective_of(OBJECTIVE_CE),
                  .batch = 1,
                  .load = {.cfg = c, .compute = COMPUTE_F64},
                  .sites = &o.sites,
                  .shape = {.compute = COMPUTE_F64, .window = 64, .slice = 24}};
    e2e_layout l;
    dealt_rows *R1;
    learn_e2e *learn;
    learn_report said;
    double *R2 = room(n2, sizeof *R2), *got = room(n1, sizeof *got);
    assert_ok(learn_e2e_check(&o, &w.shape));
    assert_ok(e2e_layout_choose(&w, &l));
    assert_ok(dealt_rows_create(comm_world(), c->hidden, c->hidden, "R1", &R1));
    dealt_rows_put(R1, 0, c->hidden, r.R1);
    memcpy(R2, r.R2, (size_t)n2 * sizeof *R2);
    assert_ok(learn_e2e_create(comm_world(), &o, &w, &l, &m->stage, R1, R2, &learn));
    for (size_t i = 0; i < STEPS; i++) {
        const json_t *one = json_array_get(json_object_get(steps, setting), i);
        const double want = json_number_value(json_object_get(one, "loss"));
        assert_ok(learn_e2e_step(learn, &said));
        assert_true(want > 0 && fabs(said.loss / want - 1) <= 1e-10);
        assert_true(said.orthogonality <= 1e-12);
    }
    learn_e2e_take(learn, R1, R2);
    dealt_rows_get(R1, 0, c->hidden, got);
    snprintf(key, sizeof key, "%s.R1_4", setting);
    double *want1 = golden_read(g, key, n1);
    snprintf(key, sizeof key, "%s.R2_4", setting);
    double *want2 = golden_read(g, key, n2);
    double most = 0;
    for (int64_t i = 0; i < n1; i++) most = fmax(most, fabs(got[i] - want1[i]));
    for (int64_t i = 0; i < n2; i++) most = fmax(most, fabs(R2[i] - want2[i]));
    print_message("%s, four published steps: R1 and R2 within %.2g\n", setting, most);
    assert_true(most <= 1e-8);
    learn_e2e_destroy(&learn);
    dealt_rows_destroy(&R1);
    e2e_layout_clear(&l);
    void *all[] = {wide_ids, want1, want2, R2, got};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) mem_free(all[i]);
    rotations_free(&r);
}

static void test_goldens(void **state) {
    (void)state;
    char path[1024];
    json_t *steps;
    small_model m;
    golden g;
    data_path("goldens/learning.json", path, sizeof path);
    assert_ok(json_read_file(path, 1 << 24, &steps));
    data_path("stories260K", path, sizeof path);
    load(path, &m);
    data_path("goldens/learning.safetensors", path, sizeof path);
    golden_open(path, &g);
    static const char *const settings[] = {"a4kv16", "a4kv4"};
    for (int i = 0; i < 2; i++) {
        check_setting(settings[i], &g, &m, steps);
        check_steps(settings[i], &g, &m, steps);
    }
    st_header_destroy(&g.header);
    close(g.fd);
    llama_stage_clear(&m.stage);
    json_decref(steps);
}

int main(void) {
    gemm_init(1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_goldens)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
