/* Where shards are missing, a safetensors header is written from config.json and parsed as if it
 * had been read. */
#include "jobs/planning/plan_source.h"

#include "base/log.h"
#include "model/tensors.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char *const INDEX = "model.safetensors.index.json";
enum { MAX_CONFIG_BYTES = 16 << 20, MAX_INDEX_BYTES = 256 << 20 };

static bool ends_with(const char *name, const char *end) {
    const size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

/* Root only. A JSON file of the folder; *out NULL where it is not there. */
static err read_json(const fileset *fs, const char *name, uint64_t max_bytes, json_t **out) {
    char *text;
    size_t len;
    *out = NULL;
    if (!fileset_find(fs, name, NULL, NULL, NULL)) return err_none();
    err e = fileset_read_all(fs, name, max_bytes, &text, &len);
    if (e.code) return e;
    e = strcmp(name, INDEX) ? json_parse_foreign(text, len, name, out)
                            : json_parse(text, len, name, out);
    e = err_at(e, fileset_where(fs));
    free(text);
    return e;
}

/* Weights that are there, in whatever form: then the ordinary way reads them, or says why not. */
static bool weights_are_there(const fileset *fs, const json_t *index) {
    static const char *const ENDS[] = {".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf"};
    const char *tensor;
    json_t *v;
    bool any = false, all = true;
    for (int i = 0; i < fileset_count(fs); i++)
        for (size_t k = 0; k < sizeof ENDS / sizeof *ENDS; k++)
            any |= ends_with(fileset_name(fs, i), ENDS[k]);
    if (!any || fileset_find(fs, "model.safetensors", NULL, NULL, NULL)) return any;
    json_object_foreach(json_object_get(index, "weight_map"), tensor, v) {
        const char *shard = json_string_value(v);
        all &= shard && fileset_find(fs, shard, NULL, NULL, NULL);
    }
    if (!all)
        log_line(LOG_WARN, "%s: not all shards are there; sizes are those of config.json",
                 fileset_where(fs));
    return all;
}

static st_dtype dtype_of(const json_t *config) {
    const char *s = json_string_value(json_object_get(config, "torch_dtype"));
    if (!s) s = json_string_value(json_object_get(config, "dtype"));
    if (s && !strcmp(s, "float16")) return ST_F16;
    return s && !strcmp(s, "float32") ? ST_F32 : ST_BF16;
}

/* Tensors as config.json demands them, one after the other: the JSON of a header. */
static err make_header(const llama_config *cfg, st_dtype dtype, char **out, size_t *len,
                       uint64_t *data_bytes) {
    const int64_t n = llama_tensor_count(cfg);
    st_tensor *list = calloc((size_t)n, sizeof *list);
    llama_tensor *names = calloc((size_t)n, sizeof *names);
    uint64_t at = 0;
    if (!list || !names) abort();
    for (int64_t i = 0; i < n; i++) {
        llama_tensor *t = &names[i];
        llama_tensor_at(cfg, i, t);
        list[i] = (st_tensor){.name = t->name, .dtype = dtype, .n_dims = t->n_dims, .begin = at};
        list[i].shape[0] = t->rows;
        list[i].shape[1] = t->n_dims == 2 ? t->cols : 0;
        at += (uint64_t)(t->rows * t->cols) * (uint64_t)st_dtype_bytes(dtype);
        list[i].end = at;
    }
    *data_bytes = at;
    err e = st_header_write(list, n, NULL, out, len);
    free(list);
    free(names);
    return e;
}

/* Names that bitsandbytes leaves beside a tensor, should config.json not tell. */
static bool is_bitsandbytes(const char *name) {
    return strstr(name, "bitsandbytes") || ends_with(name, ".absmax") ||
           ends_with(name, ".quant_map");
}

static err check_index(const llama_config *cfg, const json_t *index, const char *where,
                       int64_t *files) {
    const json_t *map = json_object_get(index, "weight_map");
    const char *tensor;
    json_t *v, *seen = json_object();
    err e = err_none();
    json_object_foreach((json_t *)(uintptr_t)map, tensor, v) {
        if (json_is_string(v)) json_object_set_new(seen, json_string_value(v), json_null());
        if (is_bitsandbytes(tensor) && !e.code)
            e = err_make(
                ERR_INPUT, where, "take the checkpoint that it was made from, in 16 or 32 bits",
                "the model is already quantized by bitsandbytes (%s names %.160s)", INDEX, tensor);
    }
    for (int64_t i = 0; i < llama_tensor_count(cfg) && !e.code; i++) {
        llama_tensor t;
        llama_tensor_at(cfg, i, &t);
        if (!json_object_get(map, t.name))
            e = err_make(ERR_INPUT, where, "take config.json and the index of one model",
                         "config.json demands tensor %s, which %s does not name", t.name, INDEX);
    }
    *files = (int64_t)json_object_size(seen);
    json_decref(seen);
    return e;
}

static err describe(source *s, const json_t *index, int64_t *files) {
    json_t *config = NULL;
    char *header = NULL;
    size_t len = 0;
    uint64_t bytes = 0;
    const char *where = fileset_where(s->files);
    err e = read_json(s->files, "config.json", MAX_CONFIG_BYTES, &config);
    if (!e.code && !config)
        e = err_make(ERR_INPUT, where, "give the folder of a Hugging Face model",
                     "config.json is not there");
    if (!e.code) e = err_at(source_read_linears(s, config), where);
    if (!e.code && s->linears.form)
        e = err_make(ERR_INPUT, where, "give the checkpoint that it was made from",
                     "the weights are quantized already");
    if (!e.code) e = err_at(llama_config_parse(config, "config.json", &s->cfg), where);
    if (!e.code && index) e = check_index(&s->cfg, index, where, files);
    if (!e.code) e = make_header(&s->cfg, dtype_of(config), &header, &len, &bytes);
    if (!e.code) e = hf_checkpoint_describe(s->files, header + 8, len - 8, bytes, &s->ck);
    free(header);
    json_decref(config);
    return e;
}

err plan_source_open(const comm *c, const char *dir, source *out, int64_t *files) {
    json_t *index = NULL;
    fileset *fs;
    *files = 1;
    memset(out, 0, sizeof *out);
    err e = fileset_open_dir(c, dir, &fs);
    if (e.code) return e;
    e = read_json(fs, INDEX, MAX_INDEX_BYTES, &index);
    if (!e.code && weights_are_there(fs, index)) {
        fileset_destroy(&fs);
        e = source_open(c, dir, out);
        if (!e.code) *files = hf_checkpoint_shards(out->ck);
    } else {
        out->path = dir;
        out->files = out->own_files = fs;
        if (!e.code) e = describe(out, index, files);
    }
    json_decref(index);
    return e;
}
