/* Fused tensors: the function of the layer is kept, written out in plain loops; rows come as each
 * way promises; a number that changes is found, on every matrix that is rotated, and NaN by name;
 * whatever memory is missing, nothing leaks; the plan's bytes are enough and not much too many. */
#include "pipeline/weights/fused_tensor.h"

#include "base/fault.h"
#include "tests/unit/small_model.h"

enum { HIDDEN = 64, KV = 2, DIM = 16, INNER = 96, VOCAB = 130 };

static const llama_config cfg = {.hidden = HIDDEN,
                                 .intermediate = INNER,
                                 .layers = 2,
                                 .heads = 4,
                                 .kv_heads = KV,
                                 .head_dim = DIM,
                                 .vocab = VOCAB,
                                 .qkv_bias = true,
                                 .o_bias = true};

static rotation_set *make_set(bool rotated) {
    const rotation_options o = {.r1 = rotated,
                                .r2 = rotated ? R2_HEAD : R2_NONE,
                                .r4 = rotated,
                                .start = START_HAD,
                                .seed = 5};
    const rotation_sizes z = {HIDDEN, cfg.layers, cfg.heads, KV, DIM, INNER, false};
    rotation_set *s;
    assert_ok(rotation_set_create(&o, &z, &s));
    return s;
}

/* All matrices: the seven linears of layer 1, then embedding and head. */
enum { MATRICES = LLAMA_LINEARS + 2 };

static llama_tensor matrix(int i) {
    llama_tensor t;
    const llama_role role = i < LLAMA_LINEARS    ? llama_linears[i]
                            : i == LLAMA_LINEARS ? ROLE_EMBED
                                                 : ROLE_HEAD;
    assert_true(llama_tensor_of(&cfg, role, 1, &t));
    return t;
}

static float *numbers(int64_t n) {
    float *v = room(n, sizeof *v);
    double *wide = random_f64(n, 1);
    for (int64_t i = 0; i < n; i++) v[i] = (float)wide[i];
    mem_free(wide);
    return v;
}

typedef struct rows_taken {
    int64_t cols, next; /* next: -1 where rows may come in any order */
    float *w;
    int *times;
} rows_taken;

static err take(void *arg, int64_t row0, int64_t rows, const float *w) {
    rows_taken *r = arg;
    if (r->next >= 0 && row0 != r->next) return err_make(ERR_BUG, "rows", NULL, "out of order");
    if (r->next >= 0) r->next += rows;
    for (int64_t i = row0; i < row0 + rows; i++) r->times[i]++; /* each row is one thread's */
    memcpy(r->w + row0 * r->cols, w, (size_t)(rows * r->cols) * sizeof *w);
    return err_none();
}

static void test_ways_hand_over_the_same_rows(void **state) {
    (void)state;
    rotation_set *set = make_set(true);
    for (int i = 0; i < MATRICES; i++) {
        const llama_tensor t = matrix(i);
        const int64_t n = t.rows * t.cols;
        float *raw = numbers(n), *whole = room(n, sizeof *whole);
        const fused_source from = {.raw = raw, .dtype = FUSE_F32};
        assert_ok(fused_tensor_into(set, &t, &from, whole));
        for (int way = 0; way < 2; way++) {
            rows_taken r = {.cols = t.cols, .next = way ? 0 : -1, .w = room(n, sizeof(float))};
            r.times = room(t.rows, sizeof *r.times);
            assert_ok((way ? fused_tensor_in_order : fused_tensor_each)(set, &t, &from, take, &r));
            for (int64_t k = 0; k < t.rows; k++) assert_int_equal(r.times[k], 1);
            assert_memory_equal(r.w, whole, (size_t)n * sizeof(float));
            mem_free(r.w);
            mem_free(r.times);
        }
        mem_free(raw);
        mem_free(whole);
    }
    rotation_set_destroy(&set);
}

