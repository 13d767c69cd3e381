/* Rows are made one after the other in this process. The result of each is a file, so that whatever
 * interrupts the command, it goes on from the row where it was; the middle of a row is kept by
 * quantize itself. */
#include "jobs/compare.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/log.h"
#include "base/sha256.h"
#include "jobs/compare_table.h"
#include "jobs/eval.h"
#include "jobs/quantize.h"
#include "jobs/reporting/report_data.h"
#include "jobs/setup/list_word.h"
#include "jobs/setup/recipe.h"
#include "jobs/setup/source.h"
#include "jobs/setup/text_word.h"
#include "shard/runtimes.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Of each setting how it is commonly done, and ours. */
static const char COMMON[] =
    "rtn-w4a16,gptq-w4a16,best-w4a16,smoothquant-w8a8,spinquant-nohad-w4a8,best-w4a8,"
    "quarot-w4a4kv4,spinquant-had-w4a4kv4,best-w4a4kv4";

enum { RESULT_MOST_BYTES = 1 << 28, ROWS_MOST = OPTIONS_MAX_VALUES };

typedef struct compare_row {
    char recipe[256];        /* as given; "": the model as it is */
    char name[128];          /* of its folder and its file in OUT */
    char *out, *path;        /* that folder, for the model the model's; that file */
    char sha256[SHA256_HEX]; /* of the recipe's text */
} compare_row;

typedef struct compare_job {
    const comm *c;
    const options *o;
    const char *dir;
    int n;
    compare_row rows[ROWS_MOST];
    json_t *results; /* root: what is known of the rows so far, in their order */
} compare_job;

/* ---- what is to be compared ---- */

static err check_flags(const options *o) {
    if (!options_has(o, OPT_MODEL))
        return err_make(ERR_USAGE, "--model", NULL, "say which model: --model DIR");
    if (!options_has(o, OPT_OUT))
        return err_make(ERR_USAGE, "--out", NULL, "say where to: --out OUT");
    if (!options_has(o, OPT_TEXT) && !options_has(o, OPT_TASKS))
        return err_make(ERR_USAGE, "--text", NULL,
                        "say what to measure on: --text FILE, or --tasks FILE");
    return err_none();
}

/* rtn-w4a16 of my/rtn-w4a16.yaml. */
static void name_of(const char *given, char name[128]) {
    snprintf(name, 128, "%s", file_base_of(given));
    char *dot = strrchr(name, '.');
    if (dot && (!strcmp(dot, ".yaml") || !strcmp(dot, ".yml"))) *dot = 0;
}

static err add_row(compare_job *j, const char *given, size_t len) {
    compare_row *r = &j->rows[j->n];
    if (j->n == ROWS_MOST || len >= sizeof r->recipe)
        return err_make(ERR_USAGE, "--recipes", NULL, "at most %d names, of %zu bytes",
                        ROWS_MOST - 1, sizeof r->recipe - 1);
    snprintf(r->recipe, sizeof r->recipe, "%.*s", (int)len, given);
    if (len)
        name_of(r->recipe, r->name);
    else
        snprintf(r->name, sizeof r->name, "source");
    if (!strcmp(r->name, "settings"))
        return err_make(ERR_USAGE, "--recipes", "rename the file", "no row can be called settings");
    for (int i = 0; i < j->n; i++)
        if (!strcmp(j->rows[i].name, r->name))
            return err_make(ERR_USAGE, "--recipes", "rename a file", "two rows have the name %s",
                            r->name);
    char file[160];
    snprintf(file, sizeof file, "%s.json", r->name);
    r->path = file_join(j->dir, file);
    r->out = len ? file_join(j->dir, r->name) : strdup(options_str(j->o, OPT_MODEL));
    if (!r->out) abort();
    j->n++;
    return err_none();
}

static err list_rows(compare_job *j) {
    const char *given = options_str(j->o, OPT_RECIPES), *at = given ? given : COMMON;
    err e = add_row(j, "", 0);
    for (char *name; !e.code && (name = list_word_next(&at)); free(name))
        if (*name) e = add_row(j, name, strlen(name));
    if (!e.code && j->n == 1) e = err_make(ERR_USAGE, "--recipes", NULL, "names no recipe");
    return e;
}

