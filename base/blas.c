/* Weak symbols tell at run time which library was linked: a function that only one library exports
 * has an address or is NULL. */
#include "base/blas.h"

#include "base/space.h"
#include "version.h"

#include <dlfcn.h>
#include <omp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Weak: those of the library that is there have an address, the others are NULL. So the one program
 * runs with whichever of them the system puts behind the name it was linked to. */
extern void openblas_set_num_threads(int n) __attribute__((weak));
extern void *blas_memory_alloc(int position) __attribute__((weak));
extern void blas_memory_free(void *buffer) __attribute__((weak));
extern char *openblas_get_config(void) __attribute__((weak));
extern char *openblas_get_corename(void) __attribute__((weak));
extern void bli_thread_set_num_threads(int64_t n) __attribute__((weak));
extern const char *bli_info_get_version_str(void) __attribute__((weak));
extern int bli_arch_query_id(void) __attribute__((weak));
extern const char *bli_arch_string(int id) __attribute__((weak));
extern void MKL_Set_Num_Threads(int n) __attribute__((weak));
extern void MKL_Get_Version_String(char *buf, int size) __attribute__((weak));
extern int MKL_CBWR_Get_Auto_Branch(void) __attribute__((weak));

void blas_set_threads(int threads) {
    if (threads < 1) threads = 1;
    if (openblas_set_num_threads) openblas_set_num_threads(threads);
    if (bli_thread_set_num_threads) bli_thread_set_num_threads(threads);
    if (MKL_Set_Num_Threads) MKL_Set_Num_Threads(threads);
}

static atomic_bool taken;

/* The library is OpenBLAS, which asks for ever, and the system may have no room. */
static bool must_take_buffers(void) {
    return blas_memory_alloc && blas_memory_free && space_limited();
}

/* All buffers are had at once, so that there is one for each thread, and are then OpenBLAS's to
 * give: it keeps what it once took. */
static void take_buffers(void) {
    /* A buffer, what malloc adds to it, and the stack of the thread, which may not have begun. */
    const size_t each = (size_t)144 << 20;
    const int threads = omp_get_max_threads();
    void **buffers = must_take_buffers() ? calloc((size_t)threads, sizeof *buffers) : NULL;
    taken = !must_take_buffers() || (buffers && space_fits((size_t)threads * each));
    for (int i = 0; buffers && taken && i < threads; i++) buffers[i] = blas_memory_alloc(0);
    for (int i = 0; buffers && taken && i < threads; i++) blas_memory_free(buffers[i]);
    free(buffers);
}

bool blas_take_buffers(void) {
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, take_buffers);
    return taken;
}

bool blas_at_hand(void) {
    return taken || !must_take_buffers();
}

/* Whether products are BLIS's. OpenBLAS may be in the process beside it, behind the LAPACK or the
 * ScaLAPACK of the system; then products come from where cblas_dgemm was found first. */
static bool products_by_blis(void) {
    void *product = dlsym(RTLD_DEFAULT, "cblas_dgemm");
    Dl_info of_product, of_blis;
    if (!bli_info_get_version_str) return false;
    if (!openblas_get_config) return true;
    return product && dladdr(product, &of_product) &&
           dladdr((void *)(uintptr_t)bli_info_get_version_str, &of_blis) &&
           of_product.dli_fbase == of_blis.dli_fbase;
}

const char *blas_openblas_core(void) {
    return openblas_get_corename && !products_by_blis() ? openblas_get_corename() : NULL;
}

void blas_name(char *buf, size_t size) {
    if (products_by_blis()) {
        snprintf(buf, size, "BLIS %s %s", bli_info_get_version_str(),
                 bli_arch_query_id && bli_arch_string ? bli_arch_string(bli_arch_query_id()) : "");
    } else if (openblas_get_config && openblas_get_corename) {
        const char *config = openblas_get_config(); /* "OpenBLAS 0.3.21 DYNAMIC_ARCH ... CORE" */
        int name = (int)strcspn(config, " ");
        int version = config[name] ? (int)strcspn(config + name + 1, " ") : 0;
        snprintf(buf, size, "%.*s %.*s %s", name, config, version, version ? config + name + 1 : "",
                 openblas_get_corename());
    } else if (MKL_Get_Version_String) {
        char text[128] = "";
        MKL_Get_Version_String(text, sizeof text - 1);
        snprintf(buf, size, "%.*s branch %d", (int)strcspn(text, "\n"), text,
                 MKL_CBWR_Get_Auto_Branch ? MKL_CBWR_Get_Auto_Branch() : 0);
    } else {
        snprintf(buf, size, "%s", SPINSHARD_BLAS);
    }
}
