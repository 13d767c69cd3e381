/* Each chart takes its series out of the JSON, lays the axes around them, and draws. */
#include "jobs/reporting/report_charts.h"

#include "base/size.h"
#include "jobs/reporting/svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_POINTS = 300, MOST_HISTOGRAMS = 6 };

typedef struct series {
    int64_t n;
    double *x, *y;
} series;

static void series_clear(series *s) {
    free(s->x);
    free(s->y);
}

static series series_of(int64_t n) {
    series s = {
        .n = n, .x = calloc((size_t)n + 1, sizeof *s.x), .y = calloc((size_t)n + 1, sizeof *s.y)};
    if (!s.x || !s.y) abort();
    return s;
}

static double real(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

/* A number of each element of a list over another; evenly thinned, with the last. */
static series take(const json_t *list, const char *x, const char *y) {
    const int64_t n = (int64_t)json_array_size(list), kept = size_min(n, MOST_POINTS);
    series s = series_of(kept);
    for (int64_t i = 0; i < kept; i++) {
        const json_t *v = json_array_get(list, (size_t)(kept > 1 ? i * (n - 1) / (kept - 1) : 0));
        s.x[i] = real(v, x);
        s.y[i] = real(v, y);
    }
    return s;
}

static void around(svg_chart *c, const series *s) {
    svg_axis_take(&c->x, s->x, s->n);
    svg_axis_take(&c->y, s->y, s->n);
}

/* Up to three series in one figure; nothing where none has a point. */
static void figure(FILE *f, const char *title, svg_axis x, svg_axis y, int n, const series *s,
                   const char *const *names) {
    svg_chart c = {.f = f, .title = title, .x = x, .y = y};
    for (int i = 0; i < n; i++) around(&c, &s[i]);
    if (svg_axis_empty(&c.y)) return;
    fputs("<figure style=\"margin:0\">", f);
    svg_begin(&c);
    for (int i = 0; i < n; i++) svg_lines(&c, i, s[i].n, s[i].x, s[i].y, names[i]);
    svg_end(&c);
    fputs("</figure>\n", f);
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
    series s[] = {take(held, "step", "held"), take(steps, "step", "loss")};
    figure(f, "Loss (R1, or of the whole objective)", svg_axis_of("step", false),
           svg_axis_of("loss", false), 2, s, names);
    series r2[] = {take(held, "step", "held_r2"), take(steps, "step", "loss_r2")};
    if (any_positive(&r2[1]))
        figure(f, "Loss of R2", svg_axis_of("step", false), svg_axis_of("loss", false), 2, r2,
               names);
    for (int i = 0; i < 2; i++) {
        series_clear(&s[i]);
        series_clear(&r2[i]);
    }
}

void chart_learning(FILE *f, const json_t *phase) {
    const json_t *steps = json_object_get(phase, "steps");
    const char *const angles[] = {"R1", "R2"}, *const one[] = {NULL};
    series angle[] = {take(steps, "step", "angle_r1"), take(steps, "step", "angle_r2")},
           orth = take(steps, "step", "orth");
    chart_losses(f, phase);
    svg_axis y = svg_axis_of("radians", false);
    y.from_zero = true;
    figure(f, "Angle of the step", svg_axis_of("step", false), y, any_positive(&angle[1]) ? 2 : 1,
           angle, angles);
    figure(f, "Distance from orthogonal", svg_axis_of("step", false),
           svg_axis_of("largest |R^T R - I|, probed", true), 1, &orth, one);
    series_clear(&angle[0]);
    series_clear(&angle[1]);
    series_clear(&orth);
}

/* ---- sites ---- */

static const char *const sides[] = {"before", "after"};

/* A number of the k-th site over the layers, of one side. */
static series over_layers(const json_t *layers, size_t k, const char *side, const char *key,
                          double times) {
    series s = series_of((int64_t)json_array_size(layers));
    for (int64_t i = 0; i < s.n; i++) {
        const json_t *layer = json_array_get(layers, (size_t)i),
                     *site = json_array_get(json_object_get(layer, "sites"), k);
        s.x[i] = real(layer, "layer");
        s.y[i] = times * real(json_object_get(site, side), key);
    }
    return s;
}

static void chart_site(FILE *f, const json_t *layers, size_t k, const char *key, const char *title,
                       const char *unit, bool log, double times) {
    series s[] = {over_layers(layers, k, sides[0], key, times),
                  over_layers(layers, k, sides[1], key, times)};
    svg_axis y = svg_axis_of(unit, log);
    y.from_zero = times > 1;
    figure(f, title, svg_axis_of("layer", false), y, 2, s, sides);
    series_clear(&s[0]);
    series_clear(&s[1]);
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
        snprintf(title, sizeof title, "Entries, layer %.0f", real(layer, "layer"));
        figure(f, title, svg_axis_of("|x| / rms", true),
               svg_axis_of("share of entries, an octave", true), 2, s, sides);
        series_clear(&s[0]);
        series_clear(&s[1]);
    }
}

/* Depths of a map: from a quarter of the rms to 32 times it, a step of half an octave each. */
enum { DEPTHS = 15, FROM_OCTAVE = -2 };

