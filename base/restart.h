/* restart - what libraries read from the environment while they are loaded, put there by the
 * program itself: it sets the variables and executes itself again, once, before MPI starts and
 * before any product. Launchers see one process with the same id, files and place; whatever the
 * user set stays.
 *
 * OPENBLAS_CORETYPE: OpenBLAS that is older than the CPU, or does not know the model number that a
 * virtual machine shows, takes kernels for CPUs of 2004, at a quarter of the speed. The widest set
 * that the CPU's instructions allow is asked for. SPINSHARD_KEEP_KERNELS=1 or the word
 * --keep-kernels leave its choice alone.
 *
 * GOMP_SPINCOUNT: threads that wait for the next parallel region spin for milliseconds by the
 * runtime's default, which starves whoever shares the cores: on two shared cores fusion of small
 * layers ran five times slower for it.
 *
 * OPENBLAS_NUM_THREADS, where address space is limited: OpenBLAS starts threads of its own while it
 * is loaded, which the program does not use before it asks for them. Each takes a buffer, and where
 * there is no room for that the process never ends (base/blas.h). */
#ifndef SPINSHARD_BASE_RESTART_H
#define SPINSHARD_BASE_RESTART_H

#include <stdbool.h>
#include <stddef.h>

/* Local. First in main, once streams 0 to 2 are open. Returns where nothing is to be set, or
 * executing again failed. */
void restart_tuned(char **argv);

/* Local. True, with one line for the log, where this process runs kernels that restart_tuned asked
 * for, and in place of which. */
bool restart_said(char *buf, size_t size);

/* Local. The set of OpenBLAS's kernels that the CPU's instructions allow and `core`, a name of
 * OpenBLAS's, falls short of; NULL where it does not. Static text. */
const char *restart_better_core(const char *core);

#endif
