/* Curves are taken by layer, so runs of models of other depths can stand in one chart too. */
#include "jobs/reporting/report_beside.h"

#include "base/size.h"
#include "jobs/reporting/chart_series.h"
#include "jobs/reporting/report_figure.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { RUNS = BESIDE_MOST + 1 };

typedef struct runs {
    int n;
    const json_t *run[RUNS];
    const char *name[RUNS];
} runs;

/* The last part of the path of its folder: names of archives may be equal. */
static const char *name_of(const json_t *report) {
    const char *out = json_string_value(json_object_get(report, "out")), *at;
    if (!out) return "";
    while ((at = strchr(out, '/')) && at[1]) out = at + 1;
    return out;
}

static runs runs_of(const json_t *report) {
    const json_t *beside = json_object_get(report, "beside");
    runs r = {.n = 1, .run = {report}, .name = {name_of(report)}};
    for (size_t i = 0; i < json_array_size(beside) && r.n < RUNS; i++) {
        r.run[r.n] = json_array_get(beside, i);
        r.name[r.n] = name_of(r.run[r.n]);
        r.n++;
    }
    return r;
}

/* ---- the table ---- */

static double mean_of(const json_t *list, const char *key) {
    double sum = 0;
    size_t i;
    json_t *v;
    json_array_foreach((json_t *)(uintptr_t)list, i, v) sum += json_real_of(v, key);
    const size_t n = json_array_size(list);
    return n ? sum / (double)n : NAN;
}

void report_cell(FILE *f, const char *form, double v) {
    fputs("<td class=\"r\">", f);
    if (isfinite(v))
        fprintf(f, form, v);
    else
        fputs("-", f);
    fputs("</td>", f);
}

void report_figure_cell(FILE *f, const json_t *o, const char *key, double times, int digits) {
    fputs("<td class=\"r\">", f);
    report_figure(f, o, key, times, digits);
    fputs("</td>", f);
}

/* Of the evaluations that were given, the one whose model is this folder. */
static const json_t *eval_of(const json_t *evals, const json_t *run) {
    size_t i;
    json_t *v;
    const char *out = json_string_value(json_object_get(run, "out"));
    json_array_foreach((json_t *)(uintptr_t)evals, i, v) {
        const char *model = json_string_value(json_object_get(v, "model"));
        if (model && out && !strcmp(model, out)) return v;
    }
    return NULL;
}

/* The average of tasks, or the only one. */
static const json_t *tasks_of(const json_t *eval) {
    const json_t *average = json_object_get(eval, "tasks_average");
    return json_is_object(average) ? average : json_array_get(json_object_get(eval, "tasks"), 0);
}

static void table_row(FILE *f, const json_t *run, const json_t *evals) {
    const json_t *s = json_object_get(run, "summary"), *eval = eval_of(evals, run),
                 *text = json_array_get(json_object_get(eval, "perplexity"), 0),
                 *against = json_object_get(text, "against");
    fputs("<tr><td>", f);
    svg_text(f, name_of(run));
    fputs("</td>", f);
    report_cell(f, "%.1f", json_real_of(s, "seconds"));
    report_cell(f, "%.4f", json_real_of(s, "node_hours"));
    report_cell(f, "%.2f", json_real_of(s, "tar_bytes") / 1048576);
    report_cell(f, "%.2f", 100 * mean_of(json_object_get(run, "weights"), "relative_error"));
    report_figure_cell(f, text, "ppl", 1, 3);
    report_figure_cell(f, against, "kl_mean", 1, 4);
    report_figure_cell(f, against, "same_top", 100, 2);
    report_figure_cell(f, tasks_of(eval), "acc", 100, 2);
    fputs("</tr>\n", f);
}

static void table(FILE *f, const json_t *report) {
    const json_t *evals = json_object_get(report, "accuracy"),
                 *beside = json_object_get(report, "beside");
    size_t i;
    json_t *run;
    fputs(
        "<div class=\"scroll\"><table>\n<tr><th>run</th><th class=\"r\">seconds</th><th "
        "class=\"r\">node "
        "hours</th><th class=\"r\">MiB</th><th class=\"r\">error of weights, %</th><th class=\"r\">"
        "perplexity</th><th class=\"r\">KL, nats</th><th class=\"r\">same top token, %</th><th "
        "class=\"r\">tasks, %</th></tr>\n",
        f);
    table_row(f, report, evals);
    json_array_foreach(beside, i, run) table_row(f, run, evals);
    fputs("</table></div>\n", f);
}

