/* A star: the first rank listens, the others connect and send a byte a second, which it answers.
 * Whoever hears nothing for too long names who is silent and leaves by _exit: MPI could not be
 * asked, and the launcher ends the others. It wakes those that were stopped to end them, so the
 * first rank finds a word of why the others are gone, and does not call them lost. */
#include "mpi/watch.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netdb.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BEAT_MS = 1000, CONNECT_MS = 10000, HOST = 64 };
/* A longer pause between two looks is this process's own: it was stopped, or had no core. Where a
 * silence ends the run sooner than that, so is one of that length (own_pause_s). */
#define OWN_PAUSE_S 4.0
/* From the end of a connection without a last word to ours: the launcher, who ends a run of which a
 * rank died, is about to end this one too. */
#define GONE_S 0.2

/* What the first rank tells all: where it listens, and a number that others would have to guess. */
typedef struct invitation {
    char host[HOST];
    uint64_t token;
    uint16_t port; /* 0: it could not listen */
} invitation;

typedef struct hello {
    uint64_t token;
    int64_t rank;
} hello;

typedef struct peer {
    int fd; /* -1: none */
    int64_t rank;
    size_t n_greeting; /* bytes of the hello so far */
    hello greeting;
    double seen_s, gone_s; /* gone_s 0: it is not */
} peer;

struct watch {
    int rank, size;
    double lost_s;
    invitation at;
    char *hosts; /* root: [size][HOST] */
    int listener, wake[2];
    peer *peers; /* root: [n_peers] */
    int n_peers, most_peers;
    pthread_t thread;
};

static _Atomic(const char *) phase_now = "start";

void watch_phase(const char *phase) {
    atomic_store(&phase_now, phase);
}

static double own_pause_s(const watch *w) {
    return w->lost_s < OWN_PAUSE_S ? w->lost_s : OWN_PAUSE_S;
}

/* A signal that is handled ends poll with nothing looked at; what came in while this process was
 * stopped would then be missed, and the others called silent. */
static void look(struct pollfd *fds, nfds_t n, int wait_ms) {
    while (poll(fds, n, wait_ms) < 0 && errno == EINTR) {
    }
}

