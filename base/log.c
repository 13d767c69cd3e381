/* Each line is formatted into a buffer on the stack and leaves with one write(2), so lines of
 * several ranks are never mixed. The time left is extrapolated from the pace since the first call
 * of a phase. */
#include "base/log.h"

#include "base/clock.h"
#include "base/size.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int my_rank;
static log_level limit = LOG_PHASE;

void log_set_rank(int rank) {
    my_rank = rank;
}

void log_set_level(log_level level) {
    limit = level;
}

static void put(const char *text, size_t n) {
    while (n) {
        ssize_t w = write(STDERR_FILENO, text, n);
        if (w <= 0) return; /* nobody listens */
        text += w;
        n -= (size_t)w;
    }
}

void log_line(log_level level, const char *fmt, ...) {
    if (level > limit || (my_rank != 0 && level >= LOG_RUN)) return;
    char line[2048];
    int n = 0;
    if (my_rank != 0) n = snprintf(line, sizeof line, "[rank %d] ", my_rank);
    if (level == LOG_WARN) n += snprintf(line + n, sizeof line - (size_t)n, "warning: ");
    va_list args;
    va_start(args, fmt);
    int more = vsnprintf(line + n, sizeof line - (size_t)n - 1, fmt, args);
    va_end(args);
    size_t len = strnlen(line, sizeof line - 2);
    (void)more;
    line[len++] = '\n';
    put(line, len);
}

/* ", 1:05:00 left" at the pace since the first call of the phase; "" while there is none. */
static const char *time_left(double seconds, long done, long todo, char text[48]) {
    text[0] = 0;
    if (done <= 0 || seconds <= 0 || todo <= 0) return text;
    const double left = seconds / (double)done * (double)todo;
    char time[32];
    snprintf(text, 48, ", %s left", size_seconds_text(left, time));
    return text;
}

void log_progress(const char *phase, long done, long total) {
    static double last_s, first_s;
    static long first_done;
    static char last_phase[32];
    if (my_rank != 0 || limit < LOG_PHASE) return;
    double now = clock_now_s();
    bool terminal = isatty(STDERR_FILENO), fresh = strcmp(phase, last_phase) != 0;
    if (fresh) {
        snprintf(last_phase, sizeof last_phase, "%s", phase);
        last_s = first_s = now;
        first_done = done;
    }
    if (done < total && now - last_s < (terminal ? 0.1 : 60)) return;
    if (done >= total && !terminal) return; /* the end of the phase has a line of its own */
    last_s = now;
    char line[200], left[48];
    int n;
    time_left(now - first_s, done - first_done, total - done, left);
    if (terminal) {
        enum { WIDE = 32 };
        char bar[WIDE + 1];
        long full = total ? done * WIDE / total : WIDE;
        for (int i = 0; i < WIDE; i++) bar[i] = i < full ? '#' : '.';
        bar[WIDE] = 0;
        n = snprintf(line, sizeof line, "\r\033[K%s", "");
        if (done < total)
            n = snprintf(line, sizeof line, "\r\033[K%-8s [%s] %ld/%ld%s", phase, bar, done, total,
                         left);
    } else {
        n = snprintf(line, sizeof line, "%s: %ld of %ld%s\n", phase, done, total, left);
    }
    put(line, (size_t)n);
}

void log_failure(const err *e) {
    char text[1600], at[32] = "";
    if (e->rank > 0) snprintf(at, sizeof at, " [rank %d]", e->rank);
    int n = snprintf(text, sizeof text, "spinshard: error: %s%s%s%s%s%s\n", e->where,
                     e->where[0] ? ": " : "", e->what, at, e->hint[0] ? "\n  try: " : "", e->hint);
    for (char *c = text; *c; c++) /* names from files must not steer a terminal */
        if (((unsigned char)*c < 0x20 && *c != '\n') || *c == 0x7f) *c = '?';
    put(text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}
