/* The reader of safetensors headers against the table of classes in tests/data/goldens, hand-made
 * texts and damaged copies; the writer against bytes written by hand. */
#include "base/file.h"
#include "base/sha256.h"
#include "io/safetensors.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static err parse_file(const char *path) {
    st_header *h = NULL;
    int fd;
    uint64_t bytes;
    err e = file_open_read(path, &fd, &bytes);
    if (!e.code) e = st_header_read(fd, path, 0, bytes, &h);
    if (fd >= 0) close(fd);
    assert_int_equal(h == NULL, e.code != 0);
    st_header_destroy(&h);
    return e;
}

/* Where the table leaves the choice to the reader, ours is to refuse (io/safetensors.h says why).
 */
static void test_expected_classes(void **state) {
    (void)state;
    const char *data = getenv("SPINSHARD_TEST_DATA");
    char *dir = file_join(data ? data : "tests/data", "goldens/safetensors");
    char *table = file_join(dir, "EXPECTED.tsv"), *text, name[128], expected[32];
    size_t len;
    assert_int_equal(file_read_all(table, 1 << 20, &text, &len).code, 0);
    int seen = 0;
    for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
        assert_int_equal(sscanf(line, "%127s %*s %31s", name, expected), 2);
        char *path = file_join(dir, name);
        if (strcmp(name, "file")) { /* the line of column names */
            err e = parse_file(path);
            if ((e.code == 0) != !strcmp(expected, "accept") || (e.code && e.code != ERR_INPUT))
                fail_msg("%s: expected %s, got %d %s", name, expected, e.code, e.what);
            seen++;
        }
        free(path);
    }
    assert_true(seen >= 40);
    free(text);
    free(table);
    free(dir);
}

/* A header text, the size of the data section, and a piece of the message (NULL: accepted). */
typedef struct text_case {
    const char *json;
    uint64_t data_bytes;
    const char *message;
} text_case;

#define F32(fields) "{\"a\":{\"dtype\":\"F32\"," fields "}}"