static void say(int fd, char word) {
    (void)!send(fd, &word, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

/* ---- the end ---- */

static _Noreturn void end_run(const char *what) {
    const err e =
        err_make(ERR_RANK, atomic_load(&phase_now),
                 "run the same command again: it goes on from the last commit", "%s", what);
    log_failure(&e);
    _exit(ERR_RANK);
}

static bool is_lost(const watch *w, const peer *p, double now) {
    if (p->gone_s > 0) return now - p->gone_s > GONE_S;
    return p->rank >= 0 && p->fd >= 0 && now - p->seen_s > w->lost_s;
}

/* Root only. Names all that are lost, with what is known of them. */
static void judge(const watch *w, double now) {
    char list[400] = "";
    for (int i = 0; i < w->n_peers; i++) {
        const peer *p = &w->peers[i];
        const size_t n = strlen(list);
        if (!is_lost(w, p, now)) continue;
        snprintf(list + n, sizeof list - n, "%srank %" PRId64 " on %s ", n ? "; " : "", p->rank,
                 w->hosts + p->rank * HOST);
        const size_t at = strlen(list);
        if (p->gone_s > 0)
            snprintf(list + at, sizeof list - at, "has ended without a word: killed?");
        else
            snprintf(list + at, sizeof list - at,
                     "was not heard of for %.0f s: its process or its node hangs", now - p->seen_s);
    }
    if (list[0]) end_run(list);
}

static int next_look_ms(const watch *w) {
    for (int i = 0; i < w->n_peers; i++)
        if (w->peers[i].gone_s > 0) return 50;
    return BEAT_MS;
}

/* ---- the first rank ---- */

static void drop(peer *l) {
    close(l->fd);
    l->fd = -1;
}

static void accept_one(watch *w, double now) {
    const int fd = accept4(w->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0) return;
    if (w->n_peers == w->most_peers) { /* strangers */
        close(fd);
        return;
    }
    w->peers[w->n_peers++] = (peer){.fd = fd, .rank = -1, .seen_s = now};
}

/* The first bytes say who it is; after them each is a sign of life, 'e' its end, and 'l' its end
 * since this process was silent, which it has told. */
static void hear(watch *w, peer *l, double now) {
    char text[256];
    const ssize_t n = recv(l->fd, text, sizeof text, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0) {
        if (l->rank >= 0) l->gone_s = now;
        drop(l);
        return;
    }
    l->seen_s = now;
    for (ssize_t i = 0; i < n; i++) {
        if (l->n_greeting < sizeof l->greeting) {
            ((char *)&l->greeting)[l->n_greeting++] = text[i];
            if (l->n_greeting < sizeof l->greeting) continue;
            if (l->greeting.token != w->at.token || l->greeting.rank < 1 ||
                l->greeting.rank >= w->size) {
                drop(l);
                return;
            }
            l->rank = l->greeting.rank;
        } else if (text[i] == 'l') {
            _exit(ERR_RANK);
        } else if (text[i] == 'e') {
            l->rank = -1; /* it ends as it should */
            drop(l);
            return;
        }
    }
}

static void forgive(watch *w, double now) {
    for (int i = 0; i < w->n_peers; i++) w->peers[i].seen_s = now;
}

static void *listen_to_all(void *arg) {
    watch *w = arg;
    struct pollfd *fds = calloc((size_t)w->most_peers + 2, sizeof *fds);
    double before = clock_now_s(), answered = before;
    if (!fds) return NULL;
    for (;;) {
        fds[0] = (struct pollfd){.fd = w->wake[0], .events = POLLIN};
        fds[1] = (struct pollfd){.fd = w->listener, .events = POLLIN};
        const int n = w->n_peers;
        for (int i = 0; i < n; i++)
            fds[i + 2] = (struct pollfd){.fd = w->peers[i].fd, .events = POLLIN};
        look(fds, (nfds_t)n + 2, next_look_ms(w));
        const double now = clock_now_s();
        if (fds[0].revents) break;
        if (fds[1].revents) accept_one(w, now);
        for (int i = 0; i < n; i++)
            if (w->peers[i].fd >= 0 && fds[i + 2].revents) hear(w, &w->peers[i], now);
        if (now - before >= own_pause_s(w)) forgive(w, now);
        before = now;
        judge(w, now);
        if (now - answered < 0.5e-3 * BEAT_MS)
            continue; /* a whole beat would at times become two */
        answered = now;
        for (int i = 0; i < w->n_peers; i++)
            if (w->peers[i].fd >= 0) say(w->peers[i].fd, 'r');
    }
    for (int i = 0; i < w->n_peers; i++)
        if (w->peers[i].fd >= 0) {
            say(w->peers[i].fd, 'e');
            drop(&w->peers[i]);
        }
    free(fds);
    return NULL;
}

/* ---- the others ---- */

/* Where packets are dropped without a word, connect alone would wait for minutes, and watch_stop
 * with it: this waits for the connection, for CONNECT_MS, or for the end. */
static bool connected(const watch *w, int fd, const struct addrinfo *a) {
    struct pollfd fds[2] = {{.fd = w->wake[0], .events = POLLIN}, {.fd = fd, .events = POLLOUT}};
    const double end = clock_now_s() + 1e-3 * CONNECT_MS;
    int error = 0, left = CONNECT_MS, n;
    socklen_t len = sizeof error;
    if (connect(fd, a->ai_addr, a->ai_addrlen) != 0) {
        if (errno != EINPROGRESS && errno != EINTR) return false;
        do {
            n = poll(fds, 2, left);
            left = (int)(1e3 * (end - clock_now_s()));
        } while (n < 0 && errno == EINTR && left > 0);
        if (n <= 0 || fds[0].revents) return false;
        if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len) != 0 || error) return false;
    }
    const int flags = fcntl(fd, F_GETFL);
    return flags >= 0 && fcntl(fd, F_SETFL, flags & ~O_NONBLOCK) == 0;
}

static int connect_to(const watch *w) {
    const struct addrinfo want = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found = NULL;
    char port[16];
    const bool here = !strcmp(w->at.host, comm_host());
    int fd = -1;
    snprintf(port, sizeof port, "%u", (unsigned)w->at.port);
    if (getaddrinfo(here ? "127.0.0.1" : w->at.host, port, &want, &found) != 0) return -1;
    for (const struct addrinfo *a = found; a && fd < 0; a = a->ai_next) {
        fd = socket(a->ai_family, a->ai_socktype | SOCK_NONBLOCK | SOCK_CLOEXEC, a->ai_protocol);
        if (fd >= 0 && !connected(w, fd, a)) {
            close(fd);
            fd = -1;
        }
    }
    freeaddrinfo(found);
    return fd;
}

static bool is_told_to_end(const watch *w) {
    struct pollfd wake = {.fd = w->wake[0], .events = POLLIN};
    return poll(&wake, 1, 0) > 0;
}

