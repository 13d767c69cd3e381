/* Writing builds a JSON tree in fixed order. Reading checks that every key is known, every entry
 * lies within its tar, and none overlap. */
#include "shard/manifest.h"

#include "shard/entry_names.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char FORMAT[] = "spinshard-manifest/1";
enum { MAX_LIST = 20000 };

static void *zeroed(int64_t n, size_t size) {
    void *p = calloc(n ? (size_t)n : 1, size);
    if (!p) abort();
    return p;
}

static char *copied(const char *s) {
    char *p = strdup(s);
    if (!p) abort();
    return p;
}

manifest *manifest_create(const char *name, int64_t n_shards, int64_t n_tars, int64_t n_entries) {
    manifest *m = zeroed(1, sizeof *m);
    m->name = copied(name);
    m->n_shards = n_shards;
    m->n_tars = n_tars;
    m->n_entries = n_entries;
    m->shards = zeroed(n_shards, sizeof *m->shards);
    m->tars = zeroed(n_tars, sizeof *m->tars);
    m->entries = zeroed(n_entries, sizeof *m->entries);
    return m;
}

void manifest_destroy(manifest **pm) {
    manifest *m = *pm;
    if (!m) return;
    for (int64_t i = 0; i < m->n_shards; i++) free(m->shards[i].file);
    for (int64_t i = 0; i < m->n_tars; i++) free(m->tars[i].file);
    for (int64_t i = 0; i < m->n_entries; i++) free(m->entries[i].name);
    free(m->shards);
    free(m->tars);
    free(m->entries);
    free(m->name);
    free(m->architecture);
    json_decref(m->recipe);
    free(m);
    *pm = NULL;
}

int64_t manifest_find(const manifest *m, const char *file) {
    for (int64_t i = 0; i < m->n_entries; i++)
        if (!strcmp(entry_file(m->entries[i].name), file)) return i;
    return -1;
}

/* Writing. */

static json_t *source_json(const manifest *m) {
    json_t *list = json_array();
    for (int64_t i = 0; i < m->n_shards; i++) {
        const manifest_shard *s = &m->shards[i];
        json_array_append_new(list,
                              json_pack("{s:s, s:I, s:s}", "file", s->file, "bytes",
                                        (json_int_t)s->bytes, "header_sha256", s->header_sha256));
    }
    return json_pack("{s:s, s:o}", "architecture", m->architecture ? m->architecture : "",
                     "safetensors", list);
}

static json_t *tars_json(const manifest *m) {
    json_t *list = json_array();
    for (int64_t i = 0; i < m->n_tars; i++) {
        const manifest_tar *t = &m->tars[i];
        json_array_append_new(list, json_pack("{s:s, s:I, s:s}", "file", t->file, "bytes",
                                              (json_int_t)t->bytes, "sha256", t->sha256));
    }
    return list;
}

static json_t *entries_json(const manifest *m) {
    json_t *list = json_array();
    for (int64_t i = 0; i < m->n_entries; i++) {
        const manifest_entry *x = &m->entries[i];
        json_array_append_new(list,
                              json_pack("{s:s, s:s, s:I, s:I, s:s}", "tar", m->tars[x->tar].file,
                                        "name", x->name, "offset", (json_int_t)x->offset, "bytes",
                                        (json_int_t)x->bytes, "sha256", x->sha256));
    }
    return list;
}

err manifest_text(const manifest *m, char **out, size_t *len) {
    json_t *o = json_pack("{s:s, s:s, s:o, s:O, s:o, s:o}", "format", FORMAT, "name", m->name,
                          "source", source_json(m), "recipe", m->recipe, "tars", tars_json(m),
                          "entries", entries_json(m));
    if (!o)
        return err_make(ERR_BUG, "manifest", NULL, "a part of it is not valid UTF-8 or missing");
    err e = json_text(o, 1, out, len);
    json_decref(o);
    return e;
}

/* Reading. */

static err bad(const char *where, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static err bad(const char *where, const char *fmt, ...) {
    char what[400];
    va_list args;
    va_start(args, fmt);
    vsnprintf(what, sizeof what, fmt, args);
    va_end(args);
    return err_make(ERR_VERIFY, where, "the manifest is damaged or of another program", "%s", what);
}

/* A getter's ERR_INPUT about the manifest is a failed verification. */
static err as_verify(err e) {
    if (e.code == ERR_INPUT) e.code = ERR_VERIFY;
    return e;
}

static err only_keys(const json_t *o, const char *const *keys, const char *where) {
    if (!json_is_object(o)) return bad(where, "not an object");
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)o, key, value) {
        bool known = false;
        for (int i = 0; keys[i]; i++) known |= !strcmp(keys[i], key);
        if (!known) return bad(where, "unknown key \"%.80s\"", key);
    }
    return err_none();
}

