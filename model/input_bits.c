/* Sets of layers are read as runs of numbers. */
#include "model/input_bits.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

bool input_eight_any(const input_eight *e) {
    static const input_eight none;
    return memcmp(e, &none, sizeof none) != 0;
}

const char *input_place_name(input_place place) {
    static const char *const names[INPUT_PLACES] = {"attn", "mlp", "o", "down"};
    return names[place];
}

input_place input_place_of(llama_role linear) {
    switch (linear) {
    case ROLE_GATE:
    case ROLE_UP:
        return INPUT_MLP;
    case ROLE_O:
        return INPUT_O;
    case ROLE_DOWN:
        return INPUT_DOWN;
    default:
        return INPUT_ATTN;
    }
}

int64_t input_products(const llama_config *cfg, input_place place) {
    int64_t sum = 0;
    for (int k = 0; k < LLAMA_LINEARS; k++) {
        llama_tensor t;
        if (input_place_of(llama_linears[k]) == place &&
            llama_tensor_of(cfg, llama_linears[k], 0, &t))
            sum += t.rows * t.cols;
    }
    return sum;
}

void layer_flags_text(const layer_flags *f, int64_t layers, char *to, size_t n) {
    size_t used = 0;
    *to = 0;
    for (int64_t l = 0, end; l < layers; l = end + 1) {
        end = l;
        if (!layer_flags_has(f, l)) continue;
        while (end + 1 < layers && layer_flags_has(f, end + 1)) end++;
        const bool whole = l == 0 && end == layers - 1, one = l == end;
        int wrote = whole ? snprintf(to, n, "all")
                    : one ? snprintf(to + used, n - used, "%s%" PRId64, used ? ", " : "", l)
                          : snprintf(to + used, n - used, "%s%" PRId64 "-%" PRId64,
                                     used ? ", " : "", l, end);
        used += (size_t)wrote;
        if (used >= n) return; /* cut off */
    }
}
