/* Tar frames against bytes made by hand from the POSIX ustar table, foreign readers where they are
 * installed, and attacks on the reader. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "base/file.h"
#include "base/rng.h"
#include "shard/tar_read.h"
#include "shard/tar_write.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCK = 512 };
static char dir[64];

static int make_dir(void **state) {
    (void)state;
    strcpy(dir, "/tmp/test_tar.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state) {
    (void)state;
    return file_remove_tree(dir).code;
}

static char *at(const char *name) {
    return file_join(dir, name);
}

/* One ustar header by the table of POSIX.1-2001 (pax, "ustar Interchange Format"). */
static void ustar(char h[BLOCK], const char *name, char type, const char *link, uint64_t bytes) {
    memset(h, 0, BLOCK);
    strncpy(h, name, 99);
    memcpy(h + 100, "000644 ", 7);
    memcpy(h + 108, "000000 ", 7);
    memcpy(h + 116, "000000 ", 7);
    snprintf(h + 124, 13, "%011llo ", (unsigned long long)bytes);
    memcpy(h + 136, "00000000000 ", 12);
    memset(h + 148, ' ', 8);
    h[156] = type;
    strncpy(h + 157, link, 99);
    memcpy(h + 257,
           "ustar\0"
           "00",
           8);
    memcpy(h + 329, "000000 ", 7);
    memcpy(h + 337, "000000 ", 7);
    unsigned sum = 0;
    for (int i = 0; i < BLOCK; i++) sum += (unsigned char)h[i];
    snprintf(h + 148, 8, "%06o", sum);
    h[155] = ' ';
}

/* Every byte of a whole tar, the zero ones too. */
static void test_bytes(void **state) {
    (void)state;
    const tar_entry entries[] = {{"m/config.json", 5}, {"m/empty", 0}, {"m/full", 512}};
    const char full[512] = {[0] = 'f', [511] = 'l'};
    char want[3 * BLOCK + 2 * BLOCK + 1024] = {0}, *got, *path = at("bytes.tar");
    ustar(want, "m/config.json", '0', "", 5);
    memcpy(want + BLOCK, "{\"a\"}", 5);
    ustar(want + 2 * BLOCK, "m/empty", '0', "", 0);
    ustar(want + 3 * BLOCK, "m/full", '0', "", 512);
    memcpy(want + 4 * BLOCK, full, 512);

    tar_plan *p;
    size_t len;
    int fd;
    assert_int_equal(tar_plan_create(entries, 3, &p).code, 0);
    assert_int_equal(tar_plan_total(p), sizeof want);
    assert_int_equal(tar_plan_offset(p, 0), BLOCK);
    assert_int_equal(tar_plan_offset(p, 2), 4 * BLOCK);
    assert_int_equal(tar_plan_write_frame(p, path).code, 0);
    FILE *f = fopen(path, "r+b");
    fd = fileno(f);
    assert_int_equal(file_pwrite(fd, path, "{\"a\"}", 5, tar_plan_offset(p, 0)).code, 0);
    assert_int_equal(file_pwrite(fd, path, full, 512, tar_plan_offset(p, 2)).code, 0);
    fclose(f);
    assert_int_equal(file_read_all(path, 1 << 20, &got, &len).code, 0);
    assert_int_equal(len, sizeof want);
    assert_memory_equal(got, want, sizeof want);
    free(got);
    free(path);
    tar_plan_destroy(&p);
}

/* Beyond ustar: 8 GiB and names of 100 bytes take a pax header, still known beforehand. */
static void test_pax(void **state) {
    (void)state;
    char name[200] = "m/";
    memset(name + 2, 'L', 150);
    const tar_entry entries[] = {{"m/a", (uint64_t)9 << 30}, {name, 1}};
    tar_plan *p;
    uint64_t offset;
    size_t len;
    assert_int_equal(tar_plan_create(entries, 2, &p).code, 0);
    const char *h = tar_plan_header(p, 0, &offset, &len);
    assert_int_equal(len, 3 * BLOCK);
    assert_int_equal(h[156], 'x');
    assert_string_equal(h + BLOCK, "19 size=9663676416\n");
    assert_int_equal(tar_plan_offset(p, 1), 3 * BLOCK + ((uint64_t)9 << 30) + 3 * BLOCK);
    h = tar_plan_header(p, 1, &offset, &len);
    assert_non_null(strstr(h + BLOCK, " path=m/LLLL"));
    tar_plan_destroy(&p);
}

static void test_refused_names(void **state) {
    (void)state;
    const char *const bad[] = {"/etc/passwd",
                               "m/../x",
                               "m",
                               "",
                               "m/",
                               "/",
                               "m/a/b",
                               "../a",
                               "m/.",
                               "m/\xc3\xa9",
                               "m/additional_chat_templates/",
                               "m/additional_chat_templates/..",
                               "m/additional_chat_templates/a/b",
                               "additional_chat_templates/a/b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        tar_entry e = {bad[i], 1};
        tar_plan *p;
        assert_int_equal(tar_plan_create(&e, 1, &p).code, ERR_INPUT);
        assert_null(p);
    }
}

