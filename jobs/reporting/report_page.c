/* Sections in the order in which a run goes; one that has nothing says why. */
#include "jobs/reporting/report_page.h"

#include "base/file.h"
#include "base/size.h"
#include "jobs/reporting/report_beside.h"
#include "jobs/reporting/report_charts.h"
#include "jobs/reporting/report_data.h"
#include "jobs/reporting/svg.h"
#include "version.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Colours that the colour-blind tell apart (Okabe and Ito), lighter on dark ground. */
static const char STYLE[] =
    ":root{color-scheme:light "
    "dark;--bg:#fff;--fg:#1b1b1b;--dim:#5f6368;--grid:#dcdfe3;--s0:#c84a00;"
    "--s1:#0060a8;--s2:#007a5a;--s3:#a8488a;--s4:#7d6400;--s5:#2286bd;--s6:#6b6f76;--s7:#1b1b1b;"
    "--box:#f4f5f7}\n"
    "@media "
    "(prefers-color-scheme:dark){:root{--bg:#16181c;--fg:#e9eaec;--dim:#a6abb2;--grid:#393d44;"
    "--s0:#ff9655;--s1:#5fb8f2;--s2:#3fd0a0;--s3:#e6a0d0;--s4:#f0e442;--s5:#a9dcff;--s6:#a6abb2;"
    "--s7:#e9eaec;--box:#1f2228}}\n"
    "@media print{:root{--bg:#fff;--fg:#000;--dim:#444;--grid:#ccc;--s0:#c84a00;--s1:#0060a8;"
    "--s2:#007a5a;--s3:#a8488a;--s4:#7d6400;--s5:#2286bd;--s6:#6b6f76;--s7:#000;--box:#fff}figure,"
    "tr{break-inside:avoid}}\n"
    "body{background:var(--bg);color:var(--fg);font:15px/1.45 system-ui,sans-serif;margin:0 auto;"
    "max-width:1560px;padding:12px 20px}\n"
    "h1{font-size:22px}h2{font-size:18px;border-bottom:1px solid var(--grid);margin-top:28px}"
    "h3{font-size:15px;margin:14px 0 4px}\n"
    "p{max-width:80ch}.dim{color:var(--dim)}code,pre{font:13px ui-monospace,monospace;background:"
    "var(--box)}pre{padding:8px;white-space:pre-wrap;overflow-wrap:anywhere}\n"
    ".grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(300px,1fr));gap:8px}"
    ".wide{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,360px),1fr));gap:"
    "8px}"
    "\n.scroll{overflow-x:auto}table{border-collapse:collapse;font-size:14px}td,th{padding:2px "
    "12px 2px "
    "0;text-align:left;vertical-align:top;border-bottom:1px solid var(--grid)}td.r,th.r{text-align:"
    "right}td.r{white-space:nowrap}\nsvg{width:100%;height:auto;display:block}svg "
    "text{fill:var(--fg);font:11px system-ui,"
    "sans-serif}svg .t{font-weight:600}svg .n{fill:var(--dim);font-size:9.5px}.e{text-anchor:end}"
    ".m{text-anchor:middle}\n.g{stroke:var(--grid);stroke-width:.6;fill:none}.f{stroke:var(--dim);"
    "fill:none}.l{fill:none;stroke-width:1.5}\n"
    ".l.s0{stroke:var(--s0);stroke-dasharray:5 3}.l.s1{stroke:var(--s1)}.l.s2{stroke:var(--s2);"
    "stroke-dasharray:2 2}.l.s3{stroke:var(--s3);stroke-dasharray:8 3 2 3}"
    ".l.s4{stroke:var(--s4);stroke-dasharray:10 4}.l.s5{stroke:var(--s5);stroke-dasharray:3 1}"
    ".l.s6{stroke:var(--s6);stroke-dasharray:1 2}"
    ".l.s7{stroke:var(--s7);stroke-dasharray:7 2 1 2 1 2}\n"
    ".p.s0{fill:var(--bg);stroke:var(--s0)}.p.s1{fill:var(--s1)}.p.s2{fill:var(--s2)}.p.s3{fill:"
    "var(--bg);stroke:var(--s3)}.b.s0{fill:var(--s0)}.b.s1{fill:var(--s1)}.b.s2{fill:var(--s2)}"
    ".b.s3{fill:var(--s3)}.h{fill:var(--s1)}.p.s4{fill:var(--s4)}.p.s5{fill:var(--bg);stroke:var("
    "--s5)}"
    ".p.s6{fill:var(--s6)}.p.s7{fill:var(--bg);stroke:var(--s7)}\n"
    "svg.k{display:inline-block;width:34px;height:10px;margin:0 6px 0 0;vertical-align:middle}"
    ".keys span{margin-right:18px;white-space:nowrap}.keys{max-width:none}\n"
    "@media print{.grid,.wide{grid-template-columns:repeat(3,1fr)}.scroll{overflow:visible}"
    "table{font-size:10px}td,th{padding-right:6px}h2,h3{break-after:avoid}}\n";

