/* base: sizes, memory, random numbers, half floats, JSON, YAML, files. */
#include "base/fault.h"
#include "base/file.h"
#include "base/half.h"
#include "base/json.h"
#include "base/machine.h"
#include "base/mem.h"
#include "base/rng.h"
#include "base/sha256.h"
#include "base/size.h"
#include "base/yaml.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cmocka.h>

static void sizes_as_people_write_them(void **state) {
    (void)state;
    uint64_t b = 0;
    assert_int_equal(size_parse("4G", &b).code, 0);
    assert_int_equal(b, 4ull << 30);
    assert_int_equal(size_parse("1048576", &b).code, 0);
    assert_int_equal(b, 1048576);
    static const char *bad[] = {
        "", "G", "4X", "4GB", "-1", "99999999999999999999", "17179869184T", "1.5G"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(size_parse(bad[i], &b).code, ERR_USAGE);
    double s = 0;
    static const struct {
        const char *text;
        double seconds;
    } times[] = {{"90s", 90}, {"10m", 600}, {"2h", 7200}, {"01:02:03", 3723}, {"45", 45}};
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        assert_int_equal(size_parse_seconds(times[i].text, &s).code, 0);
        assert_true(s == times[i].seconds);
    }
    static const char *bad_times[] = {"", "m", "10x", "1:2", "00:61:00", "nan", "-3s"};
    for (size_t i = 0; i < sizeof bad_times / sizeof bad_times[0]; i++)
        assert_int_equal(size_parse_seconds(bad_times[i], &s).code, ERR_USAGE);
    /* sbatch(1), --time */
    static const struct {
        const char *text;
        double seconds;
    } slurm[] = {{"600", 36000},        {"10:00", 600},      {"01:02:03", 3723}, {"2-00", 172800},
                 {"1-02:03", 93780},    {"90s", 90},         {"10m", 600},       {"2h", 7200},
                 {"1-00:00:00", 86400}, {"99:59:59", 359999}};
    for (size_t i = 0; i < sizeof slurm / sizeof slurm[0]; i++) {
        assert_int_equal(size_parse_slurm_seconds(slurm[i].text, &s).code, 0);
        assert_true(s == slurm[i].seconds);
    }
    static const char *bad_slurm[] = {"",     "-5",  "1-",    "1-24",    "1:60", "1:2:3:4",
                                      "10x",  "1d",  "1-2-3", "1.5",     "::",   "-",
                                      "1:2:", "nan", " 1",    "1:00:60", "+1",   "123456-00"};
    for (size_t i = 0; i < sizeof bad_slurm / sizeof bad_slurm[0]; i++)
        assert_int_equal(size_parse_slurm_seconds(bad_slurm[i], &s).code, ERR_USAGE);
}

/* What a job was given of its node, in MiB; 0 is all of it, and what is no number says nothing. */
static void memory_is_what_the_job_was_given(void **state) {
    (void)state;
    unsetenv("SLURM_MEM_PER_NODE");
    unsetenv("SLURM_MEM_PER_CPU");
    const uint64_t all = machine_memory_bytes();
    setenv("SLURM_MEM_PER_NODE", "100", 1);
    assert_true(machine_memory_bytes() == 100ull << 20);
    setenv("SLURM_MEM_PER_NODE", "0", 1);
    assert_true(machine_memory_bytes() == all);
    setenv("SLURM_MEM_PER_NODE", "12x", 1);
    assert_true(machine_memory_bytes() == all);
    unsetenv("SLURM_MEM_PER_NODE");
    setenv("SLURM_MEM_PER_CPU", "10", 1);
    setenv("SLURM_CPUS_ON_NODE", "3", 1);
    assert_true(machine_memory_bytes() == 30ull << 20);
    unsetenv("SLURM_CPUS_ON_NODE");
    assert_true(machine_memory_bytes() == all);
    unsetenv("SLURM_MEM_PER_CPU");
}

static void put_file(const char *root, const char *path, const char *text) {
    char whole[256];
    snprintf(whole, sizeof whole, "%s%s", root, path);
    *strrchr(whole, '/') = 0;
    assert_int_equal(file_make_dirs(whole).code, 0);
    whole[strlen(whole)] = '/';
    assert_int_equal(file_publish(whole, text, strlen(text)).code, 0);
}

/* A file of the system, and the memory that there is from then on. */
typedef struct limit_file {
    const char *path, *text;
    uint64_t mib;
} limit_file;

