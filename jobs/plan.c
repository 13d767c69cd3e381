/* The plan for the ranks that are asked for, then the smallest layout that fits, by doubling the
 * nodes and halving the gap. */
#include "jobs/plan.h"

#include "base/gemm.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/size.h"
#include "jobs/planning/plan_make.h"
#include "jobs/planning/plan_nodes.h"
#include "jobs/planning/plan_print.h"
#include "jobs/planning/plan_script.h"
#include "jobs/planning/plan_slices.h"
#include "jobs/planning/plan_source.h"
#include "jobs/quantize.h"
#include "jobs/run/quantize_calib.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup.h"
#include "mpi/link.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Resident before the first phase: 28 to 31 MiB were measured on 2 ranks, 6 less without MPI. */
enum { PROGRAM_BYTES = 30 << 20, MOST_NODES = 4096, MOST_CHAIN = 100 };

typedef struct plan_command {
    quantize_run q;
    plan_place place;
    plan_rates rates;
    plan_job job;
    int64_t files; /* of the source */
    run_plan plan;
    plan_slices slices;  /* of the plan */
    plan_place smallest; /* .nodes 0: none that was tried fits */
} plan_command;

/* own: --mem */
static err read_place(const options *o, uint64_t own, plan_place *p) {
    int64_t nodes = 1, ranks = machine_numa_nodes(), cores = 0;
    uint64_t memory = machine_memory_bytes();
    err e = options_int(o, OPT_NODES, 1, MOST_NODES, &nodes);
    if (!e.code) e = options_int(o, OPT_RANKS_PER_NODE, 1, 4096, &ranks);
    if (!e.code) e = options_int(o, OPT_CORES_PER_RANK, 1, 4096, &cores);
    if (!e.code && options_has(o, OPT_MEM_PER_NODE))
        e = size_parse(options_str(o, OPT_MEM_PER_NODE), &memory);
    *p = (plan_place){.nodes = (int)nodes,
                      .ranks_per_node = (int)ranks,
                      .cores_per_rank =
                          cores ? (double)cores : (double)machine_cores() / (double)ranks,
                      .limit = own ? own : memory / (uint64_t)ranks};
    p->base_bytes = memory_plan_program(PROGRAM_BYTES, p->cores_per_rank, true);
    const char *from = own                                ? "--mem"
                       : options_has(o, OPT_MEM_PER_NODE) ? "its share of --mem-per-node"
                                                          : "its share of this machine or cgroup";
    snprintf(p->limit_from, sizeof p->limit_from, "%s", from);
    return e;
}

static err read_flags(plan_command *k) {
    const options *o = k->q.o;
    if (!options_has(o, OPT_MODEL))
        return err_make(ERR_USAGE, "--model", NULL, "say which model: --model DIR");
    err e = run_flags_read(o, &k->q.flags);
    if (!e.code) e = read_place(o, k->q.flags.limit, &k->place);
    if (!e.code && options_has(o, OPT_TIME))
        e = size_parse_slurm_seconds(options_str(o, OPT_TIME), &k->job.limit_s);
    const char *cpu = options_str(o, OPT_CPU);
    if (!e.code) e = plan_rates_of(cpu ? cpu : "auto", &k->rates);
    if (!e.code && options_has(o, OPT_MEASURE)) {
        if (cpu)
            return err_make(ERR_USAGE, "--measure", "leave one of them out",
                            "measures this machine, and --cpu names another");
        e = plan_rates_measure(&k->rates);
    }
    if (!e.code && options_has(o, OPT_NETWORK))
        e = plan_rates_network(options_str(o, OPT_NETWORK), &k->rates);
    if (!e.code) e = options_int(o, OPT_CHAIN, 1, MOST_CHAIN, &k->job.chain);
    k->job.o = o;
    k->job.out = options_str(o, OPT_OUT);
    if (!e.code && options_has(o, OPT_SCRIPT) && !k->job.out)
        e = err_make(ERR_USAGE, "--out", NULL, "say where the job is to write: --out OUT");
    return e;
}

/* Collective. A network is between nodes: what goes between the ranks of one is told, and not
 * planned with. */
