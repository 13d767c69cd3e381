/* Every rank computes the same plan of offsets, so ranks write with pwrite side by side without
 * talking. At the end each file is flushed, read back and hashed; rank 0 renames the tars and
 * publishes the manifest last. */
#include "shard/archive_writer.h"

#include "base/fault.h"
#include "base/file.h"
#include "base/mem.h"
#include "shard/archive.h"
#include "shard/digest.h"
#include "shard/tar_write.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One tar: small files (part 0 only), then the shard. */
typedef struct part {
    tar_plan *plan;
    char *file;           /* base name of the tar */
    char *partial;        /* path while it is written */
    char *published;      /* path in the output folder */
    uint64_t data_offset; /* of the shard's data section in the tar */
    int fd;               /* -1 until this rank writes to it */
} part;

/* Bytes of a write that the disk may begin with at once. */
enum { WRITEBACK_FROM = 1 << 20 };

struct archive_writer {
    const comm *c;
    const layout *l;
    char *name, *out_dir, *parts_dir;
    part *parts;
    int64_t n_parts;
};

static void *checked(void *p) {
    if (!p) abort();
    return p;
}

/* Names and sizes of the small files from root to all ranks, so that all can plan part 0. */
static json_t *share_small_list(const comm *c, const small_files *files) {
    char *text = NULL;
    size_t len = 0;
    json_t *list = json_array();
    if (comm_rank(c) == 0) {
        for (int64_t i = 0; i < files->n; i++)
            json_array_append_new(
                list, json_pack("[s, I]", files->files[i].name, (json_int_t)files->files[i].bytes));
        text = checked(json_dumps(list, 0));
        len = strlen(text);
    }
    json_decref(list);
    comm_bcast_blob(c, (void **)&text, &len, 0);
    list = json_loadb(text, len, 0, NULL);
    free(text);
    return checked(list);
}

static err plan_part(archive_writer *w, int64_t p, const json_t *small) {
    char shard[64], *header = NULL;
    size_t header_len = 0, n_small = p == 0 ? json_array_size(small) : 0;
    tar_entry *entries = checked(calloc(n_small + 1, sizeof *entries));
    layout_shard_name(w->l, p, shard);
    err e = layout_shard_header(w->l, p, &header, &header_len);
    for (size_t i = 0; i <= n_small; i++) {
        const json_t *x = i < n_small ? json_array_get(small, i) : NULL;
        const char *base = x ? json_string_value(json_array_get(x, 0)) : shard;
        entries[i].name = file_join(w->name, base);
        entries[i].bytes = x ? (uint64_t)json_integer_value(json_array_get(x, 1))
                             : header_len + layout_part_bytes(w->l, p);
    }
    if (!e.code) e = tar_plan_create(entries, (int64_t)n_small + 1, &w->parts[p].plan);
    if (!e.code)
        w->parts[p].data_offset = tar_plan_offset(w->parts[p].plan, (int64_t)n_small) + header_len;
    for (size_t i = 0; i <= n_small; i++) free((char *)entries[i].name);
    free(entries);
    free(header);
    return e;
}

static void name_part(archive_writer *w, int64_t p) {
    part *x = &w->parts[p];
    if (asprintf(&x->file, "%s-%05" PRId64 "-of-%05" PRId64 ".tar", w->name, p + 1, w->n_parts) <
            0 ||
        asprintf(&x->partial, "%s/%s.partial", w->parts_dir, x->file) < 0)
        abort();
    x->published = file_join(w->out_dir, x->file);
    x->fd = -1;
}

/* Opened by whoever writes first. */
static err open_part(part *x) {
    err e = err_none();
#pragma omp critical(archive_open_part)
    if (x->fd < 0) {
        x->fd = fault_hit("open") ? -1 : open(x->partial, O_WRONLY | O_CLOEXEC);
        if (x->fd < 0) e = err_errno(x->partial, "open it for writing");
    }
    return e;
}

static err write_shard_header(archive_writer *w, int64_t p) {
    part *x = &w->parts[p];
    char *header;
    size_t len;
    err e = layout_shard_header(w->l, p, &header, &len);
    if (!e.code) e = open_part(x);
    if (!e.code) e = file_pwrite(x->fd, x->partial, header, len, x->data_offset - len);
    free(header);
    return e;
}

