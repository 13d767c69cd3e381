/* manifest.json; what is accepted lies within its tars, and is read back from its own text. */
#include "shard/entry_names.h"
#include "shard/manifest.h"
#include "tests/fuzz/fuzz.h"

static void check(const manifest *m) {
    for (int64_t i = 0; i < m->n_entries; i++) {
        const manifest_entry *x = &m->entries[i];
        fuzz_need(x->tar >= 0 && x->tar < m->n_tars, "an entry without a tar");
        fuzz_need(x->bytes <= m->tars[x->tar].bytes && !entry_name_fault(x->name), "a wild entry");
    }
    for (int64_t i = 0; i < m->n_tars; i++)
        fuzz_need(!entry_base_fault(m->tars[i].file), "a tar outside of the folder");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    manifest *m, *again;
    char *text;
    size_t len;
    if (manifest_parse((const char *)data, size, "manifest.json", &m).code) return 0;
    check(m);
    fuzz_need(!manifest_text(m, &text, &len).code, "a manifest cannot be written");
    fuzz_need(!manifest_parse(text, len, "again", &again).code, "a manifest is not read back");
    fuzz_need(again->n_entries == m->n_entries && again->n_tars == m->n_tars, "entries are lost");
    manifest_destroy(&again);
    manifest_destroy(&m);
    free(text);
    return 0;
}