static void put_limits(const char *root, const limit_file *files, size_t n) {
    for (size_t i = 0; i < n; i++) {
        put_file(root, files[i].path, files[i].text);
        assert_int_equal(machine_memory_bytes(), files[i].mib << 20);
    }
}

/* Files as the kernel's Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst have them:
 * of a group and those above it the least limit holds, and "max", or the largest page, is none. */
static void memory_is_the_least_limit_of_the_control_groups(void **state) {
    (void)state;
    char root[] = "/tmp/spinshard-test-XXXXXX";
    const uint64_t all = machine_memory_bytes();
    assert_non_null(mkdtemp(root));
    setenv("SPINSHARD_TEST_ROOT", root, 1);
    put_file(root, "/proc/self/cgroup", "0::/slurm/job_7/step_0\n");
    put_file(root, "/sys/fs/cgroup/slurm/job_7/step_0/memory.max", "max\n");
    assert_true(machine_memory_bytes() >= all);
    static const limit_file v2[] = {
        {"/sys/fs/cgroup/slurm/memory.max", "73400320\n", 70},
        {"/sys/fs/cgroup/slurm/job_7/memory.high", "62914560\n", 60},
        {"/sys/fs/cgroup/slurm/job_7/memory.swap.max", "1048576\n", 60},
        {"/sys/fs/cgroup/slurm/job_7/step_0/memory.max", "52428800\n", 50},
        {"/sys/fs/cgroup/slurm/job_7/step_0/memory.swap.max", "0\n", 50},
        {"/sys/fs/cgroup/slurm/job_7/step_0/memory.high", "max\n", 50},
        {"/sys/fs/cgroup/slurm/job_8/memory.max", "1048576\n", 50}, /* another's */
        {"/sys/fs/cgroup/memory.max", "41943040\n", 40},            /* a container's own */
    };
    put_limits(root, v2, sizeof v2 / sizeof v2[0]);
    static const limit_file v1[] = {
        {"/sys/fs/cgroup/memory/slurm/uid_0/memory.limit_in_bytes", "9223372036854771712\n", 40},
        {"/sys/fs/cgroup/memory/slurm/uid_0/memory.memsw.limit_in_bytes", "1048576\n", 40},
        {"/sys/fs/cgroup/memory/slurm/memory.limit_in_bytes", "31457280\n", 30},
        {"/sys/fs/cgroup/memory/memory.limit_in_bytes", "20971520\n", 20},
    };
    put_file(root, "/proc/self/cgroup", "5:cpuset,memory:/slurm/uid_0\n0::/\n");
    put_limits(root, v1, sizeof v1 / sizeof v1[0]);
    unsetenv("SPINSHARD_TEST_ROOT");
    assert_true(machine_memory_bytes() == all);
    assert_int_equal(file_remove_tree(root).code, 0);
}

/* Also where the block before it was as large, and another one stands behind it: glibc would keep
 * such a block. Sanitizers have a malloc of their own, which keeps all. */
#ifndef __SANITIZE_ADDRESS__
static bool is_mapped(char *p) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    unsigned char in;
    return mincore(p - (uintptr_t)p % page, page, &in) == 0;
}

static void freed_memory_goes_back_to_the_system(void **state) {
    (void)state;
    enum { LARGE = 24 << 20, SMALL = 100 << 10 };
    void *large, *small;
    mem_start();
    for (int i = 0; i < 3; i++) {
        assert_int_equal(mem_alloc(LARGE, 1, "large", &large).code, 0);
        memset(large, 1, LARGE);
        assert_int_equal(mem_alloc(SMALL, 1, "small", &small).code, 0);
        char *inside = (char *)large + LARGE / 2;
        assert_true(is_mapped(inside));
        mem_free(large);
        assert_false(is_mapped(inside));
        mem_free(small);
    }
}

static int64_t faults_so_far(void) {
    struct rusage now;
    assert_int_equal(getrusage(RUSAGE_SELF, &now), 0);
    return now.ru_minflt;
}

/* Blocks such as a matrix is fused in, one after the other: the pages of the first serve all. */
static void blocks_of_a_few_megabytes_are_taken_again(void **state) {
    (void)state;
    enum { BYTES = 2 << 20, TIMES = 50 };
    mem_start();
    const int64_t pages = BYTES / sysconf(_SC_PAGESIZE), before = faults_so_far();
    for (int i = 0; i < TIMES; i++) {
        char *p;
        assert_int_equal(MEM_NEW_UNSET(&p, BYTES, "block").code, 0);
        memset(p, 1, BYTES);
        mem_free(p);
    }
    assert_true(faults_so_far() - before < 4 * pages);
}

