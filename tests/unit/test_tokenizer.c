/* Token ids: those of the `tokenizers` package (tests/data/goldens/tokens.json), hand-made
 * vocabularies with ids worked out by hand, words as the published patterns cut them, an
 * independent slow BPE, and files that must be refused. tests/e2e/test_tokenizer_oracle.py compares
 * with the `tokenizers` package. */
#include "base/file.h"
#include "base/json.h"
#include "base/rng.h"
#include "io/growbuf.h"
#include "io/pretokenize.h"
#include "io/tokenizer.h"
#include "io/utf8.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MARK "\xe2\x96\x81"

static char *data_path(const char *name) {
    const char *data = getenv("SPINSHARD_TEST_DATA");
    return file_join(data ? data : "tests/data", name);
}

static tokenizer *load(const char *path) {
    char *json;
    size_t len;
    tokenizer *t;
    assert_int_equal(file_read_all(path, 1u << 30, &json, &len).code, 0);
    err e = tokenizer_create(json, len, path, &t);
    if (e.code) fail_msg("%s: %s", e.where, e.what);
    free(json);
    return t;
}

static tokenizer *make(const char *json) {
    tokenizer *t;
    err e = tokenizer_create(json, strlen(json), "made by hand", &t);
    if (e.code) fail_msg("%s: %s", e.where, e.what);
    return t;
}

/* want: ids in decimal with spaces between. */
static void expect_ids(const tokenizer *t, const char *text, size_t len, bool add_special,
                       const char *want) {
    int32_t *ids;
    int64_t n;
    growbuf got = {0};
    err e = tokenizer_encode(t, text, len, add_special, &ids, &n);
    if (e.code) fail_msg("%s: %s", e.where, e.what);
    for (int64_t i = 0; i < n; i++) {
        char one[16];
        assert_true(growbuf_add(
            &got, one, (size_t)snprintf(one, sizeof one, "%s%" PRId32, i ? " " : "", ids[i])));
    }
    assert_true(growbuf_add(&got, "", 1));
    if (strcmp(got.data, want) != 0) fail_msg("\"%s\": %s, not %s", text, got.data, want);
    growbuf_clear(&got);
    free(ids);
}

static void expect(const tokenizer *t, const char *text, const char *want) {
    expect_ids(t, text, strlen(text), false, want);
}

/* ---- ids that the `tokenizers` package gave (tests/tools/golden_tokens.py) */

static json_t *read_goldens(const char *name) {
    char *path = data_path(name);
    json_t *o;
    assert_int_equal(json_read_file(path, 1 << 24, &o).code, 0);
    free(path);
    return o;
}

/* want: one array of ids for each of the first texts. */
static void compare(const tokenizer *t, const char *name, const json_t *texts, const json_t *want,
                    bool add_special) {
    for (size_t i = 0; i < json_array_size(want); i++) {
        const json_t *text = json_array_get(texts, i), *list = json_array_get(want, i);
        int32_t *ids;
        int64_t n;
        err e = tokenizer_encode(t, json_string_value(text), json_string_length(text), add_special,
                                 &ids, &n);
        if (e.code) fail_msg("%s, text %d: %s", name, (int)i, e.what);
        bool same = n == (int64_t)json_array_size(list);
        for (int64_t k = 0; same && k < n; k++)
            same = ids[k] == json_integer_value(json_array_get(list, (size_t)k));
        if (!same)
            fail_msg("%s, text %d: other ids: \"%s\"", name, (int)i, json_string_value(text));
        free(ids);
    }
}

static void test_vectors(void **state) {
    (void)state;
    json_t *all = read_goldens("goldens/tokens.json"), *one;
    const json_t *texts = json_object_get(all, "texts");
    const char *name;
    int seen = 0;
    json_object_foreach(all, name, one) {
        if (one == texts) continue;
        char *path = data_path(name);
        tokenizer *t = load(path);
        const json_t *plain = json_object_get(one, "plain"),
                     *special = json_object_get(one, "special");
        assert_int_equal(json_array_size(plain), json_array_size(texts));
        assert_true(json_array_size(plain) >= 100 && json_array_size(special) >= 20);
        compare(t, name, texts, plain, false);
        compare(t, name, texts, special, true);
        tokenizer_destroy(&t);
        free(path);
        seen++;
    }
    assert_int_equal(seen, 3);
    json_decref(all);
}

