/* The form gptq of AutoGPTQ and its readers (SGLang, TensorRT-LLM, ExLlama, vLLM): all is stored by
 * inputs, not by outputs. qweight [in/8, out]: word (i, o) is word i of row o in quant/pack.h's
 * order; scales [groups, out] in fp16; qzeros [groups, out/8], zero points packed along the
 * outputs; g_idx [in], the group of each input. With 8 bits a word has four codes.
 *
 * Zero points are stored less one: the first version of the format ("checkpoint_format": "gptq"),
 * which all of these readers take, where "gptq_v2" is known to few. Stored less one a zero point of
 * 0 is no number of its bits, and readers differ in what they make of it, so weights are symmetric
 * here: every zero point is 2^(b-1). Groups are static, in the order of the inputs, so g_idx says
 * what every reader assumes without it ("desc_act": false). */
#include "shard/form_internal.h"

#include "base/json.h"
#include "base/mem.h"
#include "base/size.h"
#include "quant/grid.h"
#include "quant/pack.h"
#include "shard/stored_floats.h"

#include <inttypes.h>
#include <string.h>

enum { WORD_BITS = 32, ROWS = 16 };

static int64_t codes_a_word(int bits) {
    return WORD_BITS / bits;
}

static form_shape codes_shape(const form_scheme *s, int64_t rows, int64_t cols) {
    return (form_shape){ST_I32, 2, {cols / codes_a_word(s->bits), rows}};
}

/* Words [rows, n] of some rows from or to their columns, from `row` on, of all [n, all]. */
static void put_columns(const int32_t *words, int64_t rows, int64_t n, int64_t row, int64_t all,
                        int32_t *to) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < rows; r++) to[i * all + row + r] = words[r * n + i];
}
static void take_columns(const int32_t *from, int64_t rows, int64_t n, int64_t row, int64_t all,
                         int32_t *words) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t r = 0; r < rows; r++) words[r * n + i] = from[i * all + row + r];
}

/* A pack function cannot fail: the words of ROWS rows at a time, a piece of each row. */
enum { PIECE_WORDS = 256 };

static void codes_pack(const qmatrix *q, void *to) {
    const int64_t a_word = codes_a_word(q->bits), n = q->cols / a_word;
#pragma omp parallel for schedule(static) if (q->rows > ROWS)
    for (int64_t row = 0; row < q->rows; row += ROWS) {
        int32_t words[ROWS * PIECE_WORDS];
        const int64_t rows = size_min(ROWS, q->rows - row);
        for (int64_t i = 0; i < n; i += PIECE_WORDS) {
            const int64_t m = size_min(PIECE_WORDS, n - i);
            for (int64_t r = 0; r < rows; r++)
                pack_row(q->codes + (row + r) * q->cols + i * a_word, m * a_word, q->bits,
                         words + r * m);
            put_columns(words, rows, m, row, q->rows, (int32_t *)to + i * q->rows);
        }
    }
}

/* The codes of one piece of some rows, [rows, m a_word]. */
static void piece_codes(const qmatrix *q, const void *from, int64_t row, int64_t rows, int64_t i,
                        int64_t m, uint8_t *codes) {
    int32_t words[ROWS * PIECE_WORDS];
    const int64_t some = m * codes_a_word(q->bits);
    take_columns((const int32_t *)from + i * q->rows, rows, m, row, q->rows, words);
    for (int64_t r = 0; r < rows; r++) unpack_row(words + r * m, some, q->bits, codes + r * some);
}

enum { MOST_CODES = ROWS * PIECE_WORDS * WORD_BITS / 4 };

