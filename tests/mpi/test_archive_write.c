/* One archive written by all ranks, against the same one written by one rank alone; opened in
 * place, verified, damaged. Runs on any number of ranks; every check holds on every rank. */
#include "base/file.h"
#include "base/rng.h"
#include "io/hf_checkpoint.h"
#include "shard/archive.h"
#include "shard/archive_writer.h"
#include "shard/loader_rules.h"
#include "tests/mpi/on_ranks.h"
#include "tests/unit/small_archive.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const comm *world;
static char dir[512];

static const char CONFIG[] =
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_size\": 32, "
    "\"intermediate_size\": 64, \"num_hidden_layers\": 3, \"num_attention_heads\": 4, "
    "\"num_key_value_heads\": 2, \"head_dim\": 8, \"vocab_size\": 50, \"max_position_embeddings\": "
    "64, "
    "\"rms_norm_eps\": 1e-05, \"hidden_act\": \"silu\", \"attention_bias\": true, "
    "\"tie_word_embeddings\": true, \"torch_dtype\": \"float32\"}";

static layout *make_layout(bool symmetric) {
    const llama_config c = as_llama((llama_config){.hidden = 32,
                                                   .intermediate = 64,
                                                   .layers = 3,
                                                   .heads = 4,
                                                   .kv_heads = 2,
                                                   .head_dim = 8,
                                                   .vocab = 50,
                                                   .max_positions = 64,
                                                   .rms_eps = 1e-5,
                                                   .rope_theta = 10000,
                                                   .qkv_bias = true,
                                                   .o_bias = true,
                                                   .tied = true});
    layout_options o = layout_plain(4, 16, symmetric, 6000);
    layout *l;
    o.untied = true;
    OK(layout_create(&c, &o, &l));
    CHECK(layout_parts(l) == 5);
    return l;
}

/* Bytes that depend on the tensor alone; shapes are true, so that rules hold. */
static char *unit_blob(const layout *l, int64_t unit) {
    int64_t first, count;
    char *blob = malloc(layout_unit_bytes(l, unit));
    layout_unit_range(l, unit, &first, &count);
    for (int64_t i = first; i < first + count; i++) {
        const layout_slot *s = layout_tensor(l, i);
        char *to = blob + s->unit_offset;
        for (uint64_t k = 0; k < s->bytes; k++) to[k] = (char)rng_u64((uint64_t)i, RNG_TEST, k);
        if (s->dtype == ST_BF16) /* finite: 0.5 to 1 */
            for (uint64_t k = 1; k < s->bytes; k += 2) to[k] = 0x3f;
        int64_t shape[2] = {s->source.rows, s->source.cols};
        if (s->slot && s->slot->part == FORM_SIZES) memcpy(to, shape, sizeof shape);
    }
    return blob;
}

static small_files *make_small(const layout *l) {
    json_t *config;
    fileset *source;
    small_files *files;
    char *path = file_join(dir, "tokenizer.json");
    OK(json_parse(CONFIG, strlen(CONFIG), "config.json", &config));
    OK(file_publish(path, "{\"some\": \"tokens\"}\n", 19));
    OK(fileset_create(dir, &source));
    OK(fileset_add(source, "tokenizer.json", path, 0, 19));
    small_options o = {.name = "tiny", .config = config};
    OK(small_files_create(source, l, &o, &files));
    CHECK(files->n == 4 && !strcmp(files->files[0].name, "config.json"));
    CHECK(!strcmp(files->files[2].name, "model.safetensors.index.json"));
    CHECK(!strcmp(files->files[3].name, "tokenizer.json"));
    fileset_destroy(&source);
    json_decref(config);
    free(path);
    return files;
}

/* Collective on c. Units go round the ranks from `shift`; odd ones in pieces. */
static err write_archive(const comm *c, const layout *l, const char *out, const char *parts,
                         int shift) {
    archive_writer *w;
    small_files *files = comm_rank(c) == 0 ? make_small(l) : NULL;
    err e = archive_writer_create(c, l, files, "tiny", out, parts, &w);
    small_files_destroy(&files);
    if (e.code) return e;
    for (int64_t u = 0; u < layout_units(l); u++) {
        if ((u + shift) % comm_size(c) != comm_rank(c)) continue;
        char *blob = unit_blob(l, u);
        int64_t first, count;
        layout_unit_range(l, u, &first, &count);
        if (u % 2 == 0) OK(archive_writer_put_unit(w, u, blob));
        for (int64_t i = first; u % 2 && i < first + count; i++) {
            const layout_slot *s = layout_tensor(l, i);
            uint64_t half = s->bytes / 2;
            OK(archive_writer_put(w, i, half, blob + s->unit_offset + half, s->bytes - half));
            OK(archive_writer_put(w, i, 0, blob + s->unit_offset, half));
        }
        free(blob);
    }
    manifest *about = manifest_tiny(json_pack("{s:i}", "seed", 3));
    e = archive_writer_finish(w, comm_rank(c) == 0 ? about : NULL);
    manifest_destroy(&about);
    archive_writer_destroy(&w);
    return e;
}

