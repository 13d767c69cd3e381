/* What a file, folder or archive says of itself, read from headers: no tensor is loaded. */
#include "jobs/inspect.h"

#include "base/file.h"
#include "base/log.h"
#include "base/size.h"
#include "io/safetensors.h"
#include "jobs/run/event_table.h"
#include "jobs/run/gptq_table.h"
#include "jobs/run/noise_table.h"
#include "jobs/run/site_table.h"
#include "jobs/setup/recipe_layers.h"
#include "jobs/setup/source.h"
#include "model/tensors.h"
#include "pipeline/weights/rotation_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static json_t *tensor_json(const st_tensor *t) {
    json_t *shape = json_array();
    for (int d = 0; d < t->n_dims; d++) json_array_append_new(shape, json_integer(t->shape[d]));
    return json_pack("{s:s, s:s, s:o, s:I}", "name", t->name, "dtype", st_dtype_name(t->dtype),
                     "shape", shape, "bytes", (json_int_t)(t->end - t->begin));
}

static void print_tensor(const json_t *t) {
    char shape[128] = "", bytes[32];
    size_t i;
    json_t *d;
    json_array_foreach(json_object_get(t, "shape"), i, d) {
        size_t used = strlen(shape);
        snprintf(shape + used, sizeof shape - used, "%s%" JSON_INTEGER_FORMAT, i ? " x " : "",
                 json_integer_value(d));
    }
    printf("  %-64s %-5s %-20s %s\n", json_string_value(json_object_get(t, "name")),
           json_string_value(json_object_get(t, "dtype")), shape,
           size_text((uint64_t)json_integer_value(json_object_get(t, "bytes")), bytes));
}

/* ---- one safetensors file ---- */

static err describe_file(const char *path, bool tensors, json_t *v) {
    int fd;
    uint64_t bytes;
    st_header *h = NULL;
    err e = file_open_read(path, &fd, &bytes);
    if (e.code) return e;
    e = st_header_read(fd, path, 0, bytes, &h);
    close(fd);
    if (e.code) return e;
    json_object_set_new(v, "kind", json_string("safetensors"));
    json_object_set_new(v, "bytes", json_integer((json_int_t)bytes));
    json_object_set_new(v, "header_sha256", json_string(st_header_sha256(h)));
    json_object_set_new(v, "n_tensors", json_integer(st_header_count(h)));
    json_t *meta = json_object(), *list = json_array();
    for (int64_t i = 0; i < st_header_metadata_count(h); i++) {
        const char *key, *value;
        st_header_metadata_at(h, i, &key, &value);
        json_object_set_new(meta, key, json_string(value));
    }
    json_object_set_new(v, "metadata", meta);
    for (int64_t i = 0; tensors && i < st_header_count(h); i++)
        json_array_append_new(list, tensor_json(st_header_at(h, i)));
    if (tensors)
        json_object_set_new(v, "tensors", list);
    else
        json_decref(list);
    st_header_destroy(&h);
    return e;
}

/* ---- a model folder or an archive ---- */

static json_t *config_json(const source *s) {
    const llama_config *c = &s->cfg;
    return json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:b, s:f, s:s, s:I}",
                     "architecture", c->architecture, "hidden", (json_int_t)c->hidden,
                     "intermediate", (json_int_t)c->intermediate, "layers", (json_int_t)c->layers,
                     "heads", (json_int_t)c->heads, "kv_heads", (json_int_t)c->kv_heads, "head_dim",
                     (json_int_t)c->head_dim, "vocab", (json_int_t)c->vocab, "max_positions",
                     (json_int_t)c->max_positions, "tied", c->tied, "rope_theta", c->rope_theta,
                     "rope_scaling", c->rope.kind ? llama_rope_name(c->rope.kind) : "none",
                     "parameters", (json_int_t)llama_params(c));
}

