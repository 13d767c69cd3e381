/* Inputs of 8 bits by place and layer: what recipes and config.json say of them and back, what
 * sites make of it, and the choice under a budget against all subsets. */
#include "base/json.h"
#include "jobs/setup/recipe_layers.h"
#include "model/sites.h"
#include "pipeline/learn/eight_choice.h"
#include "shard/input_groups.h"
#include "shard/loader_targets.h"
#include "tests/unit/assert_ok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static json_t *read(const char *text) {
    json_t *v = json_loads(text, JSON_DECODE_ANY, NULL);
    assert_non_null(v);
    return v;
}

/* As written, what it comes to for five layers, and the bits of each place by hand. */
static void layers_of_recipes(void **state) {
    (void)state;
    static const struct {
        const char *said, *resolved;
        unsigned attn, mlp, o, down;
    } good[] = {
        {"{}", "{}", 0, 0, 0, 0},
        {"{\"mlp\": 3}", "{\"mlp\": 3}", 0, 8, 0, 0},
        {"{\"mlp\": \"1-3\", \"down\": \"all\"}", "{\"mlp\": \"1-3\", \"down\": \"all\"}", 0, 14, 0,
         31},
        {"{\"o\": [4, \"0-1\", 1, \"2\"]}", "{\"o\": [\"0-2\", 4]}", 0, 0, 23, 0},
        {"{\"attn\": \"0-4\"}", "{\"attn\": \"all\"}", 31, 0, 0, 0},
        {"{\"attn\": [\"0-1\", \"3-9\"]}", "{\"attn\": [\"0-1\", \"3-4\"]}", 27, 0, 0, 0},
    };
    static const char *const bad[] = {
        "3",
        "[]",
        "\"all\"",
        "{\"gate\": 1}",
        "{\"mlp\": []}",
        "{\"mlp\": -1}",
        "{\"mlp\": \"-1\"}",
        "{\"mlp\": \"5-\"}",
        "{\"mlp\": \"5-3\"}",
        "{\"mlp\": \"1-2-3\"}",
        "{\"mlp\": \"1 - 2\"}",
        "{\"mlp\": 1.0}",
        "{\"mlp\": 4096}",
        "{\"mlp\": \"99999999999999999999\"}",
        "{\"mlp\": {\"all\": 1}}",
        "{\"mlp\": \"\"}",
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        json_t *v = read(good[i].said), *want = read(good[i].resolved);
        input_eight e;
        assert_true(recipe_layers_fit(v, INPUT_WORDS));
        recipe_layers_store(v, INPUT_WORDS, &e);
        const unsigned all[] = {good[i].attn, good[i].mlp, good[i].o, good[i].down};
        for (int k = 0; k < INPUT_PLACES; k++) assert_int_equal(e.at[k].bits[0] & 31, all[k]);
        json_t *got = recipe_layers_json(&e, 5);
        if (!json_equal(got, want)) fail_msg("%s", json_dumps(got, 0));
        json_decref(v);
        json_decref(want);
        json_decref(got);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        json_t *v = read(bad[i]);
        if (recipe_layers_fit(v, INPUT_WORDS)) fail_msg("%s", bad[i]);
        json_decref(v);
    }
}

static void text_is_cut_off(void **state) {
    (void)state;
    const layer_flags every_other = {.bits = {0x5555}};
    char text[8];
    layer_flags_text(&every_other, 16, text, sizeof text);
    assert_string_equal(text, "0, 2, 4");
    layer_flags_text(&every_other, 1, text, sizeof text);
    assert_string_equal(text, "all");
    layer_flags_text(&(layer_flags){.bits = {0}}, 16, text, sizeof text);
    assert_string_equal(text, "");
}

static llama_config small(int64_t layers) {
    return (llama_config){.hidden = 16,
                          .intermediate = 40,
                          .layers = layers,
                          .heads = 4,
                          .kv_heads = 2,
                          .head_dim = 8,
                          .vocab = 32};
}

static void products_by_hand(void **state) {
    (void)state;
    const llama_config c = small(1);
    assert_int_equal(input_products(&c, INPUT_ATTN), 16 * (32 + 16 + 16));
    assert_int_equal(input_products(&c, INPUT_MLP), 16 * 80);
    assert_int_equal(input_products(&c, INPUT_O), 32 * 16);
    assert_int_equal(input_products(&c, INPUT_DOWN), 40 * 16);
}

