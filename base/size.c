/* Overflow is found by the compiler's checked builtins. Sizes and times are parsed by hand, since
 * strtoull takes signs and wraps around. */
#include "base/size.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

err size_to_int(int64_t n, const char *what, int *out) {
    if (n < 0 || n > INT_MAX)
        return err_make(ERR_BUG, what, NULL, "%" PRId64 " does not fit an int", n);
    *out = (int)n;
    return err_none();
}

err size_parse(const char *text, uint64_t *bytes) {
    static const char hint[] = "write a size as 1048576, 512M or 4G (1024-based K M G T)";
    char *end;
    errno = 0;
    unsigned long long n = strtoull(text, &end, 10);
    if (end == text || text[0] == '-' || errno)
        return err_make(ERR_USAGE, text, hint, "not a size");
    unsigned shift = 0;
    if (*end) {
        const char *units = "KMGT", *u = strchr(units, *end);
        if (!u || end[1]) return err_make(ERR_USAGE, text, hint, "not a size");
        shift = 10 * (unsigned)(u - units + 1);
    }
    uint64_t r;
    if (!size_mul(n, 1ull << shift, &r)) return err_make(ERR_USAGE, text, hint, "size too large");
    *bytes = r;
    return err_none();
}

const char *size_seconds_text(double seconds, char buf[32]) {
    const int64_t s = seconds < 1e12 ? (int64_t)ceil(seconds) : (int64_t)1e12;
    snprintf(buf, 32, "%" PRId64 ":%02d:%02d", s / 3600, (int)(s / 60 % 60), (int)(s % 60));
    return buf;
}

err size_parse_seconds(const char *text, double *seconds) {
    static const char hint[] = "write a time as 90s, 10m, 2h or HH:MM:SS";
    int h, m, s, used = 0;
    if (sscanf(text, "%d:%d:%d%n", &h, &m, &s, &used) == 3 && !text[used] && h >= 0 && m >= 0 &&
        m < 60 && s >= 0 && s < 60) {
        *seconds = h * 3600.0 + m * 60.0 + s;
        return err_none();
    }
    char *end;
    double v = strtod(text, &end);
    if (end == text || !isfinite(v) || v < 0) return err_make(ERR_USAGE, text, hint, "not a time");
    double unit = 1;
    if (*end == 's')
        unit = 1;
    else if (*end == 'm')
        unit = 60;
    else if (*end == 'h')
        unit = 3600;
    else if (*end)
        return err_make(ERR_USAGE, text, hint, "not a time");
    if (*end && end[1]) return err_make(ERR_USAGE, text, hint, "not a time");
    *seconds = v * unit;
    return err_none();
}

err size_parse_slurm_seconds(const char *text, double *seconds) {
    int d = 0, v[3] = {0}, used = 0;
    const char *dash = strchr(text, '-'), *rest = dash ? dash + 1 : text;
    if (!dash && strpbrk(text, "smh")) return size_parse_seconds(text, seconds);
    const int n = sscanf(rest, "%6d%n:%6d%n:%6d%n", &v[0], &used, &v[1], &used, &v[2], &used);
    bool good = n >= 1 && !rest[used] && strspn(text, "0123456789:-") == strlen(text);
    int days = 0;
    if (dash)
        good = good && sscanf(text, "%5d%n", &d, &days) == 1 && text + days == dash && v[0] < 24;
    const bool hours = dash || n == 3; /* the first number; else minutes */
    good = good && v[1] < 60 && v[2] < 60;
    if (!good)
        return err_make(
            ERR_USAGE, text,
            "write it as Slurm does (10, MM:SS, HH:MM:SS, D-HH:MM:SS) or as 90s, 10m, 2h",
            "not a time");
    *seconds = hours ? 86400.0 * d + 3600.0 * v[0] + 60.0 * v[1] + v[2] : 60.0 * v[0] + v[1];
    return err_none();
}

const char *size_text(uint64_t bytes, char buf[32]) {
    static const char *unit[] = {"B", "KiB", "MiB", "GiB", "TiB"};
    double v = (double)bytes;
    int u = 0;
    while (v >= 1024 && u < 4) {
        v /= 1024;
        u++;
    }
    snprintf(buf, 32, u ? "%.2f %s" : "%.0f %s", v, unit[u]);
    return buf;
}
