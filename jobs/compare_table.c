/* Cells are made first, so that columns are as wide as their widest cell. */
#include "jobs/compare_table.h"

#include "base/file.h"
#include "base/log.h"
#include "jobs/reporting/report_page.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { COLUMNS_MOST = 3 * OPTIONS_MAX_VALUES, CELL = 96 };

/* One line of the table; a row that is refused has its reason behind its name and no other cell. */
typedef struct line {
    int n;
    char cell[COLUMNS_MOST][CELL];
} line;

__attribute__((format(printf, 2, 3))) static void add(line *l, const char *form, ...) {
    if (l->n == COLUMNS_MOST) return;
    va_list args;
    va_start(args, form);
    vsnprintf(l->cell[l->n++], CELL, form, args);
    va_end(args);
}

static void add_number(line *l, const char *form, double v) {
    char text[CELL] = "";
    if (isfinite(v)) snprintf(text, sizeof text, form, v);
    add(l, "%s", text);
}

/* stories of data/stories.txt */
static void add_stem(line *l, const char *path, const char *behind) {
    const char *base = file_base_of(path), *dot = strrchr(base, '.');
    add(l, "%.*s%s", (int)(dot && dot != base ? dot - base : (long)strlen(base)), base, behind);
}

/* A share of 1 in %, with its error. */
static void add_share(line *l, const json_t *of, const char *key, const char *error) {
    const double v = json_real_of(of, key), e = json_real_of(of, error);
    if (!isfinite(v))
        add(l, "%s", "");
    else if (isfinite(e))
        add(l, "%.1f +- %.1f", 100 * v, 100 * e);
    else
        add(l, "%.1f", 100 * v);
}

/* Columns by what the model itself was measured on, which all rows were. */
static void head_of(const json_t *eval, line *l) {
    const json_t *texts = json_object_get(eval, "perplexity"),
                 *tasks = json_object_get(eval, "tasks");
    size_t i;
    json_t *v;
    add(l, "recipe");
    json_array_foreach((json_t *)(uintptr_t)texts, i, v) {
        add_stem(l, json_word_of(v, "text"), "");
        add(l, "KL");
    }
    json_array_foreach((json_t *)(uintptr_t)tasks, i, v) add_stem(l, json_word_of(v, "task"), " %");
    if (json_array_size(tasks) > 1) add(l, "mean %%");
    add(l, "MiB");
    add(l, "seconds");
    add(l, "MiB a rank");
    add(l, "runs in");
}

static double peak_of(const json_t *report) {
    const json_t *phases = json_object_get(json_object_get(report, "run"), "phases");
    double most = NAN;
    size_t i;
    json_t *v;
    json_array_foreach((json_t *)(uintptr_t)phases, i, v) most =
        fmax(most, json_real_of(v, "peak_rss_bytes"));
    return most;
}

static void add_runtimes(line *l, const json_t *row) {
    const json_t *list = json_object_get(row, "runtimes");
    char text[CELL] = "";
    size_t i, used = 0;
    json_t *v;
    json_array_foreach((json_t *)(uintptr_t)list, i, v) used += (size_t)snprintf(
        text + used, used < CELL ? CELL - used : 0, "%s%s", i ? " " : "", json_string_value(v));
    const bool is_archive = json_is_array(list) && json_object_get(row, "report");
    add(l, "%s", is_archive && !used ? "eval alone" : text);
}

static void row_of(const json_t *row, line *l) {
    const json_t *eval = json_object_get(row, "eval"), *report = json_object_get(row, "report"),
                 *summary = json_object_get(report, "summary"),
                 *tasks = json_object_get(eval, "tasks"),
                 *mean = json_object_get(eval, "tasks_average");
    size_t i;
    json_t *v;
    add(l, "%s", json_word_of(row, "name"));
    json_array_foreach(json_object_get(eval, "perplexity"), i, v) {
        add_number(l, "%.3f", json_real_of(v, "ppl"));
        add_number(l, "%.4f", json_real_of(json_object_get(v, "against"), "kl_mean"));
    }
    json_array_foreach((json_t *)(uintptr_t)tasks, i, v) add_share(l, v, "acc", "acc_stderr");
    if (json_array_size(tasks) > 1) add_share(l, mean, "acc", "acc_stderr");
    add_number(l, "%.1f", json_real_of(summary, "tar_bytes") / 1048576);
    add_number(l, "%.0f", json_real_of(summary, "seconds"));
    add_number(l, "%.0f", peak_of(report) / 1048576);
    add_runtimes(l, row);
}

static void print_line(const line *l, const int *width, const char *reason) {
    fputs("|", stdout);
    for (int i = 0; i < l->n; i++) printf(" %-*s |", width[i], l->cell[i]);
    if (reason) printf(" %s |", reason);
    puts("");
}

static void print_rule(int n, const int *width) {
    fputs("|", stdout);
    for (int i = 0; i < n; i++) {
        for (int k = 0; k < width[i] + 2; k++) putchar('-');
        putchar('|');
    }
    puts("");
}

static void print_table(const json_t *results) {
    const size_t n = json_array_size(results) + 1;
    line *lines = calloc(n, sizeof *lines);
    int width[COLUMNS_MOST] = {0};
    if (!lines) abort();
    head_of(json_object_get(json_array_get(results, 0), "eval"), &lines[0]);
    for (size_t i = 1; i < n; i++) {
        const json_t *row = json_array_get(results, i - 1);
        if (json_object_get(row, "refused"))
            add(&lines[i], "%s", json_word_of(row, "name"));
        else
            row_of(row, &lines[i]);
    }
    for (size_t i = 0; i < n; i++)
        for (int c = 0; c < lines[i].n; c++) {
            const int w = (int)strlen(lines[i].cell[c]);
            if (w > width[c]) width[c] = w;
        }
    for (size_t i = 0; i < n; i++) {
        const json_t *why = i ? json_object_get(json_array_get(results, i - 1), "refused") : NULL;
        print_line(&lines[i], width, why ? json_string_value(why) : NULL);
        if (!i) print_rule(lines[0].n, width);
    }
    free(lines);
}

/* The first row that has a report, with the others beside it, and what eval said of all. */
static err write_page(const char *dir, const json_t *results) {
    json_t *page = NULL, *beside = json_array(), *accuracy = json_array(), *row;
    size_t i, len = 0;
    char *text = NULL, *path = file_join(dir, "report.html");
    json_array_foreach((json_t *)(uintptr_t)results, i, row) {
        json_t *report = json_object_get(row, "report"), *eval = json_object_get(row, "eval");
        if (eval) json_array_append(accuracy, eval);
        if (report && !page)
            page = json_deep_copy(report);
        else if (report)
            json_array_append(beside, report);
    }
    err e = err_none();
    if (page) {
        json_object_set(page, "beside", beside);
        json_object_set(page, "accuracy", accuracy);
        report_page(page, &text, &len);
        e = file_publish(path, text, len);
    }
    if (page && !e.code) log_line(LOG_RUN, "%s written", path);
    json_decref(page);
    json_decref(beside);
    json_decref(accuracy);
    free(text);
    free(path);
    return e;
}

err compare_write(const char *dir, const json_t *results, const options *o) {
    if (options_has(o, OPT_JSON)) {
        json_dumpf(results, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
        puts("");
    } else {
        print_table(results);
    }
    return write_page(dir, results);
}