static err codes_unpack(const void *from, st_dtype dtype, const char *where, qmatrix *q) {
    (void)dtype;
    (void)where;
    const int64_t a_word = codes_a_word(q->bits), n = q->cols / a_word;
    uint8_t codes[MOST_CODES];
    for (int64_t row = 0; row < q->rows; row += ROWS) {
        const int64_t rows = size_min(ROWS, q->rows - row);
        for (int64_t i = 0; i < n; i += PIECE_WORDS) {
            const int64_t m = size_min(PIECE_WORDS, n - i), some = m * a_word;
            piece_codes(q, from, row, rows, i, m, codes);
            for (int64_t r = 0; r < rows; r++)
                memcpy(q->codes + (row + r) * q->cols + i * a_word, codes + r * some, (size_t)some);
        }
    }
    return err_none();
}

static err codes_same(const void *from, const qmatrix *q, bool *same, int64_t *row) {
    const int64_t a_word = codes_a_word(q->bits), n = q->cols / a_word;
    int64_t first = q->rows;
#pragma omp parallel for schedule(static) reduction(min : first) if (q->rows > ROWS)
    for (int64_t at = 0; at < q->rows; at += ROWS) {
        uint8_t codes[MOST_CODES];
        const int64_t rows = size_min(ROWS, q->rows - at);
        for (int64_t i = 0; i < n; i += PIECE_WORDS) {
            const int64_t m = size_min(PIECE_WORDS, n - i), some = m * a_word;
            piece_codes(q, from, at, rows, i, m, codes);
            for (int64_t r = 0; r < rows; r++)
                if (memcmp(q->codes + (at + r) * q->cols + i * a_word, codes + r * some,
                           (size_t)some))
                    first = size_min(first, at + r);
        }
    }
    *same = first == q->rows;
    *row = *same ? -1 : first;
    return err_none();
}

static err codes_words(const hf_checkpoint *ck, const hf_tensor *t, int bits, int64_t rows,
                       int64_t cols, int32_t *to) {
    enum { BAND = 64 };
    const int64_t n = cols / codes_a_word(bits), size = rows * (int64_t)sizeof(int32_t);
    void *band = NULL;
    err e = mem_alloc(BAND, (size_t)size, t->info.name, &band);
    for (int64_t i = 0; i < n && !e.code; i += BAND) {
        const int64_t m = size_min(BAND, n - i);
        e = hf_checkpoint_read_range(ck, t, (uint64_t)(i * size), (uint64_t)(m * size), band);
        for (int64_t r = 0; r < rows && !e.code; r++)
            for (int64_t k = 0; k < m; k++) to[r * n + i + k] = ((int32_t *)band)[k * rows + r];
    }
    mem_free(band);
    return e;
}

/* Scales */

static form_shape scales_shape(const form_scheme *s, int64_t rows, int64_t cols) {
    return (form_shape){s->scale_dtype, 2, {form_groups(s, cols), rows}};
}

/* Scales of group g of the rows [row, row + n), n at most FLOATS. */
enum { FLOATS = 1024 };

static void column_of(const qmatrix *q, int64_t g, int64_t row, int64_t n, float *to) {
    for (int64_t r = 0; r < n; r++) to[r] = q->scales[(row + r) * q->n_groups + g];
}

static void scales_pack(const qmatrix *q, void *to) {
    const st_dtype dtype = stored_scale_dtype(q->scale_type);
    const int64_t size = st_dtype_bytes(dtype);
    float some[FLOATS];
    for (int64_t g = 0; g < q->n_groups; g++)
        for (int64_t r = 0; r < q->rows; r += FLOATS) {
            const int64_t n = size_min(FLOATS, q->rows - r);
            column_of(q, g, r, n, some);
            stored_floats_put(some, n, dtype, (char *)to + (g * q->rows + r) * size);
        }
}

static err scales_unpack(const void *from, st_dtype dtype, const char *where, qmatrix *q) {
    const int64_t size = st_dtype_bytes(dtype);
    float some[FLOATS];
    (void)where;
    for (int64_t g = 0; g < q->n_groups; g++)
        for (int64_t r = 0; r < q->rows; r += FLOATS) {
            const int64_t n = size_min(FLOATS, q->rows - r);
            stored_floats_take((const char *)from + (g * q->rows + r) * size, n, dtype, some);
            for (int64_t k = 0; k < n; k++) q->scales[(r + k) * q->n_groups + g] = some[k];
        }
    return err_none();
}

