/* Each chart takes its series out of the JSON, lays the axes around them, and draws. */
#include "jobs/reporting/report_charts.h"

#include "base/size.h"
#include "jobs/reporting/chart_series.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_HISTOGRAMS = 6 };

/* ---- figures of lanes ---- */

static void lanes_begin(svg_chart *c, int lanes) {
    c->y.bare = true;
    c->y.lo = 0;
    c->y.hi = lanes;
    fputs("<figure style=\"margin:0\">", c->f);
    svg_begin(c);
}

static void figure_end(svg_chart *c) {
    svg_end(c);
    fputs("</figure>\n", c->f);
}

/* ---- learning ---- */

static bool any_positive(const series *s) {
    for (int64_t i = 0; i < s->n; i++)
        if (s->y[i] > 0) return true;
    return false;
}

static void chart_losses(FILE *f, const json_t *phase) {
    const json_t *steps = json_object_get(phase, "steps"), *held = json_object_get(phase, "held");
    const char *const names[] = {"held-out rows", "rows of the step"};
    series s[] = {series_take(held, "step", "held", 1), series_take(steps, "step", "loss", 1)};
    chart_figure(f, "Loss (R1, or of the whole objective)", svg_axis_counted("step"),
                 svg_axis_linear("loss"), 2, s, names);
    series r2[] = {series_take(held, "step", "held_r2", 1),
                   series_take(steps, "step", "loss_r2", 1)};
    if (any_positive(&r2[1]))
        chart_figure(f, "Loss of R2", svg_axis_counted("step"), svg_axis_linear("loss"), 2, r2,
                     names);
    for (int i = 0; i < 2; i++) {
        series_clear(&s[i]);
        series_clear(&r2[i]);
    }
}

void chart_learning(FILE *f, const json_t *phase) {
    const json_t *steps = json_object_get(phase, "steps");
    const char *const angles[] = {"R1", "R2"}, *const one[] = {NULL};
    series angle[] = {series_take(steps, "step", "angle_r1", 1),
                      series_take(steps, "step", "angle_r2", 1)},
           orth = series_take(steps, "step", "orth", 1);
    chart_losses(f, phase);
    svg_axis y = svg_axis_from_zero("radians");
    chart_figure(f, "Angle of the step", svg_axis_counted("step"), y,
                 any_positive(&angle[1]) ? 2 : 1, angle, angles);
    chart_figure(f, "Distance from orthogonal", svg_axis_counted("step"),
                 svg_axis_log("largest |R\u1d40R \u2212 I|, probed"), 1, &orth, one);
    series share = series_take(steps, "step", "peak_share", 100);
    y.label = "% of the measured peak";
    chart_figure(f, "Share of the peak of products", svg_axis_counted("step"), y, 1, &share, one);
    series_clear(&share);
    series_clear(&angle[0]);
    series_clear(&angle[1]);
    series_clear(&orth);
}

/* ---- sites ---- */

static const char *const sides[] = {"before", "after"};

/* Lines over layers of the two sides of something; both are cleared. */
static void two_over_layers(FILE *f, const char *title, svg_axis y, series a, series b,
                            const char *const *names) {
    series s[] = {a, b};
    chart_figure(f, title, svg_axis_counted("layer"), y, 2, s, names);
    series_clear(&s[0]);
    series_clear(&s[1]);
}

static void chart_site(FILE *f, const json_t *layers, size_t k, const char *key, const char *title,
                       svg_axis y, double times) {
    two_over_layers(f, title, y, series_over_layers(layers, "sites", k, sides[0], key, times),
                    series_over_layers(layers, "sites", k, sides[1], key, times), sides);
}

/* The share of the entries in each bin for an octave, drawn at the middle of the bin. */
static series histogram(const json_t *side) {
    const json_t *edges = json_object_get(side, "edges"), *shares = json_object_get(side, "shares");
    series s = series_of((int64_t)json_array_size(edges));
    for (int64_t i = 0; i < s.n; i++) {
        const double from = json_number_value(json_array_get(edges, (size_t)i)),
                     to = i + 1 < s.n ? json_number_value(json_array_get(edges, (size_t)i + 1))
                                      : from * M_SQRT2; /* near enough for the last */
        s.x[i] = sqrt(from * to);
        s.y[i] = json_number_value(json_array_get(shares, (size_t)i)) / log2(to / from);
    }
    return s;
}

