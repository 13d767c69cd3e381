/* Root reads and tokenizes the texts, cuts each into windows, mixes these, and sends them to all.
 */
#include "jobs/run/quantize_calib.h"

#include "base/log.h"
#include "base/sha256.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup.h"
#include "jobs/setup/source_tokens.h"
#include "shard/gguf_metadata.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The pairs that a GGUF file begins with: a vocabulary that they cannot hold is found before the
 * work, and the layout keeps them until the archive is written. */
static err describe_model(const quantize_run *q) {
    layout_metadata m = {0};
    if (!form_has_files(layout_opts(q->layout)->linears.form)) return err_none();
    err e = gguf_metadata_create(q->source.files, hf_checkpoint_config(q->source.ck), q->layout,
                                 q->set->archive.name.text, &m);
    if (!e.code) layout_put_meta(q->layout, &m);
    return e;
}

err quantize_check_tokenizer(const quantize_run *q) {
    const source *s = &q->source;
    err e = describe_model(q);
    if (e.code) return e;
    const bool used = quantize_needs_calibration(q->set) && !options_has(q->o, OPT_CALIB_IDS);
    tokenizer *t = NULL;
    if (!used && !fileset_find(s->files, "tokenizer.json", NULL, NULL, NULL)) {
        log_line(LOG_WARN, "%s has no tokenizer.json; the archive will have none", s->path);
        return err_none();
    }
    e = source_tokenizer(s, &t);
    if (!e.code) source_warn_tokens(s->files, hf_checkpoint_config(s->ck), t);
    tokenizer_destroy(&t);
    if (!e.code) return e;
    if (used) {
        const size_t n = strlen(e.hint);
        if (e.code == ERR_INPUT)
            snprintf(
                e.hint + n, sizeof e.hint - n,
                "%stokenize the calibration text elsewhere, with the tokenizer of the model, and "
                "give the ids: --calib-ids FILE",
                n ? "; or " : "");
        return e;
    }
    log_line(LOG_WARN,
             "%s: %s; it is copied as it is, and `spinshard eval` will not read texts with it",
             e.where, e.what);
    return err_none();
}

/* One of the texts: its windows, and how many of the calibration it has given so far. */
typedef struct calib_text {
    const char *where;
    double part; /* of all windows */
    text_windows *windows;
    int64_t taken;
} calib_text;

typedef struct calib_texts {
    calib_text *of; /* owned; [n] */
    int n;
} calib_texts;

/* --calib-mix: a positive number for each text, made to parts of one. */
static err read_mix(const options *o, calib_texts *t) {
    const char *s = options_str(o, OPT_CALIB_MIX);
    double sum = 0;
    for (int i = 0; i < t->n; i++) {
        char *end = NULL;
        t->of[i].part = s ? strtod(s, &end) : 1;
        const bool last = i == t->n - 1;
        if (s &&
            (end == s || !(t->of[i].part > 0 && t->of[i].part <= 1e9) || *end != (last ? 0 : ':')))
            return err_make(ERR_USAGE, "--calib-mix", "say one for each --calib, as 3:1",
                            "\"%.80s\" is not %d positive numbers with colons between",
                            options_str(o, OPT_CALIB_MIX), t->n);
        sum += t->of[i].part;
        s = s && !last ? end + 1 : s;
    }
    for (int i = 0; i < t->n; i++) t->of[i].part /= sum;
    return err_none();
}

/* Root only. The whole text as ids, by the model's tokenizer or as given. */
static err read_ids(const quantize_run *q, tokenizer *t, const char *path, int32_t **ids,
                    int64_t *n) {
    char *text;
    size_t len;
    if (options_has(q->o, OPT_CALIB_IDS)) return text_read_ids(path, q->source.cfg.vocab, ids, n);
    err e = text_read(path, &text, &len);
    if (!e.code) e = source_encode(&q->source, t, text, len, path, ids, n);
    free(text);
    return e;
}

static err cut_text(const quantize_run *q, tokenizer *t, calib_text *text) {
    const bool given = options_has(q->o, OPT_CALIB_IDS);
    int32_t *ids = NULL;
    int64_t n = 0;
    err e = read_ids(q, t, text->where, &ids, &n);
    if (!e.code)
        e = text_windows_create(ids, n, q->set->calib.window, q->set->calib.windows, 0,
                                given ? BOS_NONE : q->set->calib.bos, (int32_t)q->source.cfg.bos, t,
                                text->where, &text->windows);
    free(ids);
    return e;
}

