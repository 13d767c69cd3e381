/* A scan that only counts brackets and commas bounds what the library may be asked to build; then
 * the library parses, and getters check types. */
#include "base/json.h"

#include "base/file.h"
#include "base/file_kind.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The library takes a value, with a table for each list and object, as soon as it sees it: some 40
 * times the bytes of "[[],[],...". So values are counted first; the largest files of users, of
 * tokenizers, have about a million. Counts a little too many: commas in strings too. */
enum { MAX_VALUES = 4 << 20, MAX_NESTED = 1 << 20 };

static void count_values(const char *text, size_t len, uint64_t *values, uint64_t *nested) {
    *values = *nested = 0;
    for (size_t i = 0; i < len; i++) {
        *nested += text[i] == '[' || text[i] == '{';
        *values += text[i] == ',';
    }
}

bool json_values_fit(const char *text, size_t len) {
    uint64_t values, nested;
    count_values(text, len, &values, &nested);
    return nested <= MAX_NESTED && values <= MAX_VALUES;
}

static err check_values(const char *text, size_t len, const char *where) {
    uint64_t values, nested;
    count_values(text, len, &values, &nested);
    if (nested <= MAX_NESTED && values <= MAX_VALUES) return err_none();
    return err_make(ERR_INPUT, where, NULL,
                    "%" PRIu64 " values in %" PRIu64
                    " lists and objects; at most %d in %d are read",
                    values, nested, MAX_VALUES, MAX_NESTED);
}

err json_parse(const char *text, size_t len, const char *where, json_t **out) {
    json_error_t why;
    *out = NULL;
    err e = check_values(text, len, where);
    if (e.code) return e;
    *out = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &why);
    if (*out) return err_none();
    e = file_kind_refuse(where, text, len, false, "JSON");
    if (e.code) return e;
    if (!len) return err_make(ERR_INPUT, where, "fetch the file again", "is empty, not JSON");
    return err_make(ERR_INPUT, where, "the file is damaged or not JSON",
                    "invalid JSON, line %d: %s", why.line, why.text);
}

err json_read_file(const char *path, uint64_t max_bytes, json_t **out) {
    char *text;
    size_t len;
    *out = NULL;
    err e = file_read_all(path, max_bytes, &text, &len);
    if (e.code) return e;
    e = json_parse(text, len, path, out);
    free(text);
    return e;
}

err json_text(const json_t *v, int indent, char **out, size_t *len) {
    size_t flags = JSON_ENCODE_ANY | JSON_REAL_PRECISION(17) | JSON_INDENT((size_t)indent);
    size_t n = json_dumpb(v, NULL, 0, flags);
    char *text = n ? malloc(n + 2) : NULL;
    if (!text) return err_make(ERR_BUG, "json_text", NULL, "cannot write a JSON value");
    json_dumpb(v, text, n, flags);
    text[n] = '\n';
    text[n + 1] = 0;
    *out = text;
    *len = n + 1;
    return err_none();
}

static err wrong_type(const char *where, const char *key, const char *want) {
    return err_make(ERR_INPUT, where, NULL, "\"%s\" must be %s", key, want);
}

static err missing(const char *where, const char *key) {
    return err_make(ERR_INPUT, where, NULL, "\"%s\" is missing", key);
}

static const json_t *member(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return v && json_is_null(v) ? NULL : v;
}

err json_opt_int(const json_t *o, const char *key, int64_t lo, int64_t hi, const char *where,
                 int64_t *out) {
    const json_t *v = member(o, key);
    if (!v) return err_none();
    if (!json_is_integer(v)) return wrong_type(where, key, "an integer");
    json_int_t n = json_integer_value(v);
    if (n < lo || n > hi)
        return err_make(ERR_INPUT, where, NULL,
                        "\"%s\" is %" PRId64 ", not in %" PRId64 "..%" PRId64, key, (int64_t)n, lo,
                        hi);
    *out = n;
    return err_none();
}

err json_get_int(const json_t *o, const char *key, int64_t lo, int64_t hi, const char *where,
                 int64_t *out) {
    return member(o, key) ? json_opt_int(o, key, lo, hi, where, out) : missing(where, key);
}

err json_opt_real(const json_t *o, const char *key, const char *where, double *out) {
    const json_t *v = member(o, key);
    if (!v) return err_none();
    if (!json_is_number(v)) return wrong_type(where, key, "a number");
    *out = json_number_value(v);
    return err_none();
}

err json_opt_bool(const json_t *o, const char *key, const char *where, bool *out) {
    const json_t *v = member(o, key);
    if (!v) return err_none();
    if (!json_is_boolean(v)) return wrong_type(where, key, "true or false");
    *out = json_is_true(v);
    return err_none();
}

err json_opt_str(const json_t *o, const char *key, const char *where, const char **out) {
    const json_t *v = member(o, key);
    if (!v) return err_none();
    if (!json_is_string(v)) return wrong_type(where, key, "a string");
    *out = json_string_value(v);
    return err_none();
}

err json_get_str(const json_t *o, const char *key, const char *where, const char **out) {
    return member(o, key) ? json_opt_str(o, key, where, out) : missing(where, key);
}

const char *json_word_of(const json_t *o, const char *key) {
    const char *s = json_string_value(json_object_get(o, key));
    return s ? s : "";
}

double json_real_of(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return json_is_number(v) ? json_number_value(v) : NAN;
}

json_t *json_four_digits(double x) {
    char text[32];
    snprintf(text, sizeof text, "%.4g", x);
    return isfinite(x) ? json_real(strtod(text, NULL)) : json_null();
}
