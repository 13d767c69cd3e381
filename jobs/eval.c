/* Perplexity of texts and accuracy on tasks: windows and sequences go through stages of layers over
 * the ranks, and root sums their likelihoods in order. */
#include "jobs/eval.h"

#include "base/clock.h"
#include "base/file.h"
#include "base/gemm.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/size.h"
#include "jobs/eval_distance.h"
#include "jobs/eval_tasks.h"
#include "jobs/setup/recipe_asks.h"
#include "jobs/setup/setup.h"
#include "jobs/setup/setup_eight.h"
#include "jobs/setup/setup_form.h"
#include "jobs/setup/source_tokens.h"
#include "jobs/setup/text_word.h"
#include "pipeline/plan/memory_plan.h"
#include "pipeline/stages/eval_against.h"
#include "pipeline/stages/eval_run.h"
#include "pipeline/stages/stage_relay.h"
#include "pipeline/weights/rotation_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct eval_text {
    text_word from;
    text_windows *windows; /* root only */
    int64_t first, n;      /* its windows among all */
} eval_text;

typedef struct eval_job {
    const comm *c;
    const options *o;
    source source, against; /* against: open where --against is given */
    recipe *recipe;
    rotation_set *rotations;
    const rotation **r2;
    llama_sites sites;
    compute_type compute;
    int64_t window, limit, tail;
    eval_text texts[OPTIONS_MAX_VALUES];
    int n_texts;
    char bos[80];           /* root: what each window begins with */
    int32_t *ids;           /* [n_windows * window], on every rank */
    const int32_t **starts; /* [n_windows] into ids */
    int64_t n_windows;
    double *nll;          /* root: [n_windows] */
    divergence *distance; /* root, with --against: [n_windows, window - 1] */
    eval_tasks tasks;
    double seconds;
    json_t *peaks; /* root: peak resident bytes of each rank */
} eval_job;

static const char *compute_name(compute_type t) {
    return t == COMPUTE_BF16 ? "bf16" : t == COMPUTE_F32 ? "fp32" : "fp64";
}

static err read_flags(eval_job *j) {
    const options *o = j->o;
    j->window = 2048;
    if (!options_has(o, OPT_MODEL))
        return err_make(ERR_USAGE, "--model", NULL, "say which model: --model DIR or OUT");
    if (!options_has(o, OPT_TEXT) && !options_has(o, OPT_TASKS))
        return err_make(ERR_USAGE, "--text", NULL,
                        "say which text: --text FILE, or which questions: --tasks FILE");
    if (options_has(o, OPT_ITEMS) && !options_has(o, OPT_TASKS))
        return err_make(ERR_USAGE, "--items", NULL, "say which questions: --tasks FILE");
    if (options_has(o, OPT_AGAINST) && !options_has(o, OPT_TEXT))
        return err_make(ERR_USAGE, "--against", NULL, "say on which text: --text FILE");
    err e = options_int(o, OPT_WINDOW, 2, 1 << 20, &j->window);
    if (!e.code) e = options_int(o, OPT_LIMIT, 1, INT64_MAX, &j->limit);
    if (!e.code) e = options_int(o, OPT_TAIL, 1, INT64_MAX, &j->tail);
    const char *dtype = options_str(o, OPT_DTYPE);
    if (!dtype || !strcmp(dtype, "bf16"))
        j->compute = COMPUTE_BF16;
    else if (!strcmp(dtype, "fp32"))
        j->compute = COMPUTE_F32;
    else if (!strcmp(dtype, "fp64"))
        j->compute = COMPUTE_F64;
    else if (!e.code)
        e = err_make(ERR_USAGE, "--dtype", NULL, "\"%s\" is not bf16, fp32 or fp64", dtype);
    j->n_texts = o->n_values[OPT_TEXT];
    for (int i = 0; i < j->n_texts; i++) {
        text_word *t = &j->texts[i].from;
        err t_err = text_word_parse(o->values[OPT_TEXT][i], t);
        if (!e.code) e = t_err;
        if (!t->limit) t->limit = j->limit;
        if (!t->tail) t->tail = j->tail;
    }
    return e;
}

