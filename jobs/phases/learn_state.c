/* Each state is an object named by its hash; the work tree names two generations, so that a damaged
 * one is replaced by the one before. */
#include "jobs/phases/learn_state.h"

#include "base/file.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const entries[] = {"learning", "learning.before", "rotations",
                                      "rotations.before"};
enum { N_ENTRIES = sizeof entries / sizeof entries[0] };

/* ---- objects ---- */

/* An object that is whole: n doubles with their hash. Asked before memory of that size is taken,
 * since a number in state.json is no reason to allocate. */
static err check_object(const quantize_run *q, const char *hex, int64_t n) {
    if (!hex) return err_make(ERR_MISMATCH, "state.json", NULL, "names no object");
    return run_object_check(q->out, hex, (uint64_t)n * sizeof(double));
}

static err get_object(const quantize_run *q, const char *hex, const byte_piece *pieces, int n) {
    char *path = run_object_path(q->out, hex);
    int fd = -1;
    err e = file_open_read(path, &fd, NULL);
    uint64_t at = 0;
    for (int i = 0; i < n && !e.code; i++) {
        e = file_pread(fd, path, pieces[i].p, pieces[i].n, at);
        at += pieces[i].n;
    }
    if (fd >= 0) close(fd);
    free(path);
    return e;
}

static json_t *name_of(const char *hex, int64_t n) {
    return json_pack("{s:s, s:I}", "object", hex, "doubles", (json_int_t)n);
}

/* ---- generations in the work tree; root only ---- */

static void list_objects(const json_t *entry, json_t *list) {
    size_t i;
    json_t *cell;
    if (!entry) return;
    json_array_append(list, json_object_get(entry, "object"));
    json_array_foreach(json_object_get(entry, "cells"), i, cell)
        json_array_append(list, json_object_get(cell, "object"));
}

/* Names of objects that go after the next commit. No commit has to remember them: those that a kill
 * leaves behind go at the next start, since nothing names them (io/run_state.h). */
static json_t *dropped(quantize_run *q) {
    if (!q->dropped) q->dropped = json_array();
    if (!q->dropped) abort();
    return q->dropped;
}

/* What `key` names becomes what stands before; what stood before it is dropped. */
static void step_back(quantize_run *q, const char *key) {
    char before[40];
    json_t *work = run_state_work(q->state), *now = json_object_get(work, key);
    snprintf(before, sizeof before, "%s.before", key);
    if (!now) return;
    list_objects(json_object_get(work, before), dropped(q));
    json_object_set(work, before, now);
    json_object_del(work, key);
}

void learn_drop(quantize_run *q, const char *key) {
    if (!q->state) return;
    list_objects(json_object_get(run_state_work(q->state), key), dropped(q));
    json_object_del(run_state_work(q->state), key);
}

static bool names_object(const json_t *work, const char *hex) {
    bool found = false;
    json_t *all = json_array();
    for (int i = 0; i < N_ENTRIES; i++) list_objects(json_object_get(work, entries[i]), all);
    list_objects(json_object_get(work, LEARN_CAPTURED), all);
    for (size_t i = 0; i < json_array_size(all); i++) {
        const char *name = json_string_value(json_array_get(all, i));
        found |= name && !strcmp(name, hex);
    }
    json_decref(all);
    return found;
}

err learn_commit(quantize_run *q, const char *phase) {
    json_t *work = run_state_work(q->state), *item;
    size_t i;
    err e = run_state_commit(q->state, phase);
    if (e.code) return e;
    json_array_foreach(dropped(q), i, item) {
        const char *hex = json_string_value(item);
        if (!hex || !run_object_is_name(hex) || names_object(work, hex)) continue;
        char *path = run_object_path(q->out, hex);
        unlink(path); /* one that is gone already is no harm */
        free(path);
    }
    json_array_clear(dropped(q));
    return e;
}

/* ---- the state of a phase ---- */

void learn_saved_clear(learn_saved *k) {
    mem_free(k->common);
    *k = (learn_saved){0};
}

