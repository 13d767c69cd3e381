/* config.json to numbers; what is accepted has frequencies that are numbers. */
#include "model/config.h"
#include "tests/fuzz/fuzz.h"

#include <math.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static double inv[1 << 13];
    json_t *v;
    llama_config c;
    if (json_parse((const char *)data, size, "config.json", &v).code) return 0;
    if (!llama_config_parse(v, "config.json", &c).code) {
        fuzz_need(c.head_dim / 2 <= (int64_t)(sizeof inv / sizeof *inv), "head_dim out of range");
        fuzz_need(c.heads % c.kv_heads == 0 && c.head_dim % 2 == 0, "heads do not fit");
        llama_inv_freq(&c, inv);
        for (int64_t i = 0; i < c.head_dim / 2; i++)
            fuzz_need(isfinite(inv[i]) && inv[i] >= 0, "a frequency is not a number");
    }
    json_decref(v);
    return 0;
}
