/* site_backward - a quantization site in learning form: forward that keeps its error, and backward
 * to x and to the rotation, with the range of the quantizer held or followed (DESIGN.md 2.2;
 * backward.h has the formulas). Not where sites stand (sites.h), not the quantizer (fake_quant.h).
 */
#ifndef SPINSHARD_MODEL_SITE_BACKWARD_H
#define SPINSHARD_MODEL_SITE_BACKWARD_H

#include "base/half.h"
#include "model/site.h"
#include "model/wmat.h"

/* The ends of one range: u[hi] and u[lo], as places in the row, and dscale / du there, over scale:
 * with clips (a, b) b / (b max - a min) and -a / (b max - a min), or sign / max|u|, the clip in the
 * greater of b max and -a min; 0 where the end is held at 0. u at both, where scales stand after
 * the rotation. */
typedef struct site_ends_f32 {
    int32_t hi, lo;
    float hi_slope, lo_slope, hi_u, lo_u;
} site_ends_f32;
typedef struct site_ends_f64 {
    int32_t hi, lo;
    double hi_slope, lo_slope, hi_u, lo_u;
} site_ends_f64;

/* What rows leave behind; NULL: not kept. Factors are bf16 or real, by compute. */
typedef struct site_saved {
    void *error; /* factor [rows, n]: e = Q(xR) - xR, for dR, and for the range where it cuts
                    segments */
    void *moved; /* factor [rows, n]: x^ - x, for the range */
    void *ends;  /* site_ends [rows, n / range], for the range */
} site_saved;

typedef struct site_work {
    compute_type compute;
    void *panel; /* real: rows in the rotated basis */
    int64_t panel_room;
    bf16 *half;   /* COMPUTE_BF16: [rows, n] for the widest n of one segment, else NULL */
    void *slopes; /* real [rows, ranges, 2] */
    void *parts;  /* real: parts of the gradient of R2, see site_parts_room */
    void *threads;
    uint64_t thread_bytes; /* each holds n reals, and site_chunk_reals */
    const bf16 *R_half;    /* a dense R of one segment in bf16 [n, n]; NULL: rotation_apply */
    const void *R_t;       /* a dense R of one segment, transposed, real [n, n]; NULL */
} site_work;

/* Local. Rows whose share in the gradient of the segments' rotations is summed by one thread. */
int64_t site_chunk_rows(const site *s);

/* Local. True with one rotation of whole rows, which has large products of its own; scales before
 * it go by segments. */
bool site_is_whole(const site *s);

/* Local. Reals that `parts` holds for gradients of the segments' rotations of `rows` rows, and
 * those of a thread. */
int64_t site_parts_room(const site *s, int64_t rows);
int64_t site_chunk_reals(const site *s);

/* Local. Bytes of the ends of a range; what was kept of the rows from `row` on. */
size_t site_ends_bytes(compute_type compute);
site_saved site_saved_at(const site_saved *saved, const site *s, int64_t row, compute_type compute);

/* Local. A range is a part of a segment that a rotation mixes, so that no basis but the rotated one
 * has what moved in it. */
bool site_cuts_segments(const site *s);

/* Local. How many rotations the segments of a row share. */
int64_t site_rotations(const site *s);

/* Local, threaded. x [rows, n] in place, as site_apply; fills what of `saved` is not NULL. factors:
 * x as factors, where the caller has them; or NULL. */
void site_save_f32(const site *s, float *x, int64_t rows, const void *factors,
                   const site_saved *saved, const site_work *work);
void site_save_f64(const site *s, double *x, int64_t rows, const void *factors,
                   const site_saved *saved, const site_work *work);

/* Local, threaded. g [rows, n]: in dL/dx^, out dL/dx. x: factors of the rows before the site, for
 * the gradient through the range; moved NULL: the range is held. dR [site_rotations, segment,
 * segment] real is added to; NULL or error NULL: not wanted. */
void site_backward_f32(const site *s, float *g, int64_t rows, const void *x,
                       const site_saved *saved, float *dR, const site_work *work);
void site_backward_f64(const site *s, double *g, int64_t rows, const void *x,
                       const site_saved *saved, double *dR, const site_work *work);

/* Local, threaded. What a gradient through the range begins with, from g = dL/dx^ [rows, n] and the
 * moved and ends that were kept: work->slopes [rows, ranges, 2] = du at the two ends of each range;
 * then work->panel [m, n] = rows i0 .. i0 + m of (du R^T) S^-1, S the scales before R, which is
 * what dL/dx has beyond g. */
void site_end_slopes_f32(const site *s, const float *g, int64_t rows, const site_saved *saved,
                         const site_work *work);
void site_end_slopes_f64(const site *s, const double *g, int64_t rows, const site_saved *saved,
                         const site_work *work);
void site_range_rows_f32(const site *s, int64_t i0, int64_t m, const site_saved *saved,
                         const site_work *work);
void site_range_rows_f64(const site *s, int64_t i0, int64_t m, const site_saved *saved,
                         const site_work *work);

/* Local. n factors as reals. */
void site_widen_f32(const void *from, int64_t n, compute_type compute, float *to);
void site_widen_f64(const void *from, int64_t n, compute_type compute, double *to);

#endif
