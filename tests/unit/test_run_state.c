/* The run folder: generations, damage, fingerprints, owners, objects, and every failure of a
 * commit. */
#include "base/clock.h"
#include "base/fault.h"
#include "base/file.h"
#include "base/sha256.h"
#include "io/events.h"
#include "io/run_owner.h"
#include "io/run_state.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char out[64];

static int fresh_folder(void **state) {
    (void)state;
    strcpy(out, "/tmp/spinshard-test-XXXXXX");
    return mkdtemp(out) ? 0 : -1;
}

static int remove_folder(void **state) {
    (void)state;
    return file_remove_tree(out).code;
}

static json_t *fingerprint(int bits) {
    return json_pack("{s:s, s:{s:i, s:s}}", "config_sha256", "abc", "recipe", "bits", bits,
                     "method", "rtn");
}

static run_state *open_state(int bits) {
    run_state *rs;
    json_t *f = fingerprint(bits);
    err e = run_state_open(out, f, false, &rs);
    json_decref(f);
    assert_int_equal(e.code, 0);
    return rs;
}

static void set_step(run_state *rs, int step) {
    json_object_set_new(run_state_work(rs), "step", json_integer(step));
}

static int get_step(run_state *rs) {
    return (int)json_integer_value(json_object_get(run_state_work(rs), "step"));
}

static char *state_path(void) {
    static char path[128];
    snprintf(path, sizeof path, "%s/run/state.json", out);
    return path;
}

static void what_is_committed_comes_back(void **state) {
    (void)state;
    run_state *rs = open_state(4);
    assert_false(run_state_resumed(rs));
    set_step(rs, 1);
    assert_int_equal(run_state_commit(rs, "gptq").code, 0);
    set_step(rs, 2); /* never committed */
    assert_int_equal(run_state_close(&rs, false).code, 0);
    rs = open_state(4);
    assert_true(run_state_resumed(rs));
    assert_int_equal(get_step(rs), 1);
    assert_int_equal(run_state_slice(rs), 1);
    assert_string_equal(run_state_phase(rs), "gptq");
    assert_int_equal(run_state_close(&rs, true).code, 0);
    char *run = file_join(out, "run");
    assert_false(file_exists(run));
    free(run);
}

static void another_fingerprint_is_refused_by_field(void **state) {
    (void)state;
    run_state *rs = open_state(4);
    assert_int_equal(run_state_close(&rs, false).code, 0);
    json_t *f = fingerprint(8);
    err e = run_state_open(out, f, false, &rs);
    json_decref(f);
    assert_int_equal(e.code, ERR_MISMATCH);
    assert_null(rs);
    assert_non_null(strstr(e.what, "recipe.bits (was 4, is 8)"));
    assert_null(strstr(e.what, "config_sha256"));
    rs = open_state(4); /* the refusal gave ownership back */
    assert_int_equal(run_state_close(&rs, false).code, 0);
}

/* As much work as an unfinished run of 30 layers names. */
static void set_objects(run_state *rs) {
    json_t *list = json_array();
    for (int i = 0; i < 30; i++) {
        char text[32], hex[SHA256_HEX];
        sha256_of(text, (size_t)snprintf(text, sizeof text, "object %d", i), hex);
        json_array_append_new(list, json_pack("{s:s, s:i}", "object", hex, "bytes", 1000 + i));
    }
    json_object_set_new(run_state_work(rs), "objects", list);
}

static void flip(int fd, size_t bit) {
    char c;
    assert_int_equal(pread(fd, &c, 1, (off_t)(bit / 8)), 1);
    c ^= (char)(1 << bit % 8);
    assert_int_equal(pwrite(fd, &c, 1, (off_t)(bit / 8)), 1);
}

/* What state.json says with one bit flipped: exactly the newest generation or the one before, or
 * that it is damaged. Gives back which (0: damaged). */
static int read_damaged(json_t *const said[3]) {
    json_t *v = NULL;
    err e = run_state_peek(out, &v);
    if (e.code) {
        assert_true(e.code == ERR_MISMATCH || e.code == ERR_INPUT);
        assert_null(v);
        return 0;
    }
    int which = json_equal(v, said[2]) ? 2 : 1;
    if (which == 1) assert_true(json_equal(v, said[1]));
    json_decref(v);
    return which;
}

