/* Ownership is the success of open(O_CREAT | O_EXCL). An owner that is surely dead (same host, no
 * such process, or no heartbeat for long) is moved aside by rename, which only one of two
 * contenders can do. */
#include "io/run_owner.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/json.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { STALE_S = 600, DYING_S = 5 };

struct run_owner {
    char *path;
    double last_beat_s;
};

typedef struct owner_info {
    char host[64], job[64];
    int64_t pid, start_ticks, beat;
} owner_info;

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

static void describe_me(owner_info *me) {
    memset(me, 0, sizeof *me);
    gethostname(me->host, sizeof me->host - 1);
    const char *job = getenv("SLURM_JOB_ID");
    snprintf(me->job, sizeof me->job, "%s", job ? job : "");
    me->pid = getpid();
    char state;
    me->start_ticks = start_ticks_of(me->pid, &state);
    me->beat = (int64_t)time(NULL);
}

static char *text_of(const owner_info *o, size_t *len) {
    json_t *v =
        json_pack("{s:s, s:I, s:I, s:s, s:I}", "host", o->host, "pid", (json_int_t)o->pid, "start",
                  (json_int_t)o->start_ticks, "job", o->job, "heartbeat", (json_int_t)o->beat);
    char *text;
    if (!v || json_text(v, 0, &text, len).code) abort();
    json_decref(v);
    return text;
}

static bool read_owner(const char *path, owner_info *o) {
    json_t *v;
    const char *host = "", *job = "";
    memset(o, 0, sizeof *o);
    err e = json_read_file(path, 65536, &v);
    if (e.code) return false;
    e = json_opt_str(v, "host", path, &host);
    if (!e.code) e = json_opt_str(v, "job", path, &job);
    if (!e.code) e = json_opt_int(v, "pid", 0, INT32_MAX, path, &o->pid);
    if (!e.code) e = json_opt_int(v, "start", 0, INT64_MAX, path, &o->start_ticks);
    if (!e.code) e = json_opt_int(v, "heartbeat", 0, INT64_MAX, path, &o->beat);
    snprintf(o->host, sizeof o->host, "%s", host);
    snprintf(o->job, sizeof o->job, "%s", job);
    json_decref(v);
    return !e.code;
}

static bool surely_dead(const owner_info *o, const owner_info *me) {
    if (me->beat - o->beat > STALE_S) return true;
    /* Slurm runs one life of a job at a time. */
    if (o->job[0] && !strcmp(o->job, me->job) && getenv("SLURM_RESTART_COUNT")) return true;
    if (strcmp(o->host, me->host)) return false;
    if (kill((pid_t)o->pid, 0) != 0 && errno == ESRCH) return true;
    char state;
    int64_t ticks = start_ticks_of(o->pid, &state);
    if (state == 'Z' || state == 'X') return true; /* killed, and nobody has asked for its status */
    return ticks && o->start_ticks && ticks != o->start_ticks;
}

/* A launcher that was killed may leave ranks that are still dying: give those of this host time. */
static bool wait_for_death(const owner_info *o, const owner_info *me) {
    int polls = strcmp(o->host, me->host) ? 0 : DYING_S * 10;
    const struct timespec tenth = {.tv_nsec = 100000000};
    while (!surely_dead(o, me)) {
        if (polls-- <= 0) return false;
        nanosleep(&tenth, NULL);
    }
    return true;
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

/* Move a dead owner's file away. Of two that try, one finds it gone and looks again. */
static void bury(const char *path, const owner_info *me) {
    char *grave;
    if (asprintf(&grave, "%s.dead.%" PRId64, path, me->pid) < 0) abort();
    if (rename(path, grave) == 0) unlink(grave);
    free(grave);
}

err run_owner_take(const char *run_dir, run_owner **out) {
    char *path = file_join(run_dir, "owner");
    owner_info me, other;
    describe_me(&me);
    *out = NULL;
    bool exists = true;
    err e = err_none();
    for (int tries = 0; exists && tries < 3 && !e.code; tries++) {
        e = make_file(path, &me, &exists);
        if (!exists || e.code) break;
        bool readable = read_owner(path, &other);
        if (!readable) sleep(1); /* it may be being written */
        if (!readable && !read_owner(path, &other)) other.beat = 0;
        if (!wait_for_death(&other, &me)) break;
        bury(path, &me);
    }
    if (!e.code && exists)
        e = err_make(ERR_MISMATCH, path,
                     "wait for it to end; if it is surely dead, remove the file `owner`",
                     "another run writes here: host %s, pid %" PRId64 "%s%s", other.host, other.pid,
                     other.job[0] ? ", job " : "", other.job);
    if (e.code) {
        free(path);
        return e;
    }
    run_owner *o = calloc(1, sizeof *o);
    if (!o) abort();
    o->path = path;
    o->last_beat_s = clock_now_s();
    *out = o;
    return e;
}

void run_owner_give_back(run_owner **o) {
    if (!*o) return;
    unlink((*o)->path);
    free((*o)->path);
    free(*o);
    *o = NULL;
}

void run_owner_heartbeat(run_owner *o) {
    double now = clock_now_s();
    if (now - o->last_beat_s < 1) return;
    o->last_beat_s = now;
    owner_info me;
    size_t len;
    describe_me(&me);
    char *text = text_of(&me, &len);
    int fd = open(o->path, O_WRONLY | O_CLOEXEC);
    if (fd >= 0) { /* a missed beat is no harm: the next one comes */
        err e = file_pwrite(fd, o->path, text, len, 0);
        if (e.code) log_line(LOG_WARN, "%s: %s", e.where, e.what);
        close(fd);
    }
    free(text);
}

bool run_owner_describe(const char *run_dir, char text[256]) {
    char *path = file_join(run_dir, "owner");
    owner_info o, me;
    bool alive = false;
    text[0] = 0;
    describe_me(&me);
    if (file_exists(path) && read_owner(path, &o)) {
        alive = !surely_dead(&o, &me);
        snprintf(text, 256, "host %s, pid %" PRId64 "%s%s, last heartbeat %" PRId64 " s ago",
                 o.host, o.pid, o.job[0] ? ", job " : "", o.job, me.beat - o.beat);
    }
    free(path);
    return alive;
}