static err scales_same(const void *from, const qmatrix *q, bool *same, int64_t *row) {
    const st_dtype dtype = stored_scale_dtype(q->scale_type);
    const int64_t size = st_dtype_bytes(dtype);
    float want[FLOATS], got[FLOATS];
    *row = -1;
    *same = true;
    for (int64_t g = 0; g < q->n_groups && *same; g++)
        for (int64_t r = 0; r < q->rows && *same; r += FLOATS) {
            const int64_t n = size_min(FLOATS, q->rows - r);
            column_of(q, g, r, n, want);
            stored_floats_take((const char *)from + (g * q->rows + r) * size, n, dtype, got);
            *same = !memcmp(want, got, (size_t)n * sizeof *got);
        }
    return err_none();
}

/* Zero points: of symmetric codes 2^(b-1), stored less one. */

static form_shape zeros_shape(const form_scheme *s, int64_t rows, int64_t cols) {
    return (form_shape){ST_I32, 2, {form_groups(s, cols), rows / codes_a_word(s->bits)}};
}

static uint32_t zeros_word(int bits) {
    uint32_t word = 0;
    for (int k = 0; k < WORD_BITS; k += bits) word |= (uint32_t)(grid_middle(bits) - 1) << k;
    return word;
}

static int64_t zeros_words(const qmatrix *q) {
    return q->n_groups * (q->rows / codes_a_word(q->bits));
}

static void zeros_pack(const qmatrix *q, void *to) {
    const uint32_t word = zeros_word(q->bits);
    for (int64_t i = 0; i < zeros_words(q); i++) memcpy((char *)to + i * 4, &word, sizeof word);
}

static err zeros_same(const void *from, const qmatrix *q, bool *same, int64_t *row) {
    const uint32_t word = zeros_word(q->bits);
    *row = -1;
    *same = true;
    for (int64_t i = 0; i < zeros_words(q) && *same; i++)
        *same = !memcmp((const char *)from + i * 4, &word, sizeof word);
    return err_none();
}

static err zeros_unpack(const void *from, st_dtype dtype, const char *where, qmatrix *q) {
    bool same;
    int64_t row;
    (void)dtype;
    err e = zeros_same(from, q, &same, &row);
    if (e.code || same) return e;
    return err_make(ERR_VERIFY, where, NULL,
                    "zero points are not all %d: asymmetric, or not stored less one",
                    grid_middle(q->bits));
}

/* The group of each input. */

static form_shape order_shape(const form_scheme *s, int64_t rows, int64_t cols) {
    (void)s;
    (void)rows;
    return (form_shape){ST_I32, 1, {cols, 1}};
}

static void order_pack(const qmatrix *q, void *to) {
    int32_t *index = to;
    for (int64_t j = 0; j < q->cols; j++) index[j] = (int32_t)(j / q->group);
}

static err order_same(const void *from, const qmatrix *q, bool *same, int64_t *row) {
    const int32_t *index = from;
    *row = -1;
    *same = true;
    for (int64_t j = 0; j < q->cols && *same; j++) *same = index[j] == j / q->group;
    return err_none();
}

static err order_unpack(const void *from, st_dtype dtype, const char *where, qmatrix *q) {
    bool same;
    int64_t row;
    (void)dtype;
    err e = order_same(from, q, &same, &row);
    if (e.code || same) return e;
    return err_make(ERR_VERIFY, where, NULL,
                    "groups are not in the order of the inputs (desc_act)");
}

