/* Every tensor is fused again from the source and compared within the bound that its rounding
 * allows; equivalence compares logits of the fused and the original model before rounding. */
#include "jobs/verify_source.h"

#include "base/gemm.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/size.h"
#include "model/fuse.h"
#include "pipeline/stages/eval_run.h"
#include "pipeline/stages/partition.h"
#include "pipeline/weights/quantize_item.h"
#include "pipeline/weights/source_tensor.h"
#include "quant/grid.h"
#include "quant/rounding_bounds.h"
#include "shard/form.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a recipe allows codes to do (quant/rounding_bounds.h). */
typedef enum allowed {
    ALLOWED_NEAREST,      /* every weight is rounded to nearest */
    ALLOWED_FIRST_COLUMN, /* in one column at least every weight is: GPTQ */
    ALLOWED_ANY,          /* GPTAQ */
} allowed;

typedef struct compare {
    const source *ar;
    verify_values *sum;
    double sq_error, sq_weight; /* of all linears */
    bool searched;              /* scales by search */
    allowed codes;
    qmatrix *q; /* the linear at hand */
    bool *near; /* [cols] so far every row of this column is rounded to nearest */
    double one_error, one_weight;
} compare;

static err differs(const char *name, const char *fmt, double a, double b) {
    char what[160];
    snprintf(what, sizeof what, fmt, a, b);
    return err_make(ERR_VERIFY, name, "make the archive again; if it comes back, report a bug",
                    "%s", what);
}

/* Relative distance between neighbours of a stored type: one rounding moves a value by half of it;
 * the source, fused again from rotations.safetensors, may sit on the other side of a tie. */
static double spacing(st_dtype t) {
    return t == ST_BF16 ? 0x1p-7 : t == ST_F16 ? 0x1p-10 : 0x1p-20;
}

static err compare_plain(void *arg, const llama_tensor *t, int64_t row0, int64_t rows,
                         const float *w) {
    compare *c = arg;
    const char *name = t->role == ROLE_HEAD ? "lm_head.weight" : t->name;
    const hf_tensor *found = hf_checkpoint_find(c->ar->ck, name);
    if (!found) return err_make(ERR_VERIFY, name, NULL, "the tensor is missing from the archive");
    st_dtype type = found->info.dtype;
    uint64_t size = (uint64_t)st_dtype_bytes(type);
    int64_t n = rows * t->cols;
    void *raw;
    float *values = NULL;
    err e = mem_alloc(n, size, name, &raw);
    if (!e.code) e = MEM_NEW(&values, n, name);
    if (!e.code)
        e = hf_checkpoint_read_range(c->ar->ck, found, (uint64_t)(row0 * t->cols) * size,
                                     (uint64_t)n * size, raw);
    if (!e.code) {
        fuse_to_f32(raw, source_tensor_dtype(type), n, values);
        double tiny = type == ST_F16 ? 0x1p-23 : 1e-30;
        for (int64_t i = 0; i < n && !e.code; i++)
            if (!(fabs((double)values[i] - (double)w[i]) <=
                  spacing(type) * fabs((double)w[i]) + tiny))
                e = differs(name, "holds %.9g where the source gives %.9g", values[i], w[i]);
    }
    mem_free(raw);
    mem_free(values);
    return e;
}

static err begin_linear(compare *c, const llama_tensor *t) {
    c->one_error = c->one_weight = 0;
    c->near = malloc((size_t)t->cols * sizeof *c->near);
    if (!c->near) abort();
    for (int64_t j = 0; j < t->cols; j++) c->near[j] = true;
    return form_read(c->ar->ck, t->name, &c->ar->linears, t->rows, t->cols, &c->q);
}

static void clear_linear(compare *c) {
    qmatrix_destroy(&c->q);
    free(c->near);
    c->near = NULL;
}

static err end_linear(compare *c, const llama_tensor *t) {
    double relative = c->one_weight > 0 ? sqrt(c->one_error / c->one_weight) : 0;
    bool some = false;
    for (int64_t j = 0; j < t->cols; j++) some |= c->near[j];
    c->sq_error += c->one_error;
    c->sq_weight += c->one_weight;
    c->sum->linears++;
    if (relative >= c->sum->worst_relative) {
        c->sum->worst_relative = relative;
        snprintf(c->sum->worst, sizeof c->sum->worst, "%s", t->name);
    }
    clear_linear(c);
    if (some || c->codes != ALLOWED_FIRST_COLUMN) return err_none();
    return differs(t->name,
                   "GPTQ rounds its first column to nearest, and here no column is: relative error "
                   "%.3g, more than %.3g steps off",
                   relative, 0.5);
}

