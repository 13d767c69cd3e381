/* tool_logits FOLDER N - N token ids (int32) from stdin as one window through the model of FOLDER
 * in fp64, by the loading and the passes that eval uses; logits [N, vocab] as doubles to stdout.
 * For scripts that hold other programs against them. */
#include "io/hf_checkpoint.h"
#include "mpi/comm.h"
#include "pipeline/stages/eval_run.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct window {
    int32_t *ids;
    int64_t n, vocab;
} window;

static err put(void *arg, int64_t i, const double *logits) {
    const window *w = arg;
    (void)i;
    fwrite(logits, sizeof *logits, (size_t)(w->n * w->vocab), stdout);
    return err_none();
}

static err pass(const hf_checkpoint *ck, const llama_config *cfg, window *w) {
    const int32_t *starts[] = {w->ids};
    const eval_windows windows = {.ids = starts, .n = 1, .length = w->n};
    embed_rows rows;
    llama_stage stage = {.cfg = cfg};
    err e = embed_rows_init(w->ids, w->n, cfg->vocab, &rows);
    if (e.code) return e;
    const load_options lo = {.checkpoint = ck,
                             .cfg = cfg,
                             .embed = &rows,
                             .head = true,
                             .range = {.first = 0, .n = cfg->layers},
                             .compute = COMPUTE_F64};
    const llama_sites sites = llama_sites_none();
    e = load_stage(&lo, &stage);
    if (!e.code)
        e = eval_logits(comm_world(), &stage, &sites, COMPUTE_F64, &rows, &windows, put, w);
    llama_stage_clear(&stage);
    embed_rows_clear(&rows);
    return e;
}

int main(int argc, char **argv) {
    fileset *fs;
    hf_checkpoint *ck;
    llama_config cfg = {0};
    if (argc != 3) return ERR_USAGE;
    window w = {.n = atoll(argv[2])};
    w.ids = calloc((size_t)w.n, sizeof *w.ids);
    if (!w.ids || fread(w.ids, sizeof *w.ids, (size_t)w.n, stdin) != (size_t)w.n) return ERR_USAGE;
    err e = fileset_open_dir(comm_world(), argv[1], &fs);
    if (!e.code) e = hf_checkpoint_open(comm_world(), fs, &ck);
    if (!e.code) e = llama_config_parse(hf_checkpoint_config(ck), argv[1], &cfg);
    w.vocab = cfg.vocab;
    if (!e.code) e = pass(ck, &cfg, &w);
    if (e.code) fprintf(stderr, "%s: %s\n", e.where, e.what);
    free(w.ids);
    return e.code;
}