/* The weights of an archive hold R4 for good; its input must be rotated whatever the recipe says
 * now. */
static bool archive_has_r4(const source *s) {
    const json_t *online = json_object_get(json_object_get(s->recipe, "rotate"), "online");
    const json_t *note =
        json_object_get(json_object_get(hf_checkpoint_config(s->ck), "spinshard"), "online");
    size_t i;
    json_t *item;
    json_array_foreach(online ? online : note, i,
                       item) if (json_is_string(item) &&
                                 !strcmp(json_string_value(item), "r4")) return true;
    return false;
}

static const char found_by_a_run[] =
    "give the rotations of the run that found R3 or the clips with --rotations FILE";

/* R3 and clips that calibration found are in no weights: of an output folder they are read from the
 * rotations beside it. Caller frees *beside. */
static err find_rotations(const eval_job *j, bool fused, const char **file, char **beside) {
    *file = options_str(j->o, OPT_ROTATIONS);
    *beside = NULL;
    if (!fused) return err_none();
    const settings *s = recipe_settings(j->recipe);
    /* A file of rotations that the run began from may hold R3 and clips that its recipe does not
     * name: they are then in the file that it wrote beside the archive. */
    const bool needed = quantize_tunes_sites(s), perhaps = settings_quantize_at_run_time(s) &&
                                                           s->rotate.start.word == START_POINT_FILE;
    if (*file && !needed && !perhaps)
        return err_make(ERR_USAGE, "--rotations", "leave it out",
                        "the archive holds its rotations already");
    if (*file || (!needed && !perhaps)) return err_none();
    err e = source_rotations_beside(j->source.path, found_by_a_run, beside);
    *file = *beside;
    if (needed || *file) return e;
    log_line(LOG_RUN,
             "the rotations of this archive began in a file; if that held clips or R3, give "
             "it with --rotations FILE");
    return err_none();
}

/* What calibration found must have come from a file. */
static err check_found(const eval_job *j) {
    const settings *s = recipe_settings(j->recipe);
    if (quantize_learns_r3(s) && !j->sites.R3_heads)
        return err_make(ERR_USAGE, "rotate.r3", found_by_a_run, "R3 is made from calibration text");
    if (quantize_tunes_sites(s) && !quantize_learns_r3(s) && !j->sites.clips)
        return err_make(ERR_USAGE, "clip", found_by_a_run,
                        "clips are searched on calibration text");
    return err_none();
}

/* Local. The scales of the cache that an archive holds, into the set. */
static err take_cache_scales(const eval_job *j) {
    static const char again[] = "fetch the archive again, or make it anew";
    err e = err_none();
    const int64_t layers = j->source.linears.fp8_cache ? j->source.cfg.layers : 0;
    for (int64_t i = 0; i < layers && !e.code; i++) {
        float scale[2] = {0, 0};
        for (int k = 0; k < 2 && !e.code; k++) {
            llama_tensor of;
            char name[160];
            llama_tensor_of(&j->source.cfg, k ? ROLE_V : ROLE_K, i, &of);
            form_cache_name(of.name, name);
            const hf_tensor *t = hf_checkpoint_find(j->source.ck, name);
            if (!t || t->info.dtype != ST_F32 || hf_tensor_bytes(t) != sizeof *scale)
                return err_make(ERR_VERIFY, name, again, "is no scale of the cache: F32 [1]");
            e = hf_checkpoint_read(j->source.ck, t, &scale[k], NULL);
            if (!e.code && !(scale[k] > 0 && isfinite(scale[k])))
                e = err_make(ERR_VERIFY, name, again, "is %g: no scale", (double)scale[k]);
        }
        if (!e.code) e = rotation_set_put_cache_scales(j->rotations, i, scale[0], scale[1]);
    }
    return e;
}

