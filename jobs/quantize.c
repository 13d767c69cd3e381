/* quantize: checkpoint in, archive out. The recipe of the command as named steps; the phases are in
 * quantize_items.c and quantize_output.c. */
#include "jobs/jobs.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/gemm.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/sha256.h"
#include "base/size.h"
#include "jobs/planning/plan.h"
#include "jobs/run/stop.h"
#include "jobs/setup/setup.h"
#include "pipeline/plan/memory_plan.h"
#include "pipeline/stages/partition.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Flags of the layout of learning end to end (jobs/phases/learn_e2e_phase.c); none changes a byte.
 */
static err check_layout(const options *o) {
    int64_t replicas = 1, stages = 1;
    const char *recompute = options_str(o, OPT_RECOMPUTE);
    err e = options_int(o, OPT_REPLICAS, 1, 1 << 20, &replicas);
    if (!e.code) e = options_int(o, OPT_STAGES, 1, 1 << 20, &stages);
    if (e.code) return e;
    if (recompute && strcmp(recompute, "auto") && strcmp(recompute, "on") &&
        strcmp(recompute, "off"))
        return err_make(ERR_USAGE, "--recompute", NULL, "\"%s\" is not auto, on or off", recompute);
    return err_none();
}

static err check_flags(quantize_run *q) {
    const options *o = q->o;
    if (!options_has(o, OPT_MODEL))
        return err_make(ERR_USAGE, "--model", NULL, "say which model: --model DIR");
    if (!options_has(o, OPT_OUT))
        return err_make(ERR_USAGE, "--out", NULL, "say where to: --out OUT");
    if (options_has(o, OPT_MEM)) {
        err e = size_parse(options_str(o, OPT_MEM), &q->limit);
        if (e.code) return e;
    }
    return check_layout(o);
}

/* The tokenizer is only checked: a wrong one would spoil the archive. Root only. */
static err check_tokenizer(const source *s) {
    tokenizer *t;
    if (!fileset_find(s->files, "tokenizer.json", NULL, NULL, NULL)) {
        log_line(LOG_WARN, "%s has no tokenizer.json; the archive will have none", s->path);
        return err_none();
    }
    err e = source_tokenizer(s, &t);
    tokenizer_destroy(&t);
    return e;
}

err quantize_describe(quantize_run *q) {
    const llama_config *cfg = &q->source.cfg;
    if (q->source.form.packed)
        return err_make(ERR_INPUT, q->source.path, "give the checkpoint it was made from",
                        "the weights are quantized already");
    st_dtype store = setup_store_dtype(q->recipe, &q->source);
    wquant how;
    err e = setup_weights(q->recipe, cfg, store, &how);
    if (!e.code) e = setup_form(q->recipe);
    if (!e.code) e = setup_name(q->recipe, q->source.path, &how);
    if (e.code) return e;
    bool untied = cfg->tied && rotation_set_r1(q->rotations);
    layout_options lo = setup_layout(q->recipe, &how, store, untied);
    e = layout_create(cfg, &lo, &q->layout);
    if (e.code) return e;
    q->job = (quantize_job){.checkpoint = q->source.ck,
                            .cfg = cfg,
                            .rotations = q->rotations,
                            .how = how,
                            .untied = untied};
    q->n_items = quantize_item_count(&q->job);
    q->n_units = layout_units(q->layout);
    return e;
}

err quantize_deal(quantize_run *q, int ranks) {
    double *cost = calloc((size_t)q->n_items, sizeof *cost);
    free(q->owner);
    free(q->units);
    q->owner = calloc((size_t)q->n_items, sizeof *q->owner);
    q->units = calloc((size_t)q->n_units, sizeof *q->units);
    if (!cost || !q->owner || !q->units) abort();
    for (int64_t i = 0; i < q->n_items; i++) cost[i] = quantize_item_cost(&q->job, i);
    err e = partition_items(cost, q->n_items, ranks, q->owner);
    free(cost);
    return e;
}

