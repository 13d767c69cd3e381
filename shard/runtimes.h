/* runtimes - what each runtime makes of an archive: a table of rules, each with the version that it
 * was read from. Not the rules that hold for all of them (loader_rules.h). On the way: read back by
 * verify --for and inspect. */
#ifndef SPINSHARD_SHARD_RUNTIMES_H
#define SPINSHARD_SHARD_RUNTIMES_H

#include "base/json.h"
#include "model/config.h"
#include "shard/form.h"

/* Local. Runtimes by the names and in the order of `verify --for`, NULL behind the last; what was
 * read of each. */
const char *runtime_name(int i);
const char *runtime_version(int i);

/* How the archive was made to be used: with a cache of 16 bits, with the 4-bit one that vLLM has an
 * option for, or with one that only `eval` quantizes. */
typedef enum runtime_cache {
    CACHE_PLAIN,
    CACHE_VLLM_INT4,
    CACHE_FP8_BY_OPTION,
    CACHE_FP8_SCALES,
    CACHE_EVAL
} runtime_cache;

/* What the rules look at. */
typedef struct runtime_facts {
    form_scheme linears;
    st_dtype dtype;          /* of what is not quantized */
    const llama_config *cfg; /* borrowed */
    runtime_cache cache;
    int64_t tp; /* ranks of tensor parallelism, 1 and more */
} runtime_facts;

typedef enum runtime_verdict {
    RUNTIME_NOTE,  /* runs, but not as the archive says, or slower */
    RUNTIME_STOPS, /* refuses to load it, or must not be given it */
} runtime_verdict;

/* Local. The cache by "spinshard" of config.json; NULL: plain. */
runtime_cache runtime_cache_of(const json_t *spinshard);

/* Local. Call `tell` with each rule of the runtime that the archive meets, in the order of the
 * table. */
void runtime_judge(int runtime, const runtime_facts *facts,
                   void (*tell)(void *arg, runtime_verdict verdict, const char *what), void *arg);

#endif