/* Seconds that a rank waits longer than rank 1 before it calls the first one lost: of many ranks a
 * few say so at once, and the launcher ends the others meanwhile. */
static int turn_of(int rank) {
    int turn = 0;
    for (int before = rank - 1; before > 0; before /= 2) turn++;
    return turn;
}

static void *beat(void *arg) {
    watch *w = arg;
    const double lost_s = w->lost_s + turn_of(w->rank);
    const hello me = {.token = w->at.token, .rank = w->rank};
    const int fd = connect_to(w);
    if (fd < 0 || send(fd, &me, sizeof me, MSG_NOSIGNAL) != sizeof me) {
        if (!is_told_to_end(w))
            log_line(LOG_WARN,
                     "%s, port %u, cannot be reached by TCP: if this rank hangs, nobody says so",
                     w->at.host, (unsigned)w->at.port);
        if (fd >= 0) close(fd);
        return NULL;
    }
    double heard = clock_now_s(), before = heard;
    for (bool over = false; !over;) {
        struct pollfd fds[2] = {{.fd = w->wake[0], .events = POLLIN}, {.fd = fd, .events = POLLIN}};
        char text[256];
        look(fds, 2, BEAT_MS);
        const double now = clock_now_s();
        if (fds[0].revents) break;
        if (fds[1].revents) {
            const ssize_t n = recv(fd, text, sizeof text, MSG_DONTWAIT);
            over = n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR) ||
                   (n > 0 && memchr(text, 'e', (size_t)n));
            heard = now;
        }
        if (now - before >= own_pause_s(w)) heard = now;
        before = now;
        say(fd, 'b');
        if (!over && now - heard > lost_s) {
            say(fd, 'l');
            snprintf(text, sizeof text,
                     "rank 0 on %s was not heard of for %.0f s: its process or its node hangs",
                     w->at.host, now - heard);
            end_run(text);
        }
    }
    say(fd, 'e');
    close(fd);
    return NULL;
}

/* ---- start and stop ---- */

static void open_listener(watch *w) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY)};
    socklen_t n = sizeof at;
    w->listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (w->listener < 0 || bind(w->listener, (struct sockaddr *)&at, sizeof at) != 0 ||
        listen(w->listener, w->size) != 0 ||
        getsockname(w->listener, (struct sockaddr *)&at, &n) != 0 ||
        getrandom(&w->at.token, sizeof w->at.token, 0) != sizeof w->at.token)
        return;
    w->at.port = ntohs(at.sin_port);
    snprintf(w->at.host, HOST, "%s", comm_host());
}

static void clear(watch *w) {
    if (w->listener >= 0) close(w->listener);
    for (int i = 0; i < 2; i++)
        if (w->wake[i] >= 0) close(w->wake[i]);
    free(w->hosts);
    free(w->peers);
    free(w);
}

err watch_start(const comm *c, double lost_s, watch **out) {
    enum { STRANGERS = 16 };
    char host[HOST];
    *out = NULL;
    if (comm_size(c) == 1 || lost_s <= 0) return err_none();
    watch *w = calloc(1, sizeof *w);
    if (!w) comm_abort(ERR_NOFIT, "no memory to watch the ranks");
    *w = (watch){.rank = comm_rank(c),
                 .size = comm_size(c),
                 .lost_s = lost_s,
                 .listener = -1,
                 .wake = {-1, -1}};
    if (w->rank == 0) {
        w->most_peers = w->size - 1 + STRANGERS;
        w->hosts = calloc((size_t)w->size, HOST);
        w->peers = calloc((size_t)w->most_peers, sizeof *w->peers);
        if (!w->hosts || !w->peers) comm_abort(ERR_NOFIT, "no memory to watch the ranks");
        open_listener(w);
    }
    snprintf(host, HOST, "%s", comm_host());
    comm_gather(c, host, HOST, w->hosts, 0);
    comm_bcast(c, &w->at, sizeof w->at, 0);
    if (!w->at.port || pipe2(w->wake, O_CLOEXEC) != 0 ||
        pthread_create(&w->thread, NULL, w->rank ? beat : listen_to_all, w) != 0) {
        log_line(LOG_WARN, "this rank is not watched: %s", strerror(errno));
        clear(w);
        return err_none();
    }
    log_line(LOG_RUN, "a rank of which nothing is heard for %.0f s ends the run with exit code %d",
             lost_s, ERR_RANK);
    *out = w;
    return err_none();
}

void watch_stop(watch **w) {
    if (!*w) return;
    (void)!write((*w)->wake[1], "", 1);
    pthread_join((*w)->thread, NULL);
    clear(*w);
    *w = NULL;
}
