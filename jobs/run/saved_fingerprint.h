/* saved_fingerprint - what the bytes in an output folder were made from, unfinished or complete.
 * The state of an unfinished run has it (io/run_state.h), run.json that of a complete one: the
 * manifest is the same bytes on every machine, and kernels are part of a fingerprint. */
#ifndef SPINSHARD_JOBS_RUN_SAVED_FINGERPRINT_H
#define SPINSHARD_JOBS_RUN_SAVED_FINGERPRINT_H

#include "base/json.h"

/* Local. The fingerprint of the run that is or was in out_dir; NULL where there is none that can be
 * read. Caller owns it (json_decref). */
json_t *saved_fingerprint(const char *out_dir);

#endif
