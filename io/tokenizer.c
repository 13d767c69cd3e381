/* A text is split at added tokens, normalized, split again, cut into words and encoded; then the
 * templates of the post-processor put ids in front and behind. */
#include "io/tokenizer.h"

#include "base/json.h"
#include "io/added_tokens.h"
#include "io/bpe.h"
#include "io/normalize.h"
#include "io/pretokenize.h"
#include "io/utf8.h"

#include <inttypes.h>
#include <stdlib.h>

typedef struct affix {
    int32_t ids[TOKENIZER_MAX_AFFIX];
    int n;
} affix;

struct tokenizer {
    normalizer *normalizer;
    pretokenizer *pretokenizer;
    bpe *model;
    added_tokens *added;
    affix prefix, suffix;
};

/* The ids of a special token of a template, to the end of what stands on its side. */
static err template_ids(const json_t *ids, const char *where, affix *to) {
    if (!json_is_array(ids))
        return err_make(ERR_INPUT, where, NULL, "a template names a special token without ids");
    for (size_t i = 0; i < json_array_size(ids); i++) {
        const json_t *id = json_array_get(ids, i);
        int64_t v = json_is_integer(id) ? json_integer_value(id) : -1;
        if (v < 0 || v >= INT32_MAX)
            return err_make(ERR_INPUT, where, NULL,
                            "a template has a special token with a wrong id");
        if (to->n == TOKENIZER_MAX_AFFIX)
            return err_make(ERR_INPUT, where, NULL,
                            "a template adds more than %d tokens at one end", TOKENIZER_MAX_AFFIX);
        to->ids[to->n++] = (int32_t)v;
    }
    return err_none();
}

/* One template around what the processors before it made: its prefix goes in front of theirs. */
static err parse_template(const json_t *v, const char *where, tokenizer *t) {
    const json_t *single = json_object_get(v, "single"),
                 *special = json_object_get(v, "special_tokens");
    affix front = {.n = 0};
    bool seen = false;
    err e = json_is_array(single)
                ? err_none()
                : err_make(ERR_INPUT, where, NULL, "a template without \"single\"");
    for (size_t i = 0; !e.code && i < json_array_size(single); i++) {
        const json_t *piece = json_array_get(single, i);
        const json_t *sequence = json_object_get(piece, "Sequence");
        const char *id;
        e = json_get_str(sequence ? sequence : json_object_get(piece, "SpecialToken"), "id", where,
                         &id);
        if (e.code) break;
        if (!sequence) {
            const json_t *token = json_object_get(special, id);
            e = template_ids(json_object_get(token, "ids"), where, seen ? &t->suffix : &front);
        } else if (seen || strcmp(id, "A") != 0) {
            e = err_make(ERR_INPUT, where, NULL,
                         "a template that does not hold the text just once");
        }
        seen = seen || sequence;
    }
    if (!e.code && !seen) e = err_make(ERR_INPUT, where, NULL, "a template without the text");
    for (int i = 0; !e.code && i < t->prefix.n; i++) {
        if (front.n == TOKENIZER_MAX_AFFIX)
            return err_make(ERR_INPUT, where, NULL, "too many tokens in front of a text");
        front.ids[front.n++] = t->prefix.ids[i];
    }
    t->prefix = front;
    return e;
}

static err parse_processor(const json_t *v, const char *where, int depth, tokenizer *t) {
    const char *type;
    if (!v || json_is_null(v)) return err_none();
    err e = json_get_str(v, "type", where, &type);
    if (e.code) return e;
    if (strcmp(type, "ByteLevel") == 0) return err_none(); /* trims offsets, adds nothing */
    if (strcmp(type, "TemplateProcessing") == 0) return parse_template(v, where, t);
    if (strcmp(type, "Sequence") != 0)
        return err_make(ERR_INPUT, where, NULL, "post-processor \"%s\" is not supported", type);
    const json_t *list = json_object_get(v, "processors");
    if (!json_is_array(list) || depth > 4)
        return err_make(ERR_INPUT, where, NULL, "a damaged Sequence of post-processors");
    for (size_t i = 0; !e.code && i < json_array_size(list); i++)
        e = parse_processor(json_array_get(list, i), where, depth + 1, t);
    return e;
}

/* A template may name an id that no token has. */
static err check_affix(const tokenizer *t, const affix *a, const char *where) {
    for (int i = 0; i < a->n; i++)
        if (!tokenizer_token(t, a->ids[i]))
            return err_make(ERR_INPUT, where, NULL,
                            "the post-processor adds the id %" PRId32 ", which no token has",
                            a->ids[i]);
    return err_none();
}

static err parse(const json_t *v, const char *where, tokenizer *t) {
    if (!json_is_object(v)) return err_make(ERR_INPUT, where, NULL, "not a tokenizer.json");
    err e = normalizer_create(json_object_get(v, "normalizer"), where, &t->normalizer);
    if (!e.code)
        e = pretokenizer_create(json_object_get(v, "pre_tokenizer"), where, &t->pretokenizer);
    if (!e.code)
        e = bpe_create(json_object_get(v, "model"), pretokenizer_is_byte_level(t->pretokenizer),
                       where, &t->model);
    if (!e.code)
        e = added_tokens_create(json_object_get(v, "added_tokens"), t->normalizer, t->model, where,
                                &t->added);
    if (!e.code) e = parse_processor(json_object_get(v, "post_processor"), where, 0, t);
    if (!e.code) e = check_affix(t, &t->prefix, where);
    return e.code ? e : check_affix(t, &t->suffix, where);
}

