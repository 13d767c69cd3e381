/* Each step turns spans of text into spans; spans are pushed from step to step as they arise, so
 * no list of a whole text is held. */
#include "io/pretokenize.h"

#include "io/growbuf.h"
#include "io/normalize.h"
#include "io/pattern.h"
#include "io/utf8.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <stdint.h>
#include <stdlib.h>

typedef enum stage_kind {
    STAGE_REGEX,
    STAGE_STRING,
    STAGE_CHARS,
    STAGE_METASPACE,
    STAGE_SPACE
} stage_kind;

/* What becomes of the matches of a Split, by the names of the `tokenizers` package. */
typedef enum behavior {
    ISOLATED,
    REMOVED,
    CONTIGUOUS,
    MERGED_WITH_PREVIOUS,
    MERGED_WITH_NEXT
} behavior;

typedef enum prepend { PREPEND_ALWAYS, PREPEND_FIRST, PREPEND_NEVER } prepend;

typedef struct stage {
    stage_kind kind;
    behavior behavior;
    bool invert;            /* the matches are what stands between the matches */
    pcre2_code *code;       /* STAGE_REGEX; owns */
    growbuf literal;        /* STAGE_STRING; METASPACE: the replacement; owns */
    bool (*is)(uint32_t c); /* STAGE_CHARS */
    uint32_t only;          /* STAGE_CHARS without `is` */
    prepend prepend;        /* STAGE_METASPACE */
    bool split;             /* STAGE_METASPACE */
} stage;

enum { MAX_STAGES = 16, MAX_DEPTH = 4 };

struct pretokenizer {
    int n_stages;
    bool byte_level;
    stage stages[MAX_STAGES];
};

/* The pattern of GPT-2, as the `tokenizers` package applies it in ByteLevel. */
static const char GPT2_PATTERN[] = "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+|"
                                   " ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";
/* The pattern of Whitespace in that package, `\w+|[^\w\s]+`, which is not matched by Oniguruma. */
#define WORD "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\p{Join_Control}"
static const char WORDS_PATTERN[] = "[" WORD "]+|[^" WORD "\\p{White_Space}]+";

static err compile_pcre(const char *pattern, const char *where, stage *s) {
    int number;
    PCRE2_SIZE at;
    PCRE2_UCHAR why[160];
    s->kind = STAGE_REGEX;
    s->code = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                            PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                            &number, &at, NULL);
    if (s->code) {
        pcre2_jit_compile(s->code, PCRE2_JIT_COMPLETE); /* without it the same, slower */
        return err_none();
    }
    pcre2_get_error_message(number, why, sizeof why);
    return err_make(ERR_INPUT, where, NULL, "the pattern of a pre-tokenizer is not valid: %s",
                    (char *)why);
}

/* pattern: in the syntax of Oniguruma. */
static err compile(const char *pattern, const char *where, stage *s) {
    growbuf text = {0};
    err e = pattern_translate(pattern, where, &text);
    if (!e.code) e = compile_pcre(text.data, where, s);
    growbuf_clear(&text);
    return e;
}

static err literal(const char *text, const char *where, stage *s) {
    if (!*text)
        return err_make(ERR_INPUT, where, NULL, "a pre-tokenizer splits at an empty string");
    return growbuf_add(&s->literal, text, strlen(text)) ? err_none() : growbuf_full();
}

static err parse_behavior(const json_t *v, const char *where, stage *s) {
    static const char *const names[] = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious",
                                        "MergedWithNext"};
    const char *name = "Isolated";
    err e = json_opt_str(v, "behavior", where, &name);
    if (e.code) return e;
    for (int i = 0; i < 5; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        s->behavior = (behavior)i;
        return err_none();
    }
    return err_make(ERR_INPUT, where, NULL, "behavior \"%s\" is not supported", name);
}

