/* A block of YAML at the head of README.md, between two lines of three dashes. */
#include "shard/card_front.h"

#include "base/log.h"
#include "base/yaml.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_CARD_BYTES = 16 << 20, MAX_TAGS = 64 };

/* The block of a card, cut out in place; NULL: none. */
static char *block_of(char *text) {
    char *from = strchr(text, '\n');
    if (strncmp(text, "---", 3) || !from || strspn(text + 3, " \r") != (size_t)(from - text - 3))
        return NULL;
    char *end = strstr(from, "\n---");
    if (!end) return NULL;
    end[1] = 0;
    return from + 1;
}

err card_front_read(const fileset *source, json_t **out) {
    char *text;
    size_t len;
    *out = NULL;
    if (!fileset_find(source, "README.md", NULL, NULL, NULL)) return err_none();
    if (fileset_read_all(source, "README.md", MAX_CARD_BYTES, &text, &len).code) return err_none();
    const char *block = block_of(text);
    err e = block ? yaml_parse(block, strlen(block), "README.md", out) : err_none();
    if (e.code)
        log_line(LOG_RUN,
                 "README.md of the source: %s; its licence, languages and tags are left out",
                 e.what);
    if (!json_is_object(*out)) {
        json_decref(*out);
        *out = NULL;
    }
    free(text);
    return err_none();
}

static bool holds(const json_t *list, const char *word) {
    size_t i;
    json_t *v;
    json_array_foreach((json_t *)list, i, v) {
        if (json_is_string(v) && !strcmp(json_string_value(v), word)) return true;
    }
    return false;
}

static json_t *tags_of(const json_t *source, const form_scheme *s) {
    const json_t *theirs = json_object_get(source, "tags");
    char size[16];
    size_t i;
    json_t *v;
    const bool files = form_has_files(s->form);
    json_t *tags = json_pack("[s]", "spinshard");
    if (s->form)
        json_array_append_new(tags, json_string(files ? s->form->name : form_method_name(s->form)));
    snprintf(size, sizeof size, "int%d", s->bits);
    if (form_rounds(s)) json_array_append_new(tags, json_string(size));
    json_array_foreach((json_t *)theirs, i, v) {
        if (i < MAX_TAGS && json_is_string(v) && !holds(tags, json_string_value(v)))
            json_array_append(tags, v);
    }
    return tags;
}

/* Values as JSON, which is YAML: hubs read version 1.1 of it, to which a bare `no` is false and not
 * Norwegian. */
static void put_line(FILE *f, const char *key, const json_t *value) {
    char *text = json_dumps(value, JSON_ENCODE_ANY);
    if (!text) abort();
    json_unmark(text);
    fprintf(f, "%s: %s\n", key, text);
    free(text);
}

void card_front_put(FILE *f, const json_t *source, const char *base_model, const form_scheme *s) {
    static const char *const KEPT[] = {"license", "license_name", "license_link", "language",
                                       "pipeline_tag"};
    fputs("---\n", f);
    if (base_model) fprintf(f, "base_model: %s\n", base_model);
    if (base_model && form_rounds(s)) fputs("base_model_relation: quantized\n", f);
    if (!form_has_files(s->form)) fputs("library_name: transformers\n", f);
    for (size_t i = 0; i < sizeof KEPT / sizeof *KEPT; i++) {
        const json_t *v = json_object_get(source, KEPT[i]);
        if (json_is_string(v) || json_is_array(v)) put_line(f, KEPT[i], v);
    }
    json_t *tags = tags_of(source, s);
    put_line(f, "tags", tags);
    json_decref(tags);
    fputs("---\n", f);
}
