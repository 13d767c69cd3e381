/* input_groups - config_groups of an archive whose inputs do not all have the same bits: which
 * groups there are, which linears each targets, and back from what groups say of each linear. Not
 * their text (small_files.c), not the matching of targets (loader_targets.h). */
#ifndef SPINSHARD_SHARD_INPUT_GROUPS_H
#define SPINSHARD_SHARD_INPUT_GROUPS_H

#include "base/json.h"
#include "shard/form.h"

/* Bits of inputs differ at most so: of the others, of down_proj, 8. */
enum { INPUT_GROUPS = 3 };

/* Local. The bits that inputs have, each once, those of attn, mlp and o first; returns how many. */
int input_groups_bits(const form_inputs *in, int64_t layers, int bits[INPUT_GROUPS]);

/* Local. "targets" of the group of those bits; the caller's. Groups have no linear in common:
 * readers differ in which of two goes first. Nor does a target tell apart what shares an input,
 * which vLLM joins into one product (qkv_proj, gate_up_proj) of one scheme. */
json_t *input_groups_targets(const form_inputs *in, int64_t layers, int bits);

/* Local. What `bits` [layers, LLAMA_LINEARS], of the input of each linear, says, into out->bits,
 * down_bits and eight. NULL, or what is wrong with it. */
const char *input_groups_read(const int *bits, int64_t layers, form_inputs *out);

#endif