static void chart_map(FILE *f, const json_t *map, const char *side, double layer) {
    const char *hex = json_string_value(json_object_get(map, side));
    const int rows = (int)real(map, "tokens"), cols = (int)real(map, "bands");
    if (!hex || strlen(hex) != 2 * (size_t)rows * (size_t)cols) return;
    uint8_t *level = calloc((size_t)(rows * cols) + 1, 1);
    char title[96];
    if (!level) abort();
    for (int i = 0; i < rows * cols; i++) {
        const char pair[] = {hex[2 * i], hex[2 * i + 1], 0};
        const double octaves = ((double)strtol(pair, NULL, 16) - real(map, "one")) / 16;
        level[i] = (uint8_t)fmin(fmax(2 * (octaves - FROM_OCTAVE), 0), DEPTHS - 1);
    }
    snprintf(title, sizeof title, "Layer %.0f, %s: largest |x| / rms", layer, side);
    fputs("<figure style=\"margin:0\">", f);
    svg_map(f, title, rows, cols, level, DEPTHS, "channels, in bands", "tokens");
    fputs("</figure>\n", f);
    free(level);
}

static void chart_maps(FILE *f, const json_t *layers, size_t k) {
    size_t i;
    json_t *layer;
    json_array_foreach((json_t *)(uintptr_t)layers, i, layer) {
        const json_t *map =
            json_object_get(json_array_get(json_object_get(layer, "sites"), k), "map");
        for (int side = 0; map && side < 2; side++)
            chart_map(f, map, sides[side], real(layer, "layer"));
    }
}

void chart_sites(FILE *f, const json_t *layers) {
    static const char *const titles[] = {"Input of q, k, v", "Input of o", "Input of gate and up",
                                         "Input of down"};
    for (size_t k = 0; k < 4; k++) {
        fprintf(f, "<h3>%s</h3>\n<div class=\"grid\">\n", titles[k]);
        chart_site(f, layers, k, "max_over_rms", "Largest entry", "largest |x| / rms", true, 1);
        chart_site(f, layers, k, "token_max_over_rms", "Largest entry of a token",
                   "mean of largest |x| / rms", true, 1);
        chart_site(f, layers, k, "kurtosis", "Kurtosis", "E x^4 / (E x^2)^2", true, 1);
        chart_site(f, layers, k, "outlier_tokens", "Outlier tokens (largest above 10 rms)",
                   "% of tokens", false, 100);
        chart_site(f, layers, k, "log_qsur", "Space used", "log QSUR / d", false, 1);
        chart_histograms(f, layers, k);
        chart_maps(f, layers, k);
        fputs("</div>\n", f);
    }
}

/* ---- weights ---- */

void chart_weights(FILE *f, const json_t *items) {
    const char *const one[] = {NULL};
    series s = take(items, "item", "relative_error");
    for (int64_t i = 0; i < s.n; i++) s.y[i] *= 100;
    svg_axis y = svg_axis_of("% of the norm", false);
    y.from_zero = true;
    figure(f, "Error of the weights", svg_axis_of("item", false), y, 1, &s, one);
    series_clear(&s);
}

void chart_gptq(FILE *f, const json_t *layers) {
    static const char *const names[] = {"nearest", "GPTQ"}, *const keys[] = {"before", "after"};
    const json_t *first = json_object_get(json_array_get(layers, 0), "tensors");
    for (size_t k = 0; k < json_array_size(first); k++) {
        series s[2];
        for (int side = 0; side < 2; side++) {
            s[side] = series_of((int64_t)json_array_size(layers));
            for (int64_t i = 0; i < s[side].n; i++) {
                const json_t *layer = json_array_get(layers, (size_t)i);
                s[side].x[i] = real(layer, "layer");
                s[side].y[i] =
                    100 * real(json_array_get(json_object_get(layer, "tensors"), k), keys[side]);
            }
        }
        const char *name = json_string_value(json_object_get(json_array_get(first, k), "tensor"));
        char title[64] = "";
        const char *tail = name ? strstr(name, "_proj") : NULL;
        while (tail && tail > name && tail[-1] != '.') tail--;
        snprintf(title, sizeof title, "%.*s", tail ? (int)strcspn(tail, ".") : 0, tail ? tail : "");
        svg_axis y = svg_axis_of("% of the norm of the output", false);
        y.from_zero = true;
        figure(f, title, svg_axis_of("layer", false), y, 2, s, names);
        series_clear(&s[0]);
        series_clear(&s[1]);
    }
}

/* ---- the run ---- */

void chart_phases(FILE *f, const json_t *phases) {
    svg_chart c = {.f = f,
                   .title = "Phases",
                   .x = svg_axis_of("seconds since the first start", false),
                   .y = svg_axis_of("phase, from above", false)};
    const int n = (int)json_array_size(phases);
    for (int i = 0; i < n; i++) {
        const json_t *p = json_array_get(phases, (size_t)i);
        const double ends[] = {real(p, "begin_s"), real(p, "begin_s") + real(p, "seconds")};
        svg_axis_take(&c.x, ends, 2);
    }
    if (svg_axis_empty(&c.x)) return;
    c.y.lo = 0;
    c.y.hi = n;
    fputs("<figure style=\"margin:0\">", f);
    svg_begin(&c);
    for (int i = 0; i < n; i++) {
        const json_t *p = json_array_get(phases, (size_t)i);
        char text[96];
        const char *name = json_string_value(json_object_get(p, "phase"));
        snprintf(text, sizeof text, "%s: %.2f s, start %.0f", name ? name : "", real(p, "seconds"),
                 real(p, "slice"));
        svg_bar(&c, i % 4, real(p, "begin_s"), real(p, "begin_s") + real(p, "seconds"), i, n, text);
    }
    svg_end(&c);
    fputs("</figure>\n", f);
}
