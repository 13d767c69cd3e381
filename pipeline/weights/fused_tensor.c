/* A fuse_plan says which gains and rotations the role takes; rows stream through fuse to the sink
 * while a probe vector is multiplied along, and its norm must be that of the same probe through
 * the source. */
#include "pipeline/weights/fused_tensor.h"

#include "base/fault.h"
#include "base/mem.h"
#include "pipeline/weights/source_tensor.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const float *fused_gain_of(llama_role linear, float *const gains[LLAMA_NORMS]) {
    llama_role norm = ROLE_COUNT;
    if (linear == ROLE_Q || linear == ROLE_K || linear == ROLE_V) norm = ROLE_ATTN_NORM;
    if (linear == ROLE_GATE || linear == ROLE_UP) norm = ROLE_MLP_NORM;
    for (int i = 0; i < LLAMA_NORMS; i++)
        if (llama_vectors[i] == norm) return gains[i];
    return NULL;
}

/* Fused rows on their way to a sink, probed as they pass. */
typedef struct passage {
    fuse_sink take;
    void *arg;
    int64_t n_rows, cols;
    float *signs;   /* [cols] of the probe; NULL: nothing is rotated, nothing probed */
    double *probes; /* [rows, 2]: a fused row times the signs; its squared norm */
    site_row *rows; /* [rows] as they come out; NULL: no spread is wanted */
    float *sample;  /* [spread_rows, cols] of them; NULL with rows */
} passage;

static bool rotates(const fuse_job *job) {
    return job->in || job->out || job->in_heads.rotations || job->out_heads.rotations;
}

/* Whether any entry differs behind fusion from what it is in the checkpoint. */
static bool changes(const fuse_job *job) {
    return rotates(job) || job->in_gain || job->in_scale || job->out_scale || job->after_scale;
}

static void probe_row(const float *x, const float *signs, int64_t n, double out[2]) {
    double dot = 0, square = 0;
#pragma omp simd reduction(+ : dot, square)
    for (int64_t j = 0; j < n; j++) {
        dot += (double)x[j] * (double)signs[j];
        square += (double)x[j] * (double)x[j];
    }
    out[0] = dot;
    out[1] = square;
}

static void look_at_row(const passage *p, int64_t row, const float *x) {
    int64_t at;
    p->rows[row] = site_row_of(x, p->cols);
    if (spread_samples(p->n_rows, row, &at))
        memcpy(p->sample + at * p->cols, x, (size_t)p->cols * sizeof *x);
}

static err pass_rows(void *arg, int64_t row0, int64_t rows, const float *w) {
    const passage *p = arg;
    for (int64_t i = 0; p->signs && i < rows; i++)
        probe_row(w + i * p->cols, p->signs, p->cols, p->probes + 2 * (row0 + i));
    for (int64_t i = 0; p->rows && i < rows; i++) look_at_row(p, row0 + i, w + i * p->cols);
    return p->take(p->arg, row0, rows, w);
}

static err begin_probe(const fuse_job *job, passage *p) {
    if (!rotates(job)) return err_none();
    err e = MEM_NEW(&p->signs, job->cols, "probe");
    if (e.code) return e;
    fuse_probe_signs(job->cols, p->signs);
    return MEM_NEW(&p->probes, 2 * job->rows, "probe");
}

/* What came out against what the source and the rotations say must come out. */
static err end_probe(const fuse_job *job, passage *p) {
    double before, after = 0, square = 0;
    if (!p->signs) return err_none();
    if (fault_hit("fuse")) p->probes[0] += 1 + fabs(p->probes[0]);
    for (int64_t r = 0; r < job->rows; r++) {
        after += p->probes[2 * r] * p->probes[2 * r];
        square += p->probes[2 * r + 1];
    }
    err e = fuse_probe_source(job, p->signs, &before);
    return e.code ? e : fuse_probe_check(before, after, square, job->cols);
}

/* ---- how entries are spread ---- */

static err begin_spread(const fuse_job *job, bool wanted, passage *p) {
    if (!wanted) return err_none();
    err e = MEM_NEW(&p->rows, job->rows, "spread of rows");
    return e.code ? e : MEM_NEW(&p->sample, spread_rows(job->rows) * job->cols, "sample of rows");
}

/* The rows of the source, each as fp32 in a buffer of its thread. */
static err source_rows(const fuse_job *job, const passage *p) {
    const int64_t bytes = job->cols * (job->dtype == FUSE_F32 ? 4 : 2);
    int failed = 0;
#pragma omp parallel reduction(| : failed)
    {
        float *x = malloc((size_t)job->cols * sizeof *x);
        failed = x == NULL;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < job->rows; i++) {
            if (!x) continue;
            fuse_to_f32((const char *)job->source + i * bytes, job->dtype, job->cols, x);
            look_at_row(p, i, x);
        }
        free(x);
    }
    return failed ? err_make(ERR_NOFIT, "spread of rows", NULL, "no memory for a row") : err_none();
}