static const text_case TEXTS[] = {
    {"{}", 0, NULL},
    {" \t\r\n{ } \n", 0, NULL},
    {F32("\"shape\":[],\"data_offsets\":[0,4]"), 4, NULL},
    {F32("\"shape\":[1,1,1,1,1,1,1,2],\"data_offsets\":[0,8]"), 8, NULL},
    {F32("\"shape\":[0,5],\"data_offsets\":[0,0]"), 0, NULL},
    {F32("\"shape\":[1152921504606846975,0],\"data_offsets\":[0,0]"), 0, NULL},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[2,2]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]}}",
     2, NULL},
    {"{\"a\":{\"dtype\":\"F4\",\"shape\":[2,3],\"data_offsets\":[0,3]}}", 3, NULL},
    {"{\"a\":{\"dtype\":\"F6_E2M3\",\"shape\":[4],\"data_offsets\":[0,3]}}", 3, NULL},
    {"{\"a\":{\"dtype\":\"C64\",\"shape\":[1],\"data_offsets\":[0,8]}}", 8, NULL},
    {"{\"a\":{\"dtype\":\"\\u0046\\u0033\\u0032\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, NULL},
    {"{\"__metadata__\":{}}", 0, NULL},
    {"{\"__metadata__\":{\"\":\"\",\"\\ud83d\\ude00\":\"\xf0\x9f\x98\x80\"}}", 0, NULL},
    {"", 0, "not a JSON object"},
    {"[]", 0, "not a JSON object"},
    {"null", 0, "not a JSON object"},
    {"\xef\xbb\xbf{}", 0, "not a JSON object"},
    {"{", 0, "the text ends"},
    {"{}{}", 0, "bytes after"},
    {"{},", 0, "bytes after"},
    {"{,}", 0, "is due"},
    {"{\"a\"}", 0, "is due"},
    {"{a:1}", 0, "is due"},
    {"{'a':1}", 0, "is due"},
    {"{\"a", 0, "without an end"},
    {"{\"a\\", 0, "without an end"},
    {"{\"a\\u00", 0, "cut short"},
    {"{\"a\\u00g0\":1}", 0, "hexadecimal"},
    {"{\"a\\x\":1}", 0, "escape"},
    {"{\"a\\u0000\":1}", 0, "NUL"},
    {"{\"a\nb\":1}", 0, "control"},
    {"{\"\\ud800\":1}", 0, "surrogate"},
    {"{\"\\udc00\":1}", 0, "surrogate"},
    {"{\"\\ud800\\u0041\":1}", 0, "surrogate"},
    {"{\"\\ud83dx\":1}", 0, "surrogate"},
    {"{\"\xff\":1}", 0, "UTF-8"},
    {"{\"\x80\":1}", 0, "UTF-8"},
    {"{\"\xc0\xaf\":1}", 0, "UTF-8"},
    {"{\"\xe0\x80\xaf\":1}", 0, "UTF-8"},
    {"{\"\xed\xa0\x80\":1}", 0, "UTF-8"},
    {"{\"\xf4\x90\x80\x80\":1}", 0, "UTF-8"},
    {"{\"\xe2\x82", 0, "UTF-8"},
    {"{\"a\":null}", 0, "an object is due"},
    {"{\"a\":[\"F32\",[1],[0,4]]}", 4, "an object is due"},
    {"{\"a\":{}}", 0, "dtype is missing"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[]}}", 0, "data_offsets is missing"},
    {"{\"a\":{\"dtype\":null,\"shape\":[],\"data_offsets\":[0,4]}}", 4, "dtype must be a text"},
    {"{\"a\":{\"dtype\":\"f32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, "unknown dtype"},
    {"{\"a\":{\"dtype\":\"\",\"shape\":[],\"data_offsets\":[0,4]}}", 4, "unknown dtype"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[0,4]}}", 4,
     "twice"},
    {F32("\"shape\":[],\"shape\":[],\"data_offsets\":[0,4]"), 4, "twice"},
    {F32("\"shape\":[],\"data_offsets\":[0,4],\"data_offsets\":[0,4]"), 4, "twice"},
    {F32("\"shape\":[],\"data_offsets\":[0,4],\"strides\":[]"), 4, "unknown field"},
    {F32("\"shape\":{},\"data_offsets\":[0,4]"), 4, "shape must be a list"},
    {F32("\"shape\":null,\"data_offsets\":[0,4]"), 4, "shape must be a list"},
    {F32("\"shape\":1,\"data_offsets\":[0,4]"), 4, "shape must be a list"},
    {F32("\"shape\":[[1]],\"data_offsets\":[0,4]"), 4, "unsigned"},
    {F32("\"shape\":[true],\"data_offsets\":[0,4]"), 4, "unsigned"},
    {F32("\"shape\":[-0],\"data_offsets\":[0,4]"), 4, "unsigned"},
    {F32("\"shape\":[-1],\"data_offsets\":[0,4]"), 4, "unsigned"},
    {F32("\"shape\":[+1],\"data_offsets\":[0,4]"), 4, "unsigned"},
    {F32("\"shape\":[1.0],\"data_offsets\":[0,4]"), 4, "unsigned"},
    {F32("\"shape\":[1e0],\"data_offsets\":[0,4]"), 4, "unsigned"},
    {F32("\"shape\":[1E0],\"data_offsets\":[0,4]"), 4, "unsigned"},
    {F32("\"shape\":[NaN],\"data_offsets\":[0,4]"), 4, "unsigned"},
    {F32("\"shape\":[0x1],\"data_offsets\":[0,4]"), 4, "is due"},
    {F32("\"shape\":[1 1],\"data_offsets\":[0,4]"), 4, "is due"},
    {F32("\"shape\":[1,],\"data_offsets\":[0,4]"), 4, "unsigned"},
    {F32("\"shape\":[,1],\"data_offsets\":[0,4]"), 4, "unsigned"},
    {F32("\"shape\":[00],\"data_offsets\":[0,4]"), 4, "begins with 0"},
    {F32("\"shape\":[18446744073709551615],\"data_offsets\":[0,4]"), 4, "too large"},
    {F32("\"shape\":[18446744073709551616],\"data_offsets\":[0,4]"), 4, "64 bits"},
    {F32("\"shape\":[99999999999999999999],\"data_offsets\":[0,4]"), 4, "64 bits"},
    {F32("\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,4]"), 4, "more than 8"},
    {F32("\"shape\":[4611686018427387905],\"data_offsets\":[0,4]"), 4, "does not fit"},
    {F32("\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]"), 0, "does not fit"},
    {F32("\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]"), 0, "does not fit"},
    {F32("\"shape\":[1],\"data_offsets\":[]"), 4, "two numbers"},
    {F32("\"shape\":[1],\"data_offsets\":[0,4,4]"), 4, "more than 2"},
    {F32("\"shape\":[1],\"data_offsets\":[4,0]"), 4, "ends before"},
    {F32("\"shape\":[1],\"data_offsets\":[18446744073709551612,0]"), 4, "ends before"},
    {F32("\"shape\":[1],\"data_offsets\":[1,5]"), 5, "begins at byte 1"},
    {F32("\"shape\":[1],\"data_offsets\":[0,4]"), 3, "truncated"},
    {F32("\"shape\":[1],\"data_offsets\":[0,4]"), 5, "the file has 5"},
    {F32("\"shape\":[1],\"data_offsets\":[0,5]"), 5, "need 4 bytes"},
    {"{}", 1, "the file has 1"},
    {"{\"a\":{\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,2]}}", 2, "whole bytes"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[0,2]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[1,3]}}",
     3, "begins at byte 1"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
     "\"\\u0061\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
     2, "occurs twice"},
    {"{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
     "\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[9,9]}}",
     0, "begins at byte 9"},
    {"{\"__metadata__\":null}", 0, "must be an object"},
    {"{\"__metadata__\":[]}", 0, "must be an object"},
    {"{\"__metadata__\":{\"a\":null}}", 0, "texts only"},
    {"{\"__metadata__\":{\"a\":{}}}", 0, "texts only"},
    {"{\"__metadata__\":{\"a\":\"b\",\"a\":\"b\"}}", 0, "twice"},
    {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice"},
};