static err make_sites(eval_job *j) {
    const settings *s = recipe_settings(j->recipe);
    bool fused = j->source.linears.form || j->source.ar,
         r4_fused = fused && archive_has_r4(&j->source);
    const char *file;
    char *beside;
    err e = find_rotations(j, fused, &file, &beside);
    if (r4_fused && !(s->rotate.online & ONLINE_R4)) {
        bool r3 = (s->rotate.online & ONLINE_R3);
        recipe_put(j->recipe, "rotate.online",
                   r3 ? json_pack("[s, s]", "r3", "r4") : json_pack("[s]", "r4"));
    }
    if (!e.code && !file && !fused &&
        (quantize_starts_at(s, START_POINT_PCA) || quantize_starts_at(s, START_POINT_WOMI)))
        e = err_make(ERR_USAGE, "rotate.start",
                     "give the rotations of a finished run with --rotations FILE",
                     "pca and womi are made by quantize, from calibration text or weights");
    if (!e.code && !file && !fused && s->scale.pairs)
        e = err_make(ERR_USAGE, "scale.pairs",
                     "give the rotations of a finished run with --rotations FILE",
                     "scales are made from calibration text, which eval does not read");
    e = comm_agree(j->c, e, "reading the flags", NULL);
    setup_cache_say(s);
    if (!e.code && file) recipe_put(j->recipe, "rotate.start", json_string(file));
    const bool quantized = settings_quantize_at_run_time(s);
    if (!e.code && !quantized && !r4_fused && !file) {
        /* Nothing is rotated that is not quantized: sizes without a Hadamard matrix do not matter.
         */
        recipe_put(j->recipe, "rotate.online", json_array());
        recipe_put(j->recipe, "rotate.r1", json_false());
        recipe_put(j->recipe, "rotate.r2", json_string("none"));
    }
    if (fused && !file) { /* the start of what is fused no longer matters */
        recipe_put(j->recipe, "rotate.start", json_string("had"));
        recipe_put(j->recipe, "rotate.r1", json_false());
        recipe_put(j->recipe, "rotate.r2", json_string("none"));
    }
    if (!e.code) e = setup_rotations(j->c, s, &j->source, false, &j->rotations);
    if (!e.code)
        e = comm_agree(j->c, take_cache_scales(j), "reading the scales of the cache", NULL);
    if (!e.code) {
        const weights_hold held = !fused ? HOLD_NONE : r4_fused ? HOLD_R1_R2_R4 : HOLD_R1_R2;
        e = setup_sites(s, &j->source.cfg, j->rotations, held, &j->sites, &j->r2);
        if (!e.code) e = check_found(j);
        e = comm_agree(j->c, e, "making the sites", NULL);
    }
    if (!e.code) setup_eight_say(s, &j->source.cfg);
    if (!e.code && !fused && s->activations.average > 0 && !input_eight_any(&s->activations.eight))
        log_line(LOG_WARN,
                 "activations.average chooses inputs of 8 bits in quantize alone: what it chose "
                 "stands as activations.eight in the recipe.yaml that it wrote");
    free(beside);
    return e;
}

/* Collective. The model that --against names: in full precision, and of the same tokens. */
static err open_against(eval_job *j) {
    const char *path = options_str(j->o, OPT_AGAINST);
    err e = source_open(j->c, path, &j->against);
    if (e.code) return e;
    const llama_config *a = &j->against.cfg, *b = &j->source.cfg;
    if (j->against.linears.form)
        e = err_make(ERR_USAGE, "--against", "name the checkpoint that the archive was made from",
                     "%s is quantized: it is no measure for others", path);
    else if (a->vocab != b->vocab || a->layers != b->layers)
        e = err_make(ERR_USAGE, "--against", "name the checkpoint that the model was made from",
                     "%s has %" PRId64 " layers and %" PRId64 " tokens, %s has %" PRId64
                     " and %" PRId64,
                     path, a->layers, a->vocab, j->source.path, b->layers, b->vocab);
    return comm_agree(j->c, e, "--against", NULL);
}