static err end_spread(const fuse_job *job, const wquant *how, passage *p, fused_spread *to) {
    if (!p->rows) return err_none();
    err e = spread_of(p->rows, job->rows, job->cols, p->sample, how, &to->after);
    to->before = to->after;
    if (!e.code && changes(job)) {
        e = source_rows(job, p);
        if (!e.code) e = spread_of(p->rows, job->rows, job->cols, p->sample, how, &to->before);
    }
    to->known = !e.code;
    return e;
}

typedef err (*fuse_way)(fuse_job *job, fuse_sink sink, void *arg);

static err fuse_by(fuse_way way, rotation_set *set, const llama_tensor *t, const fused_source *from,
                   fuse_sink take, void *arg) {
    fuse_plan plan = {.r2 = NULL};
    fuse_job *job = &plan.job;
    passage p = {.take = take, .arg = arg, .n_rows = t->rows, .cols = t->cols};
    err e = fuse_plan_init(t->role, t->layer, set, &plan);
    if (!e.code) {
        job->source = from->raw;
        job->dtype = from->dtype;
        job->rows = t->rows;
        job->cols = t->cols;
        job->in_gain = from->gain;
        e = begin_probe(job, &p);
        if (!e.code) e = begin_spread(job, from->spread != NULL, &p);
    }
    if (!e.code) e = way(job, pass_rows, &p);
    if (!e.code) e = source_tensor_refuse(t->name, job->non_finite);
    if (!e.code) e = err_at(end_probe(job, &p), t->name);
    if (!e.code) e = err_at(end_spread(job, from->how, &p, from->spread), t->name);
    mem_free(p.signs);
    mem_free(p.probes);
    mem_free(p.rows);
    mem_free(p.sample);
    fuse_plan_clear(&plan);
    return e;
}

err fused_tensor_each(rotation_set *set, const llama_tensor *t, const fused_source *from,
                      fuse_each_sink take, void *arg) {
    return fuse_by(fuse_matrix_each, set, t, from, take, arg);
}

err fused_tensor_in_order(rotation_set *set, const llama_tensor *t, const fused_source *from,
                          fuse_sink take, void *arg) {
    return fuse_by(fuse_matrix, set, t, from, take, arg);
}

typedef struct memory_target {
    float *to;
    int64_t cols;
} memory_target;

static err keep_rows(void *arg, int64_t row0, int64_t rows, const float *w) {
    const memory_target *m = arg;
    memcpy(m->to + row0 * m->cols, w, (size_t)(rows * m->cols) * sizeof *w);
    return err_none();
}

err fused_tensor_into(rotation_set *set, const llama_tensor *t, const fused_source *from,
                      float *to) {
    memory_target target = {.to = to, .cols = t->cols};
    return fused_tensor_each(set, t, from, keep_rows, &target);
}

err fused_tensor_vector(rotation_set *set, const llama_tensor *t, float *v) {
    fuse_plan plan = {.r2 = NULL};
    err e = fuse_plan_init(t->role, t->layer, set, &plan);
    if (!e.code) e = fuse_bias(&plan.job, v, t->rows);
    fuse_plan_clear(&plan);
    return e;
}

/* The probe of the source comes when the tiles of fusion are gone. */
uint64_t fused_tensor_bytes(rotation_set *set, const llama_tensor *t, fuse_dtype dtype,
                            bool dense) {
    uint64_t bytes = 0;
    fuse_plan plan = {.r2 = NULL};
    if (!fuse_plan_init(t->role, t->layer, set, &plan).code) {
        plan.job.dtype = dtype;
        if (dense) plan.job.dense = rotation_set_r1(set);
        plan.job.rows = t->rows;
        plan.job.cols = t->cols;
        const uint64_t fusion = fuse_scratch_bytes(&plan.job),
                       source = fuse_probe_source_bytes(&plan.job);
        bytes = fusion;
        if (rotates(&plan.job))
            bytes = (fusion > source ? fusion : source) + (uint64_t)t->cols * sizeof(float) +
                    2 * (uint64_t)t->rows * sizeof(double);
        bytes += (uint64_t)t->rows * sizeof(site_row) + spread_bytes(t->rows, t->cols);
    }
    fuse_plan_clear(&plan);
    return bytes;
}
