/* Objects are copied into tars in pieces that stay in cache, each unit by one thread; the manifest
 * is published last. */
#include "jobs/phases/quantize_output.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/gemm.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/mem.h"
#include "base/size.h"
#include "base/yaml.h"
#include "io/run_owner.h"
#include "jobs/phases/quantize_learn.h"
#include "jobs/run/run_end.h"
#include "jobs/run/run_phase.h"
#include "jobs/run/saved_fingerprint.h"
#include "jobs/run/stop.h"
#include "jobs/setup/setup.h"
#include "jobs/setup/setup_form.h"
#include "model/tensors.h"
#include "pipeline/weights/rotation_file.h"
#include "rotations/hadamard.h"
#include "shard/archive_writer.h"
#include "shard/card_front.h"
#include "shard/digest.h"
#include "version.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

static char *in_out(const quantize_run *q, const char *name) {
    return file_join(q->out, name);
}

static bool out_has(const quantize_run *q, const char *name) {
    char *path = in_out(q, name);
    bool there = file_exists(path);
    free(path);
    return there;
}

/* Root only. Starting a finished run again is no mistake: a job may be started again by others.
 * What is there is this run's output, or another one's that is not to be replaced. */
static err check_complete(quantize_run *q) {
    char list[400] = "";
    json_t *then = saved_fingerprint(q->out);
    if (then) run_state_differences(then, q->fingerprint, list, sizeof list);
    q->complete = then && !list[0];
    json_decref(then);
    if (q->complete) return err_none();
    return err_make(ERR_USAGE, q->out, "choose another --out, or replace it with --force",
                    "holds a complete archive%s%s", list[0] ? " of other settings: " : "", list);
}

/* Root only. What is there goes, and with it what was told of it, but not under the hands of a run
 * that lives: its folder is owned first. */
static err start_over(quantize_run *q) {
    char *run = in_out(q, "run"), *told = in_out(q, "events.jsonl");
    const bool is_output = file_exists(run) || out_has(q, "manifest.json");
    run_owner *own = NULL;
    err e = err_none();
    if (file_exists(run)) e = run_owner_take(run, options_has(q->o, OPT_TAKE_OVER), &own);
    if (!e.code) e = archive_remove(q->out);
    if (!e.code) e = file_remove_tree(run);
    if (!e.code && is_output) e = file_remove_tree(told);
    run_owner_give_back(&own);
    free(told);
    free(run);
    return e;
}

/* Root only. An output that is complete, or a folder that is something else, is not touched. */
static err check_out(quantize_run *q) {
    if (out_has(q, "config.json"))
        return err_make(ERR_USAGE, q->out, "choose another --out",
                        "is a model folder, not an output folder");
    if (options_has(q->o, OPT_FORCE)) return start_over(q);
    const bool complete = out_has(q, "manifest.json") && !out_has(q, "run/state.json");
    return complete ? check_complete(q) : err_none();
}

/* Root only. Objects and tars stand side by side until the end. */
static err check_space(const quantize_run *q) {
    struct statvfs fs;
    if (statvfs(q->out, &fs) != 0) return err_errno(q->out, "ask for its free space");
    uint64_t free_bytes = (uint64_t)fs.f_bavail * fs.f_frsize,
             need = 2 * layout_total_bytes(q->layout);
    char have[32], want[32];
    if (free_bytes >= need) return err_none();
    return err_make(ERR_SPACE, q->out, "free some space or choose another --out",
                    "%s are free; the run needs %s (half of it only while it runs)",
                    size_text(free_bytes, have), size_text(need, want));
}

/* Root only. */
static err open_state(quantize_run *q) {
    err e = file_make_dirs(q->out);
    if (!e.code) e = check_out(q);
    if (e.code || q->complete) return e;
    if (access(q->out, W_OK) != 0) return err_errno(q->out, "write there");
    bool fresh = !out_has(q, "run/state.json");
    if (!e.code && fresh) e = check_space(q);
    if (!e.code)
        e = run_state_open(q->out, q->fingerprint, options_has(q->o, OPT_TAKE_OVER), &q->state);
    if (e.code) return e;
    json_t *work = run_state_work(q->state);
    if (!json_object_get(work, "units")) json_object_set_new(work, "units", json_object());
    if (!json_object_get(work, "sources")) json_object_set_new(work, "sources", json_object());
    run_tell_death(q->out);
    char *path = in_out(q, "events.jsonl");
    e = events_open(path, run_state_slice(q->state), &q->events);
    free(path);
    q->complete = run_state_resumed(q->state) && out_has(q, "manifest.json");
    return e;
}

