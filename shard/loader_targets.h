/* loader_targets - which linears a quantization_config means: its targets and its list of what to
 * ignore, matched as compressed-tensors does. Not the scheme itself (loader_rules.h). */
#ifndef SPINSHARD_SHARD_LOADER_TARGETS_H
#define SPINSHARD_SHARD_LOADER_TARGETS_H

#include "base/err.h"
#include "base/json.h"

/* Local. Success where the seven linears of each of so many layers are quantized and the head is
 * not. An entry is a module's name, its class (Linear), or re:EXPRESSION from the start of the
 * name. `where` names the file. Fails with ERR_VERIFY, naming the linear or the expression. */
err loader_targets_check(const json_t *targets, const json_t *ignore, int64_t layers,
                         const char *where);

#endif
