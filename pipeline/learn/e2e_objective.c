/* One row an objective; a new one is a row here, a word in model/objective.h, and its loss. */
#include "pipeline/learn/e2e_objective.h"

#include <stddef.h>

static const e2e_objective objectives[] = {
    /* Most of a cross entropy is there in full precision too: of 4-bit models that are worth
     * having, quantization is some tenth of it, of poor ones a third. */
    [OBJECTIVE_CE] = {.kind = OBJECTIVE_CE, .promised = 0.2},
    [OBJECTIVE_KL_TOP] = {.kind = OBJECTIVE_KL_TOP,
                          .needs_teacher = true,
                          .counts_last_row = true,
                          .promised = 1},
};

const e2e_objective *e2e_objective_of(objective_kind kind) {
    return objectives[kind].kind == kind && kind != OBJECTIVE_RANGE ? &objectives[kind] : NULL;
}

int64_t e2e_objective_kept(const e2e_objective *o, int64_t top_k) {
    return o->needs_teacher ? top_k : 0;
}