/* A tar of four entries with known contents. */
static void write_sample(const char *path, tar_plan **p) {
    static const tar_entry entries[] = {
        {"m/config.json", 13}, {"m/LICENSE", 511}, {"m/b", 513}, {"m/c.safetensors", 70000}};
    assert_int_equal(tar_plan_create(entries, 4, p).code, 0);
    assert_int_equal(tar_plan_write_frame(*p, path).code, 0);
    FILE *f = fopen(path, "r+b");
    for (int64_t i = 0; i < 4; i++) {
        uint64_t n = tar_plan_bytes(*p, i);
        char *data = malloc(n);
        memset(data, 'a' + (int)i, n);
        assert_int_equal(file_pwrite(fileno(f), path, data, n, tar_plan_offset(*p, i)).code, 0);
        free(data);
    }
    fclose(f);
}

static void test_read_own(void **state) {
    (void)state;
    char *path = at("own.tar");
    tar_plan *p;
    tar_index t;
    write_sample(path, &p);
    assert_int_equal(tar_index_read(path, &t).code, 0);
    assert_int_equal(t.n, 4);
    for (int64_t i = 0; i < 4; i++) {
        assert_string_equal(t.items[i].name, tar_plan_name(p, i));
        assert_int_equal(t.items[i].offset, tar_plan_offset(p, i));
        assert_int_equal(t.items[i].bytes, tar_plan_bytes(p, i));
    }
    tar_index_clear(&t);
    tar_plan_destroy(&p);
    free(path);
}

/* Extracted by other programs without complaint, and what comes out is what went in. */
static void check_foreign(const char *tool, const char *probe, const char *command) {
    char *path = at("foreign.tar"), *out = at(tool), *text;
    char line[1024];
    tar_plan *p;
    size_t len;
    if (system(probe) != 0) {
        print_message("%s is not installed: not tried\n", tool);
        free(path);
        free(out);
        return;
    }
    write_sample(path, &p);
    assert_int_equal(file_make_dirs(out).code, 0);
    snprintf(line, sizeof line, command, path, out);
    snprintf(line + strlen(line), sizeof line - strlen(line), " > %s.log 2>&1", out);
    assert_int_equal(system(line), 0);
    snprintf(line, sizeof line, "%s.log", out);
    assert_int_equal(file_read_all(line, 1 << 16, &text, &len).code, 0);
    assert_int_equal(len, 0);
    free(text);
    for (int64_t i = 0; i < 4; i++) {
        snprintf(line, sizeof line, "%s/%s", out, tar_plan_name(p, i));
        assert_int_equal(file_read_all(line, 1 << 20, &text, &len).code, 0);
        assert_int_equal(len, tar_plan_bytes(p, i));
        for (size_t k = 0; k < len; k++) assert_int_equal(text[k], 'a' + i);
        free(text);
    }
    tar_plan_destroy(&p);
    free(path);
    free(out);
}

static void test_foreign(void **state) {
    (void)state;
    check_foreign("gnutar", "tar --version | grep -q GNU", "tar -xf %s -C %s");
    check_foreign("bsdtar", "command -v bsdtar > /dev/null", "bsdtar -xf %s -C %s");
    check_foreign("python", "command -v python3 > /dev/null",
                  "python3 -W ignore -c 'import sys, tarfile; "
                  "tarfile.open(sys.argv[1], \"r:\").extractall(sys.argv[2])' %s %s");
}

typedef struct attack {
    const char *what;
    const char *name;
    char type;
    const char *link;
} attack;

/* One good entry, then a bad one. */
static err read_attack(const attack *a, uint64_t bytes) {
    char blocks[6 * BLOCK] = {0}, *path = at("attack.tar");
    int fd;
    tar_index t;
    ustar(blocks, "m/Config.json", '0', "", 3);
    ustar(blocks + 2 * BLOCK, a->name, a->type, a->link, bytes);
    assert_int_equal(file_create(path, &fd).code, 0);
    assert_int_equal(file_pwrite(fd, path, blocks, sizeof blocks, 0).code, 0);
    assert_int_equal(file_close(fd, path).code, 0);
    err e = tar_index_read(path, &t);
    tar_index_clear(&t);
    free(path);
    return e;
}

