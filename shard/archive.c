/* Manifest entries become ranges of the tar files in a fileset, after the headers of each tar were
 * walked and found to agree with it. Verification hashes all ranges, dealt to ranks. */
#include "shard/archive.h"

#include "base/file.h"
#include "shard/digest.h"
#include "shard/entry_names.h"
#include "shard/tar_read.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MAX_MANIFEST_BYTES = 64 << 20 };

struct archive {
    char *path;
    fileset *files;
    manifest *m; /* NULL for a tar alone */
};

static void *checked(void *p) {
    if (!p) abort();
    return p;
}

static bool is_tar_file(const char *path) {
    struct stat st;
    size_t n = strlen(path);
    return n > 4 && !strcmp(path + n - 4, ".tar") && stat(path, &st) == 0 && S_ISREG(st.st_mode);
}

bool archive_is_one(const char *path) {
    if (is_tar_file(path)) return true;
    char *m = file_join(path, "manifest.json");
    bool there = file_exists(m);
    free(m);
    return there;
}

/* Root only: the headers of a tar against the manifest. */

static err check_item(const manifest *m, int64_t t, const tar_item *x, const char *path) {
    static const char *const hint = "fetch the part again";
    int64_t i = manifest_find(m, entry_file(x->name));
    if (i < 0 || m->entries[i].tar != t || strcmp(m->entries[i].name, x->name))
        return err_make(ERR_VERIFY, path, hint, "the entry \"%s\" is not in the manifest", x->name);
    const manifest_entry *want = &m->entries[i];
    if (want->offset == x->offset && want->bytes == x->bytes) return err_none();
    return err_make(ERR_VERIFY, path, hint,
                    "the entry \"%s\" has %" PRIu64 " bytes at %" PRIu64
                    ", the manifest says %" PRIu64 " at %" PRIu64,
                    x->name, x->bytes, x->offset, want->bytes, want->offset);
}

static err check_tar_size(const manifest_tar *t, const char *path) {
    struct stat st;
    if (!file_exists(path))
        return err_make(ERR_VERIFY, path, "put all parts into one folder",
                        "a part of the archive is missing");
    if (stat(path, &st) != 0) return err_errno(path, "stat it");
    if ((uint64_t)st.st_size == t->bytes) return err_none();
    return err_make(ERR_VERIFY, path, "fetch the part again",
                    "%" PRIu64 " bytes, the manifest says %" PRIu64, (uint64_t)st.st_size,
                    t->bytes);
}

/* Items are distinct (tar_index_read), so as many as the manifest has, all in it, are all of it. */
static err check_tar(const manifest *m, int64_t t, const char *path) {
    tar_index items = {0};
    int64_t want = 0;
    err e = check_tar_size(&m->tars[t], path);
    if (!e.code) e = tar_index_read(path, &items);
    for (int64_t i = 0; i < m->n_entries; i++) want += m->entries[i].tar == t;
    for (int64_t i = 0; i < items.n && !e.code; i++) e = check_item(m, t, &items.items[i], path);
    if (!e.code && items.n != want)
        e = err_make(ERR_VERIFY, path, "fetch the part again",
                     "%" PRId64 " entries, the manifest lists %" PRId64, items.n, want);
    tar_index_clear(&items);
    return e;
}

static err read_folder(const char *dir, char **text, size_t *len) {
    char *path = file_join(dir, "manifest.json");
    manifest *m = NULL;
    err e = err_none();
    if (!file_exists(path))
        e = err_make(ERR_INPUT, dir, "a finished archive has one; let quantize end",
                     "there is no manifest.json");
    if (!e.code) e = file_read_all(path, MAX_MANIFEST_BYTES, text, len);
    if (!e.code) e = manifest_parse(*text, *len, path, &m);
    for (int64_t t = 0; m && t < m->n_tars && !e.code; t++) {
        char *tar = file_join(dir, m->tars[t].file);
        e = check_tar(m, t, tar);
        free(tar);
    }
    manifest_destroy(&m);
    free(path);
    return e;
}