/* Root only. A recipe that is not there is an error before any work. */
static err hash_recipes(compare_job *j) {
    err e = err_none();
    for (int i = 1; i < j->n && !e.code; i++) {
        char *path = NULL;
        e = recipe_find_file(j->rows[i].recipe, &path);
        if (!e.code) e = sha256_of_file(path, j->rows[i].sha256);
        free(path);
    }
    return e;
}

/* What is in a file, or in each of a list with commas, into *hex. */
static err hash_files(const char *list, char hex[SHA256_HEX]) {
    if (file_exists(list)) return sha256_of_file(list, hex);
    sha256 *all = sha256_create();
    err e = err_none();
    for (char *path, one[SHA256_HEX]; !e.code && (path = list_word_next(&list)); free(path)) {
        if (!*path) continue; /* whoever reads the list refuses it */
        e = sha256_of_file(path, one);
        if (!e.code) sha256_add(all, one, SHA256_HEX - 1);
    }
    sha256_finish(&all, hex);
    return e;
}

typedef enum word_kind { WORD_PLAIN, WORD_TEXT, WORD_FILES } word_kind;

/* Local. Words of a flag, and for flags that name files what is in them. */
static err add_words(json_t *to, const options *o, option opt, const char *key, word_kind kind) {
    json_t *list = json_array();
    err e = err_none();
    for (int i = 0; i < o->n_values[opt] && !e.code; i++) {
        json_t *one = json_pack("{s:s}", "given", o->values[opt][i]);
        text_word word = {.path = NULL};
        char hex[SHA256_HEX] = "";
        if (!one) e = err_make(ERR_USAGE, key, NULL, "a word of it is not UTF-8");
        if (!e.code && kind == WORD_TEXT) e = text_word_parse(o->values[opt][i], &word);
        if (!e.code && kind == WORD_TEXT) e = sha256_of_file(word.path, hex);
        if (!e.code && kind == WORD_FILES) e = hash_files(o->values[opt][i], hex);
        if (hex[0]) json_object_set_new(one, "sha256", json_string(hex));
        json_array_append_new(list, one);
        free(word.path);
    }
    if (json_array_size(list)) json_object_set(to, key, list);
    json_decref(list);
    return e;
}

/* Root only. OUT holds results of one model, its texts and settings. */
static err check_settings(const compare_job *j) {
    static const struct {
        option opt;
        const char *key;
        word_kind kind;
    } which[] = {
        {OPT_MODEL, "model", WORD_PLAIN},   {OPT_CALIB, "calib", WORD_FILES},
        {OPT_CALIB_MIX, "mix", WORD_PLAIN}, {OPT_CALIB_IDS, "calib_ids", WORD_FILES},
        {OPT_SET, "set", WORD_PLAIN},       {OPT_SEED, "seed", WORD_PLAIN},
        {OPT_TEXT, "text", WORD_TEXT},      {OPT_TASKS, "tasks", WORD_FILES},
        {OPT_WINDOW, "window", WORD_PLAIN}, {OPT_LIMIT, "limit", WORD_PLAIN},
        {OPT_TAIL, "tail", WORD_PLAIN},     {OPT_DTYPE, "dtype", WORD_PLAIN},
    };
    json_t *now = json_object(), *then = NULL;
    char *path = file_join(j->dir, "settings.json"), *text = NULL;
    size_t len, n = sizeof which / sizeof which[0];
    err e = err_none();
    for (size_t i = 0; i < n && !e.code; i++)
        e = add_words(now, j->o, which[i].opt, which[i].key, which[i].kind);
    if (!e.code && file_exists(path)) {
        e = json_read_file(path, RESULT_MOST_BYTES, &then);
        for (size_t i = 0; i < n && !e.code; i++) {
            const json_t *a = json_object_get(now, which[i].key),
                         *b = json_object_get(then, which[i].key);
            if (a != b && !json_equal(a, b))
                e = err_make(ERR_MISMATCH, j->dir, "choose another --out",
                             "holds results of another %s", which[i].key);
        }
    } else if (!e.code) {
        e = file_make_dirs(j->dir);
        if (!e.code) e = json_text(now, 1, &text, &len);
        if (!e.code) e = file_publish(path, text, len);
    }
    json_decref(now);
    json_decref(then);
    free(text);
    free(path);
    return e;
}