err tokenizer_create(const char *json, size_t len, const char *where, tokenizer **out) {
    json_t *v = NULL;
    *out = NULL;
    err e = json_parse_foreign(json, len, where, &v);
    if (e.code) return e;
    tokenizer *t = calloc(1, sizeof *t);
    e = t ? parse(v, where, t) : growbuf_full();
    json_decref(v);
    if (e.code)
        tokenizer_destroy(&t);
    else
        *out = t;
    return e;
}

void tokenizer_destroy(tokenizer **t) {
    if (!*t) return;
    normalizer_destroy(&(*t)->normalizer);
    pretokenizer_destroy(&(*t)->pretokenizer);
    bpe_destroy(&(*t)->model);
    added_tokens_destroy(&(*t)->added);
    free(*t);
    *t = NULL;
}

int64_t tokenizer_vocab_size(const tokenizer *t) {
    int64_t model = bpe_vocab_size(t->model), added = added_tokens_top(t->added);
    return model > added ? model : added;
}

static int64_t copy_affix(const affix *a, int32_t ids[TOKENIZER_MAX_AFFIX]) {
    memcpy(ids, a->ids, sizeof a->ids);
    return a->n;
}

int64_t tokenizer_prefix(const tokenizer *t, int32_t ids[TOKENIZER_MAX_AFFIX]) {
    return copy_affix(&t->prefix, ids);
}

int32_t tokenizer_id(const tokenizer *t, const char *token) {
    int32_t id = added_tokens_id(t->added, token);
    return id >= 0 ? id : bpe_id(t->model, token);
}

const char *tokenizer_token(const tokenizer *t, int32_t id) {
    const char *token = added_tokens_name(t->added, id);
    return token ? token : bpe_token(t->model, id);
}

/* One call of tokenizer_encode. */
typedef struct encoding {
    const tokenizer *t;
    const char *text; /* all of it */
    pretokenize_run *words;
    bpe_run *model;
    growbuf ids;    /* int32_t */
    growbuf tmp[2]; /* of the normalizer */
    bool at_start;  /* the piece at hand begins where the text begins */
    err failed;
} encoding;

static bool fail(encoding *x, err e) {
    x->failed = e;
    return false;
}

static bool put_ids(encoding *x, const int32_t *ids, int n) {
    return growbuf_add(&x->ids, ids, (size_t)n * sizeof *ids) || fail(x, growbuf_full());
}

/* A piece behind the normalizer; what its added tokens leave goes to the model. */
static bool take_normal(void *ctx, int32_t id, const char *piece, size_t len) {
    encoding *x = ctx;
    bool at_start = x->at_start;
    x->at_start = false;
    if (id >= 0) return put_ids(x, &id, 1);
    if (pretokenize_text(x->words, piece, len, at_start)) return true;
    err e = pretokenize_error(x->words);
    return fail(x, e.code ? e : bpe_error(x->model));
}

/* A piece of the text as it came. */
static bool take_raw(void *ctx, int32_t id, const char *piece, size_t len) {
    encoding *x = ctx;
    if (id >= 0) return put_ids(x, &id, 1);
    x->at_start = piece == x->text;
    err e = normalizer_apply(x->t->normalizer, piece, len, x->tmp, &piece, &len, &x->at_start);
    if (e.code) return fail(x, e);
    if (!added_tokens_any(x->t->added, ADDED_NORMALIZED))
        return len == 0 || take_normal(x, -1, piece, len);
    return added_tokens_split(x->t->added, ADDED_NORMALIZED, piece, len, take_normal, x);
}

static err run(encoding *x, size_t len, bool add_special) {
    const tokenizer *t = x->t;
    err e = bpe_run_create(t->model, &x->ids, &x->model);
    if (!e.code) e = pretokenize_run_create(t->pretokenizer, bpe_word, x->model, &x->words);
    if (e.code) return e;
    /* a first block, so that no ids is still a buffer to free */
    if (!growbuf_reserve(&x->ids, 64 + len)) return growbuf_full();
    bool ok = !add_special || put_ids(x, t->prefix.ids, t->prefix.n);
    ok = ok && added_tokens_split(t->added, ADDED_RAW, x->text, len, take_raw, x);
    ok = ok && (!add_special || put_ids(x, t->suffix.ids, t->suffix.n));
    return ok ? err_none() : x->failed;
}

err tokenizer_encode(const tokenizer *t, const char *text, size_t len, bool add_special,
                     int32_t **ids, int64_t *n) {
    *ids = NULL;
    *n = 0;
    size_t good = utf8_check(text, len);
    if (good < len)
        return err_make(ERR_INPUT, "text", "convert the text to UTF-8", "byte %zu is not UTF-8",
                        good);
    encoding x = {.t = t, .text = text, .failed = err_none()};
    err e = run(&x, len, add_special);
    pretokenize_run_destroy(&x.words);
    bpe_run_destroy(&x.model);
    growbuf_clear(&x.tmp[0]);
    growbuf_clear(&x.tmp[1]);
    if (e.code) {
        growbuf_clear(&x.ids);
        return e;
    }
    *n = (int64_t)(x.ids.len / sizeof(int32_t));
    *ids = (int32_t *)x.ids.data;
    return e;
}
