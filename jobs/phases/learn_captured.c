/* A layer is listed as parts, each of them pieces where they stand in memory: an object is written
 * from them and read into them. */
#include "jobs/phases/learn_captured.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/size.h"
#include "jobs/phases/learn_capture.h"
#include "jobs/phases/learn_looks.h"
#include "jobs/phases/learn_scale_state.h"
#include "jobs/phases/learn_site_state.h"
#include "jobs/phases/learn_state.h"
#include "jobs/setup/recipe_asks.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

/* ---- a layer ---- */

enum {
    MOST_PIECES = NOISE_ROWS_PIECES,
    MOST_PARTS = 11,
    OBJECT_PIECES = 1 + MOST_PARTS * MOST_PIECES, /* the table before them */
};

/* An object begins with a table of its parts, [MOST_PARTS]; unused rows are zeros. */
typedef struct part_row {
    char name[16];
    uint64_t bytes;
} part_row;
enum { TABLE_BYTES = MOST_PARTS * sizeof(part_row) };

typedef struct part {
    const char *name;
    byte_piece pieces[MOST_PIECES];
    int n;
} part;

static void add_piece(part *list, int *n, const char *name, byte_piece one) {
    list[(*n)++] = (part){.name = name, .pieces = {one}, .n = 1};
}

static void add_rows(const learner *l, row_pool_part which, const char *name, int64_t layer,
                     part *list, int *n) {
    part *p = &list[*n];
    *p = (part){.name = name};
    p->n = row_pool_pieces(&l->pool, which, layer, p->pieces);
    if (p->n) ++*n;
}

/* What the learner holds of a layer, in a fixed order. Means are of the whole model, the same in
 * each object. */
static int list_parts(learner *l, int64_t layer, part list[MOST_PARTS]) {
    int n = 0;
    list[n++] = (part){.name = "means",
                       .pieces = {{l->pool.mean, sizeof l->pool.mean},
                                  {&l->pool.drawn_mean, sizeof l->pool.drawn_mean}},
                       .n = 2};
    add_rows(l, ROW_POOL_ROWS, "rows", layer, list, &n);
    add_rows(l, ROW_POOL_GRADIENTS, "gradients", layer, list, &n);
    add_rows(l, ROW_POOL_DRAWN, "drawn", layer, list, &n);
    if (l->moments) {
        list[n].name = "weights";
        list[n].n = weight_moments_pieces(l->moments, layer, list[n].pieces);
        n++;
    }
    if (l->scale_moments)
        add_piece(list, &n, "scales", scale_moments_piece(l->scale_moments, layer));
    if (l->scale_peaks) add_piece(list, &n, "peaks", scale_peaks_piece(l->scale_peaks, layer));
    if (l->keys) add_piece(list, &n, "keys", key_moments_piece(l->keys, layer));
    if (l->peaks) add_piece(list, &n, "cache", cache_peaks_piece(l->peaks, layer));
    if (l->noise) {
        list[n].name = "noise";
        list[n].n = noise_rows_pieces(l->noise, layer, list[n].pieces);
        n++;
    }
    if (l->looks) {
        list[n].name = "looks";
        list[n].n = site_rows_pieces(l->looks, layer, list[n].pieces);
        n++;
    }
    return n;
}

static void make_table(const part *list, int n, part_row table[MOST_PARTS]) {
    memset(table, 0, TABLE_BYTES);
    for (int i = 0; i < n; i++) {
        snprintf(table[i].name, sizeof table[i].name, "%s", list[i].name);
        table[i].bytes = byte_pieces_total(list[i].pieces, list[i].n);
    }
}

/* ---- the plan ---- */