static char *out_dir(const char *name) {
    char *path = file_join(dir, name);
    if (comm_rank(world) == 0) OK(file_make_dirs(path));
    comm_barrier(world);
    return path;
}

static void check_same_file(const char *a_dir, const char *b_dir, const char *name) {
    char *a_path = file_join(a_dir, name), *b_path = file_join(b_dir, name), *a, *b;
    size_t a_len, b_len;
    OK(file_read_all(a_path, 1 << 24, &a, &a_len));
    OK(file_read_all(b_path, 1 << 24, &b, &b_len));
    CHECK(a_len == b_len && !memcmp(a, b, a_len));
    free(a);
    free(b);
    free(a_path);
    free(b_path);
}

/* Any number of ranks, any dealing: the bytes of one rank. */
static void test_same_bytes(const layout *l, const char *out) {
    comm *alone;
    char *single = out_dir("single"), *single_parts = file_join(dir, "single/run/parts");
    OK(comm_split(world, comm_rank(world) == 0 ? 0 : -1, "alone", &alone));
    if (alone) OK(write_archive(alone, l, single, single_parts, 0));
    comm_destroy(&alone);
    comm_barrier(world);
    check_same_file(out, single, "manifest.json");
    for (int64_t p = 0; p < layout_parts(l); p++) {
        char name[64];
        snprintf(name, sizeof name, "tiny-%05d-of-%05d.tar", (int)p + 1, (int)layout_parts(l));
        check_same_file(out, single, name);
    }
    free(single);
    free(single_parts);
}

/* Read in place, every tensor has the bytes that were put. */
static void test_read_back(const layout *l, const char *out) {
    archive *a;
    hf_checkpoint *ck;
    archive_tally tally;
    CHECK(archive_is_one(out));
    OK(archive_open(world, out, &a));
    CHECK(fileset_count(archive_files(a)) == 4 + layout_parts(l));
    OK(archive_verify_bytes(world, a, &tally));
    CHECK(tally.tars == layout_parts(l) && tally.entries == 4 + layout_parts(l));
    OK(hf_checkpoint_open(world, archive_files(a), &ck));
    CHECK(hf_checkpoint_count(ck) == layout_count(l));
    for (int64_t u = 0; u < layout_units(l); u++) {
        int64_t first, count;
        char *blob = unit_blob(l, u);
        layout_unit_range(l, u, &first, &count);
        for (int64_t i = first; i < first + count; i++) {
            const layout_slot *s = layout_tensor(l, i);
            const hf_tensor *t = hf_checkpoint_find(ck, s->name);
            char *got = malloc(s->bytes);
            CHECK(t && hf_tensor_bytes(t) == s->bytes);
            OK(hf_checkpoint_read(ck, t, got, NULL));
            CHECK(!memcmp(got, blob + s->unit_offset, s->bytes));
            free(got);
        }
        free(blob);
    }
    llama_config cfg;
    loader_report report;
    OK(llama_config_parse(hf_checkpoint_config(ck), "config.json", &cfg));
    CHECK(!cfg.tied);
    OK(loader_rules_check(ck, &cfg, &report));
    OK(loader_report_err(&report));
    loader_report_clear(&report);
    cfg.kv_heads = 4; /* the tensors of another model */
    OK(loader_rules_check(ck, &cfg, &report));
    CHECK(report.n_fatal >= 3 * 2 && loader_report_err(&report).code == ERR_VERIFY);
    loader_report_clear(&report);
    hf_checkpoint_destroy(&ck);
    archive_close(&a);
}

