/* Ownership is the success of open(O_CREAT | O_EXCL). An owner that is gone is moved aside by
 * rename, which only one of two contenders can do. The owner's own words are always of the same
 * length and are written in place, so that they can be read at any time; a file that was moved
 * aside takes beats that nobody reads. */
#include "io/run_owner.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"
#include "io/slurm_ask.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* The beat comes from a thread, however long the work at hand takes: it stands still where the
 * process does. A process that was killed takes some time to be gone; a job that is being ended
 * too.
 */
enum { BEAT_S = 5, MISSED_BEATS = 3, DYING_S = 5, ENDING_S = 90 };

typedef struct owner_info {
    char host[64], cluster[64], job[32], step[32], life[32], nonce[24], beat[24];
    int64_t pid, start_ticks, wall;
} owner_info;

struct run_owner {
    char *path;
    owner_info me;
    double last_beat_s;
    int64_t beats;
    pthread_t heart;
    bool has_heart, ended;
    pthread_mutex_t lock; /* of all but path and heart */
    pthread_cond_t wake;
};

/* When a process started, in clock ticks since boot (field 22 of /proc/PID/stat): a pid that was
 * given to another process has another start. 0 where it cannot be told. *state is field 3. */
static int64_t start_ticks_of(int64_t pid, char *state) {
    char path[64], text[1024];
    *state = '?';
    snprintf(path, sizeof path, "/proc/%" PRId64 "/stat", pid);
    FILE *f = fopen(path, "r");
    if (!f) return 0;
    size_t n = fread(text, 1, sizeof text - 1, f);
    fclose(f);
    text[n] = 0;
    char *p = strrchr(text, ')'); /* the name may hold anything */
    if (p && p[1] == ' ') *state = p[2];
    for (int field = 2; p && field < 22; field++) p = strchr(p + 1, ' ');
    return p ? strtoll(p + 1, NULL, 10) : 0;
}

static void copy_env(const char *name, char *to, size_t size) {
    const char *value = getenv(name);
    snprintf(to, size, "%s", value ? value : "");
}

static void set_beat(owner_info *me, int64_t beats) {
    snprintf(me->beat, sizeof me->beat, "%012" PRId64, beats);
    me->wall = (int64_t)time(NULL);
}

static void describe_me(owner_info *me) {
    uint64_t drawn;
    char state;
    memset(me, 0, sizeof *me);
    gethostname(me->host, sizeof me->host - 1);
    copy_env("SLURM_CLUSTER_NAME", me->cluster, sizeof me->cluster);
    copy_env("SLURM_JOB_ID", me->job, sizeof me->job);
    copy_env("SLURM_STEP_ID", me->step, sizeof me->step);
    copy_env("SLURM_RESTART_COUNT", me->life, sizeof me->life);
    me->pid = getpid();
    me->start_ticks = start_ticks_of(me->pid, &state);
    if (getrandom(&drawn, sizeof drawn, 0) != sizeof drawn)
        drawn = (uint64_t)me->pid << 32 ^ (uint64_t)(1e9 * clock_now_s());
    snprintf(me->nonce, sizeof me->nonce, "%016" PRIx64, drawn);
    set_beat(me, 0);
}

static char *text_of(const owner_info *o, size_t *len) {
    json_t *v = json_pack("{s:s, s:I, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:I}", "host", o->host,
                          "pid", (json_int_t)o->pid, "start", (json_int_t)o->start_ticks, "cluster",
                          o->cluster, "job", o->job, "step", o->step, "life", o->life, "nonce",
                          o->nonce, "beat", o->beat, "heartbeat", (json_int_t)o->wall);
    char *text;
    if (!v || json_text(v, 0, &text, len).code) abort();
    json_decref(v);
    return text;
}

static err take_text(const json_t *v, const char *key, const char *path, char *to, size_t size) {
    const char *text = "";
    err e = json_opt_str(v, key, path, &text);
    snprintf(to, size, "%s", e.code ? "" : text);
    return e;
}

typedef enum owner_file {
    FILE_OF_OWNER,
    FILE_SILENT,  /* it is there, but its file system does not let it be read now */
    FILE_GARBLED, /* no owner in it: being written, or its writer died in the middle */
    FILE_NONE,
} owner_file;

