/* eval_distance - what eval says of a text beyond one number: means over windows with their errors,
 * and the distance to the model that --against names. Not the passes
 * (pipeline/stages/eval_against.h).
 *
 * Errors: tokens of a window depend on each other, windows hardly do, so the standard error of a
 * mean is the standard deviation of the windows' means over the root of their number; one window
 * has none. The 99 % point is interpolated between the sorted tokens; its error is half the way
 * between the points one binomial standard deviation above and below it. */
#ifndef SPINSHARD_JOBS_EVAL_DISTANCE_H
#define SPINSHARD_JOBS_EVAL_DISTANCE_H

#include "base/json.h"
#include "model/divergence.h"

#include <stdint.h>

typedef struct eval_mean {
    double mean, error; /* error NAN: only one window */
} eval_mean;

/* Local. Of the means of n windows. */
eval_mean eval_mean_of(const double *windows, int64_t n);

/* Local. Of exp(mean): its error is exp(mean) times that of the mean. */
eval_mean eval_mean_exp(eval_mean m);

/* Local. A number for JSON, null where it is not one; new reference. */
json_t *eval_number(double x);

typedef struct eval_distance {
    eval_mean nll_p;    /* of the measure */
    eval_mean nll_more; /* of the other less that of the measure, window by window */
    eval_mean kl, same_top, kl_99;
    double kl_most;
} eval_distance;

/* Local. Of n windows of `rows` predictions each: tokens [n * rows]. */
eval_distance eval_distance_of(const divergence *tokens, int64_t n, int64_t rows);
json_t *eval_distance_json(const eval_distance *d, const char *against); /* local; new reference */
void eval_distance_print(const eval_distance *d, const char *text); /* local; a row on stdout */
void eval_distance_head(const char *against);                       /* local; the row above it */

#endif