static json_t *entries_json(const manifest *m) {
    json_t *list = json_array();
    for (int64_t i = 0; i < m->n_entries; i++) {
        const manifest_entry *x = &m->entries[i];
        json_array_append_new(list, json_pack("{s:s, s:s, s:I, s:I, s:s}", "name", x->name, "tar",
                                              m->tars[x->tar].file, "offset", (json_int_t)x->offset,
                                              "bytes", (json_int_t)x->bytes, "sha256", x->sha256));
    }
    return list;
}

/* ---- who runs it ---- */

static void add_rule(void *arg, runtime_verdict verdict, const char *what) {
    json_t *one = arg;
    const char *list = verdict == RUNTIME_STOPS ? "stops" : "notes";
    json_array_append_new(json_object_get(one, list), json_string(what));
}

static json_t *runtimes_json(const source *s, int64_t tp) {
    const runtime_facts facts = source_facts(s, tp);
    json_t *all = json_object();
    for (int i = 0; runtime_name(i); i++) {
        json_t *one =
            json_pack("{s:s, s:[], s:[]}", "read_from", runtime_version(i), "stops", "notes");
        runtime_judge(i, &facts, add_rule, one);
        json_object_set_new(all, runtime_name(i), one);
    }
    return all;
}

static void print_runtimes(const json_t *all) {
    const char *name, *list;
    json_t *one, *what;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)all, name, one) {
        const bool stops = json_array_size(json_object_get(one, "stops"));
        printf("  %-16s %s (%s)\n", name, stops ? "no" : "runs",
               json_string_value(json_object_get(one, "read_from")));
        for (int k = 0; k < 2; k++) {
            list = k ? "notes" : "stops";
            json_array_foreach(json_object_get(one, list), i, what)
                printf("  %-16s   %s\n", "", json_string_value(what));
        }
    }
}

static json_t *linears_json(const form_scheme *s, int64_t layers) {
    json_t *o = json_pack("{s:i, s:I, s:b, s:s}", "bits", s->bits, "group", (json_int_t)s->group,
                          "symmetric", s->symmetric, "form", s->form->name);
    if (s->inputs.bits < 16) {
        json_object_set_new(o, "input_bits", json_integer(s->inputs.bits));
        json_object_set_new(o, "input_group", json_integer(s->inputs.group));
        if (s->inputs.down_bits)
            json_object_set_new(o, "input_bits_down", json_integer(s->inputs.down_bits));
        if (input_eight_any(&s->inputs.eight))
            json_object_set_new(o, "input_bits_8", recipe_layers_json(&s->inputs.eight, layers));
    }
    if (s->fp8_cache) json_object_set_new(o, "cache", json_string("fp8"));
    if (s->online.r4) json_object_set_new(o, "r4_block", json_integer(s->online.r4_block));
    return o;
}

static err describe_model(const comm *c, const char *path, bool tensors, int64_t tp, json_t *v) {
    source s;
    err e = source_open(c, path, &s);
    if (!e.code) {
        json_object_set_new(v, "kind", json_string(s.ar ? "archive" : "model"));
        json_object_set_new(v, "config", config_json(&s));
        json_object_set_new(v, "tensor_bytes", json_integer((json_int_t)hf_checkpoint_bytes(s.ck)));
        json_object_set_new(v, "n_tensors", json_integer(hf_checkpoint_count(s.ck)));
        if (s.linears.form)
            json_object_set_new(v, "weights", linears_json(&s.linears, s.cfg.layers));
        if (s.linears.form) json_object_set_new(v, "runtimes", runtimes_json(&s, tp));
        if (s.ar && archive_manifest(s.ar)) {
            json_object_set_new(v, "name", json_string(archive_manifest(s.ar)->name));
            json_object_set_new(v, "entries", entries_json(archive_manifest(s.ar)));
            json_object_set(v, "recipe", (json_t *)(uintptr_t)s.recipe);
        }
        json_t *list = json_array();
        for (int64_t i = 0; tensors && i < hf_checkpoint_count(s.ck); i++)
            json_array_append_new(list, tensor_json(&hf_checkpoint_at(s.ck, i)->info));
        if (tensors)
            json_object_set_new(v, "tensors", list);
        else
            json_decref(list);
    }
    source_close(&s);
    return e;
}

