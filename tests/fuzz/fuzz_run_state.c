/* state.json of a run folder. Input that begins with '#' holds the bodies of generations, which get
 * their hashes here: else nothing behind the hash would ever be reached. */
#include "base/file.h"
#include "base/sha256.h"
#include "io/run_state.h"
#include "tests/fuzz/fuzz.h"

#include <sys/stat.h>

static char folder[64], path[96];

static void make_folder(void) {
    char run[96];
    log_set_level(LOG_ERROR);
    strcpy(folder, "/dev/shm/spinshard-fuzz.XXXXXX");
    fuzz_need(mkdtemp(folder) != NULL, "no folder in memory");
    snprintf(run, sizeof run, "%s/run", folder);
    fuzz_need(mkdir(run, 0700) == 0, "no folder in memory");
    snprintf(path, sizeof path, "%s/state.json", run);
}

static void remove_folder(void) {
    file_remove_tree(folder);
}

static void put_state(const uint8_t *data, size_t size) {
    FILE *f = fopen(path, "w");
    fuzz_need(f != NULL, "no file in memory");
    if (!size || *data != '#') {
        fwrite(data, 1, size, f);
    } else {
        const char *part[2];
        size_t len[2];
        int n = fuzz_parts(data + 1, size - 1, 2, part, len);
        fputs("[\n", f);
        for (int i = 0; i < n; i++) {
            char hex[SHA256_HEX];
            sha256_of(part[i], len[i], hex);
            fprintf(f, "{\"sha256\":\"%s\",\"body\":%.*s}%s\n", hex, (int)len[i], part[i],
                    i + 1 < n ? "," : "");
        }
        fputs("]\n", f);
    }
    fuzz_need(fclose(f) == 0, "no file in memory");
}

static void go_on(const json_t *fingerprint) {
    run_state *rs;
    if (run_state_open(folder, fingerprint, false, &rs).code) return;
    json_object_set_new(run_state_work(rs), "step", json_integer(1));
    fuzz_need(run_state_slice(rs) >= 0, "restarts below nothing");
    fuzz_need(!run_state_commit(rs, "fuzz").code, "a commit fails");
    fuzz_need(!strcmp(run_state_phase(rs), "fuzz"), "a phase is lost");
    fuzz_need(json_is_object(run_state_work(rs)), "the work is no object");
    fuzz_need(!run_state_close(&rs, false).code, "the state does not close");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_t *seen = NULL;
    if (!folder[0]) {
        make_folder();
        atexit(remove_folder);
    }
    put_state(data, size);
    if (run_state_peek(folder, &seen).code) return 0;
    json_t *fingerprint = json_deep_copy(json_object_get(seen, "fingerprint"));
    go_on(fingerprint);
    json_decref(fingerprint);
    json_decref(seen);
    return 0;
}