static void large_blocks_begin_on_a_huge_page(void **state) {
    (void)state;
    enum { BYTES = 6 << 20, HUGE_PAGE = 2 << 20 };
    mem_start();
    for (int zeroed = 0; zeroed < 2; zeroed++) {
        char *p;
        const err e = zeroed ? MEM_NEW(&p, BYTES, "block") : MEM_NEW_UNSET(&p, BYTES, "block");
        assert_int_equal(e.code, 0);
        assert_int_equal((uintptr_t)p % HUGE_PAGE, 0);
        memset(p, 1, BYTES);
        mem_free(p);
    }
}
#endif

static void arithmetic_that_overflows_says_so(void **state) {
    (void)state;
    uint64_t r = 7;
    assert_true(size_mul(8192ull * 28672, 80, &r));
    assert_int_equal(r, 18790481920ull);
    assert_false(size_mul(1ull << 63, 2, &r));
    assert_false(size_add(UINT64_MAX, 1, &r));
    assert_int_equal(r, 18790481920ull);
    int n;
    assert_int_equal(size_to_int(1ll << 31, "rows", &n).code, ERR_BUG);
    assert_int_equal(size_to_int((1ll << 31) - 1, "rows", &n).code, 0);
}

static void memory_is_aligned_zeroed_and_counted(void **state) {
    (void)state;
    uint64_t before = mem_held_bytes();
    void *p[9];
    for (int i = 0; i < 9; i++) {
        assert_int_equal(mem_alloc(i * 37, 3, "test", &p[i]).code, 0);
        assert_int_equal((uintptr_t)p[i] % 64, 0);
        for (int k = 0; k < i * 111; k++) assert_int_equal(((char *)p[i])[k], 0);
        memset(p[i], 1, (size_t)(i * 111));
    }
    assert_int_equal(mem_held_bytes() - before, 36 * 111);
    for (int i = 0; i < 9; i++) mem_free(p[i]);
    assert_int_equal(mem_held_bytes(), before);
    assert_int_equal(mem_alloc(1ll << 62, 8, "too much", &p[0]).code, ERR_BUG);
    assert_int_equal(mem_alloc(1ll << 50, 1, "too much", &p[0]).code, ERR_NOFIT);
    assert_null(p[0]);
}

/* Known answers of Philox4x32-10 published with its authors' library (Random123, kat_vectors). */
static void philox_gives_the_known_answers(void **state) {
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], want[4];
    } kat[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
         {0xffffffff, 0xffffffff},
         {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
         {0xa4093822, 0x299f31d0},
         {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}},
    };
    for (int i = 0; i < 3; i++) {
        uint32_t out[4];
        rng_philox(kat[i].counter, kat[i].key, out);
        assert_memory_equal(out, kat[i].want, sizeof out);
    }
}

/* Several at a time, also where the lower half of the counter runs over, and what is left. */
static void arrays_of_random_numbers_are_the_same(void **state) {
    (void)state;
    static const uint64_t firsts[] = {0, 3, 0xfffffffau, 0xfffffffffffffff9u};
    uint64_t out[41];
    for (int i = 0; i < 4; i++)
        for (int64_t count = 0; count <= 40; count += 5) {
            out[count] = 77;
            rng_u64_array(0x123456789abcdefu, RNG_RANGE_ROWS_R2, firsts[i], count, out);
            for (int64_t k = 0; k < count; k++)
                assert_true(out[k] == rng_u64(0x123456789abcdefu, RNG_RANGE_ROWS_R2,
                                              firsts[i] + (uint64_t)k));
            assert_true(out[count] == 77);
        }
}

static void random_numbers_have_their_moments(void **state) {
    (void)state;
    enum { N = 200000 };
    double u = 0, uu = 0, z = 0, zz = 0;
    int sign = 0;
    for (uint64_t i = 0; i < N; i++) {
        double a = rng_uniform(5, RNG_TEST, i), b = rng_normal(6, RNG_TEST, i);
        assert_true(a >= 0 && a < 1);
        u += a;
        uu += a * a;
        z += b;
        zz += b * b;
        sign += rng_sign(7, RNG_TEST, i);
    }
    double sd = 1 / sqrt(N); /* five standard deviations each */
    assert_true(fabs(u / N - 0.5) < 5 * sd * sqrt(1.0 / 12));
    assert_true(fabs(uu / N - 1.0 / 3) < 5 * sd * sqrt(4.0 / 45));
    assert_true(fabs(z / N) < 5 * sd);
    assert_true(fabs(zz / N - 1) < 5 * sd * sqrt(2));
    assert_true(abs(sign) < 5 * sqrt(N));
    assert_true(rng_u64(1, RNG_TEST, 3) != rng_u64(1, RNG_DATA, 3));
}

