/* The newest readable line of state.json is the state; a commit writes the new and the last
 * generation to a file aside and renames it. The fingerprint is compared key by key. */
#include "io/run_state.h"

#include "base/file.h"
#include "base/log.h"
#include "io/run_owner.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_STATE_BYTES = 64 << 20 };
static const char FORMAT[] = "spinshard-state/1";

struct run_state {
    char *out_dir, *run_dir, *path;
    json_t *body;     /* {format, generation, slice, phase, fingerprint, work} */
    json_t *previous; /* the body before it, or NULL */
    bool resumed;
    run_owner *owner;
};

/* A generation on its line: {"sha256": hash of the body's text, "body": {...}}. */
static char *line_of(const json_t *body) {
    char *text = json_dumps(body, JSON_COMPACT | JSON_REAL_PRECISION(17)), hex[SHA256_HEX], *line;
    if (!text) abort();
    sha256_of(text, strlen(text), hex);
    if (asprintf(&line, "{\"sha256\":\"%s\",\"body\":%s}", hex, text) < 0) abort();
    free(text);
    return line;
}

/* What write_state writes; a body of another shape is damage, whatever its hash. */
static bool is_body(const json_t *v) {
    const char *format = json_string_value(json_object_get(v, "format"));
    const json_t *generation = json_object_get(v, "generation"),
                 *slice = json_object_get(v, "slice");
    return format && !strcmp(format, FORMAT) && json_is_string(json_object_get(v, "phase")) &&
           json_is_integer(generation) && json_integer_value(generation) >= 0 &&
           json_integer_value(generation) < INT64_MAX && json_is_integer(slice) &&
           json_integer_value(slice) >= 0 && json_integer_value(slice) < INT32_MAX &&
           json_is_object(json_object_get(v, "fingerprint")) &&
           json_is_object(json_object_get(v, "work"));
}

/* The body on a line, or NULL where the line is damaged. The hash is over the text as it stands. */
static json_t *body_of(const char *line, size_t len) {
    enum { HEAD = 11, BODY = HEAD + 64 + 9 }; /* {"sha256":" hash ","body": */
    if (len < BODY + 3 || strncmp(line, "{\"sha256\":\"", HEAD) ||
        strncmp(line + HEAD + 64, "\",\"body\":", 9) || line[len - 1] != '}')
        return NULL;
    char hex[SHA256_HEX];
    sha256_of(line + BODY, len - 1 - BODY, hex);
    if (strncmp(hex, line + HEAD, 64)) return NULL;
    json_t *body;
    err e = json_parse(line + BODY, len - 1 - BODY, "state.json", &body);
    if (e.code || is_body(body)) return e.code ? NULL : body;
    json_decref(body);
    return NULL;
}

/* state.json is an array of one or two generations, a line each, so that damage to one line leaves
 * the other readable. */
static err read_state(const char *path, json_t **current, json_t **previous, bool *fell_back) {
    char *text;
    size_t len;
    *current = *previous = NULL;
    *fell_back = false;
    err e = file_read_all(path, MAX_STATE_BYTES, &text, &len);
    if (e.code) return e;
    json_t *found[2] = {NULL, NULL};
    int n_lines = 0;
    for (char *at = text, *end; at < text + len && n_lines < 2; at = end + 1) {
        end = memchr(at, '\n', (size_t)(text + len - at));
        if (!end) end = text + len;
        size_t n = (size_t)(end - at);
        if (n < 3) continue; /* the brackets of the array */
        if (at[n - 1] == ',') n--;
        found[n_lines++] = body_of(at, n);
    }
    free(text);
    *fell_back = n_lines > 0 && !found[0];
    *current = found[0] ? found[0] : found[1];
    *previous = found[0] ? found[1] : NULL;
    if (*current) return e;
    return err_make(ERR_MISMATCH, path, "start over: remove the run folder, or give --force",
                    "both generations of the run state are damaged");
}

static err write_state(run_state *rs) {
    char *now = line_of(rs->body), *before = rs->previous ? line_of(rs->previous) : NULL, *text;
    int n = before ? asprintf(&text, "[\n%s,\n%s\n]\n", now, before)
                   : asprintf(&text, "[\n%s\n]\n", now);
    if (n < 0) abort();
    err e = file_publish(rs->path, text, (size_t)n);
    free(text);
    free(now);
    free(before);
    return e;
}

/* Dotted paths of what differs between two trees, at most a handful. */
static void differences(const json_t *a, const json_t *b, const char *path, char *list,
                        size_t size) {
    if (json_equal((json_t *)(uintptr_t)a, (json_t *)(uintptr_t)b) || strlen(list) > size / 2)
        return;
    if (json_is_object(a) && json_is_object(b)) {
        const char *key;
        json_t *item;
        char inner[256];
        json_object_foreach((json_t *)(uintptr_t)a, key, item) {
            snprintf(inner, sizeof inner, "%s%s%s", path, *path ? "." : "", key);
            differences(item, json_object_get(b, key), inner, list, size);
        }
        json_object_foreach((json_t *)(uintptr_t)b, key, item) {
            snprintf(inner, sizeof inner, "%s%s%s", path, *path ? "." : "", key);
            if (!json_object_get(a, key)) differences(NULL, item, inner, list, size);
        }
        return;
    }
    char *was = json_dumps(a, JSON_ENCODE_ANY | JSON_COMPACT),
         *is = json_dumps(b, JSON_ENCODE_ANY | JSON_COMPACT);
    size_t used = strlen(list);
    snprintf(list + used, size - used, "%s%s (was %.40s, is %.40s)", used ? ", " : "", path,
             was ? was : "absent", is ? is : "absent");
    free(was);
    free(is);
}

void run_state_differences(const json_t *then, const json_t *now, char *list, size_t size) {
    list[0] = 0;
    differences(then, now, "", list, size);
}

