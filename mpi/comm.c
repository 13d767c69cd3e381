/* Wrappers of MPI that abort on its failures: start and stop, messages. Long ones go in pieces.
 * Errors are agreed on by a minimum over (code, rank) and a broadcast of that rank's error. What
 * all do together with large data is in mpi/comm_collect.c. */
#include "mpi/comm.h"

#include "base/fault.h"
#include "base/log.h"
#include "base/machine.h"
#include "base/size.h"
#include "mpi/comm_internal.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct comm_request {
    int n_parts;
    MPI_Request parts[];
};

/* Before comm_start, and in commands of one process, a world of one that needs no MPI. */
static comm world = {.size = 1, .n_nodes = 1, .name = "world"};
static bool started;
static int node_size = 1, core_sharers = 1;
static int first_here; /* the first rank of the world on this host */
static char host[MPI_MAX_PROCESSOR_NAME + 1];

static void on_failure(MPI_Comm *handle, int *code, ...) {
    char text[MPI_MAX_ERROR_STRING], name[MPI_MAX_OBJECT_NAME] = "?";
    int n;
    MPI_Error_string(*code, text, &n);
    MPI_Comm_get_name(*handle, name, &n);
    fprintf(stderr, "spinshard: rank %d: MPI failed on %s: %s\n", world.rank, name, text);
    MPI_Abort(MPI_COMM_WORLD, ERR_RANK);
}

static long env_count(const char *name) {
    const char *s = getenv(name);
    return s ? strtol(s, NULL, 10) : 0;
}

/* Waiting ranks spin by default. Where a node has more ranks than cores, that starves the ranks
 * that compute; Open MPI reads this variable in MPI_Init. */
static void yield_if_oversubscribed(void) {
    cpu_set_t set;
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 1) cpus = CPU_COUNT(&set);
    long ranks = env_count("OMPI_COMM_WORLD_LOCAL_SIZE");
    if (!ranks) ranks = env_count("SLURM_NTASKS_PER_NODE");
    if (!ranks) ranks = env_count("SLURM_NTASKS");
    if (ranks > cpus) setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
}

/* A launcher that cannot speak to MPI starts N processes that each believe to be alone. */
static err check_launcher(void) {
    long promised = env_count("OMPI_COMM_WORLD_SIZE");
    const char *who = "mpirun";
    if (!promised && getenv("SLURM_PROCID") && getenv("SLURM_STEP_ID")) {
        promised = env_count("SLURM_STEP_NUM_TASKS");
        if (!promised) promised = env_count("SLURM_NTASKS");
        who = "srun";
    }
    if (promised <= 1 || promised == world.size) return err_none();
    return err_make(ERR_USAGE, "starting MPI",
                    "start with `srun --mpi=pmix` or with mpirun of the same Open MPI",
                    "%s started %ld processes, but MPI sees %d: each would run alone on one folder",
                    who, promised, world.size);
}

/* SPINSHARD_TEST_NODES=0,0,1: the node that each rank of the world is to be taken for, so that
 * tests go the ways between nodes on one; looked at whenever a communicator is made. What is asked
 * of the machine itself, memory and cores, stays as it is. */
static int node_number(void) {
    const char *s = getenv("SPINSHARD_TEST_NODES");
    for (int r = 0; s && r < world.rank && (s = strchr(s, ',')); r++) s++;
    return s ? (int)strtol(s, NULL, 10) : first_here;
}

static void learn_node(void) {
    MPI_Comm node;
    int n;
    MPI_Get_processor_name(host, &n);
    MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, 0, MPI_INFO_NULL, &node);
    MPI_Comm_size(node, &node_size);
    first_here = world.rank;
    MPI_Bcast(&first_here, 1, MPI_INT, 0, node);
    uint64_t mine = machine_affinity_key(), *all = malloc((size_t)node_size * sizeof *all);
    if (!all) comm_abort(ERR_NOFIT, "no memory to start");
    MPI_Allgather(&mine, 1, MPI_UINT64_T, all, 1, MPI_UINT64_T, node);
    core_sharers = 0;
    for (int r = 0; r < node_size; r++) core_sharers += all[r] == mine;
    free(all);
    MPI_Comm_free(&node);
    comm_nodes_learn(&world, node_number());
}

/* Started by hand, without mpirun or srun: a world of one, which needs no MPI. Starting it would
 * take longer (0.3 s for its daemon) than quantizing a small model. */
