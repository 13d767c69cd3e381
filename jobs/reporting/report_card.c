/* Two tables in Markdown, written between two parts of the card. */
#include "jobs/reporting/report_card.h"

#include "base/file.h"
#include "jobs/reporting/report_figure.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The last component of a path, as it may stand in a cell. */
static void name_cell(FILE *f, const char *path) {
    const char *base = file_base_of(path);
    fputs("| ", f);
    for (const char *p = *base ? base : path; *p; p++) {
        if (*p == '|') fputc('\\', f);
        fputc((unsigned char)*p < 0x20 ? ' ' : *p, f);
    }
    fputc(' ', f);
}

static void figure_cell(FILE *f, const json_t *o, const char *key, double times, int digits) {
    fputs("| ", f);
    report_figure(f, o, key, times, digits);
    fputc(' ', f);
}

static void text_rows(FILE *f, const json_t *evals) {
    size_t i, j;
    json_t *eval, *x;
    bool any = false;
    json_array_foreach(evals, i, eval) any |= json_array_size(json_object_get(eval, "perplexity"));
    if (!any) return;
    fputs(
        "\n| model | text | window | tokens | perplexity | of the source | KL, nats a token | same "
        "top token, % |\n|---|---|---|---|---|---|---|---|\n",
        f);
    json_array_foreach(evals, i, eval) {
        json_array_foreach(json_object_get(eval, "perplexity"), j, x) {
            const json_t *a = json_object_get(x, "against");
            name_cell(f, json_word_of(eval, "model"));
            name_cell(f, json_word_of(x, "text"));
            fprintf(f, "| %.0f | %.0f ", json_real_of(x, "window"), json_real_of(x, "tokens"));
            figure_cell(f, x, "ppl", 1, 3);
            figure_cell(f, a, "ppl", 1, 3);
            figure_cell(f, a, "kl_mean", 1, 4);
            figure_cell(f, a, "same_top", 100, 2);
            fputs("|\n", f);
        }
    }
}

static void task_row(FILE *f, const json_t *eval, const char *name, const json_t *x) {
    name_cell(f, json_word_of(eval, "model"));
    name_cell(f, name);
    if (json_is_number(json_object_get(x, "n")))
        fprintf(f, "| %.0f ", json_real_of(x, "n"));
    else
        fputs("| ", f);
    figure_cell(f, x, "acc", 100, 2);
    figure_cell(f, x, "acc_norm", 100, 2);
    fputs("|\n", f);
}

static void task_rows(FILE *f, const json_t *evals) {
    size_t i, j;
    json_t *eval, *x;
    bool any = false;
    json_array_foreach(evals, i, eval) any |= json_array_size(json_object_get(eval, "tasks"));
    if (!any) return;
    fputs("\n| model | task | items | accuracy, % | by length, % |\n|---|---|---|---|---|\n", f);
    json_array_foreach(evals, i, eval) {
        const json_t *average = json_object_get(eval, "tasks_average");
        json_array_foreach(json_object_get(eval, "tasks"), j, x)
            task_row(f, eval, json_word_of(x, "task"), x);
        if (json_is_object(average)) task_row(f, eval, "average of tasks", average);
    }
}

void report_card(const char *card, const json_t *evals, char **out, size_t *len) {
    const char *rest = strstr(card, "\n## Recipe\n");
    if (!rest) rest = card + strlen(card);
    *out = NULL;
    FILE *f = open_memstream(out, len);
    if (!f) abort();
    fprintf(f, "%.*s\n## Figures\n\n", (int)(rest - card), card);
    fputs("Measured with `spinshard eval`; \u00b1 is one standard error.\n", f);
    text_rows(f, evals);
    task_rows(f, evals);
    fputs(rest, f);
    if (fclose(f)) abort();
}
