/* Pairs are counted as they are written. A tokenizer of SentencePiece's kind (byte fallback) gets
 * scores, which its reader merges by: the place of the first merge that makes a token, since
 * tokenizer.json holds merges in the order of their scores. One on bytes gets its merges, and the
 * name of the rule that splits text, which the format cannot say otherwise. */
#include "shard/gguf_metadata.h"

#include "base/mem.h"
#include "io/tokenizer.h"
#include "shard/gguf_header.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BYTES = 256 << 20, QUANTIZATION_VERSION = 2 };

/* Kinds of tokens, and of files (general.file_type). */
enum { KIND_NORMAL = 1, KIND_UNKNOWN, KIND_CONTROL, KIND_USER, KIND_UNUSED, KIND_BYTE };
enum { FILE_F32 = 0, FILE_F16 = 1, FILE_Q4_0 = 2, FILE_Q8_0 = 7, FILE_BF16 = 32 };

typedef struct pairs {
    FILE *f;
    uint64_t n;
} pairs;

static void u32(pairs *p, const char *key, int64_t v) {
    gguf_put_u32(p->f, key, (uint32_t)v);
    p->n++;
}
static void f32(pairs *p, const char *key, double v) {
    gguf_put_f32(p->f, key, (float)v);
    p->n++;
}
static void text(pairs *p, const char *key, const char *v) {
    gguf_put_text(p->f, key, v);
    p->n++;
}
static void flag(pairs *p, const char *key, bool v) {
    gguf_put_bool(p->f, key, v);
    p->n++;
}
static void array(pairs *p, const char *key, gguf_type of, int64_t n) {
    gguf_put_array(p->f, key, of, (uint64_t)n);
    p->n++;
}

/* Sizes */

static int64_t file_type(const layout_options *o) {
    if (o->linears.bits < 16) return o->linears.bits == 4 ? FILE_Q4_0 : FILE_Q8_0;
    return o->store_dtype == ST_F16 ? FILE_F16 : o->store_dtype == ST_BF16 ? FILE_BF16 : FILE_F32;
}

static void put_model(pairs *p, const layout *l, const char *name) {
    const llama_config *c = layout_config(l);
    /* The reader sees all positions: no more of them than the model does. */
    const bool slides = c->sliding_window && c->sliding_window < c->max_positions;
    text(p, "general.architecture", "llama");
    text(p, "general.name", name);
    u32(p, "general.file_type", file_type(layout_opts(l)));
    u32(p, "general.quantization_version", QUANTIZATION_VERSION);
    u32(p, "llama.block_count", c->layers);
    u32(p, "llama.context_length", slides ? c->sliding_window : c->max_positions);
    u32(p, "llama.embedding_length", c->hidden);
    u32(p, "llama.feed_forward_length", c->intermediate);
    u32(p, "llama.attention.head_count", c->heads);
    u32(p, "llama.attention.head_count_kv", c->kv_heads);
    u32(p, "llama.attention.key_length", c->head_dim);
    u32(p, "llama.attention.value_length", c->head_dim);
    f32(p, "llama.attention.layer_norm_rms_epsilon", c->rms_eps);
    u32(p, "llama.rope.dimension_count", c->head_dim);
    f32(p, "llama.rope.freq_base", c->rope_theta);
    u32(p, "llama.vocab_size", c->vocab);
    if (c->rope.kind == ROPE_LINEAR) {
        text(p, "llama.rope.scaling.type", "linear");
        f32(p, "llama.rope.scaling.factor", c->rope.factor);
    }
}

/* Vocabulary */

typedef struct vocabulary {
    int64_t n; /* of the model */
    const json_t *model;
    const char **tokens; /* [n] NULL: none has this id */
    int32_t *kinds;      /* [n] */
    float *scores;       /* [n] */
} vocabulary;

static void take_token(vocabulary *v, const char *token, int64_t id, int32_t kind) {
    if (id < 0 || id >= v->n || !token) return; /* no row of the embedding: it cannot be used */
    v->tokens[id] = token;
    v->kinds[id] = kind;
}

static bool is_byte(const char *token) {
    return strlen(token) == 6 && !strncmp(token, "<0x", 3) && token[5] == '>';
}

static void take_tokens(vocabulary *v, const json_t *root, bool bytes) {
    const json_t *unknown = json_object_get(v->model, "unk_token");
    const char *token, *unk = json_string_value(unknown);
    json_t *id, *added;
    size_t i;
    json_object_foreach(json_object_get(v->model, "vocab"), token, id) take_token(
        v, token, json_integer_value(id), bytes && is_byte(token) ? KIND_BYTE : KIND_NORMAL);
    json_array_foreach(json_object_get(root, "added_tokens"), i, added) {
        token = json_string_value(json_object_get(added, "content"));
        const bool special = json_is_true(json_object_get(added, "special"));
        const bool unk_one = bytes && unk && token && !strcmp(unk, token);
        take_token(v, token, json_integer_value(json_object_get(added, "id")),
                   unk_one   ? KIND_UNKNOWN
                   : special ? KIND_CONTROL
                             : KIND_USER);
    }
}

