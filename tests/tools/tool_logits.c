/* tool_logits FOLDER N [BLOCK] - N token ids (int32) from stdin as one window through the model of
 * FOLDER, also one unpacked from an archive, in fp64, by the loading and the passes that eval uses;
 * logits [N, vocab] as doubles to stdout. BLOCK: down_proj holds R4 in such blocks, so its input is
 * rotated. For scripts that hold other programs against them. */
#include "jobs/setup/source.h"
#include "mpi/comm.h"
#include "pipeline/stages/eval_run.h"
#include "rotations/rotation.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct window {
    int32_t *ids;
    int64_t n, vocab;
    rotation *R4; /* NULL: none */
} window;

static err put(void *arg, int64_t i, const double *logits) {
    const window *w = arg;
    (void)i;
    fwrite(logits, sizeof *logits, (size_t)(w->n * w->vocab), stdout);
    return err_none();
}

static err pass(const source *from, window *w) {
    const llama_config *cfg = &from->cfg;
    const int32_t *starts[] = {w->ids};
    const eval_windows windows = {.ids = starts, .n = 1, .length = w->n};
    embed_rows rows;
    llama_stage stage = {.cfg = cfg};
    err e = embed_rows_init(w->ids, w->n, cfg->vocab, &rows);
    if (e.code) return e;
    const load_options lo = {.checkpoint = from->ck,
                             .cfg = cfg,
                             .linears = from->linears,
                             .embed = &rows,
                             .head = true,
                             .range = {.first = 0, .n = cfg->layers},
                             .compute = COMPUTE_F64};
    llama_sites sites = llama_sites_none();
    sites.R4 = w->R4;
    sites.r4_fused = w->R4 != NULL;
    e = load_stage(&lo, &stage);
    if (!e.code)
        e = eval_logits(comm_world(), &stage, &sites, COMPUTE_F64, &rows, &windows, put, w);
    llama_stage_clear(&stage);
    embed_rows_clear(&rows);
    return e;
}

int main(int argc, char **argv) {
    source from = {.path = NULL};
    if (argc != 3 && argc != 4) return ERR_USAGE;
    window w = {.n = atoll(argv[2])};
    w.ids = calloc((size_t)w.n, sizeof *w.ids);
    if (!w.ids || fread(w.ids, sizeof *w.ids, (size_t)w.n, stdin) != (size_t)w.n) return ERR_USAGE;
    err e = source_open(comm_world(), argv[1], &from);
    if (!e.code && argc == 4)
        e = rotation_create_blocks(from.cfg.intermediate, atoll(argv[3]), NULL, &w.R4);
    w.vocab = from.cfg.vocab;
    if (!e.code) e = pass(&from, &w);
    if (e.code) fprintf(stderr, "%s: %s\n", e.where, e.what);
    rotation_destroy(&w.R4);
    source_close(&from);
    free(w.ids);
    return e.code;
}
