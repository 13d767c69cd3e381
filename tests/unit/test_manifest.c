/* The manifest: a golden written by hand, and every way to damage it that a check is there for. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/rng.h"
#include "shard/manifest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEX_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define HEX_1 "1111111111111111111111111111111111111111111111111111111111111111"

static const char GOLDEN[] = "{\n"
                             " \"format\": \"spinshard-manifest/1\",\n"
                             " \"name\": \"m\",\n"
                             " \"source\": {\n"
                             "  \"architecture\": \"LlamaForCausalLM\",\n"
                             "  \"safetensors\": [\n"
                             "   {\n"
                             "    \"file\": \"model.safetensors\",\n"
                             "    \"bytes\": 5000000000,\n"
                             "    \"header_sha256\": \"" HEX_1 "\"\n"
                             "   }\n"
                             "  ]\n"
                             " },\n"
                             " \"recipe\": {\n"
                             "  \"seed\": 7\n"
                             " },\n"
                             " \"tars\": [\n"
                             "  {\n"
                             "   \"file\": \"m-00001-of-00001.tar\",\n"
                             "   \"bytes\": 3072,\n"
                             "   \"sha256\": \"" HEX_A "\"\n"
                             "  }\n"
                             " ],\n"
                             " \"entries\": [\n"
                             "  {\n"
                             "   \"tar\": \"m-00001-of-00001.tar\",\n"
                             "   \"name\": \"m/config.json\",\n"
                             "   \"offset\": 512,\n"
                             "   \"bytes\": 100,\n"
                             "   \"sha256\": \"" HEX_1 "\"\n"
                             "  },\n"
                             "  {\n"
                             "   \"tar\": \"m-00001-of-00001.tar\",\n"
                             "   \"name\": \"m/model-00001-of-00001.safetensors\",\n"
                             "   \"offset\": 1536,\n"
                             "   \"bytes\": 512,\n"
                             "   \"sha256\": \"" HEX_A "\"\n"
                             "  }\n"
                             " ]\n"
                             "}\n";

static void test_golden(void **state) {
    (void)state;
    manifest *m;
    char *text;
    size_t len;
    assert_int_equal(manifest_parse(GOLDEN, strlen(GOLDEN), "manifest.json", &m).code, 0);
    assert_string_equal(m->name, "m");
    assert_int_equal(m->shards[0].bytes, 5000000000);
    assert_int_equal(m->n_entries, 2);
    assert_int_equal(m->entries[1].offset, 1536);
    assert_string_equal(m->entries[1].sha256, HEX_A);
    assert_int_equal(manifest_find(m, "config.json"), 0);
    assert_int_equal(manifest_find(m, "m/config.json"), -1);
    assert_int_equal(manifest_text(m, &text, &len).code, 0);
    assert_string_equal(text, GOLDEN);
    assert_int_equal(len, strlen(GOLDEN));
    free(text);
    manifest_destroy(&m);
    assert_null(m);
}

/* The golden with the first `from` at or after `after` replaced. Caller frees. */
static char *with(const char *after, const char *from, const char *to) {
    const char *start = strstr(GOLDEN, after), *at = start ? strstr(start, from) : NULL;
    char *text = NULL;
    assert_non_null(at);
    if (asprintf(&text, "%.*s%s%s", (int)(at - GOLDEN), GOLDEN, to, at + strlen(from)) < 0) abort();
    return text;
}

static int parse_code(const char *text) {
    manifest *m;
    err e = manifest_parse(text, strlen(text), "manifest.json", &m);
    assert_true((e.code == 0) == (m != NULL));
    manifest_destroy(&m);
    return e.code;
}

typedef struct damage {
    const char *after, *from, *to;
} damage;