/* Root only. All windows of all texts, one after the other. */
static err read_texts(eval_job *j) {
    tokenizer *t;
    err e = source_tokenizer(&j->source, &t);
    if (!e.code) source_warn_tokens(j->source.files, hf_checkpoint_config(j->source.ck), t);
    for (int i = 0; i < j->n_texts && !e.code; i++) {
        eval_text *x = &j->texts[i];
        char *text = NULL;
        size_t len;
        int32_t *ids = NULL;
        int64_t n;
        e = text_read(x->from.path, &text, &len);
        if (!e.code) e = source_encode(&j->source, t, text, len, x->from.path, &ids, &n);
        if (!e.code)
            e = text_windows_create(ids, n, j->window, x->from.limit, x->from.tail,
                                    recipe_settings(j->recipe)->calib.bos,
                                    (int32_t)j->source.cfg.bos, t, x->from.path, &x->windows);
        free(text);
        free(ids);
        if (e.code) break;
        x->first = j->n_windows;
        x->n = text_windows_count(x->windows);
        j->n_windows += x->n;
        snprintf(j->bos, sizeof j->bos, "%s", text_windows_bos(x->windows));
    }
    tokenizer_destroy(&t);
    return e;
}

static err share_texts(eval_job *j) {
    err e = err_none();
    if (comm_rank(j->c) == 0) e = read_texts(j);
    e = comm_agree(j->c, e, "reading the texts", NULL);
    if (e.code) return e;
    comm_bcast(j->c, &j->n_windows, sizeof j->n_windows, 0);
    j->ids = malloc((size_t)(j->n_windows * j->window + 1) * sizeof *j->ids);
    j->starts = malloc((size_t)(j->n_windows + 1) * sizeof *j->starts);
    j->nll = calloc((size_t)j->n_windows + 1, sizeof *j->nll);
    if (!j->ids || !j->starts || !j->nll) abort();
    if (j->against.ck && comm_rank(j->c) == 0) {
        j->distance = calloc((size_t)(j->n_windows * (j->window - 1)), sizeof *j->distance);
        if (!j->distance) abort();
    }
    for (int i = 0; i < j->n_texts; i++)
        for (int64_t w = 0; w < j->texts[i].n; w++)
            memcpy(j->ids + (j->texts[i].first + w) * j->window,
                   text_window_at(j->texts[i].windows, w), (size_t)j->window * sizeof *j->ids);
    for (int i = 0; i < j->n_texts; i++) text_windows_destroy(&j->texts[i].windows);
    comm_bcast(j->c, j->ids, (uint64_t)(j->n_windows * j->window) * sizeof *j->ids, 0);
    for (int64_t w = 0; w < j->n_windows; w++) j->starts[w] = j->ids + w * j->window;
    return eval_tasks_share(j->c, j->o, &j->source, recipe_settings(j->recipe)->calib.bos,
                            j->window, j->limit, &j->tasks);
}

/* The rows of the embedding that texts and tasks use. */
static err used_rows(const eval_job *j, embed_rows *rows) {
    const int64_t n = j->n_windows * j->window, all = n + j->tasks.n_ids;
    int32_t *ids = malloc((size_t)(all + 1) * sizeof *ids);
    if (!ids) abort();
    memcpy(ids, j->ids, (size_t)n * sizeof *ids);
    if (j->tasks.n_ids) memcpy(ids + n, j->tasks.ids, (size_t)j->tasks.n_ids * sizeof *ids);
    err e = embed_rows_init(ids, all, j->source.cfg.vocab, rows);
    free(ids);
    return e;
}

/* Texts and tasks follow each other: the larger of their buffers counts. */
static void add_passes(const eval_job *j, memory_plan *p) {
    const llama_config *cfg = &j->source.cfg;
    const int64_t tokens = j->tasks.packs.tokens + 1;
    uint64_t scratch = 0, rows = 0;
    if (j->n_windows) {
        scratch = llama_scratch_bytes(cfg, &j->sites, j->compute, j->window, gemm_threads());
        rows = stage_relay_bytes(cfg, j->compute, j->window);
    }
    if (j->tasks.n_sequences) {
        const uint64_t s = llama_scratch_bytes(cfg, &j->sites, j->compute, tokens, gemm_threads()),
                       r = task_run_bytes(cfg, j->compute, tokens, j->tasks.exact);
        if (s + r > scratch + rows) {
            scratch = s;
            rows = r;
        }
    }
    memory_plan_add(p, "scratch", scratch);
    memory_plan_add(p, "residual streams", rows);
}

