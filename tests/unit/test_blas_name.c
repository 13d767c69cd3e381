/* base/blas.h: which library is named where several are in the process. This program stands in for
 * BLIS: it has BLIS's functions and its cblas_dgemm, while the library that the build links may be
 * another. */
#include "base/blas.h"

#include "base/gemm.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static int64_t asked;

/* Called from base/blas.c, found by name. */
void cblas_dgemm(void);
const char *bli_info_get_version_str(void);
int bli_arch_query_id(void);
const char *bli_arch_string(int id);
void bli_thread_set_num_threads(int64_t n);

void cblas_dgemm(void) {
}

const char *bli_info_get_version_str(void) {
    return "7.8.9";
}

int bli_arch_query_id(void) {
    return 42;
}

const char *bli_arch_string(int id) {
    return id == 42 ? "stand-in" : "unknown";
}

void bli_thread_set_num_threads(int64_t n) {
    asked = n;
}

/* The name is that of the library whose product is called, whatever else is in the process: it goes
 * into the run state, and kernels of OpenBLAS that nobody calls are not asked for. */
static void test_products_are_named(void **state) {
    (void)state;
    char name[160], line[512];
    blas_name(name, sizeof name);
    assert_string_equal(name, "BLIS 7.8.9 stand-in");
    assert_null(blas_openblas_core());
    gemm_kernels(line, sizeof line);
    assert_int_equal(strncmp(line, "BLIS 7.8.9 stand-in fp32 fp64; ", 31), 0);
    assert_false(gemm_slow_kernels(line, sizeof line));
}

static void test_threads_are_set(void **state) {
    (void)state;
    blas_set_threads(3);
    assert_int_equal(asked, 3);
    blas_set_threads(0);
    assert_int_equal(asked, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_products_are_named),
                                       cmocka_unit_test(test_threads_are_set)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
