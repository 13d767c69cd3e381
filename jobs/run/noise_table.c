/* One event "noise" a layer; sums over layers are taken where they are shown. */
#include "jobs/run/noise_table.h"

#include "base/log.h"
#include "rotations/clip_set.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Nats of a site over the layers. */
typedef struct site_sum {
    double unclipped, clipped;
    int rows;
} site_sum;

json_t *noise_table_row(const char *site, int bits, const double ends[2], double unclipped,
                        double clipped) {
    return json_pack("{s:s, s:i, s:[ff], s:f, s:f}", "site", site, "bits", bits, "clip", ends[0],
                     ends[1], "nats_unclipped", unclipped, "nats", clipped);
}

/* Of the site of that name; of all where it is NULL. */
static site_sum sum_of(const json_t *layers, const char *site) {
    site_sum sum = {.rows = 0};
    size_t i, k;
    json_t *layer, *row;
    json_array_foreach((json_t *)(uintptr_t)layers, i, layer) {
        json_array_foreach(json_object_get(layer, "noise"), k, row) {
            if (site && strcmp(json_word_of(row, "site"), site) != 0) continue;
            sum.unclipped += json_real_of(row, "nats_unclipped");
            sum.clipped += json_real_of(row, "nats");
            sum.rows++;
        }
    }
    return sum;
}

void noise_table_tell(const json_t *layers) {
    for (int k = 0; k <= CLIP_PLACES; k++) {
        const char *name = k < CLIP_PLACES ? clip_place_name((clip_place)k) : NULL;
        const site_sum sum = sum_of(layers, name);
        if (sum.rows)
            log_line(LOG_PHASE, "noise of quantizers: %-4s %.4f nats a token, with clips %.4f",
                     name ? name : "all", sum.unclipped, sum.clipped);
    }
}

static void print_line(const char *layer, const char *site, const char *bits, const char *clip,
                       double unclipped, double clipped) {
    printf("%5s %-10s %4s %-12s %18.3f %18.3f\n", layer, site, bits, clip, 1000 * unclipped,
           1000 * clipped);
}

void noise_table_print(const json_t *layers) {
    size_t i, k;
    json_t *layer, *row;
    puts(
        "what the noise of each quantizer costs, by second order of the loss, nats a token / 1000");
    printf("%5s %-10s %4s %-12s %18s %18s\n", "layer", "quantizer", "bits", "clip",
           "without the clip", "with it");
    json_array_foreach((json_t *)(uintptr_t)layers, i, layer) {
        json_array_foreach(json_object_get(layer, "noise"), k, row) {
            const json_t *ends = json_object_get(row, "clip");
            char number[24], bits[24], clip[32];
            snprintf(number, sizeof number, "%.0f", json_real_of(layer, "layer"));
            const double b = json_real_of(row, "bits"); /* runs of old do not tell */
            snprintf(bits, sizeof bits, isnan(b) ? "" : "%.0f", b);
            snprintf(clip, sizeof clip, "%.2f %.2f", json_number_value(json_array_get(ends, 0)),
                     json_number_value(json_array_get(ends, 1)));
            print_line(number, json_word_of(row, "site"), bits, clip,
                       json_real_of(row, "nats_unclipped"), json_real_of(row, "nats"));
        }
    }
    for (int p = 0; p <= CLIP_PLACES; p++) {
        const char *name = p < CLIP_PLACES ? clip_place_name((clip_place)p) : NULL;
        const site_sum sum = sum_of(layers, name);
        if (sum.rows) print_line("all", name ? name : "all", "", "", sum.unclipped, sum.clipped);
    }
}
