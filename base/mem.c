/* Blocks of malloc, and mapped ones, with their size in 64 bytes before them, so that what is held
 * and its peak can be counted without asking the system; the resident peak is read from the
 * process's status file. */
#include "base/mem.h"

#include "base/fault.h"
#include "base/size.h"
#include "base/space.h"

#include <inttypes.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { ALIGN = 64, HUGE_PAGE = 2 << 20, HUGE_FROM = 4 << 20 };

static _Atomic uint64_t held, peak;
static bool huge_aligned; /* large blocks begin on a huge page; until mem_start they do not */

/* Large blocks are mapped by themselves, so that each goes back to the system as it is freed:
 * malloc would take them from holes of a heap that small blocks have stretched, and leave new ones
 * there. A sanitizer is to see their ends. */
static bool is_mapped(uint64_t total) {
#ifdef __SANITIZE_ADDRESS__
    (void)total;
    return false;
#else
    return total >= HUGE_FROM;
#endif
}

/* Where a block of that size begins. One that begins on a huge page has small ones at its end
 * alone; what is left out before it is address space that nobody touches. */
static uint64_t boundary_of(uint64_t bytes) {
    return huge_aligned && bytes >= HUGE_FROM ? HUGE_PAGE : ALIGN;
}

/* Pages of 2 MB where the system has them: a large block costs a fault for each page otherwise. */
static void ask_for_huge_pages(char *p, uint64_t bytes) {
    char *page = p + (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
    madvise(page, (size_t)(p + bytes - page) / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
}

static char *map_pages(uint64_t bytes) {
    void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

/* In the 64 bytes before the block stand the bytes that were mapped for it (0: it is malloc's), its
 * size, and where its memory begins. */
static err take(bool zeroed, int64_t count, size_t size, const char *what, void **out) {
    uint64_t bytes, total;
    *out = NULL;
    if (count < 0 || !size_mul((uint64_t)count, size, &bytes) ||
        !size_add(bytes, 2 * ALIGN - 1, &total) || total > INT64_MAX)
        return err_make(ERR_BUG, what, NULL, "impossible size: %" PRId64 " x %zu bytes", count,
                        size);
    total = total / ALIGN * ALIGN;
    const uint64_t boundary = boundary_of(total);
    char *p = NULL;
    uint64_t room = total + boundary;
    char *raw = fault_hit("malloc") ? NULL
                : is_mapped(total)  ? map_pages(room)
                : zeroed            ? calloc(1, room)
                                    : malloc(room);
    if (raw) p = raw + (boundary - (uintptr_t)raw % boundary);
    if (!p) {
        char text[32];
        return err_make(ERR_NOFIT, what, "use more ranks or nodes with more memory",
                        "cannot allocate %s", size_text(bytes, text));
    }
    if ((size_t)(p - raw) < 3 * sizeof(uint64_t)) p += ALIGN;
    if (!is_mapped(total)) room = 0;
    memcpy(p - 24, &room, 8);
    if (total >= HUGE_FROM) ask_for_huge_pages(p, bytes);
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
    uint64_t bytes, room;
    char *raw;
    memcpy(&room, (char *)p - 24, 8);
    memcpy(&bytes, (char *)p - 16, 8);
    memcpy(&raw, (char *)p - 8, 8);
    atomic_fetch_sub(&held, bytes);
    if (room)
        munmap(raw, room);
    else
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

void mem_start(void) {
    mallopt(M_MMAP_THRESHOLD, HUGE_FROM);
    mallopt(M_TRIM_THRESHOLD, HUGE_FROM);
    if (space_limited()) mallopt(M_ARENA_MAX, 1);
    huge_aligned = !space_limited();
}

void mem_give_back(void) {
    malloc_trim(0);
}

void mem_begin_phase(void) {
    mem_give_back();
    FILE *f = fopen("/proc/self/clear_refs", "we");
    if (!f) return;
    fputs("5", f); /* proc(5): the peak becomes the current value */
    fclose(f);
}
