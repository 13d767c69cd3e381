/* Rows are packed by the threads that bring them, into pieces of one object that the run state
 * hashes as it grows. */
#include "jobs/phases/item_output.h"

#include "base/fault.h"
#include "base/mem.h"
#include "base/size.h"
#include "jobs/setup/recipe_asks.h"
#include "shard/stored_floats.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static err piece_reserve(item_piece *p, uint64_t bytes, const char *what) {
    if (bytes <= p->room) return err_none();
    mem_free(p->bytes);
    p->room = 0;
    err e = mem_alloc((int64_t)bytes, 1, what, &p->bytes);
    if (!e.code) p->room = bytes;
    return e;
}

static err put(item_output *out, const layout_slot *slot, const void *data, uint64_t n,
               uint64_t begin) {
    for (int i = 0; i < out->n_units; i++)
        if (out->units[i] == slot->unit)
            return run_object_put(out->objects[i], data, n, slot->unit_offset + begin);
    return err_make(ERR_BUG, slot->name, NULL, "a tensor of another unit");
}

static const form *form_of(const item_output *out) {
    return layout_opts(out->q->layout)->linears.form;
}

/* n numbers from number `begin` of a tensor on. Threads bring rows side by side: what a call needs
 * stands on its stack. */
static err put_floats(item_output *out, const layout_slot *slot, const float *w, int64_t n,
                      int64_t begin) {
    enum { MOST = 1 << 13 };
    uint32_t bytes[MOST];
    const uint64_t size = (uint64_t)st_dtype_bytes(slot->dtype);
    err e = err_none();
    for (int64_t i = 0; i < n && !e.code; i += MOST) {
        const int64_t some = size_min(MOST, n - i);
        e = stored_floats_fill(w + i, some, slot->dtype, slot->name, bytes);
        if (!e.code) e = put(out, slot, bytes, (uint64_t)some * size, (uint64_t)(begin + i) * size);
    }
    return e;
}

/* By how much Llama 3.1 divides the angle of each pair. */
static err put_rope(item_output *out) {
    const llama_config *cfg = &out->q->source.cfg;
    llama_config unscaled = *cfg;
    const int64_t n = cfg->head_dim / 2;
    const layout_slot *slot =
        layout_find_role(out->q->layout, ROLE_FINAL_NORM, -1, &form_rope_slot);
    if (!slot) return err_none();
    unscaled.rope.kind = ROPE_NONE;
    void *room;
    err e = mem_alloc(n, 2 * sizeof(double) + sizeof(float), slot->name, &room);
    if (e.code) return e;
    double *scaled = room, *plain = scaled + n;
    float *ratio = (float *)(plain + n);
    llama_inv_freq(cfg, scaled);
    llama_inv_freq(&unscaled, plain);
    for (int64_t i = 0; i < n; i++) ratio[i] = (float)(plain[i] / scaled[i]);
    e = put_floats(out, slot, ratio, n, 0);
    mem_free(room);
    return e;
}

static err take_plain(void *arg, const llama_tensor *t, int64_t row0, int64_t rows,
                      const float *w) {
    item_output *out = arg;
    const layout_slot *slot = layout_find_role(out->q->layout, t->role, t->layer, NULL);
    if (!slot) return err_make(ERR_BUG, t->name, NULL, "no place in the archive");
    err e = err_none();
    const bool files = form_has_files(form_of(out));
    for (int64_t r = 0, run; r < rows && !e.code; r += run) {
        int64_t place;
        run = form_row_run(form_of(out), &out->q->source.cfg, t->role, row0 + r, rows - r, &place);
        e = put_floats(out, slot, w + r * t->cols, run * t->cols, place * t->cols);
    }
    if (!e.code && files && t->role == ROLE_FINAL_NORM && row0 == 0) e = put_rope(out);
    return e;
}

