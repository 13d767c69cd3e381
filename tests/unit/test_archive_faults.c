/* Every call of the file system between the first byte of an archive and its manifest fails once:
 * the folder then holds no archive, or the whole one, and the next attempt ends in the same bytes.
 * In folders in memory, one process a attempt; the commits of the run state have the same test in
 * test_run_state.c, whole commands in tests/e2e/test_faults.py. */
#include "base/fault.h"
#include "base/file.h"
#include "base/rng.h"
#include "mpi/comm.h"
#include "shard/archive.h"
#include "shard/archive_writer.h"
#include "tests/unit/small_archive.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char out[64];

static layout *make_layout(void) {
    const layout_options opts = layout_plain(4, 16, true, 2000);
    const llama_config c = as_llama((llama_config){.hidden = 16,
                                                   .intermediate = 32,
                                                   .layers = 1,
                                                   .heads = 2,
                                                   .kv_heads = 2,
                                                   .head_dim = 8,
                                                   .vocab = 20,
                                                   .tied = true});
    layout *l;
    assert_int_equal(layout_create(&c, &opts, &l).code, 0);
    assert_true(layout_parts(l) >= 2);
    return l;
}

static small_files *make_small(const layout *l) {
    json_t *config =
        json_pack("{s:[s], s:s}", "architectures", "LlamaForCausalLM", "model_type", "llama");
    fileset *source;
    small_files *files;
    assert_int_equal(fileset_create(out, &source).code, 0);
    small_options o = {.name = "tiny", .config = config};
    assert_int_equal(small_files_create(source, l, &o, &files).code, 0);
    fileset_destroy(&source);
    json_decref(config);
    return files;
}

static err put_units(archive_writer *w, const layout *l) {
    err e = err_none();
    for (int64_t u = 0; u < layout_units(l) && !e.code; u++) {
        char *blob = malloc(layout_unit_bytes(l, u));
        for (uint64_t i = 0; i < layout_unit_bytes(l, u); i++)
            blob[i] = (char)rng_u64((uint64_t)u, RNG_TEST, i);
        e = archive_writer_put_unit(w, u, blob);
        free(blob);
    }
    return e;
}

/* One attempt; what fails is armed once all that is not of the archive has been made. */
static err write_archive(const char *spec) {
    layout *l = make_layout();
    small_files *files = make_small(l);
    char *parts = file_join(out, "parts");
    archive_writer *w;
    manifest *about = manifest_tiny(json_object());
    err e = file_make_dirs(parts);
    fault_arm(spec);
    if (!e.code) e = archive_writer_create(comm_world(), l, files, "tiny", out, parts, &w);
    if (!e.code) {
        e = put_units(w, l);
        if (!e.code) e = archive_writer_finish(w, about);
        archive_writer_destroy(&w);
    }
    manifest_destroy(&about);
    small_files_destroy(&files);
    layout_destroy(&l);
    free(parts);
    return e;
}

enum { MISSED = 100 };

/* Exit code of an attempt in a process of its own; MISSED: it ended before the fault came. */
static int attempt(const char *spec) {
    int status;
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        err e = write_archive(spec);
        _exit(e.code ? e.code : fault_armed() ? MISSED : 0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

static void file_hash(const char *name, char hex[SHA256_HEX]) {
    char *path = file_join(out, name), *text;
    size_t len;
    assert_int_equal(file_read_all(path, 1 << 20, &text, &len).code, 0);
    sha256_of(text, len, hex);
    free(text);
    free(path);
}

/* One hash over manifest.json and the tars that it lists; "" where there is no manifest. */
static void archive_hash(char hex[SHA256_HEX]) {
    char *path = file_join(out, "manifest.json"), *text, all[4096] = "";
    size_t len;
    manifest *m;
    hex[0] = 0;
    if (file_exists(path)) {
        assert_int_equal(file_read_all(path, 1 << 20, &text, &len).code, 0);
        assert_int_equal(manifest_parse(text, len, path, &m).code, 0);
        sha256_of(text, len, all);
        for (int64_t i = 0; i < m->n_tars; i++) {
            file_hash(m->tars[i].file, hex);
            assert_string_equal(hex, m->tars[i].sha256);
            strcat(all, hex);
        }
        sha256_of(all, strlen(all), hex);
        manifest_destroy(&m);
        free(text);
    }
    free(path);
}

static bool tar_left(void) {
    char *tar = file_join(out, "tiny-00001-of-00002.tar");
    bool there = file_exists(tar);
    free(tar);
    return there;
}

static void every_call_may_fail(void **state) {
    (void)state;
    static const char *const actions[] = {"eio", "enospc", "kill"};
    char want[SHA256_HEX], now[SHA256_HEX], spec[64];
    assert_int_equal(attempt(""), 0);
    archive_hash(want);
    int failed = 0, harmless = 0;
    for (int a = 0; a < 3; a++) {
        for (int n = 1, code = 0; code != MISSED; n++) {
            assert_int_equal(file_remove_tree(out).code, 0);
            assert_int_equal(file_make_dirs(out).code, 0);
            snprintf(spec, sizeof spec, "any:%d:%s", n, actions[a]);
            code = attempt(spec);
            archive_hash(now); /* if there is a manifest, all of it is true */
            if (code == 0 || code == MISSED) {
                harmless += code == 0;
                assert_string_equal(now, want);
                continue;
            }
            failed++;
            if (a == 2) assert_int_equal(code, -9);
            if (a < 2) {
                assert_int_equal(code, a == 0 ? ERR_INPUT : ERR_SPACE);
                assert_string_equal(now, "");
                assert_false(tar_left());
            }
            assert_int_equal(attempt(""), 0);
            archive_hash(now);
            assert_string_equal(now, want);
            assert_true(n < 1000);
        }
    }
    print_message("%d calls failed, %d more without harm\n", failed, harmless);
    assert_true(failed > 100);
}

/* Memory ends at each of the large buffers in turn. */
static void memory_may_end(void **state) {
    (void)state;
    char now[SHA256_HEX], spec[64];
    int failed = 0;
    for (int n = 1, code = 0; code != MISSED; n++) {
        assert_int_equal(file_remove_tree(out).code, 0);
        assert_int_equal(file_make_dirs(out).code, 0);
        snprintf(spec, sizeof spec, "malloc:%d", n);
        code = attempt(spec);
        archive_hash(now);
        if (code == MISSED) break;
        failed++;
        assert_int_equal(code, ERR_NOFIT);
        assert_string_equal(now, "");
        assert_true(n < 1000);
    }
    assert_true(failed > 3);
}

static int fresh_folder(void **state) {
    (void)state;
    strcpy(out, "/dev/shm/spinshard-test-XXXXXX");
    if (mkdtemp(out)) return 0;
    strcpy(out, "/tmp/spinshard-test-XXXXXX");
    return mkdtemp(out) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    return file_remove_tree(out).code;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_call_may_fail, fresh_folder, remove_folder),
        cmocka_unit_test_setup_teardown(memory_may_end, fresh_folder, remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
