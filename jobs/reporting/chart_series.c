/* Long series are thinned: a chart has a few hundred pixels. */
#include "jobs/reporting/chart_series.h"

#include "base/size.h"

#include <math.h>
#include <stdlib.h>

enum { MOST_POINTS = 300 };

void series_clear(series *s) {
    free(s->x);
    free(s->y);
}

series series_of(int64_t n) {
    series s = {
        .n = n, .x = calloc((size_t)n + 1, sizeof *s.x), .y = calloc((size_t)n + 1, sizeof *s.y)};
    if (!s.x || !s.y) abort();
    return s;
}

series series_take(const json_t *list, const char *x, const char *y, double times) {
    const int64_t n = (int64_t)json_array_size(list), kept = size_min(n, MOST_POINTS);
    series s = series_of(kept);
    for (int64_t i = 0; i < kept; i++) {
        const json_t *v = json_array_get(list, (size_t)(kept > 1 ? i * (n - 1) / (kept - 1) : 0));
        s.x[i] = json_real_of(v, x);
        s.y[i] = times * json_real_of(v, y);
    }
    return s;
}

series series_over_layers(const json_t *layers, const char *list, size_t k, const char *part,
                          const char *key, double times) {
    series s = series_of((int64_t)json_array_size(layers));
    const int64_t n = s.n;
    s.n = 0;
    for (int64_t i = 0; i < n; i++) {
        const json_t *layer = json_array_get(layers, (size_t)i),
                     *one = json_array_get(json_object_get(layer, list), k);
        const double y = times * json_real_of(part ? json_object_get(one, part) : one, key);
        if (!isfinite(y)) continue;
        s.x[s.n] = json_real_of(layer, "layer");
        s.y[s.n++] = y;
    }
    return s;
}

static void around(svg_chart *c, const series *s) {
    svg_axis_take(&c->x, s->x, s->n);
    svg_axis_take(&c->y, s->y, s->n);
}

void chart_figure(FILE *f, const char *title, svg_axis x, svg_axis y, int n, const series *s,
                  const char *const *names) {
    svg_chart c = {.f = f, .title = title, .x = x, .y = y};
    for (int i = 0; i < n; i++) around(&c, &s[i]);
    if (svg_axis_empty(&c.y)) return;
    fputs("<figure style=\"margin:0\">", f);
    svg_begin(&c);
    for (int i = 0; i < n; i++)
        svg_lines(&c, n > 1 ? i : 1, s[i].n, s[i].x, s[i].y, names ? names[i] : NULL);
    svg_end(&c);
    fputs("</figure>\n", f);
}
