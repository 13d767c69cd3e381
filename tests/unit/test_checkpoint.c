/* File sets, checkpoints and their check against the config, on folders made here by hand, one of
 * them with an embedding that is only an alias of the head. One rank; tests/mpi has the rest. */
#include "base/file.h"
#include "io/fileset.h"
#include "io/hf_checkpoint.h"
#include "model/tensors.h"
#include "mpi/comm.h"
#include "pipeline/weights/check_model.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[64];

static int make_dir(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/spinshard-ck-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state) {
    (void)state;
    return file_remove_tree(dir).code;
}

static void put(const char *name, const void *data, size_t n) {
    char *path = file_join(dir, name);
    assert_int_equal(file_publish(path, data, n).code, 0);
    free(path);
}

static void put_text(const char *name, const char *text) {
    put(name, text, strlen(text));
}

/* A shard from the text of its header; byte i of the data is i % 251. */
static void put_shard(const char *name, const char *json, size_t data_bytes) {
    size_t n = strlen(json);
    unsigned char *file = calloc(8 + n + data_bytes, 1);
    for (int i = 0; i < 8; i++) file[i] = (unsigned char)(n >> 8 * i);
    memcpy(file + 8, json, n);
    for (size_t i = 0; i < data_bytes; i++) file[8 + n + i] = (unsigned char)(i % 251);
    put(name, file, 8 + n + data_bytes);
    free(file);
}

static err open_path(const char *path, fileset **fs, hf_checkpoint **ck) {
    *ck = NULL;
    err e = fileset_open_dir(comm_world(), path, fs);
    return e.code ? e : hf_checkpoint_open(comm_world(), *fs, ck);
}

/* Opening the folder must fail with this in the message. */
static void assert_refused(const char *message) {
    fileset *fs;
    hf_checkpoint *ck;
    err e = open_path(dir, &fs, &ck);
    if (e.code != ERR_INPUT || !strstr(e.what, message))
        fail_msg("expected \"%s\", got %d %s: %s", message, e.code, e.where, e.what);
    assert_null(ck);
    fileset_destroy(&fs);
}

