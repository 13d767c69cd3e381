/* Numbers keep four digits: they are for eyes, and a model has hundreds of sites. */
#include "jobs/run/site_table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Below this share of the rms a histogram on a log axis shows nothing but zeros. */
#define LEAST_EDGE 0x1p-8

static const char *const names[STEP_COUNT] = {"attention", "o", "mlp", "down"};

static void put_histogram(json_t *to, const site_stats *s, double rms) {
    json_t *edges = json_array(), *shares = json_array();
    int first = 0, last = SITE_BINS - 1;
    while (first < last && site_bin_from(first) < LEAST_EDGE * rms) first++;
    while (last >= first && !s->bins[last]) last--;
    for (int b = first; b <= last; b++) {
        json_array_append_new(edges, json_four_digits(site_bin_from(b) / rms));
        json_array_append_new(shares, json_four_digits((double)s->bins[b] / s->sum[0]));
    }
    json_object_set_new(to, "edges", edges);
    json_object_set_new(to, "shares", shares);
}

static json_t *stats_json(const site_stats *s, double log_det) {
    const double rms = site_rms(s), rows = (double)s->rows;
    json_t *v = json_object();
    json_object_set_new(v, "rms", json_four_digits(rms));
    json_object_set_new(v, "max_over_rms", json_four_digits(rms > 0 ? s->most / rms : 0));
    json_object_set_new(v, "kurtosis", json_four_digits(site_kurtosis(s)));
    json_object_set_new(v, "token_max_over_rms", json_four_digits(s->peaks / rows));
    json_object_set_new(v, "outlier_tokens", json_four_digits((double)s->outlier / rows));
    json_object_set_new(v, "log_qsur", json_four_digits(site_log_qsur(s->width, log_det, s->most)));
    if (rms > 0) put_histogram(v, s, rms);
    return v;
}

static json_t *hex_of(const uint8_t *bytes, int n) {
    char *text = malloc(2 * (size_t)n + 1);
    if (!text) abort();
    for (int i = 0; i < n; i++) snprintf(text + 2 * i, 3, "%02x", bytes[i]);
    json_t *v = json_string(text);
    free(text);
    return v;
}

static json_t *map_json(const site_map *m) {
    const int n = m->rows * m->cols;
    return json_pack("{s:i, s:i, s:i, s:o, s:o}", "tokens", m->rows, "bands", m->cols, "one",
                     SITE_MAP_ONE, "before", hex_of(m->before, n), "after", hex_of(m->after, n));
}

json_t *site_table_of(int64_t layer, const site_look sites[STEP_COUNT]) {
    json_t *list = json_array();
    for (int k = 0; k < STEP_COUNT; k++) {
        const site_look *s = &sites[k];
        if (!s->there) continue;
        json_t *v = json_pack("{s:s, s:I, s:I, s:o, s:o}", "site", names[k], "tokens",
                              (json_int_t)s->before.rows, "width", (json_int_t)s->before.width,
                              "before", stats_json(&s->before, s->log_det), "after",
                              stats_json(&s->after, s->log_det + 2 * s->log_scales));
        if (s->map.rows) json_object_set_new(v, "map", map_json(&s->map));
        json_array_append_new(list, v);
    }
    json_t *table = json_pack("{s:I, s:o}", "layer", (json_int_t)layer, "sites", list);
    if (!table) abort();
    return table;
}

static void print_pair(const json_t *site, const char *key, double times, const char *form) {
    static const char *const sides[] = {"before", "after"};
    for (int i = 0; i < 2; i++) {
        const json_t *v = json_object_get(json_object_get(site, sides[i]), key);
        char text[32] = "-";
        if (json_is_number(v)) snprintf(text, sizeof text, form, times * json_number_value(v));
        printf(" %9s", text);
    }
}

void site_table_print(const json_t *layers) {
    size_t i, k;
    json_t *layer, *site;
    printf("before and after rotation: largest entry over rms (of all tokens; of a token, mean), "
           "kurtosis, tokens\nwhose largest entry is above %d times their rms, log QSUR / d\n",
           SITE_OUTLIER);
    printf("%5s %-10s %19s %19s %19s %19s %19s\n", "layer", "input of", "max / rms", "token's",
           "kurtosis", "outlier tokens %", "log QSUR / d");
    json_array_foreach((json_t *)(uintptr_t)layers, i, layer) {
        json_array_foreach(json_object_get(layer, "sites"), k, site) {
            printf("%5.0f %-10s", json_number_value(json_object_get(layer, "layer")),
                   json_string_value(json_object_get(site, "site")));
            print_pair(site, "max_over_rms", 1, "%.1f");
            print_pair(site, "token_max_over_rms", 1, "%.2f");
            print_pair(site, "kurtosis", 1, "%.1f");
            print_pair(site, "outlier_tokens", 100, "%.2f");
            print_pair(site, "log_qsur", 1, "%.3f");
            puts("");
        }
    }
}