/* (x R1) (W diag(gain) R1)^T = x diag(gain) W^T, and biases of o: b R1. */
static void test_function_is_kept(void **state) {
    (void)state;
    rotation_set *set = make_set(true);
    const llama_tensor t = matrix(0);
    llama_tensor bias;
    float *raw = numbers(t.rows * t.cols), *gain = numbers(t.cols), *b = numbers(HIDDEN),
          *rotated_b = room(HIDDEN, sizeof *b), *to = room(t.rows * t.cols, sizeof *to);
    double *R = room(HIDDEN * HIDDEN, sizeof *R), *x = random_f64(HIDDEN, 1), y[HIDDEN] = {0};
    const fused_source from = {.raw = raw, .dtype = FUSE_F32, .gain = gain};
    assert_ok(rotation_to_dense(rotation_set_r1(set), R));
    assert_ok(fused_tensor_into(set, &t, &from, to));
    for (int64_t i = 0; i < HIDDEN; i++)
        for (int64_t j = 0; j < HIDDEN; j++) y[j] += x[i] * R[i * HIDDEN + j];
    for (int64_t r = 0; r < t.rows; r++) {
        double want = 0, got = 0;
        for (int64_t j = 0; j < HIDDEN; j++) {
            want += x[j] * (double)gain[j] * (double)raw[r * t.cols + j];
            got += y[j] * (double)to[r * t.cols + j];
        }
        /* rounding to fp32: 2^-24 |y| |row|, both below 16 and 40 */
        assert_true(fabs(want - got) < 0x1p-24 * 16 * 40);
    }
    assert_true(llama_tensor_of(&cfg, ROLE_O_BIAS, 1, &bias));
    memcpy(rotated_b, b, HIDDEN * sizeof *b);
    assert_ok(fused_tensor_vector(set, &bias, rotated_b));
    for (int64_t j = 0; j < HIDDEN; j++) {
        double want = 0;
        for (int64_t i = 0; i < HIDDEN; i++) want += (double)b[i] * R[i * HIDDEN + j];
        assert_true(fabs(want - (double)rotated_b[j]) < 1e-5);
    }
    mem_free(raw), mem_free(gain), mem_free(b), mem_free(rotated_b), mem_free(to), mem_free(R);
    mem_free(x);
    rotation_set_destroy(&set);
}

/* The two tables of a layer have each of its tensors once, each at a place of its own. */
static void test_tables_of_a_layer(void **state) {
    (void)state;
    int seen[ROLE_COUNT] = {0};
    llama_layer l;
    const void *places[LLAMA_LINEARS + LLAMA_VECTORS];
    for (int i = 0; i < LLAMA_LINEARS; i++) {
        seen[llama_linears[i]]++;
        places[i] = llama_layer_linear(&l, i);
        assert_ptr_equal(llama_layer_bias(&l, i), llama_layer_vector(&l, LLAMA_NORMS + i));
        assert_int_equal(llama_vectors[LLAMA_NORMS + i], llama_role_bias(llama_linears[i]));
    }
    for (int i = 0; i < LLAMA_VECTORS; i++) {
        seen[llama_vectors[i]]++;
        places[LLAMA_LINEARS + i] = llama_layer_vector(&l, i);
    }
    for (int r = 0; r < ROLE_COUNT; r++)
        assert_int_equal(seen[r], llama_role_in_layer((llama_role)r));
    for (int i = 0; i < LLAMA_LINEARS + LLAMA_VECTORS; i++)
        for (int j = 0; j < i; j++) assert_ptr_not_equal(places[i], places[j]);
}

static void test_gains_of_linears(void **state) {
    (void)state;
    float attn = 1, mlp = 2, *const gains[LLAMA_NORMS] = {&attn, &mlp};
    for (int i = 0; i < LLAMA_LINEARS; i++) {
        const llama_role r = llama_linears[i];
        const float *want = r == ROLE_O || r == ROLE_DOWN    ? NULL
                            : r == ROLE_GATE || r == ROLE_UP ? &mlp
                                                             : &attn;
        assert_ptr_equal(fused_gain_of(r, gains), want);
    }
}

static err never(void *arg, int64_t row0, int64_t rows, const float *w) {
    (void)row0, (void)rows, (void)w;
    ++*(int *)arg;
    return err_none();
}

