/* Memory first: of the levels that take less and less, the first that fits on every rank. Then
 * layer by layer; a layer that is an object already only passes its stream on. */
#include "jobs/phases/quantize_gptq.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/gemm.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"
#include "jobs/phases/item_output.h"
#include "jobs/phases/quantize_learn.h"
#include "jobs/run/between_units.h"
#include "jobs/run/gptq_table.h"
#include "jobs/run/run_phase.h"
#include "jobs/run/site_table.h"
#include "jobs/run/stop.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup.h"
#include "model/tensors.h"
#include "pipeline/gptq/gptq_layer.h"
#include "pipeline/gptq/gptq_network.h"
#include "pipeline/gptq/gptq_stack.h"
#include "pipeline/plan/memory_plan.h"
#include "shard/stored_floats.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* What a run needs beside the settings, which borrow from it. */
typedef struct gptq_phase {
    gptq_settings s;
    llama_sites sites, full;
    char *scratch;
} gptq_phase;

static void phase_clear(gptq_phase *p) {
    free(p->scratch);
}

/* Weights hold R1, R2 and the scales; R3 and R4 stay, and R4 acts for real. */
static err phase_sites(const quantize_run *q, gptq_phase *p) {
    const rotation **unused;
    const bool quantized = q->set->weights.stream == STREAM_QUANTIZED;
    const bool r4 = rotation_set_r4(q->rotations) != NULL;
    err e = setup_sites(q->set, &q->source.cfg, q->rotations, r4 ? HOLD_R1_R2_R4 : HOLD_R1_R2,
                        &p->sites, &unused);
    if (e.code) return e;
    p->full = llama_sites_none();
    p->full.R4 = p->sites.R4;
    p->full.r4_fused = r4;
    if (!quantized) p->sites = p->full;
    return e;
}

/* A text with too few windows is gone through again and again: a Hessian knows no more by that. */
static int64_t distinct_windows(const quantize_run *q) {
    const int64_t n = q->set->calib.windows, length = q->set->calib.window;
    const size_t bytes = (size_t)length * sizeof *q->calib_ids;
    const int32_t *ids = q->calib_ids;
    int64_t period = 1;
    if (!ids) return n;
    while (period < n && memcmp(ids, ids + period * length, bytes) != 0) period++;
    for (int64_t i = period; i < n; i++)
        if (memcmp(ids + i * length, ids + (i - period) * length, bytes) != 0) return n;
    return period;
}

static err phase_settings(const quantize_run *q, gptq_phase *p) {
    const settings *s = q->set;
    *p = (gptq_phase){.scratch = NULL};
    err e = phase_sites(q, p);
    if (e.code) return e;
    p->s = (gptq_settings){.c = q->c,
                           .job = &q->job,
                           .sites = &p->sites,
                           .full = &p->full,
                           .ids = q->calib_ids,
                           .n_windows = s->calib.windows,
                           .n_distinct = distinct_windows(q),
                           .length = s->calib.window,
                           .batches = 1,
                           .asymmetric = s->weights.method == METHOD_GPTAQ,
                           .from_layer = s->weights.target == TARGET_LAYER,
                           .alpha = s->weights.alpha,
                           .act_order = s->weights.act_order,
                           .tell_sites = q->flags.report,
                           .factor = {.damp = s->weights.damp,
                                      .block = s->numerics.gptq_block,
                                      .dist_from = s->numerics.gptq_grid_from,
                                      .grid = {1, 1},
                                      .blas_threads = settings_blas_threads(s)}};
    if (s->numerics.gptq_grid.word == WORD_AUTO) return e;
    return grid_resolve("numerics.gptq_grid", s->numerics.gptq_grid.text, q->source.cfg.hidden,
                        1 << 20, &p->s.factor.grid);
}

/* ---- memory ---- */

/* A memory level: what GPTQ does to take less memory, at the cost of time. */
typedef struct memory_level {
    bool scratch;    /* activations go to files */
    int64_t batches; /* parts in which a rank rounds its rows (pipeline/gptq/gptq_layer.h) */
} memory_level;

