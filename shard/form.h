/* form - how the quantized linears of an archive are stored: their tensors, the bytes of these,
 * what config.json says of them, and who can load them. One form is one file (form_packed.c,
 * form_int8.c, form_gguf.c, form_gptq.c) and one line of the table in form.c. A form is not a
 * quantizer: codes and scales come as they are. On the way: INT4 codes + scales -> [form] -> shard
 * bytes, and back.
 */
#ifndef SPINSHARD_SHARD_FORM_H
#define SPINSHARD_SHARD_FORM_H

#include "base/err.h"
#include "io/hf_checkpoint.h"
#include "io/safetensors.h"
#include "model/input_bits.h"
#include "model/tensors.h"
#include "quant/rtn.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct form form;

/* Inputs of the linears as the archive tells its runtime: integers, symmetric, scales taken from
 * the inputs while the model runs. */
typedef struct form_inputs {
    int bits;          /* 16: not quantized, and nothing is said */
    int64_t group;     /* inputs that share a scale; 0: all of a token */
    int down_bits;     /* those of down_proj, 16 for none; 0: as the others */
    input_eight eight; /* those of 8 bits where they have fewer by the above */
} form_inputs;
#define FORM_DOWN_TARGET "re:.*down_proj$"

/* Local. Bits of the inputs of a place and layer. */
static inline int form_input_bits(const form_inputs *in, input_place place, int64_t layer) {
    const bool down = place == INPUT_DOWN && in->down_bits;
    return input_bits_of(&in->eight, place, layer, down ? in->down_bits : in->bits);
}

/* R4, which down_proj's weights hold and its input must be rotated by while the model runs. An
 * archive with it holds a tensor of its own, FORM_R4_SUFFIX of the first layer, and a key in its
 * scheme that transformers refuses by name: a reader that ignores R4 would answer with nonsense. */
typedef struct form_online {
    bool r4;
    int64_t r4_block; /* order of its Sylvester blocks, for transform_config; 0: it cannot say it */
} form_online;
#define FORM_R4_SUFFIX ".R4_input.weight"
#define FORM_R4_KEY    "needs_R4_online_by_transform_config"
enum { FORM_R4_MOST = 1 << 15 }; /* largest block that vLLM rotates by */

/* How all linears of an archive are stored. */
typedef struct form_scheme {
    const form *form;     /* NULL: they are not quantized, and the rest is without meaning */
    int bits;             /* of the codes, 2..8; 16 in files of the form: not quantized */
    int64_t group;        /* inputs that share a scale; 0: one scale a row (channel) */
    bool symmetric;       /* else zero points are stored */
    st_dtype scale_dtype; /* BF16, F16 or F32 */
    form_inputs inputs;
    form_online online;
    bool fp8_cache; /* keys and values are kept in FP8: two scales for them in each layer, and
                       kv_cache_scheme in config.json */
} form_scheme;

/* Type and shape of one tensor. */
typedef struct form_shape {
    st_dtype dtype;
    int n_dims;
    int64_t shape[2]; /* the second is 1 where n_dims is 1 */
} form_shape;

/* What a tensor of a linear holds. */
typedef enum form_part {
    FORM_CODES,
    FORM_SCALES,
    FORM_ZEROS,
    FORM_SIZES,
    FORM_ORDER, /* the group of each input */
    FORM_R4,
    FORM_CACHE,
    FORM_ROPE
} form_part;

/* One tensor of a linear. Tensors are named by the linear and `suffix`, which stands in place of
 * the
 * ".weight" of the checkpoint. */
typedef struct form_slot {
    form_part part;
    const char *suffix;
    bool (*stored)(const form_scheme *s); /* NULL: always */
    form_shape (*shape)(const form_scheme *s, int64_t rows, int64_t cols);
    /* The bytes of q; `to` has as many as the shape says. */
    void (*pack)(const qmatrix *q, void *to);
    /* Into the arrays of q that this part fills. dtype: of the bytes. ERR_VERIFY, naming `where`,
     * for what no matrix of these bits holds. */
    err (*unpack)(const void *from, st_dtype dtype, const char *where, qmatrix *q);
    /* Do the bytes unpack to q? *row: the first row that does not, or -1 where that is not known.
     */
    err (*same)(const void *from, const qmatrix *q, bool *same, int64_t *row);
    /* FORM_CODES: from a checkpoint into the words [rows, pack_words(cols, bits)] of quant/pack.h,
     * without a byte for each code of the whole matrix. */
    err (*words)(const hf_checkpoint *ck, const hf_tensor *t, int bits, int64_t rows, int64_t cols,
                 int32_t *to);
} form_slot;

struct layout;

/* What a form that has files of its own does otherwise than safetensors of Hugging Face. */
typedef struct form_file {
    const char *ending; /* of a shard's name; NULL: safetensors, and nothing else here counts */
    int64_t align;      /* of a tensor in the data section */
    /* First bytes of a part: layout_shard_header. */
    err (*header)(const struct layout *l, int64_t part, char **out, size_t *len);
    void (*name)(const llama_tensor *t, char name[160]); /* of any tensor of the checkpoint */
    /* Where row `row` of a matrix, or element of a vector, stands. */
    int64_t (*row_place)(const llama_config *cfg, llama_role role, int64_t row);
} form_file;