static err parse_split(const json_t *v, const char *where, stage *s) {
    const json_t *pattern = json_object_get(v, "pattern");
    const char *regex = NULL, *string = NULL;
    err e = json_opt_str(pattern, "Regex", where, &regex);
    if (!e.code) e = json_opt_str(pattern, "String", where, &string);
    if (!e.code) e = parse_behavior(v, where, s);
    if (!e.code) e = json_opt_bool(v, "invert", where, &s->invert);
    if (e.code) return e;
    if (regex) return compile(regex, where, s);
    s->kind = STAGE_STRING;
    if (string) return literal(string, where, s);
    return err_make(ERR_INPUT, where, NULL, "pre-tokenizer \"Split\" has no pattern");
}

static err parse_digits(const json_t *v, const char *where, stage *s) {
    bool single = false;
    s->kind = STAGE_CHARS;
    s->is = normalize_is_number;
    err e = json_opt_bool(v, "individual_digits", where, &single);
    s->behavior = single ? ISOLATED : CONTIGUOUS;
    return e;
}

static err parse_metaspace(const json_t *v, const char *where, stage *s) {
    const char *mark = "\xe2\x96\x81", *scheme = NULL;
    bool add_space = true;
    size_t width;
    s->kind = STAGE_METASPACE;
    s->behavior = MERGED_WITH_NEXT;
    s->split = true;
    err e = json_opt_str(v, "replacement", where, &mark);
    if (!e.code) e = json_opt_str(v, "prepend_scheme", where, &scheme);
    if (!e.code) e = json_opt_bool(v, "add_prefix_space", where, &add_space);
    if (!e.code) e = json_opt_bool(v, "split", where, &s->split);
    if (!e.code) e = literal(mark, where, s);
    if (e.code) return e;
    utf8_at(mark, &width);
    if (mark[width])
        return err_make(ERR_INPUT, where, NULL,
                        "the replacement of Metaspace is not one character");
    if (!scheme) scheme = add_space ? "always" : "never"; /* files before prepend_scheme */
    if (strcmp(scheme, "always") == 0)
        s->prepend = PREPEND_ALWAYS;
    else if (strcmp(scheme, "first") == 0)
        s->prepend = PREPEND_FIRST;
    else if (strcmp(scheme, "never") == 0)
        s->prepend = PREPEND_NEVER;
    else
        return err_make(ERR_INPUT, where, NULL, "prepend_scheme \"%s\" is not supported", scheme);
    return err_none();
}

static err parse_delimiter(const json_t *v, const char *where, stage *s) {
    const char *text;
    size_t width;
    err e = json_get_str(v, "delimiter", where, &text);
    if (e.code) return e;
    s->kind = STAGE_CHARS;
    s->behavior = REMOVED;
    s->only = utf8_at(text, &width);
    if (!*text || text[width])
        return err_make(ERR_INPUT, where, NULL,
                        "the delimiter of a pre-tokenizer is not one character");
    return err_none();
}

static err next_stage(pretokenizer *p, const char *where, stage **out) {
    if (p->n_stages == MAX_STAGES)
        return err_make(ERR_INPUT, where, NULL, "too many pre-tokenizers");
    *out = &p->stages[p->n_stages++];
    return err_none();
}

static err parse_byte_level(const json_t *v, const char *where, pretokenizer *p) {
    bool add_space = true, use_regex = true;
    stage *s = NULL;
    p->byte_level = true;
    err e = json_opt_bool(v, "add_prefix_space", where, &add_space);
    if (!e.code) e = json_opt_bool(v, "use_regex", where, &use_regex);
    if (!e.code && add_space) {
        e = next_stage(p, where, &s);
        if (!e.code) s->kind = STAGE_SPACE;
    }
    if (e.code || !use_regex) return e;
    e = next_stage(p, where, &s);
    return e.code ? e : compile(GPT2_PATTERN, where, s);
}

