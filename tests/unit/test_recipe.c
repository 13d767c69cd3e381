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
    assert_int_equal(recipe_settings(r)->seed, 9);           /* flag over file */
    assert_int_equal(recipe_settings(r)->weights.bits, 6);   /* --set over file */
    assert_int_equal(recipe_settings(r)->weights.group, 64); /* file over default */
    assert_true(recipe_settings(r)->weights.symmetric);      /* default */
    assert_true(recipe_settings(r)->rotate.online & ONLINE_R4);
    assert_int_equal(recipe_settings(r)->archive.shard_bytes, 4ull << 30);
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

/* A map sets the keys that it names and leaves the others of its section; a later word wins. */
static void maps_and_lists_are_values(void **state) {
    (void)state;
    options o;
    recipe *r;
    const char *words[] = {
        "--set", "rotate={r1: false, start: womi, online: [r4]}",
        "--set", "scale={pairs: [norm, ud], start: closed}",
        "--set", "rotate.start=some/file",
        "--set", "weights={group: auto, method: gptaq}",
        "--set", "learn=[{objective: kl-top, steps: 7}, {lr_r1: 0.5, weights: true}]",
        NULL};
    assert_int_equal(parse(CMD_QUANTIZE, words, &o).code, 0);
    assert_int_equal(recipe_create(&o, NULL, NULL, NULL, &r).code, 0);
    const settings *s = recipe_settings(r);
    assert_false(s->rotate.r1);
    assert_int_equal(s->rotate.r2, R2_LAYER);
    assert_int_equal(s->rotate.online, ONLINE_R4);
    assert_int_equal(s->rotate.start.word, START_POINT_FILE);
    assert_string_equal(s->rotate.start.text, "some/file");
    assert_int_equal(s->scale.pairs, PAIR_NORM | PAIR_UD);
    assert_int_equal(s->scale.start, SCALES_CLOSED);
    assert_int_equal(s->weights.group, GROUP_AUTO);
    assert_int_equal(s->weights.method, METHOD_GPTAQ);
    assert_int_equal(s->n_learn, 2);
    assert_int_equal(s->learn[0].objective, OBJECTIVE_KL_TOP);
    assert_int_equal(s->learn[0].steps, 7);
    assert_int_equal(s->learn[1].objective, OBJECTIVE_RANGE);
    assert_true(s->learn[1].weights);
    assert_true(s->learn[1].lr_r1 == 0.5);
    recipe_destroy(&r);
}

/* Enums have the order of the table's words: each word of each key arrives as its own number. */
static void words_are_enums(void **state) {
    (void)state;
    static const struct {
        const char *set;
        size_t offset;
        int want;
    } cases[] = {
#define WORD(path, word, value) #path "=" word, offsetof(settings, path), value
        {WORD(rotate.r2, "none", R2_NONE)},
        {WORD(rotate.r2, "layer", R2_LAYER)},
        {WORD(rotate.r2, "head", R2_HEAD)},
        {WORD(rotate.start.word, "identity", START_POINT_IDENTITY)},
        {WORD(rotate.start.word, "had", START_POINT_HAD)},
        {WORD(rotate.start.word, "orthogonal", START_POINT_ORTHOGONAL)},
        {WORD(rotate.start.word, "pca", START_POINT_PCA)},
        {WORD(rotate.start.word, "womi", START_POINT_WOMI)},
        {WORD(rotate.start_r2, "same", START_R2_SAME)},
        {WORD(rotate.start_r2, "pca", START_R2_PCA)},
        {WORD(rotate.start_r2, "womi", START_R2_WOMI)},
        {WORD(scale.start, "ones", SCALES_ONES)},
        {WORD(scale.start, "closed", SCALES_CLOSED)},
        {WORD(scale.start, "smooth", SCALES_SMOOTH)},
        {WORD(weights.method, "rtn", METHOD_RTN)},
        {WORD(weights.method, "gptq", METHOD_GPTQ)},
        {WORD(weights.method, "gptaq", METHOD_GPTAQ)},
        {WORD(weights.scale, "max", WEIGHTS_SCALE_MAX)},
        {WORD(weights.scale, "search", WEIGHTS_SCALE_SEARCH)},
        {WORD(weights.stream, "full", STREAM_FULL)},
        {WORD(weights.stream, "quantized", STREAM_QUANTIZED)},
        {WORD(weights.target, "layer", TARGET_LAYER)},
        {WORD(weights.target, "full", TARGET_FULL)},
        {WORD(activations.o_group, "head", O_GROUP_HEAD)},
        {WORD(activations.o_group, "token", O_GROUP_TOKEN)},
        {WORD(activations.scale, "published", INPUT_SCALE_PUBLISHED)},
        {WORD(activations.scale, "compressed-tensors", INPUT_SCALE_COMPRESSED_TENSORS)},
        {WORD(calib.bos, "auto", BOS_AUTO)},
        {WORD(calib.bos, "none", BOS_NONE)},
        {WORD(calib.bos, "each-window", BOS_EACH_WINDOW)},
        {WORD(archive.dtype, "same", DTYPE_SAME)},
        {WORD(archive.dtype, "bf16", DTYPE_BF16)},
        {WORD(archive.dtype, "fp16", DTYPE_FP16)},
        {WORD(archive.form, "auto", FORM_AUTO)},
        {WORD(archive.form, "pack-quantized", FORM_PACK_QUANTIZED)},
        {WORD(archive.form, "int-quantized", FORM_INT_QUANTIZED)},
#undef WORD
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        options o;
        recipe *r;
        char set[96];
        int found;
        const char *dot = strstr(cases[i].set, ".word=");
        snprintf(set, sizeof set, "%.*s%s", (int)(dot ? dot - cases[i].set : 96), cases[i].set,
                 dot ? dot + strlen(".word") : "");
        const char *words[] = {"--set", set, NULL};
        assert_int_equal(parse(CMD_QUANTIZE, words, &o).code, 0);
        assert_int_equal(recipe_create(&o, NULL, NULL, NULL, &r).code, 0);
        memcpy(&found, (const char *)recipe_settings(r) + cases[i].offset, sizeof found);
        if (found != cases[i].want) fail_msg("%s is %d, not %d", set, found, cases[i].want);
        recipe_destroy(&r);
    }
}