static void each_bit_of_the_state_is_guarded(void **state) {
    (void)state;
    json_t *said[3] = {NULL, NULL, NULL};
    run_state *rs = open_state(4);
    set_objects(rs);
    for (int step = 1; step <= 2; step++) {
        set_step(rs, step);
        assert_int_equal(run_state_commit(rs, "gptq").code, 0);
        assert_int_equal(run_state_peek(out, &said[step]).code, 0);
    }
    assert_int_equal(run_state_close(&rs, false).code, 0);
    char *text;
    size_t len;
    assert_int_equal(file_read_all(state_path(), 1 << 16, &text, &len).code, 0);
    assert_true(len > 5000);
    int fd = open(state_path(), O_RDWR), n[3] = {0, 0, 0};
    for (size_t bit = 0; bit < 8 * len; bit++) {
        flip(fd, bit);
        n[read_damaged(said)]++;
        flip(fd, bit);
    }
    /* Each bit of the older line leaves the newer one, each bit of the newer one the older; the few
     * that join the two lines may cost both. */
    assert_int_equal(n[0] + n[1] + n[2], 8 * len);
    assert_true(n[1] > (int)(8 * len) * 4 / 10 && n[2] > (int)(8 * len) * 4 / 10 && n[0] <= 32);
    print_message("%zu bits: %d leave the newest, %d the one before, %d neither\n", 8 * len, n[2],
                  n[1], n[0]);
    size_t first_line = (size_t)(strchr(text + 2, '\n') - text);
    flip(fd, 8 * (first_line / 2)); /* and a run goes on from the older one */
    rs = open_state(4);
    assert_int_equal(get_step(rs), 1);
    assert_int_equal(run_state_close(&rs, false).code, 0);
    json_decref(said[1]);
    json_decref(said[2]);
    close(fd);
    free(text);
}

/* Bodies with the right hash and another shape: what another program, or a hand, may write. */
static void a_state_of_another_shape_is_damage(void **state) {
    (void)state;
    static const char *const bodies[] = {
        "1",
        "[]",
        "{}",
        "{\"format\":\"spinshard-state/1\"}",
        "{\"format\":\"spinshard-state/2\",\"generation\":1,\"slice\":0,\"phase\":\"x\","
        "\"fingerprint\":{},\"work\":{}}",
        "{\"format\":\"spinshard-state/1\",\"generation\":-1,\"slice\":0,\"phase\":\"x\","
        "\"fingerprint\":{},\"work\":{}}",
        "{\"format\":\"spinshard-state/1\",\"generation\":1,\"slice\":4294967295,\"phase\":\"x\","
        "\"fingerprint\":{},\"work\":{}}",
        "{\"format\":\"spinshard-state/1\",\"generation\":1,\"slice\":0,\"phase\":7,"
        "\"fingerprint\":{},\"work\":{}}",
        "{\"format\":\"spinshard-state/1\",\"generation\":1,\"slice\":0,\"phase\":\"x\","
        "\"fingerprint\":{},\"work\":[]}",
    };
    run_state *rs = open_state(4);
    assert_int_equal(run_state_close(&rs, false).code, 0);
    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++) {
        char text[512], hex[SHA256_HEX];
        sha256_of(bodies[i], strlen(bodies[i]), hex);
        int n =
            snprintf(text, sizeof text, "[\n{\"sha256\":\"%s\",\"body\":%s}\n]\n", hex, bodies[i]);
        assert_int_equal(file_publish(state_path(), text, (size_t)n).code, 0);
        json_t *v = NULL;
        if (run_state_peek(out, &v).code != ERR_MISMATCH) fail_msg("taken: %s", bodies[i]);
        assert_null(v);
    }
}

/* Objects are looked at through their hash: no bit of one can change unseen. */
static void each_bit_of_an_object_is_guarded(void **state) {
    (void)state;
    enum { N = 1500 };
    char data[N], hex[SHA256_HEX];
    run_object *o;
    run_state *rs = open_state(4);
    for (int i = 0; i < N; i++) data[i] = (char)(i * 37);
    assert_int_equal(run_object_create(out, N, &o).code, 0);
    assert_int_equal(run_object_put(o, data, N, 0).code, 0);
    assert_int_equal(run_object_finish(&o, hex).code, 0);
    char *path = run_object_path(out, hex);
    int fd = open(path, O_RDWR);
    for (size_t bit = 0; bit < 8 * N; bit++) {
        flip(fd, bit);
        assert_int_equal(run_object_check(out, hex, N).code, ERR_MISMATCH);
        flip(fd, bit);
    }
    assert_int_equal(run_object_check(out, hex, N).code, 0);
    close(fd);
    free(path);
    assert_int_equal(run_state_close(&rs, true).code, 0);
}

