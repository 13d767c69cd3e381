/* Lines are appended with O_APPEND and one write each; a line that a crash left unfinished is
 * ended first. */
#include "io/events.h"

#include "base/clock.h"
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct events {
    int fd, slice;
    double start_s;
    bool failed;
};

err events_open(const char *path, int slice, events **out) {
    *out = NULL;
    int fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (fd < 0) return err_errno(path, "open it");
    events *ev = calloc(1, sizeof *ev);
    if (!ev) abort();
    ev->fd = fd;
    ev->slice = slice;
    ev->start_s = clock_now_s();
    char last;
    off_t end = lseek(fd, 0, SEEK_END);
    if (end > 0 && pread(fd, &last, 1, end - 1) == 1 && last != '\n' && write(fd, "\n", 1) != 1)
        ev->failed = true;
    *out = ev;
    return err_none();
}

void events_close(events **ev) {
    if (!*ev) return;
    close((*ev)->fd);
    free(*ev);
    *ev = NULL;
}

void events_add(events *ev, const char *phase, const char *event, json_t *more) {
    if (!ev) {
        json_decref(more);
        return;
    }
    char wall[40];
    time_t now = time(NULL);
    struct tm tm;
    strftime(wall, sizeof wall, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &tm));
    json_t *line = json_object();
    json_object_set_new(line, "t", json_real(clock_now_s() - ev->start_s));
    json_object_set_new(line, "wall", json_string(wall));
    json_object_set_new(line, "slice", json_integer(ev->slice));
    json_object_set_new(line, "phase", json_string(phase));
    json_object_set_new(line, "event", json_string(event));
    if (more) json_object_update(line, more);
    json_decref(more);
    char *text = json_dumps(line, JSON_REAL_PRECISION(9) | JSON_COMPACT);
    size_t n = text ? strlen(text) : 0;
    if (text) text[n] = '\n'; /* the NUL makes room: one write a line */
    if ((!text || write(ev->fd, text, n + 1) != (ssize_t)(n + 1)) && !ev->failed) {
        ev->failed = true;
        log_line(LOG_WARN, "events.jsonl cannot be written: %s", strerror(errno));
    }
    free(text);
    json_decref(line);
}
