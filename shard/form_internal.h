/* form_internal - what several forms share: the tensor of the scales.
 * For shard/form*.c alone. */
#ifndef SPINSHARD_SHARD_FORM_INTERNAL_H
#define SPINSHARD_SHARD_FORM_INTERNAL_H

#include "shard/form.h"

/* Local. Groups of a row of `cols` inputs. */
static inline int64_t form_groups(const form_scheme *s, int64_t cols) {
    return s->group ? cols / s->group : 1;
}

/* X.weight_scale, of the stored type, [rows, groups]. */
form_shape form_scale_shape(const form_scheme *s, int64_t rows, int64_t cols);
void form_scale_pack(const qmatrix *q, void *to);
err form_scale_unpack(const void *from, st_dtype dtype, const char *where, qmatrix *q);
err form_scale_same(const void *from, const qmatrix *q, bool *same, int64_t *row);
#define FORM_SCALE_SLOT                                                                            \
    .part = FORM_SCALES, .suffix = ".weight_scale", .shape = form_scale_shape,                     \
    .pack = form_scale_pack, .unpack = form_scale_unpack, .same = form_scale_same

#endif