static void half_floats_round_half_to_even(void **state) {
    (void)state;
    static const struct {
        float x;
        bf16 b;
        fp16 h;
    } cases[] = {
        {1.0f, 0x3f80, 0x3c00},
        {-2.0f, 0xc000, 0xc000},
        {1.0f + 0x1p-8f, 0x3f80, 0x3c04},     /* tie of bf16: to even, down */
        {1.0f + 3 * 0x1p-8f, 0x3f82, 0x3c0c}, /* tie of bf16: to even, up */
        {1.0f + 0x1p-11f, 0x3f80, 0x3c00},    /* tie of fp16: down */
        {65504.0f, 0x4780, 0x7bff},
        {65520.0f, 0x4780, 0x7c00},
        {0x1p-24f, 0x3380, 0x0001},
        {0x1p-25f, 0x3300, 0x0000},
        {-0.0f, 0x8000, 0x8000},
        {INFINITY, 0x7f80, 0x7c00},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(half_to_bf16(cases[i].x), cases[i].b);
        assert_int_equal(half_to_fp16(cases[i].x), cases[i].h);
    }
    assert_true(isnan(half_from_bf16(half_to_bf16(NAN))));
    assert_true(isnan(half_from_fp16(half_to_fp16(NAN))));
    for (uint32_t u = 0; u < 65536; u++) { /* every 16-bit value survives the way through float */
        float b = half_from_bf16((bf16)u), h = half_from_fp16((fp16)u);
        if (!isnan(b)) assert_int_equal(half_to_bf16(b), u);
        if (!isnan(h)) assert_int_equal(half_to_fp16(h), u);
    }
}

static void json_is_strict(void **state) {
    (void)state;
    static const char *bad[] = {"",
                                "{",
                                "{} x",
                                "{\"a\":1,\"a\":2}",
                                "[1,]",
                                "{\"a\":01}",
                                "\"\\u0000\"",
                                "\"\xff\"",
                                "123456789012345678901234567890"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        json_t *v;
        assert_int_equal(json_parse(bad[i], strlen(bad[i]), "test", &v).code, ERR_INPUT);
    }
    json_t *v;
    const char *good =
        "{\"n\": 9223372036854775807, \"r\": 0.5, \"b\": true, \"s\": \"x\", \"z\": null}";
    assert_int_equal(json_parse(good, strlen(good), "test", &v).code, 0);
    int64_t n = 0;
    double r = 0;
    bool b = false;
    const char *s = NULL;
    assert_int_equal(json_get_int(v, "n", 0, INT64_MAX, "test", &n).code, 0);
    assert_true(n == INT64_MAX);
    assert_int_equal(json_get_int(v, "n", 0, 5, "test", &n).code, ERR_INPUT);
    assert_int_equal(json_get_int(v, "z", 0, 5, "test", &n).code, ERR_INPUT);
    assert_int_equal(json_opt_int(v, "z", 0, 5, "test", &n).code, 0);
    assert_int_equal(json_opt_real(v, "r", "test", &r).code, 0);
    assert_int_equal(json_opt_bool(v, "s", "test", &b).code, ERR_INPUT);
    assert_int_equal(json_get_str(v, "s", "test", &s).code, 0);
    assert_string_equal(s, "x");
    json_decref(v);
}

