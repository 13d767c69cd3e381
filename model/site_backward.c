/* Cuts of rows into chunks whose gradients are summed in order; the chain rule of DESIGN.md 2.2 is
 * in site_backward_real.c. */
#include "model/site_backward.h"

#include "base/size.h"

/* Rows whose share in the gradient of the segments' rotations is summed by one thread. */
enum { CHUNK_REALS = 1 << 16 };

int64_t site_chunk_rows(const site *s) {
    return size_max(8, CHUNK_REALS / s->n);
}

bool site_is_whole(const site *s) {
    return s->segment == s->n && !s->before;
}

bool site_cuts_segments(const site *s) {
    return site_range(s) % s->segment != 0 && !site_is_identity(s);
}

int64_t site_rotations(const site *s) {
    return size_max(1, s->n / s->segment / s->share);
}

int64_t site_chunk_reals(const site *s) {
    return 2 * site_chunk_rows(s) * s->n;
}

int64_t site_parts_room(const site *s, int64_t rows) {
    if (site_is_whole(s)) return 0;
    return size_ceil_div(rows, site_chunk_rows(s)) * site_rotations(s) * s->segment * s->segment;
}

size_t site_ends_bytes(compute_type compute) {
    return compute == COMPUTE_F64 ? sizeof(site_ends_f64) : sizeof(site_ends_f32);
}

static void *moved_by(const void *base, int64_t count, size_t size) {
    return base ? (char *)base + (size_t)count * size : NULL;
}

site_saved site_saved_at(const site_saved *saved, const site *s, int64_t row,
                         compute_type compute) {
    const size_t factor = compute_factor_bytes(compute);
    return (site_saved){
        .error = moved_by(saved->error, row * s->n, factor),
        .moved = moved_by(saved->moved, row * s->n, factor),
        .ends = moved_by(saved->ends, row * site_ranges(s), site_ends_bytes(compute)),
    };
}