static bool launched(void) {
    static const char *const signs[] = {
        "OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMIX_NAMESPACE", "PMI_RANK", "PMI_FD",
        "SLURM_STEP_ID"};
    for (size_t i = 0; i < sizeof signs / sizeof signs[0]; i++)
        if (getenv(signs[i])) return true;
    return false;
}

err comm_start(int *argc, char ***argv) {
    int got;
    if (!launched()) {
        gethostname(host, sizeof host - 1);
        fault_set_rank(0);
        return err_none();
    }
    yield_if_oversubscribed();
    MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &got);
    started = true;
    world.handle = MPI_COMM_WORLD;
    MPI_Comm_rank(world.handle, &world.rank);
    MPI_Comm_size(world.handle, &world.size);
    MPI_Comm_set_name(world.handle, world.name);
    MPI_Errhandler handler;
    MPI_Comm_create_errhandler(on_failure, &handler);
    MPI_Comm_set_errhandler(world.handle, handler);
    MPI_Errhandler_free(&handler);
    learn_node();
    log_set_rank(world.rank);
    fault_set_rank(world.rank);
    return check_launcher();
}

void comm_stop(void) {
    if (started) {
        comm_nodes_clear(&world);
        MPI_Finalize();
    }
    started = false;
}

comm *comm_world(void) {
    return &world;
}

int comm_rank(const comm *c) {
    return c->rank;
}

int comm_size(const comm *c) {
    return c->size;
}

MPI_Comm comm_handle(const comm *c) {
    return c->handle;
}

const char *comm_host(void) {
    return host;
}

int comm_node_size(void) {
    return node_size;
}

int comm_core_sharers(void) {
    return core_sharers;
}

const char *comm_library(void) {
    static char library[128];
    char text[MPI_MAX_LIBRARY_VERSION_STRING];
    int n;
    MPI_Get_library_version(text, &n); /* one of the few calls allowed before MPI_Init */
    snprintf(library, sizeof library, "%.*s", (int)strcspn(text, ",\n"), text);
    return library;
}

void comm_abort(int code, const char *why) {
    fprintf(stderr, "spinshard: rank %d on %s: %s\n", world.rank, host, why);
    if (started) MPI_Abort(MPI_COMM_WORLD, code);
    _Exit(code);
}

err comm_split(const comm *c, int color, const char *name, comm **out) {
    MPI_Comm handle = MPI_COMM_NULL;
    *out = NULL;
    if (started) MPI_Comm_split(c->handle, color < 0 ? MPI_UNDEFINED : color, c->rank, &handle);
    if (started ? handle == MPI_COMM_NULL : color < 0) return err_none();
    comm *d = calloc(1, sizeof *d);
    if (!d) comm_abort(ERR_BUG, "no memory for a communicator");
    *d = (comm){.handle = handle, .size = 1, .n_nodes = 1};
    snprintf(d->name, sizeof d->name, "%s", name);
    *out = d;
    if (!started) return err_none();
    MPI_Comm_rank(handle, &d->rank);
    MPI_Comm_size(handle, &d->size);
    MPI_Comm_set_name(handle, d->name);
    comm_nodes_learn(d, node_number());
    return err_none();
}

void comm_destroy(comm **c) {
    if (!*c) return;
    if (started) {
        comm_nodes_clear(*c);
        MPI_Comm_free(&(*c)->handle);
    }
    free(*c);
    *c = NULL;
}

err comm_agree(const comm *c, err e, const char *phase, int *others) {
    /* Key: code, then rank; success sorts last. One small reduction when all is well. */
    if (others) *others = 0;
    if (c->size == 1) {
        if (e.code && e.rank < 0) e.rank = world.rank;
        if (e.code && !e.where[0]) snprintf(e.where, sizeof e.where, "%s", phase);
        return e;
    }
    int64_t mine = e.code ? (int64_t)e.code << 32 | c->rank : INT64_MAX, least,
            failed = e.code != 0;
    MPI_Allreduce(&mine, &least, 1, MPI_INT64_T, MPI_MIN, c->handle);
    if (least == INT64_MAX) return e;
    comm_sum_i64(c, &failed, 1);
    if (others) *others = (int)failed - 1;
    int root = (int)(least & 0xffffffff);
    /* An error that a part of the ranks agreed on before keeps the rank and the words it had. */
    if (root == c->rank && e.rank < 0) {
        const size_t used = strlen(e.what);
        e.rank = world.rank;
        if (failed > 1 && failed < c->size) /* all of them: the message speaks for every rank */
            snprintf(e.what + used, sizeof e.what - used, " (and on %d other ranks)",
                     (int)failed - 1);
    }
    comm_bcast(c, &e, sizeof e, root);
    if (!e.where[0]) snprintf(e.where, sizeof e.where, "%s", phase);
    return e;
}