static void two_owners_are_one_too_many(void **state) {
    (void)state;
    run_state *rs = open_state(4), *other;
    pid_t pid = fork();
    if (pid == 0) {
        json_t *f = fingerprint(4);
        err e = run_state_open(out, f, false, &other);
        _exit(e.code == ERR_MISMATCH && strstr(e.what, "another run writes here") ? 0 : 1);
    }
    int status;
    waitpid(pid, &status, 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_int_equal(run_state_close(&rs, false).code, 0);
    /* An owner that died without a word is replaced at once. */
    pid = fork();
    if (pid == 0) {
        json_t *f = fingerprint(4);
        err e = run_state_open(out, f, false, &other);
        _exit(e.code);
    }
    waitpid(pid, &status, 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    rs = open_state(4);
    assert_int_equal(run_state_close(&rs, false).code, 0);
}

/* The number in the file is this owner's, or it is no owner any more: what it writes then is not
 * written. */
static void who_lost_the_folder_stops(void **state) {
    (void)state;
    char *path = file_join(out, "run/owner"), *text;
    size_t len, at;
    run_state *rs = open_state(4);
    assert_int_equal(run_state_commit(rs, "one").code, 0);
    assert_int_equal(file_read_all(path, 65536, &text, &len).code, 0);
    const char *nonce = strstr(text, "\"nonce\": \"");
    assert_non_null(nonce);
    at = (size_t)(nonce - text) + 10;
    const char was = text[at];
    text[at] = was == '0' ? '1' : '0';
    assert_int_equal(file_publish(path, text, len).code, 0);
    const err e = run_state_commit(rs, "two");
    assert_int_equal(e.code, ERR_MISMATCH);
    assert_non_null(strstr(e.what, "taken this folder over"));
    assert_int_equal(run_state_close(&rs, false).code, 0);
    assert_true(file_exists(path)); /* the other's */
    /* Its pid is alive, so it is not taken over but where somebody vouches for it. */
    json_t *f = fingerprint(4);
    assert_int_equal(run_state_open(out, f, true, &rs).code, 0);
    assert_string_equal(run_state_phase(rs), "one");
    assert_int_equal(run_state_close(&rs, false).code, 0);
    assert_false(file_exists(path));
    json_decref(f);
    free(text);
    free(path);
}

/* The file of an owner that is not there any more, with the place of its beat. */
static char *left_owner(const char *path, char **beat, size_t *len) {
    char *text;
    run_state *rs = open_state(4);
    assert_int_equal(file_read_all(path, 65536, &text, len).code, 0);
    assert_int_equal(run_state_close(&rs, false).code, 0);
    assert_non_null(*beat = strstr(text, "\"beat\": \""));
    *beat += 9;
    return text;
}

/* Publishes the file again and again with another beat, in a child. */
static pid_t beat_on(const char *path, char *text, size_t len, char *beat) {
    const pid_t pid = fork();
    if (pid != 0) return pid;
    for (int i = 0; i < 300; i++) {
        usleep(100000);
        *beat = (char)('0' + i % 10);
        if (file_publish(path, text, len).code) break;
    }
    _exit(0);
}

static void end_child(pid_t pid) {
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

/* A beat that moves is seen whatever the clocks of two hosts say; one that stands still too. */
static void a_beat_is_seen(void **state) {
    (void)state;
    char dir[512], *path = file_join(out, "run/owner"), *beat;
    size_t len;
    snprintf(dir, sizeof dir, "%s/run", out);
    char *text = left_owner(path, &beat, &len);
    assert_int_equal(file_publish(path, text, len).code, 0);
    assert_true(run_owner_is_quiet(dir, 0.05));
    const pid_t pid = beat_on(path, text, len, beat);
    const bool quiet = run_owner_is_quiet(dir, 9);
    end_child(pid);
    assert_false(quiet);
    unlink(path);
    free(text);
    free(path);
}

/* What cannot be read for a while does not stand still: the watch goes on. */
static void a_read_that_fails_is_not_quiet(void **state) {
    (void)state;
    char dir[512], *path = file_join(out, "run/owner"), *beat;
    size_t len, most = 1 << 20;
    snprintf(dir, sizeof dir, "%s/run", out);
    char *text = left_owner(path, &beat, &len), *long_text = calloc(1, most);
    assert_non_null(long_text);
    assert_int_equal(file_publish(path, long_text, most).code, 0); /* is refused, but there */
    const pid_t pid = beat_on(path, text, len, beat);
    const bool quiet = run_owner_is_quiet(dir, 4);
    end_child(pid);
    assert_false(quiet);
    assert_int_equal(file_publish(path, long_text, most).code, 0);
    assert_false(run_owner_is_quiet(dir, 0.05)); /* for good: nobody knows */
    unlink(path);
    assert_true(run_owner_is_quiet(dir, 9)); /* at once */
    free(long_text);
    free(text);
    free(path);
}

/* Time in which the watcher itself did not run is no time in which the beat stood still. */
static void a_watcher_that_was_stopped_begins_anew(void **state) {
    (void)state;
    char dir[512], *path = file_join(out, "run/owner"), *beat;
    int status = 0;
    size_t len;
    pid_t pid = -1;
    snprintf(dir, sizeof dir, "%s/run", out);
    char *text = left_owner(path, &beat, &len);
    assert_int_equal(file_publish(path, text, len).code, 0);
    for (bool stopped = false; !stopped;) { /* on a busy machine it may have ended before */
        pid = fork();
        if (pid == 0) _exit(run_owner_is_quiet(dir, 1) ? 0 : 1);
        usleep(300000);
        kill(pid, SIGSTOP);
        waitpid(pid, &status, WUNTRACED);
        stopped = WIFSTOPPED(status);
    }
    usleep(1300000); /* longer than the whole watch */
    const double began = clock_now_s();
    kill(pid, SIGCONT);
    waitpid(pid, &status, 0);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    assert_true(clock_now_s() - began >= 1);
    unlink(path);
    free(text);
    free(path);
}

/* A job of the same number and another life, on another cluster, is another job: it is looked at,
 * and since it beats it is left alone. On the same cluster it is this job's earlier life. */
static void another_cluster_has_other_jobs(void **state) {
    (void)state;
    static const char *const names[] = {"SLURM_CLUSTER_NAME", "SLURM_JOB_ID", "SLURM_RESTART_COUNT",
                                        "SLURM_STEP_ID"};
    static const char *const then[] = {"there", "77", "0", "0"};
    char *path = file_join(out, "run/owner"), *beat, *host;
    run_state *rs;
    size_t len;
    for (int i = 0; i < 4; i++) setenv(names[i], then[i], 1);
    char *text = left_owner(path, &beat, &len);
    assert_non_null(host = strstr(text, "\"host\": \""));
    host[9] = host[9] == 'x' ? 'y' : 'x';
    assert_int_equal(file_publish(path, text, len).code, 0);
    setenv("SLURM_RESTART_COUNT", "1", 1);
    setenv("SLURM_CLUSTER_NAME", "here", 1);
    json_t *f = fingerprint(4);
    const pid_t pid = beat_on(path, text, len, beat);
    const err e = run_state_open(out, f, false, &rs);
    end_child(pid);
    assert_int_equal(e.code, ERR_MISMATCH);
    setenv("SLURM_CLUSTER_NAME", "there", 1);
    assert_int_equal(run_state_open(out, f, false, &rs).code, 0);
    assert_int_equal(run_state_close(&rs, true).code, 0);
    for (int i = 0; i < 4; i++) unsetenv(names[i]);
    json_decref(f);
    free(text);
    free(path);
}

static void objects_are_named_by_their_contents(void **state) {
    (void)state;
    run_state *rs = open_state(4);
    run_object *o;
    char hex[SHA256_HEX];
    assert_int_equal(run_object_create(out, 3, &o).code, 0);
    assert_int_equal(run_object_put(o, "c", 1, 2).code, 0);
    assert_int_equal(run_object_put(o, "ab", 2, 0).code, 0);
    assert_int_equal(run_object_put(o, "ab", 2, 2).code, ERR_BUG);
    assert_int_equal(run_object_finish(&o, hex).code, 0);
    assert_null(o);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_int_equal(run_object_check(out, hex, 3).code, 0);
    assert_int_equal(run_object_check(out, hex, 4).code, ERR_MISMATCH);
    char *path = run_object_path(out, hex);
    assert_int_equal(file_publish(path, "abd", 3).code, 0);
    assert_int_equal(run_object_check(out, hex, 3).code, ERR_MISMATCH);
    free(path);
    assert_int_equal(run_state_close(&rs, true).code, 0);
}

/* A commit in a child with the n-th call failing or killing; whatever happens, the parent then
 * finds a committed state, and a run goes on from it. Exhaustive over the calls of the commit. */
static void every_call_of_a_commit_may_fail(void **state) {
    (void)state;
    static const char *actions[] = {"eio", "enospc", "kill"};
    for (int a = 0; a < 3; a++) {
        bool hit = true;
        for (int n = 1; hit; n++) {
            assert_int_equal(file_remove_tree(out).code, 0);
            assert_int_equal(file_make_dirs(out).code, 0);
            run_state *rs = open_state(4);
            set_step(rs, 1);
            assert_int_equal(run_state_commit(rs, "gptq").code, 0);
            assert_int_equal(run_state_close(&rs, false).code, 0);
            pid_t pid = fork();
            if (pid == 0) {
                char spec[64];
                snprintf(spec, sizeof spec, "any:%d:%s", n, actions[a]);
                fault_arm(spec);
                json_t *f = fingerprint(4);
                err e = run_state_open(out, f, false, &rs);
                if (e.code) _exit(e.code);
                set_step(rs, 2);
                e = run_state_commit(rs, "gptq");
                _exit(e.code ? e.code : fault_armed() ? 100 : 0);
            }
            int status;
            waitpid(pid, &status, 0);
            int code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
            hit = code != 100; /* 100: the failure would have come after the commit */
            if (WIFEXITED(status) && code != 100 && code != 0)
                assert_true(code == ERR_INPUT || code == ERR_SPACE);
            rs = open_state(4);
            assert_in_range(get_step(rs), 1, 2);
            if (code == 100) assert_int_equal(get_step(rs), 2);
            assert_int_equal(run_state_close(&rs, false).code, 0);
            assert_true(n < 100);
        }
    }
}

static void events_end_a_broken_line_and_go_on(void **state) {
    (void)state;
    char *path = file_join(out, "events.jsonl"), *text;
    size_t len;
    assert_int_equal(file_publish(path, "{\"half\": ", 9).code, 0);
    events *ev;
    assert_int_equal(events_open(path, 2, &ev).code, 0);
    events_add(ev, "pack", "start", json_pack("{s:i}", "loss", 3));
    events_close(&ev);
    assert_int_equal(file_read_all(path, 1000, &text, &len).code, 0);
    char *line = strchr(text, '\n') + 1;
    json_t *v;
    assert_int_equal(json_parse(line, strlen(line), "events", &v).code, 0);
    assert_int_equal(json_integer_value(json_object_get(v, "slice")), 2);
    assert_int_equal(json_integer_value(json_object_get(v, "loss")), 3);
    json_decref(v);
    free(text);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_committed_comes_back, fresh_folder, remove_folder),
        cmocka_unit_test_setup_teardown(another_fingerprint_is_refused_by_field, fresh_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(each_bit_of_the_state_is_guarded, fresh_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(a_state_of_another_shape_is_damage, fresh_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(each_bit_of_an_object_is_guarded, fresh_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(two_owners_are_one_too_many, fresh_folder, remove_folder),
        cmocka_unit_test_setup_teardown(who_lost_the_folder_stops, fresh_folder, remove_folder),
        cmocka_unit_test_setup_teardown(a_beat_is_seen, fresh_folder, remove_folder),
        cmocka_unit_test_setup_teardown(another_cluster_has_other_jobs, fresh_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(a_read_that_fails_is_not_quiet, fresh_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(a_watcher_that_was_stopped_begins_anew, fresh_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(objects_are_named_by_their_contents, fresh_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(every_call_of_a_commit_may_fail, fresh_folder,
                                        remove_folder),
        cmocka_unit_test_setup_teardown(events_end_a_broken_line_and_go_on, fresh_folder,
                                        remove_folder),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