static void test_attacks(void **state) {
    (void)state;
    static const attack attacks[] = {
        {"absolute", "/etc/passwd", '0', ""},
        {"parent", "../x", '0', ""},
        {"inner parent", "m/../x", '0', ""},
        {"two levels", "m/a/b", '0', ""},
        {"a parent below the templates", "m/additional_chat_templates/..", '0', ""},
        {"no folder", "x", '0', ""},
        {"symbolic link", "m/x", '2', "/etc/passwd"},
        {"hard link", "m/x", '1', "m/Config.json"},
        {"device", "m/x", '3', ""},
        {"block device", "m/x", '4', ""},
        {"folder", "m/x", '5', ""},
        {"pipe", "m/x", '6', ""},
        {"twice", "m/Config.json", '0', ""},
        {"case twin", "m/config.json", '0', ""},
        {"control character", "m/a\nb", '0', ""},
        {"backslash", "m/..\\x", '0', ""},
    };
    attack good = {"good", "m/x", '0', ""};
    assert_int_equal(read_attack(&good, 1).code, 0);
    for (size_t i = 0; i < sizeof attacks / sizeof *attacks; i++) {
        err e = read_attack(&attacks[i], strchr("0", attacks[i].type) ? 1 : 0);
        if (e.code != ERR_VERIFY) fail_msg("%s: code %d", attacks[i].what, e.code);
    }
    err e = read_attack(&good, 1 << 20); /* data beyond the end */
    assert_int_equal(e.code, ERR_VERIFY);
}

static void test_not_a_tar(void **state) {
    (void)state;
    char *path = at("no.tar"), noise[4096];
    int fd;
    tar_index t;
    for (size_t i = 0; i < sizeof noise; i++) noise[i] = (char)rng_u64(1, RNG_TEST, i);
    assert_int_equal(tar_index_read(path, &t).code, ERR_INPUT); /* missing */
    assert_int_equal(file_create(path, &fd).code, 0);
    file_close(fd, path);
    assert_int_equal(tar_index_read(path, &t).code, ERR_VERIFY); /* empty */
    assert_int_equal(file_create(path, &fd).code, 0);
    assert_int_equal(file_pwrite(fd, path, noise, sizeof noise, 0).code, 0);
    file_close(fd, path);
    assert_int_equal(tar_index_read(path, &t).code, ERR_VERIFY);
    free(path);
}

/* Whatever the bytes, an accepted list lies inside the file and has plain names. */
static void test_random_damage(void **state) {
    (void)state;
    char *path = at("damage.tar"), *text;
    size_t len;
    tar_plan *p;
    int fd, refused = 0;
    write_sample(path, &p);
    assert_int_equal(file_read_all(path, 1 << 20, &text, &len).code, 0);
    for (uint64_t round = 0; round < 400; round++) {
        char *copy = malloc(len);
        memcpy(copy, text, len);
        for (uint64_t k = 0; k < 1 + round % 5; k++) {
            int64_t i = (int64_t)(rng_u64(2, RNG_TEST, round * 16 + 2 * k) % 4);
            uint64_t offset, r = rng_u64(2, RNG_TEST, round * 16 + 2 * k + 1);
            size_t n;
            tar_plan_header(p, i, &offset, &n);
            copy[offset + r % n] = (char)(r >> 32);
        }
        size_t cut = round % 7 == 0 ? len / 2 + round : len;
        assert_int_equal(file_create(path, &fd).code, 0);
        assert_int_equal(file_pwrite(fd, path, copy, cut, 0).code, 0);
        file_close(fd, path);
        tar_index t;
        err e = tar_index_read(path, &t);
        refused += e.code != 0;
        assert_true(e.code == 0 || e.code == ERR_VERIFY);
        for (int64_t i = 0; i < t.n; i++) {
            assert_true(t.items[i].bytes <= cut && t.items[i].offset <= cut - t.items[i].bytes);
            assert_null(strstr(t.items[i].name, ".."));
            assert_int_not_equal(t.items[i].name[0], '/');
        }
        tar_index_clear(&t);
        free(copy);
    }
    assert_true(refused > 200); /* the checksum alone sees most of them */
    free(text);
    tar_plan_destroy(&p);
    free(path);
}

static void test_no_space(void **state) {
    (void)state;
    const tar_entry huge = {"m/a", (uint64_t)1 << 60};
    char *path = at("huge.tar");
    tar_plan *p;
    assert_int_equal(tar_plan_create(&huge, 1, &p).code, 0);
    err e = tar_plan_write_frame(p, path);
    /* ext4 names it too large (EFBIG), others no space: refused at once either way, nothing left */
    assert_true(e.code == ERR_SPACE || e.code == ERR_INPUT);
    assert_false(file_exists(path));
    tar_plan_destroy(&p);
    free(path);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),         cmocka_unit_test(test_pax),
        cmocka_unit_test(test_refused_names), cmocka_unit_test(test_read_own),
        cmocka_unit_test(test_foreign),       cmocka_unit_test(test_attacks),
        cmocka_unit_test(test_not_a_tar),     cmocka_unit_test(test_random_damage),
        cmocka_unit_test(test_no_space),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