static void test_texts(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof TEXTS / sizeof TEXTS[0]; i++) {
        const text_case *t = &TEXTS[i];
        /* A copy of the exact size, so that a sanitizer sees any read past the end. */
        size_t len = strlen(t->json);
        char *json = malloc(len ? len : 1);
        memcpy(json, t->json, len);
        st_header *h;
        err e = st_header_parse(json, len, t->data_bytes, "x", &h);
        bool as_expected = t->message ? e.code == ERR_INPUT && strstr(e.what, t->message) : !e.code;
        if (!as_expected)
            fail_msg("%s: expected %s, got %d %s", t->json, t->message ? t->message : "success",
                     e.code, e.what);
        st_header_destroy(&h);
        free(json);
    }
    /* Lengths that strlen cannot give. */
    st_header *h;
    assert_int_equal(st_header_parse("{}\0", 3, 0, "x", &h).code, ERR_INPUT);
    assert_int_equal(st_header_parse("{\"\0\":1}", 7, 0, "x", &h).code, ERR_INPUT);
}

static void test_depth_bomb(void **state) {
    (void)state;
    size_t n = 20 << 20;
    char *text = malloc(n);
    st_header *h;
    memset(text, '[', n);
    assert_int_equal(st_header_parse(text, n, 0, "x", &h).code, ERR_INPUT);
    memset(text, '{', n);
    assert_int_equal(st_header_parse(text, n, 0, "x", &h).code, ERR_INPUT);
    static const char OPEN[] = "{\"a\":{\"dtype\":\"F32\",\"shape\":";
    memset(text, '[', n);
    memcpy(text, OPEN, sizeof OPEN - 1);
    assert_int_equal(st_header_parse(text, n, 0, "x", &h).code, ERR_INPUT);
    free(text);
}