static err get_list(const json_t *o, const char *key, const char *where, const json_t **list) {
    *list = json_object_get(o, key);
    if (!json_is_array(*list)) return bad(where, "\"%s\" must be a list", key);
    if (json_array_size(*list) > MAX_LIST) return bad(where, "\"%s\" is too long", key);
    return err_none();
}

static err get_digest(const json_t *o, const char *key, const char *where, char to[SHA256_HEX]) {
    const char *s = NULL;
    err e = as_verify(json_get_str(o, key, where, &s));
    if (e.code) return e;
    if (strlen(s) != SHA256_HEX - 1 || strspn(s, "0123456789abcdef") != SHA256_HEX - 1)
        return bad(where, "\"%s\" must be 64 lower-case hex digits", key);
    memcpy(to, s, SHA256_HEX);
    return e;
}

static err get_bytes(const json_t *o, const char *key, const char *where, uint64_t *to) {
    int64_t n = 0;
    err e = as_verify(json_get_int(o, key, 0, INT64_MAX, where, &n));
    *to = (uint64_t)n;
    return e;
}

static err get_base_name(const json_t *o, const char *key, const char *where, char **to) {
    const char *s = NULL;
    err e = as_verify(json_get_str(o, key, where, &s));
    if (e.code) return e;
    const char *fault = entry_base_fault(s);
    if (fault) return bad(where, "\"%s\": \"%.100s\" %s", key, s, fault);
    *to = copied(s);
    return e;
}

static err read_shard(const json_t *o, const char *where, manifest_shard *to) {
    static const char *const keys[] = {"file", "bytes", "header_sha256", NULL};
    err e = only_keys(o, keys, where);
    if (!e.code) e = get_base_name(o, "file", where, &to->file);
    if (!e.code) e = get_bytes(o, "bytes", where, &to->bytes);
    if (!e.code) e = get_digest(o, "header_sha256", where, to->header_sha256);
    return e;
}

static err read_tar(const json_t *o, const char *where, manifest_tar *to) {
    static const char *const keys[] = {"file", "bytes", "sha256", NULL};
    err e = only_keys(o, keys, where);
    if (!e.code) e = get_base_name(o, "file", where, &to->file);
    if (!e.code) e = get_bytes(o, "bytes", where, &to->bytes);
    if (!e.code) e = get_digest(o, "sha256", where, to->sha256);
    return e;
}

static err find_tar(const manifest *m, const char *file, const char *where, int64_t *to) {
    for (int64_t i = 0; i < m->n_tars; i++)
        if (!strcmp(m->tars[i].file, file)) {
            *to = i;
            return err_none();
        }
    return bad(where, "its tar \"%.100s\" is not in \"tars\"", file);
}

/* "<name>/<base name>" with the name of this manifest. */
static err check_entry_name(const manifest *m, const char *name, const char *where) {
    const char *fault = entry_name_fault(name);
    if (fault) return bad(where, "the name \"%.100s\" %s", name, fault);
    size_t n = strlen(m->name);
    if (strncmp(name, m->name, n) || name[n] != '/')
        return bad(where, "the name \"%.100s\" does not begin with \"%.100s/\"", name, m->name);
    return err_none();
}

static err read_entry(const json_t *o, const char *where, const manifest *m, manifest_entry *to) {
    static const char *const keys[] = {"tar", "name", "offset", "bytes", "sha256", NULL};
    const char *tar = NULL, *name = NULL;
    err e = only_keys(o, keys, where);
    if (!e.code) e = as_verify(json_get_str(o, "tar", where, &tar));
    if (!e.code) e = find_tar(m, tar, where, &to->tar);
    if (!e.code) e = as_verify(json_get_str(o, "name", where, &name));
    if (!e.code) e = check_entry_name(m, name, where);
    if (!e.code) to->name = copied(name);
    if (!e.code) e = get_bytes(o, "offset", where, &to->offset);
    if (!e.code) e = get_bytes(o, "bytes", where, &to->bytes);
    if (!e.code) e = get_digest(o, "sha256", where, to->sha256);
    if (e.code) return e;
    uint64_t room = m->tars[to->tar].bytes;
    if (to->offset > room || to->bytes > room - to->offset)
        return bad(where,
                   "bytes %" PRIu64 " + %" PRIu64 " lie outside \"%.100s\" of %" PRIu64 " bytes",
                   to->offset, to->bytes, tar, room);
    return e;
}

