/* One table of flags with the commands that take them; unknown words are compared by edit distance
 * with the known ones. */
#include "jobs/setup/options.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BIT(c) (1u << (c))

#define EVERY_COMMAND (BIT(CMD_COUNT) - 1)

#define COMMAND_ROW(NAME, word, parallel, target, what) [CMD_##NAME] = {#word, target, what},
static const struct {
    const char *name, *target, *what;
} commands[CMD_COUNT] = {COMMANDS(COMMAND_ROW)};

static const struct {
    const char *name, *arg, *help;
    unsigned in;
    bool many;
} table[OPT_COUNT] = {
    [OPT_MODEL] = {"--model", "DIR",
                   "Hugging Face folder of a LLaMA-family model; for eval also an output folder",
                   BIT(CMD_PLAN) | BIT(CMD_QUANTIZE) | BIT(CMD_EVAL) | BIT(CMD_COMPARE), false},
    [OPT_OUT] = {"--out", "OUT", "output folder",
                 BIT(CMD_PLAN) | BIT(CMD_QUANTIZE) | BIT(CMD_COMPARE), false},
    [OPT_RECIPE] = {"--recipe", "FILE|NAME", "YAML recipe: a file, or the name of a built-in one",
                    BIT(CMD_PLAN) | BIT(CMD_QUANTIZE) | BIT(CMD_EVAL), false},
    [OPT_RECIPES] = {"--recipes", "NAME,FILE,..",
                     "recipes with commas between (default: of each setting the common ways and "
                     "ours)",
                     BIT(CMD_COMPARE), false},
    [OPT_SET] =
        {"--set", "KEY=VALUE",
         "set a recipe key, as weights.group=64, or some of a section, as 'rotate={r1: true, r2: "
         "none}' (repeatable)",
         BIT(CMD_PLAN) | BIT(CMD_QUANTIZE) | BIT(CMD_EVAL) | BIT(CMD_COMPARE), true},
    [OPT_SEED] = {"--seed", "N", "seed of everything random (recipe key seed)",
                  BIT(CMD_PLAN) | BIT(CMD_QUANTIZE) | BIT(CMD_EVAL) | BIT(CMD_COMPARE), false},
    [OPT_TEXT] =
        {"--text", "FILE",
         "UTF-8 text to measure perplexity on, FILE[,limit=WINDOWS][,tail=TOKENS] (repeatable)",
         BIT(CMD_EVAL) | BIT(CMD_COMPARE), true},
    [OPT_TASKS] = {"--tasks", "FILE",
                   "questions as JSON lines, a file or several with commas (repeatable); "
                   "bench/tasks.py makes them",
                   BIT(CMD_EVAL) | BIT(CMD_COMPARE), true},
    [OPT_ITEMS] = {"--items", "FILE", "write the log likelihoods of each item of the tasks",
                   BIT(CMD_EVAL), false},
    [OPT_WINDOW] = {"--window", "N", "tokens a window (default 2048)",
                    BIT(CMD_EVAL) | BIT(CMD_COMPARE), false},
    [OPT_LIMIT] = {"--limit", "WINDOWS", "at most so many windows of each text, items of each task",
                   BIT(CMD_EVAL) | BIT(CMD_COMPARE), false},
    [OPT_TAIL] = {"--tail", "TOKENS", "keep only the last TOKENS of each text",
                  BIT(CMD_EVAL) | BIT(CMD_COMPARE), false},
    [OPT_DTYPE] = {"--dtype", "bf16|fp32|fp64", "type of the matrix products (default bf16)",
                   BIT(CMD_EVAL) | BIT(CMD_COMPARE), false},
    [OPT_ROTATIONS] = {"--rotations", "FILE", "rotations.safetensors for the quantization sites",
                       BIT(CMD_EVAL), false},
    [OPT_AGAINST] = {"--against", "DIR",
                     "the checkpoint in full precision: how far the predictions on --text are from "
                     "its own (KL, likeliest token)",
                     BIT(CMD_EVAL), false},
    [OPT_CALIB] = {"--calib", "FILE", "calibration text (for learning and GPTQ; repeatable)",
                   BIT(CMD_PLAN) | BIT(CMD_QUANTIZE) | BIT(CMD_COMPARE), true},
    [OPT_CALIB_MIX] = {"--calib-mix", "A:B:..",
                       "parts of the windows that the texts of --calib give, in their order "
                       "(default: equal)",
                       BIT(CMD_PLAN) | BIT(CMD_QUANTIZE) | BIT(CMD_COMPARE), false},
    [OPT_CALIB_IDS] = {"--calib-ids", "FILE", "calibration text as token ids",
                       BIT(CMD_PLAN) | BIT(CMD_QUANTIZE) | BIT(CMD_COMPARE), false},
    [OPT_MEM] = {"--mem", "BYTES", "memory a rank may use (default: its share of the node)",
                 BIT(CMD_PLAN) | BIT(CMD_QUANTIZE) | BIT(CMD_EVAL) | BIT(CMD_COMPARE), false},
    [OPT_SCRATCH] =
        {"--scratch", "DIR",
         "folder for activations of GPTQ (default: memory, or where that is short OUT/run)",
         BIT(CMD_PLAN) | BIT(CMD_QUANTIZE) | BIT(CMD_COMPARE), false},
    [OPT_REPLICAS] = {"--replicas", "N", "copies of the model over the ranks (ce, kl-top)",
                      BIT(CMD_PLAN) | BIT(CMD_QUANTIZE), false},
    [OPT_STAGES] = {"--stages", "N", "cut of the layers over the ranks (ce, kl-top)",
                    BIT(CMD_PLAN) | BIT(CMD_QUANTIZE), false},
    [OPT_RECOMPUTE] = {"--recompute", "auto|on|off",
                       "compute layers again in the backward pass (ce, kl-top)",
                       BIT(CMD_PLAN) | BIT(CMD_QUANTIZE), false},
    [OPT_FORCE] = {"--force", NULL,
                   "replace an output that exists; for plan a script that was edited",
                   BIT(CMD_QUANTIZE) | BIT(CMD_PLAN), false},
    [OPT_KEEP_RUN] = {"--keep-run", NULL, "keep OUT/run when done", BIT(CMD_QUANTIZE), false},
    [OPT_TAKE_OVER] = {"--take-over", NULL,
                       "the run that holds OUT is dead for certain, though nobody here can tell",
                       BIT(CMD_QUANTIZE) | BIT(CMD_COMPARE), false},
    [OPT_LOST_AFTER] = {"--lost-after", "TIME",
                        "a rank of which nothing is heard for TIME ends the run, exit 9 (default "
                        "30s, least 2s; 0s: never)",
                        BIT(CMD_QUANTIZE) | BIT(CMD_COMPARE), false},
    [OPT_DRY_RUN] = {"--dry-run", NULL, "print the plan and stop", BIT(CMD_QUANTIZE), false},
    [OPT_REPORT] =
        {"--report", "on|off",
         "look at the inputs that GPTQ sees, and write OUT/report.html at the end (default on)",
         BIT(CMD_QUANTIZE), false},
    [OPT_STOP_BEFORE] =
        {"--stop-before", "TIME",
         "stop at a commit when less than TIME of the Slurm job is left (90s, 10m, 2h), exit 75",
         BIT(CMD_QUANTIZE) | BIT(CMD_COMPARE), false},
    [OPT_NODES] = {"--nodes", "N", "nodes of the job (default 1)", BIT(CMD_PLAN), false},
    [OPT_RANKS_PER_NODE] = {"--ranks-per-node", "R",
                            "ranks of a node (default: one on each NUMA domain of this machine)",
                            BIT(CMD_PLAN), false},
    [OPT_CORES_PER_RANK] = {"--cores-per-rank", "C",
                            "cores of a rank (default: its share of this machine)", BIT(CMD_PLAN),
                            false},
    [OPT_MEM_PER_NODE] = {"--mem-per-node", "BYTES",
                          "memory of a node (default: this machine's, or its cgroup's limit)",
                          BIT(CMD_PLAN), false},
    [OPT_TIME] =
        {"--time", "TIME",
         "wall clock of a job: 90m, 2h, or as Slurm has it (600 minutes, HH:MM:SS, D-HH:MM:SS)",
         BIT(CMD_PLAN), false},
    [OPT_CPU] = {"--cpu", "KIND",
                 "CPU of the nodes: auto, or genoa, turin, sapphire-rapids, ... (an unknown word "
                 "lists all)",
                 BIT(CMD_PLAN), false},
    [OPT_MEASURE] = {"--measure", NULL,
                     "measure the products of this machine, which is like the "
                     "nodes; under mpirun or srun on several nodes their network too",
                     BIT(CMD_PLAN), false},
    [OPT_NETWORK] = {"--network", "NAME|BYTES/s",
                     "what a node sends: 25GbE, 100G, HDR, NDR, or bytes a second (default 100G)",
                     BIT(CMD_PLAN), false},
    [OPT_SCRIPT] = {"--script", "FILE", "write a Slurm script for it (needs --out)", BIT(CMD_PLAN),
                    false},
    [OPT_CHAIN] = {"--chain", "N",
                   "a script that, run by hand, submits N jobs each after the one before, where a "
                   "job may not requeue itself",
                   BIT(CMD_PLAN), false},
    [OPT_PARTITION] = {"--partition", "NAME",
                       "for the script; sinfo is asked whether it has such nodes", BIT(CMD_PLAN),
                       false},
    [OPT_ACCOUNT] = {"--account", "NAME", "for the script", BIT(CMD_PLAN), false},
    [OPT_QOS] = {"--qos", "NAME", "for the script", BIT(CMD_PLAN), false},
    [OPT_MAIL_USER] = {"--mail-user", "ADDRESS", "for the script: mail when the job ends or fails",
                       BIT(CMD_PLAN), false},
    [OPT_SBATCH] = {"--sbatch", "'--FLAG=VALUE'", "a flag of sbatch for the script (repeatable)",
                    BIT(CMD_PLAN), true},
    [OPT_PROLOGUE] = {"--prologue", "FILE", "shell lines for the script: module load and the like",
                      BIT(CMD_PLAN), false},
    [OPT_SOURCE] = {"--source", "DIR", "the checkpoint it was made from: dequantize and compare",
                    BIT(CMD_VERIFY), false},
    [OPT_EQUIVALENCE] =
        {"--equivalence", NULL,
         "with --source: fuse the source again and compare its logits with the original's",
         BIT(CMD_VERIFY), false},
    [OPT_FOR] = {"--for", "vllm-cuda|vllm-cpu|transformers|llama.cpp|sglang",
                 "fail where this runtime does not run it", BIT(CMD_VERIFY), false},
    [OPT_TP] = {"--tp", "N", "ranks of tensor parallelism of the runtime (default 1)",
                BIT(CMD_VERIFY) | BIT(CMD_INSPECT), false},
    [OPT_WATCH] = {"--watch", NULL, "say it again every 5 s until the run ends", BIT(CMD_STATUS),
                   false},
    [OPT_TENSORS] = {"--tensors", NULL, "list every tensor", BIT(CMD_INSPECT), false},
    [OPT_ERRORS] = {"--errors", NULL, "of an output folder: what GPTQ did to each linear",
                    BIT(CMD_INSPECT), false},
    [OPT_SITES] = {"--sites", NULL,
                   "of an output folder: what the inputs of the linears are like, before and "
                   "after rotation; what the noise of quantizers costs, and their clips",
                   BIT(CMD_INSPECT), false},
    [OPT_EXPORT_SPINQUANT] = {"--export-spinquant", "FILE",
                              "write the rotations in fp32 under SpinQuant's public keys",
                              BIT(CMD_INSPECT), false},
    [OPT_HTML] = {"--html", "FILE", "where the page goes (default OUT/report.html)",
                  BIT(CMD_REPORT), false},
    [OPT_EVAL] = {"--eval", "FILE",
                  "what eval --json printed, for the section on accuracy "
                  "(repeatable)",
                  BIT(CMD_REPORT), true},
    [OPT_CARD] = {"--card", "FILE",
                  "write the archive's model card with the figures of --eval, for the place of its "
                  "README.md",
                  BIT(CMD_REPORT), false},
    [OPT_BESIDE] =
        {"--beside", "OUT",
         "another run, for one table, and of the first 3 curves in the same charts (repeatable)",
         BIT(CMD_REPORT), true},
    [OPT_SPREAD] = {"--spread", "FILE",
                    "spread.json of bench/spread.py: random starts and added rotations as a plot",
                    BIT(CMD_REPORT), false},
    [OPT_DROP_ARCHIVES] = {"--drop-archives", NULL, "remove each archive once it is measured",
                           BIT(CMD_COMPARE), false},
    [OPT_JSON] = {"--json", NULL, "one JSON object on stdout and nothing else", EVERY_COMMAND,
                  false},
    [OPT_QUIET] = {"--quiet", NULL, "only warnings and errors on stderr",
                   BIT(CMD_QUANTIZE) | BIT(CMD_EVAL) | BIT(CMD_VERIFY) | BIT(CMD_COMPARE), false},
    [OPT_KEEP_KERNELS] = {"--keep-kernels", NULL,
                          "run the kernels that OpenBLAS chose, though the CPU has better ones",
                          BIT(CMD_PLAN) | BIT(CMD_QUANTIZE) | BIT(CMD_EVAL) | BIT(CMD_VERIFY) |
                              BIT(CMD_COMPARE),
                          false},
};