/* ---- one row ---- */

typedef enum row_state { ROW_NEW, ROW_OF_OTHER_RECIPE, ROW_DONE } row_state;

/* Collective. Root looks for the result of a row; *result at root where it is there. */
static err find_row(const compare_job *j, const compare_row *r, row_state *state, json_t **result) {
    err e = err_none();
    *state = ROW_NEW;
    *result = NULL;
    if (comm_rank(j->c) == 0 && file_exists(r->path)) {
        e = json_read_file(r->path, RESULT_MOST_BYTES, result);
        if (!e.code)
            *state = strcmp(json_word_of(*result, "recipe_sha256"), r->sha256) != 0
                         ? ROW_OF_OTHER_RECIPE
                         : ROW_DONE;
        if (!e.code && *state != ROW_DONE) {
            json_decref(*result);
            *result = NULL;
        }
    }
    e = comm_agree(j->c, e, "reading the results", NULL);
    comm_bcast(j->c, state, sizeof *state, 0);
    return e;
}

/* The flags of quantize among those of compare. */
static err quantize_row(const compare_job *j, const compare_row *r) {
    options *q = malloc(sizeof *q);
    if (!q) abort();
    *q = *j->o;
    q->values[OPT_OUT][0] = r->out;
    q->values[OPT_RECIPE][0] = r->recipe;
    q->n_values[OPT_RECIPE] = 1;
    q->n_values[OPT_JSON] = 0;
    err e = job_quantize(j->c, q);
    free(q);
    return e;
}

static err eval_row(const compare_job *j, const compare_row *r, json_t **told) {
    options *v = malloc(sizeof *v);
    if (!v) abort();
    *v = *j->o;
    v->values[OPT_MODEL][0] = r->out;
    v->n_values[OPT_SET] = v->n_values[OPT_SEED] = 0; /* the archive holds its recipe */
    if (r->recipe[0] && options_has(j->o, OPT_TEXT)) {
        v->values[OPT_AGAINST][0] = options_str(j->o, OPT_MODEL);
        v->n_values[OPT_AGAINST] = 1;
    }
    err e = eval_measure(j->c, v, told);
    free(v);
    return e;
}

static void ignore_note(void *arg, runtime_verdict verdict, const char *what) {
    (void)what;
    if (verdict == RUNTIME_STOPS) *(bool *)arg = true;
}

/* Collective. Runtimes that nothing stops from loading the archive; null for a plain folder. */
static err judge_row(const compare_job *j, const compare_row *r, json_t **runtimes) {
    source s = {.ck = NULL};
    err e = source_open(j->c, r->out, &s);
    *runtimes = json_null();
    if (!e.code && s.linears.form) {
        const runtime_facts facts = source_facts(&s, 1);
        *runtimes = json_array();
        for (int i = 0; runtime_name(i); i++) {
            bool stops = false;
            runtime_judge(i, &facts, ignore_note, &stops);
            if (!stops) json_array_append_new(*runtimes, json_string(runtime_name(i)));
        }
    }
    source_close(&s);
    return e;
}

/* Usage, input, does not fit, numerics: of this recipe on this model or machine; but not what is
 * wrong with the folder of its archive. */
static bool is_refusal(const compare_row *r, const err *e) {
    return r->recipe[0] && strcmp(e->where, r->out) != 0 && !e->of_system &&
           (e->code == ERR_USAGE || e->code == ERR_INPUT || e->code == ERR_NOFIT ||
            e->code == ERR_NUMERICS);
}

