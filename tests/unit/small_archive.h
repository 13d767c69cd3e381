/* small_archive - what tests of the archive's layout and bytes share: configs by their shapes, the
 * options of a layout, a manifest about one part. Not the bytes themselves. For tests alone. */
#ifndef SPINSHARD_TESTS_UNIT_SMALL_ARCHIVE_H
#define SPINSHARD_TESTS_UNIT_SMALL_ARCHIVE_H

#include "base/sha256.h"
#include "shard/layout.h"
#include "shard/manifest.h"

#include <stdlib.h>
#include <string.h>

static inline llama_config as_llama(llama_config shapes) {
    strcpy(shapes.architecture, "LlamaForCausalLM");
    return shapes;
}

/* The tensor of a part of a linear in a form. */
static inline const form_slot *part_of(const char *name, form_part which) {
    return form_part_slot(form_find(name), which);
}

/* Packed, all in bf16, in shards of so many bytes. */
static inline layout_options layout_plain(int bits, int64_t group, bool symmetric,
                                          uint64_t shard_bytes) {
    return (layout_options){.linears = {.form = form_find("pack-quantized"),
                                        .bits = bits,
                                        .group = group,
                                        .symmetric = symmetric,
                                        .scale_dtype = ST_BF16,
                                        .inputs = {.bits = 16}},
                            .store_dtype = ST_BF16,
                            .shard_bytes = shard_bytes};
}

/* Of a model "tiny" with this recipe (owned by it then); manifest_destroy frees. */
static inline manifest *manifest_tiny(json_t *recipe) {
    manifest *about = manifest_create("tiny", 1, 0, 0);
    about->shards[0].file = strdup("model.safetensors");
    sha256_of("header", 6, about->shards[0].header_sha256);
    about->recipe = recipe;
    return about;
}

#endif