/* A linear of the archive as codes and scales: what the packed words say, nibble by nibble. */
static void test_packed_read(const layout *l, const char *out) {
    archive *a;
    hf_checkpoint *ck;
    qmatrix *q;
    OK(archive_open(world, out, &a));
    OK(hf_checkpoint_open(world, archive_files(a), &ck));
    const form_scheme *how = &layout_opts(l)->linears;
    OK(form_read(ck, "model.layers.1.mlp.down_proj.weight", how, 32, 64, &q));
    CHECK(q->rows == 32 && q->cols == 64 && q->n_groups == 4);
    const layout_slot *s = layout_find_role(l, ROLE_DOWN, 1, form_part_slot(how->form, FORM_CODES));
    const layout_slot *z = layout_find_role(l, ROLE_DOWN, 1, form_part_slot(how->form, FORM_ZEROS));
    const layout_slot *f =
        layout_find_role(l, ROLE_DOWN, 1, form_part_slot(how->form, FORM_SCALES));
    char *blob = unit_blob(l, 2);
    const unsigned char *bytes = (unsigned char *)blob + s->unit_offset;
    for (int i = 0; i < 32 * 64; i++) CHECK(q->codes[i] == (bytes[i / 2] >> (i % 2 * 4) & 15));
    for (int i = 0; z && i < 32 * 4; i++) { /* word (row / 8, group), nibble row % 8 */
        int row = i / 4, group = i % 4;
        const unsigned char *word =
            (unsigned char *)blob + z->unit_offset + (row / 8 * 4 + group) * 4;
        CHECK(q->zeros[i] == (word[row % 8 / 2] >> (row % 2 * 4) & 15));
    }
    for (int i = 0; i < 32 * 4; i++) {
        uint32_t bits = 0;
        memcpy((char *)&bits + 2, blob + f->unit_offset + 2 * i, 2); /* little-endian bf16 */
        CHECK(!memcmp(&q->scales[i], &bits, 4));
    }
    free(blob);
    qmatrix_destroy(&q);
    hf_checkpoint_destroy(&ck);
    archive_close(&a);
}

static void flip_byte(const char *path, uint64_t offset) {
    if (comm_rank(world) == 0) {
        FILE *f = fopen(path, "r+b");
        char c;
        CHECK(f);
        OK(file_pread(fileno(f), path, &c, 1, offset));
        c ^= 1;
        OK(file_pwrite(fileno(f), path, &c, 1, offset));
        CHECK(fclose(f) == 0);
    }
    comm_barrier(world);
}

/* One flipped bit is found, in whichever entry, and the entry is named on every rank. */
static void test_flipped_bits(const layout *l, const char *out) {
    for (uint64_t round = 0; round < 6; round++) {
        archive *a;
        archive_tally tally;
        OK(archive_open(world, out, &a));
        const manifest *m = archive_manifest(a);
        const manifest_entry *x =
            &m->entries[rng_u64(5, RNG_TEST, round) % (uint64_t)(4 + layout_parts(l))];
        char *tar = file_join(out, m->tars[x->tar].file);
        uint64_t at = x->offset + rng_u64(6, RNG_TEST, round) % x->bytes;
        flip_byte(tar, at);
        err e = archive_verify_bytes(world, a, &tally);
        FAILS(e, ERR_VERIFY);
        CHECK(strstr(e.what, x->name) && strstr(e.what, x->sha256) && strstr(e.where, tar));
        flip_byte(tar, at);
        flip_byte(tar, x->offset + x->bytes); /* padding: only the tar's own hash sees it */
        e = archive_verify_bytes(world, a, &tally);
        FAILS(e, ERR_VERIFY);
        CHECK(strstr(e.what, m->tars[x->tar].sha256));
        flip_byte(tar, x->offset + x->bytes);
        OK(archive_verify_bytes(world, a, &tally));
        free(tar);
        archive_close(&a);
    }
}