/* Returns the bytes of its file. */
static uint64_t plan_of(const quantize_run *q, gptq_settings s, const memory_level *t, int ranks,
                        int rank, memory_plan *p) {
    s.scratch = t->scratch ? "" : NULL;
    s.batches = t->batches;
    const gptq_bytes b = gptq_run_bytes(&s, ranks, rank);
    memory_plan_add(p, "rotations", quantize_learned_bytes(q));
    memory_plan_add(p, "activations", b.activations);
    memory_plan_add(p, "weights of a layer", b.weights);
    memory_plan_add(p, "sums of a Hessian", b.sums);
    memory_plan_add(p, "Hessian and factor", b.factor);
    memory_plan_add(p, "rows and codes", b.rows);
    return b.scratch_file;
}

/* Large buffers on one of so many ranks, added to *p. Not looked at: q->c; q->calib_ids may be
 * NULL. */
static err memory_of(const quantize_run *q, int ranks, int rank, const memory_level *t,
                     memory_plan *p) {
    gptq_phase phase;
    err e = phase_settings(q, &phase);
    if (e.code) return e;
    plan_of(q, phase.s, t, ranks, rank, p);
    phase_clear(&phase);
    return e;
}

/* The level that takes most memory and least time, as --scratch allows. */
static memory_level first_level(const quantize_run *q) {
    return (memory_level){.scratch = q->flags.scratch != NULL, .batches = 1};
}

/* Go to the level that takes less memory than *t; false if there is none. A few parts cost less
 * time than files, many may cost more. */
static bool next_level(const quantize_run *q, int ranks, memory_level *t) {
    enum { BEFORE_FILES = 4 };
    const gptq_settings shapes = {.job = &q->job};
    const int64_t units = gptq_run_most_batches(&shapes, ranks);
    const bool files = !t->scratch && (t->batches >= BEFORE_FILES || t->batches >= units);
    if (!files && t->batches >= units) return false;
    *t = (memory_level){.scratch = t->scratch || files,
                        .batches = files ? 1 : size_min(2 * t->batches, units)};
    return true;
}

static const char *level_text(const memory_level *t, char buf[96]) {
    char parts[48] = "";
    if (t->batches > 1)
        snprintf(parts, sizeof parts, "rows are rounded in %" PRId64 " parts", t->batches);
    snprintf(buf, 96, "%s%s%s", t->scratch ? "activations go to the scratch folder" : "",
             t->scratch && parts[0] ? ", " : "", parts);
    return buf;
}

/* Choose the first level that fits on every rank, so the one that costs the least time. If none
 * fits, the last one is kept, and refused with what it needs. */
static err plan_memory(const quantize_run *q, gptq_phase *p) {
    const int size = comm_size(q->c), rank = comm_rank(q->c);
    const uint64_t limit = memory_plan_limit(q->flags.limit);
    memory_level t = first_level(q);
    memory_plan plan;
    uint64_t file = 0;
    char bytes[32];
    for (int64_t over = 1; over;) {
        plan = (memory_plan){.n = 0};
        memory_plan_add(&plan, "program", q->base_bytes);
        file = plan_of(q, p->s, &t, size, rank, &plan);
        over = limit && memory_plan_total(&plan) > limit;
        comm_max_i64(q->c, &over, 1);
        over = over && next_level(q, size, &t);
    }
    if (t.scratch) {
        p->scratch = q->flags.scratch ? strdup(q->flags.scratch) : file_join(q->out, "run/scratch");
        if (!p->scratch) abort();
        p->s.scratch = p->scratch;
        log_line(LOG_PHASE, "gptq: activations go to %s, %s for each rank%s", p->scratch,
                 size_text(file, bytes), q->flags.scratch ? "" : ": they do not fit in memory");
    }
    p->s.batches = t.batches;
    if (t.batches > 1)
        log_line(LOG_PHASE,
                 "gptq: rows are rounded in %" PRId64 " parts and no tensor is read ahead: memory "
                 "is short",
                 t.batches);
    return memory_plan_check(q->c, &plan, "gptq", q->flags.limit);
}

/* ---- finished layers ---- */

