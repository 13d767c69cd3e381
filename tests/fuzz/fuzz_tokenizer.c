/* tokenizer.json, and behind a mark a text for it; what is accepted gives ids that it has. */
#include "io/tokenizer.h"
#include "io/utf8.h"
#include "tests/fuzz/fuzz.h"

static const char SAMPLE[] =
    "Once upon a time, it's 1234  \xe2\x96\x81 caf\xc3\xa9\n\t<s> \xf0\x9f\x98\x80!";

static void encode(const tokenizer *t, const char *text, size_t len) {
    int32_t *ids;
    int64_t n;
    err e = tokenizer_encode(t, text, len, true, &ids, &n);
    if (e.code) return;
    fuzz_need(utf8_check(text, len) == len, "ids of what is not UTF-8");
    for (int64_t i = 0; i < n; i++) fuzz_need(tokenizer_token(t, ids[i]) != NULL, "an unknown id");
    free(ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *part[2];
    size_t len[2];
    int n = fuzz_parts(data, size, 2, part, len);
    tokenizer *t;
    if (tokenizer_create(part[0], len[0], "tokenizer.json", &t).code) return 0;
    encode(t, SAMPLE, sizeof SAMPLE - 1);
    if (n == 2) encode(t, part[1], len[1]);
    tokenizer_destroy(&t);
    return 0;
}