bool learn_state_fits(const learn_saved *saved, int64_t k, int64_t n_common, const byte_piece *cell,
                      int pieces) {
    return saved->common && saved->phase == k && saved->n_common == n_common &&
           saved->n_cell == byte_pieces_doubles(cell, pieces);
}

/* What each rank tells root of its cell. */
typedef struct cell_name {
    int64_t n;
    char hex[SHA256_HEX];
} cell_name;

static void put_entry(quantize_run *q, const learn_saved *k, const char *hex,
                      const cell_name *cells) {
    json_t *entry = name_of(hex, k->n_common), *list = json_array();
    for (int r = 0; r < comm_size(q->c); r++)
        if (cells[r].n) json_array_append_new(list, name_of(cells[r].hex, cells[r].n));
    json_object_set_new(entry, "phase", json_integer(k->phase));
    json_object_set_new(entry, "cells", list);
    step_back(q, "learning");
    json_object_set_new(run_state_work(q->state), "learning", entry);
}

err learn_save(quantize_run *q, const learn_saved *k, const byte_piece *cell, int pieces) {
    char hex[SHA256_HEX] = "";
    const byte_piece common = byte_piece_of_doubles(k->common, k->n_common);
    cell_name mine = {.n = byte_pieces_doubles(cell, pieces)},
              *all = calloc((size_t)comm_size(q->c), sizeof *all);
    if (!all) abort();
    err e = err_none();
    if (q->state) e = run_object_write(q->out, &common, 1, hex);
    if (!e.code && mine.n) e = run_object_write(q->out, cell, pieces, mine.hex);
    e = comm_agree(q->c, e, "keeping the state of learning", NULL);
    if (!e.code) comm_gather(q->c, &mine, sizeof mine, all, 0);
    if (!e.code && q->state) put_entry(q, k, hex, all);
    free(all);
    return e;
}

json_t *learn_share_entry(quantize_run *q, const char *name) {
    void *text = NULL;
    size_t len = 0;
    json_t *entry = NULL;
    const json_t *here = q->state ? json_object_get(run_state_work(q->state), name) : NULL;
    if (here) text = json_dumps(here, JSON_COMPACT);
    if (text) len = strlen(text);
    comm_bcast_blob(q->c, &text, &len, 0);
    if (len && json_parse(text, len, name, &entry).code) entry = NULL;
    free(text);
    return entry;
}

static int64_t doubles_of(const json_t *named) {
    const int64_t n = json_integer_value(json_object_get(named, "doubles"));
    return n > 0 && n < INT64_MAX / 16 ? n : 0;
}

static err read_named(const quantize_run *q, const json_t *named, const char *what, double **v,
                      int64_t *n) {
    const char *hex = json_string_value(json_object_get(named, "object"));
    *n = doubles_of(named);
    err e = *n ? check_object(q, hex, *n) : err_none();
    if (e.code) return e;
    e = MEM_NEW(v, *n, what);
    if (e.code) return e;
    const byte_piece whole = byte_piece_of_doubles(*v, *n);
    return *n ? get_object(q, hex, &whole, 1) : e;
}

/* Root reads the common part, a rank its cell. *whole: nothing is damaged, on every rank. */
static err read_saved(quantize_run *q, const json_t *entry, learn_saved *out, bool *whole) {
    const json_t *cell = json_array_get(json_object_get(entry, "cells"), (size_t)comm_rank(q->c));
    err e = err_none();
    out->phase = json_integer_value(json_object_get(entry, "phase"));
    if (cell) {
        const char *hex = json_string_value(json_object_get(cell, "object"));
        out->n_cell = doubles_of(cell);
        e = check_object(q, hex, out->n_cell);
        if (!e.code) snprintf(out->cell, sizeof out->cell, "%s", hex);
    }
    if (!e.code && q->state)
        e = read_named(q, entry, "state of learning", &out->common, &out->n_common);
    err first = comm_agree(q->c, e, "reading the state of learning", NULL);
    *whole = !first.code;
    if (first.code == ERR_NOFIT) return first;
    if (first.code && q->state) log_line(LOG_WARN, "%s: %s", first.where, first.what);
    return err_none();
}

