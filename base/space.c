/* Whether there is room shows by taking it for a moment: what limits count, only the system knows.
 */
#include "base/space.h"

#include <sys/mman.h>
#include <sys/resource.h>

static bool is_limited(int what) {
    struct rlimit limit;
    return getrlimit(what, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY;
}

bool space_limited(void) {
    return is_limited(RLIMIT_AS) || is_limited(RLIMIT_DATA);
}

bool space_fits(size_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return false;
    munmap(p, bytes);
    return true;
}