/* Root only. All but the tensors. */
static err write_frames(archive_writer *w, const small_files *files) {
    err e = file_make_dirs(w->parts_dir);
    for (int64_t p = 0; p < w->n_parts && !e.code; p++) {
        e = tar_plan_write_frame(w->parts[p].plan, w->parts[p].partial);
        if (!e.code) e = write_shard_header(w, p);
    }
    part *first = &w->parts[0];
    for (int64_t i = 0; i < files->n && !e.code; i++)
        e = file_pwrite(first->fd, first->partial, files->files[i].data, files->files[i].bytes,
                        tar_plan_offset(first->plan, i));
    return e;
}

static void remove_partials(const archive_writer *w) {
    for (int64_t p = 0; p < w->n_parts; p++) unlink(w->parts[p].partial);
}

err archive_writer_create(const comm *c, const layout *l, const small_files *files,
                          const char *name, const char *out_dir, const char *parts_dir,
                          archive_writer **out) {
    *out = NULL;
    archive_writer *w = checked(calloc(1, sizeof *w));
    *w = (archive_writer){.c = c, .l = l, .n_parts = layout_parts(l)};
    w->name = checked(strdup(name));
    w->out_dir = checked(strdup(out_dir));
    w->parts_dir = checked(strdup(parts_dir));
    w->parts = checked(calloc((size_t)w->n_parts, sizeof *w->parts));
    json_t *small = share_small_list(c, files);
    err e = err_none();
    for (int64_t p = 0; p < w->n_parts; p++) name_part(w, p);
    for (int64_t p = 0; p < w->n_parts && !e.code; p++) e = plan_part(w, p, small);
    json_decref(small);
    e = comm_agree(c, e, "planning the archive", NULL);
    if (!e.code && comm_rank(c) == 0) {
        e = write_frames(w, files);
        if (e.code) remove_partials(w);
    }
    e = comm_agree(c, e, "making room for the archive", NULL);
    if (e.code)
        archive_writer_destroy(&w);
    else
        *out = w;
    return e;
}

void archive_writer_destroy(archive_writer **pw) {
    archive_writer *w = *pw;
    if (!w) return;
    for (int64_t p = 0; p < w->n_parts; p++) {
        part *x = &w->parts[p];
        if (x->fd >= 0) close(x->fd);
        tar_plan_destroy(&x->plan);
        free(x->file);
        free(x->partial);
        free(x->published);
    }
    free(w->parts);
    free(w->name);
    free(w->out_dir);
    free(w->parts_dir);
    free(w);
    *pw = NULL;
}

err archive_writer_put(archive_writer *w, int64_t i, uint64_t begin, const void *data, uint64_t n) {
    const layout_slot *s = layout_tensor(w->l, i);
    part *x = &w->parts[s->part];
    if (begin > s->bytes || n > s->bytes - begin)
        return err_make(ERR_BUG, s->name, NULL, "bytes written beyond the tensor");
    const uint64_t at = x->data_offset + s->part_offset + begin;
    err e = open_part(x);
    if (!e.code) e = file_pwrite(x->fd, x->partial, data, n, at);
    if (!e.code && n >= WRITEBACK_FROM) file_begin_sync(x->fd, at, n);
    return e;
}

err archive_writer_put_unit(archive_writer *w, int64_t unit, const void *blob) {
    int64_t first, count;
    err e = err_none();
    layout_unit_range(w->l, unit, &first, &count);
    for (int64_t i = first; i < first + count && !e.code; i++) {
        const layout_slot *s = layout_tensor(w->l, i);
        e = archive_writer_put(w, i, 0, (const char *)blob + s->unit_offset, s->bytes);
    }
    return e;
}

/* Local. Closed too: on network file systems that is what others' opens wait for. */
static err flush_own(archive_writer *w) {
    err e = err_none();
    for (int64_t p = 0; p < w->n_parts; p++) {
        part *x = &w->parts[p];
        if (x->fd < 0) continue;
        if (!e.code) e = file_sync(x->fd, x->partial);
        err c = file_close(x->fd, x->partial);
        if (!e.code) e = c;
        x->fd = -1;
    }
    return e;
}

