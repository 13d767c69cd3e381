/* Files of questions: the four shapes, and what is refused, by line. */
#include "io/tasks.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static err parse(const char *text, task_set **out) {
    return task_set_parse(text, strlen(text), "test", out);
}

static void four_shapes(void **state) {
    (void)state;
    task_set *t;
    assert_int_equal(parse("{\"query\": \"q\", \"choices\": [\"a\", \"b\", \"c\"], \"gold\": 2}\n"
                           "{\"gold\": 0, \"choices\": [\"d\", \"e\"], \"query\": \"\"}\n\n",
                           &t)
                         .code,
                     ERR_OK);
    assert_int_equal(task_set_shape(t), TASK_CHOICES);
    assert_int_equal(task_set_count(t), 2);
    assert_int_equal(task_options(t, 0), 3);
    assert_int_equal(task_options(t, 1), 2);
    assert_int_equal(task_gold(t, 0), 2);
    assert_string_equal(task_context(t, 0, 1), "q");
    assert_string_equal(task_continuation(t, 0, 1), "b");
    assert_string_equal(task_continuation(t, 1, 1), "e");
    task_set_destroy(&t);
    assert_int_equal(
        parse("{\"contexts\": [\"x\", \"y\"], \"continuation\": \"z\", \"gold\": 1}\r\n", &t).code,
        ERR_OK);
    assert_int_equal(task_set_shape(t), TASK_CONTEXTS);
    assert_string_equal(task_context(t, 0, 1), "y");
    assert_string_equal(task_continuation(t, 0, 1), "z");
    task_set_destroy(&t);
    assert_int_equal(
        parse("{\"context\": \"x\", \"choices\": [\"y\", \"z\"], \"gold\": 1}", &t).code, ERR_OK);
    assert_int_equal(task_set_shape(t), TASK_PROMPT);
    assert_int_equal(task_options(t, 0), 2);
    assert_string_equal(task_context(t, 0, 1), "x");
    assert_string_equal(task_continuation(t, 0, 1), "z");
    task_set_destroy(&t);
    assert_int_equal(parse("{\"context\": \"x\", \"continuation\": \"z\"}", &t).code, ERR_OK);
    assert_int_equal(task_set_shape(t), TASK_WORD);
    assert_int_equal(task_options(t, 0), 1);
    task_set_destroy(&t);
    assert_null(t);
}

static void refused(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "no items"},
        {"\n\n", "no items"},
        {"[]", "object"},
        {"{\"query\": \"q\", \"choices\": [\"a\", \"b\"]}", "keys"},
        {"{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 0, \"more\": 1}", "keys"},
        {"{\"query\": \"q\", \"choices\": [\"a\"], \"gold\": 0}", "choices"},
        {"{\"query\": \"q\", \"choices\": \"a\", \"gold\": 0}", "choices"},
        {"{\"query\": \"q\", \"choices\": [\"a\", \"\"], \"gold\": 0}", "empty"},
        {"{\"query\": \"q\", \"choices\": [\"a\", 1], \"gold\": 0}", "text"},
        {"{\"query\": [\"q\", \"r\"], \"choices\": [\"a\", \"b\"], \"gold\": 0}", "query"},
        {"{\"query\": 1, \"choices\": [\"a\", \"b\"], \"gold\": 0}", "query"},
        {"{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 2}", "gold"},
        {"{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": -1}", "gold"},
        {"{\"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 0.0}", "gold"},
        {"{\"query\": \"q\", \"query\": \"q\", \"choices\": [\"a\", \"b\"], \"gold\": 0}", ""},
        {"{\"context\": \"x\", \"continuation\": [\"a\", \"b\"]}", "continuation"},
        {"{\"context\": \"x\", \"continuation\": \"\"}", "empty"},
        {"{\"context\": \"x\", \"continuation\": \"a\"}\n{\"query\": \"q\", \"choices\": [\"a\", "
         "\"b\"], \"gold\": 0}",
         "kind"},
        {"{\"context\": \"x\", \"continuation\": \"a\"} {}", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        task_set *t = (void *)1;
        err e = parse(cases[i].text, &t);
        if (e.code != ERR_INPUT || !strstr(e.what, cases[i].says))
            fail_msg("case %zu: %d %s", i, e.code, e.what);
        assert_null(t);
    }
}

static void blank_lines_are_nothing(void **state) {
    (void)state;
    task_set *t;
    assert_int_equal(parse("\n{\"context\": \"x\", \"continuation\": \"a\"}\r\n \t\r\n"
                           "{\"context\": \"y\", \"continuation\": \"b\"}\n\n",
                           &t)
                         .code,
                     0);
    assert_int_equal(task_set_count(t), 2);
    assert_string_equal(task_context(t, 1, 0), "y");
    task_set_destroy(&t);
}

static void names_the_line(void **state) {
    (void)state;
    task_set *t;
    err e = parse("{\"context\": \"x\", \"continuation\": \"a\"}\n{\"context\": \"x\"}\n", &t);
    assert_int_equal(e.code, ERR_INPUT);
    assert_non_null(strstr(e.where, "line 2"));
    char *text = malloc((2 << 20) + 1);
    memset(text, ' ', 2 << 20);
    text[2 << 20] = 0;
    assert_int_equal(parse(text, &t).code, ERR_INPUT);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(four_shapes), cmocka_unit_test(refused),
                                       cmocka_unit_test(blank_lines_are_nothing),
                                       cmocka_unit_test(names_the_line)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
