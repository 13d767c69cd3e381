/* Texts, id files and windows: numbers that can be counted by hand, and what must be refused. */
#include "base/file.h"
#include "io/text.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = "/tmp/spinshard-text-XXXXXX";
static char path[64];

static int make_folder(void **state) {
    (void)state;
    if (!mkdtemp(folder)) return -1;
    snprintf(path, sizeof path, "%s/text", folder);
    return 0;
}

static int remove_folder(void **state) {
    (void)state;
    return file_remove_tree(folder).code;
}

static void put_file(const char *bytes, size_t len) {
    assert_int_equal(file_publish(path, bytes, len).code, 0);
}

static tokenizer *make(bool with_bos) {
    static const char model[] = "\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":1,\"<s>\":2,"
                                "\"<t>\":3},\"merges\":[]}";
    static const char bos[] =
        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
        "\"x\"}},"
        "{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":{\"x\":{\"ids\":[2]}}},";
    char json[512];
    tokenizer *t;
    int n = snprintf(json, sizeof json, "{%s%s}", with_bos ? bos : "", model);
    assert_int_equal(tokenizer_create(json, (size_t)n, "test", &t).code, 0);
    return t;
}

/* ---- files */

static void test_read(void **state) {
    (void)state;
    char *text;
    size_t len;
    put_file("a\0\xc3\xa9\n", 5);
    assert_int_equal(text_read(path, &text, &len).code, 0);
    assert_int_equal(len, 5);
    assert_memory_equal(text, "a\0\xc3\xa9\n", 6);
    free(text);
    put_file("0123456789\xe9z", 12);
    err e = text_read(path, &text, &len);
    assert_int_equal(e.code, ERR_INPUT);
    assert_string_equal(e.where, path);
    assert_non_null(strstr(e.what, "byte 10"));
    assert_int_equal(text_read("/nonexistent/text", &text, &len).code, ERR_INPUT);
}

static void expect_ids(const char *text, const int32_t *want, int64_t n_want) {
    int32_t *ids;
    int64_t n;
    put_file(text, strlen(text));
    err e = text_read_ids(path, 100, &ids, &n);
    if (e.code) fail_msg("\"%s\": %s", text, e.what);
    assert_int_equal(n, n_want);
    assert_memory_equal(ids, want, (size_t)n * sizeof *ids);
    free(ids);
}

static void refuse_ids(const char *text, const char *named) {
    int32_t *ids;
    int64_t n;
    put_file(text, strlen(text));
    err e = text_read_ids(path, 100, &ids, &n);
    if (e.code != ERR_INPUT || !strstr(e.what, named))
        fail_msg("\"%s\": %d %s", text, e.code, e.what);
    assert_null(ids);
    assert_int_equal(n, 0);
}

static void test_read_ids(void **state) {
    (void)state;
    const int32_t want[] = {1, 99, 0};
    expect_ids("1 99 0", want, 3);
    expect_ids("1\n99\n0\n", want, 3);
    expect_ids("1,99,0", want, 3);
    expect_ids(" 1 ,\t99\r\n 0 ", want, 3);
    expect_ids("[1, 99, 0]\n", want, 3);
    expect_ids("[1,99,0]", want, 3);
    expect_ids("007", (const int32_t[]){7}, 1);
    expect_ids("", want, 0);
    expect_ids("[]", want, 0);
    refuse_ids("1 100", "100");
    refuse_ids("1 -2", "after 1");
    refuse_ids("99999999999999999999", "not in 0..99");
    refuse_ids("1 2 x", "after 2");
    refuse_ids("1.5", "after 1");
    refuse_ids("1,,2", "after 1");
    refuse_ids("1,", "after 1");
    refuse_ids(",1", "after 0");
    refuse_ids("[1 2]", "after 1");
    refuse_ids("[1,2", "no end");
    refuse_ids("[1,]", "after 1");
    refuse_ids("[1] 2", "behind");
    refuse_ids("1]", "behind");
    refuse_ids("[[1]]", "after 0");
}

/* ---- windows */

static text_windows *cut(int64_t n, int64_t window, int64_t limit, int64_t tail, bos_mode mode,
                         int32_t bos_id, const tokenizer *t) {
    int32_t ids[64];
    text_windows *w;
    assert_true(n <= 64);
    for (int i = 0; i < 64; i++) ids[i] = 1000 + i;
    err e = text_windows_create(ids, n, window, limit, tail, mode, bos_id, t, "book.txt", &w);
    if (e.code) fail_msg("%s", e.what);
    assert_int_equal(text_windows_length(w), window);
    return w;
}

/* Windows of `window` ids: n_bos times bos, then the ids from `first` on, without a gap. */
static void expect_windows(text_windows *w, int64_t count, int n_bos, int32_t bos, int32_t first,
                           const char *name) {
    int64_t n_text = text_windows_length(w) - n_bos;
    assert_int_equal(text_windows_count(w), count);
    assert_string_equal(text_windows_bos(w), name);
    for (int64_t i = 0; i < count; i++) {
        const int32_t *ids = text_window_at(w, i);
        for (int k = 0; k < n_bos; k++) assert_int_equal(ids[k], bos);
        for (int64_t k = 0; k < n_text; k++)
            assert_int_equal(ids[n_bos + k], first + i * n_text + k);
    }
    text_windows_destroy(&w);
    assert_null(w);
}

static void test_windows(void **state) {
    (void)state;
    tokenizer *with = make(true), *without = make(false);
    expect_windows(cut(20, 6, 0, 0, BOS_NONE, -1, with), 3, 0, 0, 1000, "none");
    expect_windows(cut(20, 6, 0, 0, BOS_AUTO, -1, with), 4, 1, 2, 1000,
                   "<s> (2)"); /* 5 of text each */
    expect_windows(cut(20, 6, 0, 0, BOS_AUTO, 3, without), 3, 0, 0, 1000, "none");
    expect_windows(cut(20, 6, 0, 0, BOS_EACH_WINDOW, 3, with), 4, 1, 2, 1000, "<s> (2)");
    expect_windows(cut(20, 6, 0, 0, BOS_EACH_WINDOW, 3, without), 4, 1, 3, 1000, "<t> (3)");
    expect_windows(cut(20, 6, 0, 0, BOS_EACH_WINDOW, 77, NULL), 4, 1, 77, 1000, "id 77");
    expect_windows(cut(20, 6, 0, 0, BOS_AUTO, 77, NULL), 3, 0, 0, 1000, "none");
    expect_windows(cut(20, 6, 2, 0, BOS_NONE, -1, with), 2, 0, 0, 1000, "none");
    expect_windows(cut(20, 6, 9, 0, BOS_NONE, -1, with), 3, 0, 0, 1000, "none");
    expect_windows(cut(20, 6, 0, 13, BOS_NONE, -1, with), 2, 0, 0, 1007, "none"); /* the last 13 */
    expect_windows(cut(20, 6, 1, 13, BOS_AUTO, -1, with), 1, 1, 2, 1007, "<s> (2)");
    expect_windows(cut(20, 6, 0, 50, BOS_NONE, -1, with), 3, 0, 0, 1000, "none");
    expect_windows(cut(6, 6, 0, 0, BOS_NONE, -1, with), 1, 0, 0, 1000, "none");
    expect_windows(cut(5, 6, 0, 0, BOS_AUTO, -1, with), 1, 1, 2, 1000, "<s> (2)");
    tokenizer_destroy(&with);
    tokenizer_destroy(&without);
}

static void test_windows_refused(void **state) {
    (void)state;
    const int32_t ids[8] = {0};
    text_windows *w;
    tokenizer *t = make(true), *without = make(false);
    err e = text_windows_create(ids, 5, 6, 0, 0, BOS_NONE, -1, t, "book.txt", &w);
    assert_int_equal(e.code, ERR_INPUT);
    assert_null(w);
    assert_string_equal(e.where, "book.txt");
    assert_non_null(strstr(e.what, "5 tokens"));
    assert_non_null(strstr(e.what, "needs 6"));
    e = text_windows_create(ids, 8, 6, 0, 4, BOS_AUTO, -1, t, "book.txt",
                            &w); /* the tail is short */
    assert_int_equal(e.code, ERR_INPUT);
    assert_non_null(strstr(e.what, "4 tokens"));
    assert_non_null(strstr(e.what, "needs 5"));
    assert_int_equal(text_windows_create(ids, 0, 6, 0, 0, BOS_AUTO, -1, t, "x", &w).code,
                     ERR_INPUT);
    assert_int_equal(text_windows_create(ids, 8, 1, 0, 0, BOS_NONE, -1, t, "x", &w).code,
                     ERR_USAGE);
    assert_int_equal(text_windows_create(ids, 8, 0, 0, 0, BOS_NONE, -1, t, "x", &w).code,
                     ERR_USAGE);
    assert_int_equal(
        text_windows_create(ids, 8, 6, 0, 0, BOS_EACH_WINDOW, -1, without, "x", &w).code,
        ERR_INPUT);
    tokenizer_destroy(&t);
    tokenizer_destroy(&without);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_read),
        cmocka_unit_test(test_read_ids),
        cmocka_unit_test(test_windows),
        cmocka_unit_test(test_windows_refused),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