static err parse_one(const json_t *v, const char *type, const char *where, pretokenizer *p) {
    stage *s = NULL;
    err e = next_stage(p, where, &s);
    if (e.code) return e;
    if (strcmp(type, "Split") == 0) return parse_split(v, where, s);
    if (strcmp(type, "Digits") == 0) return parse_digits(v, where, s);
    if (strcmp(type, "Metaspace") == 0) return parse_metaspace(v, where, s);
    if (strcmp(type, "CharDelimiterSplit") == 0) return parse_delimiter(v, where, s);
    if (strcmp(type, "Whitespace") == 0) {
        s->behavior = REMOVED;
        s->invert = true;
        return compile_pcre(WORDS_PATTERN, where, s);
    }
    s->kind = STAGE_CHARS;
    if (strcmp(type, "WhitespaceSplit") == 0) {
        s->behavior = REMOVED;
        s->is = normalize_is_space;
        return err_none();
    }
    if (strcmp(type, "Punctuation") == 0) {
        s->is = normalize_is_punctuation;
        return parse_behavior(v, where, s);
    }
    return err_make(ERR_INPUT, where, NULL, "pre-tokenizer \"%s\" is not supported", type);
}

static err parse(const json_t *v, const char *where, int depth, pretokenizer *p) {
    const char *type;
    err e = json_get_str(v, "type", where, &type);
    if (e.code) return e;
    if (p->byte_level)
        return err_make(ERR_INPUT, where, NULL,
                        "pre-tokenizer \"%s\" after ByteLevel is not supported", type);
    if (strcmp(type, "ByteLevel") == 0) return parse_byte_level(v, where, p);
    if (strcmp(type, "Sequence") != 0) return parse_one(v, type, where, p);
    const json_t *list = json_object_get(v, "pretokenizers");
    if (!json_is_array(list) || depth > MAX_DEPTH)
        return err_make(ERR_INPUT, where, NULL, "a damaged Sequence of pre-tokenizers");
    for (size_t i = 0; i < json_array_size(list) && !e.code; i++)
        e = parse(json_array_get(list, i), where, depth + 1, p);
    return e;
}

err pretokenizer_create(const json_t *v, const char *where, pretokenizer **out) {
    *out = NULL;
    pretokenizer *p = calloc(1, sizeof *p);
    if (!p) return growbuf_full();
    err e = v && !json_is_null(v) ? parse(v, where, 0, p) : err_none();
    if (e.code)
        pretokenizer_destroy(&p);
    else
        *out = p;
    return e;
}

void pretokenizer_destroy(pretokenizer **p) {
    if (!*p) return;
    for (int i = 0; i < (*p)->n_stages; i++) {
        pcre2_code_free((*p)->stages[i].code);
        growbuf_clear(&(*p)->stages[i].literal);
    }
    free(*p);
    *p = NULL;
}

bool pretokenizer_is_byte_level(const pretokenizer *p) {
    return p->byte_level;
}

struct pretokenize_run {
    const pretokenizer *p; /* borrowed */
    pretokenize_sink sink;
    void *ctx;
    pcre2_match_context *match;
    pcre2_jit_stack *stack;
    pcre2_match_data *found[MAX_STAGES];
    growbuf changed[MAX_STAGES]; /* the text as a stage changed it */
    err failed;
};

err pretokenize_run_create(const pretokenizer *p, pretokenize_sink sink, void *ctx,
                           pretokenize_run **out) {
    *out = NULL;
    pretokenize_run *r = calloc(1, sizeof *r);
    if (!r) return growbuf_full();
    *r = (pretokenize_run){.p = p, .sink = sink, .ctx = ctx, .failed = err_none()};
    r->match = pcre2_match_context_create(NULL);
    r->stack = pcre2_jit_stack_create(32 << 10, 8 << 20, NULL);
    bool ok = r->match && r->stack;
    for (int i = 0; i < p->n_stages && ok; i++) {
        if (!p->stages[i].code) continue;
        r->found[i] = pcre2_match_data_create(1, NULL); /* the whole match, no groups */
        ok = r->found[i] != NULL;
    }
    if (!ok) {
        pretokenize_run_destroy(&r);
        return growbuf_full();
    }
    pcre2_jit_stack_assign(r->match, NULL, r->stack);
    *out = r;
    return err_none();
}