static const form_slot slots[] = {
    {.part = FORM_SCALES,
     .suffix = ".scales",
     .shape = scales_shape,
     .pack = scales_pack,
     .unpack = scales_unpack,
     .same = scales_same},
    {.part = FORM_CODES,
     .suffix = ".qweight",
     .shape = codes_shape,
     .pack = codes_pack,
     .unpack = codes_unpack,
     .same = codes_same,
     .words = codes_words},
    {.part = FORM_ZEROS,
     .suffix = ".qzeros",
     .shape = zeros_shape,
     .pack = zeros_pack,
     .unpack = zeros_unpack,
     .same = zeros_same},
    {.part = FORM_ORDER,
     .suffix = ".g_idx",
     .shape = order_shape,
     .pack = order_pack,
     .unpack = order_unpack,
     .same = order_same},
};

static err refuse(const form_scheme *s) {
    static const char *const hint = "or use archive.form=pack-quantized";
    if (s->bits != 4 && s->bits != 8)
        return err_make(ERR_USAGE, "weights.bits", "set weights.bits to 4 or 8, or archive.form",
                        "the form gptq is written with 4 and 8 bits, for which its readers have "
                        "kernels; words of 3 bits have an order of their own");
    if (!s->symmetric)
        return err_make(ERR_USAGE, "weights.symmetric", hint,
                        "the form gptq stores zero points less one, and its readers do not agree "
                        "on that of 0: set weights.symmetric=true");
    if (s->online.r4)
        return err_make(ERR_USAGE, "rotate.online", hint,
                        "the form gptq cannot say that R4 must be applied while it runs: set "
                        "rotate.online=[]");
    return err_none();
}

static err refuse_size(const form_scheme *s, const char *weight, int64_t rows, int64_t cols) {
    const int64_t n = codes_a_word(s->bits);
    if (rows % n == 0 && cols % n == 0) return err_none();
    return err_make(ERR_USAGE, weight, "use archive.form=pack-quantized",
                    "the form gptq has words of %" PRId64 " codes and zero points, and [%" PRId64
                    ", %" PRId64 "] is no multiple of it",
                    n, rows, cols);
}

/* config.json */

static json_t *config_json(const form_scheme *s) {
    return json_pack("{s:s, s:i, s:I, s:b, s:b, s:b, s:s}", "quant_method", "gptq", "bits", s->bits,
                     "group_size", (json_int_t)(s->group ? s->group : -1), "desc_act", false, "sym",
                     true, "lm_head", false, "checkpoint_format", "gptq");
}

static bool absent_or(const json_t *o, const char *key, const char *word) {
    const json_t *v = json_object_get(o, key);
    return !v || json_is_null(v) || (json_is_string(v) && !strcmp(json_string_value(v), word));
}

static const char *parse(const json_t *q, form_scheme *out) {
    const json_int_t bits = json_integer_value(json_object_get(q, "bits")),
                     group = json_integer_value(json_object_get(q, "group_size"));
    const json_t *some = json_object_get(q, "modules_in_block_to_quantize"),
                 *dynamic = json_object_get(q, "dynamic");
    if (bits != 4 && bits != 8) return "\"bits\" must be 4 or 8";
    if (group != -1 && group < 1) return "\"group_size\" must be positive, or -1";
    if (!json_is_true(json_object_get(q, "sym"))) return "\"sym\" must be true";
    if (json_is_true(json_object_get(q, "desc_act"))) return "\"desc_act\" must be false";
    if (json_is_true(json_object_get(q, "lm_head"))) return "\"lm_head\" must be false";
    if (!absent_or(q, "checkpoint_format", "gptq")) return "\"checkpoint_format\" must be \"gptq\"";
    if ((some && !json_is_null(some)) || json_object_size(dynamic))
        return "all seven linears must be quantized alike";
    out->bits = (int)bits;
    out->group = group > 0 ? group : 0;
    out->symmetric = true;
    return NULL;
}

const form form_gptq = {
    .name = "gptq",
    .slots = slots,
    .n_slots = sizeof slots / sizeof *slots,
    .refuse = refuse,
    .refuse_size = refuse_size,
    .method = {.name = "gptq", .scales = ST_F16, .config = config_json, .parse = parse},
};