void comm_barrier(const comm *c) {
    if (c->size > 1) MPI_Barrier(c->handle);
}

void comm_bcast_blob(const comm *c, void **data, size_t *len, int root) {
    uint64_t n = *len;
    comm_bcast(c, &n, sizeof n, root);
    if (c->rank != root) {
        char *p = malloc(n + 1);
        if (!p) comm_abort(ERR_NOFIT, "no memory for a broadcast");
        p[n] = 0;
        *data = p;
        *len = n;
    }
    comm_bcast(c, *data, n, root);
}

void comm_send(const comm *c, const void *data, uint64_t n, int to, comm_tag tag) {
    const char *p = data;
    comm_count(c, n, to);
    for (uint64_t at = 0; at < n; at += COMM_PIECE)
        MPI_Send(p + at, comm_piece(n - at), MPI_BYTE, to, (int)tag, c->handle);
}

void comm_recv(const comm *c, void *data, uint64_t n, int from, comm_tag tag) {
    char *p = data;
    for (uint64_t at = 0; at < n; at += COMM_PIECE)
        MPI_Recv(p + at, comm_piece(n - at), MPI_BYTE, from, (int)tag, c->handle,
                 MPI_STATUS_IGNORE);
}

void comm_gather(const comm *c, const void *mine, uint64_t n, void *all, int root) {
    if (c->rank != root) {
        comm_send(c, mine, n, root, TAG_RESULT);
        return;
    }
    for (int r = 0; r < c->size; r++) {
        char *to = (char *)all + (uint64_t)r * n;
        if (r == root)
            memcpy(to, mine, n);
        else
            comm_recv(c, to, n, r, TAG_RESULT);
    }
}

void comm_gather_blobs(const comm *c, const void *mine, size_t n, void **all, size_t *lens,
                       int root) {
    uint64_t len = n, total = 0, *each = NULL;
    if (c->rank == root && !(each = calloc((size_t)c->size, sizeof *each)))
        comm_abort(ERR_NOFIT, "no memory to gather");
    comm_gather(c, &len, sizeof len, each, root);
    if (c->rank != root) {
        comm_send(c, mine, n, root, TAG_BLOB);
        return;
    }
    for (int r = 0; r < c->size; r++) total += each[r];
    char *p = malloc(total + 1);
    if (!p) comm_abort(ERR_NOFIT, "no memory to gather");
    *all = p;
    for (int r = 0; r < c->size; r++) {
        if (r == root)
            memcpy(p, mine, n);
        else
            comm_recv(c, p, each[r], r, TAG_BLOB);
        lens[r] = each[r];
        p += each[r];
    }
    *p = 0;
    free(each);
}

void *comm_gather_joined(const comm *c, const void *mine, size_t n, size_t *len) {
    size_t *lens = calloc((size_t)c->size, sizeof *lens);
    void *all = NULL;
    if (!lens) comm_abort(ERR_NOFIT, "no memory to gather");
    comm_gather_blobs(c, mine, n, &all, lens, 0);
    *len = 0;
    for (int r = 0; r < c->size; r++) *len += lens[r];
    free(lens);
    return all;
}

static comm_request *request_create(uint64_t n) {
    int parts = (int)((n + COMM_PIECE - 1) / COMM_PIECE);
    comm_request *r = malloc(sizeof *r + (size_t)parts * sizeof(MPI_Request));
    if (!r) comm_abort(ERR_NOFIT, "no memory for a request");
    r->n_parts = parts;
    return r;
}

comm_request *comm_isend(const comm *c, const void *data, uint64_t n, int to, comm_tag tag) {
    comm_request *r = request_create(n);
    const char *p = data;
    comm_count(c, n, to);
    for (int i = 0; i < r->n_parts; i++, p += COMM_PIECE, n -= COMM_PIECE)
        MPI_Isend(p, comm_piece(n), MPI_BYTE, to, (int)tag, c->handle, &r->parts[i]);
    return r;
}

void comm_wait(comm_request **r) {
    if (!*r) return;
    comm_wait_all((*r)->n_parts, (*r)->parts);
    free(*r);
    *r = NULL;
}