/* Planned bytes of a layer, of a learner that holds nothing yet, without those for the report. */
static uint64_t planned_bytes(const learner *l) {
    const llama_config *cfg = learner_cfg(l);
    const settings *s = l->q->set;
    const int64_t tokens = learn_pool_tokens(l->q), window = s->calib.window;
    learner one = *l, two = *l;
    one.range = (stage_range){.n = 1};
    two.range = (stage_range){.n = 2};
    uint64_t sum = TABLE_BYTES + (POOL_KINDS + 1) * sizeof(double) + row_pool_bytes(cfg, 1, tokens);
    if (learn_scales_need_gradients(l)) sum += row_pool_gradient_bytes(cfg, 1, tokens);
    if (learn_draws_any(s))
        sum += 2 * (uint64_t)tokens * (sizeof(bf16) * (uint64_t)cfg->hidden + sizeof(float));
    if (learn_weights_needed(s))
        sum += weight_moments_bytes(cfg, 2, window) - weight_moments_bytes(cfg, 1, window);
    if (!learn_scales_done(l))
        sum += learn_scales_moments_bytes(&two) - learn_scales_moments_bytes(&one);
    if (!learn_sites_done(l))
        sum += noise_rows_saved_bytes(cfg, l->noise_places, LEARN_SITE_ROWS) +
               (l->r3_wanted ? key_moments_bytes(cfg, 1) : 0) +
               (l->cache_wanted ? cache_peaks_bytes(cfg, 1) : 0);
    return sum;
}

/* Kept where writing takes at most a quarter of the capture: one restart in four runs pays for it,
 * and those that run in jobs of limited time have several; a tenth of a second is not weighed. And
 * where it takes no more of the disk than the model itself, which lies there or on one like it;
 * below 4 GiB nobody counts. */
static bool worth_it(uint64_t bytes, double write_s, const plan_phase *f, const run_plan *p) {
    const uint64_t few = (uint64_t)4 << 30;
    return bytes <= (p->read_bytes > few ? p->read_bytes : few) &&
           write_s <= fmax(f->seconds / 4, 0.1);
}

void learn_captured_plan(learner *l, plan_maker *m) {
    const plan_rates *rates = m->rank.rates;
    run_plan *p = m->p;
    plan_phase *f = &p->phases[p->n_phases - 1];
    char text[32];
    if (!m->q->calib_windows) return;
    const uint64_t each = planned_bytes(l),
                   looks = learn_looks_wanted(l->q)
                               ? site_rows_saved_bytes(learner_cfg(l), 0, p->layers,
                                                       l->q->calib_windows, l->q->set->calib.window)
                               : 0,
                   all = each * (uint64_t)p->layers + looks;
    const double nodes = p->place.nodes, of_rank = (double)each * (double)p->most_layers,
                 hash = of_rank / (rates->hash * fmin(1, m->rank.cores)),
                 write_s = (double)all / (rates->write * nodes) + hash;
    if (!worth_it(all, write_s, f, p)) return;
    f->saved_bytes = all;
    l->range = (stage_range){.n = p->most_layers};
    f->read_back_s = (double)all / (rates->read * nodes) + hash +
                     plan_time_load(&m->rank, learn_capture_weights_bytes(l));
    f->units = 1;
    f->busy *= f->seconds / (f->seconds + write_s);
    f->seconds += write_s;
    f->blind_s = fmax(f->blind_s, write_s);
    snprintf(f->note, sizeof f->note, "%s of it kept for restarts until it has served",
             size_text(all, text));
}

/* Collective. The plan of the first rank, and room on the disk for it and all that comes later. */
static bool wanted(const learner *l) {
    const quantize_run *q = l->q;
    const plan_phase *f = q->plan ? plan_find(q->plan, "capture") : NULL;
    int want = f && f->saved_bytes;
    struct statvfs fs;
    if (want && statvfs(q->out, &fs) == 0) {
        const uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
        want = room >= q->plan->archive_bytes + q->plan->run_bytes; /* saved_bytes in it */
        if (!want)
            log_line(LOG_WARN,
                     "%s is short of room: what was captured is not kept, a restart "
                     "captures again",
                     q->out);
    }
    comm_bcast(q->c, &want, sizeof want, 0);
    return want;
}

/* ---- to objects ---- */

typedef struct object_name {
    char hex[SHA256_HEX];
    int64_t bytes;
} object_name;

static err write_layer(learner *l, int64_t layer, object_name *name) {
    part list[MOST_PARTS];
    part_row table[MOST_PARTS];
    byte_piece pieces[OBJECT_PIECES] = {{table, TABLE_BYTES}};
    const int n = list_parts(l, layer, list);
    int count = 1;
    make_table(list, n, table);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < list[i].n; k++) pieces[count++] = list[i].pieces[k];
    name->bytes = (int64_t)byte_pieces_total(pieces, count);
    return run_object_write(l->q->out, pieces, count, name->hex);
}

static err write_layers(learner *l, object_name *names) {
    err e = err_none();
    for (int64_t i = 0; i < l->range.n && !e.code; i++) {
        e = write_layer(l, l->range.first + i, &names[i]);
        if (l->q->state) run_state_heartbeat(l->q->state);
    }
    return e;
}

