/* The form gguf: files of llama.cpp's format. Codes and scale of 32 inputs are one block: Q4_0 (an
 * fp16 scale and 16 bytes, of which byte j has element j below and element j + 16 above, in offset
 * form) or Q8_0 (an fp16 scale and 32 signed bytes). Its runtime rotates neighbouring channels of
 * queries and keys, where Hugging Face checkpoints pair channels half a head apart, so rows of q
 * and k stand in another order. */
#include "shard/form_internal.h"

#include "base/half.h"
#include "quant/grid.h"
#include "shard/gguf_header.h"

#include <stdio.h>
#include <string.h>

enum { BLOCK = 32, SCALE_BYTES = 2 };

static int64_t block_bytes(int bits) {
    return SCALE_BYTES + BLOCK * bits / 8;
}

static form_shape blocks_shape(const form_scheme *s, int64_t rows, int64_t cols) {
    return (form_shape){ST_U8, 2, {rows, cols / BLOCK * block_bytes(s->bits)}};
}

static void put_block(const uint8_t *codes, float scale, int bits, uint8_t *to) {
    const uint16_t d = half_to_fp16(scale);
    memcpy(to, &d, sizeof d);
    to += SCALE_BYTES;
    if (bits == 4)
        for (int j = 0; j < BLOCK / 2; j++) to[j] = (uint8_t)(codes[j] | codes[j + BLOCK / 2] << 4);
    else
        for (int j = 0; j < BLOCK; j++) to[j] = (uint8_t)(codes[j] - grid_middle(bits));
}

static void take_block(const uint8_t *from, int bits, uint8_t *codes, float *scale) {
    uint16_t d;
    memcpy(&d, from, sizeof d);
    *scale = half_from_fp16(d);
    from += SCALE_BYTES;
    for (int j = 0; j < BLOCK; j++)
        codes[j] = bits == 4 ? (from[j % (BLOCK / 2)] >> (j < BLOCK / 2 ? 0 : 4)) & 15
                             : (uint8_t)(from[j] + grid_middle(bits));
}

static void blocks_pack(const qmatrix *q, void *to) {
    const int64_t size = block_bytes(q->bits), n = q->rows * q->n_groups;
#pragma omp parallel for schedule(static) if (q->rows > 1)
    for (int64_t b = 0; b < n; b++)
        put_block(q->codes + b * BLOCK, q->scales[b], q->bits, (uint8_t *)to + b * size);
}

static err blocks_unpack(const void *from, st_dtype dtype, const char *where, qmatrix *q) {
    const int64_t size = block_bytes(q->bits), n = q->rows * q->n_groups;
    (void)dtype;
    (void)where;
    for (int64_t b = 0; b < n; b++)
        take_block((const uint8_t *)from + b * size, q->bits, q->codes + b * BLOCK, q->scales + b);
    return err_none();
}

static err blocks_same(const void *from, const qmatrix *q, bool *same, int64_t *row) {
    const int64_t size = block_bytes(q->bits), n = q->rows * q->n_groups;
    *row = -1;
    for (int64_t b = 0; b < n && *row < 0; b++) {
        uint8_t codes[BLOCK];
        float scale;
        take_block((const uint8_t *)from + b * size, q->bits, codes, &scale);
        if (memcmp(codes, q->codes + b * BLOCK, BLOCK) || scale != q->scales[b])
            *row = b / q->n_groups;
    }
    *same = *row < 0;
    return err_none();
}

static const form_slot slots[] = {
    {.part = FORM_CODES,
     .suffix = ".weight",
     .shape = blocks_shape,
     .pack = blocks_pack,
     .unpack = blocks_unpack,
     .same = blocks_same},
};

static err refuse(const form_scheme *s) {
    static const char *const hint = "use weights.group=32 (or auto), or archive.form=auto";
    if (s->bits != 4 && s->bits != 8 && s->bits < 16)
        return err_make(ERR_USAGE, "weights.bits", "use 4, 8 or 16, or archive.form=auto",
                        "the form gguf has blocks of 4 and of 8 bits");
    if (s->bits < 16 && (s->group != BLOCK || !s->symmetric))
        return err_make(ERR_USAGE, s->symmetric ? "weights.group" : "weights.symmetric", hint,
                        "the form gguf has one scale for 32 inputs and no zero points");
    return err_none();
}

static void name_of(const llama_tensor *t, char name[160]) {
    static const char *const in_layer[ROLE_COUNT] = {[ROLE_ATTN_NORM] = "attn_norm.weight",
                                                     [ROLE_Q] = "attn_q.weight",
                                                     [ROLE_K] = "attn_k.weight",
                                                     [ROLE_V] = "attn_v.weight",
                                                     [ROLE_O] = "attn_output.weight",
                                                     [ROLE_Q_BIAS] = "attn_q.bias",
                                                     [ROLE_K_BIAS] = "attn_k.bias",
                                                     [ROLE_V_BIAS] = "attn_v.bias",
                                                     [ROLE_O_BIAS] = "attn_output.bias",
                                                     [ROLE_MLP_NORM] = "ffn_norm.weight",
                                                     [ROLE_GATE] = "ffn_gate.weight",
                                                     [ROLE_UP] = "ffn_up.weight",
                                                     [ROLE_DOWN] = "ffn_down.weight",
                                                     [ROLE_GATE_BIAS] = "ffn_gate.bias",
                                                     [ROLE_UP_BIAS] = "ffn_up.bias",
                                                     [ROLE_DOWN_BIAS] = "ffn_down.bias"};
    const char *outside = t->role == ROLE_EMBED  ? "token_embd.weight"
                          : t->role == ROLE_HEAD ? "output.weight"
                                                 : "output_norm.weight";
    if (t->layer < 0)
        snprintf(name, 160, "%s", outside);
    else
        snprintf(name, 160, "blk.%d.%s", (int)t->layer, in_layer[t->role]);
}

/* Channel i of a head and its partner i + head_dim/2 become 2i and 2i + 1. */
static int64_t row_place(const llama_config *cfg, llama_role role, int64_t row) {
    if (role != ROLE_Q && role != ROLE_K && role != ROLE_Q_BIAS && role != ROLE_K_BIAS) return row;
    const int64_t half = cfg->head_dim / 2, i = row % cfg->head_dim;
    return row - i + 2 * (i % half) + i / half;
}

const form form_gguf = {
    .name = "gguf",
    .slots = slots,
    .n_slots = sizeof slots / sizeof *slots,
    .refuse = refuse,
    .file = {.ending = "gguf",
             .align = GGUF_ALIGN,
             .header = gguf_header,
             .name = name_of,
             .row_place = row_place},
};
