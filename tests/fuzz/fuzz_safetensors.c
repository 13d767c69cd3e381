/* The header of a safetensors file; what is accepted tiles the data and survives the writer. */
#include "io/safetensors.h"
#include "tests/fuzz/fuzz.h"

static void check_tiling(const st_header *h) {
    uint64_t at = 0;
    for (int64_t i = 0; i < st_header_count(h); i++) {
        const st_tensor *t = st_header_at(h, i);
        uint64_t bits = (uint64_t)st_dtype_bits(t->dtype);
        for (int d = 0; d < t->n_dims; d++) bits *= (uint64_t)t->shape[d];
        fuzz_need(t->begin == at && bits == 8 * (t->end - t->begin), "tensors do not tile");
        fuzz_need(st_header_find(h, t->name) == t, "a tensor is not found");
        at = t->end;
    }
    fuzz_need(at == st_header_data_bytes(h), "bytes without a tensor");
}

static void check_writer(const st_header *h) {
    st_header *again;
    char *text;
    size_t len;
    int64_t n = st_header_count(h);
    err e = st_header_write(n ? st_header_at(h, 0) : NULL, n, NULL, &text, &len);
    fuzz_need(!e.code, "the writer refuses what the reader took");
    e = st_header_parse(text + 8, len - 8, st_header_data_bytes(h), "again", &again);
    fuzz_need(!e.code && st_header_count(again) == n, "what was written is not read");
    for (int64_t i = 0; i < n; i++)
        fuzz_need(!strcmp(st_header_at(h, i)->name, st_header_at(again, i)->name),
                  "a name changed");
    st_header_destroy(&again);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    st_header *h;
    err e = st_header_read(fuzz_fd(data, size), "fuzz", 0, size, &h);
    if (e.code) return 0;
    check_tiling(h);
    check_writer(h);
    st_header_destroy(&h);
    return 0;
}