static void measure_links(const comm *c, const options *o, plan_rates *r) {
    if (!options_has(o, OPT_MEASURE) || comm_size(c) == 1) return;
    const link_rate l = link_measure(c);
    const bool given = options_has(o, OPT_NETWORK), taken = l.nodes > 1 && l.pairs && !given;
    if (!l.pairs) return;
    log_line(LOG_RUN, "%d pair(s) of ranks %s: %.3g GB/s a node, %.3g us a short message%s",
             l.pairs, l.nodes > 1 ? "on different nodes" : "within the one node",
             l.node_bytes_s * 1e-9, l.latency_s * 1e6,
             taken   ? ""
             : given ? "; the plan goes by --network"
                     : "; this is no network, the plan does not go by it");
    if (!taken) return;
    r->network = l.node_bytes_s;
    r->latency = l.latency_s;
    snprintf(r->network_from, sizeof r->network_from, "measured between %d nodes", l.nodes);
}

/* What quantize does before its plan, without calibration text and output folder. */
static err prepare(plan_command *k) {
    quantize_run *q = &k->q;
    err e = setup_recipe(q->c, q->o, NULL, &q->recipe);
    if (e.code) return e;
    q->set = recipe_settings(q->recipe);
    e = setup_refuse_missing(q->set);
    if (!e.code) setup_resolve_scales(q->recipe);
    if (!e.code) e = plan_source_open(q->c, options_str(q->o, OPT_MODEL), &q->source, &k->files);
    const bool text = !e.code && quantize_needs_calibration(q->set);
    const bool learns = !e.code && quantize_learns(q->set);
    if (text) q->calib_windows = q->set->calib.windows;
    if (!e.code) e = setup_rotations(q->c, q->set, &q->source, learns, &q->rotations);
    if (!e.code) e = quantize_describe(q);
    const bool known = !e.code && fileset_find(q->source.files, "tokenizer.json", NULL, NULL, NULL);
    return known ? quantize_check_tokenizer(q) : e;
}

/* ---- the smallest layout ---- */

static bool fits_on(plan_command *k, int nodes, int ranks_per_node, uint64_t node_bytes) {
    run_plan p;
    plan_place at = k->place;
    at.cores_per_rank *= (double)at.ranks_per_node / ranks_per_node;
    at.nodes = nodes;
    at.ranks_per_node = ranks_per_node;
    if (!k->q.flags.limit) at.limit = node_bytes / (uint64_t)ranks_per_node;
    if (plan_make(quantize_phases(), &k->q, &at, &k->rates, 0, &p).code || !plan_fits(&p))
        return false;
    k->smallest = at;
    return true;
}

/* Fewest nodes, and on them the most ranks up to those asked for: more nodes never hold more on a
 * rank, but for grids of other shapes. */
static void find_smallest(plan_command *k) {
    const uint64_t node_bytes = k->place.limit * (uint64_t)k->place.ranks_per_node;
    const int64_t most = size_min(MOST_NODES, 2 * k->q.source.cfg.layers);
    int low = 0, high = 0;
    if (!k->place.limit) return;
    for (int nodes = 1; nodes <= most && !high; nodes *= 2) {
        for (int ranks = k->place.ranks_per_node; ranks >= 1 && !high; ranks /= 2)
            if (fits_on(k, nodes, ranks, node_bytes)) high = nodes;
        if (!high) low = nodes;
    }
    while (high - low > 1) {
        const int nodes = (low + high) / 2;
        bool fits = false;
        for (int ranks = k->place.ranks_per_node; ranks >= 1 && !fits; ranks /= 2)
            fits = fits_on(k, nodes, ranks, node_bytes);
        if (fits)
            high = nodes;
        else
            low = nodes;
    }
}

static void tell_smallest(const plan_command *k, char *text, size_t size) {
    const plan_place *s = &k->smallest;
    char each[32];
    if (!s->nodes)
        snprintf(text, size, "no number of such nodes does: take nodes with more memory");
    else
        snprintf(text, size, "the smallest layout that fits is %d nodes x %d ranks of %s", s->nodes,
                 s->ranks_per_node, size_text(s->limit, each));
}

static json_t *slices_json(const plan_command *k) {
    const plan_slices *s = &k->slices;
    return json_pack("{s:f, s:f, s:s, s:I, s:f, s:s, s:f}", "limit_s", k->job.limit_s, "lead_s",
                     s->lead_s, "waits_for", s->waits->name, "n", (json_int_t)(s->stuck ? 0 : s->n),
                     "again_s", s->again_s, "stuck", s->stuck ? s->stuck->name : "", "least_s",
                     s->stuck ? s->least_s : 0.0);
}

