/* Files of the output folder in, a page or JSON out. */
#include "jobs/report.h"

#include "base/file.h"
#include "jobs/reporting/report_card.h"
#include "jobs/reporting/report_data.h"
#include "jobs/reporting/report_page.h"
#include "shard/archive.h"

#include <stdio.h>
#include <stdlib.h>

static err write_page(const options *o, const json_t *report) {
    char *text = NULL, *own = file_join(o->target, "report.html");
    const char *path = options_has(o, OPT_HTML) ? options_str(o, OPT_HTML) : own;
    size_t len = 0;
    report_page(report, &text, &len);
    err e = file_publish(path, text, len);
    if (!e.code && !options_has(o, OPT_JSON)) printf("%s written\n", path);
    free(text);
    free(own);
    return e;
}

/* The card of the finished archive, with figures that came after it. */
static err write_card(const comm *c, const options *o, const json_t *report) {
    enum { MOST_BYTES = 64 << 20 };
    const json_t *evals = json_object_get(report, "accuracy");
    archive *a = NULL;
    char *card = NULL, *text = NULL;
    size_t len;
    if (!json_array_size(evals))
        return err_make(ERR_USAGE, "--card",
                        "give what `spinshard eval --json` printed: --eval FILE",
                        "no figures are given that the card could say");
    err e = archive_open(c, o->target, &a);
    if (!e.code) e = fileset_read_all(archive_files(a), "README.md", MOST_BYTES, &card, &len);
    if (!e.code) {
        report_card(card, evals, &text, &len);
        e = file_publish(options_str(o, OPT_CARD), text, len);
    }
    if (!e.code && !options_has(o, OPT_JSON)) printf("%s written\n", options_str(o, OPT_CARD));
    archive_close(&a);
    free(card);
    free(text);
    return e;
}

/* The other runs, each as a report of its own in "beside". */
static err add_beside(const options *o, json_t *report) {
    json_t *list = json_array();
    err e = err_none();
    for (int i = 0; i < o->n_values[OPT_BESIDE] && !e.code; i++) {
        json_t *other;
        e = report_collect(o->values[OPT_BESIDE][i], NULL, 0, &other);
        if (!e.code) json_array_append_new(list, other);
    }
    json_object_set_new(report, "beside", list);
    return e;
}

/* What bench/spread.py found, in "spread". */
static err add_spread(const options *o, json_t *report) {
    enum { MOST_BYTES = 64 << 20 };
    const char *path = options_str(o, OPT_SPREAD);
    json_t *v = NULL;
    err e = json_read_file(path, MOST_BYTES, &v);
    if (!e.code && !json_is_object(json_object_get(v, "random_starts")))
        e = err_make(ERR_INPUT, path, "give WORK/spread.json of bench/spread.py",
                     "has no object \"random_starts\"");
    if (!e.code) json_object_set(report, "spread", v);
    json_decref(v);
    return e;
}

err job_report(const comm *c, const options *o) {
    json_t *report;
    err e = report_collect(o->target, o->values[OPT_EVAL], o->n_values[OPT_EVAL], &report);
    if (e.code) return e;
    if (options_has(o, OPT_BESIDE)) e = add_beside(o, report);
    if (!e.code && options_has(o, OPT_SPREAD)) e = add_spread(o, report);
    if (e.code) {
        json_decref(report);
        return e;
    }
    if (options_has(o, OPT_HTML) || !options_has(o, OPT_JSON)) e = write_page(o, report);
    if (!e.code && options_has(o, OPT_CARD)) e = write_card(c, o, report);
    if (!e.code && options_has(o, OPT_JSON)) {
        json_dumpf(report, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
        puts("");
    }
    json_decref(report);
    return e;
}
