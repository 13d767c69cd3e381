/* One coordinate system for all charts; pages scale them. */
#include "jobs/reporting/svg.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 340, HEIGHT = 210, LEFT = 60, RIGHT = 10, TOP = 34, BOTTOM = 36, FEW = 70 };

void svg_text(FILE *f, const char *text) {
    for (; *text; text++) switch (*text) {
        case '&':
            fputs("&amp;", f);
            break;
        case '<':
            fputs("&lt;", f);
            break;
        case '>':
            fputs("&gt;", f);
            break;
        case '"':
            fputs("&quot;", f);
            break;
        default:
            fputc(*text, f);
        }
}

/* ---- axes ---- */

svg_axis svg_axis_linear(const char *label) {
    return (svg_axis){.label = label, .lo = INFINITY, .hi = -INFINITY};
}

svg_axis svg_axis_log(const char *label) {
    svg_axis a = svg_axis_linear(label);
    a.log = true;
    return a;
}

svg_axis svg_axis_from_zero(const char *label) {
    svg_axis a = svg_axis_linear(label);
    a.from_zero = true;
    return a;
}

svg_axis svg_axis_counted(const char *label) {
    svg_axis a = svg_axis_linear(label);
    a.whole = true;
    return a;
}

static bool drawable(const svg_axis *a, double v) {
    return isfinite(v) && (!a->log || v > 0);
}

void svg_axis_take(svg_axis *a, const double *v, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        if (!drawable(a, v[i])) continue;
        a->lo = fmin(a->lo, v[i]);
        a->hi = fmax(a->hi, v[i]);
    }
}

bool svg_axis_empty(const svg_axis *a) {
    return !(a->lo <= a->hi);
}

/* Some room at the ends; a single value gets an axis around it. */
static void widen(svg_axis *a) {
    if (svg_axis_empty(a)) a->lo = a->hi = 1;
    if (a->log) {
        const double room = a->hi > a->lo ? pow(a->hi / a->lo, 0.06) : 1.5;
        a->lo /= room;
        a->hi *= room;
        return;
    }
    if (a->from_zero) {
        a->lo = fmin(a->lo, 0);
        a->hi = fmax(a->hi, 0);
    }
    const double room = a->hi > a->lo ? 0.06 * (a->hi - a->lo) : fmax(0.5, fabs(a->lo) / 10);
    if (!a->from_zero || a->lo < 0) a->lo -= room;
    a->hi += room;
}

/* Place on the axis, 0 .. 1. */
static double place(const svg_axis *a, double v) {
    return a->log ? log(v / a->lo) / log(a->hi / a->lo) : (v - a->lo) / (a->hi - a->lo);
}

static double at_x(const svg_chart *c, double v) {
    return LEFT + place(&c->x, v) * (WIDTH - LEFT - RIGHT);
}

static double at_y(const svg_chart *c, double v) {
    return HEIGHT - BOTTOM - place(&c->y, v) * (HEIGHT - TOP - BOTTOM);
}

/* ---- ticks ---- */

/* 1, 2 or 5 times a power of ten that gives about five steps. */
static double nice_step(double span) {
    const double raw = span / 5, power = pow(10, floor(log10(raw))), part = raw / power;
    return power * (part < 1.5 ? 1 : part < 3.5 ? 2 : part < 7.5 ? 5 : 10);
}

static int linear_ticks(const svg_axis *a, double ticks[16]) {
    const double nice = nice_step(a->hi - a->lo), step = a->whole ? fmax(nice, 1) : nice;
    int n = 0;
    for (double k = ceil(a->lo / step); k * step <= a->hi && n < 16; k++) ticks[n++] = k * step;
    return n;
}

static int log_ticks(const svg_axis *a, double ticks[16]) {
    static const double parts[] = {1, 2, 5};
    const double decades = log10(a->hi / a->lo), every = fmax(1, ceil(decades / 6));
    int n = 0;
    for (double p = floor(log10(a->lo)); p <= log10(a->hi) && n < 16; p++)
        for (int k = 0; k < (decades < 2.5 ? 3 : 1) && n < 16; k++) {
            const double v = parts[k] * pow(10, p);
            if (v >= a->lo && v <= a->hi && fmod(p, every) == 0) ticks[n++] = v;
        }
    return n > 1 ? n : linear_ticks(a, ticks);
}