/* The first window of the golden logits: the ids that the reference took of the shipped text. */
static void test_golden_ids(void **state) {
    (void)state;
    char *text_path = data_path("stories.txt"), *path = data_path("stories260K/tokenizer.json"),
         *text;
    json_t *o = read_goldens("goldens/logits.json");
    const json_t *want = json_object_get(json_object_get(o, "stories260K"), "ids");
    tokenizer *t = load(path);
    size_t len;
    int32_t *ids;
    int64_t n;
    assert_int_equal(file_read_all(text_path, 1 << 20, &text, &len).code, 0);
    assert_int_equal(tokenizer_encode(t, text, len, true, &ids, &n).code, 0);
    assert_true(json_array_size(want) == 64 && n > 64);
    for (size_t i = 0; i < 64; i++)
        assert_int_equal(ids[i], json_integer_value(json_array_get(want, i)));
    free(ids);
    free(text);
    json_decref(o);
    tokenizer_destroy(&t);
    free(text_path);
    free(path);
}

/* ---- made by hand: bytes, marks, unknowns */

#define SPM_NORMALIZER                                                                             \
    "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":"    \
    "\"" MARK "\"},"                                                                               \
    "{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"" MARK "\"}]},"
#define SPM_MODEL                                                                                  \
    "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"fuse_unk\":true,\"byte_fallback\":"     \
    "true,"                                                                                        \
    "\"vocab\":{\"<unk>\":0,\"<s>\":1,\"<0xC3>\":2,\"<0xA9>\":3,\"<0x00>\":4,\"" MARK              \
    "\":5,\"a\":6,"                                                                                \
    "\"b\":7,\"ab\":8,\"" MARK "a\":9,\"" MARK "ab\":10,\"bb\":11,\"" MARK MARK "\":12},"          \
    "\"merges\":[\"a b\",\"" MARK " a\",[\"" MARK "\",\"ab\"],[\"b\",\"b\"],\"" MARK " " MARK      \
    "\"]}"