static int compare_place(const void *a, const void *b) {
    const manifest_entry *x = *(const manifest_entry *const *)a;
    const manifest_entry *y = *(const manifest_entry *const *)b;
    if (x->tar != y->tar) return x->tar < y->tar ? -1 : 1;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

static err check_apart(const manifest *m, const char *where) {
    const manifest_entry **sorted = zeroed(m->n_entries, sizeof *sorted);
    for (int64_t i = 0; i < m->n_entries; i++) sorted[i] = &m->entries[i];
    qsort(sorted, (size_t)m->n_entries, sizeof *sorted, compare_place);
    err e = err_none();
    for (int64_t i = 1; i < m->n_entries && !e.code; i++) {
        const manifest_entry *x = sorted[i - 1], *y = sorted[i];
        if (x->tar == y->tar && x->offset + x->bytes > y->offset)
            e = bad(where, "the entries \"%.100s\" and \"%.100s\" overlap", x->name, y->name);
    }
    free(sorted);
    return e;
}

static err check_distinct(const manifest *m, const char *where) {
    int64_t n = m->n_tars > m->n_entries ? m->n_tars : m->n_entries;
    const char **names = zeroed(n, sizeof *names);
    for (int64_t i = 0; i < m->n_entries; i++) names[i] = m->entries[i].name;
    err e = entry_names_distinct(names, m->n_entries, where);
    for (int64_t i = 0; i < m->n_tars; i++) names[i] = m->tars[i].file;
    if (!e.code) e = entry_names_distinct(names, m->n_tars, where);
    free(names);
    return e;
}

static err read_source(const json_t *o, const char *where, manifest *m, const json_t *shards) {
    const char *architecture = NULL;
    err e = as_verify(json_get_str(o, "architecture", where, &architecture));
    if (!e.code) m->architecture = copied(architecture);
    for (int64_t i = 0; i < m->n_shards && !e.code; i++)
        e = read_shard(json_array_get(shards, (size_t)i), where, &m->shards[i]);
    return e;
}

static err read_lists(const char *where, manifest *m, const json_t *tars, const json_t *entries) {
    err e = err_none();
    for (int64_t i = 0; i < m->n_tars && !e.code; i++)
        e = read_tar(json_array_get(tars, (size_t)i), where, &m->tars[i]);
    for (int64_t i = 0; i < m->n_entries && !e.code; i++)
        e = read_entry(json_array_get(entries, (size_t)i), where, m, &m->entries[i]);
    if (!e.code) e = check_distinct(m, where);
    if (!e.code) e = check_apart(m, where);
    return e;
}

static err read_manifest(const json_t *o, const char *where, manifest **out) {
    static const char *const keys[] = {"format", "name",    "source", "recipe",
                                       "tars",   "entries", NULL};
    static const char *const source_keys[] = {"architecture", "safetensors", NULL};
    const char *format = NULL;
    char *name = NULL;
    const json_t *shards = NULL, *tars = NULL, *entries = NULL;
    if (!json_is_object(o)) return bad(where, "not an object");
    err e = as_verify(json_get_str(o, "format", where, &format));
    if (!e.code && strcmp(format, FORMAT))
        return bad(where, "its format is \"%.60s\", this program reads \"%s\"", format, FORMAT);
    const json_t *source = json_object_get(o, "source"), *recipe = json_object_get(o, "recipe");
    if (!e.code) e = only_keys(o, keys, where);
    if (!e.code) e = only_keys(source, source_keys, where);
    if (!e.code && !json_is_object(recipe)) e = bad(where, "\"recipe\" must be an object");
    if (!e.code) e = get_list(source, "safetensors", where, &shards);
    if (!e.code) e = get_list(o, "tars", where, &tars);
    if (!e.code) e = get_list(o, "entries", where, &entries);
    if (!e.code) e = get_base_name(o, "name", where, &name);
    if (e.code) return e;
    manifest *m =
        manifest_create(name, (int64_t)json_array_size(shards), (int64_t)json_array_size(tars),
                        (int64_t)json_array_size(entries));
    free(name);
    m->recipe = json_incref((json_t *)recipe);
    *out = m;
    if (!m->n_tars || !m->n_entries) return bad(where, "it lists no tars or no entries");
    e = read_source(source, where, m, shards);
    return e.code ? e : read_lists(where, m, tars, entries);
}

err manifest_parse(const char *text, size_t len, const char *where, manifest **out) {
    *out = NULL;
    json_t *o;
    err e = as_verify(json_parse(text, len, where, &o));
    if (e.code) return e;
    e = read_manifest(o, where, out);
    if (e.code) manifest_destroy(out);
    json_decref(o);
    return e;
}