static void chart_histograms(FILE *f, const json_t *layers, size_t k) {
    const int64_t n = (int64_t)json_array_size(layers), shown = size_min(n, MOST_HISTOGRAMS);
    for (int64_t i = 0; i < shown; i++) {
        const json_t *layer =
            json_array_get(layers, (size_t)(shown > 1 ? i * (n - 1) / (shown - 1) : 0));
        const json_t *site = json_array_get(json_object_get(layer, "sites"), k);
        series s[] = {histogram(json_object_get(site, sides[0])),
                      histogram(json_object_get(site, sides[1]))};
        char title[64];
        snprintf(title, sizeof title, "Entries, layer %.0f", json_real_of(layer, "layer"));
        chart_figure(f, title, svg_axis_log("|x| / rms"),
                     svg_axis_log("share of entries, an octave"), 2, s, sides);
        series_clear(&s[0]);
        series_clear(&s[1]);
    }
}

/* Depths of a map: from a quarter of the rms to 32 times it, a step of half an octave each. */
enum { DEPTHS = 15, FROM_OCTAVE = -2 };

static void chart_map(FILE *f, const json_t *site, const char *side, double layer) {
    const json_t *map = json_object_get(site, "map");
    const char *hex = json_string_value(json_object_get(map, side));
    const int rows = (int)json_real_of(map, "tokens"), cols = (int)json_real_of(map, "bands");
    if (!hex || strlen(hex) != 2 * (size_t)rows * (size_t)cols) return;
    uint8_t *level = calloc((size_t)(rows * cols) + 1, 1);
    char title[96], channels[64], tokens[32];
    if (!level) abort();
    for (int i = 0; i < rows * cols; i++) {
        const char pair[] = {hex[2 * i], hex[2 * i + 1], 0};
        const double octaves = ((double)strtol(pair, NULL, 16) - json_real_of(map, "one")) / 16;
        level[i] = (uint8_t)fmin(fmax(2 * (octaves - FROM_OCTAVE), 0), DEPTHS - 1);
    }
    snprintf(title, sizeof title, "Layer %.0f, %s: largest |x| / rms", layer, side);
    snprintf(channels, sizeof channels, "%.0f channels in %d bands", json_real_of(site, "width"),
             cols);
    snprintf(tokens, sizeof tokens, "%d tokens", rows);
    fputs("<figure style=\"margin:0\">", f);
    svg_map(f, title, rows, cols, level, DEPTHS, channels, tokens, "1/4", "32");
    fputs("</figure>\n", f);
    free(level);
}

static void chart_maps(FILE *f, const json_t *layers, size_t k) {
    size_t i;
    json_t *layer;
    json_array_foreach((json_t *)(uintptr_t)layers, i, layer) {
        const json_t *site = json_array_get(json_object_get(layer, "sites"), k);
        for (int side = 0; json_object_get(site, "map") && side < 2; side++)
            chart_map(f, site, sides[side], json_real_of(layer, "layer"));
    }
}

void chart_sites(FILE *f, const json_t *layers) {
    static const char *const titles[] = {"Input of q, k, v", "Input of o", "Input of gate and up",
                                         "Input of down"};
    for (size_t k = 0; k < 4; k++) {
        fprintf(f, "<h3>%s</h3>\n<div class=\"grid\">\n", titles[k]);
        chart_site(f, layers, k, "max_over_rms", "Largest entry", svg_axis_log("largest |x| / rms"),
                   1);
        chart_site(f, layers, k, "token_max_over_rms", "Largest entry of a token",
                   svg_axis_log("mean of largest |x| / rms"), 1);
        chart_site(f, layers, k, "kurtosis", "Kurtosis", svg_axis_log(KURTOSIS), 1);
        chart_site(f, layers, k, "outlier_tokens", "Outlier tokens (largest above 10 rms)",
                   svg_axis_from_zero("% of tokens"), 100);
        chart_site(f, layers, k, "log_qsur", "Space used", svg_axis_linear("log QSUR / d"), 1);
        chart_histograms(f, layers, k);
        chart_maps(f, layers, k);
        fputs("</div>\n", f);
    }
}

/* What the noise of each quantizer costs, in a thousandth of a nat: a token's loss is some nats. */
void chart_noise(FILE *f, const json_t *layers) {
    static const char *const names[] = {"full range", "with the clip"};
    const json_t *first = json_object_get(json_array_get(layers, 0), "noise");
    for (size_t k = 0; k < json_array_size(first); k++) {
        const char *site = json_string_value(json_object_get(json_array_get(first, k), "site"));
        char title[64];
        snprintf(title, sizeof title, "Cost of the quantizer: %s", site ? site : "");
        two_over_layers(f, title, svg_axis_log("nats a token / 1000"),
                        series_over_layers(layers, "noise", k, NULL, "nats_unclipped", 1000),
                        series_over_layers(layers, "noise", k, NULL, "nats", 1000), names);
    }
}

/* ---- weights ---- */

void chart_weights(FILE *f, const json_t *items) {
    const char *const one[] = {NULL};
    series s = series_take(items, "item", "relative_error", 100);
    svg_axis y = svg_axis_from_zero("% of the norm");
    chart_figure(f, "Error of the weights", svg_axis_counted("item"), y, 1, &s, one);
    series_clear(&s);
}