static owner_file look(const char *path, owner_info *o) {
    char *text;
    size_t len;
    json_t *v;
    struct stat st;
    memset(o, 0, sizeof *o);
    if (file_read_all(path, 65536, &text, &len).code)
        return lstat(path, &st) != 0 && errno == ENOENT ? FILE_NONE : FILE_SILENT;
    err e = json_parse(text, len, path, &v);
    free(text);
    if (e.code) return FILE_GARBLED;
    e = take_text(v, "host", path, o->host, sizeof o->host);
    if (!e.code) e = take_text(v, "cluster", path, o->cluster, sizeof o->cluster);
    if (!e.code) e = take_text(v, "job", path, o->job, sizeof o->job);
    if (!e.code) e = take_text(v, "step", path, o->step, sizeof o->step);
    if (!e.code) e = take_text(v, "life", path, o->life, sizeof o->life);
    if (!e.code) e = take_text(v, "nonce", path, o->nonce, sizeof o->nonce);
    if (!e.code) e = take_text(v, "beat", path, o->beat, sizeof o->beat);
    if (!e.code) e = json_opt_int(v, "pid", 0, INT32_MAX, path, &o->pid);
    if (!e.code) e = json_opt_int(v, "start", 0, INT64_MAX, path, &o->start_ticks);
    if (!e.code) e = json_opt_int(v, "heartbeat", 0, INT64_MAX, path, &o->wall);
    json_decref(v);
    return e.code ? FILE_GARBLED : FILE_OF_OWNER;
}

static bool read_owner(const char *path, owner_info *o) {
    return look(path, o) == FILE_OF_OWNER;
}

/* ---- is it gone? ---- */

typedef enum owner_word {
    OWNER_NOBODY_KNOWS,
    OWNER_THERE,
    OWNER_NOT_LISTED, /* Slurm shows nothing of it: it is gone, or hidden (PrivateData) */
    OWNER_GONE
} owner_word;

static owner_word ask_host(const owner_info *o) {
    char state;
    if (kill((pid_t)o->pid, 0) != 0 && errno == ESRCH) return OWNER_GONE;
    const int64_t ticks = start_ticks_of(o->pid, &state);
    if (state == 'Z' || state == 'X') return OWNER_GONE; /* and nobody has asked for its status */
    return ticks && o->start_ticks && ticks != o->start_ticks ? OWNER_GONE : OWNER_THERE;
}

/* Clusters that share a file system number their jobs alike. Who asks from outside of a job does
 * not have the name in its environment. */
static bool is_of_my_cluster(const owner_info *o, const owner_info *me) {
    char mine[64];
    if (me->cluster[0] || !o->cluster[0]) return !strcmp(o->cluster, me->cluster);
    slurm_cluster(mine);
    return !strcmp(o->cluster, mine);
}

static owner_word ask(const owner_info *o, const owner_info *me) {
    const bool my_job = o->job[0] && !strcmp(o->job, me->job) && !strcmp(o->cluster, me->cluster);
    /* Slurm runs one life of a job at a time; an earlier step of this life may still be there. */
    if (my_job && getenv("SLURM_RESTART_COUNT") && strcmp(o->life, me->life) != 0)
        return OWNER_GONE;
    if (!strcmp(o->host, me->host)) return ask_host(o);
    if (!o->job[0] || !is_of_my_cluster(o, me)) return OWNER_NOBODY_KNOWS;
    switch (slurm_ask(o->job, my_job ? o->step : "")) {
    case SLURM_THERE:
        return OWNER_THERE;
    case SLURM_GONE:
        return OWNER_NOT_LISTED;
    default:
        return OWNER_NOBODY_KNOWS;
    }
}

static void sleep_s(double seconds) {
    const struct timespec t = {.tv_sec = (time_t)seconds,
                               .tv_nsec = (long)(1e9 * (seconds - (double)(time_t)seconds))};
    nanosleep(&t, NULL);
}

/* By the file's own beat: clocks of two hosts may differ by any amount. Time counts in which the
 * file was looked at: after a turn in which this process was held up (suspended, or reading from a
 * file system that stalls) or could not read, the watch begins anew. After too many such turns
 * nobody knows, and it is not called quiet. */
