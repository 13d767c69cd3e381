/* item_output - from the results of an item to objects of the run state: the sink of
 * pipeline/weights/quantize_item.h, for whoever makes codes (rounding to nearest, GPTQ), and the
 * entry of a finished item in the work tree. Not the tars (quantize_output.c). On the way: INT4
 * codes + scales
 * -> [item_output] -> shard bytes. Private to jobs/phases/. */
#ifndef SPINSHARD_JOBS_PHASES_ITEM_OUTPUT_H
#define SPINSHARD_JOBS_PHASES_ITEM_OUTPUT_H

#include "jobs/run/quantize_run.h"

/* Bytes on their way into an object: room that is kept from item to item, so that it is not cleared
 * each time. mem_free(bytes) at the end. */
typedef struct item_piece {
    void *bytes;
    uint64_t room;
} item_piece;

/* The objects of the (one or two) units of an item while it is done. */
typedef struct item_output {
    quantize_run *q;
    int n_units;
    int64_t units[2];
    run_object *objects[2];
    item_piece *piece; /* borrowed */
} item_output;

/* Local. Begin the objects of an item. item_output_abandon after any error. */
err item_output_open(quantize_run *q, int64_t item, item_piece *piece, item_output *out);
quantize_sink item_output_sink(item_output *out); /* local; borrows out */
/* Local. Hash, flush and name them. Calls neither MPI nor the log. */
err item_output_finish(item_output *out, char hex[2][SHA256_HEX]);
void item_output_abandon(item_output *out); /* local; removes what is still open */

/* What a rank tells rank 0 about an item. */
typedef struct item_report {
    int64_t item; /* -1: none */
    char hex[2][SHA256_HEX];
    quantize_result result;
    double seconds;
} item_report;

/* Root only. Enter a finished item into the work tree, the events and the sums. ERR_MISMATCH where
 * its tensors are not those of the start of this run. */
err item_note(quantize_run *q, const item_report *r);

#endif
