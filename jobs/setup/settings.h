/* settings - how to quantize, as numbers, enums and lists: what a recipe says, once its words are
 * read (jobs/setup/recipe.h, which owns it and keeps it true while keys are resolved). Fields have
 * the names of the recipe's keys; their meaning, bounds and defaults stand in the table of
 * recipe.c. Enums have the order of the words in that table. */
#ifndef SPINSHARD_JOBS_SETUP_SETTINGS_H
#define SPINSHARD_JOBS_SETUP_SETTINGS_H

#include "io/text.h"
#include "model/input_bits.h"
#include "pipeline/learn/e2e_objective.h"
#include "rotations/optimizer.h"
#include "rotations/rotation_set.h"

#include <stdbool.h>
#include <stdint.h>

enum { WORD_AUTO = 0 }; /* first of the words of every key that has it, but for weights.group */

/* One of some words, or another text. */
typedef struct word_or_text {
    int word;         /* their number where it is none of them */
    const char *text; /* borrowed from the recipe until a key of it is resolved */
} word_or_text;

typedef enum start_point {
    START_POINT_IDENTITY,
    START_POINT_HAD,
    START_POINT_ORTHOGONAL,
    START_POINT_PCA,
    START_POINT_WOMI,
    START_POINT_FILE, /* no word of ours */
} start_point;

typedef enum start_r2 { START_R2_SAME, START_R2_PCA, START_R2_WOMI } start_r2;
typedef enum r3_kind { R3_HAD, R3_SIGNS, R3_PCA } r3_kind;
typedef enum scale_start { SCALES_ONES, SCALES_CLOSED, SCALES_SMOOTH } scale_start;
typedef enum weights_method { METHOD_RTN, METHOD_GPTQ, METHOD_GPTAQ } weights_method;
typedef enum weights_scale { WEIGHTS_SCALE_MAX, WEIGHTS_SCALE_SEARCH } weights_scale;
typedef enum weights_stream { STREAM_FULL, STREAM_QUANTIZED } weights_stream;
typedef enum weights_target { TARGET_LAYER, TARGET_FULL } weights_target;
typedef enum o_group { O_GROUP_HEAD, O_GROUP_TOKEN } o_group;
typedef enum kv_rotate { KV_ROTATE_R3, KV_ROTATE_RUNTIME } kv_rotate;
typedef enum cache_format { CACHE_INT, CACHE_FP8 } cache_format;
typedef enum input_scale { INPUT_SCALE_PUBLISHED, INPUT_SCALE_COMPRESSED_TENSORS } input_scale;
typedef enum archive_dtype { DTYPE_SAME, DTYPE_BF16, DTYPE_FP16 } archive_dtype;
/* In the order of FORM_WORDS; each but auto is the name of a form (shard/form.h). */
typedef enum archive_form {
    FORM_AUTO,
    FORM_PACK_QUANTIZED,
    FORM_INT_QUANTIZED,
    FORM_GGUF,
    FORM_GPTQ,
} archive_form;
#define FORM_WORDS "auto|pack-quantized|int-quantized|gguf|gptq"
typedef enum range_grad { RANGE_GRAD_THROUGH, RANGE_GRAD_DETACHED } range_grad;

/* Lists of words are sets of bits. */
enum { ONLINE_R3 = 1, ONLINE_R4 = 2 };
enum { PAIR_NORM = 1, PAIR_VO = 2, PAIR_QK = 4, PAIR_UD = 8 };
/* rotate.r4_block, weights.group and activations.group, where they are no number. */
enum { R4_BLOCK_AUTO = 0, R4_BLOCK_POW2 = -1 };
enum { INPUTS_TOKEN = 0, INPUTS_AS_WEIGHTS = -1 };
enum { GROUP_CHANNEL = 0, GROUP_AUTO = -1 };

/* activations.clip and kv.clip: one number for all places (1: none, or those of a file of
 * rotations), found by a search, or ends (a, b) by place, in the order of the key's words. */
typedef enum clip_source { CLIPS_NUMBER, CLIPS_SEARCH, CLIPS_BY_PLACE } clip_source;
enum { CLIP_WORDS = 4 };
typedef struct clip_setting {
    clip_source from;
    double ends[CLIP_WORDS][2];
} clip_setting;

typedef enum row_draw { DRAW_UNIFORM, DRAW_IMPORTANCE } row_draw;

/* A phase of learn. */
typedef struct learn_settings {
    objective_kind objective;
    int64_t steps, batch, window, rows;
    optimizer_kind optimizer;
    double lr_r1, lr_r2, lr_scale;
    lr_schedule schedule;
    range_grad range_grad;
    bool weights;
    int64_t top_k;
    row_draw draw;
} learn_settings;