static void yaml_reads_what_it_writes(void **state) {
    (void)state;
    const char *text =
        "seed: 0\n"
        "rotate:\n  start: had # a comment\n  online: [r3, r4]\n"
        "learn:\n  - {objective: range, steps: 400}\n"
        "odd: {no: no, quoted: \"12\", text: 'it''s: 1', real: 1.5, none: ~, list: []}\n";
    json_t *v, *again;
    char *out;
    size_t len;
    assert_int_equal(yaml_parse(text, strlen(text), "test", &v).code, 0);
    json_t *odd = json_object_get(v, "odd");
    assert_string_equal(json_string_value(json_object_get(odd, "no")),
                        "no"); /* not false: YAML 1.2 */
    assert_true(json_is_string(json_object_get(odd, "quoted")));
    assert_true(json_is_null(json_object_get(odd, "none")));
    assert_int_equal(yaml_text(v, &out, &len).code, 0);
    assert_int_equal(yaml_parse(out, len, "again", &again).code, 0);
    assert_true(json_equal(v, again));
    free(out);
    json_decref(v);
    json_decref(again);
    static const char *bad[] = {"a: 1\na: 2",     "a: &x 1\nb: *x", "a: !!int 3",
                                "--- 1\n--- 2\n", "a: [",           "\ta: 1"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_int_equal(yaml_parse(bad[i], strlen(bad[i]), "test", &v).code, ERR_USAGE);
}

static void a_published_file_is_whole(void **state) {
    (void)state;
    char dir[] = "/tmp/spinshard-test-XXXXXX";
    assert_non_null(mkdtemp(dir));
    char *path = file_join(dir, "x"), *text, hex[SHA256_HEX];
    size_t len;
    assert_int_equal(file_publish(path, "first", 5).code, 0);
    assert_int_equal(file_publish(path, "second", 6).code, 0);
    assert_int_equal(file_read_all(path, 100, &text, &len).code, 0);
    assert_int_equal(len, 6);
    assert_string_equal(text, "second");
    free(text);
    assert_int_equal(file_read_all(path, 5, &text, &len).code, ERR_INPUT);
    sha256_of("abc", 3, hex); /* FIPS 180-2, appendix B.1 */
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    assert_int_equal(file_read_all(dir, 5, &text, &len).code, ERR_INPUT);
    assert_int_equal(file_remove_tree(dir).code, 0);
    assert_false(file_exists(dir));
    assert_int_equal(file_remove_tree(dir).code, 0);
    free(path);
    assert_false(file_is_base_name("../x") || file_is_base_name("") || file_is_base_name("..") ||
                 file_is_base_name("a/b"));
    assert_true(file_is_base_name("model-00001-of-00002.safetensors"));
}

/* Which of 12 calls of a kind fails under a spec; 0: none. */
static int failing_call(const char *spec, const char *kind, int *error) {
    int found = 0;
    fault_arm(spec);
    for (int i = 1; i <= 12; i++) {
        if (!fault_hit(kind)) continue;
        assert_int_equal(found, 0); /* once */
        found = i;
        *error = errno;
    }
    fault_arm("");
    return found;
}

static void faults_come_where_they_are_asked_for(void **state) {
    (void)state;
    int error = 0, seen[13] = {0};
    assert_int_equal(failing_call("read:3", "read", &error), 3);
    assert_int_equal(error, EIO);
    assert_int_equal(failing_call("write:12:enospc", "write", &error), 12);
    assert_int_equal(error, ENOSPC);
    assert_int_equal(failing_call("read:3", "write", &error), 0);
    assert_int_equal(failing_call("read:3:1", "read", &error), 0); /* of another rank */
    assert_int_equal(failing_call("any:2", "fsync", &error), 2);
    assert_int_equal(failing_call("any:2", "malloc", &error), 0);
    assert_int_equal(failing_call("malloc:1", "malloc", &error), 1);
    static const char *const none[] = {"",        "read",   "read:",  "read:0",
                                       "read:-1", "read:x", "READ:1", "read:1/0"};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++)
        assert_int_equal(failing_call(none[i], "read", &error), 0);
    for (int seed = 0; seed < 200; seed++) { /* every place, for some seed */
        char spec[32];
        snprintf(spec, sizeof spec, "read:%d/12:enospc", seed);
        int at = failing_call(spec, "read", &error);
        assert_in_range(at, 1, 12);
        assert_int_equal(error, ENOSPC);
        assert_int_equal(failing_call(spec, "read", &error), at);
        seen[at]++;
    }
    for (int i = 1; i <= 12; i++) assert_true(seen[i] > 0);
    void *p;
    fault_arm("malloc:1");
    assert_int_equal(mem_alloc(1, 8, "x", &p).code, ERR_NOFIT);
    assert_null(p);
    fault_arm("");
}

/* What a bit pattern of fp16 stands for, from the standard: exact in fp32. */
static float value_of_fp16(int h) {
    const int exponent = h >> 10, fraction = h & 0x3ff;
    return exponent ? ldexpf((float)(1024 + fraction), exponent - 25)
                    : ldexpf((float)fraction, -24);
}