/* Collective. Everyone learns which units are done; the rank that owns an item checks its objects.
 */
static err share_done(quantize_run *q) {
    if (q->state) {
        const char *key;
        json_t *unit;
        json_object_foreach(json_object_get(run_state_work(q->state), "units"), key, unit) {
            int64_t u = strtoll(key, NULL, 10);
            const char *hex = json_string_value(json_object_get(unit, "object"));
            if (u >= 0 && u < q->n_units && hex && strlen(hex) == 64)
                memcpy(q->units[u].hex, hex, SHA256_HEX);
        }
    }
    comm_bcast(q->c, q->units, (uint64_t)q->n_units * sizeof *q->units, 0);
    int64_t *lost = calloc((size_t)q->n_units, sizeof *lost), units[2], n_done = 0;
    if (!lost) abort();
    for (int64_t i = 0; i < q->n_items; i++) {
        int n = quantize_item_units(&q->job, i, units);
        for (int k = 0; k < n && q->owner[i] == comm_rank(q->c); k++) {
            const char *hex = q->units[units[k]].hex;
            if (!hex[0]) continue;
            err e = run_object_check(q->out, hex, layout_unit_bytes(q->layout, units[k]));
            lost[units[k]] = e.code != 0;
            if (e.code) log_line(LOG_WARN, "%s: %s; it is done again", e.where, e.what);
        }
    }
    comm_max_i64(q->c, lost, q->n_units);
    for (int64_t u = 0; u < q->n_units; u++) {
        if (lost[u]) q->units[u].hex[0] = 0;
        n_done += q->units[u].hex[0] != 0;
    }
    free(lost);
    if (q->state && run_state_resumed(q->state))
        log_line(LOG_RUN, "going on with an earlier run: %" PRId64 " of %" PRId64 " units are done",
                 n_done, q->n_units);
    return err_none();
}

/* Collective. What this start runs on and what it makes, for those who read the events later. */
static void tell_run(const quantize_run *q) {
    const llama_config *cfg = &q->source.cfg;
    const int size = comm_size(q->c);
    int32_t mine = comm_node_size(), *all = calloc((size_t)size, sizeof *all);
    double nodes = 0;
    char cpu[128], kernels[256];
    if (!all) abort();
    comm_gather(q->c, &mine, sizeof mine, all, 0);
    for (int r = 0; r < size && q->events; r++) nodes += 1.0 / all[r];
    free(all);
    if (!q->events) return;
    gemm_kernels(kernels, sizeof kernels);
    json_t *more = json_pack(
        "{s:s, s:s, s:I, s:I, s:I, s:I, s:I, s:i, s:I, s:i, s:s, s:s, s:O}", "model",
        q->source.path, "architecture", cfg->architecture, "layers", (json_int_t)cfg->layers,
        "hidden", (json_int_t)cfg->hidden, "parameters", (json_int_t)llama_params(cfg),
        "source_bytes", (json_int_t)hf_checkpoint_bytes(q->source.ck), "archive_bytes",
        (json_int_t)layout_total_bytes(q->layout), "ranks", size, "nodes",
        (json_int_t)(nodes + 0.5), "threads", gemm_threads(), "cpu",
        machine_cpu_name(cpu, sizeof cpu), "kernels", kernels, "recipe", recipe_tree(q->recipe));
    events_add(q->events, "load", "run", more);
}