typedef struct file_case {
    const char *bytes;
    size_t n;
    const char *message;
} file_case;

static void test_whole_files(void **state) {
    (void)state;
    static const file_case FILES[] = {
        {"", 0, "0 bytes"},
        {"\x02", 1, "1 bytes"},
        {"\2\0\0\0\0\0\0\0{", 9, "truncated"},
        {"\2\0\0\0\0\0\0\0", 8, "truncated"},
        {"\1\xe1\xf5\5\0\0\0\0{}", 10, "100000001"},
        {"\0\0\0\0\0\0\0\x80{}", 10, "9223372036854775808"},
        {"\xff\xff\xff\xff\xff\xff\xff\xff{}", 10, "18446744073709551615"},
        {"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 9\n", 66, "LFS"},
        {"<!DOCTYPE html><html>404</html>", 31, "web page"},
        {"PK\3\4\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0", 18, "pickled"},
        {"GGUF\3\0\0\0\1\0\0\0\0\0\0\0", 16, "GGUF"},
    };
    char path[] = "/tmp/spinshard-st-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    for (size_t i = 0; i < sizeof FILES / sizeof FILES[0]; i++) {
        assert_int_equal(ftruncate(fd, 0), 0);
        assert_int_equal(pwrite(fd, FILES[i].bytes, FILES[i].n, 0), FILES[i].n);
        err e = parse_file(path);
        if (e.code != ERR_INPUT || !strstr(e.what, FILES[i].message))
            fail_msg("file %zu: expected %s, got %d %s", i, FILES[i].message, e.code, e.what);
    }
    close(fd);
    unlink(path);
}

static const char TWO[] = "{\"__metadata__\":{\"format\":\"pt\",\"x\":\"y\"},"
                          "\"b\":{\"dtype\":\"BF16\",\"shape\":[3,2],\"data_offsets\":[4,16]},"
                          "\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}";

static void test_questions(void **state) {
    (void)state;
    st_header *h;
    const char *key, *value;
    assert_int_equal(st_header_parse(TWO, sizeof TWO - 1, 16, "x", &h).code, 0);
    assert_int_equal(st_header_count(h), 2);
    assert_string_equal(st_header_at(h, 0)->name, "a");
    const st_tensor *b = st_header_find(h, "b");
    assert_ptr_equal(b, st_header_at(h, 1));
    assert_int_equal(b->dtype, ST_BF16);
    assert_int_equal(b->n_dims, 2);
    assert_int_equal(b->shape[0], 3);
    assert_int_equal(b->shape[1], 2);
    assert_int_equal(b->begin, 4);
    assert_int_equal(b->end, 16);
    assert_null(st_header_find(h, "c"));
    assert_null(st_header_find(h, "__metadata__"));
    assert_string_equal(st_header_metadata(h, "x"), "y");
    assert_null(st_header_metadata(h, "y"));
    assert_int_equal(st_header_metadata_count(h), 2);
    st_header_metadata_at(h, 0, &key, &value);
    assert_string_equal(key, "format");
    assert_string_equal(value, "pt");
    assert_int_equal(st_header_data_offset(h), 8 + sizeof TWO - 1);
    /* sha256 of the length in 8 little-endian bytes and the text, taken with another program. */
    assert_string_equal(st_header_sha256(h),
                        "2d7ece387d7511e5c22c29475ac6ca9a1f0f2cc2d43b168d82dcc8a7bfecb061");
    st_header_destroy(&h);
    assert_null(h);
}