/* Between each two neighbours: the middle goes to the even one, all else to the nearer. The next
 * after the greatest number would be 2^16, which is infinity. */
static void fp16_rounds_half_to_even(void **state) {
    (void)state;
    for (int h = 0; h < 0x7c00; h++) {
        const float a = value_of_fp16(h), b = value_of_fp16(h + 1), middle = a + (b - a) / 2;
        const float x[] = {a, nextafterf(middle, 0), middle, nextafterf(middle, INFINITY)};
        const int want[] = {h, h, h + (h & 1), h + 1};
        fp16 array[4];
        half_array_to_fp16(x, 4, array);
        for (int k = 0; k < 4; k++) {
            assert_int_equal(half_to_fp16(x[k]), want[k]);
            assert_int_equal(half_to_fp16(-x[k]), want[k] | 0x8000);
            assert_int_equal(array[k], want[k]);
        }
        assert_true(half_from_fp16((fp16)h) == a && half_from_fp16((fp16)(h | 0x8000)) == -a);
    }
    static const float beyond[] = {65536, 1e30f, INFINITY};
    for (int i = 0; i < 3; i++) assert_int_equal(half_to_fp16(beyond[i]), 0x7c00);
    assert_int_equal(half_to_fp16(0x1p-26f), 0);
    assert_true(isinf(half_from_fp16(0xfc00)) && half_from_fp16(0xfc00) < 0);
    assert_true(isnan(half_from_fp16(half_to_fp16(-NAN))));
}

static void limits_of_the_system_name_the_way_out(void **state) {
    (void)state;
    static const struct {
        int number;
        err_code code;
        const char *hint;
    } rows[] = {{EMFILE, ERR_INPUT, "ulimit -n"},       {ENFILE, ERR_INPUT, "too many files open"},
                {EFBIG, ERR_SPACE, "ulimit -f"},        {ENOSPC, ERR_SPACE, "free some space"},
                {EDQUOT, ERR_SPACE, "free some space"}, {ENOMEM, ERR_NOFIT, "more memory"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        errno = rows[i].number;
        const err e = err_errno("a/file", "create it");
        assert_int_equal(e.code, rows[i].code);
        assert_non_null(strstr(e.hint, rows[i].hint));
        assert_true(e.of_system);
    }
}

static void json_of_too_many_values_is_refused(void **state) {
    (void)state;
    enum { N = 6 << 20 };
    char *text = malloc(2 * N);
    json_t *v;
    for (int i = 0; i < N; i++) memcpy(text + 2 * i, i ? ",1" : "[1", 2);
    text[2 * N - 1] = ']';
    err e = json_parse(text, 2 * N, "x", &v);
    assert_int_equal(e.code, ERR_INPUT);
    assert_non_null(strstr(e.what, "at most"));
    memset(text, '[', 2 * N);
    assert_int_equal(json_parse(text, 2 * N, "x", &v).code, ERR_INPUT);
    assert_int_equal(json_parse(text, 3000, "x", &v).code, ERR_INPUT); /* deep, but few */
    assert_null(v);
    free(text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sizes_as_people_write_them),
        cmocka_unit_test(memory_is_what_the_job_was_given),
        cmocka_unit_test(memory_is_the_least_limit_of_the_control_groups),
#ifndef __SANITIZE_ADDRESS__
        cmocka_unit_test(freed_memory_goes_back_to_the_system),
        cmocka_unit_test(blocks_of_a_few_megabytes_are_taken_again),
        cmocka_unit_test(large_blocks_begin_on_a_huge_page),
#endif
        cmocka_unit_test(arithmetic_that_overflows_says_so),
        cmocka_unit_test(memory_is_aligned_zeroed_and_counted),
        cmocka_unit_test(philox_gives_the_known_answers),
        cmocka_unit_test(arrays_of_random_numbers_are_the_same),
        cmocka_unit_test(random_numbers_have_their_moments),
        cmocka_unit_test(half_floats_round_half_to_even),
        cmocka_unit_test(json_is_strict),
        cmocka_unit_test(json_of_too_many_values_is_refused),
        cmocka_unit_test(faults_come_where_they_are_asked_for),
        cmocka_unit_test(fp16_rounds_half_to_even),
        cmocka_unit_test(limits_of_the_system_name_the_way_out),
        cmocka_unit_test(yaml_reads_what_it_writes),
        cmocka_unit_test(a_published_file_is_whole),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
