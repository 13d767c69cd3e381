/* loader_targets - which linears a quantization_config means: its targets and its list of what to
 * ignore, matched as compressed-tensors does. Not the scheme itself (loader_rules.h). */
#ifndef SPINSHARD_SHARD_LOADER_TARGETS_H
#define SPINSHARD_SHARD_LOADER_TARGETS_H

#include "base/err.h"
#include "base/json.h"

/* Groups that are looked at beside each other. */
enum { LOADER_GROUPS = 8 };

/* Local. Success where each of the seven linears of each of so many layers is in one of n lists of
 * targets, n at most LOADER_GROUPS, and the head in none. An entry is a module's name, its class
 * (Linear), or re:EXPRESSION from the start of the name. owners [layers, 7]: the list of each
 * linear, in the order of llama_linears; or NULL. `where` names the file. Fails with ERR_VERIFY,
 * naming the linear or the expression. */
err loader_targets_owners(const json_t *const *targets, int n, const json_t *ignore, int64_t layers,
                          const char *where, int *owners);

#endif