/* One row of a linear: its groups' scales, and how far the codes are from the weights. */
static err compare_row(compare *c, const llama_tensor *t, int64_t row, const float *w,
                       const float *dq) {
    const qmatrix *q = c->q;
    const wquant how = {.bits = q->bits,
                        .symmetric = q->symmetric,
                        .search = c->searched,
                        .scale_type = q->scale_type};
    for (int64_t g = 0; g < q->n_groups; g++) {
        const float scale = q->scales[row * q->n_groups + g], *x = w + g * q->group;
        const int zero = q->zeros ? q->zeros[row * q->n_groups + g] : grid_middle(q->bits);
        const double most = rounding_most_steps(&how, x, q->group, scale);
        if (!rounding_scale_fits(&how, x, q->group, scale, zero))
            return differs(t->name, "a scale of %.9g with the zero point %g is not of its weights",
                           (double)scale, zero);
        for (int64_t j = g * q->group; j < (g + 1) * q->group; j++) {
            const double d = (double)dq[j] - (double)w[j], steps = fabs(d) / (double)scale;
            c->one_error += d * d;
            c->one_weight += (double)w[j] * (double)w[j];
            c->sum->worst_step = fmax(c->sum->worst_step, steps);
            if (steps <= most) continue;
            c->near[j] = false;
            if (c->codes == ALLOWED_NEAREST)
                return differs(t->name,
                               "a weight is %.3g quantization steps off; %.3g are possible", steps,
                               most);
        }
    }
    return err_none();
}

static err compare_linear(void *arg, const llama_tensor *t, int64_t row0, int64_t rows,
                          const float *w) {
    compare *c = arg;
    err e = err_none();
    if (row0 == 0) e = begin_linear(c, t);
    float *buf = NULL;
    if (!e.code) e = MEM_NEW(&buf, rows * t->cols, "dequantized rows");
    if (e.code) return e;
    qmatrix_dequantize_rows(c->q, row0, rows, buf);
    for (int64_t i = 0; i < rows && !e.code; i++)
        e = compare_row(c, t, row0 + i, w + i * t->cols, buf + i * t->cols);
    mem_free(buf);
    if (!e.code && row0 + rows == t->rows) e = end_linear(c, t);
    return e;
}

static bool weights_are(const source *ar, const char *key, const char *word) {
    const char *s = json_string_value(json_object_get(json_object_get(ar->recipe, "weights"), key));
    return s && !strcmp(s, word);
}

/* An archive whose recipe does not say how its weights were rounded may have rounded them in any
 * way. */
static allowed allowed_by(const source *ar) {
    if (weights_are(ar, "method", "rtn")) return ALLOWED_NEAREST;
    return weights_are(ar, "method", "gptq") ? ALLOWED_FIRST_COLUMN : ALLOWED_ANY;
}

static err share_values(const comm *c, compare *x, verify_values *out) {
    int size = comm_size(c);
    verify_values *all = calloc((size_t)size, sizeof *all);
    double sums[2] = {x->sq_error, x->sq_weight}, *each = calloc((size_t)size * 2, sizeof *each);
    if (!all || !each) abort();
    comm_gather(c, out, sizeof *out, all, 0);
    comm_gather(c, sums, sizeof sums, each, 0);
    sums[0] = sums[1] = 0;
    for (int r = 0; r < size && comm_rank(c) == 0; r++) {
        sums[0] += each[2 * r];
        sums[1] += each[2 * r + 1];
        if (r) out->linears += all[r].linears;
        out->worst_step = fmax(out->worst_step, all[r].worst_step);
        if (all[r].worst_relative > out->worst_relative) {
            out->worst_relative = all[r].worst_relative;
            memcpy(out->worst, all[r].worst, sizeof out->worst);
        }
    }
    if (sums[1] > 0) out->relative_error = sqrt(sums[0] / sums[1]);
    comm_bcast(c, out, sizeof *out, 0);
    free(all);
    free(each);
    return err_none();
}

err verify_values_against(const comm *c, const source *ar, const source *from,
                          rotation_set *rotations, verify_values *out) {
    memset(out, 0, sizeof *out);
    compare x = {.ar = ar,
                 .sum = out,
                 .searched = !weights_are(ar, "scale", "max"),
                 .codes = allowed_by(ar)};
    quantize_job job = {.checkpoint = from->ck,
                        .cfg = &from->cfg,
                        .rotations = rotations,
                        .untied = from->cfg.tied && !ar->cfg.tied};
    quantize_sink sink = {
        .arg = &x,
        .in_order = true,
        .plain = compare_plain,
        .fused = ar->linears.form ? compare_linear : compare_plain,
    };
    int64_t n = quantize_item_count(&job);
    int *owner = calloc((size_t)n, sizeof *owner);
    double *cost = calloc((size_t)n, sizeof *cost);
    int64_t *own = calloc((size_t)n, sizeof *own), n_own = 0;
    read_ahead *reader = NULL;
    if (!owner || !cost || !own) abort();
    for (int64_t i = 0; i < n; i++) cost[i] = quantize_item_cost(&job, i);
    err e = partition_items(cost, n, comm_size(c), owner);
    for (int64_t i = 0; i < n && !e.code; i++)
        if (owner[i] == comm_rank(c)) own[n_own++] = i;
    if (!e.code) e = quantize_item_read_ahead(&job, own, n_own, true, &reader);
    for (int64_t i = 0; i < n && !e.code; i++) {
        quantize_result r;
        if (owner[i] == comm_rank(c)) e = quantize_item(&job, i, reader, &sink, &r);
        log_progress("verify", i + 1, n);
    }
    clear_linear(&x);
    read_ahead_destroy(&reader);
    free(own);
    free(owner);
    free(cost);
    e = comm_agree(c, e, "comparing with the source", NULL);
    return e.code ? e : share_values(c, &x, out);
}

