/* Non-blocking send of one boundary buffer while the other is computed; the order of batches is
 * the same on every rank, so no tags are needed. */
#include "pipeline/stages/stage_relay.h"

#include "base/mem.h"

#include <stdlib.h>

struct stage_relay {
    const comm *c;
    const llama_stage *stage;
    const llama_sites *sites;
    compute_type compute;
    const embed_rows *rows;
    llama_scratch *scratch;
    int32_t *local_ids; /* [tokens] rows of the embedding */
    void *x[2];         /* real [tokens, hidden] */
    comm_request *sent[2];
    int side; /* of the next batch */
};

uint64_t stage_relay_bytes(const llama_config *cfg, compute_type compute, int64_t tokens) {
    return 2 * (uint64_t)tokens * (uint64_t)cfg->hidden * llama_real_bytes(compute);
}

err stage_relay_create(const comm *c, const llama_stage *stage, const llama_sites *sites,
                       compute_type compute, const embed_rows *rows, int64_t tokens,
                       stage_relay **out) {
    stage_relay *r = calloc(1, sizeof *r);
    int32_t *ids = malloc((size_t)tokens * sizeof *ids + 1);
    if (!r || !ids) abort();
    *r = (stage_relay){
        .c = c, .stage = stage, .sites = sites, .compute = compute, .rows = rows, .local_ids = ids};
    err e = llama_scratch_create(stage->cfg, sites, compute, tokens, &r->scratch);
    for (int i = 0; i < 2 && !e.code; i++)
        e = mem_alloc(tokens * stage->cfg->hidden, llama_real_bytes(compute), "residual stream",
                      &r->x[i]);
    if (e.code) stage_relay_destroy(&r);
    *out = r;
    return e;
}

void stage_relay_destroy(stage_relay **r) {
    if (!*r) return;
    for (int i = 0; i < 2; i++) {
        comm_wait(&(*r)->sent[i]);
        mem_free((*r)->x[i]);
    }
    llama_scratch_destroy(&(*r)->scratch);
    free((*r)->local_ids);
    free(*r);
    *r = NULL;
}

llama_scratch *stage_relay_scratch(stage_relay *r) {
    return r->scratch;
}

size_t stage_relay_row_bytes(const stage_relay *r) {
    return (size_t)r->stage->cfg->hidden * llama_real_bytes(r->compute);
}

void *stage_relay_pass(stage_relay *r, const int32_t *ids, int64_t n, err *e) {
    const int rank = comm_rank(r->c), size = comm_size(r->c), side = r->side;
    const uint64_t bytes = (uint64_t)n * stage_relay_row_bytes(r);
    void *x = r->x[side];
    r->side = !side;
    comm_wait(&r->sent[side]);
    if (rank == 0 && !e->code) {
        for (int64_t t = 0; t < n; t++) r->local_ids[t] = r->rows->row[ids[t]];
        *e = llama_embed(r->stage, r->compute, r->local_ids, n, x);
    }
    if (rank > 0) comm_recv(r->c, x, bytes, rank - 1, TAG_ACTIVATIONS);
    if (!e->code) *e = llama_layers_forward(r->stage, r->sites, n, x, r->scratch);
    if (rank + 1 < size) r->sent[side] = comm_isend(r->c, x, bytes, rank + 1, TAG_ACTIVATIONS);
    return x;
}

void stage_relay_results(const comm *c, void *results, uint64_t bytes) {
    const int last = comm_size(c) - 1;
    if (last == 0) return;
    if (comm_rank(c) == last) comm_send(c, results, bytes, 0, TAG_RESULT);
    if (comm_rank(c) == 0) comm_recv(c, results, bytes, last, TAG_RESULT);
}