/* The text that gives the next of k windows so far: that which is furthest behind its part, the
 * first of equals. So parts are kept to one window at any place, and no order of files or chance
 * decides. */
static calib_text *next_text(const calib_texts *t, int64_t k) {
    calib_text *next = &t->of[0];
    for (int i = 1; i < t->n; i++) {
        const calib_text *x = &t->of[i];
        if (x->part * (double)(k + 1) - (double)x->taken >
            next->part * (double)(k + 1) - (double)next->taken)
            next = &t->of[i];
    }
    return next;
}

/* Windows of a text follow each other; where it has too few they repeat. */
static void mix_windows(quantize_run *q, calib_texts *t) {
    const int64_t asked = q->set->calib.windows, window = q->set->calib.window;
    q->calib_ids = malloc((size_t)(asked * window) * sizeof *q->calib_ids);
    if (!q->calib_ids) abort();
    for (int64_t k = 0; k < asked; k++) {
        calib_text *from = next_text(t, k);
        const int64_t at = from->taken++ % text_windows_count(from->windows);
        memcpy(q->calib_ids + k * window, text_window_at(from->windows, at),
               (size_t)window * sizeof *q->calib_ids);
    }
    for (int i = 0; i < t->n; i++) {
        const int64_t there = text_windows_count(t->of[i].windows);
        if (there < t->of[i].taken)
            log_line(LOG_WARN,
                     "%s has %" PRId64 " windows of %" PRId64
                     " tokens; they repeat to make %" PRId64,
                     t->of[i].where, there, window, t->of[i].taken);
        else if (t->n > 1)
            log_line(LOG_RUN, "calibration: %" PRId64 " windows of %s", t->of[i].taken,
                     t->of[i].where);
    }
}

/* Root only. Windows of the texts, mixed. */
static err make_windows(quantize_run *q) {
    const bool given = options_has(q->o, OPT_CALIB_IDS);
    const option from = given ? OPT_CALIB_IDS : OPT_CALIB;
    tokenizer *t = NULL;
    calib_texts texts = {.n = q->o->n_values[from]};
    texts.of = calloc((size_t)texts.n, sizeof *texts.of);
    if (!texts.of) abort();
    for (int i = 0; i < texts.n; i++) texts.of[i].where = q->o->values[from][i];
    err e = read_mix(q->o, &texts);
    if (!e.code && !given) e = source_tokenizer(&q->source, &t);
    for (int i = 0; i < texts.n && !e.code; i++) e = cut_text(q, t, &texts.of[i]);
    if (!e.code) mix_windows(q, &texts);
    for (int i = 0; i < texts.n; i++) text_windows_destroy(&texts.of[i].windows);
    free(texts.of);
    tokenizer_destroy(&t);
    return e;
}

err quantize_check_calibration(const options *o, const settings *s) {
    const bool text = options_has(o, OPT_CALIB), ids = options_has(o, OPT_CALIB_IDS);
    if (!quantize_needs_calibration(s)) return err_none();
    if (!text && !ids)
        return err_make(ERR_USAGE, "--calib",
                        "give --calib FILE, a text like those that the model is for: "
                        "docs/FORMATS.md, Calibration texts, says which and how much",
                        "this recipe learns from text, and none is given");
    if (text && ids)
        return err_make(ERR_USAGE, "--calib", "give one of them",
                        "--calib and --calib-ids exclude each other");
    return err_none();
}

err quantize_read_calibration(quantize_run *q) {
    bool given = options_has(q->o, OPT_CALIB) || options_has(q->o, OPT_CALIB_IDS);
    if (!quantize_needs_calibration(q->set)) {
        if (given) log_line(LOG_RUN, "this recipe uses no calibration text: --calib is not read");
        return err_none();
    }
    err e = comm_agree(q->c, source_check_window(&q->source, "calib.window", q->set->calib.window),
                       "reading the calibration text", NULL);
    if (e.code) return e;
    e = quantize_check_calibration(q->o, q->set);
    if (!e.code && comm_rank(q->c) == 0) e = make_windows(q);
    e = comm_agree(q->c, e, "reading the calibration text", NULL);
    if (e.code) return e;
    q->calib_windows = q->set->calib.windows;
    void *blob = q->calib_ids;
    size_t len = (size_t)(q->calib_windows * q->set->calib.window) * sizeof *q->calib_ids;
    comm_bcast_blob(q->c, &blob, &len, 0);
    q->calib_ids = blob;
    return e;
}
