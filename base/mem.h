/* mem - aligned memory whose failure is an err. Not a general allocator: no realloc, no per-thread
 * caches. Every large buffer of the program comes from here, so that what was planned can be
 * compared with what was taken. */
#ifndef SPINSHARD_BASE_MEM_H
#define SPINSHARD_BASE_MEM_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

/* Local. Once, at the start of the program. Blocks from 4 MiB on, also those of libraries, are
 * mapped one by one, so that each goes back to the system when it is freed; smaller ones are taken
 * again from the heap, since a fresh mapping costs them a fault for every 4 KiB. Left to itself
 * glibc raises that size with the blocks that it sees freed, to 32 MiB, and keeps twice as much:
 * what a process held then depended on all that it had held before, and no plan of a phase was
 * true. Where address space is limited (base/space.h), threads share one heap: each of their own
 * sets 64 MiB of it aside; elsewhere the large blocks of mem_alloc begin on a page of 2 MiB. */
void mem_start(void);

/* Local. count * size bytes, zeroed, aligned to 64; what names the buffer in messages.
 * Caller owns *out (mem_free). count 0 gives a valid pointer. Fails with ERR_NOFIT. */
err mem_alloc(int64_t count, size_t size, const char *what, void **out);

/* Local. As mem_alloc, but the bytes are undefined: for buffers that are written before they are
 * read. */
err mem_alloc_unset(int64_t count, size_t size, const char *what, void **out);
void mem_free(void *p); /* local; NULL is fine */

/* Local. As mem_alloc and mem_alloc_unset, of `count` things of the type that out, a T **, points
 * to. The compiler warns of a void **, whose things have no size. */
#define MEM_NEW(out, count, what)       mem_new_(mem_alloc, out, count, what)
#define MEM_NEW_UNSET(out, count, what) mem_new_(mem_alloc_unset, out, count, what)
#define mem_new_(alloc, out, count, what)                                                          \
    ({                                                                                             \
        void *mem_p_;                                                                              \
        err mem_e_ = alloc(count, sizeof **(out), what, &mem_p_);                                  \
        *(out) = mem_p_;                                                                           \
        mem_e_;                                                                                    \
    })

/* Local. Bytes held through mem_alloc by this process, and the most there ever were. For tests
 * and benches. */
uint64_t mem_held_bytes(void);
uint64_t mem_peak_bytes(void);

/* Local. Resident set of this process in bytes now, and at its peak (VmRSS, VmHWM); 0 where
 * unknown. */
uint64_t mem_rss_bytes(void);
uint64_t mem_peak_rss_bytes(void);

/* Local. For the start of a phase: what was freed goes back to the system, and the peak begins anew
 * at what is resident then. Where the system does not allow it the peak stays that of the whole
 * run. */
void mem_begin_phase(void);
void mem_give_back(void); /* local; that first part alone, after something large was freed */

#endif