/* Collective. Make and measure; *result at root. A refusal is a result as well. */
static err make_row(const compare_job *j, const compare_row *r, json_t **result) {
    const bool root = comm_rank(j->c) == 0;
    json_t *told = NULL, *runtimes = NULL, *report = NULL;
    *result = NULL;
    err e = r->recipe[0] ? quantize_row(j, r) : err_none();
    if (!e.code) e = eval_row(j, r, &told);
    if (is_refusal(r, &e)) {
        if (root)
            *result = json_pack("{s:s, s:s, s:s}", "recipe_sha256", r->sha256, "refused", e.what,
                                "where", e.where);
        if (root && !*result) /* a text that was cut within a character */
            *result = json_pack("{s:s, s:s}", "recipe_sha256", r->sha256, "refused", "see the log");
        json_decref(told);
        return err_none();
    }
    if (!e.code && r->recipe[0]) e = judge_row(j, r, &runtimes);
    if (!e.code && root && r->recipe[0]) e = report_collect(r->out, NULL, 0, &report);
    e = comm_agree(j->c, e, r->name, NULL);
    if (!e.code && root)
        *result = json_pack("{s:s, s:O, s:O*, s:O*}", "recipe_sha256", r->sha256, "eval", told,
                            "runtimes", runtimes, "report", report);
    json_decref(told);
    json_decref(runtimes);
    json_decref(report);
    return e;
}

/* Root only. A refusal is tried again by the next start, maybe with more memory: it is not kept. */
static err keep_row(const compare_job *j, const compare_row *r, const json_t *result) {
    if (json_object_get(result, "refused")) return err_none();
    char *text = NULL;
    size_t len;
    err e = json_text(result, 1, &text, &len);
    if (!e.code) e = file_publish(r->path, text, len);
    if (!e.code && r->recipe[0] && options_has(j->o, OPT_DROP_ARCHIVES))
        e = file_remove_tree(r->out);
    free(text);
    return e;
}

/* Root only. What an edited recipe made before goes, the result last, so that a kill between
 * repeats it; and an archive that is measured, where archives are not kept. */
static err clean_row(const compare_job *j, const compare_row *r, row_state state) {
    const bool other = state == ROW_OF_OTHER_RECIPE,
               dropped = state == ROW_DONE && options_has(j->o, OPT_DROP_ARCHIVES);
    if (!r->recipe[0] || (!other && !dropped)) return err_none();
    err e = file_remove_tree(r->out);
    if (!e.code && other && remove(r->path) != 0) e = err_errno(r->path, "remove");
    return e;
}

static err do_row(const compare_job *j, const compare_row *r) {
    const double start = clock_now_s();
    row_state state;
    json_t *result;
    err e = find_row(j, r, &state, &result);
    if (!e.code && comm_rank(j->c) == 0) e = clean_row(j, r, state);
    e = comm_agree(j->c, e, r->name, NULL);
    if (!e.code && state != ROW_DONE) {
        e = make_row(j, r, &result);
        if (!e.code) {
            if (comm_rank(j->c) == 0) e = keep_row(j, r, result);
            e = comm_agree(j->c, e, r->name, NULL);
        }
        if (!e.code && comm_rank(j->c) == 0)
            log_line(LOG_PHASE, "compare: %s %s after %.0f s", r->name,
                     json_object_get(result, "refused") ? "is refused" : "is measured",
                     clock_now_s() - start);
    }
    if (!e.code && comm_rank(j->c) == 0) {
        json_object_set_new(result, "name", json_string(r->name));
        json_array_append(j->results, result);
    }
    json_decref(result);
    return e;
}

err job_compare(const comm *c, const options *o) {
    compare_job j = {.c = c, .o = o, .dir = options_str(o, OPT_OUT), .results = json_array()};
    err e = check_flags(o);
    if (!e.code) e = list_rows(&j);
    if (!e.code && comm_rank(c) == 0) {
        e = hash_recipes(&j);
        if (!e.code) e = check_settings(&j);
    }
    e = comm_agree(c, e, "reading the flags", NULL);
    for (int i = 0; i < j.n && !e.code; i++) e = do_row(&j, &j.rows[i]);
    if (!e.code) {
        if (comm_rank(c) == 0) e = compare_write(j.dir, j.results, o);
        e = comm_agree(c, e, "writing the table", NULL);
    }
    for (int i = 0; i < j.n; i++) {
        free(j.rows[i].out);
        free(j.rows[i].path);
    }
    json_decref(j.results);
    return e;
}
