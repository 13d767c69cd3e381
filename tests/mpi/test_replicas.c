/* Copies that ranks hold: equal ones pass, one that differs is named with its rank, on every rank;
 * ranks without a copy have no say. Runs on any number of ranks. */
#include "base/fault.h"
#include "mpi/replicas.h"
#include "tests/mpi/on_ranks.h"

#include <stdio.h>
#include <string.h>

static const comm *world;

/* `odd` (-1: none) holds another second part; ranks from `holders` on hold none. */
static err ask(int odd, int holders) {
    double first[3] = {1, 2, 3}, second[2] = {4, 5};
    int me = comm_rank(world);
    if (me == odd) memcpy(&second[1], (double[]){5.000000000000001}, sizeof second[1]);
    const replica parts[] = {{"R1", first, sizeof first},
                             {"R2", second, me < holders ? sizeof second : 0}};
    return replicas_check(world, parts, 2, "learn.0");
}

int main(int argc, char **argv) {
    world = ranks_start(&argc, &argv);
    int size = comm_size(world);
    char name[32], spec[32];
    CHECK(ask(-1, size).code == ERR_OK);
    CHECK(ask(-1, 1).code == ERR_OK);
    CHECK(ask(-1, 0).code == ERR_OK);
    for (int odd = 0; odd < size && size > 1; odd++) {
        err e = ask(odd, size);
        /* of two, nobody can say which is right: the second differs from the first */
        snprintf(name, sizeof name, "rank %d holds", size == 2 ? 1 : odd);
        CHECK(e.code == ERR_NUMERICS && strstr(e.what, name) && strstr(e.what, "R2"));
        CHECK(!strcmp(e.where, "learn.0"));
        CHECK(ask(odd, odd).code == ERR_OK); /* it holds no copy */
        snprintf(spec, sizeof spec, "state:1:%d", odd);
        fault_arm(spec);
        e = ask(-1, size);
        CHECK(e.code == ERR_NUMERICS && strstr(e.what, name) && strstr(e.what, "R1"));
        fault_arm("");
    }
    return ranks_end();
}