/* Both halves of a merge, which files hold as a pair or as one string. Caller frees. */
static char *merge_text(const json_t *merge, const char *between) {
    char *out = NULL;
    const char *whole = json_string_value(merge);
    const char *a = json_string_value(json_array_get(merge, 0)),
               *b = json_string_value(json_array_get(merge, 1));
    if (whole) {
        const char *space = strchr(whole + 1, ' ');
        if (!space) return NULL;
        if (asprintf(&out, "%.*s%s%s", (int)(space - whole), whole, between, space + 1) < 0)
            abort();
    } else if (a && b && asprintf(&out, "%s%s%s", a, between, b) < 0) {
        abort();
    }
    return out;
}

/* Minus the place of the first merge that makes a token; what no merge makes comes last. */
static void score_tokens(vocabulary *v) {
    const json_t *merges = json_object_get(v->model, "merges"),
                 *vocab = json_object_get(v->model, "vocab");
    const int64_t n = (int64_t)json_array_size(merges);
    for (int64_t i = 0; i < v->n; i++) v->scores[i] = (float)(-n - 1);
    for (int64_t i = n - 1; i >= 0; i--) {
        char *token = merge_text(json_array_get(merges, (size_t)i), "");
        const json_t *id = token ? json_object_get(vocab, token) : NULL;
        const int64_t at = id ? json_integer_value(id) : -1;
        if (at >= 0 && at < v->n) v->scores[at] = (float)-i;
        free(token);
    }
}

static void put_tokens(pairs *p, const vocabulary *v) {
    char pad[32];
    array(p, "tokenizer.ggml.tokens", GGUF_STRING, v->n);
    for (int64_t i = 0; i < v->n; i++) {
        snprintf(pad, sizeof pad, "[PAD%" PRId64 "]", i);
        const char *token = v->tokens[i] ? v->tokens[i] : pad;
        gguf_put_string(p->f, token, strlen(token));
    }
    array(p, "tokenizer.ggml.token_type", GGUF_I32, v->n);
    fwrite(v->kinds, sizeof *v->kinds, (size_t)v->n, p->f);
}

static void put_merges(pairs *p, const vocabulary *v) {
    const json_t *merges = json_object_get(v->model, "merges");
    const size_t n = json_array_size(merges);
    array(p, "tokenizer.ggml.merges", GGUF_STRING, (int64_t)n);
    for (size_t i = 0; i < n; i++) {
        char *merge = merge_text(json_array_get(merges, i), " ");
        gguf_put_string(p->f, merge ? merge : "", merge ? strlen(merge) : 0);
        free(merge);
    }
}

/* How text is split */

static bool is_type(const json_t *o, const char *type) {
    const char *s = json_string_value(json_object_get(o, "type"));
    return s && !strcmp(s, type);
}

/* The reader's name for a rule of pre_tokenizer; NULL where it is none of those known here. */
static const char *split_rule(const json_t *pre) {
    static const char *const llama3 =
        "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| "
        "?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    const json_t *list = json_object_get(pre, "pretokenizers");
    const size_t n = json_array_size(list);
    const json_t *first = n == 2 ? json_array_get(list, 0) : NULL,
                 *bytes = n == 2   ? json_array_get(list, 1)
                          : n == 1 ? json_array_get(list, 0)
                                   : pre;
    const char *regex =
        json_string_value(json_object_get(json_object_get(first, "pattern"), "Regex"));
    const bool splits = !json_is_false(json_object_get(bytes, "use_regex"));
    if (!is_type(bytes, "ByteLevel") || n > 2) return NULL;
    if (!first) return splits ? "gpt-2" : NULL;
    if (is_type(first, "Digits") && json_is_true(json_object_get(first, "individual_digits")))
        return splits ? "smollm" : NULL;
    return is_type(first, "Split") && regex && !strcmp(regex, llama3) && !splits ? "llama-bpe"
                                                                                 : NULL;
}

/* Does the normalizer put a blank in front of a text? */
static bool prepends(const json_t *normalizer) {
    const json_t *list = json_object_get(normalizer, "normalizers"), *x;
    size_t i;
    if (is_type(normalizer, "Prepend")) return true;
    json_array_foreach(list, i, x) if (is_type(x, "Prepend")) return true;
    return false;
}

