/* learn_range_held - the judgement of a phase of the objective `range`
 * (pipeline/learn/learn_range.h): R1 and R2 measured on rows that no step draws. */
#ifndef SPINSHARD_PIPELINE_LEARN_LEARN_RANGE_HELD_H
#define SPINSHARD_PIPELINE_LEARN_LEARN_RANGE_HELD_H

#include "pipeline/learn/learn_range.h"
#include "pipeline/learn/learn_verdict.h"

/* Collective. R1 and R2 are measured on held-out rows, and remembered or taken back
 * (pipeline/learn/learn_judge.h). To be called where learn_judge_due says so, before the first step
 * and after the last; what learn_range_take_r1 and learn_range_r2 give after the last is no worse
 * than the start. */
err learn_range_judge(learn_range *l, learn_verdict *v);

#endif