static void words_of_phases_are_enums(void **state) {
    (void)state;
    static const char *const kinds[] = {
        [OPTIMIZER_ADAM] = "adam", [OPTIMIZER_SGD_PUBLISHED] = "sgd-published"};
    static const char *const schedules[] = {[SCHEDULE_COSINE] = "cosine",
                                            [SCHEDULE_LINEAR] = "linear",
                                            [SCHEDULE_CONSTANT] = "constant"};
    for (int k = 0; k <= OPTIMIZER_SGD_PUBLISHED; k++)
        for (int d = 0; d <= SCHEDULE_CONSTANT; d++) {
            options o;
            recipe *r;
            char set[96];
            snprintf(set, sizeof set, "learn=[{optimizer: %s, schedule: %s}]", kinds[k],
                     schedules[d]);
            const char *words[] = {"--set", set, NULL};
            assert_int_equal(parse(CMD_QUANTIZE, words, &o).code, 0);
            assert_int_equal(recipe_create(&o, NULL, NULL, NULL, &r).code, 0);
            assert_int_equal(recipe_settings(r)->learn[0].optimizer, k);
            assert_int_equal(recipe_settings(r)->learn[0].schedule, d);
            recipe_destroy(&r);
        }
}

static void wrong_keys_and_values_are_named(void **state) {
    (void)state;
    static const struct {
        const char *set, *what, *hint;
    } cases[] = {
        {"weights.bit=4", "unknown recipe key \"weights.bit\"", "weights.bits"},
        {"weights.bits=1", "weights.bits is 1; it must be a whole number in 2..16", ""},
        {"weights.bits=four", "weights.bits is \"four\"; it must be a whole number in 2..16", ""},
        {"rotate.r2=heads", "rotate.r2 is \"heads\"; it must be none|layer|head", ""},
        {"rotate.online=[r5]", "is [\"r5\"]; it must be a list of r3|r4, each once", ""},
        {"rotate.online=[r3, r3]", "[\"r3\", \"r3\"]; it must be a list of r3|r4, each once", ""},
        {"rotate.r1=yes", "rotate.r1 is \"yes\"; it must be true or false", ""},
        {"archive.shard_bytes=3Q", "shard_bytes is \"3Q\"; it must be a size as 4G", ""},
        {"kv.clip=2", "kv.clip is 2; it must be a number in 0.01..1.25, search, or a map of k|v",
         ""},
        {"activations.clip={attn: [1]}", "activations.clip is {\"attn\": [1]}; it must be a number",
         ""},
        {"activations.clip={k: 0.9}", "a map of attn|mlp|o|down to a number or [low, high]", ""},
        {"learn=[{lr_scale: 2}]", "lr_scale is 2; it must be a number in 0..1", ""},
        {"rotate.r3=eigen", "rotate.r3 is \"eigen\"; it must be had|signs|pca", ""},
        {"rotate={r5: true}", "unknown recipe key \"rotate.r5\"", "rotate.r"},
        {"weights={bits: 4, group: {}}", "weights.group is {}; it must be", ""},
        {"weights.bits={a: 1}", "weights.bits is {\"a\": 1}; it must be", ""},
        {"rotat={r1: true}", "unknown recipe key \"rotat.r1\"", "rotate.r1"},
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
        cmocka_unit_test(maps_and_lists_are_values),
        cmocka_unit_test(words_are_enums),
        cmocka_unit_test(words_of_phases_are_enums),
        cmocka_unit_test(wrong_keys_and_values_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
