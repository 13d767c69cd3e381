/* svg - charts as SVG inside a page: axes with ticks and units, lines with marks, bars, maps of
 * cells. As much as reports need and no more: no layout, no interaction but titles that browsers
 * show. Colours are classes (s0, s1, ..) that the page defines for light, dark and print; lines
 * differ by dashes and marks too, so that no colour is needed to tell them apart. */
#ifndef SPINSHARD_JOBS_REPORTING_SVG_H
#define SPINSHARD_JOBS_REPORTING_SVG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct svg_axis {
    const char *label; /* with its unit; borrowed */
    bool log;
    bool from_zero; /* linear: zero is in it */
    bool whole;     /* linear: of counts, ticks at whole numbers */
    bool bare;      /* without ticks: lanes have names */
    double lo, hi;  /* set by svg_axis_take; lo > hi: nothing taken yet */
} svg_axis;

enum { SVG_SERIES = 8 }; /* looks of lines that are told apart by dash and mark alone */

typedef struct svg_chart {
    FILE *f;
    const char *title; /* borrowed */
    svg_axis x, y;
    int legend; /* its width so far */
} svg_chart;

/* Local. An axis that nothing was taken for: logarithmic, or linear, which may hold zero in any
 * case or count in whole numbers. */
svg_axis svg_axis_log(const char *label);
svg_axis svg_axis_linear(const char *label);
svg_axis svg_axis_from_zero(const char *label);
svg_axis svg_axis_counted(const char *label);

/* Local. Make the axis hold n values; NAN, and what is not positive on a log axis, are passed over.
 */
void svg_axis_take(svg_axis *a, const double *v, int64_t n);
bool svg_axis_empty(const svg_axis *a);

/* Local. Frame, ticks, labels; the axes hold what will be drawn. Then svg_lines, then svg_end. */
void svg_begin(svg_chart *c);
/* Local. A line through n points, broken where one is NAN, with marks where they are few; series,
 * below SVG_SERIES, is its look; name: a word of the legend, or NULL. */
void svg_lines(svg_chart *c, int series, int64_t n, const double *x, const double *y,
               const char *name);
/* Local. A bar over x0 .. x1 in a lane of so many, its name beside it, and the text that a browser
 * shows on it. */
void svg_bar(svg_chart *c, int series, double x0, double x1, int lane, int lanes, const char *name,
             const char *text);
/* Local. Points at x [n] in a lane of so many, moved apart within it, its name above them. */
void svg_points(svg_chart *c, int series, int64_t n, const double *x, int lane, int lanes,
                const char *name);
void svg_end(svg_chart *c);

/* Local. The look of a series and its name, in a line of text: a legend for several charts. */
void svg_key(FILE *f, int series, const char *name);

/* Local. A picture of cells [rows, cols] of `levels` depths, 0 the ground, with a key of the depths
 * between the words for the first and the last. */
void svg_map(FILE *f, const char *title, int rows, int cols, const uint8_t *level, int levels,
             const char *x_label, const char *y_label, const char *low, const char *high);

/* Local. Text into a page: what has a meaning in HTML is escaped. */
void svg_text(FILE *f, const char *text);

#endif