static load_options loading(const eval_job *j, const source *from, const embed_rows *rows,
                            const stage_range *ranges, int n_stages) {
    const int rank = comm_rank(j->c);
    return (load_options){.checkpoint = from->ck,
                          .cfg = &from->cfg,
                          .linears = from->linears,
                          .embed = rank == 0 ? rows : NULL,
                          .head = rank == n_stages - 1,
                          .range = ranges[rank],
                          .compute = j->compute};
}

static eval_windows windows_of(const eval_job *j) {
    return (eval_windows){.ids = j->starts, .n = j->n_windows, .length = j->window};
}

/* Collective. What the ranks with a stage will hold, against what there is. */
static err check_memory(const eval_job *j, const load_options *lo, const load_options *lo_against) {
    memory_plan p = {.n = 0};
    uint64_t limit = 0;
    const bool active = lo->range.n > 0;
    if (active) {
        memory_plan_add(&p, "weights", load_stage_bytes(lo));
        add_passes(j, &p);
    }
    if (active && j->against.ck) {
        const eval_windows w = windows_of(j);
        memory_plan_add(&p, "weights of --against", load_stage_bytes(lo_against));
        memory_plan_add(
            &p, "passes of --against",
            eval_against_bytes(&j->against.cfg, &j->source.cfg, j->compute, &w, lo->head));
    }
    err e = err_none();
    if (options_has(j->o, OPT_MEM)) e = size_parse(options_str(j->o, OPT_MEM), &limit);
    e = comm_agree(j->c, e, "--mem", NULL);
    return e.code ? e : memory_plan_check(j->c, &p, "eval", limit);
}

/* Collective on the ranks that have a stage. */
static err run_texts(eval_job *j, const comm *c, const llama_stage *stage,
                     const llama_stage *against, const embed_rows *rows) {
    const eval_windows w = windows_of(j);
    const bool root = comm_rank(c) == 0;
    double *nll = root ? j->nll : NULL;
    if (!j->against.ck) return eval_run(c, stage, &j->sites, j->compute, rows, &w, nll);
    const llama_sites plain = llama_sites_none();
    const eval_side p = {against, &plain}, q = {stage, &j->sites};
    return eval_against(c, &p, &q, j->compute, rows, &w, j->distance, nll);
}

static err run_passes(eval_job *j, const comm *c, const llama_stage *stage,
                      const llama_stage *against, const embed_rows *rows) {
    const eval_tasks *t = &j->tasks;
    err e = err_none();
    if (j->n_windows) e = run_texts(j, c, stage, against, rows);
    if (!e.code && t->n_sequences)
        e = task_run(c, stage, &j->sites, j->compute, rows, t->s, t->n_sequences, &t->packs,
                     t->exact, comm_rank(c) == 0 ? t->scores : NULL);
    return e;
}

/* Load this rank's stage and run all windows; ranks without a stage wait. */
static err run_stages(eval_job *j) {
    const llama_config *cfg = &j->source.cfg;
    int rank = comm_rank(j->c), size = comm_size(j->c), n_stages;
    embed_rows rows;
    err e = comm_agree(j->c, used_rows(j, &rows), "tokens", NULL);
    if (e.code) return e;
    stage_range *ranges = calloc((size_t)size, sizeof *ranges);
    if (!ranges) abort();
    stage_costs costs = partition_costs(cfg, rows.n);
    partition_stages(cfg->layers, &costs, size, ranges, &n_stages);
    if (n_stages < size)
        log_line(LOG_RUN, "%d of %d ranks are idle: the model has %" PRId64 " layers",
                 size - n_stages, size, cfg->layers);
    const load_options lo = loading(j, &j->source, &rows, ranges, n_stages),
                       lo_against = loading(j, &j->against, &rows, ranges, n_stages);
    const bool active = rank < n_stages;
    e = check_memory(j, &lo, &lo_against);
    comm *stages = NULL;
    llama_stage stage = {.cfg = cfg}, against = {.cfg = &j->against.cfg};
    if (!e.code && active) e = load_stage(&lo, &stage);
    if (!e.code && active && j->against.ck) e = load_stage(&lo_against, &against);
    e = comm_agree(j->c, e, "loading the weights", NULL);
    if (!e.code && n_stages < size) e = comm_split(j->c, active ? 0 : -1, "stages", &stages);
    double start = clock_now_s();
    if (!e.code && active) e = run_passes(j, stages ? stages : j->c, &stage, &against, &rows);
    e = comm_agree(j->c, e, "evaluating", NULL);
    j->seconds = clock_now_s() - start;
    comm_destroy(&stages);
    llama_stage_clear(&stage);
    llama_stage_clear(&against);
    embed_rows_clear(&rows);
    free(ranges);
    return e;
}