command options_command(const char *word) {
    for (int c = 0; c < CMD_COUNT; c++)
        if (!strcmp(word, commands[c].name)) return (command)c;
    return CMD_COUNT;
}

/* Edit distance in which two neighbours that changed places count once, as fingers do. */
static size_t edit_distance(const char *a, const char *b) {
    enum { MAX = 47 };
    size_t la = strnlen(a, MAX), lb = strnlen(b, MAX), d[MAX + 1][MAX + 1];
    for (size_t i = 0; i <= la; i++) {
        for (size_t j = 0; j <= lb; j++) {
            if (!i || !j) {
                d[i][j] = i + j;
                continue;
            }
            size_t best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best) best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best) best = d[i][j - 1] + 1;
            bool swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
            if (swapped && d[i - 2][j - 2] + 1 < best) best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    }
    return d[la][lb];
}

const char *options_nearest(const char *word, const char *const *words) {
    const char *best = "";
    size_t least = SIZE_MAX;
    for (; *words; words++) {
        size_t d = edit_distance(word, *words);
        if (d < least) {
            least = d;
            best = *words;
        }
    }
    return best;
}

const char *options_nearest_command(const char *word) {
    const char *names[CMD_COUNT + 1];
    for (int c = 0; c < CMD_COUNT; c++) names[c] = commands[c].name;
    names[CMD_COUNT] = NULL;
    return options_nearest(word, names);
}

