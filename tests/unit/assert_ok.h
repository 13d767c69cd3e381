/* assert_ok - a call that must succeed; where it does not, the test says what the error says. For
 * tests alone; includes cmocka. */
#ifndef SPINSHARD_TESTS_UNIT_ASSERT_OK_H
#define SPINSHARD_TESTS_UNIT_ASSERT_OK_H

#include "base/err.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static inline void assert_ok(err e) {
    if (e.code) print_error("%s: %s\n", e.where, e.what);
    assert_int_equal(e.code, ERR_OK);
}

#endif