err quantize_open_output(quantize_run *q) {
    err e = err_none();
    if (comm_rank(q->c) == 0) e = open_state(q);
    e = comm_agree(q->c, e, "opening the output", NULL);
    if (e.code) return e;
    int64_t complete = q->complete;
    comm_max_i64(q->c, &complete, 1);
    q->complete = complete != 0;
    if (q->complete) {
        if (comm_rank(q->c) == 0)
            log_line(LOG_RUN, "%s: this run is complete already; its archive is verified", q->out);
        return e;
    }
    quantize_tell_plan(q);
    quantize_phase_start(q, "load");
    tell_run(q);
    e = share_done(q);
    quantize_phase_end(q, "load", NULL);
    return e;
}

/* ---- objects into tars ---- */

static const char *orders_of(const rotation *r, char text[64]) {
    int64_t core = 0, power = 0;
    hadamard_kind kind = HADAMARD_SYLVESTER;
    snprintf(text, 64, "none");
    if (r && !hadamard_orders(rotation_block(r), &core, &power, &kind).code)
        snprintf(text, 64, "sylvester %" PRId64 " x %s %" PRId64 ", block %" PRId64, power,
                 hadamard_kind_name(kind), core, rotation_block(r));
    return text;
}

/* What config.json says of rotations and quantization that a runtime would have to apply; NULL for
 * none. */
static json_t *online_note(const quantize_run *q) {
    const json_t *online = recipe_get(q->recipe, "rotate.online");
    json_t *keys = setup_eval_keys(q->recipe);
    char r3[64], r4[64];
    if (!keys) return NULL;
    if (!q->set->rotate.online) return json_pack("{s:o}", "eval", keys);
    return json_pack("{s:O, s:s, s:s, s:o}", "online", online, "r3",
                     orders_of(rotation_set_r3(q->rotations), r3), "r4",
                     orders_of(rotation_set_r4(q->rotations), r4), "eval", keys);
}

static err make_small_files(const quantize_run *q, small_files **out) {
    json_t *note = online_note(q), *front;
    const word_or_text *base = &q->set->archive.base_model;
    err e = card_front_read(q->source.files, &front);
    if (e.code) return e;
    small_options opts = {.name = q->set->archive.name.text,
                          .front = front,
                          .base_model = base->word == WORD_AUTO ? NULL : base->text,
                          .config = hf_checkpoint_config(q->source.ck),
                          .recipe = recipe_tree(q->recipe),
                          .spinshard = note};
    e = small_files_create(q->source.files, q->layout, &opts, out);
    json_decref(front);
    json_decref(note);
    return e;
}

/* In pieces that stay in cache, and in memory that is taken again for the next unit: a unit of a
 * large model is large, and its memory would be touched for the first time only to be copied once.
 */
static err copy_tensor(archive_writer *w, int64_t i, const layout_slot *slot, int fd,
                       const char *path, void *piece, uint64_t piece_bytes) {
    err e = err_none();
    for (uint64_t at = 0; at < slot->bytes && !e.code; at += piece_bytes) {
        uint64_t n = slot->bytes - at < piece_bytes ? slot->bytes - at : piece_bytes;
        e = file_pread(fd, path, piece, n, slot->unit_offset + at);
        if (!e.code) e = archive_writer_put(w, i, at, piece, n);
    }
    return e;
}

enum { PIECE = 1 << 20 }; /* bytes of a unit that a thread copies at a time */

static err copy_unit(const quantize_run *q, archive_writer *w, int64_t unit) {
    char *path = run_object_path(q->out, q->units[unit].hex);
    void *piece = NULL;
    int fd = -1;
    int64_t first, count;
    layout_unit_range(q->layout, unit, &first, &count);
    err e = file_open_read(path, &fd, NULL);
    if (!e.code) e = mem_alloc_unset(PIECE, 1, "piece of a unit", &piece);
    for (int64_t i = first; i < first + count && !e.code; i++)
        e = copy_tensor(w, i, layout_tensor(q->layout, i), fd, path, piece, PIECE);
    if (fd >= 0) close(fd);
    mem_free(piece);
    free(path);
    return e;
}