static err unknown_flag(command cmd, const char *word) {
    const char *names[OPT_COUNT + 1];
    int n = 0;
    for (int i = 0; i < OPT_COUNT; i++)
        if (table[i].in & BIT(cmd)) names[n++] = table[i].name;
    names[n] = NULL;
    char hint[128];
    snprintf(hint, sizeof hint, "did you mean %s? `spinshard %s --help` lists all flags",
             options_nearest(word, names), commands[cmd].name);
    return err_make(ERR_USAGE, word, hint, "unknown flag of %s", commands[cmd].name);
}

static option find_flag(command cmd, const char *word, size_t len) {
    for (int i = 0; i < OPT_COUNT; i++)
        if ((table[i].in & BIT(cmd)) && strlen(table[i].name) == len &&
            !strncmp(table[i].name, word, len))
            return (option)i;
    return OPT_COUNT;
}

static err take_flag(options *o, int argc, char **argv, int *at) {
    const char *word = argv[*at], *equals = strchr(word, '='), *value = NULL;
    option opt = find_flag(o->cmd, word, equals ? (size_t)(equals - word) : strlen(word));
    if (opt == OPT_COUNT) return unknown_flag(o->cmd, word);
    if (table[opt].arg) {
        if (equals)
            value = equals + 1;
        else if (*at + 1 < argc)
            value = argv[++*at];
        else
            return err_make(ERR_USAGE, word, NULL, "needs a value: %s", table[opt].arg);
    } else if (equals) {
        return err_make(ERR_USAGE, word, NULL, "%s takes no value", table[opt].name);
    }
    int n = o->n_values[opt];
    if (n && !table[opt].many)
        return err_make(ERR_USAGE, table[opt].name, NULL, "given more than once");
    if (n >= OPTIONS_MAX_VALUES)
        return err_make(ERR_USAGE, table[opt].name, NULL, "given more than %d times",
                        OPTIONS_MAX_VALUES);
    o->values[opt][o->n_values[opt]++] = value;
    return err_none();
}