/* Each site of each layer has the bits of its own place and layer, and the others are as they were.
 */
static void bits_of_sites(void **state) {
    (void)state;
    const llama_config c = small(70); /* beyond the first word of a set */
    for (int place = 0; place < INPUT_PLACES; place++) {
        llama_sites s = llama_sites_none();
        s.act.bits = 4;
        s.kv.bits = 4;
        s.down_bits = 6;
        layer_flags_put(&s.eight.at[place], 2, true);
        layer_flags_put(&s.eight.at[place], 66, true);
        for (int64_t l = 0; l < c.layers; l++) {
            const bool here = l == 2 || l == 66;
            const int got[] = {sites_input(&s, &c, l, NORM_ATTN).quant.bits,
                               sites_input(&s, &c, l, NORM_MLP).quant.bits,
                               sites_output(&s, &c, l).quant.bits,
                               sites_down(&s, &c, l).quant.bits};
            for (int k = 0; k < INPUT_PLACES; k++)
                assert_int_equal(got[k], here && k == place ? 8 : k == INPUT_DOWN ? 6 : 4);
            assert_int_equal(sites_keys(&s, &c, l).quant.bits, 4);
            assert_int_equal(sites_values(&s, &c, l).quant.bits, 4);
        }
        s.act.bits = s.down_bits = 16; /* never fewer, and nothing is switched on */
        assert_int_equal(sites_input(&s, &c, 2, place == INPUT_MLP).quant.bits, 16);
        assert_int_equal(sites_down(&s, &c, 2).quant.bits, 16);
    }
}

/* config.json says of each linear what the scheme says, and nothing twice; read back it is the
 * same.
 */
static void groups_and_back(void **state) {
    (void)state;
    enum { LAYERS = 6 };
    uint64_t random = 88172645463325252u;
    for (int trial = 0; trial < 300; trial++) {
        form_inputs in = {.bits = 4, .group = 32};
        static const int downs[] = {0, 8, 16};
        in.down_bits = downs[trial % 3];
        for (int k = 0; k < INPUT_PLACES; k++) {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            const bool plain = random >> 40 & 1 || (k == INPUT_DOWN && in.down_bits);
            in.eight.at[k].bits[0] = plain ? 0 : random >> 20 & 63;
        }
        int all[INPUT_GROUPS], owners[LAYERS * LLAMA_LINEARS], bits[LAYERS * LLAMA_LINEARS];
        const int n = input_groups_bits(&in, LAYERS, all);
        assert_in_range(n, 1, INPUT_GROUPS);
        const json_t *targets[INPUT_GROUPS];
        json_t *ignore = json_pack("[s]", "lm_head");
        for (int g = 0; g < n; g++) targets[g] = input_groups_targets(&in, LAYERS, all[g]);
        assert_ok(loader_targets_owners(targets, n, ignore, LAYERS, "c", owners));
        for (int64_t i = 0; i < LAYERS * LLAMA_LINEARS; i++) {
            const input_place place = input_place_of(llama_linears[i % LLAMA_LINEARS]);
            const bool eight = in.eight.at[place].bits[0] >> i / LLAMA_LINEARS & 1;
            bits[i] = all[owners[i]];
            assert_int_equal(bits[i], place == INPUT_DOWN && in.down_bits ? in.down_bits
                                      : eight                             ? 8
                                                                          : 4);
        }
        form_inputs back = {.group = 32};
        assert_null(input_groups_read(bits, LAYERS, &back));
        for (int k = 0; k < INPUT_PLACES; k++)
            for (int64_t l = 0; l < LAYERS; l++)
                assert_int_equal(form_input_bits(&back, (input_place)k, l),
                                 form_input_bits(&in, (input_place)k, l));
        for (int g = 0; g < n; g++) json_decref((json_t *)(uintptr_t)targets[g]);
        json_decref(ignore);
    }
}