/* Root replaces `from` in the manifest. */
static void edit_manifest(const char *out, const char *from, const char *to) {
    if (comm_rank(world) == 0) {
        char *path = file_join(out, "manifest.json"), *text, *next = NULL;
        size_t len;
        OK(file_read_all(path, 1 << 20, &text, &len));
        char *at = strstr(text, from);
        CHECK(at);
        int n = asprintf(&next, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
        OK(file_publish(path, next, (size_t)n));
        free(next);
        free(text);
        free(path);
    }
    comm_barrier(world);
}

static void test_damaged_folder(const char *out) {
    archive *a;
    char *tar = file_join(out, "tiny-00002-of-00005.tar"), *aside = file_join(out, "aside");
    if (comm_rank(world) == 0) OK(file_rename(tar, aside));
    comm_barrier(world);
    err e = archive_open(world, out, &a); /* missing part */
    FAILS(e, ERR_VERIFY);
    CHECK(strstr(e.where, "tiny-00002-of-00005.tar") && a == NULL);
    if (comm_rank(world) == 0) OK(file_rename(aside, tar));
    comm_barrier(world);

    edit_manifest(out, "tiny/tokenizer.json", "tiny/tokenizer2.json");
    e = archive_open(world, out, &a); /* an entry outside the manifest */
    FAILS(e, ERR_VERIFY);
    CHECK(strstr(e.what, "tokenizer.json"));
    edit_manifest(out, "tiny/tokenizer2.json", "tiny/tokenizer.json");
    edit_manifest(out, "\"name\": \"tiny\"", "\"name\": \"..\"");
    FAILS(archive_open(world, out, &a), ERR_VERIFY);
    edit_manifest(out, "\"name\": \"..\"", "\"name\": \"tiny\"");
    OK(archive_open(world, out, &a));
    archive_close(&a);
    FAILS(archive_open(world, dir, &a), ERR_INPUT); /* no manifest */
    free(tar);
    free(aside);
}

static void test_lone_tar(const char *out) {
    archive *a;
    char *tar = file_join(out, "tiny-00001-of-00005.tar"), *text;
    size_t len;
    CHECK(archive_is_one(tar));
    OK(archive_open(world, tar, &a));
    CHECK(archive_manifest(a) == NULL && fileset_count(archive_files(a)) == 5);
    OK(fileset_read_all(archive_files(a), "tokenizer.json", 100, &text, &len));
    CHECK(len == 19 && !memcmp(text, "{\"some\": \"tokens\"}\n", 19));
    free(text);
    archive_close(&a);
    free(tar);
}

/* A failed publish leaves no manifest and no tar; the next attempt succeeds over what is left. */
static void test_failed_publish(const layout *l) {
    char *out = out_dir("failed"), *parts = file_join(dir, "failed/run/parts");
    char *block = file_join(out, "tiny-00003-of-00005.tar/x"), *m = file_join(out, "manifest.json");
    if (comm_rank(world) == 0) OK(file_make_dirs(block)); /* a folder where a tar should go */
    comm_barrier(world);
    FAILS(write_archive(world, l, out, parts, 0), ERR_INPUT);
    char *first = file_join(out, "tiny-00001-of-00005.tar");
    CHECK(!file_exists(m) && !file_exists(first));
    comm_barrier(world);
    block[strlen(block) - 2] = 0;
    if (comm_rank(world) == 0) OK(file_remove_tree(block));
    comm_barrier(world);
    FAILS(write_archive(world, l, out, parts, 1), ERR_OK);
    CHECK(file_exists(m) && file_exists(first));
    comm_barrier(world);
    if (comm_rank(world) == 0) OK(archive_remove(out));
    comm_barrier(world);
    CHECK(!file_exists(m) && !file_exists(first));
    free(first);
    free(m);
    free(out);
    free(parts);
    free(block);
}

int main(int argc, char **argv) {
    char *made = NULL;
    size_t len = 0;
    world = ranks_start(&argc, &argv);
    strcpy(dir, "/tmp/test_archive.XXXXXX");
    if (comm_rank(world) == 0) {
        made = mkdtemp(dir);
        CHECK(made);
        len = strlen(dir);
    }
    comm_bcast_blob(world, (void **)&made, &len, 0);
    memcpy(dir, made, len + 1);
    if (comm_rank(world)) free(made);
    for (int symmetric = 0; symmetric < 2; symmetric++) {
        layout *l = make_layout(symmetric);
        char *out = out_dir(symmetric ? "sym" : "asym");
        char *parts = file_join(out, "run/parts");
        FAILS(write_archive(world, l, out, parts, 1), ERR_OK);
        test_same_bytes(l, out);
        test_read_back(l, out);
        test_packed_read(l, out);
        test_flipped_bits(l, out);
        test_damaged_folder(out);
        test_lone_tar(out);
        free(out);
        free(parts);
        layout_destroy(&l);
    }
    layout *l = make_layout(true);
    test_failed_publish(l);
    layout_destroy(&l);
    comm_barrier(world);
    const char *keep = getenv("SPINSHARD_TEST_KEEP");
    if (comm_rank(world) == 0 && !keep) OK(file_remove_tree(dir));
    return ranks_end();
}