/* ---- SpinQuant's public keys ---- */

static err export_spinquant(const comm *c, const char *out, const char *file) {
    source s;
    rotation_set *set = NULL;
    char *path = NULL;
    err e = source_open(c, out, &s);
    if (!e.code)
        e = source_rotations_beside(out, "give the output folder of the run, with it", &path);
    if (!e.code) {
        rotation_options o = {.r1 = true};
        rotation_sizes z = {.hidden = s.cfg.hidden,
                            .layers = s.cfg.layers,
                            .heads = s.cfg.heads,
                            .kv_heads = s.cfg.kv_heads,
                            .head_dim = s.cfg.head_dim,
                            .intermediate = s.cfg.intermediate,
                            .qk_norm = s.cfg.qk_norm};
        e = rotation_file_read(c, path, &o, &z, NULL, &set);
    }
    if (!e.code && rotation_set_r2_count(set) > 1)
        e = err_make(ERR_INPUT, path, "quantize with rotate.r2=layer",
                     "SpinQuant has one R2 a layer, not one a head");
    if (!e.code && rotation_set_scales(set))
        log_line(LOG_WARN, "%s holds scales, which SpinQuant's files do not have: left out", path);
    if (!e.code) e = rotation_file_write(file, set, true, NULL);
    rotation_set_destroy(&set);
    source_close(&s);
    free(path);
    return e;
}

/* ---- text ---- */

static void print_inputs(const json_t *w) {
    const json_int_t bits = json_integer_value(json_object_get(w, "input_bits")),
                     group = json_integer_value(json_object_get(w, "input_group")),
                     down = json_integer_value(json_object_get(w, "input_bits_down"));
    const char *place;
    json_t *layers;
    if (bits && group)
        printf("  %-16s INT%" JSON_INTEGER_FORMAT ", group %" JSON_INTEGER_FORMAT "\n", "inputs",
               bits, group);
    else if (bits)
        printf("  %-16s INT%" JSON_INTEGER_FORMAT ", by token\n", "inputs", bits);
    if (down >= 16)
        printf("  %-16s of down not quantized\n", "");
    else if (down)
        printf("  %-16s of down INT%" JSON_INTEGER_FORMAT "\n", "", down);
    json_object_foreach(json_object_get(w, "input_bits_8"), place, layers) {
        char *text = json_dumps(layers, JSON_ENCODE_ANY);
        printf("  %-16s of %s INT8 in layers %s\n", "", place, text);
        free(text);
    }
}

