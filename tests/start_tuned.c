/* Linked into every test and bench: they run the kernels that the program itself would, although
 * each has a main of its own. The C library gives constructors the arguments of main. */
#include "base/restart.h"

__attribute__((constructor)) static void start_tuned(int argc, char **argv, char **envp) {
    (void)argc;
    (void)envp;
    restart_tuned(argv);
}
