/* Where only down_proj differs, and in every layer, two expressions say it; else one for each place
 * lists the layers. */
#include "shard/input_groups.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* The linears that read the input of a place. */
static const char *const LINEARS[INPUT_PLACES] = {"(q|k|v)_proj", "(gate|up)_proj", "o_proj",
                                                  "down_proj"};

/* Bits of a place in all layers; 0: they differ. */
static int bits_of_place(const form_inputs *in, input_place place, int64_t layers) {
    const int first = form_input_bits(in, place, 0);
    for (int64_t l = 1; l < layers; l++)
        if (form_input_bits(in, place, l) != first) return 0;
    return first;
}

static int add_bits(int bits, int n, int all[INPUT_GROUPS]) {
    for (int i = 0; i < n; i++)
        if (all[i] == bits) return n;
    all[n] = bits;
    return n + 1;
}

int input_groups_bits(const form_inputs *in, int64_t layers, int bits[INPUT_GROUPS]) {
    int n = 0;
    /* the bits of most inputs stand first, though layer 0 may have others */
    for (int pass = 0; pass < 2; pass++)
        for (int k = 0; k < INPUT_PLACES; k++)
            for (int64_t l = 0; l < layers; l++) {
                const int b = form_input_bits(in, (input_place)k, l);
                if (pass || b == in->bits) n = add_bits(b, n, bits);
            }
    return n;
}

/* "re:.*layers[.](0|4)[.].*(gate|up)_proj$"; of all layers "re:.*(gate|up)_proj$". NULL: no layer
 * has these bits there. */
static char *target_of(const form_inputs *in, input_place place, int64_t layers, int bits) {
    char *text;
    size_t len;
    int64_t n = 0;
    if (bits_of_place(in, place, layers) == bits) {
        if (asprintf(&text, "re:.*%s$", LINEARS[place]) < 0) abort();
        return text;
    }
    FILE *f = open_memstream(&text, &len);
    if (!f) abort();
    fputs("re:.*layers[.](", f);
    for (int64_t l = 0; l < layers; l++)
        if (form_input_bits(in, place, l) == bits) fprintf(f, "%s%" PRId64, n++ ? "|" : "", l);
    fprintf(f, ")[.].*%s$", LINEARS[place]);
    fclose(f);
    if (n) return text;
    free(text);
    return NULL;
}

json_t *input_groups_targets(const form_inputs *in, int64_t layers, int bits) {
    int all[INPUT_PLACES];
    for (int k = 0; k < INPUT_PLACES; k++) all[k] = bits_of_place(in, (input_place)k, layers);
    const bool others =
        all[INPUT_ATTN] && all[INPUT_ATTN] == all[INPUT_MLP] && all[INPUT_ATTN] == all[INPUT_O];
    if (others && all[INPUT_ATTN] == all[INPUT_DOWN]) return json_pack("[s]", "Linear");
    if (others && all[INPUT_DOWN])
        return json_pack("[s]", bits == all[INPUT_DOWN] ? FORM_DOWN_TARGET
                                                        : "re:.*(q|k|v|o|gate|up)_proj$");
    json_t *list = json_array();
    for (int k = 0; k < INPUT_PLACES; k++) {
        char *text = target_of(in, (input_place)k, layers, bits);
        if (text) json_array_append_new(list, json_string(text));
        free(text);
    }
    return list;
}

/* Least bits of the places from `first` to `last`. */
static int least(const int *bits, int64_t layers, input_place first, input_place last) {
    int to = 16;
    for (int64_t i = 0; i < layers * LLAMA_LINEARS; i++) {
        const input_place place = input_place_of(llama_linears[i % LLAMA_LINEARS]);
        if (place >= first && place <= last && bits[i] < to) to = bits[i];
    }
    return to;
}

const char *input_groups_read(const int *bits, int64_t layers, form_inputs *out) {
    const int others = least(bits, layers, INPUT_ATTN, INPUT_O),
              down = least(bits, layers, INPUT_DOWN, INPUT_DOWN);
    out->bits = others;
    out->down_bits = down == others ? 0 : down;
    out->eight = (input_eight){0};
    if (down < 16 && others >= 16) return "without inputs of down_proj alone quantized";
    for (int64_t i = 0; i < layers * LLAMA_LINEARS; i++) {
        const input_place place = input_place_of(llama_linears[i % LLAMA_LINEARS]);
        if (bits[i] == INPUT_EIGHT_BITS)
            layer_flags_put(&out->eight.at[place], i / LLAMA_LINEARS, true);
    }
    for (int64_t i = 0; i < layers * LLAMA_LINEARS; i++) {
        const input_place place = input_place_of(llama_linears[i % LLAMA_LINEARS]);
        if (form_input_bits(out, place, i / LLAMA_LINEARS) != bits[i])
            return "alike in the bits of what shares an input, and of all layers but those of 8 "
                   "bits";
    }
    /* where all have 8 bits anyway nothing is said twice */
    for (int k = 0; k < INPUT_PLACES; k++)
        if ((k == INPUT_DOWN ? down : others) >= INPUT_EIGHT_BITS)
            out->eight.at[k] = (layer_flags){.bits = {0}};
    return NULL;
}