/* This rank's share of the units, each by one thread. */
static err copy_own_units(const quantize_run *q, archive_writer *w) {
    const int64_t rank = comm_rank(q->c), size = comm_size(q->c);
    err_first failed = {.e = err_none()};
    int64_t done = 0;
#pragma omp parallel for schedule(dynamic)
    for (int64_t u = rank; u < q->n_units; u += size) {
        err_note(&failed, u, copy_unit(q, w, u));
#pragma omp critical(pack_progress)
        {
            done += size;
            log_progress("pack", size_min(done, q->n_units), q->n_units);
        }
    }
    return failed.e;
}

/* Root only. The manifest's own lines: source and recipe. */
static manifest *make_about(const quantize_run *q) {
    int n = hf_checkpoint_shards(q->source.ck);
    manifest *m = manifest_create(q->set->archive.name.text, n, 0, 0);
    m->architecture = strdup(q->source.cfg.architecture);
    m->recipe = json_deep_copy(recipe_tree(q->recipe));
    for (int i = 0; i < n; i++) {
        m->shards[i].file = strdup(hf_checkpoint_shard_name(q->source.ck, i));
        m->shards[i].bytes = hf_checkpoint_shard_bytes(q->source.ck, i);
        snprintf(m->shards[i].header_sha256, SHA256_HEX, "%s",
                 hf_checkpoint_header_sha256(q->source.ck, i));
    }
    return m;
}

/* Root only. Beside the archive, before its manifest: the rotations and the resolved recipe. */
static err write_companions(const quantize_run *q) {
    char *path = in_out(q, "recipe.yaml"), *text = NULL;
    size_t len = 0;
    err e = yaml_text(recipe_tree(q->recipe), &text, &len);
    if (!e.code) e = file_publish(path, text, len);
    free(path);
    free(text);
    if (e.code || (!rotation_set_r1(q->rotations) && !rotation_set_r2_count(q->rotations) &&
                   !rotation_set_scales(q->rotations) && !rotation_set_clips(q->rotations) &&
                   !rotation_set_r3_heads(q->rotations)))
        return e;
    char seed[24], r3[64], r4[64];
    snprintf(seed, sizeof seed, "%" PRId64, q->set->seed);
    int n = hf_checkpoint_shards(q->source.ck), at = 0;
    const char **meta = calloc((size_t)(2 * n + 12), sizeof *meta);
    if (!meta) abort();
    for (int i = 0; i < n; i++) {
        meta[at++] = hf_checkpoint_shard_name(q->source.ck, i);
        meta[at++] = hf_checkpoint_header_sha256(q->source.ck, i);
    }
    meta[at++] = "seed";
    meta[at++] = seed;
    meta[at++] = "r3";
    meta[at++] = orders_of(rotation_set_r3(q->rotations), r3);
    meta[at++] = "r4";
    meta[at++] = orders_of(rotation_set_r4(q->rotations), r4);
    path = in_out(q, "rotations.safetensors");
    e = rotation_file_write(path, q->rotations, false, meta);
    free(path);
    free(meta);
    return e;
}

/* Root only. The phase is durable before its work begins, so a restart knows where it was. */
static err enter_phase(quantize_run *q, const char *phase) {
    return q->state ? run_state_commit(q->state, phase) : err_none();
}

/* Collective. What rank 0 read at the start stands at the beginning of files that are not
 * safetensors, whoever writes them. */
static void share_meta(quantize_run *q) {
    if (!form_has_files(layout_opts(q->layout)->linears.form)) return;
    layout_metadata m = *layout_meta(q->layout);
    void *bytes = m.bytes;
    comm_bcast(q->c, &m.pairs, sizeof m.pairs, 0);
    comm_bcast_blob(q->c, &bytes, &m.len, 0);
    m.bytes = bytes;
    if (comm_rank(q->c) != 0) layout_put_meta(q->layout, &m);
}

