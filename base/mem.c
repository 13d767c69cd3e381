/* Blocks of malloc with their size in 64 bytes before them, so that what is held and its peak can
 * be counted without asking the system; the resident peak is read from the process's status file.
 */
#include "base/mem.h"

#include "base/fault.h"
#include "base/size.h"

#include <inttypes.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define RED_ZONE 64
#else
#define ASAN_POISON_MEMORY_REGION(p, n)   ((void)(p), (void)(n))
#define ASAN_UNPOISON_MEMORY_REGION(p, n) ((void)(p), (void)(n))
#define RED_ZONE                          0
#endif

enum { ALIGN = 64, HUGE_PAGE = 2 << 20, HUGE_FROM = 4 << 20 };

static _Atomic uint64_t held, peak;

/* The size stands in the 64 bytes before the block. */
static err take(bool zeroed, int64_t count, size_t size, const char *what, void **out) {
    uint64_t bytes, total;
    *out = NULL;
    if (count < 0 || !size_mul((uint64_t)count, size, &bytes) ||
        !size_add(bytes, 2 * ALIGN - 1, &total) || total > INT64_MAX)
        return err_make(ERR_BUG, what, NULL, "impossible size: %" PRId64 " x %zu bytes", count,
                        size);
    total = total / ALIGN * ALIGN;
    char *p = NULL;
    /* calloc of a large block comes from fresh zero pages: no second pass over the memory. */
    char *raw = fault_hit("malloc") ? NULL
                : zeroed            ? calloc(1, total + ALIGN)
                                    : malloc(total + ALIGN);
    if (raw) p = raw + (ALIGN - (uintptr_t)raw % ALIGN);
    if (!p) {
        char text[32];
        return err_make(ERR_NOFIT, what, "use more ranks or nodes with more memory",
                        "cannot allocate %s", size_text(bytes, text));
    }
    if ((size_t)(p - raw) < 2 * sizeof(uint64_t)) p += ALIGN;
    /* Pages of 2 MB where the system has them: a large block costs a fault for each page otherwise.
     */
    if (total >= HUGE_FROM) {
        char *page = p + (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE);
        madvise(page, (size_t)(p + bytes - page) / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
    }
    memcpy(p - 16, &bytes, 8);
    memcpy(p - 8, &raw, 8);
    uint64_t now = atomic_fetch_add(&held, bytes) + bytes, old = atomic_load(&peak);
    while (now > old && !atomic_compare_exchange_weak(&peak, &old, now)) {
    }
    *out = p;
    return err_none();
}

err mem_alloc(int64_t count, size_t size, const char *what, void **out) {
    return take(true, count, size, what, out);
}

err mem_alloc_unset(int64_t count, size_t size, const char *what, void **out) {
    return take(false, count, size, what, out);
}

void mem_free(void *p) {
    if (!p) return;
    uint64_t bytes;
    char *raw;
    memcpy(&bytes, (char *)p - 16, 8);
    memcpy(&raw, (char *)p - 8, 8);
    atomic_fetch_sub(&held, bytes);
    free(raw);
}

uint64_t mem_held_bytes(void) {
    return atomic_load(&held);
}

uint64_t mem_peak_bytes(void) {
    return atomic_load(&peak);
}

/* A line "NAME:  123 kB" of the process's status. */
static uint64_t status_bytes(const char *name) {
    FILE *f = fopen("/proc/self/status", "re");
    if (!f) return 0;
    char line[256];
    uint64_t kib = 0;
    const size_t n = strlen(name);
    while (fgets(line, sizeof line, f))
        if (!strncmp(line, name, n) && sscanf(line + n, ": %" SCNu64 " kB", &kib) == 1) break;
    fclose(f);
    return kib * 1024;
}

uint64_t mem_rss_bytes(void) {
    return status_bytes("VmRSS");
}

uint64_t mem_peak_rss_bytes(void) {
    return status_bytes("VmHWM");
}

void mem_begin_phase(void) {
    malloc_trim(0);
    FILE *f = fopen("/proc/self/clear_refs", "we");
    if (!f) return;
    fputs("5", f); /* proc(5): the peak becomes the current value */
    fclose(f);
}

struct arena {
    char *base;
    uint64_t bytes, used, peak;
    char what[64];
};

err arena_create(uint64_t bytes, const char *what, arena **out) {
    void *body, *base;
    *out = NULL;
    err e = mem_alloc(1, sizeof(arena), what, &body);
    if (e.code) return e;
    e = mem_alloc((int64_t)bytes, 1, what, &base);
    if (e.code) {
        mem_free(body);
        return e;
    }
    arena *a = body;
    a->base = base;
    a->bytes = bytes;
    snprintf(a->what, sizeof a->what, "%s", what);
    ASAN_POISON_MEMORY_REGION(base, bytes);
    *out = a;
    return e;
}

void arena_destroy(arena **a) {
    if (!*a) return;
    ASAN_UNPOISON_MEMORY_REGION((*a)->base, (*a)->bytes);
    mem_free((*a)->base);
    mem_free(*a);
    *a = NULL;
}

void *arena_take(arena *a, int64_t count, size_t size) {
    uint64_t bytes, end;
    bool fits = count >= 0 && size_mul((uint64_t)count, size, &bytes) &&
                size_add(a->used, bytes + RED_ZONE, &end) && end <= a->bytes;
    if (!fits) {
        fprintf(stderr,
                "spinshard: bug: arena '%s' of %" PRIu64 " bytes is too small: %" PRIu64
                " used, %" PRId64 " x %zu more asked\n",
                a->what, a->bytes, a->used, count, size);
        abort();
    }
    char *p = a->base + a->used;
    ASAN_UNPOISON_MEMORY_REGION(p, bytes);
    a->used = (end + ALIGN - 1) / ALIGN * ALIGN;
    if (a->used > a->peak) a->peak = a->used;
    return p;
}

uint64_t arena_mark(const arena *a) {
    return a->used;
}

void arena_reset(arena *a, uint64_t mark) {
    ASAN_POISON_MEMORY_REGION(a->base + mark, a->bytes - mark);
    a->used = mark;
}

uint64_t arena_peak_bytes(const arena *a) {
    return a->peak;
}