/* ---- small pieces ---- */

static void row(FILE *f, const char *name, const char *value) {
    if (!value[0]) return;
    fputs("<tr><th>", f);
    svg_text(f, name);
    fputs("</th><td>", f);
    svg_text(f, value);
    fputs("</td></tr>\n", f);
}

static void number_row(FILE *f, const char *name, double v, const char *form) {
    char text[64];
    if (!isfinite(v)) return;
    snprintf(text, sizeof text, form, v);
    row(f, name, text);
}

static void bytes_row(FILE *f, const char *name, double v) {
    char text[32];
    if (isfinite(v)) row(f, name, size_text((uint64_t)v, text));
}

static void section(FILE *f, const char *name, const char *what) {
    fputs("<h2>", f);
    svg_text(f, name);
    fprintf(f, "</h2>\n<p class=\"dim\">%s</p>\n", what);
}

/* A line of a shell, on the archive. */
static void command(FILE *f, const char *what, const json_t *report, const char *rest) {
    fprintf(f, "spinshard %s ", what);
    svg_text(f, json_word_of(report, "out"));
    fprintf(f, "%s\n", rest);
}

/* ---- sections ---- */

static void summary(FILE *f, const json_t *report) {
    const json_t *s = json_object_get(report, "summary");
    char *recipe = json_dumps(json_object_get(s, "recipe"), JSON_INDENT(1));
    fputs("<div class=\"scroll\"><table>\n", f);
    row(f, "state", json_word_of(report, "state"));
    row(f, "archive", json_word_of(report, "out"));
    row(f, "name", json_word_of(s, "name"));
    row(f, "model", json_word_of(s, "model"));
    row(f, "architecture", json_word_of(s, "architecture"));
    number_row(f, "layers", json_real_of(s, "layers"), "%.0f");
    number_row(f, "hidden", json_real_of(s, "hidden"), "%.0f");
    number_row(f, "parameters", json_real_of(s, "parameters") / 1e6, "%.2f million");
    bytes_row(f, "source", json_real_of(s, "source_bytes"));
    bytes_row(f, "tensors of the archive", json_real_of(s, "archive_bytes"));
    bytes_row(f, "tar files", json_real_of(s, "tar_bytes"));
    number_row(f, "time", json_real_of(s, "seconds"), "%.1f s");
    number_row(f, "node hours", json_real_of(s, "node_hours"), "%.4f");
    number_row(f, "nodes", json_real_of(s, "nodes"), "%.0f");
    number_row(f, "ranks", json_real_of(s, "ranks"), "%.0f");
    number_row(f, "threads of a rank", json_real_of(s, "threads"), "%.0f");
    number_row(f, "restarts", json_real_of(s, "restarts"), "%.0f");
    row(f, "CPU", json_word_of(s, "cpu"));
    row(f, "products", json_word_of(s, "kernels"));
    fputs("</table></div>\n", f);
    if (json_word_of(s, "name")[0]) {
        fputs("<h3>To load it</h3>\n<pre>mkdir hf &amp;&amp; for part in ", f);
        svg_text(f, json_word_of(report, "out"));
        fputs("/*.tar; do tar -C hf -xf $part; done\ncat hf/", f);
        svg_text(f, json_word_of(s, "name"));
        fputs("/README.md   # how each runtime loads it, with the options that it needs\n", f);
        command(f, "inspect", report, "   # which runtimes run it, and whether as it was meant");
        command(f, "eval --model", report,
                " --text FILE   # perplexity, from the tars as they are");
        fputs("</pre>\n", f);
    }
    if (recipe && json_object_get(s, "recipe")) {
        fputs("<details><summary>the recipe, with its defaults</summary><pre>", f);
        svg_text(f, recipe);
        fputs("</pre></details>\n", f);
    }
    free(recipe);
}

