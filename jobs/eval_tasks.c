/* Prompts are made and tokenized on rank 0 and shared as ids; log likelihoods come back by
 * sequence and are compared within each question. */
#include "jobs/eval_tasks.h"

#include "base/file.h"
#include "base/log.h"
#include "base/size.h"
#include "io/text.h"
#include "jobs/setup/list_word.h"
#include "jobs/setup/setup.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PACK_TOKENS = 512 }; /* rows of a pass: products are at full speed from some 256 on */

/* ---- prompts ---- */

static size_t without_space(const char *text) {
    size_t n = strlen(text);
    while (n && strchr(" \t\r\n", text[n - 1])) n--;
    return n;
}

/* Beginning and whole of an option. Caller frees both. */
static void make_prompt(const eval_task *t, int64_t item, int k, char **head, char **whole) {
    const char *context = task_context(t->set, item, k), *end = task_continuation(t->set, item, k);
    const char *asks = task_set_shape(t->set) == TASK_CHOICES ? "\nAnswer:" : "";
    if (asprintf(head, "%.*s%s", (int)without_space(context), context, asks) < 0 ||
        asprintf(whole, "%s%s%s", *head, end[0] == ' ' ? "" : " ", end) < 0)
        abort();
}

static int64_t characters(const char *text) {
    int64_t n = 0;
    for (; *text; text++) n += ((unsigned char)*text & 0xc0) != 0x80;
    return n;
}

/* ---- sequences ---- */

typedef struct maker {
    eval_tasks *t;
    const source *source;
    const tokenizer *tokenizer;
    int32_t bos[TOKENIZER_MAX_AFFIX];
    int64_t n_bos, window;
    int64_t room_ids, room;
} maker;

static void append(maker *m, const int32_t *ids, int64_t n) {
    eval_tasks *t = m->t;
    if (t->n_ids + n > m->room_ids) {
        m->room_ids = 2 * (t->n_ids + n);
        t->ids = realloc(t->ids, (size_t)m->room_ids * sizeof *ids);
        if (!t->ids) abort();
    }
    memcpy(t->ids + t->n_ids, ids, (size_t)n * sizeof *ids);
    t->n_ids += n;
}

/* A sequence of `kept` tokens of ids [n] after BOS, of which those from `first` on are scored. */
static void add_sequence(maker *m, const int32_t *ids, int64_t n, int64_t first, int64_t kept) {
    eval_tasks *t = m->t;
    if (t->n_sequences == m->room) {
        m->room = m->room ? 2 * m->room : 1024;
        t->s = realloc(t->s, (size_t)m->room * sizeof *t->s);
        if (!t->s) abort();
    }
    append(m, m->bos, m->n_bos);
    append(m, ids + n - kept, kept);
    t->s[t->n_sequences++] =
        (task_sequence){.n = m->n_bos + kept, .first = first + m->n_bos + kept - n};
}

static err add_option(maker *m, const eval_task *task, int64_t item, int k) {
    char *head, *whole;
    int32_t *begin = NULL, *all = NULL;
    int64_t n_begin = 0, n = 0;
    make_prompt(task, item, k, &head, &whole);
    err e =
        source_encode(m->source, m->tokenizer, head, strlen(head), task->path, &begin, &n_begin);
    if (!e.code)
        e = source_encode(m->source, m->tokenizer, whole, strlen(whole), task->path, &all, &n);
    /* Something must stand before what is scored, and something must be scored. */
    const int64_t first = size_max(size_min(n_begin, n - 1), m->n_bos ? 0 : 1),
                  room = m->window - m->n_bos, kept = size_min(n, room);
    if (!e.code && (n < 1 || first >= n))
        e = err_make(ERR_INPUT, task->path, NULL, "item %" PRId64 ": no token is left to score",
                     item + 1);
    if (!e.code && (n - first > room || (!m->n_bos && n - first >= room)))
        e = err_make(ERR_USAGE, "--window", "make it longer",
                     "%s, item %" PRId64 ": an answer of %" PRId64
                     " tokens in a window of %" PRId64,
                     task->path, item + 1, n - first, m->window);
    if (!e.code) add_sequence(m, all, n, first, kept);
    m->t->shortened += !e.code && kept < n;
    free(begin);
    free(all);
    free(head);
    free(whole);
    return e;
}

static err add_task(maker *m, eval_task *task, int64_t limit) {
    err e = task_set_read(task->path, &task->set);
    if (e.code) return e;
    task->n = task_set_count(task->set);
    if (limit) task->n = size_min(task->n, limit);
    task->first = calloc((size_t)task->n + 1, sizeof *task->first);
    if (!task->first) abort();
    m->t->exact |= task_set_shape(task->set) == TASK_WORD;
    for (int64_t i = 0; i < task->n && !e.code; i++) {
        task->first[i] = m->t->n_sequences;
        for (int k = 0; k < task_options(task->set, i) && !e.code; k++)
            e = add_option(m, task, i, k);
    }
    task->first[task->n] = m->t->n_sequences;
    return e;
}

