/* Which runtimes run which archive: cases written out here from what was read and run, each rule of
 * the table by a case that meets it and one that does not. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "shard/runtimes.h"
#include "tests/unit/small_archive.h"

#include <string.h>

static llama_config large(void) {
    return as_llama((llama_config){.hidden = 8192,
                                   .intermediate = 28672,
                                   .layers = 80,
                                   .heads = 64,
                                   .kv_heads = 8,
                                   .head_dim = 128,
                                   .vocab = 32000});
}

typedef struct tally {
    int stops, notes;
} tally;

static void count(void *arg, runtime_verdict verdict, const char *what) {
    tally *t = arg;
    assert_true(strlen(what) > 10);
    t->stops += verdict == RUNTIME_STOPS;
    t->notes += verdict == RUNTIME_NOTE;
}

static tally judge(const char *name, const runtime_facts *f) {
    tally t = {0, 0};
    for (int i = 0; runtime_name(i); i++)
        if (!strcmp(runtime_name(i), name)) {
            runtime_judge(i, f, count, &t);
            return t;
        }
    fail_msg("no runtime %s", name);
    return t;
}

/* Names of the runtimes that stop, separated by blanks. */
static void check(const runtime_facts *f, const char *stop) {
    for (int i = 0; runtime_name(i); i++) {
        const tally t = judge(runtime_name(i), f);
        if ((t.stops > 0) != (strstr(stop, runtime_name(i)) != NULL))
            fail_msg("%s: %d rules stop it, wanted are those of \"%s\"", runtime_name(i), t.stops,
                     stop);
    }
}

static void test_forms(void **state) {
    (void)state;
    const llama_config c = large();
    runtime_facts f = {
        .linears = layout_plain(4, 128, true, 1).linears, .dtype = ST_BF16, .cfg = &c, .tp = 1};
    check(&f, "");
    for (int i = 0; runtime_name(i); i++) assert_int_equal(judge(runtime_name(i), &f).notes, 0);
    f.linears.group = 0;
    check(&f, "llama.cpp");
    f.linears.symmetric = false;
    assert_int_equal(judge("transformers", &f).notes, 1);
    f.linears = layout_plain(8, 128, true, 1).linears;
    check(&f, "vllm-cpu");
    f.linears = layout_plain(3, 128, true, 1).linears;
    check(&f, "vllm-cuda vllm-cpu sglang");
    f.linears = layout_plain(8, 0, true, 1).linears;
    f.linears.form = form_find("int-quantized");
    f.linears.inputs.bits = 8;
    check(&f, "");
    f.linears.group = 128;
    check(&f, "vllm-cuda vllm-cpu");
    f.linears.group = 0;
    f.linears.bits = 4;
    check(&f, "vllm-cuda llama.cpp");
}

static void test_inputs_and_r4(void **state) {
    (void)state;
    const llama_config c = large();
    runtime_facts f = {
        .linears = layout_plain(4, 128, true, 1).linears, .dtype = ST_BF16, .cfg = &c, .tp = 1};
    f.linears.inputs = (form_inputs){.bits = 4, .group = 128};
    check(&f, "");
    assert_int_equal(judge("vllm-cuda", &f).notes, 1);
    f.linears.inputs.group = 64; /* another than the weights' */
    assert_int_equal(judge("vllm-cuda", &f).notes, 2);
    f.linears.inputs = (form_inputs){.bits = 8};
    assert_int_equal(judge("vllm-cuda", &f).notes, 2); /* weights by groups: 16-bit inputs */
    f.linears.online = (form_online){.r4 = true, .r4_block = 4096};
    check(&f, "vllm-cpu transformers llama.cpp sglang");
    f.tp = 2;
    check(&f, "vllm-cuda vllm-cpu transformers llama.cpp sglang");
    f.tp = 1;
    f.linears.online.r4_block = 0;
    check(&f, "vllm-cuda vllm-cpu transformers llama.cpp sglang");
}

/* Of vLLM on CPUs it is said too that what it stores in FP8 is cut towards zero. */
static bool cuts_fp8(const char *runtime) {
    return strcmp(runtime, "vllm-cpu") == 0;
}

/* The cache is not in the archive: each runtime is told of, and none stops. */
static void test_cache(void **state) {
    (void)state;
    llama_config c = large();
    runtime_facts f = {
        .linears = layout_plain(4, 128, true, 1).linears, .dtype = ST_BF16, .cfg = &c, .tp = 1};
    const struct {
        const char *text;
        runtime_cache cache;
    } all[] = {{"{}", CACHE_PLAIN},
               {"{\"eval\": {\"kv\": {\"bits\": 16, \"rotate\": \"runtime\"}}}", CACHE_PLAIN},
               {"{\"eval\": {\"kv\": {\"bits\": 4}}}", CACHE_EVAL},
               {"{\"eval\": {\"kv\": {\"bits\": 8, \"format\": \"fp8\"}}}", CACHE_FP8_BY_OPTION},
               {"{\"eval\": {\"kv\": {\"bits\": 8, \"format\": \"int\"}}}", CACHE_EVAL},
               {"{\"eval\": {\"kv\": {\"bits\": 4, \"rotate\": \"runtime\"}}}", CACHE_VLLM_INT4}};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        json_t *o = json_loads(all[i].text, 0, NULL);
        assert_non_null(o);
        f.cache = runtime_cache_of(o);
        json_decref(o);
        assert_int_equal(f.cache, all[i].cache);
        check(&f, "");
        for (int k = 0; runtime_name(k); k++)
            assert_int_equal(judge(runtime_name(k), &f).notes,
                             (f.cache != CACHE_PLAIN) +
                                 (f.cache == CACHE_FP8_BY_OPTION && cuts_fp8(runtime_name(k))));
    }
    f.cache = CACHE_FP8_SCALES; /* which vLLM reads, and of others nothing is known */
    for (int k = 0; runtime_name(k); k++)
        assert_int_equal(judge(runtime_name(k), &f).notes,
                         strncmp(runtime_name(k), "vllm", 4) != 0 || cuts_fp8(runtime_name(k)));
    f.cache = CACHE_VLLM_INT4;
    assert_int_equal(runtime_cache_of(NULL), CACHE_PLAIN);
    c.head_dim = 16;
    assert_int_equal(judge("vllm-cuda", &f).notes, 2);
}

static void test_sizes(void **state) {
    (void)state;
    llama_config c = large();
    runtime_facts f = {
        .linears = layout_plain(4, 128, true, 1).linears, .dtype = ST_BF16, .cfg = &c, .tp = 8};
    check(&f, ""); /* 28672 / 8 = 28 x 128 */
    f.tp = 64;     /* 448 inputs of down are no whole groups */
    check(&f, "vllm-cuda vllm-cpu");
    f.tp = 1;
    c.intermediate = 11008; /* 86 x 128 */
    assert_int_equal(judge("vllm-cuda", &f).notes, 0);
    f.tp = 4; /* 21.5 groups */
    check(&f, "vllm-cuda vllm-cpu");
    f.tp = 1;
    f.linears.group = 0;
    c.intermediate = 1000; /* no multiple of 32 */
    check(&f, "vllm-cpu llama.cpp");
    f.dtype = ST_F16;
    assert_int_equal(judge("vllm-cuda", &f).notes, 2); /* sizes, and scales of fp16 by channel */
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_forms),
                                       cmocka_unit_test(test_inputs_and_r4),
                                       cmocka_unit_test(test_cache), cmocka_unit_test(test_sizes)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
