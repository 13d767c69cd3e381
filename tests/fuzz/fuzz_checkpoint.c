/* A model folder in four parts: config.json, the index, two shards. What is accepted is read
 * through: every tensor that the checkpoint lists. */
#include "io/hf_checkpoint.h"
#include "tests/fuzz/fuzz.h"

static void read_all(const hf_checkpoint *ck) {
    for (int64_t i = 0; i < hf_checkpoint_count(ck); i++) {
        const hf_tensor *t = hf_checkpoint_at(ck, i);
        char *to = malloc(hf_tensor_bytes(t) + 1);
        fuzz_need(to && !hf_checkpoint_read(ck, t, to, NULL).code, "a tensor cannot be read");
        fuzz_need(hf_checkpoint_find(ck, t->info.name) == t, "a tensor is not found");
        free(to);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const char *const names[] = {"config.json", "model.safetensors.index.json",
                                        "model-00001-of-00002.safetensors",
                                        "model-00002-of-00002.safetensors"};
    const char *part[4], *path = fuzz_path(data, size);
    size_t len[4];
    int n = fuzz_parts(data, size, 4, part, len);
    fileset *fs;
    hf_checkpoint *ck = NULL;
    fuzz_need(!fileset_create("fuzz", &fs).code, "no memory");
    for (int i = 0; i < n; i++) /* two parts: one shard without an index */
        fuzz_need(!fileset_add(fs, n == 2 && i == 1 ? "model.safetensors" : names[i], path,
                               (uint64_t)(part[i] - (const char *)data), len[i])
                       .code,
                  "no file set");
    if (!hf_checkpoint_open(comm_world(), fs, &ck).code) read_all(ck);
    hf_checkpoint_destroy(&ck);
    fileset_destroy(&fs);
    return 0;
}