/* Collective. Hashes of all tars and entries on every rank. Caller frees both. */
static err read_back(const archive_writer *w, digest_file **files, digest_range **ranges) {
    int64_t n = 0;
    for (int64_t p = 0; p < w->n_parts; p++) n += tar_plan_count(w->parts[p].plan);
    digest_file *f = checked(calloc((size_t)w->n_parts, sizeof *f));
    digest_range *r = checked(calloc((size_t)n, sizeof *r));
    *files = f;
    *ranges = r;
    for (int64_t p = 0; p < w->n_parts; p++, f++) {
        const tar_plan *plan = w->parts[p].plan;
        *f = (digest_file){.path = w->parts[p].partial,
                           .bytes = tar_plan_total(plan),
                           .ranges = r,
                           .n_ranges = tar_plan_count(plan)};
        for (int64_t i = 0; i < f->n_ranges; i++, r++)
            *r = (digest_range){.offset = tar_plan_offset(plan, i),
                                .bytes = tar_plan_bytes(plan, i)};
    }
    return digest_files(w->c, *files, w->n_parts);
}

/* Root only. */
static manifest *make_manifest(const archive_writer *w, const manifest *about,
                               const digest_file *files) {
    int64_t n = 0, at = 0;
    for (int64_t p = 0; p < w->n_parts; p++) n += files[p].n_ranges;
    manifest *m = manifest_create(w->name, about->n_shards, w->n_parts, n);
    m->architecture = checked(strdup(about->architecture ? about->architecture : ""));
    m->recipe = json_incref(about->recipe);
    for (int64_t i = 0; i < m->n_shards; i++) {
        m->shards[i] = about->shards[i];
        m->shards[i].file = checked(strdup(about->shards[i].file));
    }
    for (int64_t p = 0; p < w->n_parts; p++) {
        m->tars[p].file = checked(strdup(w->parts[p].file));
        m->tars[p].bytes = files[p].bytes;
        memcpy(m->tars[p].sha256, files[p].sha256, SHA256_HEX);
        for (int64_t i = 0; i < files[p].n_ranges; i++, at++) {
            const digest_range *r = &files[p].ranges[i];
            m->entries[at] = (manifest_entry){.tar = p, .offset = r->offset, .bytes = r->bytes};
            m->entries[at].name = checked(strdup(tar_plan_name(w->parts[p].plan, i)));
            memcpy(m->entries[at].sha256, r->sha256, SHA256_HEX);
        }
    }
    return m;
}

/* A manifest that its reader would refuse must not be published. */
static err checked_text(const manifest *m, char **text, size_t *len) {
    manifest *again = NULL;
    err e = manifest_text(m, text, len);
    if (!e.code) e = manifest_parse(*text, *len, "the new manifest", &again);
    if (e.code && e.code != ERR_NOFIT) e.code = ERR_BUG;
    manifest_destroy(&again);
    return e;
}

/* Root only. The manifest last: until it stands there, there is no archive. What was moved is taken
 * back after a failure. */
static err publish(const archive_writer *w, const manifest *m) {
    char *text = NULL, *path = file_join(w->out_dir, "manifest.json");
    size_t len = 0;
    int64_t moved = 0;
    err e = checked_text(m, &text, &len);
    if (!e.code) e = archive_remove(w->out_dir);
    for (; moved < w->n_parts && !e.code; moved++)
        e = file_rename(w->parts[moved].partial, w->parts[moved].published);
    if (!e.code) e = file_sync_dir(w->out_dir);
    if (!e.code) e = file_publish(path, text, len);
    if (e.code && moved) {
        unlink(path);
        for (int64_t p = 0; p < moved; p++) unlink(w->parts[p].published);
    }
    free(text);
    free(path);
    return e;
}

err archive_writer_finish(archive_writer *w, const manifest *about) {
    digest_file *files = NULL;
    digest_range *ranges = NULL;
    err e = comm_agree(w->c, flush_own(w), "writing the archive", NULL);
    if (!e.code) e = read_back(w, &files, &ranges);
    if (!e.code) {
        if (comm_rank(w->c) == 0) {
            manifest *m = make_manifest(w, about, files);
            e = publish(w, m);
            manifest_destroy(&m);
        }
        e = comm_agree(w->c, e, "publishing the archive", NULL);
    }
    free(files);
    free(ranges);
    return e;
}