static void remove_written(const learner *l, const object_name *names) {
    for (int64_t i = 0; i < l->range.n; i++) {
        if (!names[i].hex[0]) continue;
        char *path = run_object_path(l->q->out, names[i].hex);
        unlink(path);
        free(path);
    }
}

/* Root only. */
static err commit(learner *l, const object_name *names, double seconds) {
    quantize_run *q = l->q;
    json_t *cells = json_array();
    char text[32];
    int64_t bytes = 0;
    for (int64_t i = 0; i < learner_cfg(l)->layers; i++) {
        json_array_append_new(cells, json_pack("{s:s}", "object", names[i].hex));
        bytes += names[i].bytes;
    }
    learn_drop(q, LEARN_CAPTURED);
    json_object_set_new(run_state_work(q->state), LEARN_CAPTURED,
                        json_pack("{s:I, s:b, s:o}", "bytes", (json_int_t)bytes, "looks",
                                  l->looks != NULL, "cells", cells));
    err e = learn_commit(q, "capture");
    if (e.code) return e;
    events_add(q->events, "capture", "commit",
               json_pack("{s:I, s:f}", "bytes", (json_int_t)bytes, "seconds", seconds));
    log_line(LOG_PHASE, "captured rows are kept for restarts: %s in %.1f s",
             size_text((uint64_t)bytes, text), seconds);
    return e;
}

err learn_captured_save(learner *l) {
    quantize_run *q = l->q;
    const double start = clock_now_s();
    size_t len;
    if (!q->calib_ids || !wanted(l)) return err_none();
    object_name *mine = calloc((size_t)l->range.n + 1, sizeof *mine);
    if (!mine) abort();
    err e = comm_agree(q->c, write_layers(l, mine), "keeping captured rows", NULL);
    if (e.code) remove_written(l, mine);
    object_name *all =
        e.code ? NULL : comm_gather_joined(q->c, mine, (size_t)l->range.n * sizeof *mine, &len);
    free(mine);
    if (e.code == ERR_SPACE) {
        if (q->state)
            log_line(LOG_WARN, "%s: %s: what was captured is not kept, a restart captures again",
                     e.where, e.what);
        return err_none();
    }
    if (!e.code && q->state) e = commit(l, all, clock_now_s() - start);
    free(all);
    return comm_agree(q->c, e, "keeping captured rows", NULL);
}

/* ---- and back ---- */

static const part *part_of(const part *list, int n, const part_row *row) {
    for (int i = 0; i < n; i++)
        if (!strcmp(list[i].name, row->name) &&
            byte_pieces_total(list[i].pieces, list[i].n) == row->bytes)
            return &list[i];
    return NULL;
}

static bool in_table(const part_row table[MOST_PARTS], const part *p) {
    for (int i = 0; i < MOST_PARTS; i++)
        if (part_of(p, 1, &table[i])) return true;
    return false;
}

/* The table of an object as it claims to be; its hash is not looked at yet. */
static err read_table(const learner *l, const char *hex, part_row table[MOST_PARTS]) {
    int fd = -1;
    if (!hex || !run_object_is_name(hex))
        return err_make(ERR_MISMATCH, "state.json", NULL, "names no object");
    char *path = run_object_path(l->q->out, hex);
    err e = file_open_read(path, &fd, NULL);
    if (!e.code) e = file_pread(fd, path, table, TABLE_BYTES, 0);
    for (int i = 0; i < MOST_PARTS && !e.code; i++)
        if (!memchr(table[i].name, 0, sizeof table[i].name) ||
            table[i].bytes > INT64_MAX / (2 * MOST_PARTS))
            e = err_make(ERR_MISMATCH, path, NULL, "is damaged");
    if (fd >= 0) close(fd);
    free(path);
    return e;
}