err quantize_pack(quantize_run *q) {
    small_files *files = NULL;
    archive_writer *w = NULL;
    quantize_phase_start(q, "pack");
    err e = enter_phase(q, "pack");
    e = comm_agree(q->c, e, "preparing the archive", NULL);
    if (!e.code) share_meta(q);
    if (!e.code && q->state) e = make_small_files(q, &files);
    if (!e.code && q->state) e = write_companions(q);
    e = comm_agree(q->c, e, "preparing the archive", NULL);
    /* Nothing is fused any more. */
    q->job.rotations = NULL;
    rotation_set_destroy(&q->rotations);
    mem_give_back();
    char *parts = in_out(q, "run/parts");
    if (!e.code && q->state) e = file_make_dirs(parts);
    e = comm_agree(q->c, e, "preparing the archive", NULL);
    if (!e.code)
        e = archive_writer_create(q->c, q->layout, files, q->set->archive.name.text, q->out, parts,
                                  &w);
    small_files_destroy(&files);
    free(parts);
    if (!e.code) e = copy_own_units(q, w);
    e = comm_agree(q->c, e, "packing", NULL);
    if (!e.code && stop_agreed(q->c)) e = comm_agree(q->c, stop_error(q->out), "stopping", NULL);
    if (!e.code) quantize_phase_end(q, "pack", NULL);
    if (!e.code) {
        quantize_phase_start(q, "verify");
        e = comm_agree(q->c, enter_phase(q, "verify"), "committing", NULL);
    }
    manifest *about = q->state ? make_about(q) : NULL;
    if (!e.code) e = archive_writer_finish(w, about);
    manifest_destroy(&about);
    archive_writer_destroy(&w);
    if (!e.code) quantize_phase_end(q, "verify", NULL);
    return e;
}

/* Root only. What differs from run to run, apart from the archive. */
static err write_run_json(const quantize_run *q, double seconds) {
    char kernels[256], cpu[128], *text = NULL;
    size_t len = 0;
    gemm_kernels(kernels, sizeof kernels);
    json_t *v = json_pack("{s:s, s:s, s:s, s:s, s:s, s:i, s:i, s:i, s:f, s:s, s:O}", "spinshard",
                          SPINSHARD_VERSION, "compiler", SPINSHARD_COMPILER, "mpi", comm_library(),
                          "kernels", kernels, "cpu", machine_cpu_name(cpu, sizeof cpu), "ranks",
                          comm_size(q->c), "threads", gemm_threads(), "restarts",
                          run_state_slice(q->state), "seconds_last_slice", seconds, "host",
                          comm_host(), "fingerprint", q->fingerprint);
    if (!v) abort();
    err e = json_text(v, 1, &text, &len);
    json_decref(v);
    char *path = in_out(q, "run.json");
    if (!e.code) e = file_publish(path, text, len);
    free(path);
    free(text);
    return e;
}