/* Root only. */
static err read_tasks(eval_tasks *t, const source *src, bos_mode bos, int64_t window,
                      int64_t limit) {
    tokenizer *tok;
    maker m = {.t = t, .source = src, .window = window};
    err e = source_tokenizer(src, &tok);
    if (e.code) return e;
    m.tokenizer = tok;
    if (bos != BOS_NONE) m.n_bos = tokenizer_prefix(tok, m.bos);
    if (bos == BOS_EACH_WINDOW && !m.n_bos && src->cfg.bos >= 0)
        m.bos[m.n_bos++] = (int32_t)src->cfg.bos;
    for (int i = 0; i < t->n && !e.code; i++) e = add_task(&m, &t->tasks[i], limit);
    tokenizer_destroy(&tok);
    if (t->shortened)
        log_line(LOG_WARN,
                 "tasks: %" PRId64 " sequences lose tokens at their beginning: longer than "
                 "--window %" PRId64,
                 t->shortened, window);
    return e;
}

/* "a,b" are two files, but for a file of that very name. */
static err take_names(const char *words, eval_tasks *out) {
    const bool one = access(words, F_OK) == 0;
    const char *at = one ? NULL : words;
    for (char *name = one ? strdup(words) : list_word_next(&at); name; name = list_word_next(&at)) {
        const bool empty = !*name;
        if (out->n == OPTIONS_MAX_VALUES || empty) {
            free(name);
            return err_make(ERR_USAGE, "--tasks", NULL,
                            empty ? "an empty name in a list of up to %d files"
                                  : "more than %d files",
                            OPTIONS_MAX_VALUES);
        }
        out->tasks[out->n++].path = name;
    }
    return err_none();
}

err eval_tasks_share(const comm *c, const options *o, const source *src, bos_mode bos,
                     int64_t window, int64_t limit, eval_tasks *out) {
    err e = err_none();
    *out = (eval_tasks){.n = 0};
    for (int i = 0; i < o->n_values[OPT_TASKS] && !e.code; i++)
        e = take_names(o->values[OPT_TASKS][i], out);
    e = comm_agree(c, e, "reading the flags", NULL);
    if (e.code || !out->n) return e;
    if (comm_rank(c) == 0) e = read_tasks(out, src, bos, window, limit);
    e = comm_agree(c, e, "reading the tasks", NULL);
    if (e.code) return e;
    comm_bcast(c, &out->exact, sizeof out->exact, 0);
    size_t n_ids = (size_t)out->n_ids * sizeof *out->ids,
           n_s = (size_t)out->n_sequences * sizeof *out->s;
    void *ids = out->ids, *s = out->s;
    comm_bcast_blob(c, &ids, &n_ids, 0);
    comm_bcast_blob(c, &s, &n_s, 0);
    out->ids = ids;
    out->s = s;
    out->n_ids = (int64_t)(n_ids / sizeof *out->ids);
    out->n_sequences = (int64_t)(n_s / sizeof *out->s);
    for (int64_t i = 0, at = 0; i < out->n_sequences; at += out->s[i++].n)
        out->s[i].ids = out->ids + at;
    task_packs_init(out->s, out->n_sequences, PACK_TOKENS, &out->packs);
    out->scores = calloc((size_t)out->n_sequences + 1, sizeof *out->scores);
    if (!out->scores) abort();
    return e;
}

void eval_tasks_clear(eval_tasks *t) {
    for (int i = 0; i < t->n; i++) {
        task_set_destroy(&t->tasks[i].set);
        free(t->tasks[i].path);
        free(t->tasks[i].first);
    }
    task_packs_clear(&t->packs);
    free(t->ids);
    free(t->s);
    free(t->scores);
}

/* ---- results ---- */

typedef struct result {
    double acc, acc_norm, error, error_norm; /* shares, and standard errors */
    double perplexity;                       /* of TASK_WORD */
} result;

static int best_of(const eval_tasks *t, const eval_task *task, int64_t item, bool norm) {
    int best = 0;
    double most = -INFINITY;
    for (int k = 0; k < task_options(task->set, item); k++) {
        double v = -t->scores[task->first[item] + k].nll;
        if (norm) v /= (double)characters(task_continuation(task->set, item, k));
        if (v > most) {
            most = v;
            best = k;
        }
    }
    return best;
}

static double standard_error(double share, int64_t n) {
    return n > 1 ? sqrt(share * (1 - share) / (double)(n - 1)) : 0;
}

static result result_of(const eval_tasks *t, const eval_task *task) {
    const bool word = task_set_shape(task->set) == TASK_WORD;
    const double n = (double)task->n;
    int64_t right = 0, right_norm = 0;
    double nll = 0;
    for (int64_t i = 0; i < task->n; i++) {
        const task_score *s = &t->scores[task->first[i]];
        nll += s->nll;
        right += word ? s->exact : best_of(t, task, i, false) == task_gold(task->set, i);
        right_norm += word ? s->exact : best_of(t, task, i, true) == task_gold(task->set, i);
    }
    const double acc = (double)right / n, norm = (double)right_norm / n;
    return (result){.acc = acc,
                    .acc_norm = norm,
                    .error = standard_error(acc, task->n),
                    .error_norm = standard_error(norm, task->n),
                    .perplexity = word ? exp(nll / n) : 0};
}