static const json_t *first_linears(const json_t *items) {
    size_t i;
    json_t *v;
    json_array_foreach((json_t *)(uintptr_t)items, i,
                       v) if (json_object_get(v, "linears")) return json_object_get(v, "linears");
    return NULL;
}

void chart_spreads(FILE *f, const json_t *items) {
    const struct {
        const char *title, *key;
        svg_axis y;
        double times;
    } of[] = {
        {"Kurtosis of %s", "kurtosis", svg_axis_log(KURTOSIS), 1},
        {"Largest entry of %s", "max_over_rms", svg_axis_log("largest |w| / rms"), 1},
        {"Space used by %s", "log_qsur", svg_axis_linear("log QSUR / d"), 1},
        {"%s rounded to nearest", "nearest_error", svg_axis_from_zero("error, % of the norm"), 100},
    };
    const json_t *first = first_linears(items);
    for (size_t k = 0; k < json_array_size(first); k++) {
        const char *name = json_word_of(json_array_get(first, k), "tensor");
        for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
            const json_t *now = json_object_get(json_array_get(first, k), sides[1]);
            char title[64];
            if (!json_is_number(json_object_get(now, of[i].key))) continue; /* not rounded */
            snprintf(title, sizeof title, of[i].title, name);
            two_over_layers(
                f, title, of[i].y,
                series_over_layers(items, "linears", k, sides[0], of[i].key, of[i].times),
                series_over_layers(items, "linears", k, sides[1], of[i].key, of[i].times), sides);
        }
    }
}

/* The part of a tensor's name that tells a linear, such as q_proj. */
static void linear_name(const char *tensor, char name[64]) {
    const char *tail = tensor ? strstr(tensor, "_proj") : NULL;
    while (tail && tail > tensor && tail[-1] != '.') tail--;
    snprintf(name, 64, "%.*s", tail ? (int)strcspn(tail, ".") : 0, tail ? tail : "");
}

void chart_gptq(FILE *f, const json_t *layers) {
    static const char *const names[] = {"nearest", "GPTQ"};
    const json_t *first = json_object_get(json_array_get(layers, 0), "tensors");
    for (size_t k = 0; k < json_array_size(first); k++) {
        const char *name = json_string_value(json_object_get(json_array_get(first, k), "tensor"));
        char title[64];
        linear_name(name, title);
        two_over_layers(f, title, svg_axis_from_zero("% of the norm of the output"),
                        series_over_layers(layers, "tensors", k, NULL, "before", 100),
                        series_over_layers(layers, "tensors", k, NULL, "after", 100), names);
    }
}

/* Share of the rows of a layer that fell back to rounding to nearest. */
static series fallen_back(const json_t *layers) {
    series s = series_of((int64_t)json_array_size(layers));
    for (int64_t i = 0; i < s.n; i++) {
        const json_t *layer = json_array_get(layers, (size_t)i);
        double rows = 0, all = 0;
        size_t k;
        json_t *t;
        json_array_foreach(json_object_get(layer, "tensors"), k, t) {
            rows += json_real_of(t, "fell_back");
            all += json_real_of(t, "rows");
        }
        s.x[i] = json_real_of(layer, "layer");
        s.y[i] = 100 * rows / all;
    }
    return s;
}

void chart_gptq_rows(FILE *f, const json_t *layers) {
    static const size_t first_of_input[] = {0, 3, 4, 6}; /* linears of an input have one Hessian */
    const char *const one[] = {NULL};
    const json_t *tensors = json_object_get(json_array_get(layers, 0), "tensors");
    series rows = fallen_back(layers), damping[4];
    char names[4][64];
    const char *legend[4];
    chart_figure(f, "Rows that fell back to nearest", svg_axis_counted("layer"),
                 svg_axis_from_zero("% of the rows"), 1, &rows, one);
    for (int i = 0; i < 4; i++) {
        const size_t k = first_of_input[i];
        damping[i] = series_over_layers(layers, "tensors", k, NULL, "damping", 1);
        linear_name(json_word_of(json_array_get(tensors, k), "tensor"), names[i]);
        names[i][strcspn(names[i], "_")] = '\0'; /* four names in one line */
        legend[i] = names[i];
    }
    chart_figure(f, "Damping", svg_axis_counted("layer"),
                 svg_axis_log("added to the Hessian's diagonal"), 4, damping, legend);
    for (int i = 0; i < 4; i++) series_clear(&damping[i]);
    series_clear(&rows);
}

void chart_gptq_time(FILE *f, const json_t *layers) {
    const char *const one[] = {NULL};
    series s = series_take(layers, "layer", "seconds", 1);
    svg_axis y = svg_axis_from_zero("seconds");
    chart_figure(f, "Time of a layer", svg_axis_counted("layer"), y, 1, &s, one);
    series_clear(&s);
}