static void print_result(const quantize_run *q, double seconds) {
    char text[32];
    if (q->o->cmd == CMD_COMPARE) return; /* its table tells it */
    if (options_has(q->o, OPT_JSON)) {
        json_t *v = json_pack("{s:s, s:s, s:I, s:I, s:i, s:f}", "out", q->out, "name",
                              q->set->archive.name.text, "tensor_bytes",
                              (json_int_t)layout_total_bytes(q->layout), "tars",
                              (json_int_t)layout_parts(q->layout), "restarts",
                              run_state_slice(q->state), "seconds", seconds);
        if (q->weight_sq > 0)
            json_object_set_new(v, "relative_error", json_real(sqrt(q->error_sq / q->weight_sq)));
        json_dumpf(v, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
        puts("");
        json_decref(v);
        return;
    }
    printf("%s: %s in %" PRId64 " tar files, %.1f s\n", q->out,
           size_text(layout_total_bytes(q->layout), text), layout_parts(q->layout), seconds);
}

err quantize_finish(quantize_run *q) {
    err e = err_none();
    if (q->state) {
        double seconds = clock_now_s() - q->start_s;
        e = write_run_json(q, seconds);
        if (!e.code) e = run_state_commit(q->state, "done");
        if (!e.code) {
            events_add(q->events, "done", "done", json_pack("{s:i}", "exit", 0));
            print_result(q, seconds);
            e = run_state_close(&q->state, !options_has(q->o, OPT_KEEP_RUN));
        }
    }
    if (!e.code && comm_rank(q->c) == 0) {
        if (!q->complete) run_tell_totals(q->out);
        log_line(LOG_RUN, "complete: %s", q->out);
    }
    return comm_agree(q->c, e, "finishing", NULL);
}

/* Names and sizes of the small files to all; and of the tars a hash of each and of each file. */
static void pack_network(const plan_maker *m, plan_phase *pack, plan_phase *verify) {
    enum { MARKS_AND_SIZE = 12, ASKED = 5 * sizeof(int64_t), HASH = 2 * (SHA256_HEX - 1) };
    static const char *const made[] = {"config.json", "README.md", "model.safetensors.index.json"};
    const fileset *files = m->q->source.files;
    uint64_t n = 0, text = 0;
    for (size_t i = 0; i < sizeof made / sizeof *made; i++, n++)
        text += strlen(made[i]) + MARKS_AND_SIZE;
    for (int i = 0; i < fileset_count(files); i++) {
        if (!small_file_is_copied(fileset_name(files, i))) continue;
        text += strlen(fileset_name(files, i)) + MARKS_AND_SIZE;
        n++;
    }
    plan_send(m, pack, plan_to_all(m, text + ASKED));
    plan_send(m, verify, plan_to_all(m, (2 * (uint64_t)m->p->tars + n) * HASH));
}

/* Of the files that go over as they are. */
static uint64_t copied_bytes(const fileset *files) {
    uint64_t sum = 0, offset, bytes;
    const char *path;
    for (int i = 0; i < fileset_count(files); i++)
        if (small_file_is_copied(fileset_name(files, i)) &&
            fileset_find(files, fileset_name(files, i), &path, &offset, &bytes))
            sum += bytes;
    return sum;
}

/* What threads hold of units, none of which is more than its unit; and of a tar, likewise. */
static uint64_t pieces_bytes(const layout *l) {
    uint64_t most = 0;
    for (int64_t i = 0; i < layout_units(l); i++)
        if (layout_unit_bytes(l, i) > most) most = layout_unit_bytes(l, i);
    return (most < PIECE ? most : PIECE) * (uint64_t)gemm_threads();
}

static uint64_t tar_pieces_bytes(const layout *l) {
    uint64_t most = 0;
    for (int64_t i = 0; i < layout_parts(l); i++)
        if (layout_part_bytes(l, i) > most) most = layout_part_bytes(l, i);
    return most < digest_bytes() ? most : digest_bytes();
}

/* Objects into tars; then they are flushed, read back and hashed. */
err quantize_pack_plan(plan_maker *m) {
    /* As measured: code of products that are over, holes in the heap. */
    const uint64_t left = quantize_multiplies(m->q) ? 3 << 20 : 1 << 20;
    const plan_place *place = &m->p->place;
    const double bytes = (double)m->p->archive_bytes, nodes = place->nodes;
    const double readers = (double)size_min(m->ranks, m->p->tars);
    const plan_rates *r = m->rank.rates;
    plan_phase *pack, *verify;
    err e = plan_add_phase(m, "pack", &pack);
    if (!e.code) e = plan_add_phase(m, "verify", &verify);
    if (e.code) return e;
    memory_plan p = plan_fresh(m), v = plan_fresh(m);
    memory_plan_add(&p, "left by earlier phases", left - left / 3); /* some comes with hashes */
    memory_plan_add(&v, "left by earlier phases", left);
    memory_plan_add(&p, "rotations",
                    quantize_learned_bytes(m->q)); /* until they are in their file */
    memory_plan_add(&p, "pieces of units", pieces_bytes(m->q->layout));
    memory_plan_add(&p, "small files", copied_bytes(m->q->source.files));
    plan_offer(pack, &p, 0);
    memory_plan_add(&v, "pieces of tars", tar_pieces_bytes(m->q->layout));
    plan_offer(verify, &v, 0);
    pack->seconds = bytes / (r->write * nodes); /* objects are in the page cache */
    verify->seconds = bytes / (r->write * nodes) + bytes / (r->hash * readers);
    pack->blind_s = pack->seconds;
    verify->blind_s = verify->seconds;
    pack->disk = verify->disk = true;
    verify->units = 1; /* a start packs again what was not verified */
    verify->again_s = pack->seconds;
    pack_network(m, pack, verify);
    return e;
}