static int ticks_of(const svg_axis *a, double ticks[16]) {
    if (a->bare) return 0;
    return a->log ? log_ticks(a, ticks) : linear_ticks(a, ticks);
}

/* Multiples of a step miss zero by rounding. An exponent is raised: 10 to the 6th, not 1e+06. */
static const char *number(double v, double span, char text[64]) {
    static const char *const raised[] = {"\u2070", "\u00b9", "\u00b2", "\u00b3", "\u2074",
                                         "\u2075", "\u2076", "\u2077", "\u2078", "\u2079"};
    char plain[32], digits[24];
    snprintf(plain, sizeof plain, "%.4g", fabs(v) < 1e-9 * span ? 0 : v);
    char *e = strchr(plain, 'e');
    if (!e) return strcpy(text, plain);
    const long exponent = strtol(e + 1, NULL, 10);
    *e = '\0';
    snprintf(digits, sizeof digits, "%ld", labs(exponent));
    if (strcmp(plain, "1") == 0)
        plain[0] = '\0';
    else
        strcpy(e, "\u00b7");
    int n = snprintf(text, 64, "%s10%s", plain, exponent < 0 ? "\u207b" : "");
    for (const char *d = digits; *d; d++)
        n += snprintf(text + n, (size_t)(64 - n), "%s", raised[*d - '0']);
    return text;
}

/* ---- charts ---- */

void svg_begin(svg_chart *c) {
    double ticks[16];
    char text[64];
    widen(&c->x);
    widen(&c->y);
    c->legend = 0;
    fprintf(c->f, "<svg viewBox=\"0 0 %d %d\" role=\"img\"><title>", WIDTH, HEIGHT);
    svg_text(c->f, c->title);
    fprintf(c->f, "</title>\n<text class=\"t\" x=\"%d\" y=\"13\">", LEFT);
    svg_text(c->f, c->title);
    fputs("</text>\n", c->f);
    for (int i = 0, n = ticks_of(&c->y, ticks); i < n; i++)
        fprintf(c->f,
                "<path class=\"g\" d=\"M%d %.1fH%d\"/><text class=\"n e\" x=\"%d\" y=\"%.1f\">%s"
                "</text>\n",
                LEFT, at_y(c, ticks[i]), WIDTH - RIGHT, LEFT - 4, at_y(c, ticks[i]) + 3,
                number(ticks[i], c->y.log ? 0 : c->y.hi - c->y.lo, text));
    for (int i = 0, n = ticks_of(&c->x, ticks); i < n; i++)
        fprintf(c->f,
                "<path class=\"g\" d=\"M%.1f %dV%d\"/><text class=\"n m\" x=\"%.1f\" y=\"%d\">%s"
                "</text>\n",
                at_x(c, ticks[i]), TOP, HEIGHT - BOTTOM, at_x(c, ticks[i]), HEIGHT - BOTTOM + 12,
                number(ticks[i], c->x.log ? 0 : c->x.hi - c->x.lo, text));
    fprintf(c->f, "<path class=\"f\" d=\"M%d %dV%dH%d\"/><text class=\"n m\" x=\"%d\" y=\"%d\">",
            LEFT, TOP, HEIGHT - BOTTOM, WIDTH - RIGHT, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8);
    svg_text(c->f, c->x.label);
    fprintf(c->f, "</text><text class=\"n m\" transform=\"translate(10 %d) rotate(-90)\">",
            (TOP + HEIGHT - BOTTOM) / 2);
    svg_text(c->f, c->y.label);
    fputs("</text>\n", c->f);
}

/* A word below the title, behind a piece of its line. */
static void legend(svg_chart *c, int series, const char *name) {
    if (!name) return;
    fprintf(c->f, "<path class=\"l s%d\" d=\"M%d %dh20\"/><text class=\"n\" x=\"%d\" y=\"%d\">",
            series, LEFT + c->legend, TOP - 9, LEFT + c->legend + 24, TOP - 6);
    svg_text(c->f, name);
    fputs("</text>\n", c->f);
    c->legend += 36 + (int)(5.2 * (double)strlen(name));
}

