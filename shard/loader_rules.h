/* loader_rules - what every reader of compressed-tensors, or of the form's own method, demands of
 * an archive, checked against what the archive holds. Errors would stop or mislead a loader; what
 * one runtime or the other makes of a right archive is in runtimes.h. Not a check of bytes
 * (archive_verify_bytes) or of values (verify --source). On the way: read back by verify. */
#ifndef SPINSHARD_SHARD_LOADER_RULES_H
#define SPINSHARD_SHARD_LOADER_RULES_H

#include "base/err.h"
#include "io/hf_checkpoint.h"
#include "model/config.h"
#include "shard/form.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct loader_finding {
    bool fatal;
    char where[160]; /* tensor or file */
    char what[320];
} loader_finding;

typedef struct loader_report {
    loader_finding *items; /* at most LOADER_MAX; more are only counted */
    int64_t n;
    int64_t n_fatal, n_notes;
} loader_report;

enum { LOADER_MAX = 200 };

/* Local. Read quantization_config of a config.json; out->form is NULL where there is none. Scales
 * may be of any type, scale_dtype is BF16. Fails with ERR_VERIFY, naming the key or who quantized
 * the weights, for what this program did not write or cannot read. */
err loader_scheme_parse(const json_t *config, const char *where, form_scheme *out);

/* Local. Check everything; the result of a finding is not an err. Reads the small tensors and the
 * index. Caller clears *out (loader_report_clear). Fails only where reading fails. */
err loader_rules_check(const hf_checkpoint *ck, const llama_config *cfg, loader_report *out);
void loader_report_clear(loader_report *r);

/* Local. ERR_VERIFY with the first fatal finding and the count of the rest; else success. */
err loader_report_err(const loader_report *r);

#endif