/* One tensor of a linear: packed, unpacked again and compared, and put into its object. */
static err put_part(item_output *out, const llama_tensor *t, const form_slot *part,
                    const qmatrix *m) {
    const layout_slot *place = layout_find_role(out->q->layout, t->role, t->layer, part);
    if (!place) return err_make(ERR_BUG, t->name, NULL, "no place in the archive");
    err e = piece_reserve(out->piece, place->bytes, place->name);
    if (e.code) return e;
    void *bytes = out->piece->bytes;
    part->pack(m, bytes);
    if (part->part == FORM_CODES && fault_hit("code")) *(char *)bytes ^= 1;
    e = form_check(part, m, bytes, place->name);
    if (e.code || !form_has_files(form_of(out)))
        return e.code ? e : put(out, place, bytes, place->bytes, 0);
    void *ordered;
    e = mem_alloc((int64_t)place->bytes, 1, place->name, &ordered);
    if (e.code) return e;
    form_rows_to_file(form_of(out), &out->q->source.cfg, t->role, bytes, m->rows,
                      (int64_t)place->bytes / m->rows, ordered);
    e = put(out, place, ordered, place->bytes, 0);
    mem_free(ordered);
    return e;
}

/* The matrix of R4, row by row. */
static err put_r4(item_output *out, const llama_tensor *t) {
    const layout_slot *place = layout_find_role(out->q->layout, t->role, t->layer, &form_r4_slot);
    if (!place) return err_none();
    const int64_t n = place->shape[1], size = st_dtype_bytes(place->dtype);
    float *row;
    err e = piece_reserve(out->piece, (uint64_t)(n * size), place->name);
    if (!e.code) e = MEM_NEW(&row, n, place->name);
    if (e.code) return e;
    for (int64_t i = 0; i < n && !e.code; i++) {
        form_r4_row(i, n, row);
        stored_floats_put(row, n, place->dtype, out->piece->bytes);
        e = put(out, place, out->piece->bytes, (uint64_t)(n * size), (uint64_t)(i * n * size));
    }
    mem_free(row);
    return e;
}

/* Where the archive has them: what keys or values are divided by. */
static err put_cache_scale(item_output *out, const llama_tensor *t) {
    const bool key = t->role == ROLE_K;
    if (!layout_opts(out->q->layout)->linears.fp8_cache || (!key && t->role != ROLE_V))
        return err_none();
    const layout_slot *place =
        layout_find_role(out->q->layout, t->role, t->layer, &form_cache_slot);
    const double *scales = rotation_set_cache_scales(out->q->rotations);
    if (!place || !scales) return err_make(ERR_BUG, t->name, NULL, "no scale of the cache");
    const float scale = (float)scales[2 * t->layer + !key];
    return put_floats(out, place, &scale, 1, 0);
}

/* A scale that does not fit into its type is held to the largest number there, and the weights to
 * that many steps of it. */
static err check_scales(const llama_tensor *t, const qmatrix *m) {
    const float most = scale_most(m->scale_type);
    int64_t held = 0;
    for (int64_t i = 0; i < m->rows * m->n_groups; i++) held += m->scales[i] >= most;
    if (!held) return err_none();
    return err_make(ERR_NUMERICS, t->name,
                    m->scale_type == SCALE_FP16
                        ? "archive.form=pack-quantized with archive.dtype=bf16 stores larger ones"
                        : "the checkpoint is damaged: fetch it again",
                    "%" PRId64 " scales are as large as their type can be, or larger", held);
}

static err take_quantized(void *arg, const llama_tensor *t, const qmatrix *m) {
    item_output *out = arg;
    const form_scheme *s = &layout_opts(out->q->layout)->linears;
    err e = check_scales(t, m);
    for (int i = 0; i < s->form->n_slots && !e.code; i++)
        if (form_stores(s, &s->form->slots[i])) e = put_part(out, t, &s->form->slots[i], m);
    if (!e.code) e = put_r4(out, t);
    return e.code ? e : put_cache_scale(out, t);
}

