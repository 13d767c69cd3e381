/* Hashes of all bytes, then the rules of loaders, then the source: each is a check of its own, and
 * the first that fails names the tensor or the file. */
#include "jobs/verify.h"

#include "base/file.h"
#include "base/log.h"
#include "base/size.h"
#include "base/yaml.h"
#include "jobs/setup/setup.h"
#include "jobs/verify_source.h"
#include "pipeline/weights/rotation_file.h"
#include "shard/loader_rules.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bound of verify --equivalence in fp32, and of the orthogonality of the rotations in fp64. */
#define EQUIVALENT 1e-4
#define ORTHOGONAL 1e-12

enum { MAX_RECIPE_BYTES = 1 << 20 };

typedef struct verify_job {
    const comm *c;
    const options *o;
    source archive, source;
    recipe *recipe;
    rotation_set *rotations;
    archive_tally tally;
    bool gguf;              /* not read back: hashes are all that is checked */
    loader_report findings; /* root only */
    verify_values values;
    double orthogonality, equivalence;
} verify_job;

/* Every hash, before anything in the archive is parsed: damage is named as damage. */
static err check_bytes(verify_job *v) {
    archive *a = NULL;
    err e = archive_open(v->c, v->o->target, &a);
    if (!e.code) e = archive_verify_bytes(v->c, a, &v->tally);
    if (!e.code) v->gguf = source_is_gguf(archive_manifest(a));
    archive_close(&a);
    return e;
}

/* Root only. The recipe stands in the manifest and in recipe.yaml; eval takes the bits of
 * activations from it, so a damaged one would measure another model. No recipe.yaml, as in a copy
 * of the tars alone, is no fault. */
static err compare_recipes(const verify_job *v) {
    char *path = file_join(v->o->target, "recipe.yaml"), *text = NULL;
    const manifest *m = archive_manifest(v->archive.ar);
    json_t *tree = NULL;
    size_t len;
    err e = err_none();
    if (m && file_exists(path)) {
        e = file_read_all(path, MAX_RECIPE_BYTES, &text, &len);
        if (!e.code) e = yaml_parse(text, len, path, &tree);
        if (!e.code && !json_equal(tree, m->recipe))
            e = err_make(ERR_VERIFY, path, "take both from another copy of the output",
                         "it is not the recipe in manifest.json: one of the two is damaged");
        if (e.code == ERR_USAGE) e.code = ERR_VERIFY;
    }
    json_decref(tree);
    free(text);
    free(path);
    return e;
}

/* What --for NAME is told: its first rule that stops it, and how many do. */
typedef struct verdict {
    const char *name, *first;
    int stops;
} verdict;

static void take_verdict(void *arg, runtime_verdict verdict_of_rule, const char *what) {
    verdict *v = arg;
    if (verdict_of_rule == RUNTIME_NOTE) {
        log_line(LOG_RUN, "note: %s: %s", v->name, what);
        return;
    }
    if (!v->stops++) v->first = what;
}

static err check_runtime(const verify_job *v) {
    if (!options_has(v->o, OPT_FOR)) return err_none();
    int64_t tp = 1;
    int runtime;
    err e = options_int(v->o, OPT_TP, 1, 1 << 16, &tp);
    verdict got = {.name = options_str(v->o, OPT_FOR)};
    if (!e.code) e = options_word(v->o, OPT_FOR, &runtime);
    if (!e.code && !v->archive.linears.form)
        e = err_make(ERR_USAGE, "--for",
                     "leave it out: whoever knows the model loads a plain folder",
                     "nothing is quantized in this archive");
    if (e.code) return e;
    const runtime_facts facts = source_facts(&v->archive, tp);
    runtime_judge(runtime, &facts, take_verdict, &got);
    if (!got.stops) return err_none();
    return err_make(ERR_VERIFY, got.name, NULL, "%s (%d such rules; read from %s)", got.first,
                    got.stops, runtime_version(runtime));
}

/* A plain folder, as its recipe says: opening it has checked all that readers of 16-bit models
 * want. */