/* Root only. The sum over windows in their order, so it does not depend on the ranks. */
static double text_nll(const eval_job *j, const eval_text *x) {
    double sum = 0;
    for (int64_t w = 0; w < x->n; w++) sum += j->nll[x->first + w];
    return sum / ((double)x->n * (double)(j->window - 1));
}

/* Root only. The standard error of text_nll, over windows. */
static double text_error(const eval_job *j, const eval_text *x) {
    double *means = calloc((size_t)x->n + 1, sizeof *means);
    if (!means) abort();
    for (int64_t w = 0; w < x->n; w++) means[w] = j->nll[x->first + w] / (double)(j->window - 1);
    const double error = eval_mean_of(means, x->n).error;
    free(means);
    return error;
}

static eval_distance text_distance(const eval_job *j, const eval_text *x) {
    return eval_distance_of(j->distance + x->first * (j->window - 1), x->n, j->window - 1);
}

static void gather_peaks(eval_job *j) {
    uint64_t mine = mem_peak_rss_bytes(), *all = calloc((size_t)comm_size(j->c), sizeof *all);
    if (!all) abort();
    comm_gather(j->c, &mine, sizeof mine, all, 0);
    j->peaks = json_array();
    for (int r = 0; r < comm_size(j->c); r++)
        json_array_append_new(j->peaks, json_integer((json_int_t)all[r]));
    free(all);
}

static double tokens_per_s(const eval_job *j) {
    return (double)(j->n_windows * j->window + j->tasks.n_ids) / j->seconds;
}

static json_t *result_json(const eval_job *j) {
    json_t *list = json_array();
    for (int i = 0; i < j->n_texts; i++) {
        const eval_text *x = &j->texts[i];
        const double nll = text_nll(j, x), error = text_error(j, x);
        json_t *v = json_pack("{s:s, s:I, s:I, s:I, s:f, s:o, s:f, s:o}", "text", x->from.path,
                              "window", (json_int_t)j->window, "windows", (json_int_t)x->n,
                              "tokens", (json_int_t)(x->n * (j->window - 1)), "nll", nll,
                              "nll_stderr", eval_number(error), "ppl", exp(nll), "ppl_stderr",
                              eval_number(exp(nll) * error));
        if (j->distance) {
            const eval_distance d = text_distance(j, x);
            json_object_set_new(v, "against", eval_distance_json(&d, j->against.path));
        }
        json_array_append_new(list, v);
    }
    json_t *v = json_pack("{s:s, s:s, s:s, s:i, s:i, s:f, s:O, s:o}", "model", j->source.path,
                          "dtype", compute_name(j->compute), "bos", j->bos, "ranks",
                          comm_size(j->c), "threads", gemm_threads(), "tokens_per_s",
                          tokens_per_s(j), "peak_rss_bytes", j->peaks, "perplexity", list);
    json_object_set_new(v, "tasks", eval_tasks_json(&j->tasks));
    json_object_set_new(v, "tasks_average", eval_tasks_average(&j->tasks));
    return v;
}

