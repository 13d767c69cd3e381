/* eval_tasks - zero-shot questions of eval: files to prompts, prompts to token sequences on every
 * rank, and log likelihoods back to accuracies. Not the passes (pipeline/stages/task_run.h).
 *
 * Prompts: of a query with choices, the query without white space at its end, "\nAnswer:", then a
 * space and the choice; else the context without white space at its end, a space, the continuation.
 * The ends are the last tokens of the whole that exceed those of its beginning alone. What the
 * tokenizer puts in front of a text stands in front of each sequence (calib.bos). Sequences longer
 * than --window lose tokens at their beginning.
 *
 * acc: the option with the greatest log likelihood is the right one (the first, of equals).
 * acc_norm: the same per character of the end. LAMBADA: every token of the end is the likeliest;
 * and the perplexity of the ends. Standard errors are those of a mean of 0 and 1 over n - 1. */
#ifndef SPINSHARD_JOBS_EVAL_TASKS_H
#define SPINSHARD_JOBS_EVAL_TASKS_H

#include "io/tasks.h"
#include "io/text.h"
#include "jobs/setup/options.h"
#include "jobs/setup/source.h"
#include "pipeline/stages/task_run.h"

typedef struct eval_task {
    char *path;     /* owned */
    task_set *set;  /* root only */
    int64_t n;      /* items that count */
    int64_t *first; /* root only; [n + 1] sequence of an item's first option */
} eval_task;

typedef struct eval_tasks {
    int n;
    eval_task tasks[OPTIONS_MAX_VALUES];
    bool exact; /* some task needs the likeliest tokens */
    int64_t n_sequences, n_ids;
    int32_t *ids;     /* [n_ids], on every rank */
    task_sequence *s; /* [n_sequences], on every rank */
    task_packs packs;
    task_score *scores; /* [n_sequences]; filled at root by task_run */
    int64_t shortened;  /* root: sequences that lost tokens */
} eval_tasks;

/* Collective on c. All --tasks of o: at most `limit` items of each (0: all). Same result on every
 * rank; caller clears, also after an error. Fails with ERR_INPUT; ERR_USAGE where an end alone is
 * longer than `window` tokens. */
err eval_tasks_share(const comm *c, const options *o, const source *src, bos_mode bos,
                     int64_t window, int64_t limit, eval_tasks *out);
void eval_tasks_clear(eval_tasks *t); /* local */

/* Root only, after task_run. ERR_NUMERICS naming task and item where a likelihood is no number. */
err eval_tasks_check(const eval_tasks *t);
json_t *eval_tasks_json(const eval_tasks *t); /* root only; new reference */
/* Root only. {"tasks", "acc", "acc_norm", and their standard errors}, the mean over the tasks; null
 * for fewer than two. */
json_t *eval_tasks_average(const eval_tasks *t);
void eval_tasks_print(const eval_tasks *t); /* root only; on stdout */
/* Root only. Each item as a JSON line: task, item, gold, log likelihoods, characters. */
err eval_tasks_write(const eval_tasks *t, const char *path);

#endif