typedef struct object_reader {
    const quantize_run *q;
    int fd;
    char *path;
    void *bytes;
    uint64_t room;
} object_reader;

static err read_slot(object_reader *r, const llama_tensor *t, const form_slot *part,
                     const layout_slot **slot) {
    *slot = layout_find_role(r->q->layout, t->role, t->layer, part);
    if (!*slot) return err_make(ERR_BUG, t->name, NULL, "not in the archive");
    if ((*slot)->bytes > r->room) {
        mem_free(r->bytes);
        r->room = 0;
        err e = mem_alloc((int64_t)(*slot)->bytes, 1, t->name, &r->bytes);
        if (e.code) return e;
        r->room = (*slot)->bytes;
    }
    err e = file_pread(r->fd, r->path, r->bytes, (*slot)->bytes, (*slot)->unit_offset);
    const form *f = layout_opts(r->q->layout)->linears.form;
    if (e.code || !form_has_files(f)) return e;
    /* Rows stand there in the order of the file. */
    void *rows;
    const int64_t bytes = (int64_t)(*slot)->bytes;
    e = mem_alloc(bytes, 1, t->name, &rows);
    if (e.code) return e;
    form_rows_from_file(f, &r->q->source.cfg, t->role, r->bytes, t->rows, bytes / t->rows, rows);
    mem_free(r->bytes);
    r->bytes = rows;
    r->room = (uint64_t)bytes;
    return e;
}

static err read_vector(void *arg, const llama_tensor *t, float *to) {
    object_reader *r = arg;
    const layout_slot *slot;
    err e = read_slot(r, t, NULL, &slot);
    if (!e.code) stored_floats_take(r->bytes, t->rows, slot->dtype, to);
    return e;
}

static err read_codes(void *arg, const llama_tensor *t, qmatrix *m) {
    object_reader *r = arg;
    const form_scheme *s = &layout_opts(r->q->layout)->linears;
    const layout_slot *slot;
    err e = err_none();
    for (int i = 0; i < s->form->n_slots && !e.code; i++) {
        const form_slot *part = &s->form->slots[i];
        if (!form_stores(s, part)) continue;
        e = read_slot(r, t, part, &slot);
        if (!e.code) e = part->unpack(r->bytes, slot->dtype, slot->name, m);
    }
    return e;
}

static err pass_layer(const quantize_run *q, gptq_run *run, int64_t layer) {
    object_reader r = {.q = q, .fd = -1, .path = run_object_path(q->out, q->units[layer + 1].hex)};
    const gptq_saved saved = {.arg = &r, .codes = read_codes, .vector = read_vector};
    err e = comm_agree(q->c, file_open_read(r.path, &r.fd, NULL), "a finished layer", NULL);
    if (!e.code) e = gptq_run_pass(run, layer, &saved);
    if (r.fd >= 0) close(r.fd);
    mem_free(r.bytes);
    free(r.path);
    return e;
}

/* ---- a layer ---- */

/* The owner of the item writes the object; everyone learns its name. */
static err quantize_layer(quantize_run *q, gptq_run *run, int64_t layer, bool last,
                          item_piece *piece, item_report *done, gptq_layer_report *report) {
    const int64_t item = layer + 1;
    const double start = clock_now_s();
    const int owner = q->owner[item];
    const bool mine = owner == comm_rank(q->c);
    item_output out = {.q = q};
    *done = (item_report){.item = item};
    err e = mine ? item_output_open(q, item, piece, &out) : err_none();
    e = comm_agree(q->c, e, "keeping a layer", NULL);
    const quantize_sink sink = item_output_sink(&out);
    if (!e.code) e = gptq_run_layer(run, layer, mine ? &sink : NULL, last, report);
    if (!e.code && mine) e = item_output_finish(&out, done->hex);
    if (mine) item_output_abandon(&out);
    e = comm_agree(q->c, e, "keeping a layer", NULL);
    if (e.code) return e;
    comm_bcast(q->c, done->hex, sizeof done->hex, owner);
    memcpy(q->units[item].hex, done->hex[0], SHA256_HEX);
    memcpy(done->result.source_sha256, report->source_sha256, SHA256_HEX);
    done->result.error = report->error;
    memcpy(done->result.spreads, report->spreads, sizeof report->spreads);
    done->seconds = clock_now_s() - start;
    return e;
}

