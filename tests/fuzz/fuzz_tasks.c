/* A file of zero-shot questions; what is accepted has its right answer among its options. */
#include "io/tasks.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    task_set *t;
    if (task_set_parse((const char *)data, size, "tasks.jsonl", &t).code) return 0;
    fuzz_need(task_set_count(t) >= 1, "no question");
    for (int64_t i = 0; i < task_set_count(t); i++) {
        int n = task_options(t, i);
        fuzz_need(n >= 1 && n <= TASK_MAX_OPTIONS, "a wild number of options");
        fuzz_need(task_gold(t, i) >= 0 && task_gold(t, i) < n, "an answer that is no option");
        for (int k = 0; k < n; k++)
            fuzz_need(task_context(t, i, k) && *task_continuation(t, i, k), "an empty option");
    }
    task_set_destroy(&t);
    return 0;
}
