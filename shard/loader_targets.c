/* Expressions are Python's; those of them are taken that read the same as POSIX extended ones. */
#include "shard/loader_targets.h"

#include <inttypes.h>
#include <regex.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ENTRIES = 4096, NAME_LEN = 96 };

typedef struct entry {
    const char *text;
    bool is_regex;
    regex_t regex;
} entry;

typedef struct entry_list {
    entry *items;
    size_t n;
} entry_list;

static void list_clear(entry_list *l) {
    for (size_t i = 0; i < l->n; i++)
        if (l->items[i].is_regex) regfree(&l->items[i].regex);
    free(l->items);
}

static err bad_entry(const char *where, const char *text) {
    return err_make(ERR_VERIFY, where, "take an archive whose targets are [\"Linear\"]",
                    "quantization_config: \"targets\", \"ignore\": \"%.120s\" is no expression "
                    "that is read here",
                    text);
}

/* Python's classes, lookarounds and lazy repeats mean something else to POSIX, or nothing. */
static bool reads_alike(const char *x) {
    for (const char *p = x; *p; p++) {
        if (*p == '\\' && p[1] && !strchr(".\\()[]{}*+?|^$/-_", *++p)) return false;
        if ((*p == '(' || *p == '*' || *p == '+' || *p == '?') && p[1] == '?') return false;
    }
    return true;
}

static err add_entry(entry_list *l, const char *text, const char *where) {
    entry *x = &l->items[l->n];
    *x = (entry){.text = text};
    if (!strncmp(text, "re:", 3)) {
        char *whole = NULL;
        if (asprintf(&whole, "^(%s)", text + 3) < 0) abort();
        x->is_regex =
            reads_alike(text + 3) && regcomp(&x->regex, whole, REG_EXTENDED | REG_NOSUB) == 0;
        free(whole);
        if (!x->is_regex) return bad_entry(where, text);
    }
    l->n++;
    return err_none();
}

static err list_read(const json_t *v, const char *key, const char *where, entry_list *out) {
    size_t i;
    json_t *item;
    *out = (entry_list){0};
    if (!v || json_is_null(v)) return err_none();
    if (!json_is_array(v) || json_array_size(v) > MOST_ENTRIES)
        return err_make(ERR_VERIFY, where, NULL, "quantization_config: \"%s\" must be a list", key);
    out->items = calloc(json_array_size(v) + 1, sizeof *out->items);
    if (!out->items) abort();
    json_array_foreach(v, i, item) {
        if (!json_is_string(item))
            return err_make(ERR_VERIFY, where, NULL,
                            "quantization_config: \"%s\" must hold names of modules", key);
        err e = add_entry(out, json_string_value(item), where);
        if (e.code) return e;
    }
    return err_none();
}

static bool has(const entry_list *l, const char *name) {
    for (size_t i = 0; i < l->n; i++) {
        const entry *x = &l->items[i];
        if (x->is_regex ? regexec(&x->regex, name, 0, NULL, 0) == 0
                        : !strcmp(x->text, name) || !strcmp(x->text, "Linear"))
            return true;
    }
    return false;
}

/* The one of n lists that has the name; -1 where *found, how many have it, is not 1. */
static int owner_of(const entry_list *lists, int n, const char *name, int *found) {
    int owner = -1;
    *found = 0;
    for (int g = 0; g < n; g++)
        if (has(&lists[g], name)) {
            owner = g;
            ++*found;
        }
    return *found == 1 ? owner : -1;
}

static err check_names(const entry_list *lists, int n, const entry_list *ignore, int64_t layers,
                       const char *where, int *owners) {
    static const char *const LINEARS[] = {
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};
    int found;
    for (int64_t i = 0; i < 7 * layers; i++) {
        char name[NAME_LEN];
        snprintf(name, sizeof name, "model.layers.%" PRId64 ".%s", i / 7, LINEARS[i % 7]);
        const int owner = owner_of(lists, n, name, &found);
        if (!found || has(ignore, name))
            return err_make(
                ERR_VERIFY, where, "take an archive in which all seven linears are quantized",
                "quantization_config: \"targets\" and \"ignore\" leave %s in 16 bits", name);
        if (found > 1)
            return err_make(
                ERR_VERIFY, where, "take an archive whose groups have no linear in common",
                "quantization_config: %d groups have %s among their \"targets\"", found, name);
        if (owners) owners[i] = owner;
    }
    owner_of(lists, n, "lm_head", &found);
    if (found && !has(ignore, "lm_head"))
        return err_make(ERR_VERIFY, where, "take an archive that leaves lm_head alone",
                        "quantization_config: \"targets\" and \"ignore\" quantize lm_head");
    return err_none();
}

err loader_targets_owners(const json_t *const *targets, int n, const json_t *ignore, int64_t layers,
                          const char *where, int *owners) {
    entry_list t[LOADER_GROUPS] = {{0}}, i = {0};
    err e = err_none();
    for (int g = 0; g < n && !e.code; g++) e = list_read(targets[g], "targets", where, &t[g]);
    if (!e.code) e = list_read(ignore, "ignore", where, &i);
    if (!e.code) e = check_names(t, n, &i, layers, where, owners);
    for (int g = 0; g < n; g++) list_clear(&t[g]);
    list_clear(&i);
    return e;
}
