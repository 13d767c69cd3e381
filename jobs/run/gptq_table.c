/* JSON of each layer is made from the results and read back by inspect, so both print the same
 * table. */
#include "jobs/run/gptq_table.h"

#include "base/log.h"
#include "jobs/run/event_table.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* How GPTAQ's errors are found (gptq_outputs of pipeline/gptq/gptq_stack.h). */
static const char MEASURED[] =
    ", against full precision on the windows held out (of fewer than 8: on all)";

/* Relative error of an output; below zero where nothing ever comes out. */
static double relative(double loss, double energy) {
    return energy > 0 ? sqrt(fmax(0, loss) / energy) : -1;
}

static json_t *real_or_null(double v) {
    return v >= 0 ? json_real(v) : json_null();
}

json_t *gptq_table_of(const llama_config *cfg, int64_t layer, double seconds,
                      const gptq_layer_report *report) {
    json_t *steps = json_array(), *tensors = json_array();
    for (int i = 0; i < STEP_COUNT; i++) json_array_append_new(steps, json_real(report->step_s[i]));
    for (int k = 0; k < LLAMA_LINEARS; k++) {
        const gptq_linear_report *l = &report->linears[k];
        llama_tensor t;
        llama_tensor_of(cfg, llama_linears[k], layer, &t);
        json_array_append_new(
            tensors,
            json_pack("{s:s, s:o, s:o, s:f, s:i, s:I, s:I, s:f, s:b}", "tensor", t.name, "before",
                      real_or_null(relative(l->loss.rtn, l->loss.energy)), "after",
                      real_or_null(relative(l->loss.chosen, l->loss.energy)), "damping",
                      l->damping.lambda, "raises", l->damping.raises, "fell_back",
                      (json_int_t)l->loss.fell_back, "rows", (json_int_t)l->loss.rows, "alpha",
                      l->alpha, "measured", l->measured));
    }
    json_t *v = json_pack("{s:I, s:f, s:o, s:o}", "layer", (json_int_t)layer, "seconds", seconds,
                          "steps", steps, "tensors", tensors);
    if (!v) abort();
    return v;
}

void gptq_table_tell(const llama_config *cfg, int64_t layer, double seconds,
                     const gptq_layer_report *report) {
    char text[256] = "";
    (void)cfg;
    for (int k = 0; k < LLAMA_LINEARS; k++) {
        const gptq_linear_report *l = &report->linears[k];
        const size_t used = strlen(text);
        snprintf(text + used, sizeof text - used, "%s %.2f->%.2f%%",
                 llama_role_name(llama_linears[k]), 100 * relative(l->loss.rtn, l->loss.energy),
                 100 * relative(l->loss.chosen, l->loss.energy));
        if (l->loss.fell_back || l->damping.raises)
            snprintf(text + strlen(text), sizeof text - strlen(text),
                     " (%" PRId64 " rows kept, %d raises)", l->loss.fell_back, l->damping.raises);
        if (k + 1 < LLAMA_LINEARS) snprintf(text + strlen(text), sizeof text - strlen(text), ", ");
    }
    log_line(LOG_STEP, "gptq: layer %" PRId64 " in %.2f s: %s", layer, seconds, text);
}

static double number_of(const json_t *t, const char *key) {
    const json_t *v = json_object_get(t, key);
    return json_is_number(v) ? json_number_value(v) : 0;
}

/* Means over the layers of one linear. */
static void tell_linear(const json_t *layers, size_t k) {
    double before = 0, after = 0, raises = 0, fell_back = 0;
    int64_t n = 0;
    const char *key;
    json_t *layer;
    json_object_foreach((json_t *)(uintptr_t)layers, key, layer) {
        const json_t *t = json_array_get(json_object_get(layer, "tensors"), k);
        before += number_of(t, "before");
        after += number_of(t, "after");
        raises += number_of(t, "raises");
        fell_back += number_of(t, "fell_back");
        n++;
    }
    if (n)
        log_line(LOG_PHASE, "gptq: %-10s %8.2f %8.2f %12.0f %8.0f",
                 llama_role_name(llama_linears[k]), 100 * before / (double)n,
                 100 * after / (double)n, fell_back, raises);
}

void gptq_table_summary(const json_t *layers) {
    const json_t *first =
        json_array_get(json_object_get(json_object_get(layers, "0"), "tensors"), 0);
    log_line(LOG_PHASE, "gptq: error of outputs, %% of their norm, mean of the layers%s",
             json_is_true(json_object_get(first, "measured")) ? MEASURED : "");
    log_line(LOG_PHASE, "gptq: %-10s %8s %8s %12s %8s", "linear", "nearest", "gptq", "rows nearest",
             "raises");
    for (size_t k = 0; k < LLAMA_LINEARS; k++) tell_linear(layers, k);
}

/* ---- of an output folder ---- */

err gptq_table_read(const char *out_dir, json_t **out) {
    err e = event_table_read(out_dir, "errors", out);
    if (e.code || json_array_size(*out)) return e;
    json_decref(*out);
    *out = NULL;
    return err_make(ERR_INPUT, out_dir, "quantize with weights.method=gptq or gptaq",
                    "its events.jsonl tells of no layer that GPTQ rounded");
}

static void print_percent(const json_t *t, const char *key) {
    const json_t *v = json_object_get(t, key);
    if (json_is_number(v))
        printf(" %9.3f", 100 * json_number_value(v));
    else
        printf(" %9s", "-");
}

void gptq_table_print(const json_t *layers) {
    size_t i, k;
    json_t *layer, *t;
    bool measured = false;
    printf("%-44s %9s %9s %10s %7s %10s %6s\n", "tensor", "nearest %", "gptq %", "damping",
           "raises", "fell back", "alpha");
    json_array_foreach(layers, i, layer) {
        json_array_foreach(json_object_get(layer, "tensors"), k, t) {
            printf("%-44s", json_string_value(json_object_get(t, "tensor")));
            print_percent(t, "before");
            print_percent(t, "after");
            printf(" %10.3g %7.0f %4.0f/%-5.0f %6.2f\n", number_of(t, "damping"),
                   number_of(t, "raises"), number_of(t, "fell_back"), number_of(t, "rows"),
                   number_of(t, "alpha"));
            measured |= json_is_true(json_object_get(t, "measured"));
        }
        printf("layer %.0f: %.2f s\n", number_of(layer, "layer"), number_of(layer, "seconds"));
    }
    if (measured) printf("errors are of outputs%s\n", MEASURED);
}
