/* Which linears a quantization_config means: lists as other tools write them. */
#include "shard/loader_targets.h"
#include "tests/unit/assert_ok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static err check(const char *targets, const char *ignore) {
    json_t *t = json_loads(targets, 0, NULL), *i = json_loads(ignore, JSON_DECODE_ANY, NULL);
    assert_non_null(t);
    assert_non_null(i);
    const json_t *one = t;
    err e = loader_targets_owners(&one, 1, i, 3, "config.json", NULL);
    json_decref(t);
    json_decref(i);
    return e;
}

static void all_seven(void **state) {
    (void)state;
    static const char *const good[][2] = {
        {"[\"Linear\"]", "[\"lm_head\"]"},
        {"[\"Linear\"]", "[\"model.embed_tokens\", \"re:.*lm_head\", \"re:visual.*\"]"},
        {"[\"re:.*_proj$\"]", "null"},
        {"[\"re:model\\\\.layers\\\\.[0-9]+\\\\.(mlp|self_attn)\\\\..*\"]", "[]"},
        {"[\"re:.*(q|k|v|o)_proj\", \"re:.*mlp.*\"]", "[\"lm_head\"]"},
    };
    for (size_t k = 0; k < sizeof good / sizeof *good; k++)
        assert_ok(check(good[k][0], good[k][1]));
}

static void some_only(void **state) {
    (void)state;
    static const char *const bad[][3] = {
        {"[\"Linear\"]", "[]", "quantize lm_head"},
        {"[\"Linear\"]", "null", "quantize lm_head"},
        {"[\"Linear\"]", "[\"lm_head\", \"model.layers.2.mlp.down_proj\"]",
         "leave model.layers.2.mlp.down_proj in 16 bits"},
        {"[\"Linear\"]", "[\"lm_head\", \"re:.*layers\\\\.0\\\\.\"]",
         "leave model.layers.0.self_attn.q_proj"},
        {"[\"re:.*self_attn.*\"]", "[]", "leave model.layers.0.mlp.gate_proj"},
        {"[\"re:layers.*\"]", "[]", "leave model.layers.0.self_attn.q_proj"}, /* from the start */
        {"[\"re:.*(?!x)\"]", "[]", "no expression"},
        {"[\"re:.*\\\\d\"]", "[]", "no expression"},
        {"[\"re:(\"]", "[]", "no expression"},
        {"[3]", "[]", "names of modules"},
        {"[\"Linear\"]", "\"lm_head\"", "must be a list"},
    };
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        err e = check(bad[k][0], bad[k][1]);
        assert_int_equal(e.code, ERR_VERIFY);
        if (!strstr(e.what, bad[k][2])) fail_msg("%s", e.what);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(all_seven), cmocka_unit_test(some_only)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