static void print_text(const json_t *v) {
    char bytes[32];
    const char *key;
    json_t *item;
    size_t i;
    printf("%s: %s", json_string_value(json_object_get(v, "path")),
           json_string_value(json_object_get(v, "kind")));
    json_t *size = json_object_get(v, "tensor_bytes");
    if (!size) size = json_object_get(v, "bytes");
    printf(", %" JSON_INTEGER_FORMAT " tensors, %s\n",
           json_integer_value(json_object_get(v, "n_tensors")),
           size_text((uint64_t)json_integer_value(size), bytes));
    json_object_foreach(json_object_get(v, "config"), key, item) {
        char *text = json_dumps(item, JSON_ENCODE_ANY | JSON_REAL_PRECISION(9));
        printf("  %-16s %s\n", key, text);
        free(text);
    }
    json_t *w = json_object_get(v, "weights");
    if (w) {
        json_int_t group = json_integer_value(json_object_get(w, "group"));
        char by[40] = "channel";
        if (group) snprintf(by, sizeof by, "%" JSON_INTEGER_FORMAT, group);
        printf("  %-16s INT%" JSON_INTEGER_FORMAT ", group %s, %s, %s\n", "weights",
               json_integer_value(json_object_get(w, "bits")), by,
               json_is_true(json_object_get(w, "symmetric")) ? "symmetric" : "asymmetric",
               json_string_value(json_object_get(w, "form")));
    }
    print_inputs(w);
    print_runtimes(json_object_get(v, "runtimes"));
    json_array_foreach(json_object_get(v, "entries"), i, item)
        printf("  %-64s %s  %s\n", json_string_value(json_object_get(item, "name")),
               size_text((uint64_t)json_integer_value(json_object_get(item, "bytes")), bytes),
               json_string_value(json_object_get(item, "sha256")));
    json_object_foreach(json_object_get(v, "metadata"), key, item)
        printf("  %-24s %s\n", key, json_string_value(item));
    json_array_foreach(json_object_get(v, "tensors"), i, item) print_tensor(item);
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

static void print_json(const json_t *v) {
    json_dumpf(v, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    puts("");
}

/* What GPTQ did to each linear. */
static err print_errors(const options *o) {
    json_t *layers;
    err e = gptq_table_read(o->target, &layers);
    if (e.code) return e;
    if (options_has(o, OPT_JSON)) {
        json_t *v = json_pack("{s:s, s:O}", "path", o->target, "layers", layers);
        print_json(v);
        json_decref(v);
    } else {
        gptq_table_print(layers);
    }
    json_decref(layers);
    return e;
}

/* The inputs that were looked at, and what the noise of quantizers costs: what there is of the two.
 */
static err print_sites(const options *o) {
    json_t *events;
    err e = event_table_all(o->target, &events);
    if (e.code) return e;
    json_t *layers = event_table_by(events, "sites", "layer"),
           *noise = event_table_by(events, "noise", "layer");
    const bool seen = json_array_size(layers) > 0, judged = json_array_size(noise) > 0;
    json_decref(events);
    if (!seen && !judged) {
        e = err_make(ERR_INPUT, o->target,
                     "quantize with weights.method=gptq or gptaq, or with a phase `range`",
                     "its events.jsonl tells of no inputs: they are looked at where GPTQ runs, and "
                     "at the end of learning from a capture");
    } else if (options_has(o, OPT_JSON)) {
        json_t *v = json_pack("{s:s}", "path", o->target);
        if (seen) json_object_set(v, "layers", layers);
        if (judged) json_object_set(v, "noise", noise);
        print_json(v);
        json_decref(v);
    } else {
        if (seen) site_table_print(layers);
        if (judged) noise_table_print(noise);
    }
    json_decref(layers);
    json_decref(noise);
    return e;
}

err job_inspect(const comm *c, const options *o) {
    if (options_has(o, OPT_ERRORS)) return print_errors(o);
    if (options_has(o, OPT_SITES)) return print_sites(o);
    if (options_has(o, OPT_EXPORT_SPINQUANT)) {
        err e = export_spinquant(c, o->target, options_str(o, OPT_EXPORT_SPINQUANT));
        if (!e.code && !options_has(o, OPT_JSON))
            printf("%s written\n", options_str(o, OPT_EXPORT_SPINQUANT));
        return e;
    }
    int64_t tp = 1;
    err e = options_int(o, OPT_TP, 1, 1 << 16, &tp);
    if (e.code) return e;
    json_t *v = json_object();
    json_object_set_new(v, "path", json_string(o->target));
    bool tensors = options_has(o, OPT_TENSORS);
    e = ends_with(o->target, ".safetensors") ? describe_file(o->target, tensors, v)
                                             : describe_model(c, o->target, tensors, tp, v);
    if (!e.code && options_has(o, OPT_JSON)) {
        print_json(v);
    } else if (!e.code) {
        print_text(v);
    }
    json_decref(v);
    return e;
}
