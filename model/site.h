/* site - an activation quantizer ("site") on rows: x -> x + (Q(xR) - xR) R^T (DESIGN.md 2.2), with
 * R in equal segments along the row (heads), or x -> Q(xR) where the weights that follow already
 * hold R^-1. Scales stand before or after R: x -> x + (Q(x S^-1 R) - x S^-1 R) R^T S, and x -> x +
 * (Q(x R S^-1) - x R S^-1) S R^T. Not the placing of sites in a block (block_real.c). */
#ifndef SPINSHARD_MODEL_SITE_H
#define SPINSHARD_MODEL_SITE_H

#include "quant/fake_quant.h"
#include "rotations/rotation.h"
#include "rotations/scale_set.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct site {
    aquant quant;
    bool include_zero;
    bool range_per_segment;   /* without quant.group: a range per segment, else per row */
    bool rotated;             /* leave the row in the rotated basis */
    int64_t n, segment;       /* row length; segment divides it */
    const rotation *const *R; /* segment i uses R[i / share]; a NULL one is the identity */
    int64_t share;
    const rotation *then; /* [segment] behind R, the same for all segments, with no gradient of its
                             own; NULL: the identity. R above is then R then */
    const scale_vector *before; /* [n / before_share] by segments: segment i takes part i /
                                   before_share; NULL: ones */
    int64_t before_share;
    const scale_vector *after; /* [n]; only with one segment; NULL: ones */
} site;

/* Local. Reals in one range, and ranges in a row; quant.group divides n. */
static inline int64_t site_range(const site *s) {
    if (s->quant.group) return s->quant.group;
    return s->range_per_segment ? s->segment : s->n;
}
static inline int64_t site_ranges(const site *s) {
    return s->n / site_range(s);
}

/* Buffers of a site: a panel of rows, and a row for each thread. */
typedef struct site_scratch {
    void *panel;
    int64_t panel_room; /* reals; at least n */
    void *threads;
    uint64_t thread_bytes; /* distance of the threads' parts; each holds at least n reals */
} site_scratch;

/* Local. True where applying the site changes anything. */
bool site_acts(const site *s);

bool site_is_identity(const site *s); /* local; true where no segment has an R */
/* Local. Of the site at a norm's output: does it stand behind the norm's gain? The linears' inputs
 * are what a runtime quantizes. R1 and scales of the norm have the gain folded into these linears,
 * so the site stands before it; without either, in an archive (whose gains are ones, 1/S, or were
 * never folded) as in a model that nothing rotates, it stands behind. */
bool site_behind_gain(const site *s);
bool site_is_plain(const site *s); /* local; no rotation and no scale: x -> Q(x) */

/* Local, threaded. Rows [rows, s->n] times R, or R^T where `inverse`, segment by segment. */
void site_rotate_f32(const site *s, float *x, int64_t rows, bool inverse);
void site_rotate_f64(const site *s, double *x, int64_t rows, bool inverse);

/* Local, threaded. Rows times s->then alone. */
void site_then_f32(const site *s, float *x, int64_t rows, bool inverse);
void site_then_f64(const site *s, double *x, int64_t rows, bool inverse);

/* Local, threaded. Rows [rows, s->n] times the scales before the rotation, or (inverse) over them;
 * nothing without these. */
void site_scale_f32(const site *s, float *x, int64_t rows, bool inverse);
void site_scale_f64(const site *s, double *x, int64_t rows, bool inverse);

/* Local, threaded. x [rows, s->n] in place. Bits of a row do not depend on the other rows. */
void site_apply_f32(const site *s, float *x, int64_t rows, const site_scratch *scratch);
void site_apply_f64(const site *s, double *x, int64_t rows, const site_scratch *scratch);

#endif