static err put_kind(pairs *p, const json_t *root, const vocabulary *v, bool bytes) {
    const char *rule = bytes ? "default" : split_rule(json_object_get(root, "pre_tokenizer"));
    if (!rule)
        return err_make(ERR_INPUT, "tokenizer.json",
                        "use archive.form=auto, and convert the folder with llama.cpp's own script",
                        "its pre_tokenizer has no name in GGUF that is known here");
    text(p, "tokenizer.ggml.model", bytes ? "llama" : "gpt2");
    text(p, "tokenizer.ggml.pre", rule);
    put_tokens(p, v);
    if (!bytes) {
        put_merges(p, v);
        return err_none();
    }
    array(p, "tokenizer.ggml.scores", GGUF_F32, v->n);
    fwrite(v->scores, sizeof *v->scores, (size_t)v->n, p->f);
    flag(p, "tokenizer.ggml.add_space_prefix", prepends(json_object_get(root, "normalizer")));
    const char *unk = json_string_value(json_object_get(v->model, "unk_token"));
    const json_t *id = unk ? json_object_get(json_object_get(v->model, "vocab"), unk) : NULL;
    if (id) u32(p, "tokenizer.ggml.unknown_token_id", json_integer_value(id));
    return err_none();
}

/* Tokens at the ends, and the chat template of tokenizer_config.json. */
static err put_ends(pairs *p, const fileset *source, const json_t *config, const llama_config *c,
                    const tokenizer *t) {
    int32_t prefix[TOKENIZER_MAX_AFFIX];
    const int64_t n = tokenizer_prefix(t, prefix), bos = c->bos >= 0 ? c->bos : n ? prefix[0] : -1;
    const json_t *eos = json_object_get(config, "eos_token_id");
    if (json_is_array(eos)) eos = json_array_get(eos, 0);
    if (bos >= 0) u32(p, "tokenizer.ggml.bos_token_id", bos);
    if (json_is_integer(eos)) u32(p, "tokenizer.ggml.eos_token_id", json_integer_value(eos));
    flag(p, "tokenizer.ggml.add_bos_token", n > 0 && prefix[0] == bos);
    char *bytes;
    size_t len;
    json_t *o;
    if (fileset_read_all(source, "tokenizer_config.json", MAX_BYTES, &bytes, &len).code)
        return err_none();
    err e = json_parse_foreign(bytes, len, "tokenizer_config.json", &o);
    free(bytes);
    if (e.code) return e;
    const char *chat = json_string_value(json_object_get(o, "chat_template"));
    if (chat) text(p, "tokenizer.chat_template", chat);
    json_decref(o);
    return err_none();
}

static err put_tokenizer(pairs *p, const fileset *source, const json_t *config, const layout *l) {
    char *bytes = NULL;
    size_t len;
    json_t *root = NULL;
    tokenizer *t = NULL;
    void *room[3] = {NULL};
    const llama_config *c = layout_config(l);
    err e = fileset_read_all(source, "tokenizer.json", MAX_BYTES, &bytes, &len);
    if (!e.code) e = tokenizer_create(bytes, len, "tokenizer.json", &t);
    if (!e.code) e = json_parse_foreign(bytes, len, "tokenizer.json", &root);
    const size_t sizes[] = {sizeof(char *), sizeof(int32_t), sizeof(float)};
    for (int i = 0; i < 3 && !e.code; i++)
        e = mem_alloc(c->vocab, (int64_t)sizes[i], "vocabulary", &room[i]);
    vocabulary v = {c->vocab, json_object_get(root, "model"), room[0], room[1], room[2]};
    if (!e.code) {
        const bool bytes_left = json_is_true(json_object_get(v.model, "byte_fallback"));
        for (int64_t i = 0; i < v.n; i++) {
            v.tokens[i] = NULL;
            v.kinds[i] = KIND_UNUSED;
        }
        take_tokens(&v, root, bytes_left);
        if (bytes_left) score_tokens(&v);
        e = put_kind(p, root, &v, bytes_left);
    }
    if (!e.code) e = put_ends(p, source, config, c, t);
    for (int i = 0; i < 3; i++) mem_free(room[i]);
    tokenizer_destroy(&t);
    json_decref(root);
    free(bytes);
    return e;
}

err gguf_metadata_create(const fileset *source, const json_t *config, const layout *l,
                         const char *name, layout_metadata *out) {
    char *bytes = NULL;
    size_t len = 0;
    pairs p = {.f = open_memstream(&bytes, &len)};
    *out = (layout_metadata){0};
    if (!p.f) return err_make(ERR_NOFIT, "GGUF header", NULL, "no memory for it");
    put_model(&p, l, name);
    err e = put_tokenizer(&p, source, config, l);
    fclose(p.f);
    if (e.code)
        free(bytes);
    else
        *out = (layout_metadata){.pairs = p.n, .bytes = bytes, .len = len};
    return e;
}