/* Circles, squares, diamonds and triangles, filled and open, for those who see no colours. Returns
 * the name of the element, which stays open. */
static const char *mark_begin(FILE *f, int series, double x, double y) {
    const char *shape = series >= 4 ? "polygon" : series % 2 ? "rect" : "circle";
    fprintf(f, "<%s class=\"p s%d\" ", shape, series);
    if (series == 4 || series == 6)
        fprintf(f, "points=\"%.1f %.1f %.1f %.1f %.1f %.1f %.1f %.1f\">", x, y - 3, x + 3, y, x,
                y + 3, x - 3, y);
    else if (series > 4)
        fprintf(f, "points=\"%.1f %.1f %.1f %.1f %.1f %.1f\">", x, y - 2.8, x + 2.8, y + 2.2,
                x - 2.8, y + 2.2);
    else if (series % 2)
        fprintf(f, "x=\"%.1f\" y=\"%.1f\" width=\"4\" height=\"4\">", x - 2, y - 2);
    else
        fprintf(f, "cx=\"%.1f\" cy=\"%.1f\" r=\"2.2\">", x, y);
    return shape;
}

static void mark(const svg_chart *c, int series, double x, double y) {
    char tx[64], ty[64];
    const char *shape = mark_begin(c->f, series, at_x(c, x), at_y(c, y));
    fprintf(c->f, "<title>%s, %s</title></%s>", number(x, 0, tx), number(y, 0, ty), shape);
}

void svg_key(FILE *f, int series, const char *name) {
    fprintf(f, "<svg class=\"k\" viewBox=\"0 0 34 10\"><path class=\"l s%d\" d=\"M0 5h34\"/>",
            series);
    fprintf(f, "</%s></svg>", mark_begin(f, series, 17, 5));
    svg_text(f, name);
    fputc('\n', f);
}

static bool both_drawable(const svg_chart *c, double x, double y) {
    return drawable(&c->x, x) && drawable(&c->y, y);
}

void svg_lines(svg_chart *c, int series, int64_t n, const double *x, const double *y,
               const char *name) {
    bool pen = false;
    fprintf(c->f, "<path class=\"l s%d\" d=\"", series);
    for (int64_t i = 0; i < n; i++) {
        const bool there = both_drawable(c, x[i], y[i]);
        if (there) fprintf(c->f, "%s%.1f %.1f", pen ? "L" : "M", at_x(c, x[i]), at_y(c, y[i]));
        pen = there;
    }
    fputs("\"/>\n", c->f);
    for (int64_t i = 0; n <= FEW && i < n; i++)
        if (both_drawable(c, x[i], y[i])) mark(c, series, x[i], y[i]);
    if (n <= FEW) fputc('\n', c->f);
    legend(c, series, name);
}

void svg_bar(svg_chart *c, int series, double x0, double x1, int lane, int lanes, const char *name,
             const char *text) {
    enum { NAME = 70 }; /* room for one */
    const double height = (double)(HEIGHT - TOP - BOTTOM) / lanes, y = TOP + lane * height,
                 begin = at_x(c, x0), end = fmax(at_x(c, x1), begin + 0.7);
    const bool behind = end + NAME < WIDTH;
    fprintf(c->f,
            "<rect class=\"b s%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\"><title>",
            series, begin, y + 0.1 * height, end - begin, 0.8 * height);
    svg_text(c->f, text);
    fprintf(c->f, "</title></rect><text class=\"n%s\" x=\"%.1f\" y=\"%.1f\">", behind ? "" : " e",
            behind ? end + 3 : begin - 3, y + height / 2 + 3);
    svg_text(c->f, name);
    fputs("</text>\n", c->f);
}

