/* rotations.safetensors for a model of hidden size 8; what is accepted is orthogonal. */
#include "pipeline/weights/rotation_file.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const rotation_sizes sizes = {
        .hidden = 8, .layers = 2, .heads = 2, .kv_heads = 2, .head_dim = 4, .intermediate = 12};
    static const rotation_options opts = {.r1 = true, .r2 = R2_LAYER};
    rotation_set *set;
    double off = 0;
    err e = rotation_file_read(comm_world(), fuzz_path(data, size), &opts, &sizes, NULL, &set);
    if (e.code) return 0;
    fuzz_need(!rotation_set_orthogonality(set, &off).code && off <= 1e-10, "not orthogonal");
    rotation_set_destroy(&set);
    return 0;
}
