/* The forward pass against tests/data/goldens/logits.json, which PyTorch made in fp64
 * (tests/tools/goldens.py): loss of a window, the last token's logits, and perplexity of a text, of
 * a trained model with a tied head and of a made one with biases and the frequencies of Llama 3. */
#include "base/file.h"
#include "base/json.h"
#include "base/mem.h"
#include "io/hf_checkpoint.h"
#include "io/tokenizer.h"
#include "model/forward.h"
#include "model/tensors.h"
#include "tests/unit/assert_ok.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *room(int64_t count, size_t size) {
    void *p;
    assert_ok(mem_alloc(count, size, "test", &p));
    return p;
}

/* A checkpoint into a stage that holds the whole model. */

typedef struct whole_model {
    llama_config cfg;
    llama_stage stage;
} whole_model;

static wmat *matrix_slot(llama_stage *s, const llama_tensor *t) {
    llama_layer *l = t->layer >= 0 ? &s->layers[t->layer] : NULL;
    switch (t->role) {
    case ROLE_EMBED:
        return &s->embed;
    case ROLE_HEAD:
        return &s->head;
    case ROLE_Q:
        return &l->q;
    case ROLE_K:
        return &l->k;
    case ROLE_V:
        return &l->v;
    case ROLE_O:
        return &l->o;
    case ROLE_GATE:
        return &l->gate;
    case ROLE_UP:
        return &l->up;
    case ROLE_DOWN:
        return &l->down;
    default:
        return NULL;
    }
}

static float **vector_slot(llama_stage *s, const llama_tensor *t) {
    llama_layer *l = t->layer >= 0 ? &s->layers[t->layer] : NULL;
    switch (t->role) {
    case ROLE_FINAL_NORM:
        return &s->final_norm;
    case ROLE_ATTN_NORM:
        return &l->attn_norm;
    case ROLE_MLP_NORM:
        return &l->mlp_norm;
    case ROLE_Q_BIAS:
        return &l->bq;
    case ROLE_K_BIAS:
        return &l->bk;
    case ROLE_V_BIAS:
        return &l->bv;
    case ROLE_O_BIAS:
        return &l->bo;
    case ROLE_GATE_BIAS:
        return &l->bgate;
    case ROLE_UP_BIAS:
        return &l->bup;
    case ROLE_DOWN_BIAS:
        return &l->bdown;
    default:
        return NULL;
    }
}

static wmat_kind kind_of(st_dtype d) {
    return d == ST_F32 ? WMAT_F32 : d == ST_F16 ? WMAT_F16 : WMAT_BF16;
}

static void load(const char *dir, whole_model *m) {
    fileset *fs;
    hf_checkpoint *ck;
    assert_ok(fileset_open_dir(comm_world(), dir, &fs));
    assert_ok(hf_checkpoint_open(comm_world(), fs, &ck));
    assert_ok(llama_config_parse(hf_checkpoint_config(ck), dir, &m->cfg));
    assert_ok(llama_stage_init(&m->stage, &m->cfg, 0, m->cfg.layers));
    for (int64_t i = 0; i < llama_tensor_count(&m->cfg); i++) {
        llama_tensor t;
        llama_tensor_at(&m->cfg, i, &t);
        const hf_tensor *in = hf_checkpoint_find(ck, t.name);
        if (!in && t.role == ROLE_EMBED) in = hf_checkpoint_find(ck, "lm_head.weight");
        assert_non_null(in);
        wmat w;
        assert_ok(wmat_init(&w, kind_of(in->info.dtype), t.rows, t.cols, t.name));
        assert_ok(hf_checkpoint_read(ck, in, w.data, NULL));
        if (t.n_dims == 2) {
            *matrix_slot(&m->stage, &t) = w;
        } else {
            float **slot = vector_slot(&m->stage, &t);
            *slot = room(t.rows, sizeof(float));
            wmat_expand_f32(&w, 0, t.rows, 0, 1, *slot, 1);
            wmat_clear(&w);
        }
    }
    m->stage.head_is_embed = m->cfg.tied;
    hf_checkpoint_destroy(&ck);
    fileset_destroy(&fs);
}

/* One window through the whole model: sum of NLL, and logits of the last token where asked. */
static double run(const llama_stage *s, const llama_sites *sites, compute_type compute,
                  const int32_t *ids, int64_t n_tokens, double *nll, double *last_logits) {
    llama_scratch *scratch;
    assert_ok(llama_scratch_create(s->cfg, sites, compute, n_tokens, &scratch));
    char *x = room(n_tokens * s->cfg->hidden, llama_real_bytes(compute));
    double sum;
    assert_ok(llama_embed(s, compute, ids, n_tokens, x));
    assert_ok(llama_layers_forward(s, sites, n_tokens, x, scratch));
    assert_ok(llama_head_nll(s, n_tokens, x, ids, scratch, &sum, nll));
    const char *last = x + (size_t)((n_tokens - 1) * s->cfg->hidden) * llama_real_bytes(compute);
    if (last_logits) assert_ok(llama_head_logits(s, 1, last, scratch, last_logits));
    mem_free(x);
    llama_scratch_destroy(&scratch);
    return sum;
}

/* Goldens. */

static void data_path(const char *tail, char *path, size_t size) {
    const char *data = getenv("SPINSHARD_TEST_DATA");
    snprintf(path, size, "%s/%s", data ? data : "tests/data", tail);
}

