/* Root reads and tokenizes the text, cuts it into windows, repeats them where there are too few,
 * and sends them to all. */
#include "jobs/run/quantize_calib.h"

#include "base/log.h"
#include "base/sha256.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

err quantize_check_tokenizer(const quantize_run *q) {
    const source *s = &q->source;
    const bool used = quantize_needs_calibration(q->set) && !options_has(q->o, OPT_CALIB_IDS);
    tokenizer *t = NULL;
    if (!used && !fileset_find(s->files, "tokenizer.json", NULL, NULL, NULL)) {
        log_line(LOG_WARN, "%s has no tokenizer.json; the archive will have none", s->path);
        return err_none();
    }
    err e = source_tokenizer(s, &t);
    tokenizer_destroy(&t);
    if (!e.code) return e;
    if (used) {
        if (e.code == ERR_INPUT)
            snprintf(
                e.hint, sizeof e.hint,
                "tokenize the calibration text elsewhere, with the tokenizer of the model, and "
                "give the ids: --calib-ids FILE");
        return e;
    }
    log_line(LOG_WARN,
             "%s: %s; it is copied as it is, and `spinshard eval` will not read texts with it",
             e.where, e.what);
    return err_none();
}

/* Root only. The whole text as ids, by the model's tokenizer or as given. */
static err read_ids(const quantize_run *q, tokenizer *t, int32_t **ids, int64_t *n) {
    if (options_has(q->o, OPT_CALIB_IDS))
        return text_read_ids(options_str(q->o, OPT_CALIB_IDS), q->source.cfg.vocab, ids, n);
    char *text;
    size_t len;
    err e = text_read(options_str(q->o, OPT_CALIB), &text, &len);
    if (!e.code) e = source_encode(&q->source, t, text, len, options_str(q->o, OPT_CALIB), ids, n);
    free(text);
    return e;
}

/* Root only. Windows of the text; where it has fewer than asked they repeat. */
static err make_windows(quantize_run *q) {
    bool given = options_has(q->o, OPT_CALIB_IDS);
    const char *where = options_str(q->o, given ? OPT_CALIB_IDS : OPT_CALIB);
    int64_t asked = q->set->calib.windows, window = q->set->calib.window, n = 0;
    tokenizer *t = NULL;
    text_windows *w = NULL;
    int32_t *ids = NULL;
    err e = err_none();
    if (!given) e = source_tokenizer(&q->source, &t);
    if (!e.code) e = read_ids(q, t, &ids, &n);
    if (!e.code)
        e = text_windows_create(ids, n, window, asked, 0, given ? BOS_NONE : q->set->calib.bos,
                                (int32_t)q->source.cfg.bos, t, where, &w);
    free(ids);
    if (!e.code) {
        int64_t there = text_windows_count(w);
        if (there < asked)
            log_line(LOG_WARN,
                     "%s has %" PRId64 " windows of %" PRId64
                     " tokens; they repeat to make %" PRId64,
                     where, there, window, asked);
        q->calib_ids = malloc((size_t)(asked * window) * sizeof *q->calib_ids);
        if (!q->calib_ids) abort();
        for (int64_t i = 0; i < asked; i++)
            memcpy(q->calib_ids + i * window, text_window_at(w, i % there),
                   (size_t)window * sizeof *q->calib_ids);
    }
    text_windows_destroy(&w);
    tokenizer_destroy(&t);
    return e;
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
    if (!given)
        e = err_make(ERR_USAGE, "--calib", "give a UTF-8 text: --calib FILE",
                     "this recipe learns from text, and none is given");
    else if (options_has(q->o, OPT_CALIB) && options_has(q->o, OPT_CALIB_IDS))
        e = err_make(ERR_USAGE, "--calib", "give one of them",
                     "--calib and --calib-ids exclude each other");
    else if (comm_rank(q->c) == 0)
        e = make_windows(q);
    e = comm_agree(q->c, e, "reading the calibration text", NULL);
    if (e.code) return e;
    q->calib_windows = q->set->calib.windows;
    void *blob = q->calib_ids;
    size_t len = (size_t)(q->calib_windows * q->set->calib.window) * sizeof *q->calib_ids;
    comm_bcast_blob(q->c, &blob, &len, 0);
    q->calib_ids = blob;
    return e;
}