err options_parse(command cmd, int argc, char **argv, options *out) {
    memset(out, 0, sizeof *out);
    out->cmd = cmd;
    for (int i = 0; i < argc; i++) {
        err e = err_none();
        if (!strncmp(argv[i], "--", 2))
            e = take_flag(out, argc, argv, &i);
        else if (commands[cmd].target && !out->target)
            out->target = argv[i];
        else
            e = err_make(ERR_USAGE, argv[i], NULL,
                         "unexpected word; `spinshard %s --help` shows the usage",
                         commands[cmd].name);
        if (e.code) return e;
    }
    if (commands[cmd].target && !out->target)
        return err_make(ERR_USAGE, commands[cmd].name, NULL, "say what to look at: spinshard %s %s",
                        commands[cmd].name, commands[cmd].target);
    return err_none();
}

bool options_has(const options *o, option opt) {
    return o->n_values[opt] > 0;
}

const char *options_str(const options *o, option opt) {
    return o->n_values[opt] ? o->values[opt][o->n_values[opt] - 1] : NULL;
}

err options_int(const options *o, option opt, int64_t lo, int64_t hi, int64_t *out) {
    const char *s = options_str(o, opt);
    if (!s) return err_none();
    char *end;
    errno = 0;
    long long n = strtoll(s, &end, 10);
    if (end == s || *end || errno || n < lo || n > hi)
        return err_make(ERR_USAGE, table[opt].name, NULL,
                        "\"%s\" is not a whole number in %" PRId64 "..%" PRId64, s, lo, hi);
    *out = n;
    return err_none();
}