/* The headers of a tar alone as text: [[file, offset, bytes], ...]. */
static err read_lone_tar(const char *path, char **text, size_t *len) {
    tar_index items;
    err e = tar_index_read(path, &items);
    if (e.code) return e;
    json_t *list = json_array();
    size_t folder = (size_t)(entry_file(items.items[0].name) - items.items[0].name);
    for (int64_t i = 0; i < items.n && !e.code; i++) {
        const tar_item *x = &items.items[i];
        if (strncmp(x->name, items.items[0].name, folder))
            e = err_make(ERR_VERIFY, path, NULL, "the entries \"%s\" and \"%s\" are in two folders",
                         items.items[0].name, x->name);
        json_array_append_new(list, json_pack("[s, I, I]", entry_file(x->name),
                                              (json_int_t)x->offset, (json_int_t)x->bytes));
    }
    if (!e.code) e = json_text(list, 0, text, len);
    json_decref(list);
    tar_index_clear(&items);
    return e;
}

/* All ranks: from the text that root sent. */

static err add_manifest_files(archive *a, const char *text, size_t len) {
    err e = manifest_parse(text, len, a->path, &a->m);
    for (int64_t i = 0; a->m && i < a->m->n_entries && !e.code; i++) {
        const manifest_entry *x = &a->m->entries[i];
        char *tar = file_join(a->path, a->m->tars[x->tar].file);
        e = fileset_add(a->files, entry_file(x->name), tar, x->offset, x->bytes);
        free(tar);
    }
    return e;
}

static err add_tar_files(archive *a, const char *text, size_t len) {
    json_t *list, *x;
    size_t i;
    err e = json_parse(text, len, a->path, &list);
    if (e.code) return e;
    json_array_foreach(list, i, x) {
        if (e.code) break;
        e = fileset_add(a->files, json_string_value(json_array_get(x, 0)), a->path,
                        (uint64_t)json_integer_value(json_array_get(x, 1)),
                        (uint64_t)json_integer_value(json_array_get(x, 2)));
    }
    json_decref(list);
    return e;
}

err archive_open(const comm *c, const char *path, archive **out) {
    char *text = NULL;
    size_t len = 0;
    int64_t lone = 0;
    err e = err_none();
    *out = NULL;
    if (comm_rank(c) == 0) {
        lone = is_tar_file(path);
        e = lone ? read_lone_tar(path, &text, &len) : read_folder(path, &text, &len);
    }
    e = comm_agree(c, e, "opening the archive", NULL);
    if (e.code) {
        free(text);
        return e;
    }
    comm_bcast(c, &lone, sizeof lone, 0);
    comm_bcast_blob(c, (void **)&text, &len, 0);
    archive *a = checked(calloc(1, sizeof *a));
    a->path = checked(strdup(path));
    e = fileset_create(path, &a->files);
    if (!e.code) e = lone ? add_tar_files(a, text, len) : add_manifest_files(a, text, len);
    free(text);
    e = comm_agree(c, e, "opening the archive", NULL);
    if (e.code)
        archive_close(&a);
    else
        *out = a;
    return e;
}

void archive_close(archive **a) {
    if (!*a) return;
    fileset_destroy(&(*a)->files);
    manifest_destroy(&(*a)->m);
    free((*a)->path);
    free(*a);
    *a = NULL;
}

const fileset *archive_files(const archive *a) {
    return a->files;
}
const manifest *archive_manifest(const archive *a) {
    return a->m;
}

/* Every byte back. */

static int compare_offset(const void *a, const void *b) {
    const manifest_entry *x = *(const manifest_entry *const *)a;
    const manifest_entry *y = *(const manifest_entry *const *)b;
    if (x->offset != y->offset) return x->offset < y->offset ? -1 : 1;
    return x->bytes < y->bytes ? -1 : x->bytes > y->bytes;
}

/* The entries of a tar in the order of the file; returns their number. */
static int64_t entries_of(const manifest *m, int64_t t, const manifest_entry **out) {
    int64_t n = 0;
    for (int64_t i = 0; i < m->n_entries; i++)
        if (m->entries[i].tar == t) out[n++] = &m->entries[i];
    qsort(out, (size_t)n, sizeof *out, compare_offset);
    return n;
}