/* The pieces of an object: those of the learner, and nothing where it has no use for a part. */
static err read_layer(learner *l, const json_t *entry, int64_t layer) {
    part list[MOST_PARTS];
    part_row table[MOST_PARTS], again[MOST_PARTS];
    byte_piece pieces[OBJECT_PIECES] = {{again, TABLE_BYTES}};
    const json_t *cells = json_object_get(entry, "cells");
    const char *hex =
        json_string_value(json_object_get(json_array_get(cells, (size_t)layer), "object"));
    const int n = list_parts(l, layer, list);
    int count = 1;
    err e = read_table(l, hex, table);
    for (int i = 0; i < n && !e.code; i++)
        if (!in_table(table, &list[i]))
            e = err_make(ERR_MISMATCH, "state.json", NULL,
                         "of layer %" PRId64 " \"%s\" is needed now and was not kept", layer,
                         list[i].name);
    for (int i = 0; i < MOST_PARTS && !e.code; i++) {
        const part *p = part_of(list, n, &table[i]);
        if (!p) pieces[count++] = (byte_piece){NULL, table[i].bytes};
        for (int k = 0; p && k < p->n; k++) pieces[count++] = p->pieces[k];
    }
    return e.code ? e : run_object_read(l->q->out, hex, pieces, count);
}

static bool has_looks(const json_t *entry) {
    return json_is_true(json_object_get(entry, "looks"));
}

/* Into all parts that there is room for in the learner. */
static err read_layers(learner *l, const json_t *entry) {
    err e = err_none();
    for (int64_t i = 0; i < l->range.n && !e.code; i++) {
        e = read_layer(l, entry, l->range.first + i);
        if (l->q->state) run_state_heartbeat(l->q->state);
    }
    return e;
}

static err read_rows(learner *l, const json_t *entry) {
    err e = learn_capture_room(l);
    /* A report is no reason to capture again. */
    if (!has_looks(entry)) site_rows_destroy(&l->looks);
    if (!e.code && learn_draws_any(l->q->set)) e = row_pool_make_drawn(&l->pool);
    return e.code ? e : read_layers(l, entry);
}

/* Ranks without layers read no means. */
static void share_means(learner *l) {
    comm_bcast(l->q->c, l->pool.mean, sizeof l->pool.mean, 0);
    comm_bcast(l->q->c, &l->pool.drawn_mean, sizeof l->pool.drawn_mean, 0);
}

static void tell_back(const learner *l, const json_t *entry, double seconds) {
    const json_int_t bytes = json_integer_value(json_object_get(entry, "bytes"));
    char text[32];
    if (!l->q->state) return;
    log_line(LOG_RUN, "captured rows read back in %.1f s: %s of layers that were captured before",
             seconds, size_text((uint64_t)bytes, text));
    events_add(l->q->events, "capture", "read_back",
               json_pack("{s:I, s:f}", "bytes", bytes, "seconds", seconds));
}

err learn_captured_drop(learner *l) {
    quantize_run *q = l->q;
    err e = err_none();
    if (q->state && json_object_get(run_state_work(q->state), LEARN_CAPTURED)) {
        learn_drop(q, LEARN_CAPTURED);
        e = learn_commit(q, run_state_phase(q->state));
    }
    return comm_agree(q->c, e, "committing", NULL);
}

/* Collective. It is of no use. */
static err forget(learner *l, const err *why, const char *so) {
    learn_capture_clear(l);
    if (l->q->state) log_line(LOG_WARN, "%s: %s; %s", why->where, why->what, so);
    return learn_captured_drop(l);
}

err learn_captured_recall_looks(learner *l) {
    const double start = clock_now_s();
    json_t *entry = learn_share_entry(l->q, LEARN_CAPTURED);
    err e = err_none();
    if (has_looks(entry)) {
        learn_looks_room(l);
        e = comm_agree(l->q->c, read_layers(l, entry), "reading captured rows", NULL);
        if (e.code)
            e = forget(l, &e, "the report is without inputs");
        else
            tell_back(l, entry, clock_now_s() - start);
    }
    json_decref(entry);
    return e;
}

err learn_captured_recall(learner *l, bool *whole) {
    quantize_run *q = l->q;
    const double start = clock_now_s();
    json_t *entry = learn_share_entry(q, LEARN_CAPTURED);
    *whole = false;
    if (!entry) return err_none();
    err e = comm_agree(q->c, read_rows(l, entry), "reading captured rows", NULL);
    *whole = !e.code;
    if (e.code) {
        if (e.code != ERR_NOFIT) e = forget(l, &e, "it is captured again");
        json_decref(entry);
        return e;
    }
    share_means(l);
    e = comm_agree(q->c, learn_capture_weights(l), "loading the weights", NULL);
    if (!e.code) tell_back(l, entry, clock_now_s() - start);
    json_decref(entry);
    return e;
}
