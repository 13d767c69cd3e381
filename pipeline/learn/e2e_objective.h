/* e2e_objective - what a phase of learning minimises at the end of the model, as a table: whether a
 * pass in full precision has to come first, and which rows count. Losses and gradients are in
 * model/objective.h; passes (e2e_pass.h), layouts and plans ask here
 * and know no objective by name. */
#ifndef SPINSHARD_PIPELINE_LEARN_E2E_OBJECTIVE_H
#define SPINSHARD_PIPELINE_LEARN_E2E_OBJECTIVE_H

#include "model/objective.h"

typedef struct e2e_objective {
    objective_kind kind;
    bool needs_teacher;   /* windows go forward in full precision first; the likeliest top_k tokens
                             of each row are kept */
    bool counts_last_row; /* the last row of a window has a loss too: it needs no next token */
    double promised;      /* share of the loss of which a step may promise OPTIMIZER_PROMISE: that
                             which rotations could take away */
} e2e_objective;

/* Local. NULL for `range`, which is layer-local and has no pass through the model. */
const e2e_objective *e2e_objective_of(objective_kind kind);
/* Local. Tokens of a row that a teacher keeps for this objective: top_k, or 0. */
int64_t e2e_objective_kept(const e2e_objective *o, int64_t top_k);

#endif