static void test_what_is_refused(void **state) {
    (void)state;
    for (int rotated = 0; rotated < 2; rotated++) {
        rotation_set *set = make_set(rotated);
        for (int i = 0; i < MATRICES; i++) {
            const llama_tensor t = matrix(i);
            int calls = 0;
            float *raw = numbers(t.rows * t.cols), *to = room(t.rows * t.cols, sizeof *to);
            const fused_source from = {.raw = raw, .dtype = FUSE_F32};
            fault_arm("fuse:1");
            err e = fused_tensor_into(set, &t, &from, to);
            assert_int_equal(e.code, rotated ? ERR_NUMERICS : ERR_OK);
            if (rotated) assert_non_null(strstr(e.where, t.name));
            assert_int_equal(fault_armed(), !rotated); /* nothing to probe without rotations */
            fault_arm("");
            raw[3] = NAN, raw[17] = -INFINITY, raw[t.rows * t.cols - 1] = INFINITY;
            e = fused_tensor_each(set, &t, &from, never, &calls);
            assert_int_equal(e.code, ERR_INPUT);
            assert_string_equal(e.where, t.name);
            assert_non_null(strstr(e.what, "3 values"));
            assert_int_equal(calls, 0);
            mem_free(raw);
            mem_free(to);
        }
        rotation_set_destroy(&set);
    }
}

static void test_memory(void **state) {
    (void)state;
    rotation_set *set = make_set(true);
    for (int64_t l = 0; l < cfg.layers; l++) assert_ok(rotation_set_prepare_r2(set, l));
    for (int i = 0; i < MATRICES; i++) {
        const llama_tensor t = matrix(i);
        float *raw = numbers(t.rows * t.cols), *to = room(t.rows * t.cols, sizeof *to);
        const fused_source from = {.raw = raw, .dtype = FUSE_F32};
        const uint64_t held = mem_held_bytes();
        char spec[32];
        int k = 0;
        err e;
        do {
            snprintf(spec, sizeof spec, "malloc:%d", ++k);
            fault_arm(spec);
            e = fused_tensor_into(set, &t, &from, to);
            assert_int_equal(e.code, fault_armed() ? ERR_OK : ERR_NOFIT);
            assert_int_equal(mem_held_bytes(), held);
        } while (!fault_armed());
        fault_arm("");
        assert_true(k > 3);
        mem_free(raw);
        mem_free(to);
    }
    /* larger than all before, so that the peak is its own; a few words of R2 are beside it */
    llama_tensor t = matrix(LLAMA_LINEARS);
    t.rows = 40000;
    float *raw = room(t.rows * t.cols, sizeof *raw), *to = room(t.rows * t.cols, sizeof *to);
    const fused_source from = {.raw = raw, .dtype = FUSE_F32};
    const uint64_t held = mem_held_bytes(), plan = fused_tensor_bytes(set, &t, FUSE_F32, false);
    assert_int_equal(mem_peak_bytes(), held);
    assert_ok(fused_tensor_into(set, &t, &from, to));
    assert_in_range(mem_peak_bytes() - held, plan / 2, plan + 4096);
    mem_free(raw);
    mem_free(to);
    rotation_set_destroy(&set);
}

/* A plan is made before R1 is learned, when an identity stands in its place. */
static void test_plan_of_a_rotation_to_come(void **state) {
    (void)state;
    enum { WIDE = 512 };
    const rotation_options o = {.r1 = true, .start = START_IDENTITY};
    const rotation_sizes z = {WIDE, cfg.layers, cfg.heads, KV, DIM, INNER, false};
    rotation_set *set;
    rotation *learned;
    assert_ok(rotation_set_create(&o, &z, &set));
    assert_ok(rotation_create_dense(WIDE, NULL, &learned));
    for (int last = 0; last < 2; last++) {
        uint64_t sum = 0;
        for (int i = 0; i < MATRICES; i++) {
            llama_tensor t = matrix(i);
            if (t.rows == HIDDEN) t.rows = WIDE;
            if (t.cols == HIDDEN) t.cols = WIDE;
            const uint64_t planned = fused_tensor_bytes(set, &t, FUSE_BF16, true),
                           now = fused_tensor_bytes(set, &t, FUSE_BF16, false);
            assert_true(last ? planned == now : planned >= now);
            sum += planned - now;
        }
        assert_true(last ? sum == 0 : sum > 0);
        if (!last) assert_ok(rotation_set_put_r1(set, &learned));
    }
    rotation_set_destroy(&set);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ways_hand_over_the_same_rows),
        cmocka_unit_test(test_function_is_kept),
        cmocka_unit_test(test_tables_of_a_layer),
        cmocka_unit_test(test_gains_of_linears),
        cmocka_unit_test(test_what_is_refused),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_plan_of_a_rotation_to_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