void svg_points(svg_chart *c, int series, int64_t n, const double *x, int lane, int lanes,
                const char *name) {
    enum { ROWS = 4 }; /* neighbours stand in other rows */
    const double height = (double)(HEIGHT - TOP - BOTTOM) / lanes, top = TOP + lane * height,
                 first = top + fmin(10, height / 2), step = (top + height - first) / (ROWS + 1);
    char text[64];
    fprintf(c->f, "<path class=\"g\" d=\"M%d %.1fH%d\"/><text class=\"n\" x=\"%d\" y=\"%.1f\">",
            LEFT, top, WIDTH - RIGHT, LEFT + 2, top + 8);
    svg_text(c->f, name);
    fputs("</text>\n", c->f);
    for (int64_t i = 0; i < n; i++)
        if (isfinite(x[i]))
            fprintf(c->f,
                    "<circle class=\"p s%d\" cx=\"%.1f\" cy=\"%.1f\" r=\"1.8\"><title>%s</title>"
                    "</circle>\n",
                    series, at_x(c, x[i]), first + (double)(1 + i % ROWS) * step,
                    number(x[i], 0, text));
}

/* Below the map, at its right: the depths from low to high. */
static void map_key(FILE *f, int levels, const char *low, const char *high) {
    enum { CELL = 6, ROOM = 16, SIDE = 7 }; /* of a depth, of the word behind, of the frame */
    const int end = WIDTH - RIGHT - ROOM, begin = end - CELL * levels, y = HEIGHT - 3 - SIDE;
    fprintf(f, "<text class=\"n e\" x=\"%d\" y=\"%d\">", begin - 4, HEIGHT - 3);
    svg_text(f, low);
    fprintf(f, "</text><text class=\"n\" x=\"%d\" y=\"%d\">", end + 4, HEIGHT - 3);
    svg_text(f, high);
    fputs("</text>", f);
    for (int k = 1; k < levels; k++)
        fprintf(f, "<path class=\"h\" fill-opacity=\"%.3f\" d=\"M%d %dh%dv%dh-%dz\"/>",
                (double)k / (levels - 1), begin + k * CELL, y, CELL, SIDE, CELL);
    fprintf(f, "<path class=\"f\" d=\"M%d %dh%dv%dh-%dz\"/>\n", begin, y, CELL * levels, SIDE,
            CELL * levels);
}

void svg_map(FILE *f, const char *title, int rows, int cols, const uint8_t *level, int levels,
             const char *x_label, const char *y_label, const char *low, const char *high) {
    const double w = (double)(WIDTH - LEFT - RIGHT) / cols, h = (double)(HEIGHT - TOP) / rows;
    fprintf(f, "<svg viewBox=\"0 0 %d %d\" role=\"img\"><title>", WIDTH, HEIGHT);
    svg_text(f, title);
    fprintf(f, "</title>\n<text class=\"t\" x=\"%d\" y=\"13\">", LEFT);
    svg_text(f, title);
    fputs("</text>\n", f);
    for (int k = 1; k < levels; k++) {
        fprintf(f, "<path class=\"h\" fill-opacity=\"%.3f\" d=\"", (double)k / (levels - 1));
        for (int i = 0; i < rows; i++)
            for (int j = 0, run; j < cols; j += run) {
                for (run = 1; j + run < cols && level[i * cols + j + run] == level[i * cols + j];)
                    run++;
                if (level[i * cols + j] != k) continue;
                fprintf(f, "M%.1f %.1fh%.1fv%.1fh-%.1fz", LEFT + j * w, TOP - 14 + i * h, run * w,
                        h, run * w);
            }
        fputs("\"/>\n", f);
    }
    map_key(f, levels, low, high);
    fprintf(f, "<path class=\"f\" d=\"M%d %dV%dH%d\"/><text class=\"n\" x=\"%d\" y=\"%d\">", LEFT,
            TOP - 14, HEIGHT - 14, WIDTH - RIGHT, LEFT, HEIGHT - 3);
    svg_text(f, x_label);
    fprintf(f, "</text><text class=\"n m\" transform=\"translate(10 %d) rotate(-90)\">",
            HEIGHT / 2);
    svg_text(f, y_label);
    fputs("</text></svg>\n", f);
}

void svg_end(svg_chart *c) {
    fputs("</svg>\n", c->f);
}