static const char CONFIG[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":4,\"intermediate_size\":6,"
    "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"vocab_size\":8}";
static const char ONE[] = "{\"a\":{\"dtype\":\"U8\",\"shape\":[300],\"data_offsets\":[0,300]}}";
static const char TWO[] = "{\"b\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[0,16]},"
                          "\"c\":{\"dtype\":\"U8\",\"shape\":[3],\"data_offsets\":[16,19]}}";

static void put_two_shards(void) {
    put_text("config.json", CONFIG);
    put_shard("s1.safetensors", ONE, 300);
    put_shard("s2.safetensors", TWO, 19);
}

static void test_fileset(void **state) {
    (void)state;
    fileset *fs;
    const char *path;
    uint64_t offset, bytes;
    char *text;
    size_t len;
    assert_int_equal(fileset_create("x.tar", &fs).code, 0);
    put_text("whole", "0123456789");
    char *whole = file_join(dir, "whole");
    assert_int_equal(fileset_add(fs, "b", whole, 3, 4).code, 0);
    assert_int_equal(fileset_add(fs, "a", whole, 0, 2).code, 0);
    assert_int_equal(fileset_add(fs, "late", whole, 8, 4).code, 0);
    assert_int_equal(fileset_add(fs, "b", whole, 0, 1).code, ERR_INPUT);
    assert_int_equal(fileset_add(fs, "../b", whole, 0, 1).code, ERR_INPUT);
    assert_int_equal(fileset_add(fs, "..", whole, 0, 1).code, ERR_INPUT);
    assert_int_equal(fileset_add(fs, "", whole, 0, 1).code, ERR_INPUT);
    assert_int_equal(fileset_add(fs, "c", whole, UINT64_MAX, 2).code, ERR_INPUT);
    assert_int_equal(fileset_count(fs), 3);
    assert_string_equal(fileset_name(fs, 0), "a");
    assert_string_equal(fileset_where(fs), "x.tar");
    assert_true(fileset_find(fs, "b", &path, &offset, &bytes));
    assert_string_equal(path, whole);
    assert_int_equal(offset, 3);
    assert_int_equal(bytes, 4);
    assert_false(fileset_find(fs, "c", NULL, NULL, NULL));
    assert_int_equal(fileset_read_all(fs, "b", 4, &text, &len).code, 0);
    assert_string_equal(text, "3456");
    free(text);
    assert_int_equal(fileset_read_all(fs, "b", 3, &text, &len).code, ERR_INPUT);
    assert_int_equal(fileset_read_all(fs, "c", 3, &text, &len).code, ERR_INPUT);
    assert_int_equal(fileset_read_all(fs, "late", 9, &text, &len).code, ERR_INPUT);
    free(whole);
    fileset_destroy(&fs);
}

static void test_fileset_of_folder(void **state) {
    (void)state;
    fileset *fs;
    put_text("b.json", "{}");
    put_text("a.txt", "");
    char *sub = file_join(dir, "sub"), *pipe = file_join(dir, "pipe"),
         *loop = file_join(dir, "loop");
    char *link = file_join(dir, "link.json"), *gone = file_join(dir, "gone");
    assert_int_equal(mkdir(sub, 0755), 0);
    assert_int_equal(mkfifo(pipe, 0644), 0);
    assert_int_equal(symlink("loop", loop), 0);
    assert_int_equal(symlink("b.json", link), 0);
    assert_int_equal(symlink("nowhere", gone), 0);
    assert_int_equal(fileset_open_dir(comm_world(), dir, &fs).code, 0);
    assert_int_equal(fileset_count(fs), 3);
    assert_string_equal(fileset_name(fs, 0), "a.txt");
    assert_string_equal(fileset_name(fs, 1), "b.json");
    assert_string_equal(fileset_name(fs, 2), "link.json");
    fileset_destroy(&fs);
    assert_int_equal(fileset_open_dir(comm_world(), gone, &fs).code, ERR_INPUT);
    assert_null(fs);
    free(sub);
    free(pipe);
    free(loop);
    free(link);
    free(gone);
}

static void test_sharded(void **state) {
    (void)state;
    fileset *fs;
    hf_checkpoint *ck;
    put_two_shards();
    put_text("model.safetensors.index.json",
             "{\"metadata\":{\"total_size\":319},\"weight_map\":{\"b\":\"s2.safetensors\","
             "\"a\":\"s1.safetensors\",\"c\":\"s2.safetensors\"}}");
    err e = open_path(dir, &fs, &ck);
    if (e.code) fail_msg("%s: %s", e.where, e.what);
    assert_int_equal(hf_checkpoint_count(ck), 3);
    assert_int_equal(hf_checkpoint_shards(ck), 2);
    assert_string_equal(hf_checkpoint_shard_name(ck, 1), "s2.safetensors");
    assert_int_equal(hf_checkpoint_bytes(ck), 319);
    assert_null(hf_checkpoint_find(ck, "d"));
    const hf_tensor *a = hf_checkpoint_find(ck, "a"), *c = hf_checkpoint_find(ck, "c");
    assert_int_equal(a->shard, 0);
    assert_int_equal(c->shard, 1);
    unsigned char bytes[300];
    char hex[SHA256_HEX], want[SHA256_HEX];
    assert_int_equal(hf_checkpoint_read(ck, a, bytes, hex).code, 0);
    for (int i = 0; i < 300; i++) assert_int_equal(bytes[i], i % 251);
    sha256_of(bytes, 300, want);
    assert_string_equal(hex, want);
    assert_int_equal(hf_checkpoint_read(ck, c, bytes, NULL).code, 0);
    assert_memory_equal(bytes, "\x10\x11\x12", 3);
    assert_int_equal(hf_checkpoint_read_range(ck, a, 249, 3, bytes).code, 0);
    assert_memory_equal(bytes, "\xf9\xfa\x00", 3);
    assert_int_equal(hf_checkpoint_read_range(ck, a, 299, 2, bytes).code, ERR_BUG);
    assert_int_equal(hf_checkpoint_read_range(ck, a, UINT64_MAX, 2, bytes).code, ERR_BUG);
    hf_checkpoint_destroy(&ck);
    fileset_destroy(&fs);
}

/* As in transformers: the single file is read even where an index lies beside it. */
static void test_single_wins(void **state) {
    (void)state;
    fileset *fs;
    hf_checkpoint *ck;
    put_two_shards();
    put_shard("model.safetensors", ONE, 300);
    put_text("model.safetensors.index.json", "{\"weight_map\":{\"b\":\"s2.safetensors\"}}");
    assert_int_equal(open_path(dir, &fs, &ck).code, 0);
    assert_int_equal(hf_checkpoint_shards(ck), 1);
    assert_int_equal(hf_checkpoint_count(ck), 1);
    hf_checkpoint_destroy(&ck);
    fileset_destroy(&fs);
}

/* More shards than files are kept open; read forth and back, twice. */
static void test_many_shards(void **state) {
    (void)state;
    enum { N = 70 };
    char *index = malloc(N * 80), *p = index, name[64], json[128];
    p += sprintf(p, "{\"weight_map\":{");
    for (int i = 0; i < N; i++) {
        snprintf(name, sizeof name, "s%03d.safetensors", i);
        int n = snprintf(json, sizeof json,
                         "{\"t%d\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[0,%d]}}", i,
                         i + 1, i + 1);
        assert_true(n > 0);
        put_shard(name, json, (size_t)i + 1);
        p += sprintf(p, "%s\"t%d\":\"%s\"", i ? "," : "", i, name);
    }
    sprintf(p, "}}");
    put_text("config.json", CONFIG);
    put_text("model.safetensors.index.json", index);
    fileset *fs;
    hf_checkpoint *ck;
    assert_int_equal(open_path(dir, &fs, &ck).code, 0);
    for (int k = 0; k < 4 * N; k++) {
        int i = k / N % 2 ? N - 1 - k % N : k % N;
        unsigned char bytes[N];
        snprintf(name, sizeof name, "t%d", i);
        const hf_tensor *t = hf_checkpoint_find(ck, name);
        assert_int_equal(hf_checkpoint_read(ck, t, bytes, NULL).code, 0);
        assert_int_equal(bytes[i], i % 251);
    }
    hf_checkpoint_destroy(&ck);
    fileset_destroy(&fs);
    free(index);
}

static const struct {
    const char *index, *message;
} BAD_INDEXES[] = {
    {"[]", "weight_map must"},
    {"{}", "weight_map must"},
    {"{\"weight_map\":[]}", "weight_map must"},
    {"{\"weight_map\":{}}", "weight_map must"},
    {"{\"weight_map\":{\"a\":3}}", "not a text"},
    {"{\"weight_map\":{\"a\":\"../s1.safetensors\"}}", "not a plain file name"},
    {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "not a plain file name"},
    {"{\"weight_map\":{\"a\":\"\"}}", "not a plain file name"},
    {"{\"weight_map\":{\"a\":\"s3.safetensors\"}}", "s3.safetensors is missing"},
    {"{\"weight_map\":{\"a\":\"sub\"}}", "sub is missing"},
    {"{\"weight_map\":{\"a\":\"s1.safetensors\",\"a\":\"s2.safetensors\"}}", "duplicate"},
    {"{\"weight_map\":{\"a\":\"s1.safetensors\"}", "invalid JSON"},
    {"{\"weight_map\":{\"z\":\"s1.safetensors\"}}", "holds no tensors"},
    {"{\"weight_map\":{\"a\":\"s2.safetensors\"}}", "holds no tensors"},
    {"{\"weight_map\":{\"a\":\"s2.safetensors\",\"b\":\"s1.safetensors\"}}", "the index puts it"},
    {"{\"weight_map\":{\"a\":\"pointer\"}}", "LFS pointer"},
    {"{\"weight_map\":{\"a\":\"short\"}}", "truncated"},
    {"{\"weight_map\":{\"a\":\"s1.safetensors\",\"b\":\"twin\"}}", "tensor a is in twin"},
};

static void test_bad_indexes(void **state) {
    (void)state;
    put_two_shards();
    put_shard("short", ONE, 299);
    put_shard("twin",
              "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]},"
              "\"b\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
              2);
    put_text("pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n");
    char *sub = file_join(dir, "sub");
    assert_int_equal(mkdir(sub, 0755), 0);
    free(sub);
    for (size_t i = 0; i < sizeof BAD_INDEXES / sizeof BAD_INDEXES[0]; i++) {
        put_text("model.safetensors.index.json", BAD_INDEXES[i].index);
        assert_refused(BAD_INDEXES[i].message);
    }
}

static void test_other_weights(void **state) {
    (void)state;
    assert_refused("neither model.safetensors nor");
    put_text("model.gguf", "GGUF");
    assert_refused("model.gguf");
    put_text("pytorch_model-00001-of-00002.bin", "PK");
    assert_refused("pytorch_model-00001-of-00002.bin is a pickled file");
    put_shard("model.safetensors", ONE, 300);
    assert_refused("config.json");
    put_text("config.json", "[]");
    assert_refused("not a JSON object");
    put_text("config.json", "{\"a\":1,}");
    assert_refused("invalid JSON");
    put_shard("model.safetensors", "{}", 0);
    put_text("config.json", "{\"quantization_config\":null}");
    assert_refused("no tensors");
    put_shard("model.safetensors", ONE, 300);
    put_text("config.json", "{\"quantization_config\":{\"quant_method\":\"compressed-tensors\","
                            "\"format\":\"pack-quantized\"}}");
    fileset *fs;
    hf_checkpoint *ck;
    assert_int_equal(open_path(dir, &fs, &ck).code, 0);
    hf_checkpoint_destroy(&ck);
    fileset_destroy(&fs);
}

/* The header of a model of CONFIG's shape; `skip` is left out, `change` gets another shape or type.
 */
static void put_model(const char *config, const char *skip, const char *change, const char *to) {
    json_t *o;
    llama_config c;
    char *json = malloc(1 << 16), *p = json, body[128];
    size_t at = 0;
    assert_int_equal(json_parse(config, strlen(config), "x", &o).code, 0);
    assert_int_equal(llama_config_parse(o, "x", &c).code, 0);
    json_decref(o);
    p += sprintf(p, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (int64_t i = 0; i < llama_tensor_count(&c); i++) {
        llama_tensor t;
        llama_tensor_at(&c, i, &t);
        if (skip && !strcmp(t.name, skip)) continue;
        size_t bytes = (size_t)(t.rows * t.cols) * 4;
        snprintf(body, sizeof body,
                 t.n_dims == 2 ? "\"F32\",\"shape\":[%d,%d]" : "\"F32\",\"shape\":[%d]",
                 (int)t.rows, (int)t.cols);
        p += sprintf(p, ",\"%s\":{\"dtype\":%s,\"data_offsets\":[%zu,%zu]}", t.name,
                     change && !strcmp(t.name, change) ? to : body, at, at + bytes);
        at += bytes;
    }
    sprintf(p, "}");
    put_text("config.json", config);
    put_shard("model.safetensors", json, at);
    free(json);
}

static err check_folder(const char *path) {
    fileset *fs;
    hf_checkpoint *ck;
    llama_config c;
    err e = open_path(path, &fs, &ck);
    if (!e.code) e = llama_config_parse(hf_checkpoint_config(ck), "config.json", &c);
    if (!e.code) e = check_model(&c, ck);
    hf_checkpoint_destroy(&ck);
    fileset_destroy(&fs);
    return e;
}

static void assert_model_refused(const char *a, const char *b) {
    err e = check_folder(dir);
    if (e.code != ERR_INPUT || !strstr(e.what, a) || !strstr(e.what, b))
        fail_msg("expected %s and %s, got %d %s", a, b, e.code, e.what);
}

static const char TIED[] =
    "{\"architectures\":[\"LlamaForCausalLM\"],\"hidden_size\":4,\"intermediate_size\":6,"
    "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"vocab_size\":8,"
    "\"tie_word_embeddings\":true}";

static void test_check_model(void **state) {
    (void)state;
    const char *down = "model.layers.0.mlp.down_proj.weight", *norm = "model.norm.weight";
    put_model(CONFIG, NULL, NULL, NULL);
    err e = check_folder(dir);
    if (e.code) fail_msg("%s", e.what);
    put_model(CONFIG, down, NULL, NULL);
    assert_model_refused(down, "[4, 6], found nothing");
    put_model(CONFIG, NULL, down, "\"F32\",\"shape\":[6,4]");
    assert_model_refused(down, "[4, 6], found [6, 4] F32");
    put_model(CONFIG, NULL, norm, "\"F32\",\"shape\":[1,4]");
    assert_model_refused(norm, "[4], found [1, 4] F32");
    put_model(CONFIG, NULL, norm, "\"I32\",\"shape\":[4]");
    assert_model_refused(norm, "[4] I32");
    put_model(CONFIG, NULL, norm, "\"F64\",\"shape\":[2]");
    assert_model_refused(norm, "found [2] F64");
    put_model(CONFIG, "lm_head.weight", NULL, NULL);
    assert_model_refused("lm_head.weight", "found nothing");
    put_model(TIED, NULL, NULL, NULL);
    assert_int_equal(check_folder(dir).code, 0);
    put_model(TIED, "model.embed_tokens.weight", NULL, NULL);
    assert_model_refused("model.embed_tokens.weight", "found nothing");
}

/* As some published folders are: the embedding is stored once, under the name of the head, and only
 * the metadata tell. */
static void test_alias(void **state) {
    (void)state;
    put_model(TIED, NULL, NULL, NULL);
    char *path = file_join(dir, "model.safetensors"), *raw;
    size_t bytes;
    assert_int_equal(file_read_all(path, 1 << 20, &raw, &bytes).code, 0);
    /* the header anew: the embedding's tensor renamed, the alias added, the data as they are */
    static const char FROM[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"model.embed_tokens.weight\"",
                      TO[] = "{\"__metadata__\":{\"format\":\"pt\",\"model.embed_tokens.weight\":"
                             "\"lm_head.weight\"},\"lm_head.weight\"";
    size_t header = 0;
    for (int i = 0; i < 8; i++) header |= (size_t)(unsigned char)raw[i] << 8 * i;
    assert_memory_equal(raw + 8, FROM, sizeof FROM - 1);
    char *json = calloc(header + sizeof TO, 1);
    memcpy(json, TO, sizeof TO - 1);
    memcpy(json + sizeof TO - 1, raw + 8 + sizeof FROM - 1, header - (sizeof FROM - 1));
    put_shard("model.safetensors", json, bytes - 8 - header);
    free(json);
    free(raw);
    free(path);
    fileset *fs;
    hf_checkpoint *ck;
    assert_int_equal(open_path(dir, &fs, &ck).code, 0);
    const hf_tensor *embed = hf_checkpoint_find(ck, "model.embed_tokens.weight");
    assert_non_null(embed);
    assert_string_equal(embed->info.name, "lm_head.weight");
    assert_ptr_equal(embed, hf_checkpoint_find(ck, "lm_head.weight"));
    assert_int_equal(embed->info.shape[0], 8);
    assert_null(hf_checkpoint_find(ck, "format"));
    hf_checkpoint_destroy(&ck);
    fileset_destroy(&fs);
    assert_int_equal(check_folder(dir).code, 0);
}

/* The small model of the repository; a value read with another program. */
static void test_shipped_model(void **state) {
    (void)state;
    const char *data = getenv("SPINSHARD_TEST_DATA");
    char *path = file_join(data ? data : "tests/data", "stories260K");
    err e = check_folder(path);
    if (e.code) fail_msg("%s: %s", e.where, e.what);
    fileset *fs;
    hf_checkpoint *ck;
    assert_int_equal(open_path(path, &fs, &ck).code, 0);
    const hf_tensor *t = hf_checkpoint_find(ck, "model.layers.4.mlp.down_proj.weight");
    assert_non_null(t);
    char hex[SHA256_HEX];
    void *bytes = malloc(hf_tensor_bytes(t));
    assert_int_equal(hf_checkpoint_read(ck, t, bytes, hex).code, 0);
    assert_string_equal(hex, "414592b302b72ae5a85da2bfde57c127f23ee6d306b2abeb3be9c9888fb4901e");
    free(bytes);
    hf_checkpoint_destroy(&ck);
    fileset_destroy(&fs);
    free(path);
}

#define IN_DIR(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)

int main(void) {
    const struct CMUnitTest tests[] = {
        IN_DIR(test_fileset),       IN_DIR(test_fileset_of_folder),
        IN_DIR(test_sharded),       IN_DIR(test_single_wins),
        IN_DIR(test_many_shards),   IN_DIR(test_bad_indexes),
        IN_DIR(test_other_weights), IN_DIR(test_check_model),
        IN_DIR(test_alias),         cmocka_unit_test(test_shipped_model),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