/* ---- the function ---- */

enum { PROBE_TOKENS = 64, PROBE_WINDOWS = 2 };

typedef struct logits_pair {
    double *kept; /* [PROBE_WINDOWS, length, vocab] of the first pass */
    int64_t length, vocab;
    bool second;
    double relative;
} logits_pair;

static err take_logits(void *arg, int64_t window, const double *logits) {
    logits_pair *p = arg;
    int64_t n = p->length * p->vocab;
    double *kept = p->kept + window * n;
    if (!p->second) {
        memcpy(kept, logits, (size_t)n * sizeof *kept);
        return err_none();
    }
    for (int64_t t = 0; t < p->length; t++) {
        double d = 0, s = 0;
        for (int64_t v = 0; v < p->vocab; v++) {
            double a = kept[t * p->vocab + v], b = logits[t * p->vocab + v];
            d += (a - b) * (a - b);
            s += a * a;
        }
        double relative = s > 0 ? sqrt(d / s) : 0;
        if (!(relative <= p->relative)) p->relative = relative;
    }
    return err_none();
}

typedef struct equivalence {
    const comm *c; /* all of the ranks with layers */
    const source *from;
    rotation_set *rotations;
    stage_range range;
    embed_rows rows;
    eval_windows windows;
    logits_pair pair;
} equivalence;

static err one_pass(equivalence *q, bool fused) {
    const llama_config *cfg = &q->from->cfg;
    load_options lo = {.checkpoint = q->from->ck,
                       .cfg = cfg,
                       .fuse = fused ? q->rotations : NULL,
                       .embed = comm_rank(q->c) == 0 ? &q->rows : NULL,
                       .head = comm_rank(q->c) == comm_size(q->c) - 1,
                       .range = q->range,
                       .compute = COMPUTE_F32};
    llama_sites sites = llama_sites_none();
    if (fused && rotation_set_r4(q->rotations)) {
        sites.R4 = rotation_set_r4(q->rotations);
        sites.r4_fused = true;
    }
    llama_stage stage = {.cfg = cfg};
    err e = comm_agree(q->c, load_stage(&lo, &stage), "loading the weights", NULL);
    q->pair.second = fused;
    if (!e.code)
        e = eval_logits(q->c, &stage, &sites, COMPUTE_F32, &q->rows, &q->windows, take_logits,
                        &q->pair);
    llama_stage_clear(&stage);
    return e;
}

static err run_equivalence(equivalence *q) {
    const llama_config *cfg = &q->from->cfg;
    int64_t length = size_min(PROBE_TOKENS, cfg->max_positions);
    int32_t ids[PROBE_WINDOWS * PROBE_TOKENS];
    const int32_t *starts[PROBE_WINDOWS];
    for (int64_t i = 0; i < PROBE_WINDOWS * length; i++)
        ids[i] = (int32_t)(rng_u64(0, RNG_PROBE, (uint64_t)i) % (uint64_t)cfg->vocab);
    for (int i = 0; i < PROBE_WINDOWS; i++) starts[i] = ids + i * length;
    q->windows = (eval_windows){.ids = starts, .n = PROBE_WINDOWS, .length = length};
    q->pair.length = length;
    q->pair.vocab = cfg->vocab;
    double *kept = NULL;
    err e = err_none();
    if (comm_rank(q->c) == comm_size(q->c) - 1)
        e = MEM_NEW(&kept, PROBE_WINDOWS * length * cfg->vocab, "logits of the source");
    q->pair.kept = kept;
    if (!e.code) e = embed_rows_init(ids, PROBE_WINDOWS * length, cfg->vocab, &q->rows);
    e = comm_agree(q->c, e, "preparing the comparison", NULL);
    if (!e.code) e = one_pass(q, false);
    if (!e.code) e = one_pass(q, true);
    embed_rows_clear(&q->rows);
    mem_free(kept);
    return e;
}

err verify_equivalence(const comm *c, const source *from, rotation_set *rotations,
                       double *relative) {
    int n_stages, size = comm_size(c), rank = comm_rank(c);
    stage_range *ranges = calloc((size_t)size, sizeof *ranges);
    if (!ranges) abort();
    stage_costs costs = partition_costs(&from->cfg, PROBE_WINDOWS * PROBE_TOKENS);
    partition_stages(from->cfg.layers, &costs, size, ranges, &n_stages);
    comm *stages = NULL;
    err e = err_none();
    if (n_stages < size) e = comm_split(c, rank < n_stages ? 0 : -1, "stages", &stages);
    equivalence q = {
        .c = stages ? stages : c, .from = from, .rotations = rotations, .range = ranges[rank]};
    if (!e.code && rank < n_stages) e = run_equivalence(&q);
    e = comm_agree(c, e, "comparing the function", NULL);
    *relative = q.pair.relative;
    comm_max_f64(c, relative, 1);
    comm_destroy(&stages);
    free(ranges);
    return e;
}