/* Root only. Hash of the file that rotations start from; "" where there is none. */
static err hash_start(const quantize_run *q, char hex[SHA256_HEX]) {
    const char *path = recipe_str(q->recipe, "rotate.start");
    uint64_t bytes;
    int fd;
    hex[0] = 0;
    if (!setup_start_is_file(q->recipe)) return err_none();
    err e = file_open_read(path, &fd, &bytes);
    if (e.code) return e;
    e = sha256_of_range(fd, path, 0, bytes, hex);
    close(fd);
    return e;
}

/* Collective. What the bytes depend on; a restart under another one is refused. */
static err make_fingerprint(quantize_run *q) {
    char kernels[256], start[SHA256_HEX] = "", calib[SHA256_HEX] = "";
    gemm_kernels(kernels, sizeof kernels);
    err e = err_none();
    if (comm_rank(q->c) == 0) e = hash_start(q, start);
    e = comm_agree(q->c, e, "reading the rotations", NULL);
    if (e.code) return e;
    if (q->calib_ids)
        sha256_of(q->calib_ids,
                  (size_t)(q->calib_windows * recipe_int(q->recipe, "calib.window")) *
                      sizeof *q->calib_ids,
                  calib);
    json_t *headers = json_object();
    for (int i = 0; i < hf_checkpoint_shards(q->source.ck); i++)
        json_object_set_new(headers, hf_checkpoint_shard_name(q->source.ck, i),
                            json_string(hf_checkpoint_header_sha256(q->source.ck, i)));
    q->fingerprint = json_pack("{s:s, s:o, s:s, s:s, s:O, s:s}", "config_sha256",
                               hf_checkpoint_config_sha256(q->source.ck), "headers", headers,
                               "calib_ids_sha256", calib, "start_sha256", start, "recipe",
                               recipe_tree(q->recipe), "kernels", kernels);
    if (!q->fingerprint) abort();
    return e;
}

bool quantize_items_memory(const quantize_run *q, int rank, uint64_t limit, memory_plan *p) {
    quantize_memory most = {0};
    int64_t n_own, *own = quantize_items_of(q, rank, &n_own);
    for (int64_t i = 0; i < n_own; i++) {
        quantize_memory m = quantize_item_memory(&q->job, own[i]);
        if (m.fusion + m.codes > most.fusion + most.codes) most = m;
    }
    memory_plan_add(p, "fusion in fp64", most.fusion);
    memory_plan_add(p, "codes and scales", most.codes);
    memory_plan_add(p, "packed tensor",
                    layout_opts(q->layout)->int8 ? most.codes
                                                 : most.codes * (uint64_t)q->job.how.bits / 8);
    const uint64_t hidden = (uint64_t)q->source.cfg.hidden;
    if (rotation_set_r1(q->rotations))
        memory_plan_add(p, "rotations", hidden * hidden * sizeof(double));
    const uint64_t read = quantize_item_read_bytes(&q->job, own, n_own, true);
    const bool ahead = !limit || memory_plan_total(p) + read <= limit;
    memory_plan_add(p, "tensors as read",
                    ahead ? read : quantize_item_read_bytes(&q->job, own, n_own, false));
    free(own);
    return ahead;
}

