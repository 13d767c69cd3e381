/* Words of the command line become numbers once, here. */
#include "jobs/setup/run_flags.h"

#include "base/size.h"

err run_flags_read(const options *o, run_flags *out) {
    int word = RECOMPUTE_AUTO, off = 0;
    *out = (run_flags){.scratch = options_str(o, OPT_SCRATCH)};
    err e = err_none();
    if (options_has(o, OPT_MEM)) e = size_parse(options_str(o, OPT_MEM), &out->limit);
    if (!e.code) e = options_int(o, OPT_REPLICAS, 1, 1 << 20, &out->replicas);
    if (!e.code) e = options_int(o, OPT_STAGES, 1, 1 << 20, &out->stages);
    if (!e.code) e = options_word(o, OPT_RECOMPUTE, &word);
    if (!e.code) e = options_word(o, OPT_REPORT, &off);
    out->report = !off;
    out->recompute = (recompute_wish)word;
    return e;
}