/* Root only. Into the work tree, the events and the log; then it is durable. */
static err keep_layer(quantize_run *q, const item_report *done, const gptq_layer_report *report) {
    err e = item_note(q, done);
    if (e.code) return e;
    json_t *table = gptq_table_of(&q->source.cfg, done->item - 1, done->seconds, report),
           *work = run_state_work(q->state);
    char key[24];
    snprintf(key, sizeof key, "%" PRId64, done->item - 1);
    if (!json_object_get(work, "errors")) json_object_set_new(work, "errors", json_object());
    json_object_set(json_object_get(work, "errors"), key, table);
    events_add(q->events, "gptq", "errors", table);
    if (q->flags.report)
        events_add(q->events, "gptq", "sites", site_table_of(done->item - 1, report->sites));
    gptq_table_tell(&q->source.cfg, done->item - 1, done->seconds, report);
    e = run_state_commit(q->state, "gptq");
    events_add(q->events, "gptq", "commit", json_pack("{s:I}", "done", (json_int_t)done->item));
    return e;
}

/* Layers whose weights will be asked for: with a stream of full precision those that are done too,
 * up to the last one that is not. */
static int64_t layers_to_read(const quantize_run *q, bool all, int64_t *layers, int64_t *last) {
    const int64_t n = q->source.cfg.layers;
    int64_t count = 0;
    *last = -1;
    for (int64_t i = 0; i < n; i++)
        if (!quantize_item_done(q, i + 1)) *last = i;
    for (int64_t i = 0; i <= *last; i++)
        if (all || !quantize_item_done(q, i + 1)) layers[count++] = i;
    return count;
}

static err do_layers(quantize_run *q, gptq_run *run, int64_t last) {
    item_piece piece = {0};
    const int64_t n = q->source.cfg.layers;
    int64_t passed = 0;
    err e = err_none();
    for (int64_t i = 0; i <= last && !e.code; i++) {
        item_report done;
        gptq_layer_report report;
        if (quantize_item_done(q, i + 1)) {
            if (!passed++)
                log_line(LOG_RUN, "gptq: activations of the finished layers are computed again");
            e = pass_layer(q, run, i);
            if (!e.code) e = between_units(q, q->c, "gptq", i + 1, n);
            continue;
        }
        e = quantize_layer(q, run, i, i == last, &piece, &done, &report);
        if (!e.code && q->state) e = keep_layer(q, &done, &report);
        e = comm_agree(q->c, e, "committing", NULL);
        if (!e.code && i < last && stop_agreed(q->c))
            e = comm_agree(q->c, stop_error(q->out), "stopping", NULL);
    }
    mem_free(piece.bytes);
    return e;
}

/* Said once: a Hessian with fewer tokens than columns lacks directions. */
static void warn_tokens(const quantize_run *q, int64_t tokens) {
    const llama_config *c = &q->source.cfg;
    const int64_t widest = size_max(c->intermediate, size_max(c->hidden, c->heads * c->head_dim));
    if (tokens >= widest) return;
    log_line(LOG_WARN,
             "gptq: %" PRId64 " calibration tokens for matrices of up to %" PRId64
             " columns; damping is raised to up to %.3g of the mean diagonal: give more text "
             "(calib.windows, calib.window)",
             tokens, widest, q->set->weights.damp * (double)widest / (double)tokens);
}

bool quantize_gptq_wanted(const quantize_run *q) {
    return quantize_uses_gptq(q->set);
}

err quantize_gptq(quantize_run *q) {
    int64_t *layers = calloc((size_t)q->source.cfg.layers + 1, sizeof *layers), last;
    gptq_phase p;
    gptq_run *run = NULL;
    if (!layers) abort();
    err e = comm_agree(q->c, phase_settings(q, &p), "gptq", NULL);
    const int64_t n = layers_to_read(q, p.s.asymmetric && !p.s.from_layer, layers, &last);
    quantize_phase_start(q, "gptq");
    if (!e.code && last >= 0) {
        warn_tokens(q, p.s.n_distinct * p.s.length);
        e = plan_memory(q, &p);
        if (!e.code) e = gptq_run_create(&p.s, layers, n, &run);
        if (!e.code) e = do_layers(q, run, last);
        gptq_run_destroy(&run);
        if (!e.code && q->state)
            gptq_table_summary(json_object_get(run_state_work(q->state), "errors"));
    }
    phase_clear(&p);
    free(layers);
    return e;
}

