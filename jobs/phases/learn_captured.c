/* A layer is listed as parts, each of them pieces where they stand in memory: an object is written
 * from them and read into them. */
#include "jobs/phases/learn_captured.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/size.h"
#include "jobs/phases/learn_capture.h"
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

enum { MOST_PIECES = NOISE_ROWS_PIECES, MOST_PARTS = 10 };

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
    if (l->noise) {
        list[n].name = "noise";
        list[n].n = noise_rows_pieces(l->noise, layer, list[n].pieces);
        n++;
    }
    return n;
}

static uint64_t layer_bytes(const part *list, int n) {
    uint64_t sum = 0;
    for (int i = 0; i < n; i++) sum += byte_pieces_total(list[i].pieces, list[i].n);
    return sum;
}

/* ---- the plan ---- */

/* Planned bytes of a layer: as layer_bytes, of a learner that holds nothing yet. */
static uint64_t planned_bytes(const learner *l) {
    const llama_config *cfg = learner_cfg(l);
    const settings *s = l->q->set;
    const int64_t tokens = learn_pool_tokens(l->q), window = s->calib.window;
    learner one = *l, two = *l;
    one.range = (stage_range){.n = 1};
    two.range = (stage_range){.n = 2};
    uint64_t sum = (POOL_KINDS + 1) * sizeof(double) + row_pool_bytes(cfg, 1, tokens);
    if (learn_scales_need_gradients(l)) sum += row_pool_gradient_bytes(cfg, 1, tokens);
    if (learn_draws_any(s))
        sum += 2 * (uint64_t)tokens * (sizeof(bf16) * (uint64_t)cfg->hidden + sizeof(float));
    if (learn_weights_needed(s))
        sum += weight_moments_bytes(cfg, 2, window) - weight_moments_bytes(cfg, 1, window);
    if (!learn_scales_done(l))
        sum += learn_scales_moments_bytes(&two) - learn_scales_moments_bytes(&one);
    if (!learn_sites_done(l))
        sum += noise_rows_kept_bytes(cfg, l->noise_places, LEARN_SITE_ROWS) +
               (l->r3_wanted ? key_moments_bytes(cfg, 1) : 0);
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
    const uint64_t each = planned_bytes(l), all = each * (uint64_t)p->layers;
    const double nodes = p->place.nodes, of_rank = (double)each * (double)p->most_layers,
                 hash = of_rank / (rates->hash * fmin(1, m->rank.cores)),
                 write_s = (double)all / (rates->write * nodes) + hash;
    if (!worth_it(all, write_s, f, p)) return;
    f->kept_bytes = all;
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
    int want = f && f->kept_bytes;
    struct statvfs fs;
    if (want && statvfs(q->out, &fs) == 0) {
        const uint64_t room = (uint64_t)fs.f_bavail * fs.f_frsize;
        want = room >= f->kept_bytes + q->plan->archive_bytes + q->plan->run_bytes;
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
} object_name;

static err write_layer(learner *l, int64_t layer, object_name *name) {
    part list[MOST_PARTS];
    const int n = list_parts(l, layer, list);
    run_object *o = NULL;
    uint64_t at = 0;
    err e = run_object_create(l->q->out, layer_bytes(list, n), &o);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < list[i].n && !e.code; k++) {
            e = run_object_put(o, list[i].pieces[k].p, list[i].pieces[k].n, at);
            at += list[i].pieces[k].n;
        }
    if (!e.code) e = run_object_finish(&o, name->hex);
    run_object_abandon(&o);
    return e;
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

/* Root only: its own first layer stands for all. */
static err commit(learner *l, const object_name *names, double seconds) {
    quantize_run *q = l->q;
    part list[MOST_PARTS];
    const int n = list_parts(l, 0, list);
    const uint64_t bytes = layer_bytes(list, n) * (uint64_t)learner_cfg(l)->layers;
    json_t *parts = json_array(), *cells = json_array();
    char text[32];
    for (int i = 0; i < n; i++)
        json_array_append_new(parts,
                              json_pack("[s, I]", list[i].name,
                                        (json_int_t)byte_pieces_total(list[i].pieces, list[i].n)));
    for (int64_t i = 0; i < learner_cfg(l)->layers; i++)
        json_array_append_new(cells, json_pack("{s:s}", "object", names[i].hex));
    learn_drop(q, LEARN_CAPTURED);
    json_object_set_new(
        run_state_work(q->state), LEARN_CAPTURED,
        json_pack("{s:I, s:o, s:o}", "bytes", (json_int_t)bytes, "parts", parts, "cells", cells));
    err e = learn_commit(q, "capture");
    if (e.code) return e;
    events_add(q->events, "capture", "commit",
               json_pack("{s:I, s:f}", "bytes", (json_int_t)bytes, "seconds", seconds));
    log_line(LOG_PHASE, "captured rows are kept for restarts: %s in %.1f s", size_text(bytes, text),
             seconds);
    return e;
}

err learn_captured_keep(learner *l) {
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

static const part *part_of(const part *list, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (!strcmp(list[i].name, name)) return &list[i];
    return NULL;
}

/* The pieces of an object, by the parts that the entry says: those of the learner, and nothing
 * where it has no use for a part. *found: how many of its parts are there. */
static int pieces_of(const json_t *parts, const part *list, int n, byte_piece *out, int *found) {
    size_t i;
    json_t *v;
    int count = 0;
    *found = 0;
    json_array_foreach(parts, i, v) {
        const char *name = json_string_value(json_array_get(v, 0));
        const json_int_t bytes = json_integer_value(json_array_get(v, 1));
        const part *p = name ? part_of(list, n, name) : NULL;
        if (i >= MOST_PARTS || bytes < 0 || bytes > INT64_MAX / MOST_PARTS) return 0;
        if (!p || byte_pieces_total(p->pieces, p->n) != (uint64_t)bytes) {
            out[count++] = (byte_piece){NULL, (uint64_t)bytes};
            continue;
        }
        memcpy(out + count, p->pieces, (size_t)p->n * sizeof *out);
        count += p->n;
        ++*found;
    }
    return count;
}

static err read_layer(learner *l, const json_t *entry, int64_t layer) {
    part list[MOST_PARTS];
    byte_piece pieces[MOST_PARTS * MOST_PIECES];
    int found;
    const json_t *cells = json_object_get(entry, "cells");
    const char *hex =
        json_string_value(json_object_get(json_array_get(cells, (size_t)layer), "object"));
    const int n = list_parts(l, layer, list),
              count = pieces_of(json_object_get(entry, "parts"), list, n, pieces, &found);
    if (!hex || found < n)
        return err_make(ERR_MISMATCH, "state.json", NULL,
                        "a part of layer %" PRId64 " that is needed now was not kept", layer);
    return run_object_read(l->q->out, hex, pieces, count);
}

static err read_layers(learner *l, const json_t *entry) {
    err e = learn_capture_room(l);
    if (!e.code && learn_draws_any(l->q->set)) e = row_pool_make_drawn(&l->pool);
    for (int64_t i = 0; i < l->range.n && !e.code; i++) {
        e = read_layer(l, entry, l->range.first + i);
        if (l->q->state) run_state_heartbeat(l->q->state);
    }
    return e;
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

err learn_captured_recall(learner *l, bool *whole) {
    quantize_run *q = l->q;
    const double start = clock_now_s();
    json_t *entry = learn_share_entry(q, LEARN_CAPTURED);
    *whole = false;
    if (!entry) return err_none();
    err e = comm_agree(q->c, read_layers(l, entry), "reading captured rows", NULL);
    *whole = !e.code;
    if (e.code) {
        learn_capture_clear(l);
        if (q->state && e.code != ERR_NOFIT)
            log_line(LOG_WARN, "%s: %s; it is captured again", e.where, e.what);
        json_decref(entry);
        return e.code == ERR_NOFIT ? e : err_none();
    }
    share_means(l);
    e = comm_agree(q->c, learn_capture_weights(l), "loading the weights", NULL);
    if (!e.code) tell_back(l, entry, clock_now_s() - start);
    json_decref(entry);
    return e;
}