static void test_byte_fallback(void **state) {
    (void)state;
    tokenizer *t = make("{" SPM_NORMALIZER
                        "\"added_tokens\":[{\"id\":1,\"content\":\"<s>\",\"special\":true}],"
                        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{"
                        "\"SpecialToken\":{\"id\":\"<s>\"}},"
                        "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"<s>\":{\"id\":\"<s>"
                        "\",\"ids\":[1]}}}," SPM_MODEL "}");
    expect(t, "", "");
    expect(t, "ab", "10");
    expect(t, " ab", "5 10"); /* the mark joins ab before it joins a mark */
    expect(t, "  ", "12 5");
    expect(t, "ab ab", "10 10");
    expect(t, "ba abb", "5 7 6 10 7");  /* "a b" is the first merge, so bb is never seen */
    expect(t, "\xc3\xa9", "5 2 3");     /* e acute by its two bytes */
    expect(t, "a\xc3\xa8z", "9 0");     /* no <0xA8>: the character and z are one unknown */
    expect(t, "z\xc3\xa9z", "5 2 3 0"); /* the unknown waits for a token of its own kind */
    expect(t, "<s>ab<s>", "1 10 1");
    expect_ids(t, "a\0b", 3, false, "9 4 7");
    expect_ids(t, "ab", 2, true, "1 10");
    expect_ids(t, "", 0, true, "1");
    int32_t ids[TOKENIZER_MAX_AFFIX];
    assert_int_equal(tokenizer_prefix(t, ids), 1);
    assert_int_equal(ids[0], 1);
    assert_int_equal(tokenizer_vocab_size(t), 13);
    assert_int_equal(tokenizer_id(t, MARK "ab"), 10);
    assert_int_equal(tokenizer_id(t, "c"), -1);
    assert_string_equal(tokenizer_token(t, 8), "ab");
    assert_null(tokenizer_token(t, 13));
    tokenizer_destroy(&t);
    assert_null(t);
}

/* GPT-2's alphabet: G with a dot (0x120) is the space, A with tilde and copyright sign are the
 * bytes of e acute. */
static void test_byte_level(void **state) {
    (void)state;
    tokenizer *t = make(
        "{\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true},"
        "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"\xc4\xa0\":2,\"\xc3\x83\":3,"
        "\"\xc2\xa9\":4,"
        "\"\xc4\xa0"
        "a\":5,\"\xc3\x83\xc2\xa9\":6,\"\xc4\x8a\":7,\"ba\":8,\"aa\":9},"
        "\"merges\":[\"\xc4\xa0 a\",\"\xc3\x83 \xc2\xa9\",\"a a\",\"b a\"]}}");
    expect(t, "a b a", "0 2 1 5");
    expect(t, "\xc3\xa9\n", "6 7");
    expect(t, "aaa", "9 0");    /* equal ranks: the left one first */
    expect(t, "b  a", "1 2 5"); /* the last of the spaces goes to the word */
    expect(t, "a\n", "0 7");
    expect(t, "q", ""); /* no token and no unknown token: it vanishes */
    tokenizer_destroy(&t);
}

static void test_added_tokens(void **state) {
    (void)state;
    tokenizer *t = make("{\"added_tokens\":["
                        "{\"id\":10,\"content\":\"ab\",\"single_word\":true,\"normalized\":false},"
                        "{\"id\":11,\"content\":\"<x>\",\"lstrip\":true,\"normalized\":false},"
                        "{\"id\":12,\"content\":\"<y>\",\"rstrip\":true,\"normalized\":false},"
                        "{\"id\":13,\"content\":\"<y>>\",\"normalized\":false},"
                        "{\"id\":14,\"content\":\"BB\",\"normalized\":true}],"
                        "\"normalizer\":{\"type\":\"Lowercase\"},"
                        "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\" "
                        "\":2,\"c\":3,\"<\":4,\"y\":5},\"merges\":[]}}");
    expect(t, "ab c", "10 2 3");
    expect(t, "abc ab", "0 1 3 2 10");
    expect(t,
           "\xc3\xa9"
           "ab",
           "0 1"); /* a letter in front, though not an ASCII one */
    expect(t, "a  <x> a", "0 11 2 0");
    expect(t, "a <y>  a", "0 2 12 0");
    expect(t, "<y>>a", "13 0"); /* the longest at one place */
    expect(t, "<y", "4 5");
    expect(t, "abbc bB", "0 14 3 2 14"); /* found behind the normalizer */
    assert_int_equal(tokenizer_vocab_size(t), 15);
    assert_int_equal(tokenizer_id(t, "BB"), 14);
    tokenizer_destroy(&t);
}

/* ---- words */

typedef struct word_list {
    growbuf text; /* words with a bar behind each */
} word_list;

static bool take_word(void *ctx, const char *word, size_t len) {
    word_list *w = ctx;
    assert_true(len > 0);
    return growbuf_add(&w->text, word, len) && growbuf_add(&w->text, "|", 1);
}

static void expect_words(const char *json, const char *text, const char *want) {
    word_list words = {0};
    pretokenizer *p;
    pretokenize_run *r;
    json_t *v;
    assert_int_equal(json_parse(json, strlen(json), "test", &v).code, 0);
    err e = pretokenizer_create(v, "test", &p);
    if (e.code) fail_msg("%s", e.what);
    assert_int_equal(pretokenize_run_create(p, take_word, &words, &r).code, 0);
    assert_true(pretokenize_text(r, text, strlen(text), true));
    assert_true(growbuf_add(&words.text, "", 1));
    assert_string_equal(words.text.data, want);
    growbuf_clear(&words.text);
    pretokenize_run_destroy(&r);
    pretokenizer_destroy(&p);
    json_decref(v);
}

static void test_words(void **state) {
    (void)state;
    const char *gpt2 = "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}";
    expect_words(gpt2, "Hello  world's 123x, don't!\n\n y",
                 "Hello| | world|'s| 123|x|,| don|'t|!|\n\n| y|");
    expect_words(gpt2,
                 "a\xe1\xa0\x8e"
                 "b\xc2\xa0 c",
                 "a|\xe1\xa0\x8e|b|\xc2\xa0| c|"); /* U+180E is no space, U+00A0 is one */
    const char *llama3 =
        "{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^"
        "\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|"
        "\\\\p{N}{1,3}| "
        "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+\"},"
        "\"behavior\":\"Isolated\",\"invert\":false}";
    expect_words(llama3, "It'S 12345 (ok)...\r\n  go", "It|'S| |123|45| (|ok|)...\r\n| | go|");
    expect_words("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\",\"individual_"
                 "digits\":true},"
                 "{\"type\":\"ByteLevel\",\"add_prefix_space\":false}]}",
                 "ab 12 c", "ab| |1|2| c|");
    expect_words("{\"type\":\"Metaspace\",\"replacement\":\"" MARK
                 "\",\"prepend_scheme\":\"always\"}",
                 "a  b", MARK "a|" MARK "|" MARK "b|");
    expect_words(
        "{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"MergedWithPrevious\"}",
        "a--b-c", "a-|-|b-|c|");
    expect_words(
        "{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"MergedWithNext\"}",
        "a--b-c", "a|-|-b|-c|");
    expect_words("{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"Contiguous\"}",
                 "a--b-c", "a|--|b|-|c|");
    expect_words("{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"Removed\"}",
                 "a--b-c", "a|b|c|");
}

/* ---- an independent slow BPE: strings, the whole list of merges looked through for each step */

enum { N_MERGES = 60, MAX_TEXT = 700, MAX_TOKEN = 40 };

typedef struct slow_bpe {
    char left[N_MERGES][MAX_TOKEN], right[N_MERGES][MAX_TOKEN];
    int n;
} slow_bpe;

static uint64_t draw(uint64_t *at, uint64_t below) {
    return rng_u64(7, RNG_TEST, (*at)++) % below;
}

static bool in_slow(const slow_bpe *s, const char *token) {
    char joined[2 * MAX_TOKEN];
    if (strlen(token) == 1 || strcmp(token, MARK) == 0) return true;
    for (int i = 0; i < s->n; i++) {
        snprintf(joined, sizeof joined, "%s%s", s->left[i], s->right[i]);
        if (strcmp(joined, token) == 0) return true;
    }
    return false;
}

static void any_token(const slow_bpe *s, uint64_t *at, char to[MAX_TOKEN]) {
    static const char *const letters[] = {"a", "b", "c", MARK};
    uint64_t i = draw(at, 4 + (uint64_t)s->n);
    if (i < 4)
        snprintf(to, MAX_TOKEN, "%s", letters[i]);
    else
        snprintf(to, MAX_TOKEN, "%s%.*s", s->left[i - 4], MAX_TOKEN / 2, s->right[i - 4]);
}

/* marks: may a mark stand behind another character in a token? */
static void random_merges(slow_bpe *s, uint64_t *at, bool marks) {
    s->n = 0;
    while (s->n < N_MERGES) {
        char left[MAX_TOKEN], right[MAX_TOKEN];
        any_token(s, at, left);
        any_token(s, at, right);
        bool over = strncmp(right, MARK, 3) == 0 && strcmp(left, MARK) != 0;
        bool twice = false;
        for (int i = 0; i < s->n; i++)
            twice = twice || (strcmp(s->left[i], left) == 0 && strcmp(s->right[i], right) == 0);
        if (strlen(left) + strlen(right) > 14 || twice || (over && !marks)) continue;
        strcpy(s->left[s->n], left);
        strcpy(s->right[s->n++], right);
    }
}

static void slow_json(const slow_bpe *s, growbuf *out) {
    char text[256];
    int id = 4;
    out->len = 0;
    int n =
        snprintf(text, sizeof text,
                 "{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"c\":2,\"" MARK "\":3");
    assert_true(growbuf_add(out, text, (size_t)n));
    for (int i = 0; i < s->n; i++) {
        slow_bpe before = *s;
        char joined[2 * MAX_TOKEN];
        before.n = i;
        snprintf(joined, sizeof joined, "%s%s", s->left[i], s->right[i]);
        if (in_slow(&before, joined)) continue;
        n = snprintf(text, sizeof text, ",\"%s\":%d", joined, id++);
        assert_true(growbuf_add(out, text, (size_t)n));
    }
    for (int i = 0; i < s->n; i++) {
        n = snprintf(text, sizeof text, "%s\"%s %s\"", i ? "," : "},\"merges\":[", s->left[i],
                     s->right[i]);
        assert_true(growbuf_add(out, text, (size_t)n));
    }
    assert_true(growbuf_add(out, "]}}", 4));
}

/* Tokens of the text with spaces between. */
static void slow_encode(const slow_bpe *s, const char *text, char *out, size_t size) {
    static char token[MAX_TEXT][MAX_TOKEN];
    int n = 0;
    for (const char *p = text; *p; p += utf8_width(*p))
        snprintf(token[n++], MAX_TOKEN, "%.*s", (int)utf8_width(*p), p);
    for (int m = 0; m < s->n;) {
        int at = 0;
        while (at + 1 < n &&
               (strcmp(token[at], s->left[m]) != 0 || strcmp(token[at + 1], s->right[m]) != 0))
            at++;
        if (at + 1 >= n) {
            m++;
            continue;
        }
        char joined[2 * MAX_TOKEN];
        snprintf(joined, sizeof joined, "%s%s", token[at], token[at + 1]);
        memcpy(token[at], joined, MAX_TOKEN);
        memmove(token[at + 1], token[at + 2], (size_t)(n - at - 2) * MAX_TOKEN);
        n--;
        m = 0; /* the merge may have made room for one of a lower rank */
    }
    size_t used = 0;
    for (int i = 0; i < n; i++)
        used += (size_t)snprintf(out + used, size - used, "%s%s", i ? " " : "", token[i]);
}

static void compare_with_slow(const slow_bpe *s, const tokenizer *t, uint64_t *at) {
    static const char *const letters[] = {"a", "b", "c", MARK};
    char text[3 * MAX_TEXT + 1] = "", want[8 * MAX_TEXT] = "", got[8 * MAX_TEXT] = "";
    int32_t *ids;
    int64_t n;
    uint64_t len = draw(at, draw(at, 3) ? 40 : MAX_TEXT - 1);
    for (uint64_t i = 0; i < len; i++) strcat(text, letters[draw(at, 4)]);
    slow_encode(s, text, want, sizeof want);
    assert_int_equal(tokenizer_encode(t, text, strlen(text), false, &ids, &n).code, 0);
    char *p = got;
    for (int64_t i = 0; i < n; i++)
        p += sprintf(p, "%s%s", i ? " " : "", tokenizer_token(t, ids[i]));
    assert_string_equal(got, want);
    free(ids);
}

static void test_against_slow_bpe(void **state) {
    (void)state;
    uint64_t at = 0;
    growbuf json = {0};
    slow_bpe s;
    for (int model = 0; model < 12; model++) {
        random_merges(&s, &at, model % 2);
        slow_json(&s, &json);
        tokenizer *t = make(json.data);
        for (int i = 0; i < 40; i++) compare_with_slow(&s, t, &at);
        tokenizer_destroy(&t);
    }
    growbuf_clear(&json);
}

/* ---- what must be refused */

static void refuse(const char *json, const char *named) {
    tokenizer *t = NULL;
    err e = tokenizer_create(json, strlen(json), "tokenizer.json", &t);
    assert_null(t);
    if (e.code != ERR_INPUT) fail_msg("taken or another error: %s", json);
    assert_string_equal(e.where, "tokenizer.json");
    if (!strstr(e.what, named)) fail_msg("\"%s\" does not name %s", e.what, named);
}

#define MODEL "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"ab\":2},\"merges\":[]}"

static void test_refused(void **state) {
    (void)state;
    refuse("", "JSON");
    refuse("[]", "tokenizer.json");
    refuse("{}", "model");
    refuse("{\"model\":{\"type\":\"WordPiece\",\"vocab\":{\"a\":0}}}", "WordPiece");
    refuse("{\"model\":{\"type\":\"Unigram\",\"vocab\":[[\"a\",0.0]]}}", "Unigram");
    refuse("{\"model\":{\"type\":\"BPE\",\"vocab\":{},\"merges\":[]}}", "vocabulary");
    refuse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0}}}", "merges");
    refuse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},\"merges\":[]}}", "id 0");
    refuse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":16777216},\"merges\":[]}}", "16777216");
    refuse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}", "-1");
    refuse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":1.5},\"merges\":[]}}", "integer");
    refuse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1},\"merges\":[\"a b\"]}}",
           "result");
    refuse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"ab\":1},\"merges\":[\"a b\"]}}",
           "part");
    refuse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a\"]}}", "merge 0");
    refuse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a a a\"]}}", "merge 0");
    refuse("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[[\"a\"]]}}", "merge 0");
    refuse("{\"model\":{\"type\":\"BPE\",\"dropout\":0.1,\"vocab\":{\"a\":0},\"merges\":[]}}",
           "dropout");
    refuse("{\"model\":{\"type\":\"BPE\",\"end_of_word_suffix\":\"</"
           "w>\",\"vocab\":{\"a\":0},\"merges\":[]}}",
           "end_of_word_suffix");
    refuse("{" MODEL ",\"normalizer\":{\"type\":\"BertNormalizer\"}}", "BertNormalizer");
    refuse(
        "{" MODEL
        ",\"normalizer\":{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"b\"}}",
        "Replace");
    refuse("{" MODEL ",\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"}}", "BertPreTokenizer");
    refuse("{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(a\"},"
           "\"behavior\":\"Isolated\"}}",
           "pattern");
    refuse("{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a{1,2}+\"},"
           "\"behavior\":\"Isolated\"}}",
           "interval");
    refuse("{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[a[b]]\"},"
           "\"behavior\":\"Isolated\"}}",
           "class");
    refuse("{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"a\\\\\"},"
           "\"behavior\":\"Isolated\"}}",
           "escape");
    refuse("{" MODEL ",\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},"
           "\"behavior\":\"Odd\"}}",
           "Odd");
    refuse("{" MODEL ",\"post_processor\":{\"type\":\"BertProcessing\"}}", "BertProcessing");
    refuse("{" MODEL ",\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{"
           "\"Sequence\":{\"id\":\"A\"}},"
           "{\"SpecialToken\":{\"id\":\"x\"}}],\"special_tokens\":{\"x\":{\"ids\":[9]}}}}",
           "9");
    refuse("{" MODEL ",\"added_tokens\":[{\"id\":7,\"content\":\"a\"}]}", "7");
    refuse("{" MODEL ",\"added_tokens\":[{\"id\":1,\"content\":\"c\"}]}", "id 1");
    refuse("{" MODEL
           ",\"added_tokens\":[{\"id\":7,\"content\":\"c\"},{\"id\":7,\"content\":\"d\"}]}",
           "id 7");
}

