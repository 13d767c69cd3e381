/* tool_tokenize TOKENIZER.JSON - the ids of texts, for scripts. Reads records from stdin: a decimal
 * length, a newline, that many bytes. Writes one line of ids for each, or "! message". */
#include "base/file.h"
#include "io/tokenizer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

static int complain(const err *e) {
    fprintf(stderr, "%s: %s\n", e->where, e->what);
    return e->code;
}

static void print_ids(const tokenizer *t, const char *text, size_t len) {
    int32_t *ids;
    int64_t n;
    err e = tokenizer_encode(t, text, len, false, &ids, &n);
    if (e.code) printf("! %s: %s", e.where, e.what);
    for (int64_t i = 0; i < n; i++) printf("%s%" PRId32, i ? " " : "", ids[i]);
    putchar('\n');
    free(ids);
}

int main(int argc, char **argv) {
    char *json;
    size_t len, text_len;
    tokenizer *t;
    if (argc != 2) return ERR_USAGE;
    err e = file_read_all(argv[1], 1u << 30, &json, &len);
    if (!e.code) e = tokenizer_create(json, len, argv[1], &t);
    if (e.code) return complain(&e);
    free(json);
    while (scanf("%zu", &text_len) == 1 && getchar() == '\n') {
        char *text = malloc(text_len + 1);
        if (!text || fread(text, 1, text_len, stdin) != text_len) return ERR_INPUT;
        print_ids(t, text, text_len);
        free(text);
    }
    tokenizer_destroy(&t);
    return 0;
}
