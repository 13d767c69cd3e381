/* The unfinished run comes first: where both are, an output is being replaced. */
#include "jobs/run/saved_fingerprint.h"

#include "base/file.h"
#include "io/run_state.h"

#include <stdlib.h>

enum { MAX_RUN_JSON = 16 << 20 };

json_t *saved_fingerprint(const char *out_dir) {
    json_t *body, *saved;
    char *path = file_join(out_dir, "run.json");
    err e = run_state_peek(out_dir, &body);
    if (e.code) e = json_read_file(path, MAX_RUN_JSON, &body);
    free(path);
    if (e.code) return NULL;
    saved = json_incref(json_object_get(body, "fingerprint"));
    json_decref(body);
    return saved;
}
