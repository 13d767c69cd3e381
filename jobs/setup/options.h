/* options - the command line: which flags each command takes, their help, and their values as text.
 * Not the recipe (jobs/setup/recipe.h): flags say what to do with which files, the recipe says how.
 * First arrow of the way: options -> plan. */
#ifndef SPINSHARD_JOBS_SETUP_OPTIONS_H
#define SPINSHARD_JOBS_SETUP_OPTIONS_H

#include "base/err.h"

#include <stdint.h>

/* The commands, each once: X(NAME, name, whether it runs on several ranks, what it is to look at or
 * NULL, what --help says of it). Command CMD_NAME is job_name of jobs/name.c. */
#define COMMANDS(X)                                                                                \
    X(PLAN, plan, false, NULL,                                                                     \
      "What quantize will take on a cluster: memory, time, bytes; reads config.json and "          \
      "headers alone.")                                                                            \
    X(QUANTIZE, quantize, true, NULL,                                                              \
      "Rotate, fuse and quantize a checkpoint into an INT4 archive (mpirun, srun or alone).")      \
    X(EVAL, eval, true, NULL,                                                                      \
      "Perplexity and zero-shot accuracy of a checkpoint or an archive (mpirun, srun "             \
      "or alone).")                                                                                \
    X(VERIFY, verify, true, "OUT",                                                                 \
      "Read an archive back and check every byte, tensor and loader rule (mpirun, "                \
      "srun or alone).")                                                                           \
    X(INSPECT, inspect, false, "OUT|DIR|TAR|FILE.safetensors", "Print what is inside.")            \
    X(STATUS, status, false, "OUT", "How far a run is; works while it runs.")                      \
    X(REPORT, report, false, "OUT", "A run in pictures, as one HTML file; works while it runs.")   \
    X(COMPARE, compare, true, NULL,                                                                \
      "Several recipes on one model in one table and one page: quantize and eval for "             \
      "each; goes on where it was (mpirun, srun or alone).")

#define COMMAND_NAME(NAME, ...) CMD_##NAME,
typedef enum command { COMMANDS(COMMAND_NAME) CMD_COUNT } command;
#undef COMMAND_NAME

typedef enum option {
    OPT_MODEL,
    OPT_OUT,
    OPT_RECIPE,
    OPT_RECIPES,
    OPT_SET,
    OPT_SEED,
    OPT_TEXT,
    OPT_TASKS,
    OPT_ITEMS,
    OPT_WINDOW,
    OPT_LIMIT,
    OPT_TAIL,
    OPT_DTYPE,
    OPT_ROTATIONS,
    OPT_AGAINST,
    OPT_CALIB,
    OPT_CALIB_MIX,
    OPT_CALIB_IDS,
    OPT_MEM,
    OPT_SCRATCH,
    OPT_REPLICAS,
    OPT_STAGES,
    OPT_RECOMPUTE,
    OPT_FORCE,
    OPT_KEEP_RUN,
    OPT_TAKE_OVER,
    OPT_LOST_AFTER,
    OPT_DRY_RUN,
    OPT_REPORT,
    OPT_STOP_BEFORE,
    OPT_NODES,
    OPT_RANKS_PER_NODE,
    OPT_CORES_PER_RANK,
    OPT_MEM_PER_NODE,
    OPT_TIME,
    OPT_CPU,
    OPT_MEASURE,
    OPT_NETWORK,
    OPT_SCRIPT,
    OPT_CHAIN,
    OPT_SBATCH,
    OPT_PROLOGUE,
    OPT_PARTITION,
    OPT_ACCOUNT,
    OPT_QOS,
    OPT_MAIL_USER,
    OPT_SOURCE,
    OPT_EQUIVALENCE,
    OPT_FOR,
    OPT_TP,
    OPT_WATCH,
    OPT_TENSORS,
    OPT_ERRORS,
    OPT_SITES,
    OPT_EXPORT_SPINQUANT,
    OPT_HTML,
    OPT_EVAL,
    OPT_CARD,
    OPT_BESIDE,
    OPT_SPREAD,
    OPT_DROP_ARCHIVES,
    OPT_JSON,
    OPT_QUIET,
    OPT_KEEP_KERNELS,
    OPT_COUNT,
} option;

enum { OPTIONS_MAX_VALUES = 64 };

typedef struct options {
    command cmd;
    const char
        *target; /* the positional argument of verify, inspect, status and report; borrowed */
    int n_values[OPT_COUNT];
    const char *values[OPT_COUNT][OPTIONS_MAX_VALUES]; /* borrowed from argv */
} options;

/* Local. The command named by a word; CMD_COUNT if none; and the name nearest to it. */
command options_command(const char *word);
const char *options_nearest_command(const char *word);

/* Local. Parse the words after the command. Fails with ERR_USAGE, naming the nearest flag. */
err options_parse(command cmd, int argc, char **argv, options *out);

bool options_has(const options *o, option opt);        /* local */
const char *options_str(const options *o, option opt); /* local; last value, or NULL */

/* Local. A whole number in lo..hi; *out untouched where the flag is absent. ERR_USAGE. */
err options_int(const options *o, option opt, int64_t lo, int64_t hi, int64_t *out);

/* Local. The place of a flag's value among the words that its help names ("auto|on|off"); *out
 * untouched where the flag is absent. ERR_USAGE. */
err options_word(const options *o, option opt, int *out);

/* Local. Help on stdout: of one command, or of all (CMD_COUNT). */
void options_help(command cmd);

/* Local. The word of `words` (NULL-ended) that is nearest to `word` by edit distance. */
const char *options_nearest(const char *word, const char *const *words);

#endif
