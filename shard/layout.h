/* layout - which tensors an archive holds, and where each one lies. Planning only: no files, no
 * ranks; the same config and options give the same layout everywhere. A *unit* is what is computed,
 * kept and restarted as one: 0 the embedding, 1..L the layers, L+1 the final norm and the head. A
 * *part* is one tar with one safetensors shard. Tensors are listed unit by unit; parts are cut in
 * that order between modules, so that a linear stays in one part. Inside a unit and inside a part
 * tensors of wide elements come first: safetensors allows no holes, and this order keeps every
 * tensor on a multiple of its element size. On the way: fused weight -> INT4 codes + scales ->
 * [layout] -> shard bytes. */
#ifndef SPINSHARD_SHARD_LAYOUT_H
#define SPINSHARD_SHARD_LAYOUT_H

#include "base/err.h"
#include "io/safetensors.h"
#include "model/config.h"
#include "model/tensors.h"
#include "shard/form.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct layout_options {
    form_scheme linears;  /* how the linears of the layers are stored */
    st_dtype store_dtype; /* of what is not quantized: BF16, F16 or F32 */
    bool untied;          /* write a head of its own where the config ties it to the embedding */
    uint64_t shard_bytes; /* data of a part, kept where a module is not larger */
} layout_options;

typedef struct layout_slot {
    char name[128];        /* as in the archive */
    int order;             /* among those of one tensor of the checkpoint */
    const form_slot *slot; /* what of a linear it holds; NULL: the tensor itself (norms, biases,
                              embedding, head) */
    llama_tensor source;   /* the tensor of the checkpoint it is made of; a tied head: HEAD */
    int64_t unit, part;
    st_dtype dtype;
    int n_dims;
    int64_t shape[2];
    uint64_t bytes;
    uint64_t unit_offset; /* in the bytes of its unit */
    uint64_t part_offset; /* in the data section of its part */
} layout_slot;

/* Key-value pairs of the header of files that have them, ready to be written. */
typedef struct layout_metadata {
    uint64_t pairs;
    char *bytes; /* [len]; owned by the layout that it is given to */
    size_t len;
} layout_metadata;

typedef struct layout layout;

/* Local. Plan an archive. Caller owns *out (layout_destroy). Fails with ERR_USAGE where the group
 * does not divide an input (both sizes named) or an option is out of range, ERR_INPUT where a
 * size overflows. */
err layout_create(const llama_config *cfg, const layout_options *opts, layout **out);
void layout_destroy(layout **l); /* local; NULL is fine; sets NULL */

/* Local. What the archive says of inputs, where that is known only later: no tensor depends on it.
 */
void layout_put_inputs(layout *l, form_inputs inputs);

const layout_options *layout_opts(const layout *l);
const llama_config *layout_config(const layout *l); /* tied is false where untied */

/* Local. All tensors, unit by unit; in a unit in the order of unit_offset. Borrowed. */
int64_t layout_count(const layout *l);
const layout_slot *layout_tensor(const layout *l, int64_t i);
const layout_slot *layout_find(const layout *l, const char *name); /* NULL where absent */
/* Local. The place of one tensor of the checkpoint, or of one part of a linear (slot of its form;
 * NULL: the tensor itself); NULL where absent. layer -1 outside. */
const layout_slot *layout_find_role(const layout *l, llama_role role, int64_t layer,
                                    const form_slot *slot);

int64_t layout_units(const layout *l); /* layers + 2 */
uint64_t layout_unit_bytes(const layout *l, int64_t unit);
/* Local. Tensors first..first + count - 1 make the unit. */
void layout_unit_range(const layout *l, int64_t unit, int64_t *first, int64_t *count);

int64_t layout_parts(const layout *l);
uint64_t layout_part_bytes(const layout *l, int64_t part); /* data section, without the header */
uint64_t layout_total_bytes(const layout *l);              /* of all tensors */
/* Local. "model-0000k-of-0000N.safetensors", or another ending. */
void layout_shard_name(const layout *l, int64_t part, char name[64]);
/* Local. Tensors of a part, in the order of the file. Borrowed. */
int64_t layout_part_count(const layout *l, int64_t part);
const layout_slot *layout_part_tensor(const layout *l, int64_t part, int64_t i);
/* Local. Give the layout the pairs of its first header, before layout_shard_header: it takes
 * m->bytes over (free); and what it was given. */
void layout_put_meta(layout *l, const layout_metadata *m);
const layout_metadata *layout_meta(const layout *l);
/* Local. First bytes of the shard: length and JSON header, or what the form's files begin with; its
 * data follow. Caller frees *out. */
err layout_shard_header(const layout *l, int64_t part, char **out, size_t *len);

#endif