err learn_recall_cell(quantize_run *q, const learn_saved *k, const byte_piece *cell, int pieces) {
    err e = k->n_cell ? get_object(q, k->cell, cell, pieces) : err_none();
    return comm_agree(q->c, e, "reading the state of learning", NULL);
}

static err share_common(quantize_run *q, learn_saved *k) {
    err e = err_none();
    comm_bcast(q->c, &k->n_common, sizeof k->n_common, 0);
    if (!q->state) e = MEM_NEW(&k->common, k->n_common, "state of learning");
    e = comm_agree(q->c, e, "reading the state of learning", NULL);
    if (!e.code) comm_bcast(q->c, k->common, (uint64_t)k->n_common * sizeof(double), 0);
    return e;
}

err learn_recall(quantize_run *q, learn_saved *out) {
    *out = (learn_saved){0};
    for (int i = 0; i < 2; i++) {
        json_t *entry = learn_share_entry(q, entries[i]);
        bool whole = false;
        err e = entry ? read_saved(q, entry, out, &whole) : err_none();
        if (!e.code && whole) e = share_common(q, out);
        if (entry && !whole && !e.code)
            log_line(LOG_WARN, i == 0
                                   ? "the last state of learning is damaged; going on from the "
                                     "one before, if it is whole"
                                   : "the state before it is damaged too; the phase starts over");
        json_decref(entry);
        if (e.code || whole) return e;
        learn_saved_clear(out);
    }
    return err_none();
}

/* ---- rotations ---- */

static int64_t r1_count(const learner *l) {
    return l->R1 ? learner_cfg(l)->hidden * learner_cfg(l)->hidden : 0;
}

static int64_t r2_count(const learner *l) {
    return learner_cfg(l)->layers * learner_r2_entries(l);
}

/* What follows R1 in the object: arrays that every rank holds whole. */
typedef struct section {
    double *v;
    int64_t n;
} section;
enum { N_SECTIONS = 3 };

static int64_t list_sections(const learner *l, section list[N_SECTIONS]) {
    int64_t total = r1_count(l);
    list[0] = (section){l->R2, r2_count(l)};
    list[1] = (section){l->scales, l->n_scales};
    list[2] = (section){l->sites, l->n_sites};
    for (int i = 0; i < N_SECTIONS; i++) total += list[i].n;
    return total;
}

/* Collective. Rows of R1 pass through every rank, from the object (root only; fd -1 elsewhere) into
 * l->R1, or the other way. The ranks go on together when root fails. */
static err pass_r1(learner *l, run_object *to, int from, const char *path) {
    const int64_t n = learner_cfg(l)->hidden;
    double *band;
    err failed = err_none();
    err e = MEM_NEW(&band, DEALT_ROWS_BAND * n, "rows of R1");
    e = comm_agree(l->q->c, e, "rotations of the run state", NULL);
    for (int64_t row = 0; !e.code && row < n; row += DEALT_ROWS_BAND) {
        const int64_t b = size_min(DEALT_ROWS_BAND, n - row);
        const uint64_t bytes = (uint64_t)(b * n) * sizeof(double),
                       at = (uint64_t)(row * n) * sizeof(double);
        if (!path) {
            dealt_rows_get(l->R1, row, b, band);
            if (to && !failed.code) failed = run_object_put(to, band, bytes, at);
            continue;
        }
        if (from >= 0 && !failed.code) failed = file_pread(from, path, band, bytes, at);
        comm_bcast(l->q->c, band, bytes, 0);
        dealt_rows_put(l->R1, row, b, band);
    }
    mem_free(band);
    return e.code ? e : failed;
}

static err put_sections(const learner *l, run_object *o) {
    section list[N_SECTIONS];
    uint64_t at = (uint64_t)r1_count(l) * sizeof(double);
    err e = err_none();
    list_sections(l, list);
    for (int i = 0; i < N_SECTIONS && !e.code; i++) {
        e = run_object_put(o, list[i].v, (uint64_t)list[i].n * sizeof(double), at);
        at += (uint64_t)list[i].n * sizeof(double);
    }
    return e;
}

