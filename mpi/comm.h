/* comm - the ranks of the run: start and stop, agreed errors, and the few exchanges that we use.
 * Counts are 64-bit; long messages go in pieces. What all ranks get or sum crosses to each other
 * node once, however many ranks that has. Floats are never summed here: sums that must not depend
 * on the number of ranks are integer sums or are taken in a fixed order by the caller. <mpi.h> is
 * included only under mpi/. */
#ifndef SPINSHARD_MPI_COMM_H
#define SPINSHARD_MPI_COMM_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

typedef struct comm comm;

/* Message tags: the only ones. */
typedef enum comm_tag {
    TAG_ACTIVATIONS = 1, /* stage to next stage, one window or slice */
    TAG_RESULT = 3,      /* a result to the root */
    TAG_BLOB = 4,        /* bytes whose length the receiver does not know */
    TAG_GRADIENTS = 5,   /* stage to the one before, one window or slice */
    TAG_SUM = 6,         /* a piece of a sum to the rank that takes it */
    TAG_ROWS = 7,        /* rows of a product to the rank that goes on with them */
} comm_tag;

/* Collective on all processes. Start MPI with the calls made from one thread. Checks that a
 * launcher that promised N ranks made one world of N (SLURM_NTASKS, OMPI_COMM_WORLD_SIZE): N
 * single ranks on one folder are refused with ERR_USAGE. Without a launcher: a world of one, and
 * MPI is not started. */
err comm_start(int *argc, char ***argv);
void comm_stop(void); /* collective; ends MPI */

/* Local. The world. Where comm_start was not called (commands of one process, unit tests) it is a
 * world of one in which every collective works without MPI. */
comm *comm_world(void);
int comm_rank(const comm *c);
int comm_size(const comm *c);
const char *comm_host(void);   /* name of this host */
int comm_node_size(void);      /* ranks of the world on this host */
int comm_core_sharers(void);   /* those that may use this rank's cores, itself included */
int comm_nodes(const comm *c); /* hosts that the ranks of c are on */
/* Bytes that this rank has handed to others so far, by the functions of this header: all of them,
 * and those between nodes. A broadcast counts at its root, once for each rank, and node, that gets
 * it; a sum that all get, as the least that an algorithm sends. What ScaLAPACK sends is not
 * counted.
 */
uint64_t comm_sent_bytes(void);
uint64_t comm_network_bytes(void);
const char *comm_library(void); /* name and version of the MPI library, one line */

/* Local. End every rank now; for a bug or an MPI failure, where nothing can be agreed. */
_Noreturn void comm_abort(int code, const char *why);

/* Collective on c. A communicator of the ranks with the same color (>= 0), in rank order; color -1
 * gets NULL. Caller owns *out (comm_destroy). */
err comm_split(const comm *c, int color, const char *name, comm **out);
void comm_destroy(comm **c); /* collective on *c; NULL is fine; sets NULL */

/* Collective on c. Makes one error of all, the same on every rank: success if every e is success,
 * else the error of the lowest rank with the smallest nonzero code, with its rank filled in.
 * `phase` names the step. *others (may be NULL): how many more ranks failed. */
err comm_agree(const comm *c, err e, const char *phase, int *others);

void comm_barrier(const comm *c); /* collective */

/* Collective on c. n bytes from root to all. Root's must be writable too: MPICH 4.0 writes the same
 * bytes back where root is not rank 0. */
void comm_bcast(const comm *c, void *data, uint64_t n, int root);
/* Collective on c. Bytes whose length only root knows; elsewhere *data is allocated with a NUL
 * after the last byte (free). At root *data is as it was; writable, as in comm_bcast. */
void comm_bcast_blob(const comm *c, void **data, size_t *len, int root);

/* Collective on c. In place, element-wise; exact, so same result on every rank and any order. */
void comm_sum_i64(const comm *c, int64_t *v, int64_t n);
/* The sum at root alone; elsewhere v stays as it is. */
void comm_sum_i64_to(const comm *c, int64_t *v, int64_t n, int root);
/* Elements [from[r], from[r + 1]) summed at rank r; on several nodes the others are spoilt. from
 * [size + 1] and bytes, the same on every rank: bytes that a number takes on its way, 8 or so few
 * as the sums of any of the ranks fit in with their sign. Sums wrap around. Takes up to 4 MB; where
 * there are none the run ends. */
void comm_sum_i64_parts(const comm *c, int64_t *v, const int64_t *from, int bytes);
void comm_max_i64(const comm *c, int64_t *v, int64_t n);
void comm_max_f64(const comm *c, double *v, int64_t n); /* no NaN */

/* Collective on c. n bytes of each rank to root, in rank order; `all` (root only) holds size * n.
 */
void comm_gather(const comm *c, const void *mine, uint64_t n, void *all, int root);
/* Collective on c. Elements [from[r], from[r + 1]) of `all` stand at rank r; then all stand at all.
 * from [size + 1], the same on every rank; fewer than 2^31 elements. */
void comm_share_f64(const comm *c, double *all, const int64_t *from);
void comm_share_f32(const comm *c, float *all, const int64_t *from);
/* Collective on c. Bytes of varying length to root, concatenated in rank order; at root *all is
 * allocated (free) and lens[size] filled; elsewhere both are untouched. */
void comm_gather_blobs(const comm *c, const void *mine, size_t n, void **all, size_t *lens,
                       int root);
/* Collective on c. What ranks have, one after the other, at the first: *len bytes (free); NULL and
 * 0 elsewhere. */
void *comm_gather_joined(const comm *c, const void *mine, size_t n, size_t *len);

/* Local on sender and receiver. Blocking. */
void comm_send(const comm *c, const void *data, uint64_t n, int to, comm_tag tag);
void comm_recv(const comm *c, void *data, uint64_t n, int from, comm_tag tag);

/* Local. Non-blocking send: data must stay until comm_wait. */
typedef struct comm_request comm_request;
comm_request *comm_isend(const comm *c, const void *data, uint64_t n, int to, comm_tag tag);
void comm_wait(comm_request **r); /* NULL is fine; sets NULL */

#endif