/* What the settings of the phase say; the text, the ranks and their grid are the plan's. */
static plan_gptq time_settings(const quantize_run *q) {
    gptq_phase phase;
    if (phase_settings(q, &phase).code) return (plan_gptq){0}; /* memory_of has refused it */
    const plan_gptq g = {.grid_from = phase.s.factor.dist_from,
                         .asymmetric = phase.s.asymmetric,
                         .corrects = gptq_stack_corrects(&phase.s),
                         .tries = gptq_stack_tries(&phase.s),
                         .search = q->job.how.search};
    phase_clear(&phase);
    return g;
}

static plan_bytes layer_network(const plan_maker *m, const memory_level *t) {
    gptq_phase phase;
    if (phase_settings(m->q, &phase).code) return (plan_bytes){0}; /* memory_of has refused it */
    phase.s.batches = t->batches;
    const plan_bytes b = {
        .sent = plan_to_all(m, gptq_network_bytes(&phase.s, m->ranks)).sent,
        .network = plan_to_all(m, gptq_network_bytes(&phase.s, m->p->place.nodes)).network};
    phase_clear(&phase);
    return b;
}

/* The layers; what is left for rounding to nearest are the tables (quantize_items.h), whose plan
 * completes this phase. */
err quantize_gptq_plan(plan_maker *m) {
    const quantize_run *q = m->q;
    const llama_config *cfg = plan_config(m);
    const int64_t window = q->set->calib.window;
    const double tokens = (double)(q->calib_windows * window);
    memory_level t = first_level(q);
    plan_phase layers, *f;
    err e = plan_add_phase(m, "gptq", &f);
    if (e.code) return e;
    for (bool over = true; over && !e.code;) {
        layers = (plan_phase){.busy = 1};
        for (int r = 0; r < m->ranks && !e.code; r++) {
            memory_plan p = plan_fresh(m);
            e = memory_of(q, m->ranks, r, &t, &p);
            plan_offer(&layers, &p, r);
        }
        over = m->p->place.limit && memory_plan_total(&layers.memory) > m->p->place.limit &&
               next_level(q, m->ranks, &t);
    }
    plan_offer(f, &layers.memory, layers.rank);
    level_text(&t, f->note);
    grid_shape g = {1, 1};
    if (q->set->numerics.gptq_grid.word != WORD_AUTO && !e.code)
        e = grid_resolve("numerics.gptq_grid", q->set->numerics.gptq_grid.text, cfg->hidden,
                         m->ranks, &g);
    plan_gptq how = time_settings(q);
    how.tokens = tokens;
    how.window = window;
    how.ranks = m->ranks;
    how.cells = g.rows * g.cols;
    double fuse = 0; /* linears are dealt to ranks */
    for (int64_t i = 1; i <= cfg->layers; i++) fuse += plan_item_seconds(m, i, false);
    const double layer = plan_time_gptq_layer(&m->rank, cfg, &how);
    f->seconds = (double)cfg->layers * layer + fuse / (double)size_min(m->ranks, LLAMA_LINEARS);
    f->units = cfg->layers;
    f->blind_s = f->seconds / (double)cfg->layers;
    /* Finished layers are passed again by the stream that the next one takes its inputs from; by
     * the one in full precision too where it is the target as a whole. */
    const bool both = how.asymmetric && q->set->weights.target != TARGET_LAYER;
    f->again_unit_s = plan_time_forward(&m->rank, cfg, window) * (both ? 2 : 1) *
                      ceil((double)q->calib_windows / m->ranks);
    if (!e.code) plan_send(m, f, plan_times((double)cfg->layers, layer_network(m, &t)));
    return e;
}