static void print_slices(const plan_command *k) {
    const plan_slices *s = &k->slices;
    printf("jobs       ");
    if (k->job.limit_s > 0 && !s->stuck)
        printf("up to %" PRId64 " of %.0f min, in which %.0f min of work are done again; ", s->n,
               k->job.limit_s / 60, s->again_s / 60);
    printf("told to stop %.0f s before the end (a unit of %s)\n", s->lead_s, s->waits->name);
}

static void print(const plan_command *k) {
    char smallest[160];
    if (options_has(k->q.o, OPT_JSON)) {
        json_t *v = plan_json(&k->plan);
        json_object_set_new(v, "model", json_string(k->q.source.path));
        json_object_set_new(v, "smallest",
                            json_pack("{s:i, s:i}", "nodes", k->smallest.nodes, "ranks_per_node",
                                      k->smallest.ranks_per_node));
        json_object_set_new(v, "jobs", slices_json(k));
        json_dumpf(v, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
        puts("");
        json_decref(v);
        return;
    }
    tell_smallest(k, smallest, sizeof smallest);
    plan_print(&k->plan);
    if (k->place.limit) printf("           %s\n", smallest);
    print_slices(k);
}

static void warn_of_time(const plan_command *k) {
    const double high = plan_seconds(&k->plan) * k->rates.spread, limit = k->job.limit_s;
    const plan_slices *s = &k->slices;
    if (s->n > 1)
        log_line(LOG_WARN,
                 "it may take %.1f h, a job has %.1f h: it will go on in up to %" PRId64
                 " slices, in which %.1f h of work are done again",
                 high / 3600, limit / 3600, s->n, s->again_s / 3600);
}

static void warn_of_chain(const plan_command *k) {
    if (k->job.chain && k->slices.n > k->job.chain)
        log_line(LOG_WARN,
                 "a chain of %" PRId64 " jobs may be too short, it may take %" PRId64
                 ": --chain %" PRId64 ", or start it again",
                 k->job.chain, k->slices.n, k->slices.n);
}

/* The plan of a cluster made on its login node. */
static void warn_of_cpu(const plan_command *k) {
    const options *o = k->q.o;
    if (options_has(o, OPT_CPU) || options_has(o, OPT_MEASURE)) return;
    if (options_has(o, OPT_SCRIPT) || options_has(o, OPT_NODES))
        log_line(LOG_WARN,
                 "times and kernels are those of this machine's CPU: where the nodes have "
                 "another, say it with --cpu");
}

err job_plan(const comm *all, const options *o) {
    plan_command k = {.q = {.o = o}};
    char smallest[160];
    comm *alone;
    err e = comm_agree(all, read_flags(&k), "reading the flags", NULL);
    if (!e.code) measure_links(all, o, &k.rates);
    if (!e.code) e = comm_split(all, comm_rank(all) == 0 ? 0 : -1, "plan", &alone);
    if (e.code || !alone) return e; /* the others have measured, the first one plans */
    k.q.c = alone;
    if (!e.code) e = prepare(&k);
    if (!e.code) find_smallest(&k);
    if (!e.code) e = plan_make(quantize_phases(), &k.q, &k.place, &k.rates, 0, &k.plan);
    if (!e.code) {
        k.slices = plan_slices_of(&k.plan, k.job.limit_s);
        k.job.lead_s = k.slices.lead_s;
        k.plan.read_files = k.files;
        tell_smallest(&k, smallest, sizeof smallest);
        print(&k);
        e = plan_refuse(&k.plan, smallest);
    }
    if (!e.code) e = plan_slices_refuse(&k.plan, k.job.limit_s);
    if (!e.code) warn_of_time(&k);
    if (!e.code) warn_of_chain(&k);
    if (!e.code) warn_of_cpu(&k);
    k.job.name = k.q.set ? k.q.set->archive.name.text : NULL;
    if (!e.code && options_has(o, OPT_SCRIPT)) e = quantize_check_calibration(o, k.q.set);
    if (!e.code && options_has(o, OPT_SCRIPT)) e = plan_check_job(&k.job);
    if (!e.code && options_has(o, OPT_SCRIPT)) e = plan_check_nodes(&k.plan, &k.job);
    if (!e.code && options_has(o, OPT_SCRIPT)) {
        e = plan_write_script(options_str(o, OPT_SCRIPT), &k.plan, &k.job);
        if (!e.code) log_line(LOG_RUN, "wrote %s", options_str(o, OPT_SCRIPT));
    }
    quantize_clear(&k.q);
    comm_destroy(&alone);
    return e;
}