static void test_bad_text(void **state) {
    (void)state;
    tokenizer *t = make("{" MODEL "}");
    static const struct {
        const char *text;
        const char *offset;
    } BAD[] = {
        {"abababab\xff", "byte 8"},     {"a\xc3", "byte 1"},
        {"\xc0\x80", "byte 0"},         {"a\xed\xa0\x80", "byte 1"},
        {"\xf4\x90\x80\x80", "byte 0"}, {"\xe0\x80\x80", "byte 0"},
        {"ab\x80", "byte 2"},
    };
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        int32_t *ids;
        int64_t n;
        err e = tokenizer_encode(t, BAD[i].text, strlen(BAD[i].text), false, &ids, &n);
        assert_int_equal(e.code, ERR_INPUT);
        assert_non_null(strstr(e.what, BAD[i].offset));
        assert_null(ids);
    }
    tokenizer_destroy(&t);
}

/* Every file cut short, and a byte changed here and there, ends in an error or in a tokenizer. */
static void test_damaged(void **state) {
    (void)state;
    char *path = data_path("stories260K/tokenizer.json");
    char *json;
    size_t len;
    assert_int_equal(file_read_all(path, 1 << 24, &json, &len).code, 0);
    int taken = 0, refused = 0;
    for (uint64_t i = 0; i < 400; i++) {
        tokenizer *t = NULL;
        char *copy = malloc(len);
        assert_non_null(copy);
        memcpy(copy, json, len);
        size_t at = rng_u64(3, RNG_TEST, 2 * i) % len;
        size_t n = i % 4 ? len : at;
        copy[at] = (char)rng_u64(3, RNG_TEST, 2 * i + 1);
        err e = tokenizer_create(copy, n, "damaged", &t);
        assert_true(e.code == ERR_OK || e.code == ERR_INPUT);
        assert_true((e.code == 0) == (t != NULL));
        if (n < len) assert_int_equal(e.code, ERR_INPUT);
        taken += !e.code;
        refused += e.code != 0;
        tokenizer_destroy(&t);
        free(copy);
    }
    assert_true(taken > 0 && refused > 100);
    free(json);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vectors),          cmocka_unit_test(test_golden_ids),
        cmocka_unit_test(test_byte_fallback),    cmocka_unit_test(test_byte_level),
        cmocka_unit_test(test_added_tokens),     cmocka_unit_test(test_words),
        cmocka_unit_test(test_against_slow_bpe), cmocka_unit_test(test_refused),
        cmocka_unit_test(test_bad_text),         cmocka_unit_test(test_damaged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