static void learning(FILE *f, const json_t *list) {
    size_t i;
    json_t *phase;
    section(
        f, "Learning",
        "Loss of each step and of the held-out rows, angle of the step, and how far the rotation "
        "is from orthogonal, by phase of the recipe.");
    if (!json_array_size(list)) fputs("<p>Nothing was learned, or nothing yet.</p>\n", f);
    json_array_foreach(list, i, phase) {
        fputs("<h3>", f);
        svg_text(f, json_word_of(phase, "phase"));
        fputs("</h3>\n<div class=\"wide\">\n", f);
        chart_learning(f, phase);
        fputs("</div>\n", f);
    }
}

static void noise(FILE *f, const json_t *layers) {
    if (!json_array_size(layers)) return;
    fputs("<h3>What quantizing costs</h3>\n<p class=\"dim\">By second order of the loss, of the "
          "range that holds "
          "everything and of the range that was chosen.</p>\n<div class=\"grid\">\n",
          f);
    chart_noise(f, layers);
    fputs("</div>\n", f);
}

static void sites(FILE *f, const json_t *layers) {
    section(f, "Before and after",
            "What goes into the linears of each layer, from a sample of calibration tokens: as the "
            "quantizer sees it (after), and the same turned back (before). A range is spent well "
            "where the largest entry is few times the root mean square; normal numbers have a "
            "kurtosis of 3; QSUR is the share of the quantizer's cube that the ellipsoid of the "
            "data fills, told as log QSUR / d. Pictures of one layer: pale is a quarter of the rms "
            "and less, "
            "the deepest 32 times the rms.");
    if (!json_array_size(layers)) {
        fputs(
            "<p>This run has looked at no inputs, or at none yet. They are sampled where a "
            "calibration text passes through the model: in GPTQ layer by layer, and in the capture "
            "of phases <code>range</code>, start points, scales, R3 and clips that are made from "
            "activations, once these are known. A recipe with neither reads no text, or learns end "
            "to end alone.</p>\n",
            f);
        return;
    }
    chart_sites(f, layers);
}

static void weights(FILE *f, const json_t *items) {
    section(f, "Weights",
            "Error of the quantized weights over the norm of the fused ones, by item: 0 is the "
            "embedding, then the layers, then the head. Below, the linears as the checkpoint has "
            "them (before) and as they are quantized, with scales and rotations folded in "
            "(after): normal entries have a kurtosis of 3; the space used is QSUR of pieces of 16 "
            "inputs, told as log QSUR / d; errors by rounding to nearest are of both by one rule, "
            "whatever rounded the archive.");
    if (!json_array_size(items)) fputs("<p>No weights are quantized yet.</p>\n", f);
    fputs("<div class=\"wide\">\n", f);
    chart_weights(f, items);
    fputs("</div>\n<div class=\"grid\">\n", f);
    chart_spreads(f, items);
    fputs("</div>\n", f);
}

static void gptq(FILE *f, const json_t *layers) {
    size_t i, k;
    json_t *layer, *t;
    double raises = 0, rows = 0, all = 0;
    section(f, "GPTQ",
            "Error of the outputs of each linear over their norm: by rounding to nearest, and as "
            "GPTQ rounded.");
    if (!json_array_size(layers)) {
        fputs("<p>This run does not use GPTQ, or has no layer yet.</p>\n", f);
        return;
    }
    json_array_foreach(layers, i, layer)
        json_array_foreach(json_object_get(layer, "tensors"), k, t) {
        raises += json_real_of(t, "raises");
        rows += json_real_of(t, "fell_back");
        all += json_real_of(t, "rows");
    }
    fprintf(f,
            "<p>Rows that fell back to rounding to nearest: %.0f of %.0f. Times that damping was "
            "raised: %.0f.</p>\n<div class=\"grid\">\n",
            rows, all, raises);
    chart_gptq(f, layers);
    chart_gptq_rows(f, layers);
    chart_gptq_time(f, layers);
    fputs("</div>\n", f);
}

static void accuracy_text_head(FILE *f) {
    fputs("<tr><th>model</th><th>text</th><th class=\"r\">perplexity</th><th class=\"r\">of the "
          "source</th><th class=\"r\">KL, nats</th><th class=\"r\">99 %</th><th class=\"r\">largest"
          "</th><th class=\"r\">same top token, %</th></tr>\n",
          f);
}