static err prepare(quantize_run *q) {
    err e = comm_agree(q->c, check_flags(q), "reading the flags", NULL);
    if (!e.code)
        e = comm_agree(q->c, stop_setup(options_str(q->o, OPT_STOP_BEFORE)), "reading the flags",
                       NULL);
    if (!e.code) e = setup_recipe(q->c, q->o, NULL, &q->recipe);
    if (!e.code) e = comm_agree(q->c, setup_refuse_missing(q->recipe), "reading the recipe", NULL);
    if (!e.code) e = source_open(q->c, options_str(q->o, OPT_MODEL), &q->source);
    if (!e.code) e = comm_agree(q->c, quantize_resolve_numerics(q), "numerics", NULL);
    if (!e.code)
        e = setup_rotations(q->c, q->recipe, &q->source, quantize_learns(q->recipe), &q->rotations);
    if (!e.code) e = comm_agree(q->c, quantize_describe(q), "planning", NULL);
    if (!e.code) {
        err t = err_none();
        if (comm_rank(q->c) == 0) t = check_tokenizer(&q->source);
        e = comm_agree(q->c, t, "reading the tokenizer", NULL);
    }
    if (!e.code) e = comm_agree(q->c, quantize_deal(q, comm_size(q->c)), "dealing the work", NULL);
    if (!e.code) e = quantize_read_calibration(q);
    if (e.code) return e;
    e = make_fingerprint(q);
    if (!e.code) setup_form_say(q->recipe);
    if (!e.code) e = quantize_plan(q);
    return e.code ? e : learn_e2e_plan(q);
}

void quantize_clear(quantize_run *q) {
    json_decref(q->fingerprint);
    free(q->owner);
    free(q->units);
    free(q->calib_ids);
    free(q->plan);
    layout_destroy(&q->layout);
    rotation_set_destroy(&q->rotations);
    source_close(&q->source);
    recipe_destroy(&q->recipe);
    events_close(&q->events);
}

void quantize_phase_start(quantize_run *q, const char *phase) {
    q->phase_start_s = clock_now_s();
    mem_begin_phase();
    events_add(q->events, phase, "start", NULL);
}

void quantize_phase_end(quantize_run *q, const char *phase, json_t *more) {
    double seconds = clock_now_s() - q->phase_start_s;
    int64_t peak = (int64_t)mem_peak_rss_bytes();
    comm_max_i64(q->c, &peak, 1);
    quantize_tell_phase(q, phase, seconds, (uint64_t)peak);
    if (!q->events) {
        json_decref(more);
        return;
    }
    if (!more) more = json_object();
    json_object_set_new(more, "seconds", json_real(seconds));
    json_object_set_new(more, "peak_rss_bytes", json_integer(peak));
    const plan_phase *planned = quantize_planned(q, phase);
    if (planned) {
        json_object_set_new(more, "planned_seconds", json_real(planned->seconds));
        json_object_set_new(more, "planned_bytes",
                            json_integer((json_int_t)memory_plan_total(&planned->memory)));
    }
    events_add(q->events, phase, "end", more);
}

err job_quantize(const comm *c, const options *o) {
    quantize_run q = {.c = c, .o = o, .out = options_str(o, OPT_OUT), .start_s = clock_now_s()};
    q.phase_start_s = q.start_s;
    q.base_bytes = mem_rss_bytes() + MEMORY_PLAN_LIBRARIES;
    err e = prepare(&q);
    if (!e.code && options_has(o, OPT_DRY_RUN)) {
        quantize_clear(&q);
        return e;
    }
    if (!e.code) e = quantize_open_output(&q);
    if (!e.code && !q.complete) e = quantize_learn(&q);
    if (!e.code && !q.complete && quantize_uses_gptq(q.recipe)) e = quantize_gptq(&q);
    if (!e.code && !q.complete) e = quantize_do_items(&q);
    if (!e.code && !q.complete) e = quantize_pack(&q);
    if (!e.code) e = quantize_finish(&q);
    if (q.state) {
        /* A run that began here and failed on its input leaves nothing: what is mended would not be
         * the same input. Other failures keep what is done. */
        bool hopeless = (e.code == ERR_INPUT || e.code == ERR_USAGE) && !e.of_system &&
                        !run_state_resumed(q.state);
        events_add(q.events, "done", e.code == ERR_STOPPED ? "stop" : "done",
                   json_pack("{s:i}", "exit", e.code));
        err r = run_state_close(&q.state, hopeless);
        if (r.code) log_line(LOG_WARN, "%s: %s", r.where, r.what);
    }
    quantize_clear(&q);
    return e;
}
