/* input_bits - which inputs of linears are quantized to 8 bits where the others have fewer, by
 * place and layer; how much a model computes with each; and layers as text. Not the bits of the
 * others (llama_sites.act), not how the 8-bit ones are chosen (pipeline/learn/eight_choice.h). */
#ifndef SPINSHARD_MODEL_INPUT_BITS_H
#define SPINSHARD_MODEL_INPUT_BITS_H

#include "model/config.h"
#include "model/tensors.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The inputs that linears of a layer share: that of q k v, of gate and up, of o, of down. What
 * shares an input has one quantizer; runtimes also run q k v, and gate and up, as one product. */
typedef enum input_place { INPUT_ATTN, INPUT_MLP, INPUT_O, INPUT_DOWN, INPUT_PLACES } input_place;
#define INPUT_WORDS "attn|mlp|o|down"

/* The inputs of 8 bits. By value; none of them with all zero. */
typedef struct input_eight {
    layer_flags at[INPUT_PLACES];
} input_eight;

enum { INPUT_EIGHT_BITS = 8 };

bool input_eight_any(const input_eight *e); /* local */

/* Local. Bits of an input that without `e` has `bits`: never fewer. */
static inline int input_bits_of(const input_eight *e, input_place place, int64_t layer, int bits) {
    const bool more = bits < INPUT_EIGHT_BITS && layer_flags_has(&e->at[place], layer);
    return more ? INPUT_EIGHT_BITS : bits;
}

/* Local. The word of a place; the place of the input that a linear (llama_linears) reads. */
const char *input_place_name(input_place place);
input_place input_place_of(llama_role linear);

/* Local. Multiplications a token with this input in one layer: the weights of the linears that
 * read it. */
int64_t input_products(const llama_config *cfg, input_place place);

/* Local. The layers of a set that a model of `layers` layers has, as "0-4, 7", into `to` of n
 * bytes; "all" where it has all of them, "" where it has none. */
void layer_flags_text(const layer_flags *f, int64_t layers, char *to, size_t n);

#endif