/* Change each byte to each of some others: what is still accepted must tile the data exactly. */
static void test_damaged_copies(void **state) {
    (void)state;
    static const char OTHERS[] = "\0\"\\{}[],:019-. e\x80\xff";
    size_t n = sizeof TWO - 1;
    char *copy = malloc(n);
    int accepted = 0, refused = 0;
    for (size_t at = 0; at < n; at++) {
        for (size_t k = 0; k < sizeof OTHERS - 1; k++) {
            memcpy(copy, TWO, n);
            copy[at] = OTHERS[k];
            st_header *h;
            err e = st_header_parse(copy, n, 16, "x", &h);
            refused += e.code != 0;
            if (e.code) continue;
            accepted++;
            uint64_t sum = 0;
            for (int64_t i = 0; i < st_header_count(h); i++)
                sum += st_header_at(h, i)->end - st_header_at(h, i)->begin;
            assert_int_equal(sum, 16);
            st_header_destroy(&h);
        }
    }
    for (size_t len = 0; len < n; len++) { /* cut short */
        st_header *h;
        memcpy(copy, TWO, len);
        assert_int_equal(st_header_parse(copy, len, 16, "x", &h).code, ERR_INPUT);
    }
    free(copy);
    assert_true(accepted > 0 && refused > 10 * accepted);
}

static void test_many_tensors(void **state) {
    (void)state;
    enum { N = 100000 };
    char *text = malloc((size_t)N * 80), *p = text, name[32];
    *p++ = '{';
    for (int i = 0; i < N; i++) /* 7919 is coprime to N: names in no order */
        p += sprintf(p, "%s\"t%d\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%d,%d]}",
                     i ? "," : "", (int)((int64_t)i * 7919 % N), i, i + 1);
    *p++ = '}';
    st_header *h;
    assert_int_equal(st_header_parse(text, (size_t)(p - text), N, "x", &h).code, 0);
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "t%d", (int)((int64_t)i * 7919 % N));
        const st_tensor *t = st_header_find(h, name);
        assert_non_null(t);
        assert_int_equal(t->begin, i);
    }
    st_header_destroy(&h);
    free(text);
}

static void test_write_header(void **state) {
    (void)state;
    static const st_tensor T[] = {
        {"w\"\\\n\xc3\xa9", ST_F32, 2, {1, 2}, 0, 8},
        {"s", ST_I64, 0, {0}, 8, 16},
    };
    static const char *const META[] = {"format", "pt", "k", "v", NULL};
    /* Written by hand: 8 length bytes, the text, spaces up to a multiple of 8. */
    static const char WANT[] =
        "\xa0\0\0\0\0\0\0\0"
        "{\"__metadata__\":{\"format\":\"pt\",\"k\":\"v\"},"
        "\"w\\\"\\\\\\u000a\xc3\xa9\":{\"dtype\":\"F32\",\"shape\":[1,2],\"data_offsets\":[0,8]},"
        "\"s\":{\"dtype\":\"I64\",\"shape\":[],\"data_offsets\":[8,16]}}";
    char *text;
    size_t len;
    assert_int_equal(st_header_write(T, 2, META, &text, &len).code, 0);
    assert_int_equal(len % 8, 0);
    assert_int_equal(len, 8 + 0xa0);
    assert_memory_equal(text, WANT, sizeof WANT - 1);
    for (size_t i = sizeof WANT - 1; i < len; i++) assert_int_equal(text[i], ' ');
    assert_true(len - (sizeof WANT - 1) < 8);
    free(text);
    assert_int_equal(st_header_write(T, 0, NULL, &text, &len).code, 0);
    assert_int_equal(len, 16);
    assert_memory_equal(text, "\x08\0\0\0\0\0\0\0{}      ", 16);
    free(text);
}

static void test_write_refuses(void **state) {
    (void)state;
    char *text;
    size_t len;
    static const st_tensor HOLE[] = {{"a", ST_U8, 1, {1}, 0, 1}, {"b", ST_U8, 1, {1}, 2, 3}};
    static const st_tensor TWICE[] = {{"a", ST_U8, 1, {1}, 0, 1}, {"a", ST_U8, 1, {1}, 1, 2}};
    static const st_tensor NEGATIVE[] = {{"a", ST_U8, 1, {-1}, 0, 1}};
    static const st_tensor LATIN1[] = {{"\xe9", ST_U8, 1, {1}, 0, 1}};
    assert_int_equal(st_header_write(HOLE, 2, NULL, &text, &len).code, ERR_BUG);
    assert_int_equal(st_header_write(TWICE, 2, NULL, &text, &len).code, ERR_BUG);
    assert_int_equal(st_header_write(NEGATIVE, 1, NULL, &text, &len).code, ERR_BUG);
    assert_int_equal(st_header_write(LATIN1, 1, NULL, &text, &len).code, ERR_BUG);
    assert_null(text);
}

