/* Events of all starts are read once more; of a layer that was done twice the last one counts. */
#include "jobs/run/run_end.h"

#include "base/log.h"
#include "base/size.h"
#include "jobs/run/event_table.h"
#include "jobs/run/run_progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

void run_tell_death(const char *out_dir) {
    run_progress p = run_progress_read(out_dir);
    char text[256];
    if (p.last && !p.told) log_line(LOG_RUN, "%s", run_progress_death(&p, text));
    run_progress_clear(&p);
}

/* Errors of the layers: the mean, and the largest with its layer. */
typedef struct layer_errors {
    double sum, most;
    int64_t n, at;
} layer_errors;

static void layer_errors_add(layer_errors *s, double error, int64_t layer) {
    if (!s->n || error > s->most) {
        s->most = error;
        s->at = layer;
    }
    s->sum += error;
    s->n++;
}

/* Mean over the linears of a layer that have the number. */
static double mean_of(const json_t *layer, const char *key) {
    const json_t *tensors = json_object_get(layer, "tensors"), *t;
    double sum = 0;
    size_t i, n = 0;
    json_array_foreach((json_t *)(uintptr_t)tensors, i, t) {
        const json_t *v = json_object_get(t, key);
        if (!json_is_number(v)) continue;
        sum += json_number_value(v);
        n++;
    }
    return n ? sum / (double)n : 0;
}

/* Of GPTQ: errors of outputs, as they are and as rounding to nearest would have them. */
static void tell_outputs(const char *out_dir, const json_t *layers) {
    layer_errors after = {0}, nearest = {0};
    json_t *v;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)layers, i, v) {
        const int64_t layer = json_integer_value(json_object_get(v, "layer"));
        layer_errors_add(&after, mean_of(v, "after"), layer);
        layer_errors_add(&nearest, mean_of(v, "before"), layer);
    }
    log_line(LOG_RUN,
             "quality: outputs of linears are off by %.3g %% in the mean of %" PRId64
             " layers (to nearest: %.3g %%), most by %.3g %% in layer %" PRId64
             "; each layer: spinshard inspect %s --errors",
             100 * after.sum / (double)after.n, after.n, 100 * nearest.sum / (double)nearest.n,
             100 * after.most, after.at, out_dir);
}

/* Of rounding to nearest: errors of weights; item 0 is the embedding, which is not rounded. */
static void tell_weights(const char *out_dir, const json_t *items) {
    layer_errors s = {0};
    json_t *v;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)items, i, v) {
        const json_t *error = json_object_get(v, "relative_error");
        if (json_is_number(error))
            layer_errors_add(&s, json_number_value(error),
                             json_integer_value(json_object_get(v, "item")) - 1);
    }
    if (s.n)
        log_line(LOG_RUN,
                 "quality: weights are off by %.3g %% of their norm in the mean of %" PRId64
                 " layers, most by %.3g %% in layer %" PRId64
                 "; each layer: spinshard report %s --json",
                 100 * s.sum / (double)s.n, s.n, 100 * s.most, s.at, out_dir);
}

/* The sum of a number over the phases that came to their end, as often as they did. */
static uint64_t sum_of_ends(const json_t *events, const char *key) {
    uint64_t sum = 0;
    const json_t *v;
    size_t i;
    json_array_foreach((json_t *)(uintptr_t)events, i, v) {
        if (!strcmp(json_word_of(v, "event"), "end"))
            sum += (uint64_t)json_integer_value(json_object_get(v, key));
    }
    return sum;
}

static void tell_network(const json_t *events) {
    const uint64_t sent = sum_of_ends(events, "sent_bytes"),
                   planned = sum_of_ends(events, "planned_sent_bytes"),
                   network = sum_of_ends(events, "network_bytes");
    char text[32], plan[32];
    if (sent || planned)
        log_line(LOG_RUN, "ranks sent each other %s (planned %s)", size_text(sent, text),
                 size_text(planned, plan));
    if (network)
        log_line(LOG_RUN, "of that from node to node %s (planned %s)", size_text(network, text),
                 size_text(sum_of_ends(events, "planned_network_bytes"), plan));
}

void run_tell_totals(const char *out_dir) {
    run_progress p = run_progress_read(out_dir);
    json_t *events = NULL;
    char time[32];
    log_line(LOG_RUN, "in all: %s and %.3g node hours in %" PRId64 " start%s",
             size_seconds_text(p.seconds, time), p.node_hours, p.starts, p.starts == 1 ? "" : "s");
    run_progress_clear(&p);
    if (event_table_all(out_dir, &events).code) return; /* it cannot be read: nothing to say */
    tell_network(events);
    json_t *layers = event_table_by(events, "errors", "layer"),
           *items = event_table_by(events, "layer", "item");
    if (json_array_size(layers))
        tell_outputs(out_dir, layers);
    else
        tell_weights(out_dir, items);
    log_line(LOG_RUN, "perplexity: spinshard eval --model %s --text FILE", out_dir);
    json_decref(items);
    json_decref(layers);
    json_decref(events);
}