err item_output_open(quantize_run *q, int64_t item, item_piece *piece, item_output *out) {
    err e = err_none();
    *out = (item_output){.q = q, .piece = piece};
    out->n_units = quantize_item_units(&q->job, item, out->units);
    for (int i = 0; i < out->n_units && !e.code; i++)
        e = run_object_create(q->out, layout_unit_bytes(q->layout, out->units[i]),
                              &out->objects[i]);
    return e;
}

quantize_sink item_output_sink(item_output *out) {
    const bool round = settings_round_weights(out->q->set);
    return (quantize_sink){.arg = out,
                           .plain = take_plain,
                           .quantized = round ? take_quantized : NULL,
                           .fused = round ? NULL : take_plain};
}

err item_output_finish(item_output *out, char hex[2][SHA256_HEX]) {
    err e = err_none();
    for (int i = 0; i < out->n_units && !e.code; i++)
        e = run_object_finish(&out->objects[i], hex[i]);
    return e;
}

void item_output_abandon(item_output *out) {
    for (int i = 0; i < out->n_units; i++) run_object_abandon(&out->objects[i]);
}

static json_t *spread_json(const spread *s) {
    return json_pack("{s:o, s:o, s:o, s:o}", "kurtosis", json_four_digits(s->kurtosis),
                     "max_over_rms", json_four_digits(s->max_over_rms), "log_qsur",
                     json_four_digits(s->log_qsur), "nearest_error",
                     json_four_digits(s->nearest_error));
}

/* [{"tensor", "before": of spread_json, "after"}], null where nothing is known. */
static json_t *spreads_json(const fused_spread spreads[LLAMA_LINEARS]) {
    json_t *list = json_array();
    for (int k = 0; k < LLAMA_LINEARS && spreads[k].known; k++) {
        json_array_append_new(list, json_pack("{s:s, s:o, s:o}", "tensor",
                                              llama_role_name(llama_linears[k]), "before",
                                              spread_json(&spreads[k].before), "after",
                                              spread_json(&spreads[k].after)));
    }
    return list;
}

err item_note(quantize_run *q, const item_report *r) {
    int64_t units[2];
    int n = quantize_item_units(&q->job, r->item, units);
    json_t *done = json_object_get(run_state_work(q->state), "units");
    char key[24];
    for (int i = 0; i < n; i++) {
        snprintf(key, sizeof key, "%" PRId64, units[i]);
        json_object_set_new(
            done, key,
            json_pack("{s:s, s:s}", "object", r->hex[i], "source_sha256", r->result.source_sha256));
    }
    /* A source that changed under a run must not end up in one archive with what it was. */
    json_t *sources = json_object_get(run_state_work(q->state), "sources");
    snprintf(key, sizeof key, "%" PRId64, r->item);
    const char *before = json_string_value(json_object_get(sources, key));
    if (before && strcmp(before, r->result.source_sha256))
        return err_make(ERR_MISMATCH, q->source.path, "start over with --force",
                        "tensors of layer item %" PRId64 " are not those of the start of this run",
                        r->item);
    json_object_set_new(sources, key, json_string(r->result.source_sha256));
    q->error_sq += r->result.error.sum_sq_error;
    q->weight_sq += r->result.error.sum_sq_weight;
    json_t *more = json_pack("{s:I, s:f}", "item", (json_int_t)r->item, "seconds", r->seconds);
    if (r->result.error.sum_sq_weight > 0)
        json_object_set_new(
            more, "relative_error",
            json_real(sqrt(r->result.error.sum_sq_error / r->result.error.sum_sq_weight)));
    if (r->result.spreads[0].known)
        json_object_set_new(more, "linears", spreads_json(r->result.spreads));
    events_add(q->events, quantize_items_phase(q->set), "layer", more);
    return err_none();
}
