/* task_run - log likelihoods of continuations: many short sequences, packed one after the other so
 * that a pass has enough rows and no stage waits for a short one, through the stages as a pipeline.
 * Not windows of a text (pipeline/stages/eval_run.h), not the questions themselves (io/tasks.h).
 * The packs depend on the sequences alone, so results do not depend on how many stages there are.
 */
#ifndef SPINSHARD_PIPELINE_STAGES_TASK_RUN_H
#define SPINSHARD_PIPELINE_STAGES_TASK_RUN_H

#include "pipeline/stages/eval_run.h"

/* A sequence and its scored end: tokens first .. n - 1, given those before; 1 <= first < n. */
typedef struct task_sequence {
    const int32_t *ids; /* borrowed */
    int64_t n, first;
} task_sequence;

typedef struct task_score {
    double nll;    /* sum of -log p over the scored tokens, nats */
    int64_t exact; /* 1: each of them is the likeliest of all; only where asked for */
} task_score;

/* Sequences in packs: pack p has sequences order[starts[p]] .. order[starts[p + 1] - 1]. */
typedef struct task_packs {
    int64_t n;
    int64_t *order, *starts; /* owned; [sequences], [n + 1] */
    int64_t tokens;          /* of the longest pack */
} task_packs;

/* Local. The longest first, each pack filled up to `tokens` (or one sequence that is longer). Same
 * result for the same lengths. task_packs_clear frees. */
void task_packs_init(const task_sequence *s, int64_t n, int64_t tokens, task_packs *out);
void task_packs_clear(task_packs *p); /* local */

/* Collective on c, as eval_run. scores [n] (root: filled; elsewhere NULL). exact: find the
 * likeliest tokens too. Same error on every rank. */
err task_run(const comm *c, const llama_stage *stage, const llama_sites *sites,
             compute_type compute, const embed_rows *rows, const task_sequence *s, int64_t n,
             const task_packs *packs, bool exact, task_score *scores);

/* Local. Bytes of its buffers on a stage, beside the scratch of a forward pass of packs->tokens. */
uint64_t task_run_bytes(const llama_config *cfg, compute_type compute, int64_t tokens, bool exact);

#endif