static bool is_quiet(const char *path, double seconds) {
    enum { TURNS = 10, PATIENCE = 3 };
    const double pause = seconds < TURNS ? seconds / TURNS : 1;
    const double held_up = pause < 0.25 ? 1 : 4 * pause;
    owner_info first, now;
    owner_file file = look(path, &first);
    bool seen = file == FILE_OF_OWNER;
    double begin = clock_now_s(), before = begin;
    for (int left = PATIENCE * (int)(seconds / pause + 1); left > 0; left--) {
        if (file == FILE_NONE || before - begin >= seconds) return true;
        sleep_s(pause);
        file = look(path, &now);
        const double t = clock_now_s();
        if (file == FILE_SILENT || t - before > held_up) begin = t;
        before = t;
        if (file != FILE_OF_OWNER) continue;
        if (!seen) first = now;
        seen = true;
        if (strcmp(now.nonce, first.nonce) != 0 || strcmp(now.beat, first.beat) != 0) return false;
    }
    return false;
}

bool run_owner_is_quiet(const char *run_dir, double seconds) {
    char *path = file_join(run_dir, "owner");
    const bool quiet = is_quiet(path, seconds);
    free(path);
    return quiet;
}

/* What was killed is given time to die: of this host a little, of Slurm as long as it takes it to
 * end a job. Who is alive and beats is not waited for. */
static bool wait_for_end(const char *path, const owner_info *o, const owner_info *me) {
    const bool here = !strcmp(o->host, me->host);
    const double end = clock_now_s() + (here ? DYING_S : ENDING_S);
    for (;;) {
        switch (ask(o, me)) {
        case OWNER_GONE:
            return true;
        case OWNER_NOT_LISTED:
            return is_quiet(path, MISSED_BEATS * BEAT_S);
        case OWNER_NOBODY_KNOWS:
            log_line(LOG_RUN, "%s: of %s, pid %" PRId64 ": watching for %d s whether it is alive",
                     path, o->host, o->pid, RUN_OWNER_QUIET_S);
            return is_quiet(path, RUN_OWNER_QUIET_S);
        case OWNER_THERE:
            if (clock_now_s() >= end || (!here && !is_quiet(path, 2 * BEAT_S))) return false;
            sleep_s(here ? 0.1 : 1);
        }
    }
}

static err make_file(const char *path, const owner_info *me, bool *exists) {
    size_t len;
    char *text = text_of(me, &len);
    int fd = fault_hit("open") ? -1 : open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    *exists = fd < 0 && errno == EEXIST;
    err e = err_none();
    if (fd < 0 && !*exists) e = err_errno(path, "create it");
    if (fd >= 0) {
        e = file_pwrite(fd, path, text, len, 0);
        err c = file_close(fd, path);
        if (!e.code) e = c;
        if (e.code) unlink(path);
    }
    free(text);
    return e;
}

/* Move the file of an owner that is gone away. Of two that try, one may find the other's new file
 * there: it looks before it moves, and puts back what it should not have moved. */
static void bury(const char *path, const owner_info *gone, const owner_info *me) {
    char *grave;
    owner_info now;
    if (read_owner(path, &now) && strcmp(now.nonce, gone->nonce) != 0) return;
    if (asprintf(&grave, "%s.dead.%s", path, me->nonce) < 0) abort();
    if (rename(path, grave) == 0) {
        if (read_owner(grave, &now) && strcmp(now.nonce, gone->nonce) != 0)
            (void)!link(grave, path); /* not where a third has come meanwhile */
        unlink(grave);
    }
    free(grave);
}

/* ---- the heart ---- */

/* The file is still this owner's. What cannot be read for the moment is no proof of another. */
static bool is_mine(const run_owner *o, owner_info *now) {
    const owner_file file = look(o->path, now);
    return file == FILE_OF_OWNER ? !strcmp(now->nonce, o->me.nonce) : file != FILE_NONE;
}

/* With the lock. Into the file that was looked at: if it is moved aside meanwhile, no harm is done.
 * Not through base/file.h: faults on demand count the calls of the work, not those of a clock. */