/* ---- random starts ---- */

/* Runs of all kinds, or (draw) their points, a lane for each kind that has this number. */
static int strip_lanes(svg_chart *c, const json_t *spread, const char *key, double times,
                       int lanes) {
    static const char *const groups[] = {"random_starts", "rotations"};
    const char *name;
    json_t *kind;
    int lane = 0;
    for (int g = 0; g < 2; g++)
        json_object_foreach(json_object_get(spread, groups[g]), name, kind) {
            const json_t *runs = json_object_get(json_object_get(kind, "runs"), key);
            series s = series_of((int64_t)json_array_size(runs));
            for (int64_t i = 0; i < s.n; i++)
                s.x[i] = times * json_number_value(json_array_get(runs, (size_t)i));
            const int look = strncmp(name, "learned", 7) ? g : 2; /* to be found among the random */
            if (lanes && s.n) svg_points(c, look, s.n, s.x, lane, lanes, name);
            if (!lanes) svg_axis_take(&c->x, s.x, s.n);
            lane += s.n > 0;
            series_clear(&s);
        }
    return lane;
}

void chart_starts(FILE *f, const json_t *spread) {
    static const struct {
        const char *key, *title, *unit;
        double times;
    } kinds[] = {{"ppl", "Perplexity of each run", "perplexity", 1},
                 {"acc", "Zero-shot accuracy of each run", "% right, mean of the tasks", 100}};
    for (int k = 0; k < 2; k++) {
        svg_chart c = {.f = f,
                       .title = kinds[k].title,
                       .x = svg_axis_linear(kinds[k].unit),
                       .y = svg_axis_linear("")};
        const int lanes = strip_lanes(&c, spread, kinds[k].key, kinds[k].times, 0);
        if (!lanes) continue;
        c.x.lo -= 0.6 * (c.x.hi - c.x.lo); /* names of lanes stand there */
        lanes_begin(&c, lanes);
        strip_lanes(&c, spread, kinds[k].key, kinds[k].times, lanes);
        figure_end(&c);
    }
}

/* ---- the run ---- */

void chart_phases(FILE *f, const json_t *phases) {
    svg_chart c = {.f = f,
                   .title = "Phases",
                   .x = svg_axis_linear("seconds since the first start"),
                   .y = svg_axis_linear("phases in their order")};
    const int n = (int)json_array_size(phases);
    for (int i = 0; i < n; i++) {
        const json_t *p = json_array_get(phases, (size_t)i);
        const double ends[] = {json_real_of(p, "begin_s"),
                               json_real_of(p, "begin_s") + json_real_of(p, "seconds")};
        svg_axis_take(&c.x, ends, 2);
    }
    if (svg_axis_empty(&c.x)) return;
    lanes_begin(&c, n);
    for (int i = 0; i < n; i++) {
        const json_t *p = json_array_get(phases, (size_t)i);
        char text[96];
        const char *name = json_string_value(json_object_get(p, "phase"));
        snprintf(text, sizeof text, "%s: %.2f s, start %.0f", name ? name : "",
                 json_real_of(p, "seconds"), json_real_of(p, "slice"));
        svg_bar(&c, 1 + (int)json_real_of(p, "slice") % 3, json_real_of(p, "begin_s"),
                json_real_of(p, "begin_s") + json_real_of(p, "seconds"), i, n, name ? name : "",
                text);
    }
    figure_end(&c);
}

/* Memory of ranks, all or (draw) as points: a lane for each phase that several ranks ended. */
static int memory_lanes(svg_chart *c, const json_t *phases, int lanes) {
    size_t i;
    json_t *p;
    int lane = 0;
    json_array_foreach((json_t *)(uintptr_t)phases, i, p) {
        const json_t *ranks = json_object_get(p, "peak_rss_bytes_by_rank");
        series s = series_of((int64_t)json_array_size(ranks));
        for (int64_t r = 0; r < s.n; r++)
            s.x[r] = json_number_value(json_array_get(ranks, (size_t)r)) / 1048576;
        if (s.n > 1 && lanes) svg_points(c, 1, s.n, s.x, lane, lanes, json_word_of(p, "phase"));
        if (s.n > 1 && !lanes) svg_axis_take(&c->x, s.x, s.n);
        lane += s.n > 1;
        series_clear(&s);
    }
    return lane;
}

void chart_memory(FILE *f, const json_t *phases) {
    svg_chart c = {.f = f,
                   .title = "Largest memory of each rank",
                   .x = svg_axis_from_zero("MiB"),
                   .y = svg_axis_linear("phases in their order")};
    const int lanes = memory_lanes(&c, phases, 0);
    if (!lanes) return;
    lanes_begin(&c, lanes);
    memory_lanes(&c, phases, lanes);
    figure_end(&c);
}