static void accuracy_text(FILE *f, const json_t *eval) {
    size_t i;
    json_t *x;
    json_array_foreach(json_object_get(eval, "perplexity"), i, x) {
        const json_t *a = json_object_get(x, "against");
        fputs("<tr><td>", f);
        svg_text(f, json_word_of(eval, "model"));
        fputs("</td><td>", f);
        svg_text(f, json_word_of(x, "text"));
        fputs("</td>", f);
        report_figure_cell(f, x, "ppl", 1, 3);
        report_figure_cell(f, a, "ppl", 1, 3);
        report_figure_cell(f, a, "kl_mean", 1, 4);
        report_figure_cell(f, a, "kl_99", 1, 3);
        report_cell(f, "%.2f", json_real_of(a, "kl_max"));
        report_figure_cell(f, a, "same_top", 100, 2);
        fputs("</tr>\n", f);
    }
}

static void task_row(FILE *f, const json_t *eval, const char *name, const json_t *x) {
    fputs("<tr><td>", f);
    svg_text(f, json_word_of(eval, "model"));
    fputs("</td><td>", f);
    svg_text(f, name);
    fputs("</td>", f);
    report_cell(f, "%.0f", json_real_of(x, "n"));
    report_figure_cell(f, x, "acc", 100, 2);
    report_figure_cell(f, x, "acc_norm", 100, 2);
    fputs("</tr>\n", f);
}

static void accuracy_tasks_head(FILE *f) {
    fputs(
        "<tr><th>model</th><th>task</th><th class=\"r\">items</th><th class=\"r\">accuracy, %</th>"
        "<th class=\"r\">by length, %</th></tr>\n",
        f);
}

static void accuracy_tasks(FILE *f, const json_t *eval) {
    const json_t *average = json_object_get(eval, "tasks_average");
    size_t i;
    json_t *x;
    json_array_foreach(json_object_get(eval, "tasks"), i, x)
        task_row(f, eval, json_word_of(x, "task"), x);
    if (json_is_object(average)) task_row(f, eval, "average of tasks", average);
}

/* A table of what some evaluation has in its list `key`; nothing where none has. */
static void accuracy_table(FILE *f, const json_t *evals, const char *key, void (*head)(FILE *f),
                           void (*rows)(FILE *f, const json_t *eval)) {
    size_t i, any = 0;
    json_t *eval;
    json_array_foreach((json_t *)(uintptr_t)evals, i, eval) any +=
        json_array_size(json_object_get(eval, key));
    if (!any) return;
    fputs("<div class=\"scroll\"><table>\n", f);
    head(f);
    json_array_foreach((json_t *)(uintptr_t)evals, i, eval) rows(f, eval);
    fputs("</table></div>\n", f);
}

static void accuracy(FILE *f, const json_t *evals) {
    section(f, "Accuracy",
            "What <code>spinshard eval --json</code> printed, given with <code>report --eval FILE"
            "</code>; &plusmn; is one standard error.");
    if (!json_array_size(evals)) fputs("<p>No evaluation was given.</p>\n", f);
    accuracy_table(f, evals, "perplexity", accuracy_text_head, accuracy_text);
    accuracy_table(f, evals, "tasks", accuracy_tasks_head, accuracy_tasks);
}

static void starts(FILE *f, const json_t *spread) {
    if (!spread) return;
    section(f, "Random starts",
            "Each point is a run of another seed: random starts of the rotations and, where it was "
            "given, a learned one; then what each rotation adds.");
    fputs("<div class=\"wide\">\n", f);
    chart_starts(f, spread);
    fputs("</div>\n", f);
}

static void bytes_cell(FILE *f, double v) {
    char text[32];
    fprintf(f, "<td class=\"r\">%s</td>", isfinite(v) ? size_text((uint64_t)v, text) : "-");
}

static void phase_row(FILE *f, const json_t *p) {
    fputs("<tr><td>", f);
    svg_text(f, json_word_of(p, "phase"));
    fprintf(f, "</td><td class=\"r\">%.0f</td>", json_real_of(p, "slice"));
    report_cell(f, "%.2f", json_real_of(p, "seconds"));
    report_cell(f, "%.2f", json_real_of(p, "planned_seconds"));
    static const char *const bytes[] = {"peak_rss_bytes", "planned_bytes",
                                        "sent_bytes",     "planned_sent_bytes",
                                        "network_bytes",  "planned_network_bytes"};
    for (size_t k = 0; k < sizeof bytes / sizeof *bytes; k++)
        bytes_cell(f, json_real_of(p, bytes[k]));
    report_cell(f, "%.0f", 100 * json_real_of(p, "busy"));
    fprintf(f, "<td>%s</td></tr>\n",
            json_is_true(json_object_get(p, "done")) ? "" : "did not end in this start");
}