static void test_damage(void **state) {
    (void)state;
    static const damage cases[] = {
        {"", "manifest/1", "manifest/2"},
        {"", "\"format\"", "\"formats\""},
        {"", "\"name\": \"m\"", "\"name\": \"../m\""},
        {"", "\"name\": \"m\"", "\"name\": \"n\""}, /* entries are of another */
        {"", "\"name\": \"m\"", "\"name\": 3"},
        {"source", "\"architecture\": \"LlamaForCausalLM\"", "\"architecture\": null"},
        {"source", "model.safetensors", "a/model.safetensors"},
        {"source", "5000000000", "-1"},
        {"source", "5000000000", "5e9"},
        {"source", "5000000000", "18446744073709551616"},
        {"source", HEX_1, "1111"},
        {"recipe", "{\n  \"seed\": 7\n }", "[]"},
        {"recipe", "\"seed\": 7", "\"seed\": 7, \"seed\": 7"},
        {"tars", "\"file\": \"m-00001-of-00001.tar\"", "\"file\": \"/m-00001-of-00001.tar\""},
        {"tars", "\"file\": \"m-00001-of-00001.tar\"", "\"file\": \"x.tar\""},
        {"tars", "3072", "2000"}, /* the second entry goes beyond */
        {"tars", "\"bytes\": 3072,", ""},
        {"tars", HEX_A, "A" HEX_A},
        {"tars", "aaaaaaaa", "AAAAAAAA"},
        {"tars", "aaaaaaaa", "gggggggg"},
        {"entries", "m-00001-of-00001.tar", "m-00002-of-00002.tar"},
        {"entries", "m/config.json", "/m/config.json"},
        {"entries", "m/config.json", "m/../config.json"},
        {"entries", "m/config.json", ".."},
        {"entries", "m/config.json", "config.json"},
        {"entries", "m/config.json", "m/a/config.json"},
        {"entries", "m/config.json", "n/config.json"},
        {"entries", "m/config.json", "mm/config.json"},
        {"entries", "m/config.json", "m/model-00001-of-00001.safetensors"},
        {"entries", "m/config.json", "m/MODEL-00001-of-00001.safetensors"},
        {"entries", "m/config.json", "m/"},
        {"entries", "m/config.json", "m/a\\u0000b"},
        {"entries", "m/config.json", "m/a\\nb"},
        {"entries", "\"offset\": 512", "\"offset\": 1500"}, /* overlaps the next */
        {"entries", "\"bytes\": 100", "\"bytes\": 1025"},
        {"entries", "\"offset\": 512", "\"offset\": -512"},
        {"entries", "\"offset\": 512", "\"offset\": 9223372036854775807"},
        {"entries", "\"bytes\": 100", "\"bytes\": 9223372036854775807"},
        {"entries", "\"bytes\": 100", "\"bytes\": \"100\""},
        {"entries", "\"offset\": 512", "\"Offset\": 512"},
        {"entries", "\"offset\": 512", "\"more\": 1, \"offset\": 512"},
        {"entries", "}\n ]\n}\n", "}\n ]\n}\n{}"},
        {"entries", "}\n ]\n}\n", "}\n ]\n"},
    };
    assert_int_equal(parse_code(GOLDEN), 0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *text = with(cases[i].after, cases[i].from, cases[i].to);
        int code = parse_code(text);
        if (code != ERR_VERIFY)
            fail_msg("case %zu (%s to %s): code %d", i, cases[i].from, cases[i].to, code);
        free(text);
    }
    assert_int_equal(parse_code("[]"), ERR_VERIFY);
    assert_int_equal(parse_code(""), ERR_VERIFY);
    assert_int_equal(parse_code("null"), ERR_VERIFY);
}

/* Adjoining ranges and an empty file are fine. */
static void test_limits(void **state) {
    (void)state;
    char *text = with("entries", "\"bytes\": 100", "\"bytes\": 1024");
    assert_int_equal(parse_code(text), 0);
    free(text);
    text = with("entries", "\"bytes\": 100", "\"bytes\": 0");
    assert_int_equal(parse_code(text), 0);
    free(text);
    text = with("tars", "3072", "2048");
    assert_int_equal(parse_code(text), 0);
    free(text);
}

/* Random bytes changed: refused, or read as something that holds its own promises. */
static void test_random_damage(void **state) {
    (void)state;
    size_t len = strlen(GOLDEN);
    for (uint64_t round = 0; round < 5000; round++) {
        char *text = strdup(GOLDEN);
        uint64_t r = rng_u64(3, RNG_TEST, round);
        text[r % len] = (char)(0x20 + (r >> 40) % 0x5f);
        manifest *m;
        err e = manifest_parse(text, len, "manifest.json", &m);
        assert_true(e.code == 0 || e.code == ERR_VERIFY);
        for (int64_t i = 0; m && i < m->n_entries; i++) {
            const manifest_entry *x = &m->entries[i];
            assert_true(x->tar < m->n_tars && x->offset + x->bytes <= m->tars[x->tar].bytes);
            assert_null(strstr(x->name, "/../"));
        }
        manifest_destroy(&m);
        free(text);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_golden),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_random_damage),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