/* Gives the same result on every rank. A damaged entry is named before its tar, since the tar's
 * hash differs whenever an entry's does. */
static err compare_tar(const manifest_tar *want, const digest_file *got,
                       const manifest_entry *const *entries) {
    static const char *const hint = "fetch the part again, or quantize again";
    int64_t n_bad = 0, first = 0;
    for (int64_t i = got->n_ranges - 1; i >= 0; i--)
        if (strcmp(got->ranges[i].sha256, entries[i]->sha256)) {
            n_bad++;
            first = i;
        }
    if (n_bad)
        return err_make(ERR_VERIFY, got->path, hint,
                        "the entry \"%.80s\" has sha256 %s, the manifest says %s (%" PRId64
                        " of %" PRId64 " entries differ)",
                        entries[first]->name, got->ranges[first].sha256, entries[first]->sha256,
                        n_bad, got->n_ranges);
    if (strcmp(got->sha256, want->sha256))
        return err_make(ERR_VERIFY, got->path, hint,
                        "it has sha256 %s, the manifest says %s; the entries are right, so it "
                        "differs between them",
                        got->sha256, want->sha256);
    return err_none();
}

static err compare_all(const manifest *m, const digest_file *files,
                       const manifest_entry *const *entries) {
    err e = err_none();
    for (int64_t t = 0; t < m->n_tars && !e.code; t++) {
        e = compare_tar(&m->tars[t], &files[t], entries);
        entries += files[t].n_ranges;
    }
    return e;
}

err archive_verify_bytes(const comm *c, const archive *a, archive_tally *tally) {
    const manifest *m = a->m;
    *tally = (archive_tally){0};
    if (!m)
        return err_make(ERR_USAGE, a->path, "verify the output folder",
                        "a tar alone has no hashes");
    digest_file *files = checked(calloc((size_t)m->n_tars, sizeof *files));
    digest_range *ranges = checked(calloc((size_t)m->n_entries, sizeof *ranges));
    const manifest_entry **entries = checked(calloc((size_t)m->n_entries, sizeof *entries));
    int64_t at = 0;
    for (int64_t t = 0; t < m->n_tars; t++) {
        int64_t n = entries_of(m, t, entries + at);
        for (int64_t i = at; i < at + n; i++)
            ranges[i] = (digest_range){.offset = entries[i]->offset, .bytes = entries[i]->bytes};
        files[t] = (digest_file){.path = file_join(a->path, m->tars[t].file),
                                 .bytes = m->tars[t].bytes,
                                 .ranges = ranges + at,
                                 .n_ranges = n};
        at += n;
        tally->bytes += m->tars[t].bytes;
    }
    tally->tars = m->n_tars;
    tally->entries = m->n_entries;
    err e = digest_files(c, files, m->n_tars);
    if (!e.code) e = comm_agree(c, compare_all(m, files, entries), "comparing hashes", NULL);
    for (int64_t t = 0; t < m->n_tars; t++) free((char *)files[t].path);
    free(files);
    free(ranges);
    free(entries);
    return e;
}

/* A manifest that cannot be read names nothing that could be removed with it. */
err archive_remove(const char *out_dir) {
    char *path = file_join(out_dir, "manifest.json"), *text = NULL;
    size_t len;
    manifest *m = NULL;
    err e = err_none();
    if (file_exists(path)) {
        err r = file_read_all(path, MAX_MANIFEST_BYTES, &text, &len);
        if (!r.code) r = manifest_parse(text, len, path, &m);
        if (unlink(path) != 0) e = err_errno(path, "remove it");
        if (!e.code) e = file_sync_dir(out_dir);
    }
    for (int64_t t = 0; m && t < m->n_tars && !e.code; t++) {
        char *tar = file_join(out_dir, m->tars[t].file);
        if (file_exists(tar) && unlink(tar) != 0) e = err_errno(tar, "remove it");
        free(tar);
    }
    manifest_destroy(&m);
    free(text);
    free(path);
    return e;
}
