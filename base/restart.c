/* execve of the own binary with a changed environment, guarded by a variable that marks the second
 * start, so that it can never happen twice. */
#include "base/restart.h"

#include "base/blas.h"
#include "base/space.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

/* What OpenBLAS had chosen, and what was asked for: "Prescott SkylakeX". Left by the first start
 * for the second, which therefore does not try again, whatever the library made of the request. */
#define CHOSEN "SPINSHARD_CHOSE_KERNELS"

static bool is_one_of(const char *word, const char *const *list) {
    for (; *list; list++)
        if (strcasecmp(word, *list) == 0) return true;
    return false;
}

const char *restart_better_core(const char *core) {
    static const char *const full[] = {"SkylakeX", "Cooperlake", "SapphireRapids", NULL};
    static const char *const half[] = {"Haswell", "Zen", NULL};
    if (!core || is_one_of(core, full)) return NULL;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return "SkylakeX";
    if (is_one_of(core, half)) return NULL;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? "Haswell" : NULL;
}

static bool is_set(const char *name) {
    const char *value = getenv(name);
    return value && *value;
}

static bool asked_to_keep(char **argv) {
    if (is_set("SPINSHARD_KEEP_KERNELS")) return true;
    for (; *argv; argv++)
        if (!strcmp(*argv, "--keep-kernels")) return true;
    return false;
}

static bool ask_for_kernels(char **argv) {
    if (is_set("OPENBLAS_CORETYPE") || is_set(CHOSEN) || asked_to_keep(argv)) return false;
    const char *core = blas_openblas_core(), *better = restart_better_core(core);
    if (!better) return false;
    char chosen[128];
    snprintf(chosen, sizeof chosen, "%s %s", core, better);
    return setenv(CHOSEN, chosen, 1) == 0 && setenv("OPENBLAS_CORETYPE", better, 1) == 0;
}

static bool ask_to_spin_briefly(void) {
    return !is_set("GOMP_SPINCOUNT") && !is_set("OMP_WAIT_POLICY") &&
           setenv("GOMP_SPINCOUNT", "3000", 1) == 0;
}

static bool ask_for_one_thread(void) {
    return space_limited() && !is_set("OPENBLAS_NUM_THREADS") &&
           setenv("OPENBLAS_NUM_THREADS", "1", 1) == 0;
}

void restart_tuned(char **argv) {
    const bool kernels = ask_for_kernels(argv), spin = ask_to_spin_briefly(),
               one = ask_for_one_thread();
    if (!kernels && !spin && !one) return;
    char self[4096];
    ssize_t n = readlink("/proc/self/exe", self, sizeof self - 1);
    if (n <= 0) return;
    self[n] = 0;
    execv(self, argv); /* where it fails, the program goes on as it is */
}

bool restart_said(char *buf, size_t size) {
    const char *chosen = getenv(CHOSEN), *asked = getenv("OPENBLAS_CORETYPE");
    const char *core = blas_openblas_core(), *space = chosen ? strchr(chosen, ' ') : NULL;
    if (!space || !asked || !core || strcmp(space + 1, asked) != 0 || strcasecmp(core, asked) != 0)
        return false;
    snprintf(buf, size,
             "OpenBLAS does not know this CPU and took its %.*s kernels: started again with "
             "OPENBLAS_CORETYPE=%s (--keep-kernels leaves its choice)",
             (int)(space - chosen), chosen, asked);
    return true;
}
