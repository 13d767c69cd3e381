/* Times as ranges, by the spread of the rates; memory by buffer, of the largest rank of each phase.
 */
#include "jobs/planning/plan_print.h"

#include "base/log.h"
#include "base/size.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* "0.4 s", "12 s", "3.5 min", "2.1 h" */
static const char *time_text(double s, char buf[24]) {
    if (s < 9.95)
        snprintf(buf, 24, "%.1f s", s);
    else if (s < 120)
        snprintf(buf, 24, "%.0f s", s);
    else if (s < 7200)
        snprintf(buf, 24, "%.1f min", s / 60);
    else
        snprintf(buf, 24, "%.1f h", s / 3600);
    return buf;
}

static void range_text(double s, double from, double to, char buf[96]) {
    char low[24], mid[24], high[24];
    snprintf(buf, 96, "%s (%s to %s)", time_text(s, mid), time_text(from, low),
             time_text(to, high));
}

static void buffers_text(const memory_plan *m, char *line, size_t size) {
    char one[32];
    line[0] = 0;
    for (int i = 0; i < m->n; i++) {
        const size_t used = strlen(line);
        snprintf(line + used, size - used, "%s%s %s", i ? ", " : "", m->buffers[i].name,
                 size_text(m->buffers[i].bytes, one));
    }
}

static void print_files(const run_plan *p) {
    char in[32], out[32], beside[32];
    printf("reads      %s in %" PRId64 " files\n", size_text(p->read_bytes, in), p->read_files);
    printf("writes     %s in %" PRId64 " tars, %" PRId64
           " small files beside; %s more in OUT/run while it runs\n",
           size_text(p->archive_bytes, out), p->tars, p->other_files,
           size_text(p->run_bytes, beside));
}

static void print_phase(const run_plan *p, const plan_phase *f) {
    char time[96], bytes[32], net[32], line[1024];
    range_text(f->seconds, plan_low(p, f), plan_high(p, f), time);
    printf("%-10s %-32s %11s on rank %d; busy %.0f %%", f->name, time,
           size_text(memory_plan_total(&f->memory), bytes), f->rank, 100 * f->busy);
    if (f->sent) printf("; ranks send %s", size_text(f->sent, net));
    if (f->sent && p->place.nodes > 1) printf(", %s from node to node", size_text(f->network, net));
    if (f->note[0]) printf("; %s", f->note);
    buffers_text(&f->memory, line, sizeof line);
    printf("\n           %s\n", line);
}

void plan_print(const run_plan *p) {
    const plan_place *at = &p->place;
    const plan_phase *most = plan_largest(p);
    char text[96], bytes[32], limit[32];
    printf("model      %" PRId64 " parameters in %" PRId64 " layers\n", p->params, p->layers);
    printf("layout     %d nodes x %d ranks, %.3g cores a rank; %" PRId64 " to %" PRId64
           " layers a rank, %d ranks without\n",
           at->nodes, at->ranks_per_node, at->cores_per_rank, p->least_layers, p->most_layers,
           p->idle_ranks);
    printf("rates      %s\n", p->rates.from);
    if (at->nodes > 1)
        printf("network    %.3g GB/s a node, %.3g us a message; %s\n", p->rates.network * 1e-9,
               p->rates.latency * 1e6, p->rates.network_from);
    print_files(p);
    printf("\nphase      time                             largest rank\n");
    for (int i = 0; i < p->n_phases; i++) print_phase(p, &p->phases[i]);
    const double all = plan_seconds(p);
    range_text(all, all / p->rates.faster, all * p->rates.spread, text);
    printf("\ntime       %s\n", text);
    printf("memory     %s on rank %d in phase %s",
           size_text(memory_plan_total(&most->memory), bytes), most->rank, most->name);
    if (at->limit) printf("; a rank has %s (%s)", size_text(at->limit, limit), at->limit_from);
    puts("");
}

void plan_log(const run_plan *p) {
    char in[32], out[32], text[96], bytes[32];
    log_line(LOG_PHASE,
             "plan: reads %s, writes %s in %" PRId64 " tar files (twice that on disk while it "
             "runs); %s",
             size_text(p->read_bytes, in), size_text(p->archive_bytes, out), p->tars,
             p->rates.from);
    for (int i = 0; i < p->n_phases; i++) {
        const plan_phase *f = &p->phases[i];
        range_text(f->seconds, plan_low(p, f), plan_high(p, f), text);
        log_line(LOG_PHASE, "plan: %s %s, %s on rank %d%s%s", f->name, text,
                 size_text(memory_plan_total(&f->memory), bytes), f->rank, f->note[0] ? "; " : "",
                 f->note);
    }
}

static json_t *phase_json(const run_plan *p, const plan_phase *f) {
    json_t *buffers = json_array();
    for (int i = 0; i < f->memory.n; i++)
        json_array_append_new(buffers, json_pack("{s:s, s:I}", "name", f->memory.buffers[i].name,
                                                 "bytes", (json_int_t)f->memory.buffers[i].bytes));
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:I, s:I, s:i, s:I, s:o, s:s, s:I, s:I, s:I}",
                     "phase", f->name, "seconds", f->seconds, "seconds_low", plan_low(p, f),
                     "seconds_high", plan_high(p, f), "busy", f->busy, "sent_bytes",
                     (json_int_t)f->sent, "network_bytes", (json_int_t)f->network, "largest_rank",
                     f->rank, "bytes", (json_int_t)memory_plan_total(&f->memory), "buffers",
                     buffers, "note", f->note, "kept_bytes", (json_int_t)f->saved_bytes, "passes",
                     (json_int_t)f->passes, "looks", (json_int_t)f->looks);
}

json_t *plan_json(const run_plan *p) {
    const plan_place *at = &p->place;
    const plan_phase *most = plan_largest(p);
    json_t *phases = json_array();
    for (int i = 0; i < p->n_phases; i++)
        json_array_append_new(phases, phase_json(p, &p->phases[i]));
    json_t *where =
        json_pack("{s:i, s:i, s:f, s:I, s:I, s:I, s:i}", "nodes", at->nodes, "ranks_per_node",
                  at->ranks_per_node, "cores_per_rank", at->cores_per_rank, "memory_per_rank",
                  (json_int_t)at->limit, "layers_least", (json_int_t)p->least_layers, "layers_most",
                  (json_int_t)p->most_layers, "idle_ranks", p->idle_ranks);
    json_t *rates = json_pack("{s:s, s:b, s:f, s:f, s:f, s:f, s:f, s:s}", "from", p->rates.from,
                              "measured", p->rates.measured, "bf16", p->rates.bf16, "fp32",
                              p->rates.f32, "fp64", p->rates.f64, "network", p->rates.network,
                              "latency_s", p->rates.latency, "network_from", p->rates.network_from);
    return json_pack("{s:I, s:I, s:o, s:o, s:I, s:I, s:I, s:I, s:I, s:I, s:o, s:f, s:I, s:s, s:b}",
                     "parameters", (json_int_t)p->params, "layers", (json_int_t)p->layers, "layout",
                     where, "rates", rates, "read_bytes", (json_int_t)p->read_bytes, "read_files",
                     (json_int_t)p->read_files, "archive_bytes", (json_int_t)p->archive_bytes,
                     "run_bytes", (json_int_t)p->run_bytes, "tars", (json_int_t)p->tars,
                     "other_files", (json_int_t)p->other_files, "phases", phases, "seconds",
                     plan_seconds(p), "bytes", (json_int_t)memory_plan_total(&most->memory),
                     "largest_phase", most->name, "fits", plan_fits(p));
}
