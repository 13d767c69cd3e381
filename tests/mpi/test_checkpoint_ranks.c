/* A checkpoint opened by 1 to 4 ranks: all see the same tensors; an error, of rank 0 in opening or
 * of one rank in reading, is the same value on every rank, and none waits for ever. */
#include "base/file.h"
#include "io/fileset.h"
#include "io/hf_checkpoint.h"
#include "tests/mpi/on_ranks.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { DATA_BYTES = 5000 };

/* Collective: n bytes are the same on every rank. */
static bool same_everywhere(const void *mine, size_t n) {
    const comm *c = comm_world();
    char *root = malloc(n);
    memcpy(root, mine, n);
    comm_bcast(c, root, n, 0);
    int64_t differs = memcmp(root, mine, n) != 0;
    comm_max_i64(c, &differs, 1);
    free(root);
    return !differs;
}

static bool same_error(const err *e) {
    return same_everywhere(&e->code, sizeof e->code) && same_everywhere(&e->rank, sizeof e->rank) &&
           same_everywhere(e->where, strlen(e->where) + 1) &&
           same_everywhere(e->what, strlen(e->what) + 1);
}

/* Root only. */
static void put(const char *dir, const char *name, const void *data, size_t n) {
    char *path = file_join(dir, name);
    if (file_publish(path, data, n).code) comm_abort(1, "cannot write the test's files");
    free(path);
}

static void put_text(const char *dir, const char *name, const char *text) {
    put(dir, name, text, strlen(text));
}

static void put_shard(const char *dir, const char *name, const char *json) {
    size_t n = strlen(json);
    unsigned char *file = calloc(8 + n + DATA_BYTES, 1);
    for (int i = 0; i < 8; i++) file[i] = (unsigned char)(n >> 8 * i);
    memcpy(file + 8, json, n);
    for (size_t i = 0; i < DATA_BYTES; i++) file[8 + n + i] = (unsigned char)(i * i % 253);
    put(dir, name, file, 8 + n + DATA_BYTES);
    free(file);
}

static void put_model(const char *dir, const char *index) {
    put_text(dir, "config.json", "{\"model_type\":\"llama\"}");
    put_shard(dir, "s1.safetensors",
              "{\"a\":{\"dtype\":\"U8\",\"shape\":[5,1000],\"data_offsets\":[0,5000]}}");
    put_shard(dir, "s2.safetensors",
              "{\"b\":{\"dtype\":\"F32\",\"shape\":[750],\"data_offsets\":[0,3000]},"
              "\"c\":{\"dtype\":\"F16\",\"shape\":[1000],\"data_offsets\":[3000,5000]}}");
    put_text(dir, "model.safetensors.index.json", index);
}

static err open_model(const char *dir, fileset **fs, hf_checkpoint **ck) {
    *ck = NULL;
    err e = fileset_open_dir(comm_world(), dir, fs);
    return e.code ? e : hf_checkpoint_open(comm_world(), *fs, ck);
}

/* Every rank reads every tensor; on the first read of rank 1 a failure is injected (see main). */
static void read_all(const hf_checkpoint *ck) {
    const comm *c = comm_world();
    char bytes[DATA_BYTES], hex[SHA256_HEX];
    err e = hf_checkpoint_read(ck, hf_checkpoint_find(ck, "a"), bytes, NULL);
    e = comm_agree(c, e, "reading", NULL);
    check(same_error(&e), "the error of one reader is not the same everywhere");
    check((e.code != 0) == (comm_size(c) > 1), "one reader should have failed");
    check(!e.code || e.rank == 1, "rank 1 should be named");
    for (int64_t i = 0; i < hf_checkpoint_count(ck); i++) {
        const hf_tensor *t = hf_checkpoint_at(ck, i);
        e = hf_checkpoint_read(ck, t, bytes, hex);
        check(!e.code, e.what);
        uint64_t from = t->info.begin;
        bool right = true;
        for (uint64_t k = 0; k < hf_tensor_bytes(t); k++)
            right = right && (unsigned char)bytes[k] == (from + k) * (from + k) % 253;
        check(right, "wrong bytes");
        check(same_everywhere(hex, sizeof hex), "hashes differ between ranks");
    }
}

static void test_good(const char *dir) {
    fileset *fs;
    hf_checkpoint *ck;
    if (comm_rank(comm_world()) == 0)
        put_model(dir, "{\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"s2.safetensors\","
                       "\"c\":\"s2.safetensors\"}}");
    err e = open_model(dir, &fs, &ck);
    check(!e.code, e.what);
    if (e.code) return;
    check(hf_checkpoint_count(ck) == 3 && hf_checkpoint_shards(ck) == 2, "wrong counts");
    check(hf_checkpoint_bytes(ck) == 10000, "wrong size");
    check(same_everywhere(hf_checkpoint_header_sha256(ck, 1), SHA256_HEX), "header hashes differ");
    check(same_everywhere(hf_checkpoint_config_sha256(ck), SHA256_HEX), "config hashes differ");
    read_all(ck);
    hf_checkpoint_destroy(&ck);
    fileset_destroy(&fs);
}

static void test_bad(const char *dir, const char *index, const char *message) {
    fileset *fs;
    hf_checkpoint *ck;
    if (comm_rank(comm_world()) == 0) put_model(dir, index);
    err e = open_model(dir, &fs, &ck);
    check(e.code == ERR_INPUT && strstr(e.what, message), message);
    check(same_error(&e), "the error of opening is not the same everywhere");
    check(ck == NULL, "a checkpoint in spite of an error");
    fileset_destroy(&fs);
}

static void test_missing_folder(const char *dir) {
    fileset *fs;
    char *path = file_join(dir, "nowhere");
    err e = fileset_open_dir(comm_world(), path, &fs);
    check(e.code == ERR_INPUT && !fs, "a folder that is not there");
    check(same_error(&e), "the error of listing is not the same everywhere");
    free(path);
}

int main(int argc, char **argv) {
    setenv("SPINSHARD_FAULT", "read:1:1", 1); /* the first read of rank 1 fails */
    const comm *c = ranks_start(&argc, &argv);
    char dir[] = "/tmp/spinshard-ranks-XXXXXX";
    if (comm_rank(c) == 0 && !mkdtemp(dir)) comm_abort(1, "no temporary folder");
    comm_bcast(c, dir, sizeof dir, 0);
    test_good(dir);
    test_bad(dir, "{\"weight_map\":{\"a\":\"s9.safetensors\"}}", "s9.safetensors is missing");
    test_bad(dir, "{\"weight_map\":{\"a\":\"../s1.safetensors\"}}", "not a plain file name");
    test_bad(dir, "{\"weight_map\":{\"a\":\"config.json\"}}", "bytes");
    test_bad(dir, "{\"weight_map\":{\"z\":\"s1.safetensors\"}}", "holds no tensors");
    test_bad(dir, "{\"weight_map\":", "invalid JSON");
    test_missing_folder(dir);
    comm_barrier(c);
    if (comm_rank(c) == 0) check(!file_remove_tree(dir).code, "the folder cannot be removed");
    return ranks_end();
}
