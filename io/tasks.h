/* tasks - files of zero-shot questions: JSON lines of one shape, read strictly. Not prompts and not
 * scores (jobs/eval_tasks.c, pipeline/stages/task_run.h). Beside the texts of eval, before the
 * tokenizer.
 *
 *   {"query": T, "choices": [T, ...], "gold": i}              which choice follows (PIQA, ARC,
 * BoolQ)
 *   {"context": T, "choices": [T, ...], "gold": i}            the same, the prompt as it stands
 *   {"contexts": [T, ...], "continuation": T, "gold": i}      which context it follows (WinoGrande)
 *   {"context": T, "continuation": T}                         does it follow at all (LAMBADA)
 *
 * Exactly these keys, in any order; 2 to TASK_MAX_OPTIONS choices or contexts; gold counts from 0;
 * no empty choice or continuation; empty lines only at the end. Files of at most 256 MB, lines of
 * at most 1 MB. */
#ifndef SPINSHARD_IO_TASKS_H
#define SPINSHARD_IO_TASKS_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

enum { TASK_MAX_OPTIONS = 64 };

typedef enum task_shape { TASK_CHOICES, TASK_PROMPT, TASK_CONTEXTS, TASK_WORD } task_shape;

typedef struct task_set task_set;

/* Local. Read a file; caller owns *out (task_set_destroy). Fails with ERR_INPUT, naming the line
 * and the key. */
err task_set_read(const char *path, task_set **out);
/* Local. As task_set_read, from a text in memory; `where` names it in messages. */
err task_set_parse(const char *text, size_t len, const char *where, task_set **out);
void task_set_destroy(task_set **t); /* local; NULL is fine; sets NULL */

task_shape task_set_shape(const task_set *t); /* local; of all its items */
int64_t task_set_count(const task_set *t);    /* local; at least 1 */

/* Local. Options of item i (1 for TASK_WORD), and the right one. */
int task_options(const task_set *t, int64_t i);
int task_gold(const task_set *t, int64_t i);
/* Local. The two parts of option k: what comes first (the query where there are choices), and what
 * is to follow. Borrowed. */
const char *task_context(const task_set *t, int64_t i, int k);
const char *task_continuation(const task_set *t, int64_t i, int k);

#endif
