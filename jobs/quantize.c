/* The recipe of the command as named steps: read and check, plan, then the phases of the table in
 * order. What is done already is found in the run folder by each phase. */
#include "jobs/quantize.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/gemm.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/sha256.h"
#include "base/size.h"
#include "jobs/phases/learn_e2e_phase.h"
#include "jobs/phases/quantize_gptq.h"
#include "jobs/phases/quantize_items.h"
#include "jobs/phases/quantize_learn.h"
#include "jobs/phases/quantize_output.h"
#include "jobs/planning/quantize_plan.h"
#include "jobs/reporting/report_page.h"
#include "jobs/run/quantize_calib.h"
#include "jobs/run/quantize_numerics.h"
#include "jobs/run/stop.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup.h"
#include "jobs/setup/setup_eight.h"
#include "jobs/setup/setup_form.h"
#include "jobs/verify.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What a run does between its opening and its end, in this order. */
static const quantize_phase PHASES[] = {
    {"learning", quantize_learn_wanted, quantize_learn_plan, quantize_learn},
    {"layers by GPTQ", quantize_gptq_wanted, quantize_gptq_plan, quantize_gptq},
    {"items to nearest", NULL, quantize_items_plan, quantize_do_items},
    {"archive", NULL, quantize_pack_plan, quantize_pack},
};
static const phase_table TABLE = {PHASES, sizeof PHASES / sizeof PHASES[0]};

/* A process that runs says so once a second; no load of a node keeps it from that for so long. */
enum { LOST_AFTER_S = 30, LOST_AFTER_LEAST_S = 2 }; /* the ranks answer once a second */

const phase_table *quantize_phases(void) {
    return &TABLE;
}

static err check_flags(quantize_run *q) {
    const options *o = q->o;
    if (!options_has(o, OPT_MODEL))
        return err_make(ERR_USAGE, "--model", NULL, "say which model: --model DIR");
    if (!options_has(o, OPT_OUT))
        return err_make(ERR_USAGE, "--out", NULL, "say where to: --out OUT");
    return run_flags_read(o, &q->flags);
}

/* Root only. Hash of the file that rotations start from; "" where there is none. */
static err hash_start(const quantize_run *q, char hex[SHA256_HEX]) {
    hex[0] = 0;
    if (q->set->rotate.start.word != START_POINT_FILE) return err_none();
    return sha256_of_file(q->set->rotate.start.text, hex);
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
                  (size_t)(q->calib_windows * q->set->calib.window) * sizeof *q->calib_ids, calib);
    json_t *headers = json_object();
    for (int i = 0; i < hf_checkpoint_shards(q->source.ck); i++)
        json_object_set_new(headers, hf_checkpoint_shard_name(q->source.ck, i),
                            json_string(hf_checkpoint_header_sha256(q->source.ck, i)));
    /* the recipe as asked: what a run chooses by itself (activations.average) is put there later */
    q->fingerprint = json_pack("{s:s, s:o, s:s, s:s, s:o, s:s}", "config_sha256",
                               hf_checkpoint_config_sha256(q->source.ck), "headers", headers,
                               "calib_ids_sha256", calib, "start_sha256", start, "recipe",
                               json_deep_copy(recipe_tree(q->recipe)), "kernels", kernels);
    if (!q->fingerprint) abort();
    return e;
}

/* Collective. The ranks are watched from here on. */
static err begin_watch(quantize_run *q) {
    double lost_s = LOST_AFTER_S;
    const char *text = options_str(q->o, OPT_LOST_AFTER);
    err e = text ? size_parse_seconds(text, &lost_s) : err_none();
    if (!e.code && lost_s > 0 && lost_s < LOST_AFTER_LEAST_S)
        e = err_make(ERR_USAGE, "--lost-after", "0s: never", "%s is too soon: %ds or more", text,
                     LOST_AFTER_LEAST_S);
    e = comm_agree(q->c, e.code ? err_at(e, "--lost-after") : e, "reading the flags", NULL);
    return e.code ? e : watch_start(q->c, lost_s, &q->watch);
}

/* Collective. Other kernels give other bytes, so one rank with others would mix them in silence. */
static err check_alike(const quantize_run *q) {
    struct {
        char host[64], kernels[256];
    } first = {.host = ""}, mine = {.host = ""};
    snprintf(mine.host, sizeof mine.host, "%s", comm_host());
    gemm_kernels(mine.kernels, sizeof mine.kernels);
    first = mine;
    comm_bcast(q->c, &first, sizeof first, 0);
    err e = err_none();
    if (strcmp(first.kernels, mine.kernels) != 0)
        e = err_make(ERR_MISMATCH, mine.host,
                     "ask for nodes that are alike (sbatch --constraint=...), or set for all ranks "
                     "what every CPU has: OPENBLAS_CORETYPE=Haswell, ONEDNN_MAX_CPU_ISA=AVX2",
                     "products run on %s, and on rank 0 (%s) on %s: they would give other bytes",
                     mine.kernels, first.host, first.kernels);
    return comm_agree(q->c, e, "comparing the kernels", NULL);
}

