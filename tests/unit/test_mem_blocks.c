/* Where blocks come from, and what writing rotations takes of them. */
#include "base/file.h"
#include "base/mem.h"
#include "pipeline/weights/rotation_file.h"
#include "tests/unit/assert_ok.h"

#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SMALL = 1 << 20, MANY = 32, LARGE = 8 << 20 };

/* Holes of a heap are not for large blocks: what is freed would stay resident. */
static void test_large_blocks_are_mapped(void **state) {
    (void)state;
    void *small[MANY], *large;
    mem_start();
    for (int i = 0; i < MANY; i++) assert_ok(mem_alloc(SMALL, 1, "small", &small[i]));
    for (int i = 0; i < MANY - 1; i++) mem_free(small[i]);
#ifndef __SANITIZE_ADDRESS__ /* which has a heap of its own, that mallinfo2 knows nothing of */
    const struct mallinfo2 before = mallinfo2();
    assert_true(before.fordblks > LARGE); /* the hole is there */
#endif
    const uint64_t held = mem_held_bytes();
    assert_ok(mem_alloc(LARGE, 1, "large", &large));
    assert_int_equal((uintptr_t)large % 64, 0);
    assert_int_equal(mem_held_bytes(), held + LARGE);
#ifndef __SANITIZE_ADDRESS__
    const struct mallinfo2 after = mallinfo2();
    assert_int_equal(after.uordblks, before.uordblks);
    assert_int_equal(after.hblkhd, before.hblkhd);
#endif
    for (int i = 0; i < LARGE; i += 4096) assert_int_equal(((char *)large)[i], 0);
    memset(large, 1, LARGE);
    mem_free(large);
    mem_free(small[MANY - 1]);
    assert_int_equal(mem_held_bytes(), held - SMALL);
}

/* Until now the most that was ever held, so that whatever is taken from here on is seen. */
static void *fill_up(void) {
    void *p;
    assert_ok(mem_alloc((int64_t)(mem_peak_bytes() - mem_held_bytes()), 1, "filling up", &p));
    assert_int_equal(mem_held_bytes(), mem_peak_bytes());
    return p;
}

/* A set is not copied to be written: 8 MiB of R2, in pieces of a quarter of a MiB. */
static void test_rotations_are_not_copied(void **state) {
    (void)state;
    enum { LAYERS = 16, HEADS = 4, HEAD = 128, HIDDEN = 512, PIECE = 1 << 18 };
    const rotation_options o = {
        .r1 = true, .r2 = R2_HEAD, .r3 = true, .start = START_HAD, .seed = 3};
    const rotation_sizes z = {HIDDEN, LAYERS, HEADS, HEADS, HEAD, HIDDEN, false};
    char dir[] = "/tmp/spinshard-mem-XXXXXX", *text;
    rotation_set *set;
    size_t len;
    assert_non_null(mkdtemp(dir));
    char *path = file_join(dir, "r.safetensors");
    assert_ok(rotation_set_create(&o, &z, &set));
    for (int64_t l = 0; l < LAYERS; l++) assert_ok(rotation_set_prepare_r2(set, l));
    void *filling = fill_up();
    const uint64_t before = mem_peak_bytes();
    assert_ok(rotation_file_write(path, set, false, NULL));
    assert_true(mem_peak_bytes() - before <= 2 * PIECE);
    assert_ok(file_read_all(path, 1 << 30, &text, &len));
    const size_t r1 = sizeof(double) * HIDDEN * HIDDEN,
                 r2 = sizeof(double) * HEADS * HEAD * HEAD * LAYERS;
    double *numbers = malloc(r1 + r2), *want = malloc(sizeof(double) * HEAD * HEAD);
    assert_non_null(numbers);
    assert_non_null(want);
    memcpy(numbers, text + len - r1 - r2, r1 + r2);
    for (int64_t l = 0; l < LAYERS; l++)
        for (int64_t h = 0; h < HEADS; h++) {
            assert_ok(rotation_to_dense(rotation_set_r2(set, l, h), want));
            const double *got = numbers + HIDDEN * HIDDEN + (l * HEADS + h) * HEAD * HEAD;
            assert_memory_equal(got, want, sizeof(double) * HEAD * HEAD);
        }
    free(want);
    free(numbers);
    free(text);
    mem_free(filling);
    rotation_set_destroy(&set);
    assert_ok(file_remove_tree(dir));
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_large_blocks_are_mapped),
                                       cmocka_unit_test(test_rotations_are_not_copied)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