/* ---- curves ---- */

static void draw(FILE *f, const runs *r, series *s, const char *title, svg_axis x, svg_axis y) {
    chart_figure(f, title, x, y, r->n, s, NULL);
    for (int i = 0; i < r->n; i++) series_clear(&s[i]);
}

static void weights(FILE *f, const runs *r) {
    series s[RUNS];
    svg_axis y = svg_axis_from_zero("% of the norm");
    for (int i = 0; i < r->n; i++)
        s[i] = series_take(json_object_get(r->run[i], "weights"), "item", "relative_error", 100);
    draw(f, r, s, "Error of the weights", svg_axis_counted("item"), y);
}

/* Of the first phase: held-out rows, which all steps of a run are judged by. */
static void losses(FILE *f, const runs *r) {
    series s[RUNS];
    for (int i = 0; i < r->n; i++)
        s[i] = series_take(
            json_object_get(json_array_get(json_object_get(r->run[i], "learning"), 0), "held"),
            "step", "held", 1);
    draw(f, r, s, "Loss of held-out rows, first phase", svg_axis_counted("step"),
         svg_axis_linear("loss"));
}

static void gptq(FILE *f, const runs *r, size_t k, const char *title) {
    series s[RUNS];
    svg_axis y = svg_axis_from_zero("% of the norm of the output");
    for (int i = 0; i < r->n; i++)
        s[i] = series_over_layers(json_object_get(r->run[i], "gptq"), "tensors", k, NULL, "after",
                                  100);
    draw(f, r, s, title, svg_axis_counted("layer"), y);
}

static void sites(FILE *f, const runs *r, size_t k, const char *key, const char *title,
                  svg_axis y) {
    series s[RUNS];
    for (int i = 0; i < r->n; i++)
        s[i] = series_over_layers(json_object_get(r->run[i], "sites"), "sites", k, "after", key, 1);
    draw(f, r, s, title, svg_axis_counted("layer"), y);
}

/* One legend for all charts: names of runs are longer than a chart has room for. */
static void keys(FILE *f, const runs *r) {
    fputs("<p class=\"keys\">", f);
    for (int i = 0; i < r->n; i++) {
        fputs("<span>", f);
        svg_key(f, i, r->name[i]);
        fputs("</span>\n", f);
    }
    fputs("</p>\n", f);
}

void report_beside(FILE *f, const json_t *report) {
    static const char *const inputs[] = {"q, k, v", "o", "gate and up", "down"};
    char title[64];
    if (!json_array_size(json_object_get(report, "beside"))) return;
    const runs r = runs_of(report);
    fputs(
        "<p class=\"dim\">Figures are those of the first text that was "
        "given with --eval, &plusmn; one standard error; tasks: the average. In the charts inputs "
        "are as the quantizer sees them, where a run has looked at them; errors are those that "
        "were kept.",
        f);
    if (json_array_size(json_object_get(report, "beside")) > BESIDE_MOST)
        fprintf(f, " Curves are of the first %d runs.", RUNS);
    fputs("</p>\n", f);
    table(f, report);
    keys(f, &r);
    fputs("<div class=\"grid\">\n", f);
    losses(f, &r);
    weights(f, &r);
    gptq(f, &r, 3, "GPTQ: error of o");
    gptq(f, &r, 6, "GPTQ: error of down");
    for (size_t k = 0; k < 4; k++) {
        snprintf(title, sizeof title, "Largest entry, input of %s", inputs[k]);
        sites(f, &r, k, "max_over_rms", title, svg_axis_log("largest |x| / rms"));
        snprintf(title, sizeof title, "Kurtosis, input of %s", inputs[k]);
        sites(f, &r, k, "kurtosis", title, svg_axis_log(KURTOSIS));
        snprintf(title, sizeof title, "Space used, input of %s", inputs[k]);
        sites(f, &r, k, "log_qsur", title, svg_axis_linear("log QSUR / d"));
    }
    fputs("</div>\n", f);
}