static void run(FILE *f, const json_t *r) {
    static const char *const heads[] = {"seconds", "memory", "sent", "between nodes"};
    size_t i;
    json_t *p;
    const json_t *phases = json_object_get(r, "phases"), *slices = json_object_get(r, "slices");
    section(f, "Run",
            "Phases over time, each start in a colour of its own, and beside their plan. Memory is "
            "of the largest rank; bytes sent are of all ranks together, and those of them that "
            "went from node to node. Busy: time of the CPU over that of all threads.");
    fputs("<div class=\"wide\">\n", f);
    chart_phases(f, phases);
    chart_memory(f, phases);
    fputs("</div>\n<div class=\"scroll\"><table>\n<tr><th>phase</th><th class=\"r\">start</th>", f);
    for (size_t k = 0; k < sizeof heads / sizeof *heads; k++)
        fprintf(f, "<th class=\"r\">%s</th><th class=\"r\">planned</th>", heads[k]);
    fputs("<th class=\"r\">busy, %</th><th></th></tr>\n", f);
    json_array_foreach(phases, i, p) phase_row(f, p);
    fputs("</table>\n<h3>Starts</h3>\n<table><tr><th class=\"r\">start</th><th>at</th><th "
          "class=\"r\">"
          "seconds</th><th class=\"r\">nodes</th><th class=\"r\">exit code</th></tr>\n",
          f);
    json_array_foreach(slices, i, p) {
        fprintf(f, "<tr><td class=\"r\">%.0f</td><td>", json_real_of(p, "slice"));
        svg_text(f, json_word_of(p, "wall"));
        fputs("</td>", f);
        report_cell(f, "%.1f", json_real_of(p, "seconds"));
        report_cell(f, "%.0f", json_real_of(p, "nodes"));
        report_cell(f, "%.0f", json_real_of(p, "exit"));
        fputs("</tr>\n", f);
    }
    fputs("</table></div>\n", f);
}

/* ---- the page ---- */

void report_page(const json_t *report, char **text, size_t *len) {
    FILE *f = open_memstream(text, len);
    if (!f) abort();
    fputs(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
        "content=\"width=device-width,initial-scale=1\">\n<meta "
        "http-equiv=\"Content-Security-Policy\" "
        "content=\"default-src 'none'; style-src 'unsafe-inline'\">\n<title>",
        f);
    svg_text(f, json_word_of(report, "out"));
    fprintf(f, "</title>\n<style>\n%s</style></head>\n<body>\n<h1>", STYLE);
    const char *name = json_word_of(json_object_get(report, "summary"), "name");
    const size_t others = json_array_size(json_object_get(report, "beside"));
    if (others) {
        fprintf(f, "%zu runs beside each other</h1>\n", others + 1);
        report_beside(f, report);
        fputs("<h1>The first of them: ", f);
    }
    svg_text(f, name[0] ? name : json_word_of(report, "out"));
    fputs("</h1>\n", f);
    summary(f, report);
    learning(f, json_object_get(report, "learning"));
    sites(f, json_object_get(report, "sites"));
    noise(f, json_object_get(report, "noise"));
    weights(f, json_object_get(report, "weights"));
    gptq(f, json_object_get(report, "gptq"));
    accuracy(f, json_object_get(report, "accuracy"));
    starts(f, json_object_get(report, "spread"));
    run(f, json_object_get(report, "run"));
    fprintf(f,
            "<p class=\"dim\">Made by spinshard %s. Its numbers: <code>spinshard report --json"
            "</code>.</p>\n</body></html>\n",
            SPINSHARD_VERSION);
    fclose(f);
}

err report_write(const char *out_dir, const char *path) {
    json_t *report;
    char *text = NULL;
    size_t len = 0;
    err e = report_collect(out_dir, NULL, 0, &report);
    if (e.code) return e;
    report_page(report, &text, &len);
    e = file_publish(path, text, len);
    free(text);
    json_decref(report);
    return e;
}
