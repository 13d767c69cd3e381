/* Windows on their way at once with one room for saved activations between them (model/capture.h):
 * the gradients of each are those that it has alone. */
#include "base/gemm.h"
#include "base/mem.h"
#include "model/capture.h"
#include "model/objective.h"
#include "tests/unit/small_model.h"

enum { TOKENS = 97, WINDOWS = 3 };

typedef struct window {
    int32_t ids[TOKENS], next[TOKENS];
    float *x, *alone; /* [TOKENS, hidden] */
    double loss, loss_alone;
} window;

static void window_open(const small_model *m, window *w, int number) {
    for (int t = 0; t < TOKENS; t++) w->ids[t] = (t * 53 + number * 191) % 700;
    for (int t = 0; t < TOKENS; t++) w->next[t] = t + 1 < TOKENS ? w->ids[t + 1] : -1;
    w->x = room(TOKENS * m->cfg.hidden, sizeof(float));
    w->alone = room(TOKENS * m->cfg.hidden, sizeof(float));
}

static void forward(const small_model *m, const window *w, llama_layers *l, float *x,
                    llama_work *work) {
    assert_ok(llama_embed(&m->stage, COMPUTE_F32, w->ids, TOKENS, x));
    assert_ok(llama_layers_save(l, &m->stage, NULL, TOKENS, x, work));
}

static void backward(const small_model *m, const window *w, llama_layers *l, float *x, double *loss,
                     llama_work *work) {
    assert_ok(llama_ce_backward(&m->stage, TOKENS, x, w->next, 1, x, loss, NULL, work));
    assert_ok(llama_layers_backward(l, &m->stage, NULL, TOKENS, x, NULL, NULL, NULL, work));
}

static void test_windows(void **state) {
    (void)state;
    small_model m;
    small_model_make(&m, true, 0);
    const llama_pass_shape shape = {
        .compute = COMPUTE_F32, .window = TOKENS, .slice = TOKENS, .head = true};
    const size_t bytes = (size_t)(TOKENS * m.cfg.hidden) * sizeof(float);
    window windows[WINDOWS];
    llama_layers *layers[WINDOWS];
    llama_work *work;
    assert_ok(llama_work_create(&m.cfg, NULL, &shape, &work));
    assert_ok(llama_layers_create(&m.cfg, NULL, &shape, m.cfg.layers, true, &layers[0]));
    for (int w = 0; w < WINDOWS; w++) {
        window *one = &windows[w];
        window_open(&m, one, w);
        forward(&m, one, layers[0], one->alone, work);
        backward(&m, one, layers[0], one->alone, &one->loss_alone, work);
        if (w) assert_ok(llama_layers_create_beside(layers[0], &layers[w]));
    }
    for (int w = 0; w < WINDOWS; w++) forward(&m, &windows[w], layers[w], windows[w].x, work);
    for (int w = WINDOWS - 1; w >= 0; w--)
        backward(&m, &windows[w], layers[w], windows[w].x, &windows[w].loss, work);
    for (int w = 0; w < WINDOWS; w++) {
        assert_true(windows[w].loss == windows[w].loss_alone);
        assert_memory_equal(windows[w].x, windows[w].alone, bytes);
        assert_memory_not_equal(windows[w].x, windows[(w + 1) % WINDOWS].x, bytes);
    }
    for (int w = WINDOWS - 1; w >= 0; w--) {
        llama_layers_destroy(&layers[w]);
        mem_free(windows[w].x);
        mem_free(windows[w].alone);
    }
    llama_work_destroy(&work);
    llama_stage_clear(&m.stage);
}

static void test_saved_of_each_layer(void **state) {
    (void)state;
    small_model m;
    small_model_make(&m, true, 0);
    const llama_pass_shape shape = {.compute = COMPUTE_F32, .window = TOKENS, .slice = TOKENS};
    llama_layers *layers, *beside;
    assert_ok(llama_layers_create(&m.cfg, NULL, &shape, m.cfg.layers, false, &layers));
    assert_int_equal(llama_layers_create_beside(layers, &beside).code, ERR_BUG);
    assert_null(beside);
    llama_layers_destroy(&layers);
    llama_stage_clear(&m.stage);
}

int main(void) {
    gemm_init(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_saved_of_each_layer),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