enum { WIDE = 1 << 14, HIGH = 9 }; /* two rows are a piece, and one is left */

static void get_entries(void *arg, int64_t i, int64_t row, int64_t rows, void *to) {
    memcpy(to, (const float *)arg + row * WIDE, (size_t)(rows * WIDE) * sizeof(float));
    assert_int_equal(i, 1);
}

/* A stack of matrices that comes in rows is written as one that is at hand. */
static void test_write_rows(void **state) {
    (void)state;
    char dir[] = "/tmp/spinshard-st-XXXXXX", whole[SHA256_HEX], rows[SHA256_HEX];
    assert_non_null(mkdtemp(dir));
    char *path = file_join(dir, "x.safetensors");
    static const double FIRST[] = {1, 2};
    static const st_tensor T[] = {{"a", ST_F64, 1, {2}, 0, 0},
                                  {"m", ST_F32, 3, {3, HIGH / 3, WIDE}, 0, 0}};
    float *m = malloc(sizeof *m * WIDE * HIGH);
    assert_non_null(m);
    for (int i = 0; i < WIDE * HIGH; i++) m[i] = (float)i;
    const void *data[] = {FIRST, m}, *without[] = {FIRST, NULL};
    const st_rows from = {.arg = m, .get = get_entries};
    assert_int_equal(st_file_write(path, T, 2, data, NULL, NULL, whole).code, 0);
    assert_int_equal(st_file_write(path, T, 2, without, &from, NULL, rows).code, 0);
    assert_string_equal(rows, whole);
    assert_int_equal(parse_file(path).code, 0);
    assert_int_equal(file_remove_tree(dir).code, 0);
    free(m);
    free(path);
}

static void test_write_file(void **state) {
    (void)state;
    char dir[] = "/tmp/spinshard-st-XXXXXX", hex[SHA256_HEX], want[SHA256_HEX], *text;
    assert_non_null(mkdtemp(dir));
    char *path = file_join(dir, "x.safetensors");
    static const double R[] = {1, -2, 0.5};
    static const unsigned char B[] = {7, 9};
    static const st_tensor T[] = {{"R1", ST_F64, 1, {3}, 0, 0}, {"b", ST_U8, 2, {1, 2}, 0, 0}};
    const void *data[] = {R, B};
    size_t len;
    assert_int_equal(st_file_write(path, T, 2, data, NULL, NULL, hex).code, 0);
    assert_int_equal(file_read_all(path, 1 << 20, &text, &len).code, 0);
    sha256_of(text, len, want);
    assert_string_equal(hex, want);
    size_t at = 8 + (unsigned char)text[0];
    assert_int_equal(at % 8, 0);
    assert_int_equal(len, at + sizeof R + sizeof B);
    assert_memory_equal(text + at, R, sizeof R);
    assert_memory_equal(text + at + sizeof R, B, sizeof B);
    assert_int_equal(parse_file(path).code, 0);
    free(text);
    /* An impossible folder leaves nothing behind and says so. */
    char *nowhere = file_join(dir, "missing/x.safetensors");
    assert_int_equal(st_file_write(nowhere, T, 2, data, NULL, NULL, NULL).code, ERR_INPUT);
    assert_int_equal(file_remove_tree(dir).code, 0);
    free(nowhere);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_expected_classes), cmocka_unit_test(test_texts),
        cmocka_unit_test(test_depth_bomb),       cmocka_unit_test(test_whole_files),
        cmocka_unit_test(test_questions),        cmocka_unit_test(test_damaged_copies),
        cmocka_unit_test(test_many_tensors),     cmocka_unit_test(test_write_header),
        cmocka_unit_test(test_write_refuses),    cmocka_unit_test(test_write_rows),
        cmocka_unit_test(test_write_file),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