static bool is_plain(const source *s) {
    const json_t *bits = json_object_get(json_object_get(s->recipe, "weights"), "bits");
    return !s->linears.form && json_integer_value(bits) == 16;
}

static err check_loaders(verify_job *v) {
    err e = err_none();
    if (comm_rank(v->c) == 0 && !is_plain(&v->archive)) {
        e = loader_rules_check(v->archive.ck, &v->archive.cfg, &v->findings);
        for (int64_t i = 0; !e.code && i < v->findings.n; i++) {
            const loader_finding *f = &v->findings.items[i];
            if (!f->fatal) log_line(LOG_RUN, "note: %s: %s", f->where, f->what);
        }
        if (!e.code) e = loader_report_err(&v->findings);
    }
    if (!e.code && comm_rank(v->c) == 0) e = check_runtime(v);
    return comm_agree(v->c, e, "checking what loaders demand", NULL);
}

/* Rotations of the archive: R1, R2 and scales from the file beside it, R3 and R4 by the recipe. */
static err read_rotations(verify_job *v) {
    options none = {.cmd = CMD_VERIFY};
    err e = setup_recipe(v->c, &none, v->archive.recipe, &v->recipe);
    if (e.code) return e;
    setup_resolve_scales(v->recipe);
    const settings *s = recipe_settings(v->recipe);
    bool rotated = s->rotate.r1 || s->rotate.r2 != R2_NONE;
    bool scaled = s->scale.pairs > 0;
    char *path = NULL;
    if (scaled || rotated)
        e = source_rotations_beside(
            v->o->target, "copy it from the output of the run; verify without --source needs none",
            &path);
    e = comm_agree(v->c, e, "rotations", NULL);
    if (path) recipe_put(v->recipe, "rotate.start", json_string(path));
    free(path);
    if (!e.code) e = setup_rotations(v->c, s, &v->source, false, &v->rotations);
    if (!e.code)
        e = comm_agree(v->c, rotation_set_orthogonality(v->rotations, &v->orthogonality),
                       "rotations", NULL);
    if (!e.code && !(v->orthogonality <= ORTHOGONAL))
        e = err_make(ERR_VERIFY, "rotations.safetensors", NULL,
                     "max |R^T R - I| is %.3g, above %.0e", v->orthogonality, ORTHOGONAL);
    return comm_agree(v->c, e, "rotations", NULL);
}

/* The archive must come from this checkpoint and no other. */
static err check_origin(const verify_job *v) {
    const manifest *m = archive_manifest(v->archive.ar);
    if (!m)
        return err_make(ERR_USAGE, v->o->target, "give the output folder",
                        "a lone tar does not name its source");
    int n = hf_checkpoint_shards(v->source.ck);
    bool same = m->n_shards == n;
    for (int i = 0; same && i < n; i++) {
        bool found = false;
        for (int64_t k = 0; k < m->n_shards; k++)
            found |=
                !strcmp(m->shards[k].header_sha256, hf_checkpoint_header_sha256(v->source.ck, i));
        same = found;
    }
    if (same) return err_none();
    return err_make(ERR_VERIFY, v->source.path, "give the checkpoint the archive was made from",
                    "is another checkpoint: the hashes of the safetensors headers differ");
}

static err check_source(verify_job *v) {
    err e = source_open(v->c, options_str(v->o, OPT_SOURCE), &v->source);
    if (!e.code) e = comm_agree(v->c, check_origin(v), "comparing with the source", NULL);
    if (!e.code) e = read_rotations(v);
    if (!e.code) e = verify_values_against(v->c, &v->archive, &v->source, v->rotations, &v->values);
    if (e.code || !options_has(v->o, OPT_EQUIVALENCE)) return e;
    e = verify_equivalence(v->c, &v->source, v->rotations, &v->equivalence);
    if (!e.code && !(v->equivalence <= EQUIVALENT))
        e = err_make(ERR_VERIFY, v->source.path, NULL,
                     "the fused model is another function: logits differ by %.3g, above %.0e",
                     v->equivalence, EQUIVALENT);
    return e;
}