void pretokenize_run_destroy(pretokenize_run **r) {
    if (!*r) return;
    for (int i = 0; i < MAX_STAGES; i++) {
        pcre2_match_data_free((*r)->found[i]);
        growbuf_clear(&(*r)->changed[i]);
    }
    pcre2_jit_stack_free((*r)->stack);
    pcre2_match_context_free((*r)->match);
    free(*r);
    *r = NULL;
}

err pretokenize_error(const pretokenize_run *r) {
    return r->failed;
}

static bool fail(pretokenize_run *r, err e) {
    r->failed = e;
    return false;
}

/* A text on its way through one stage: spans arrive in order, alternating or not between matches
 * and the rest, and leave for the next stage merged as the behavior says. */
typedef struct pass {
    pretokenize_run *r;
    int at;
    const stage *s;
    const char *text;
    size_t len;
    bool at_start;
    bool holds; /* a span that may still grow */
    bool held_match;
    size_t held_begin, held_end;
} pass;

static bool run_stage(pretokenize_run *r, int at, const char *text, size_t len, bool at_start);

static bool emit(const pass *p, size_t begin, size_t end) {
    if (begin == end) return true;
    return run_stage(p->r, p->at + 1, p->text + begin, end - begin, p->at_start && begin == 0);
}

static bool flush(pass *p) {
    if (!p->holds) return true;
    p->holds = false;
    return emit(p, p->held_begin, p->held_end);
}

static bool hold(pass *p, size_t begin, size_t end, bool match) {
    if (!flush(p)) return false;
    p->holds = true;
    p->held_match = match;
    p->held_begin = begin;
    p->held_end = end;
    return true;
}

static bool span(pass *p, size_t begin, size_t end, bool match) {
    match = match != p->s->invert;
    bool grows = false;
    switch (p->s->behavior) {
    case ISOLATED:
        return emit(p, begin, end);
    case REMOVED:
        return match || emit(p, begin, end);
    case CONTIGUOUS:
        grows = p->holds && match == p->held_match;
        break;
    case MERGED_WITH_PREVIOUS:
        grows = p->holds && match && !p->held_match;
        break;
    case MERGED_WITH_NEXT:
        grows = p->holds && !match && p->held_match;
        break;
    }
    if (!grows) return hold(p, begin, end, match);
    p->held_end = end;
    p->held_match = match;
    return true;
}

static bool spans_of_regex(pass *p) {
    pretokenize_run *r = p->r;
    PCRE2_SIZE *at = pcre2_get_ovector_pointer(r->found[p->at]);
    size_t prev = 0, from = 0;
    bool any = false;
    while (from <= p->len) {
        int got = pcre2_match(p->s->code, (PCRE2_SPTR)p->text, p->len, from, PCRE2_NO_UTF_CHECK,
                              r->found[p->at], r->match);
        if (got == PCRE2_ERROR_NOMATCH) break;
        if (got < 0)
            return fail(r, err_make(ERR_INPUT, "tokenizer", NULL,
                                    "the pattern of a pre-tokenizer fails on this text (PCRE2 %d)",
                                    got));
        size_t begin = at[0], end = at[1];
        bool empty = begin == end;
        /* an empty match right behind a match does not count */
        if (!empty || !any || begin != prev) {
            if (prev != begin && !span(p, prev, begin, false)) return false;
            if (!span(p, begin, end, true)) return false;
            prev = end;
            any = true;
        }
        if (empty && end == p->len) break;
        from = empty ? end + utf8_width(p->text[end]) : end;
    }
    return prev == p->len || span(p, prev, p->len, false);
}

