/* eight_choice - which inputs are worth 8 bits: a choice under a budget, by what each saves in nats
 * (pipeline/learn/noise_cost.h) and what it costs in bits times multiplications. Not the measuring.
 * On the way: noise of each quantizer at its bits and at 8 -> activations.eight.
 *
 * To take items of value v_i and cost c_i within a budget is the knapsack problem. Taken by falling
 * v_i / c_i, those that no longer fit left out, the value is short of the best by less than one
 * item's: until the first that does not fit it is the best that fractions of items could reach
 * (Dantzig, Discrete-variable extremum problems, 1957). The saved nats add up as far as the noise
 * of one quantizer does not change what another's costs, which the second order takes for
 * granted. */
#ifndef SPINSHARD_PIPELINE_LEARN_EIGHT_CHOICE_H
#define SPINSHARD_PIPELINE_LEARN_EIGHT_CHOICE_H

#include "model/input_bits.h"

/* An input of a layer. */
typedef struct eight_item {
    int bits;    /* without the choice */
    double nats; /* a token, that 8 bits save; 0 and less: not worth it */
} eight_item;

/* Local. items [layers, INPUT_PLACES]. Adds the chosen to *out. Bits times input_products, summed
 * over the model, stay at `average` times the sum of the products or below; inputs of 8 bits and
 * more count and are not chosen. */
void eight_choose(const llama_config *cfg, const eight_item *items, double average,
                  input_eight *out);

#endif
