/* space - address space, where a limit of the process (ulimit -v, -d) makes it scarce. Not memory:
 * what is mapped and never touched counts too (base/machine.h has the memory). Under such a limit
 * threads and libraries that reserve a lot fail where they cannot tell it, so what they need is
 * looked at, or taken, before. */
#ifndef SPINSHARD_BASE_SPACE_H
#define SPINSHARD_BASE_SPACE_H

#include <stdbool.h>
#include <stddef.h>

/* Local, any thread. Some limit is set. */
bool space_limited(void);

/* Local, any thread, also in a handler of a signal. So many bytes could be mapped now. */
bool space_fits(size_t bytes);

#endif
