/* The command line and the recipe: precedence, bounds, nearest names. */
#include "base/yaml.h"
#include "jobs/setup/options.h"
#include "jobs/setup/recipe.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static err parse(command cmd, const char *const *words, options *o) {
    int n = 0;
    while (words[n]) n++;
    return options_parse(cmd, n, (char **)(uintptr_t)words, o);
}

static void flags_take_values_in_both_forms(void **state) {
    (void)state;
    options o;
    const char *words[] = {"--model", "M", "--out=O", "--set", "seed=3", "--set=weights.bits=8",
                           "--force", NULL};
    assert_int_equal(parse(CMD_QUANTIZE, words, &o).code, 0);
    assert_string_equal(options_str(&o, OPT_MODEL), "M");
    assert_string_equal(options_str(&o, OPT_OUT), "O");
    assert_int_equal(o.n_values[OPT_SET], 2);
    assert_string_equal(o.values[OPT_SET][1], "weights.bits=8");
    assert_true(options_has(&o, OPT_FORCE));
}

static void wrong_flags_are_named(void **state) {
    (void)state;
    options o;
    static const struct {
        command cmd;
        const char *words[4];
        const char *what, *hint;
    } cases[] = {
        {CMD_QUANTIZE, {"--modle", "M", NULL}, "unknown flag of quantize", "--model"},
        {CMD_QUANTIZE, {"--window", "5", NULL}, "unknown flag of quantize", "--help"},
        {CMD_QUANTIZE, {"--model", NULL}, "needs a value: DIR", ""},
        {CMD_QUANTIZE, {"--force=yes", NULL}, "--force takes no value", ""},
        {CMD_QUANTIZE, {"--out=a", "--out=b", NULL}, "given more than once", ""},
        {CMD_VERIFY, {NULL}, "say what to look at: spinshard verify OUT", ""},
        {CMD_VERIFY, {"a", "b", NULL}, "unexpected word", ""},
        {CMD_EVAL, {"--txet", "f", NULL}, "unknown flag of eval", "--text"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        err e = parse(cases[i].cmd, cases[i].words, &o);
        assert_int_equal(e.code, ERR_USAGE);
        if (!strstr(e.what, cases[i].what) || !strstr(e.hint, cases[i].hint))
            fail_msg("row %d: %s: %s; try: %s", (int)i, e.where, e.what, e.hint);
    }
    int64_t n = 0;
    const char *words[] = {"--window", "12x", NULL};
    assert_int_equal(parse(CMD_EVAL, words, &o).code, 0);
    err e = options_int(&o, OPT_WINDOW, 2, 100, &n);
    assert_int_equal(e.code, ERR_USAGE);
    assert_string_equal(e.what, "\"12x\" is not a whole number in 2..100");
}

static void later_sources_win(void **state) {
    (void)state;
    options o;
    recipe *r;
    const char *words[] = {
        "--set", "weights.bits=6", "--set", "rotate.online=[r3, r4]", "--seed", "9", NULL};
    assert_int_equal(parse(CMD_QUANTIZE, words, &o).code, 0);
    const char *file = "seed: 4\nweights: {bits: 5, group: 64}\n";
    assert_int_equal(recipe_create(&o, file, "file", NULL, &r).code, 0);
    assert_int_equal(recipe_int(r, "seed"), 9);           /* flag over file */
    assert_int_equal(recipe_int(r, "weights.bits"), 6);   /* --set over file */
    assert_int_equal(recipe_int(r, "weights.group"), 64); /* file over default */
    assert_true(recipe_bool(r, "weights.symmetric"));     /* default */
    assert_true(recipe_list_has(r, "rotate.online", "r4"));
    assert_int_equal(recipe_bytes(r, "archive.shard_bytes"), 4ull << 30);
    /* What was resolved, read back as a recipe, resolves to itself. */
    char *text;
    size_t len;
    recipe *again;
    assert_int_equal(yaml_text(recipe_tree(r), &text, &len).code, 0);
    memset(&o, 0, sizeof o);
    assert_int_equal(recipe_create(&o, text, "again", NULL, &again).code, 0);
    assert_true(
        json_equal((json_t *)(uintptr_t)recipe_tree(r), (json_t *)(uintptr_t)recipe_tree(again)));
    free(text);
    recipe_destroy(&r);
    recipe_destroy(&again);
}

static void wrong_keys_and_values_are_named(void **state) {
    (void)state;
    static const struct {
        const char *set, *what, *hint;
    } cases[] = {
        {"weights.bit=4", "unknown recipe key \"weights.bit\"", "weights.bits"},
        {"weights.bits=9", "weights.bits is 9; it must be a whole number in 2..8", ""},
        {"weights.bits=four", "weights.bits is \"four\"; it must be a whole number in 2..8", ""},
        {"rotate.r2=heads", "rotate.r2 is \"heads\"; it must be none|layer|head", ""},
        {"rotate.online=[r5]", "is [\"r5\"]; it must be a list of r3|r4, each once", ""},
        {"rotate.online=[r3, r3]", "[\"r3\", \"r3\"]; it must be a list of r3|r4, each once", ""},
        {"rotate.r1=yes", "rotate.r1 is \"yes\"; it must be true or false", ""},
        {"archive.shard_bytes=3Q", "shard_bytes is \"3Q\"; it must be a size as 4G", ""},
        {"kv.clip=2", "kv.clip is 2; it must be a number in 0.01..1", ""},
        {"seed", "\"seed\" is not KEY=VALUE", ""},
        {"weights=4", "weights", "weights."},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        options o;
        recipe *r = NULL;
        const char *words[] = {"--set", cases[i].set, NULL};
        assert_int_equal(parse(CMD_QUANTIZE, words, &o).code, 0);
        err e = recipe_create(&o, NULL, NULL, NULL, &r);
        assert_int_equal(e.code, ERR_USAGE);
        assert_null(r);
        if (!strstr(e.what, cases[i].what) || !strstr(e.hint, cases[i].hint))
            fail_msg("%s: %s; try: %s", cases[i].set, e.what, e.hint);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flags_take_values_in_both_forms),
        cmocka_unit_test(wrong_flags_are_named),
        cmocka_unit_test(later_sources_win),
        cmocka_unit_test(wrong_keys_and_values_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
