/* objective_internal - the passes over the vocabulary behind objective.h, by objective_real.c.
 * Nobody but objective.c calls them. Rows are checked there; dx may be x. */
#ifndef SPINSHARD_MODEL_OBJECTIVE_INTERNAL_H
#define SPINSHARD_MODEL_OBJECTIVE_INTERNAL_H

#include "model/backward.h"
#include "model/objective.h"
#include "model/teacher.h"

/* Local, threaded. As llama_objective_backward; the losses go to w->row_loss. */
void objective_backward_f32(objective_kind kind, const wmat *head, const float *gain,
                            const objective_rows *r, llama_work *w);
void objective_backward_f64(objective_kind kind, const wmat *head, const float *gain,
                            const objective_rows *r, llama_work *w);

/* Local, threaded. As llama_teacher_save. room: TEACHER_ROWS rows of 2 top_k for each thread. */
void objective_teacher_f32(const wmat *head, const float *gain, int64_t rows, const float *x,
                           llama_teacher *out, candidate *room, llama_work *w);
void objective_teacher_f64(const wmat *head, const float *gain, int64_t rows, const double *x,
                           llama_teacher *out, candidate *room, llama_work *w);

#endif