static void print_json(const verify_job *v) {
    json_t *o =
        json_pack("{s:s, s:b, s:I, s:I, s:I, s:I}", "archive", v->o->target, "ok", 1, "tars",
                  (json_int_t)v->tally.tars, "entries", (json_int_t)v->tally.entries, "bytes",
                  (json_int_t)v->tally.bytes, "notes", (json_int_t)v->findings.n_notes);
    if (options_has(v->o, OPT_SOURCE))
        json_object_set_new(
            o, "source",
            json_pack("{s:I, s:f, s:f, s:s, s:f, s:f}", "linears", (json_int_t)v->values.linears,
                      "relative_error", v->values.relative_error, "worst_relative_error",
                      v->values.worst_relative, "worst", v->values.worst, "worst_steps",
                      v->values.worst_step, "orthogonality", v->orthogonality));
    if (options_has(v->o, OPT_EQUIVALENCE))
        json_object_set_new(o, "equivalence", json_real(v->equivalence));
    json_dumpf(o, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(9));
    puts("");
    json_decref(o);
}

static void print_text(const verify_job *v) {
    char bytes[32];
    printf("bytes    %" PRId64 " tar files, %" PRId64
           " entries, %s: all hashes as in the manifest\n",
           v->tally.tars, v->tally.entries, size_text(v->tally.bytes, bytes));
    if (v->gguf) {
        puts("verified");
        return;
    }
    const bool plain = is_plain(&v->archive);
    printf("loaders  tensors and config as readers of %s want them; %" PRId64 " notes\n",
           plain ? "plain models" : form_method_name(v->archive.linears.form), v->findings.n_notes);
    if (options_has(v->o, OPT_FOR))
        printf("runtime  nothing that stops %s\n", options_str(v->o, OPT_FOR));
    if (options_has(v->o, OPT_SOURCE)) {
        if (plain)
            printf("source   every tensor is what fusing it again gives\n");
        else
            printf("source   %" PRId64
                   " linears, relative error %.4f (worst %.4f, %s), at most %.3f steps off\n",
                   v->values.linears, v->values.relative_error, v->values.worst_relative,
                   v->values.worst, v->values.worst_step);
        printf("rotated  max |R^T R - I| = %.2g\n", v->orthogonality);
    }
    if (options_has(v->o, OPT_EQUIVALENCE))
        printf("function logits of the fused model in fp32 differ by %.2g, relative\n",
               v->equivalence);
    puts("verified");
}

err job_verify(const comm *c, const options *o) {
    verify_job v = {.c = c, .o = o};
    err e = err_none();
    if (options_has(o, OPT_EQUIVALENCE) && !options_has(o, OPT_SOURCE))
        e = err_make(ERR_USAGE, "--equivalence", "add --source DIR",
                     "needs the checkpoint it was made from");
    else if (!archive_is_one(o->target))
        e = err_make(ERR_INPUT, o->target,
                     "an unfinished run has none; `spinshard status` tells how far it is",
                     "has no manifest.json: not a complete archive");
    e = comm_agree(c, e, "reading the flags", NULL);
    if (!e.code) e = check_bytes(&v);
    const bool more = options_has(o, OPT_SOURCE) || options_has(o, OPT_FOR);
    if (!e.code && (!v.gguf || more)) e = source_open(c, o->target, &v.archive);
    if (!e.code && !v.gguf)
        e = comm_agree(c, comm_rank(c) == 0 ? compare_recipes(&v) : err_none(), "the recipe", NULL);
    if (!e.code && !v.gguf) e = check_loaders(&v);
    if (!e.code && options_has(o, OPT_SOURCE)) e = check_source(&v);
    if (!e.code && comm_rank(c) == 0 && o->cmd != CMD_COMPARE) {
        if (options_has(o, OPT_JSON))
            print_json(&v);
        else
            print_text(&v);
    }
    loader_report_clear(&v.findings);
    rotation_set_destroy(&v.rotations);
    recipe_destroy(&v.recipe);
    source_close(&v.source);
    source_close(&v.archive);
    return e;
}