static void beat(run_owner *o) {
    char text[2048];
    size_t len;
    const int fd = open(o->path, O_RDWR | O_CLOEXEC);
    if (fd < 0) return; /* a missed beat is no harm: the next one comes */
    const ssize_t n = pread(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = 0;
    if (strstr(text, o->me.nonce)) {
        set_beat(&o->me, ++o->beats);
        char *mine = text_of(&o->me, &len);
        (void)!pwrite(fd, mine, len, 0);
        free(mine);
    }
    close(fd);
    o->last_beat_s = clock_now_s();
}

static void *keep_beating(void *arg) {
    run_owner *o = arg;
    pthread_mutex_lock(&o->lock);
    while (!o->ended) {
        struct timespec until;
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_sec += BEAT_S;
        pthread_cond_timedwait(&o->wake, &o->lock, &until);
        if (!o->ended) beat(o);
    }
    pthread_mutex_unlock(&o->lock);
    return NULL;
}

static run_owner *new_owner(char *path, const owner_info *me) {
    run_owner *o = calloc(1, sizeof *o);
    if (!o) abort();
    o->path = path;
    o->me = *me;
    o->last_beat_s = clock_now_s();
    pthread_mutex_init(&o->lock, NULL);
    pthread_cond_init(&o->wake, NULL);
    o->has_heart = pthread_create(&o->heart, NULL, keep_beating, o) == 0; /* else commits beat */
    return o;
}

/* It may be being written, or its file system may stall: so it is looked at again. */
static owner_file look_twice(const char *path, owner_info *o) {
    owner_file file = look(path, o);
    for (int tries = 0; tries < DYING_S && file == FILE_SILENT; tries++) {
        sleep(1);
        file = look(path, o);
    }
    if (file != FILE_GARBLED) return file;
    sleep(1);
    return look(path, o);
}

static err refuse(const char *path, const owner_info *o) {
    return err_make(ERR_MISMATCH, path,
                    "wait for it to end; where it is dead for certain, give --take-over",
                    "another run writes here: host %s, pid %" PRId64 "%s%s",
                    o->host[0] ? o->host : "unknown", o->pid, o->job[0] ? ", job " : "", o->job);
}

err run_owner_take(const char *run_dir, bool take_over, run_owner **out) {
    char *path = file_join(run_dir, "owner");
    owner_info me, other;
    describe_me(&me);
    *out = NULL;
    bool exists = true;
    err e = err_none();
    for (int tries = 0; exists && tries < 3 && !e.code; tries++) {
        e = make_file(path, &me, &exists);
        if (!exists || e.code) break;
        const owner_file file = look_twice(path, &other);
        if (!take_over && file == FILE_SILENT) break;
        if (!take_over && file == FILE_OF_OWNER && !wait_for_end(path, &other, &me)) break;
        bury(path, &other, &me);
    }
    if (!e.code && exists) e = refuse(path, &other);
    if (e.code)
        free(path);
    else
        *out = new_owner(path, &me);
    return e;
}

void run_owner_give_back(run_owner **o) {
    run_owner *own = *o;
    owner_info now;
    if (!own) return;
    pthread_mutex_lock(&own->lock);
    own->ended = true;
    pthread_cond_signal(&own->wake);
    pthread_mutex_unlock(&own->lock);
    if (own->has_heart) pthread_join(own->heart, NULL);
    if (is_mine(own, &now)) unlink(own->path);
    pthread_mutex_destroy(&own->lock);
    pthread_cond_destroy(&own->wake);
    free(own->path);
    free(own);
    *o = NULL;
}

err run_owner_check(run_owner *o) {
    owner_info now;
    if (is_mine(o, &now)) return err_none();
    return err_make(ERR_MISMATCH, o->path, "leave the folder to it, or run one of them elsewhere",
                    "another run has taken this folder over: host %s, pid %" PRId64 "%s%s",
                    now.host[0] ? now.host : "unknown", now.pid, now.job[0] ? ", job " : "",
                    now.job);
}

void run_owner_heartbeat(run_owner *o) {
    pthread_mutex_lock(&o->lock);
    if (clock_now_s() - o->last_beat_s >= 1) beat(o);
    pthread_mutex_unlock(&o->lock);
}

bool run_owner_describe(const char *run_dir, char text[256]) {
    char *path = file_join(run_dir, "owner");
    owner_info o, me;
    bool alive = false;
    text[0] = 0;
    describe_me(&me);
    if (file_exists(path) && read_owner(path, &o)) {
        const owner_word word = ask(&o, &me);
        alive = word == OWNER_THERE || word == OWNER_NOBODY_KNOWS;
        snprintf(text, 256, "host %s, pid %" PRId64 "%s%s, last heartbeat %" PRId64 " s ago",
                 o.host, o.pid, o.job[0] ? ", job " : "", o.job, me.wall - o.wall);
    }
    free(path);
    return alive;
}