static void help_of(command cmd) {
    printf("spinshard %s%s%s [flags]\n  %s\n", commands[cmd].name, commands[cmd].target ? " " : "",
           commands[cmd].target ? commands[cmd].target : "", commands[cmd].what);
    for (int i = 0; i < OPT_COUNT; i++) {
        if (!(table[i].in & BIT(cmd))) continue;
        char left[64];
        snprintf(left, sizeof left, "%s %s", table[i].name, table[i].arg ? table[i].arg : "");
        printf("    %-28s %s\n", left, table[i].help);
    }
}

/* "auto|on|off" as "auto, on or off". */
static void list_words(const char *words, char *text, size_t size) {
    const char *last = strrchr(words, '|');
    size_t n = 0;
    text[0] = 0;
    for (const char *w = words; *w && n + 5 < size; w++)
        n += (size_t)snprintf(text + n, size - n, "%s%.1s",
                              w == last   ? " or "
                              : *w == '|' ? ", "
                                          : "",
                              *w == '|' ? "" : w);
}

err options_word(const options *o, option opt, int *out) {
    const char *value = options_str(o, opt), *words = table[opt].arg;
    const size_t n = value ? strlen(value) : 0;
    int at = 0;
    if (!value) return err_none();
    for (const char *w = words; w; w = strchr(w, '|'), at++) {
        if (*w == '|') w++;
        if (n && !strncmp(w, value, n) && (!w[n] || w[n] == '|')) {
            *out = at;
            return err_none();
        }
    }
    char list[160];
    list_words(words, list, sizeof list);
    return err_make(ERR_USAGE, table[opt].name, NULL, "\"%s\" is not %s", value, list);
}

void options_help(command cmd) {
    if (cmd != CMD_COUNT) {
        help_of(cmd);
        return;
    }
    puts("Spinshard quantizes LLaMA-family models to INT4 on CPU clusters.\n"
         "usage: spinshard COMMAND [flags]; spinshard COMMAND --help; spinshard --version\n");
    for (int c = 0; c < CMD_COUNT; c++) {
        help_of((command)c);
        puts("");
    }
    puts(
        "Exit codes: 0 done, 1 bug, 2 usage, 3 bad input or model, 4 verification failed, 5 out of "
        "space,\n"
        "6 does not fit, 7 state does not match, 8 numerics, 9 a rank was lost or hung, 75 stopped "
        "at a "
        "commit:\n"
        "run the same command again. Recipe keys and their defaults: `spinshard quantize --help`.");
}