static void groups_by_hand(void **state) {
    (void)state;
    form_inputs in = {.bits = 4};
    in.eight.at[INPUT_MLP].bits[0] = 5; /* layers 0 and 2 of 3 */
    in.eight.at[INPUT_O].bits[0] = 7;
    int all[INPUT_GROUPS];
    assert_int_equal(input_groups_bits(&in, 3, all), 2);
    assert_int_equal(all[0], 4);
    assert_int_equal(all[1], 8);
    json_t *four = input_groups_targets(&in, 3, 4), *eight = input_groups_targets(&in, 3, 8),
           *want4 = read("[\"re:.*(q|k|v)_proj$\", \"re:.*layers[.](1)[.].*(gate|up)_proj$\", "
                         "\"re:.*down_proj$\"]"),
           *want8 = read("[\"re:.*layers[.](0|2)[.].*(gate|up)_proj$\", \"re:.*o_proj$\"]");
    assert_true(json_equal(four, want4));
    assert_true(json_equal(eight, want8));
    json_decref(four);
    json_decref(eight);
    json_decref(want4);
    json_decref(want8);
}

/* What shares an input cannot differ; nor can bits that no recipe of ours says. */
static void groups_refused(void **state) {
    (void)state;
    static const int bad[][LLAMA_LINEARS] = {
        {8, 4, 4, 4, 4, 4, 4},       {4, 4, 4, 4, 8, 4, 4},      {4, 4, 4, 16, 4, 4, 4},
        {16, 16, 16, 16, 16, 16, 4}, {16, 16, 16, 16, 8, 8, 16},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        form_inputs out;
        assert_non_null(input_groups_read(bad[i], 1, &out));
    }
}

/* ---- the choice ---- */

typedef struct outcome {
    double nats;
    int64_t cost;
} outcome;

static int64_t cost_of(const llama_config *c, const eight_item *items, int i) {
    return input_products(c, (input_place)(i % INPUT_PLACES)) * (8 - items[i].bits);
}

static outcome of_subset(const llama_config *c, const eight_item *items, int n, unsigned subset) {
    outcome o = {0, 0};
    for (int i = 0; i < n; i++)
        if (subset >> i & 1) {
            o.nats += items[i].nats;
            o.cost += cost_of(c, items, i);
        }
    return o;
}

/* Within the budget, and short of the best of all subsets by less than one item. */
static void choice_against_all_subsets(void **state) {
    (void)state;
    enum { LAYERS = 3, N = LAYERS * INPUT_PLACES };
    const llama_config c = small(LAYERS);
    int64_t products = 0;
    uint64_t random = 1234567;
    for (int k = 0; k < INPUT_PLACES; k++) products += LAYERS * input_products(&c, (input_place)k);
    for (int trial = 0; trial < 40; trial++) {
        eight_item items[N];
        double largest = 0;
        int64_t used = 0;
        for (int i = 0; i < N; i++) {
            random = random * 6364136223846793005u + 1442695040888963407u;
            items[i] = (eight_item){.bits = random >> 60 == 0 ? 8 : 4,
                                    .nats = (double)(random >> 33) / 2147483648.0 - 0.1};
            if (items[i].bits == 4 && items[i].nats > largest) largest = items[i].nats;
            used += items[i].bits * input_products(&c, (input_place)(i % INPUT_PLACES));
        }
        const double average = 4 + 4.0 * trial / 39,
                     room = average * (double)products - (double)used;
        input_eight chosen = {0};
        eight_choose(&c, items, average, &chosen);
        unsigned mine = 0;
        for (int i = 0; i < N; i++)
            if (layer_flags_has(&chosen.at[i % INPUT_PLACES], i / INPUT_PLACES)) mine |= 1u << i;
        const outcome got = of_subset(&c, items, N, mine);
        assert_true((double)got.cost <= room || !mine);
        double best = 0;
        for (unsigned s = 0; s < 1u << N; s++) {
            const outcome o = of_subset(&c, items, N, s);
            if ((double)o.cost <= room && o.nats > best) best = o.nats;
        }
        assert_true(got.nats > best - largest || got.nats >= best);
        for (int i = 0; i < N; i++) /* nothing for nothing, and whatever fits is taken */
            if (mine >> i & 1)
                assert_true(items[i].bits == 4 && items[i].nats > 0);
            else if (items[i].bits == 4 && items[i].nats > 0)
                assert_true((double)(got.cost + cost_of(&c, items, i)) > room);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(layers_of_recipes), cmocka_unit_test(text_is_cut_off),
        cmocka_unit_test(products_by_hand),  cmocka_unit_test(bits_of_sites),
        cmocka_unit_test(groups_and_back),   cmocka_unit_test(groups_by_hand),
        cmocka_unit_test(groups_refused),    cmocka_unit_test(choice_against_all_subsets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