static void print_json(const eval_job *j) {
    json_t *v = result_json(j);
    json_dumpf(v, stdout, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
    puts("");
    json_decref(v);
}

static void print_table(const eval_job *j) {
    printf("%s, %s products, activations %d bit, cache %d bit, start of a window: %s\n",
           j->source.path, compute_name(j->compute), j->sites.act.bits, j->sites.kv.bits,
           j->n_texts ? j->bos : json_string_value(recipe_get(j->recipe, "calib.bos")));
    if (j->n_texts)
        printf("%-40s %8s %8s %12s %10s %10s\n", "text", "window", "windows", "nats/token",
               "perplexity", "+-");
    for (int i = 0; i < j->n_texts; i++) {
        const eval_text *x = &j->texts[i];
        const double nll = text_nll(j, x), error = text_error(j, x);
        printf("%-40s %8" PRId64 " %8" PRId64 " %12.6f %10.4f", x->from.path, j->window, x->n, nll,
               exp(nll));
        if (isfinite(error)) printf(" %10.4f", exp(nll) * error);
        puts("");
    }
    if (j->distance) eval_distance_head(j->against.path);
    for (int i = 0; j->distance && i < j->n_texts; i++) {
        const eval_distance d = text_distance(j, &j->texts[i]);
        eval_distance_print(&d, j->texts[i].from.path);
    }
    eval_tasks_print(&j->tasks);
}

static err refuse_nan(const eval_job *j) {
    for (int64_t w = 0; w < j->n_windows; w++)
        if (!isfinite(j->nll[w]))
            return err_make(ERR_NUMERICS, j->source.path, NULL,
                            "the loss of window %" PRId64 " is not a number", w);
    for (int64_t t = 0; j->distance && t < j->n_windows * (j->window - 1); t++)
        if (!isfinite(j->distance[t].kl))
            return err_make(ERR_NUMERICS, j->against.path, NULL,
                            "the distance of token %" PRId64 " of window %" PRId64
                            " is not a number",
                            t % (j->window - 1) + 1, t / (j->window - 1));
    return eval_tasks_check(&j->tasks);
}

err job_eval(const comm *c, const options *o) {
    return eval_measure(c, o, NULL);
}

err eval_measure(const comm *c, const options *o, json_t **told) {
    eval_job j = {.c = c, .o = o};
    if (told) *told = NULL;
    err e = comm_agree(c, read_flags(&j), "reading the flags", NULL);
    if (!e.code) e = source_open(c, options_str(o, OPT_MODEL), &j.source);
    if (!e.code) e = setup_recipe(c, o, j.source.recipe, &j.recipe);
    if (!e.code)
        e = comm_agree(c, source_check_window(&j.source, "--window", j.window), "reading the flags",
                       NULL);
    if (!e.code) e = make_sites(&j);
    if (!e.code && options_has(o, OPT_AGAINST)) e = open_against(&j);
    if (!e.code) e = share_texts(&j);
    if (!e.code) e = run_stages(&j);
    if (!e.code)
        e = comm_agree(c, comm_rank(c) == 0 ? refuse_nan(&j) : err_none(), "evaluating", NULL);
    if (!e.code) gather_peaks(&j);
    if (!e.code && comm_rank(c) == 0) {
        if (told)
            *told = result_json(&j);
        else if (options_has(o, OPT_JSON))
            print_json(&j);
        else
            print_table(&j);
        if (options_has(o, OPT_ITEMS)) e = eval_tasks_write(&j.tasks, options_str(o, OPT_ITEMS));
        char peak[32];
        log_line(LOG_PHASE, "eval: %.0f tokens/s, rank 0 at %s", tokens_per_s(&j),
                 size_text(mem_peak_rss_bytes(), peak));
    }
    /* Verification fails of what has hashes; a folder of another program's is input that is not
     * read. */
    if (e.code == ERR_VERIFY && !j.source.ar) e.code = ERR_INPUT;
    for (int i = 0; i < j.n_texts; i++) {
        text_windows_destroy(&j.texts[i].windows);
        free(j.texts[i].from.path);
    }
    eval_tasks_clear(&j.tasks);
    free(j.ids);
    free(j.starts);
    free(j.nll);
    free(j.distance);
    free(j.r2);
    json_decref(j.peaks);
    rotation_set_destroy(&j.rotations);
    recipe_destroy(&j.recipe);
    source_close(&j.source);
    source_close(&j.against);
    return e;
}