err eval_tasks_check(const eval_tasks *t) {
    for (int i = 0; i < t->n; i++)
        for (int64_t k = 0; k < t->tasks[i].n; k++)
            for (int64_t s = t->tasks[i].first[k]; s < t->tasks[i].first[k + 1]; s++)
                if (!isfinite(t->scores[s].nll))
                    return err_make(ERR_NUMERICS, t->tasks[i].path, NULL,
                                    "the likelihood of item %" PRId64 " is not a number", k + 1);
    return err_none();
}

/* "piqa" of "tasks/piqa.jsonl" */
static void name_of(const char *path, char name[128]) {
    snprintf(name, 128, "%s", file_base_of(path));
    char *dot = strrchr(name, '.');
    if (dot && dot != name) *dot = 0;
}

json_t *eval_tasks_json(const eval_tasks *t) {
    json_t *list = json_array();
    for (int i = 0; i < t->n; i++) {
        const result r = result_of(t, &t->tasks[i]);
        char name[128];
        name_of(t->tasks[i].path, name);
        json_t *v = json_pack("{s:s, s:I, s:f, s:f, s:f, s:f}", "task", name, "n",
                              (json_int_t)t->tasks[i].n, "acc", r.acc, "acc_norm", r.acc_norm,
                              "acc_stderr", r.error, "acc_norm_stderr", r.error_norm);
        if (r.perplexity > 0) json_object_set_new(v, "ppl", json_real(r.perplexity));
        json_array_append_new(list, v);
    }
    return list;
}

/* The mean over tasks; tasks are independent, so squares of their errors add up. */
static result average_of(const eval_tasks *t) {
    const double n = t->n;
    result sum = {0};
    for (int i = 0; i < t->n; i++) {
        const result r = result_of(t, &t->tasks[i]);
        sum.acc += r.acc / n;
        sum.acc_norm += r.acc_norm / n;
        sum.error = hypot(sum.error, r.error / n);
        sum.error_norm = hypot(sum.error_norm, r.error_norm / n);
    }
    return sum;
}

json_t *eval_tasks_average(const eval_tasks *t) {
    if (t->n < 2) return json_null();
    const result r = average_of(t);
    return json_pack("{s:i, s:f, s:f, s:f, s:f}", "tasks", t->n, "acc", r.acc, "acc_norm",
                     r.acc_norm, "acc_stderr", r.error, "acc_norm_stderr", r.error_norm);
}

void eval_tasks_print(const eval_tasks *t) {
    if (!t->n) return;
    printf("%-28s %8s %18s %18s\n", "task", "items", "accuracy", "per character");
    for (int i = 0; i < t->n; i++) {
        const result r = result_of(t, &t->tasks[i]);
        char name[128];
        name_of(t->tasks[i].path, name);
        printf("%-28s %8" PRId64 "   %6.2f %% +- %4.2f   %6.2f %% +- %4.2f", name, t->tasks[i].n,
               100 * r.acc, 100 * r.error, 100 * r.acc_norm, 100 * r.error_norm);
        if (r.perplexity > 0) printf("   perplexity %.4f", r.perplexity);
        puts("");
    }
    if (t->n < 2) return;
    const result r = average_of(t);
    printf("%-28s %8d   %6.2f %% +- %4.2f   %6.2f %% +- %4.2f\n", "average of tasks", t->n,
           100 * r.acc, 100 * r.error, 100 * r.acc_norm, 100 * r.error_norm);
}

static void add_line(const eval_tasks *t, const eval_task *task, int64_t item, FILE *f) {
    char name[128];
    json_t *loglik = json_array(), *chars = json_array();
    name_of(task->path, name);
    for (int k = 0; k < task_options(task->set, item); k++) {
        json_array_append_new(loglik, json_real(-t->scores[task->first[item] + k].nll));
        json_array_append_new(chars,
                              json_integer(characters(task_continuation(task->set, item, k))));
    }
    json_t *v =
        json_pack("{s:s, s:I, s:i, s:o, s:o}", "task", name, "item", (json_int_t)item, "gold",
                  task_gold(task->set, item), "loglikelihood", loglik, "characters", chars);
    if (task_set_shape(task->set) == TASK_WORD)
        json_object_set_new(v, "exact", json_boolean(t->scores[task->first[item]].exact));
    json_dumpf(v, f, JSON_COMPACT | JSON_REAL_PRECISION(17));
    fputc('\n', f);
    json_decref(v);
}

err eval_tasks_write(const eval_tasks *t, const char *path) {
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    if (!f) abort();
    for (int i = 0; i < t->n; i++)
        for (int64_t k = 0; k < t->tasks[i].n; k++) add_line(t, &t->tasks[i], k, f);
    fclose(f);
    err e = file_publish(path, text, len);
    free(text);
    return e;
}
