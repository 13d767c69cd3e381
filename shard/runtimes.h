/* runtimes - what each runtime makes of an archive: a table of rules, each with the version that it
 * was read from. Not the rules that hold for all of them (loader_rules.h). On the way: read back by
 * verify --for and inspect. */
#ifndef SPINSHARD_SHARD_RUNTIMES_H
#define SPINSHARD_SHARD_RUNTIMES_H

#include "model/config.h"
#include "shard/form.h"

/* Local. Runtimes by the names and in the order of `verify --for`, NULL behind the last; what was
 * read of each. */
const char *runtime_name(int i);
const char *runtime_version(int i);

/* What the rules look at. */
typedef struct runtime_facts {
    form_scheme linears;
    st_dtype dtype;          /* of what is not quantized */
    const llama_config *cfg; /* borrowed */
    int64_t tp;              /* ranks of tensor parallelism, 1 and more */
} runtime_facts;

typedef enum runtime_verdict {
    RUNTIME_NOTE,  /* runs, but not as the archive says, or slower */
    RUNTIME_STOPS, /* refuses to load it, or must not be given it */
} runtime_verdict;

/* Local. Call `tell` with each rule of the runtime that the archive meets, in the order of the
 * table. */
void runtime_judge(int runtime, const runtime_facts *facts,
                   void (*tell)(void *arg, runtime_verdict verdict, const char *what), void *arg);

#endif