static void check_logits(const json_t *golden, const double *logits, int64_t vocab, double tol) {
    double sum = 0, squares = 0, scale = 0;
    for (int64_t j = 0; j < vocab; j++) {
        sum += logits[j];
        squares += logits[j] * logits[j];
        scale += fabs(logits[j]);
    }
    double want_sum = json_number_value(json_object_get(golden, "last_logit_sum"));
    double want_l2 = json_number_value(json_object_get(golden, "last_logit_l2"));
    assert_true(fabs(sum - want_sum) <= tol * scale);
    assert_true(fabs(sqrt(squares) - want_l2) <= tol * want_l2);
    const json_t *top = json_object_get(golden, "last_top10");
    assert_int_equal(json_array_size(top), 10);
    for (size_t i = 0; i < 10; i++) {
        int64_t id = json_integer_value(json_array_get(json_array_get(top, i), 0));
        double want = json_number_value(json_array_get(json_array_get(top, i), 1));
        assert_true(fabs(logits[id] - want) <= tol * want_l2);
    }
}

static void check_golden(const char *name, const json_t *golden) {
    char dir[1024];
    data_path(name, dir, sizeof dir);
    const json_t *list = json_object_get(golden, "ids");
    const int64_t n = (int64_t)json_array_size(list);
    assert_true(n > 1);
    int32_t *ids = room(n, sizeof *ids);
    for (int64_t t = 0; t < n; t++) {
        ids[t] = (int32_t)json_integer_value(json_array_get(list, (size_t)t));
    }
    const double want = json_number_value(json_object_get(golden, "nll_nat_per_token"));
    const struct {
        compute_type compute;
        double nll_tolerance, logit_tolerance;
    } cases[] = {{COMPUTE_F64, 1e-9, 1e-9}, {COMPUTE_F32, 2e-5, 2e-5}, {COMPUTE_BF16, 5e-3, 3e-2}};
    for (int i = 0; i < 3; i++) {
        whole_model m;
        load(dir, &m);
        assert_ok(llama_stage_prepare(&m.stage, cases[i].compute));
        double *logits = room(m.cfg.vocab, sizeof *logits);
        double nll = run(&m.stage, NULL, cases[i].compute, ids, n, NULL, logits) / (double)(n - 1);
        print_message("%s, type %d: NLL %.15g, off by %.2g\n", name, cases[i].compute, nll,
                      fabs(nll - want) / want);
        assert_true(fabs(nll - want) <= cases[i].nll_tolerance * want);
        check_logits(golden, logits, m.cfg.vocab, cases[i].logit_tolerance);
        mem_free(logits);
        llama_stage_clear(&m.stage);
    }
    mem_free(ids);
}

/* The text as one sequence of tokens, in windows of BOS and 255 of them; the rest is dropped. */
static void check_text(const char *name, const json_t *golden) {
    const json_t *want = json_object_get(golden, "text");
    const int64_t window = json_integer_value(json_object_get(want, "window"));
    char path[1024], *text, *json;
    size_t bytes;
    whole_model m;
    tokenizer *tok;
    int32_t *ids;
    int64_t n, windows = 0;
    data_path(name, path, sizeof path);
    load(path, &m);
    data_path("stories260K/tokenizer.json", path, sizeof path);
    assert_ok(file_read_all(path, 1 << 26, &json, &bytes));
    assert_ok(tokenizer_create(json, bytes, path, &tok));
    data_path("stories.txt", path, sizeof path);
    assert_ok(file_read_all(path, 1 << 30, &text, &bytes));
    assert_ok(tokenizer_encode(tok, text, bytes, false, &ids, &n));
    double sum = 0;
    int32_t *one = room(window, sizeof *one);
    one[0] = (int32_t)m.cfg.bos;
    for (int64_t at = 0; at + window - 1 <= n; at += window - 1, windows++) {
        memcpy(one + 1, ids + at, (size_t)(window - 1) * sizeof *ids);
        sum += run(&m.stage, NULL, COMPUTE_F64, one, window, NULL, NULL);
    }
    const int64_t predictions = windows * (window - 1);
    const double ppl = json_number_value(json_object_get(want, "ppl"));
    const double got = exp(sum / (double)predictions);
    print_message("%s: perplexity %.12g over %lld predictions, off by %.2g\n", name, got,
                  (long long)predictions, fabs(got - ppl) / ppl);
    assert_int_equal(predictions, json_integer_value(json_object_get(want, "tokens")));
    assert_true(ppl > 1 && fabs(got - ppl) <= 1e-9 * ppl);
    mem_free(one);
    free(ids);
    free(json);
    free(text);
    tokenizer_destroy(&tok);
    llama_stage_clear(&m.stage);
}

static void each_golden(void (*check)(const char *name, const json_t *golden)) {
    char path[1024];
    data_path("goldens/logits.json", path, sizeof path);
    json_t *all;
    assert_ok(json_read_file(path, 1 << 26, &all));
    const char *name;
    json_t *golden;
    int seen = 0;
    json_object_foreach(all, name, golden) {
        check(name, golden);
        seen++;
    }
    assert_int_equal(seen, 2);
    json_decref(all);
}

static void test_windows(void **state) {
    (void)state;
    each_golden(check_golden);
}

static void test_text(void **state) {
    (void)state;
    each_golden(check_text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
