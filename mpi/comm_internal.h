/* comm_internal - the MPI communicator behind a comm, for mpi/dmat.c: BLACS needs it. Nobody
 * outside mpi/ includes it. */
#ifndef SPINSHARD_MPI_COMM_INTERNAL_H
#define SPINSHARD_MPI_COMM_INTERNAL_H

#include "mpi/comm.h"

#include <mpi.h>

/* Local. Borrowed; valid after comm_start. */
MPI_Comm comm_handle(const comm *c);

#endif