static err check_fingerprint(const run_state *rs, const json_t *now) {
    const json_t *then = json_object_get(rs->body, "fingerprint");
    if (json_equal((json_t *)(uintptr_t)then, (json_t *)(uintptr_t)now)) return err_none();
    char list[400];
    run_state_differences(then, now, list, sizeof list);
    return err_make(ERR_MISMATCH, rs->run_dir,
                    "repeat the command that began this run, or start over with --force",
                    "an unfinished run with other settings is here: %s", list);
}

/* Every string of a tree that can be the name of an object becomes a key: what the caller means by
 * it is not asked, so a hash of something else keeps an object at worst. */
static void collect_names(const json_t *v, json_t *names) {
    json_t *tree = (json_t *)(uintptr_t)v, *item;
    const char *text = json_string_value(v), *key;
    size_t i;
    if (text && run_object_is_name(text)) json_object_set_new(names, text, json_true());
    json_array_foreach(tree, i, item) collect_names(item, names);
    json_object_foreach(tree, key, item) collect_names(item, names);
}

/* Objects of either generation stay: the older one is gone back to where the newer is damaged. */
static void sweep(const run_state *rs) {
    json_t *names = json_object();
    if (!names) abort();
    collect_names(rs->body, names);
    collect_names(rs->previous, names);
    run_objects_sweep(rs->out_dir, names);
    json_decref(names);
}

static void fresh_body(run_state *rs, const json_t *fingerprint) {
    rs->body = json_pack("{s:s, s:i, s:i, s:s, s:O, s:{}}", "format", FORMAT, "generation", 0,
                         "slice", 0, "phase", "load", "fingerprint", fingerprint, "work");
    if (!rs->body) abort();
}

static err resume(run_state *rs, const json_t *fingerprint) {
    bool fell_back;
    err e = read_state(rs->path, &rs->body, &rs->previous, &fell_back);
    if (!e.code) e = check_fingerprint(rs, fingerprint);
    if (e.code) return e;
    if (fell_back)
        log_line(LOG_WARN,
                 "%s: the newest generation is damaged; going on from the one before (%" PRId64 ")",
                 rs->path, (int64_t)json_integer_value(json_object_get(rs->body, "generation")));
    rs->resumed = true;
    int slice = run_state_slice(rs) + 1;
    json_object_set_new(rs->body, "slice", json_integer(slice));
    return e;
}

static void free_state(run_state *rs) {
    json_decref(rs->body);
    json_decref(rs->previous);
    free(rs->out_dir);
    free(rs->run_dir);
    free(rs->path);
    free(rs);
}

err run_state_open(const char *out_dir, const json_t *fingerprint, bool take_over,
                   run_state **out) {
    run_state *rs = calloc(1, sizeof *rs);
    *out = NULL;
    if (!rs) abort();
    rs->out_dir = strdup(out_dir);
    rs->run_dir = file_join(out_dir, "run");
    rs->path = file_join(rs->run_dir, "state.json");
    char *objects = file_join(rs->run_dir, "objects");
    err e = file_make_dirs(objects);
    free(objects);
    if (!e.code) e = run_owner_take(rs->run_dir, take_over, &rs->owner);
    if (!e.code && file_exists(rs->path))
        e = resume(rs, fingerprint);
    else if (!e.code)
        fresh_body(rs, fingerprint);
    if (!e.code) sweep(rs);
    if (!e.code) e = run_state_commit(rs, run_state_phase(rs));
    if (e.code) {
        run_owner_give_back(&rs->owner);
        free_state(rs);
        return e;
    }
    *out = rs;
    return e;
}

err run_state_close(run_state **rs, bool remove) {
    if (!*rs) return err_none();
    /* The state goes first: a kill in the middle of the removal must not leave a state whose
     * objects are gone. */
    err e = err_none();
    if (remove) e = file_remove_tree((*rs)->path);
    run_owner_give_back(&(*rs)->owner);
    if (remove && !e.code) e = file_remove_tree((*rs)->run_dir);
    free_state(*rs);
    *rs = NULL;
    return e;
}

bool run_state_resumed(const run_state *rs) {
    return rs->resumed;
}

int run_state_slice(const run_state *rs) {
    return (int)json_integer_value(json_object_get(rs->body, "slice"));
}

const char *run_state_phase(const run_state *rs) {
    const char *phase = json_string_value(json_object_get(rs->body, "phase"));
    return phase ? phase : "load";
}

json_t *run_state_work(run_state *rs) {
    return json_object_get(rs->body, "work");
}

err run_state_commit(run_state *rs, const char *phase) {
    char *named = strdup(phase); /* may point into the body */
    if (!named) abort();
    json_int_t generation = json_integer_value(json_object_get(rs->body, "generation"));
    json_object_set_new(rs->body, "generation", json_integer(generation + 1));
    json_object_set_new(rs->body, "phase", json_string(named));
    free(named);
    err e = run_owner_check(rs->owner);
    if (!e.code) e = write_state(rs);
    /* What was durable before is the previous generation of the next commit. */
    json_decref(rs->previous);
    rs->previous = json_deep_copy(rs->body);
    run_owner_heartbeat(rs->owner);
    return e;
}

err run_state_check_owner(const run_state *rs) {
    return run_owner_check(rs->owner);
}

void run_state_heartbeat(run_state *rs) {
    run_owner_heartbeat(rs->owner);
}

err run_state_peek(const char *out_dir, json_t **out) {
    char *dir = file_join(out_dir, "run"), *path = file_join(dir, "state.json");
    json_t *previous;
    bool fell_back;
    err e = read_state(path, out, &previous, &fell_back);
    json_decref(previous);
    free(dir);
    free(path);
    return e;
}