err learn_save_rotations(learner *l, int64_t phases_done) {
    quantize_run *q = l->q;
    run_object *o = NULL;
    section list[N_SECTIONS];
    char hex[SHA256_HEX];
    const int64_t n = list_sections(l, list);
    err e = err_none();
    if (q->state) e = run_object_create(q->out, (uint64_t)n * sizeof(double), &o);
    e = comm_agree(q->c, e, "keeping the rotations", NULL);
    if (!e.code && l->R1) e = pass_r1(l, o, -1, NULL);
    if (!e.code && q->state) e = put_sections(l, o);
    if (!e.code && q->state) e = run_object_finish(&o, hex);
    run_object_abandon(&o);
    if (!e.code && q->state) {
        json_t *entry = name_of(hex, n);
        json_object_set_new(entry, "phase", json_integer(phases_done));
        step_back(q, "rotations");
        step_back(q, "learning");
        json_object_set_new(run_state_work(q->state), "rotations", entry);
        e = learn_commit(q, "learn");
    }
    return comm_agree(q->c, e, "committing", NULL);
}

/* Root only. Opens the object of an entry if it is whole and has n doubles. */
static err open_rotations(const quantize_run *q, const json_t *entry, int64_t n, char **path,
                          int *fd) {
    const char *hex = json_string_value(json_object_get(entry, "object"));
    if (!hex || doubles_of(entry) != n)
        return err_make(ERR_MISMATCH, "state.json", NULL, "rotations of another size");
    err e = run_object_check(q->out, hex, (uint64_t)n * sizeof(double));
    *path = run_object_path(q->out, hex);
    return e.code ? e : file_open_read(*path, fd, NULL);
}

/* Collective. *whole as in read_saved. */
static err read_rotations(learner *l, const json_t *entry, bool *whole) {
    quantize_run *q = l->q;
    section list[N_SECTIONS];
    const int64_t n = list_sections(l, list);
    char *path = NULL;
    int fd = -1;
    err e = err_none();
    if (q->state) e = open_rotations(q, entry, n, &path, &fd);
    e = comm_agree(q->c, e, "rotations of the run state", NULL);
    if (!e.code && l->R1) e = pass_r1(l, NULL, fd, path ? path : "");
    uint64_t at = (uint64_t)r1_count(l) * sizeof(double);
    for (int i = 0; i < N_SECTIONS; i++) {
        const uint64_t bytes = (uint64_t)list[i].n * sizeof(double);
        if (!e.code && fd >= 0) e = file_pread(fd, path, list[i].v, bytes, at);
        at += bytes;
    }
    e = comm_agree(q->c, e, "rotations of the run state", NULL);
    for (int i = 0; i < N_SECTIONS && !e.code; i++)
        comm_bcast(q->c, list[i].v, (uint64_t)list[i].n * sizeof(double), 0);
    if (fd >= 0) close(fd);
    free(path);
    *whole = !e.code;
    if (e.code == ERR_NOFIT) return e;
    if (e.code && q->state) log_line(LOG_WARN, "%s: %s", e.where, e.what);
    return err_none();
}

err learn_recall_rotations(learner *l, int64_t *phases_done) {
    *phases_done = -1;
    for (int i = 2; i < N_ENTRIES; i++) {
        json_t *entry = learn_share_entry(l->q, entries[i]);
        bool whole = false;
        err e = entry ? read_rotations(l, entry, &whole) : err_none();
        if (whole) *phases_done = json_integer_value(json_object_get(entry, "phase"));
        if (entry && !whole && !e.code)
            log_line(LOG_WARN, i == 2 ? "the rotations learned so far are damaged; going on from "
                                        "those before them, if they are whole"
                                      : "those before them are damaged too: learning starts over");
        json_decref(entry);
        if (e.code || whole) return e;
    }
    return err_none();
}
