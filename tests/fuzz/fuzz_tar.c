/* A tar; what is accepted has plain names, all different, and lies within the file. */
#include "shard/entry_names.h"
#include "shard/tar_read.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    tar_index t;
    if (tar_index_read(fuzz_path(data, size), &t).code) return 0;
    fuzz_need(t.n > 0, "a tar without entries");
    for (int64_t i = 0; i < t.n; i++) {
        const tar_item *x = &t.items[i];
        fuzz_need(!entry_name_fault(x->name), "a name that leads elsewhere");
        fuzz_need(x->offset <= size && x->bytes <= size - x->offset, "bytes outside of the file");
        for (int64_t j = 0; j < i; j++)
            fuzz_need(strcasecmp(x->name, t.items[j].name) != 0, "a name twice");
    }
    tar_index_clear(&t);
    return 0;
}