static bool spans_of_string(pass *p) {
    const growbuf *want = &p->s->literal;
    size_t prev = 0;
    while (prev < p->len) {
        const char *hit = memmem(p->text + prev, p->len - prev, want->data, want->len);
        if (!hit) return span(p, prev, p->len, false);
        size_t begin = (size_t)(hit - p->text);
        if (begin != prev && !span(p, prev, begin, false)) return false;
        prev = begin + want->len;
        if (!span(p, begin, prev, true)) return false;
    }
    return true;
}

static bool spans_of_chars(pass *p) {
    const stage *s = p->s;
    size_t prev = 0, width;
    for (size_t i = 0; i < p->len; i += width) {
        uint32_t c = utf8_at(p->text + i, &width);
        if (s->is ? !s->is(c) : c != s->only) continue;
        if (i != prev && !span(p, prev, i, false)) return false;
        prev = i + width;
        if (!span(p, i, prev, true)) return false;
    }
    return prev == p->len || span(p, prev, p->len, false);
}

/* Spaces become the mark, and one is put in front where there is none. */
static bool metaspace(pass *p) {
    const stage *s = p->s;
    const growbuf *mark = &s->literal;
    growbuf *b = &p->r->changed[p->at];
    bool marked =
        *p->text == ' ' || (p->len >= mark->len && memcmp(p->text, mark->data, mark->len) == 0);
    bool wants = s->prepend == PREPEND_ALWAYS || (s->prepend == PREPEND_FIRST && p->at_start);
    b->len = 0;
    if (wants && !marked && !growbuf_add(b, mark->data, mark->len))
        return fail(p->r, growbuf_full());
    for (size_t i = 0; i < p->len;) {
        const char *space = memchr(p->text + i, ' ', p->len - i);
        size_t end = space ? (size_t)(space - p->text) : p->len;
        bool ok = growbuf_add(b, p->text + i, end - i) &&
                  (!space || growbuf_add(b, mark->data, mark->len));
        if (!ok) return fail(p->r, growbuf_full());
        i = end + 1;
    }
    p->text = b->data;
    p->len = b->len;
    return s->split ? spans_of_string(p) : emit(p, 0, p->len);
}

static bool prefix_space(pass *p) {
    growbuf *b = &p->r->changed[p->at];
    if (*p->text == ' ') return emit(p, 0, p->len);
    b->len = 0;
    if (!growbuf_add(b, " ", 1) || !growbuf_add(b, p->text, p->len))
        return fail(p->r, growbuf_full());
    p->text = b->data;
    p->len = b->len;
    return emit(p, 0, p->len);
}

static bool run_stage(pretokenize_run *r, int at, const char *text, size_t len, bool at_start) {
    if (at == r->p->n_stages) return r->sink(r->ctx, text, len);
    pass p = {
        .r = r, .at = at, .s = &r->p->stages[at], .text = text, .len = len, .at_start = at_start};
    bool ok = false;
    switch (p.s->kind) {
    case STAGE_REGEX:
        ok = spans_of_regex(&p);
        break;
    case STAGE_STRING:
        ok = spans_of_string(&p);
        break;
    case STAGE_CHARS:
        ok = spans_of_chars(&p);
        break;
    case STAGE_METASPACE:
        ok = metaspace(&p);
        break;
    case STAGE_SPACE:
        ok = prefix_space(&p);
        break;
    }
    return ok && flush(&p);
}

/* A pattern may step back over the longest run of spaces; a bad one must still come to an end. */
static uint32_t match_limit(size_t len) {
    const uint64_t floor = 10000000, per_byte = 16;
    return len > (UINT32_MAX - floor) / per_byte ? UINT32_MAX : (uint32_t)(floor + per_byte * len);
}

bool pretokenize_text(pretokenize_run *r, const char *text, size_t len, bool at_start) {
    pcre2_set_match_limit(r->match, match_limit(len));
    return len == 0 || run_stage(r, 0, text, len, at_start);
}