typedef struct settings {
    int64_t recipe_version;
    int64_t seed;
    struct {
        bool r1;
        rotation_r2 r2;
        word_or_text start; /* .word is a start_point */
        start_r2 start_r2;
        uint32_t online;
        r3_kind r3;
        int64_t r4_block; /* or R4_BLOCK_AUTO, R4_BLOCK_POW2 */
    } rotate;
    struct {
        uint32_t pairs;
        scale_start start;
        double alpha;
    } scale;
    const learn_settings *learn; /* [n_learn], in the order in which they run */
    int64_t n_learn;
    struct {
        weights_method method;
        int64_t bits, group;
        bool symmetric;
        weights_scale scale;
        bool act_order;
        double damp;
        weights_stream stream;
        weights_target target;
        double alpha;
    } weights;
    struct {
        int64_t bits;
        bool symmetric;
        clip_setting clip;
        int64_t group; /* or INPUTS_TOKEN, INPUTS_AS_WEIGHTS */
        o_group o_group;
        int64_t down_bits; /* 0: same */
        input_eight eight;
        double average; /* 0: nothing is chosen */
        input_scale scale;
    } activations;
    struct {
        int64_t bits;
        bool symmetric;
        clip_setting clip;
        kv_rotate rotate;
        cache_format format;
    } kv;
    struct {
        int64_t windows, window;
        bos_mode bos;
    } calib;
    struct {
        archive_dtype dtype;
        archive_form form;
        uint64_t shard_bytes;
        word_or_text name, base_model;
    } archive;
    struct {
        word_or_text grid;
        int64_t threads, slice_tokens; /* 0: auto */
        word_or_text gptq_grid;
        int64_t gptq_grid_from, gptq_block;
    } numerics;
} settings;

/* Local. Activations or the cache go below 16 bits. */
static inline bool settings_quantize_inputs(const settings *s) {
    return s->activations.bits < 16 || s->kv.bits < 16;
}

/* Local. The cache is quantized as vLLM does it (--kv-cache-dtype int4_per_token_head). */
static inline bool settings_runtime_cache(const settings *s) {
    return s->kv.bits < 16 && s->kv.rotate == KV_ROTATE_RUNTIME;
}

/* Local. The cache is quantized as vLLM does it with --kv-cache-dtype fp8. */
static inline bool settings_fp8_cache(const settings *s) {
    return s->kv.bits < 16 && s->kv.format == CACHE_FP8;
}

/* Local. The cache is quantized in ranges, which rotations can make smaller; the error of FP8 is a
 * share of each entry. */
static inline bool settings_cache_has_ranges(const settings *s) {
    return s->kv.bits < 16 && s->kv.format != CACHE_FP8;
}

/* Local. The form has scales in fp16 whatever the model's type. */
static inline bool settings_fp16_scales(const settings *s) {
    return s->archive.form == FORM_GGUF || s->archive.form == FORM_GPTQ;
}

/* Local. Bits of the inputs of down_proj. */
static inline int64_t settings_down_bits(const settings *s) {
    return s->activations.down_bits ? s->activations.down_bits : s->activations.bits;
}

/* Local. Bits of the inputs of a place and layer. */
static inline int64_t settings_input_bits(const settings *s, input_place place, int64_t layer) {
    const int64_t bits = place == INPUT_DOWN ? settings_down_bits(s) : s->activations.bits;
    return input_bits_of(&s->activations.eight, place, layer, (int)bits);
}

/* Local. Something is quantized while the model runs: activations, the cache, or the inputs of down
 * alone. */
static inline bool settings_quantize_at_run_time(const settings *s) {
    return settings_quantize_inputs(s) || settings_down_bits(s) < 16;
}
/* Local. Weights are rounded to codes; else the archive is a plain folder of the fused model. */
static inline bool settings_round_weights(const settings *s) {
    return s->weights.bits < 16;
}
/* Local. What the recipe says of the clips of a place: the key, and its two numbers. */
static inline const clip_setting *settings_clip(const settings *s, clip_place place,
                                                const double **ends) {
    const bool cache = place == CLIP_KEY || place == CLIP_VALUE;
    const clip_setting *c = cache ? &s->kv.clip : &s->activations.clip;
    if (ends) *ends = c->ends[(int)place - (cache ? (int)CLIP_KEY : 0)];
    return c;
}

/* Local. Every range is taken whole. */
static inline bool clip_setting_none(const clip_setting *c) {
    bool ones = c->from != CLIPS_SEARCH;
    for (int i = 0; i < CLIP_WORDS; i++) ones = ones && c->ends[i][0] == 1 && c->ends[i][1] == 1;
    return ones;
}

/* Local. BLAS threads of what is factored; 1 where no byte depends on them. */
static inline int settings_blas_threads(const settings *s) {
    return s->numerics.threads ? (int)s->numerics.threads : 1;
}

#endif
