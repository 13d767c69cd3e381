/* Each pair of places is compared by itself. tokenizer.json counts for what begins a text, since
 * runtimes tokenize by it; generation_config.json counts where generation ends. */
#include "jobs/setup/source_tokens.h"

#include "base/log.h"

#include <inttypes.h>
#include <stdlib.h>

enum { MAX_JSON_BYTES = 64 << 20 };

/* A file of the folder as JSON; NULL where it is not there or is none: it contradicts nothing. */
static json_t *read_json(const fileset *files, const char *name) {
    char *text = NULL;
    size_t len;
    json_t *out = NULL;
    if (!fileset_read_all(files, name, MAX_JSON_BYTES, &text, &len).code &&
        json_parse_foreign(text, len, name, &out).code)
        out = NULL;
    free(text);
    return out;
}

/* True where an id, or a list of ids, names that one. */
static bool names(const json_t *ids, json_int_t id) {
    size_t i;
    json_t *each;
    if (json_is_integer(ids)) return json_integer_value(ids) == id;
    json_array_foreach(ids, i, each) if (json_integer_value(each) == id) return true;
    return false;
}

/* True where each id of a stands in b. */
static bool within(const json_t *a, const json_t *b) {
    size_t i;
    json_t *each;
    if (json_is_integer(a)) return names(b, json_integer_value(a));
    json_array_foreach(a, i, each) if (!names(b, json_integer_value(each))) return false;
    return true;
}

static void compare(const json_t *config, const json_t *generation, const char *key) {
    const json_t *a = json_object_get(config, key), *b = json_object_get(generation, key);
    if (!a || !b || json_is_null(a) || json_is_null(b) || (within(a, b) && within(b, a))) return;
    char *x = json_dumps(a, JSON_ENCODE_ANY | JSON_COMPACT),
         *y = json_dumps(b, JSON_ENCODE_ANY | JSON_COMPACT);
    if (x && y)
        log_line(LOG_RUN,
                 "warning: %s is %.80s in config.json and %.80s in generation_config.json: "
                 "runtimes generate by generation_config.json; both are copied as they are",
                 key, x, y);
    free(x);
    free(y);
}

void source_warn_tokens(const fileset *files, const json_t *config, const tokenizer *t) {
    int32_t ids[TOKENIZER_MAX_AFFIX];
    const int64_t n = tokenizer_prefix(t, ids);
    const json_t *bos = json_object_get(config, "bos_token_id");
    bool found = false;
    for (int64_t i = 0; i < n; i++) found = found || names(bos, ids[i]);
    if (n && bos && !json_is_null(bos) && !found)
        log_line(LOG_RUN,
                 "warning: tokenizer.json begins a text with the token %" PRId32 ", and "
                 "bos_token_id of config.json is another: tokenizer.json counts",
                 ids[0]);
    json_t *said = read_json(files, "tokenizer_config.json"),
           *generation = read_json(files, "generation_config.json");
    const json_t *add = json_object_get(said, "add_bos_token");
    if (json_is_boolean(add) && json_is_true(add) != (n > 0))
        log_line(LOG_RUN,
                 "warning: add_bos_token of tokenizer_config.json is %s, and tokenizer.json %s: "
                 "tokenizer.json counts here; transformers' LLaMA tokenizer goes by the former. "
                 "calib.bos says which it is to be",
                 json_is_true(add) ? "true" : "false",
                 n ? "puts a token before a text" : "puts none before a text");
    compare(config, generation, "bos_token_id");
    compare(config, generation, "eos_token_id");
    json_decref(said);
    json_decref(generation);
}