/* How config.json tells of a form that is not one of compressed-tensors. */
typedef struct form_method {
    const char *name; /* "quant_method"; NULL: compressed-tensors, and nothing else here counts */
    st_dtype scales;  /* the type that readers want for scales, whatever the model's */
    /* All of quantization_config; owned by the caller. */
    json_t *(*config)(const form_scheme *s);
    /* bits, group, symmetric of that; what is wrong with it, or NULL. */
    const char *(*parse)(const json_t *config, form_scheme *out);
} form_method;

struct form {
    const char *name; /* in archive.form, and as "format" in config.json */
    const form_slot *slots;
    int n_slots;
    bool byte_codes; /* a code takes a byte, whatever its bits */
    /* ERR_USAGE naming the key of the recipe, or success: can the form store this? */
    err (*refuse)(const form_scheme *s);
    /* And a linear of that size, named by `weight`? NULL: any. */
    err (*refuse_size)(const form_scheme *s, const char *weight, int64_t rows, int64_t cols);
    form_file file;
    form_method method;
};

/* Local. Are linears rounded to codes, or plain? */
static inline bool form_rounds(const form_scheme *s) {
    return s->form && s->bits < 16;
}

/* Local. Has the form files of its own? NULL is fine. Its archives are not read back here. */
bool form_has_files(const form *f);

/* Local. How many of n rows from `row` on stand one behind the other in the file too; *place: where
 * the first of them stands. n >= 1. */
int64_t form_row_run(const form *f, const llama_config *cfg, llama_role role, int64_t row,
                     int64_t n, int64_t *place);

/* Local. The n rows of a tensor of `role`, of `size` bytes each, from their order in the checkpoint
 * to that in the file, and the other way. to [n * size] is not `from`. */
void form_rows_to_file(const form *f, const llama_config *cfg, llama_role role, const void *from,
                       int64_t n, int64_t size, void *to);
void form_rows_from_file(const form *f, const llama_config *cfg, llama_role role, const void *from,
                         int64_t n, int64_t size, void *to);

/* Local. The form of a name, or NULL; that of a "quant_method" other than compressed-tensors. */
const form *form_find(const char *name);
const form *form_find_method(const char *method);

/* Local. "quant_method" of the form's archives. */
const char *form_method_name(const form *f);

/* Local. The tensor of a form that holds a part; NULL where it has none. For tests. */
const form_slot *form_part_slot(const form *f, form_part part);

/* Local. Is this tensor of a linear there? */
bool form_stores(const form_scheme *s, const form_slot *slot);

/* The tensor of R4: a Hadamard matrix of +-1 [r4_block, r4_block], of the scales' type; [1, 1]
 * where r4_block is 0. Made of no codes: it packs and unpacks nothing. */
extern const form_slot form_r4_slot;

/* Local. Entries of row i of that matrix. */
void form_r4_row(int64_t i, int64_t n, float *to);

/* "model.layers.N.self_attn.k_scale" and v_scale, F32 [1]: what keys and values are divided by
 * before they are rounded to FP8. Made of no codes: it packs and unpacks nothing. */
extern const form_slot form_cache_slot;
/* Local. Their names; `weight`: that of k_proj or v_proj. */
void form_cache_name(const char *weight, char name[160]);

/* "rope_freqs.weight", which files of llama.cpp hold where RoPE is scaled as in Llama 3.1: by how
 * much the angle of each pair is divided, F32 [head_dim / 2]. The suffix is its whole name, and
 * the rows of its shape are those pairs. Packs and unpacks nothing. */
extern const form_slot form_rope_slot;

/* Local. The name of a tensor: `weight` is that of the checkpoint, ending in ".weight". */
void form_tensor_name(const char *weight, const char *suffix, char name[160]);

/* Local. Does one tensor, packed, unpack to what it came from? Fails with ERR_NUMERICS naming
 * `what`: a memory or a processor that cannot be trusted. */
err form_check(const form_slot *slot, const qmatrix *q, const void *from, const char *what);

/* Local. Read one linear [rows, cols] of an archive back. `weight` as above. Caller owns *out
 * (qmatrix_destroy). Fails with ERR_VERIFY where a tensor is missing or has another type or shape,
 * else with the errors of reading. */
err form_read(const hf_checkpoint *ck, const char *weight, const form_scheme *s, int64_t rows,
              int64_t cols, qmatrix **out);

/* What products take of a linear; arrays of the caller. */
typedef struct form_words {
    int32_t *words; /* [rows, pack_words(cols, bits)] */
    float *scales;  /* [rows, groups] */
    uint8_t *zeros; /* [rows, groups]; NULL where symmetric */
} form_words;

/* Local. Read one linear as words for products. Errors as of form_read, and ERR_INPUT for a scale
 * that is not finite. */
err form_read_words(const hf_checkpoint *ck, const char *weight, const form_scheme *s, int64_t rows,
                    int64_t cols, const form_words *to);

#endif