static err prepare(quantize_run *q) {
    err e = comm_agree(q->c, check_flags(q), "reading the flags", NULL);
    if (!e.code) e = begin_watch(q);
    if (!e.code) e = check_alike(q);
    if (!e.code)
        e = comm_agree(q->c, stop_setup(options_str(q->o, OPT_STOP_BEFORE)), "reading the flags",
                       NULL);
    if (!e.code) e = setup_recipe(q->c, q->o, NULL, &q->recipe);
    if (!e.code) q->set = recipe_settings(q->recipe);
    if (!e.code) e = comm_agree(q->c, setup_refuse_missing(q->set), "reading the recipe", NULL);
    if (!e.code) setup_resolve_scales(q->recipe);
    if (!e.code) e = source_open(q->c, options_str(q->o, OPT_MODEL), &q->source);
    if (!e.code) e = comm_agree(q->c, quantize_resolve_numerics(q), "numerics", NULL);
    if (!e.code)
        e = setup_rotations(q->c, q->set, &q->source, quantize_learns(q->set), &q->rotations);
    if (!e.code) e = comm_agree(q->c, quantize_describe(q), "planning", NULL);
    if (!e.code) {
        err t = err_none();
        if (comm_rank(q->c) == 0) t = quantize_check_tokenizer(q);
        e = comm_agree(q->c, t, "reading the tokenizer", NULL);
    }
    if (!e.code) e = comm_agree(q->c, quantize_deal(q, comm_size(q->c)), "dealing the work", NULL);
    if (!e.code) e = quantize_read_calibration(q);
    if (e.code) return e;
    e = make_fingerprint(q);
    mem_give_back();
    q->base_bytes = memory_plan_program(mem_rss_bytes(), gemm_threads(), quantize_multiplies(q));
    if (!e.code) setup_form_say(q->set);
    if (!e.code) setup_eight_say(q->set, &q->source.cfg);
    if (!e.code) e = quantize_plan(q, &TABLE);
    return e.code ? e : learn_e2e_announce(q);
}

/* Collective. What an earlier start completed is verified as by hand. */
static err verify_complete(const quantize_run *q) {
    options verify = {.cmd = q->o->cmd == CMD_COMPARE ? CMD_COMPARE : CMD_VERIFY, .target = q->out};
    verify.n_values[OPT_JSON] = options_has(q->o, OPT_JSON);
    return job_verify(q->c, &verify);
}

/* Root only. A page more or less is never worth a run. */
static void write_report(const quantize_run *q) {
    char *path = file_join(q->out, "report.html");
    err e = report_write(q->out, path);
    if (e.code) log_line(LOG_WARN, "no report: %s: %s", e.where, e.what);
    free(path);
}

/* Collective, with one error on all ranks. Where another run has taken the folder over, objects may
 * vanish between two commits: then a call of the system that fails says that, and not its path. */
static err explain_taken_over(const quantize_run *q, err e) {
    if (!e.of_system) return e;
    err o = q->state ? run_state_check_owner(q->state) : err_none();
    o = comm_agree(q->c, o, "looking at the run folder", NULL);
    return o.code ? o : e;
}

err job_quantize(const comm *c, const options *o) {
    quantize_run q = {.c = c, .o = o, .out = options_str(o, OPT_OUT), .start_s = clock_now_s()};
    q.phase_start_s = q.start_s;
    err e = prepare(&q);
    if (!e.code && options_has(o, OPT_DRY_RUN)) {
        watch_stop(&q.watch);
        quantize_clear(&q);
        return e;
    }
    if (!e.code) e = quantize_open_output(&q);
    const bool open = !e.code;
    for (int i = 0; i < TABLE.n && !e.code && !q.complete; i++)
        if (phase_is_wanted(&PHASES[i], &q)) e = PHASES[i].run(&q);
    if (!e.code) e = quantize_finish(&q);
    if (open) e = explain_taken_over(&q, e);
    if (!e.code && q.complete) e = verify_complete(&q);
    if (q.state) {
        /* A run that failed on its input before anything was kept leaves nothing: what is mended
         * would not be the same input. All else keeps what is done. */
        bool hopeless = (e.code == ERR_INPUT || e.code == ERR_USAGE) && !e.of_system &&
                        !run_state_resumed(q.state) && !strcmp(run_state_phase(q.state), "load");
        events_add(q.events, "done", e.code == ERR_STOPPED ? "stop" : "done",
                   json_pack("{s:i}", "exit", e.code));
        err r = run_state_close(&q.state, hopeless);
        if (r.code) log_line(LOG_WARN, "%s: %s", r.where, r.what);
    }
    watch_stop(&q.watch);
    const bool worth_it = !q.complete && (!e.code || e.code == ERR_STOPPED);
    if (q.events && q.flags.report && worth_it) write_report(&q);
    quantize_clear(&q);
    return e;
}
