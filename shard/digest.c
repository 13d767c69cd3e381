/* A chunk is hashed for the whole file and for the range it lies in while the next chunk is read.
 * Files are dealt to ranks in turn, and digests exchanged. */
#include "shard/digest.h"

#include "base/file.h"
#include "base/mem.h"
#include "base/size.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { CHUNK = 8 << 20, WORDS = (SHA256_HEX - 1) / 8 };

/* State of one pass over a file. */
typedef struct pass {
    digest_file *file;
    sha256 *whole;   /* NULL: not wanted */
    bool ranges;     /* wanted */
    int64_t at;      /* range at hand */
    sha256 *current; /* its state; NULL before its first byte */
} pass;

/* Empty ranges and ends of ranges are met here, so a range at the end of the file is closed too. */
static void add_to_ranges(pass *p, const char *data, uint64_t begin, uint64_t end) {
    while (p->at < p->file->n_ranges) {
        digest_range *r = &p->file->ranges[p->at];
        uint64_t from = r->offset > begin ? r->offset : begin;
        uint64_t r_end = r->offset + r->bytes, to = r_end < end ? r_end : end;
        if (r->offset > end || (r->offset == end && r->bytes)) return;
        if (!p->current) p->current = sha256_create();
        if (to > from) sha256_add(p->current, data + (from - begin), to - from);
        if (r_end > end) return;
        sha256_finish(&p->current, r->sha256);
        p->at++;
    }
}

/* While one chunk is hashed, twice, the next one is read, in two halves: so two threads have equal
 * work. */
static err run_pass(pass *p, int fd, char *buffers[2]) {
    uint64_t total = p->file->bytes, begin = 0, n = total < CHUNK ? total : CHUNK;
    const char *path = p->file->path;
    err e = file_pread(fd, path, buffers[0], n, 0);
    for (int turn = 0; !e.code; turn ^= 1) {
        uint64_t next = begin + n, left = total - next, n_next = left < CHUNK ? left : CHUNK;
        char *now = buffers[turn], *then = buffers[turn ^ 1];
        uint64_t from = begin, to = next, half = n_next / 2;
        err second = err_none();
#pragma omp parallel sections
        {
#pragma omp section
            if (p->whole) sha256_add(p->whole, now, to - from);
#pragma omp section
            if (p->ranges) add_to_ranges(p, now, from, to);
#pragma omp section
            e = file_pread(fd, path, then, half, to);
#pragma omp section
            second = file_pread(fd, path, then + half, n_next - half, to + half);
        }
        if (!e.code) e = second;
        if (n_next == 0) break;
        begin = next;
        n = n_next;
    }
    return e;
}

static err check_size(const digest_file *f, uint64_t bytes) {
    if (bytes == f->bytes) return err_none();
    return err_make(ERR_VERIFY, f->path, NULL, "%" PRIu64 " bytes, expected %" PRIu64, bytes,
                    f->bytes);
}

uint64_t digest_bytes(void) {
    return 2 * (uint64_t)CHUNK;
}

static err digest_one(digest_file *f, bool whole, bool ranges) {
    int fd;
    uint64_t bytes;
    char *buffer = NULL;
    err e = file_open_read(f->path, &fd, &bytes);
    if (e.code) return e;
    e = check_size(f, bytes);
    if (!e.code) e = MEM_NEW_UNSET(&buffer, 2 * CHUNK, "read buffers");
    if (!e.code) {
        pass p = {.file = f, .whole = whole ? sha256_create() : NULL, .ranges = ranges};
        char hex[SHA256_HEX];
        e = run_pass(&p, fd, (char *[2]){buffer, buffer + CHUNK});
        if (whole) sha256_finish(&p.whole, f->sha256);
        if (p.current) sha256_finish(&p.current, hex); /* of a failed pass */
    }
    mem_free(buffer);
    close(fd);
    return e;
}

/* With files enough each is read once by one rank; with fewer, a file's two kinds of hashes are
 * taken by two ranks. */
static err digest_own(const comm *c, digest_file *files, int64_t n) {
    int64_t rank = comm_rank(c), size = comm_size(c);
    err e = err_none();
    for (int64_t i = 0; i < n && !e.code; i++) {
        bool whole = (n < size ? 2 * i : i) % size == rank;
        bool ranges = (n < size ? 2 * i + 1 : i) % size == rank;
        if (whole || ranges) e = digest_one(&files[i], whole, ranges);
    }
    return e;
}

static int64_t count_hashes(const digest_file *files, int64_t n) {
    int64_t sum = n;
    for (int64_t i = 0; i < n; i++) sum += files[i].n_ranges;
    return sum;
}

/* Walk all hashes in one order: copy them to the words, or back. */
static void move_hashes(digest_file *files, int64_t n, int64_t *words, bool out) {
    for (int64_t i = 0; i < n; i++)
        for (int64_t k = -1; k < files[i].n_ranges; k++, words += WORDS) {
            char *hex = k < 0 ? files[i].sha256 : files[i].ranges[k].sha256;
            if (out)
                memcpy(words, hex, SHA256_HEX - 1);
            else
                memcpy(hex, words, SHA256_HEX - 1);
        }
}

err digest_files(const comm *c, digest_file *files, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        memset(files[i].sha256, 0, SHA256_HEX);
        for (int64_t k = 0; k < files[i].n_ranges; k++)
            memset(files[i].ranges[k].sha256, 0, SHA256_HEX);
    }
    int64_t n_words = count_hashes(files, n) * WORDS, *words = NULL;
    err e = MEM_NEW(&words, n_words, "hashes");
    if (!e.code) e = digest_own(c, files, n);
    e = comm_agree(c, e, "reading the archive back", NULL);
    if (!e.code) { /* one rank has each hash, the others zeros: the sum is a union */
        move_hashes(files, n, words, true);
        comm_sum_i64(c, words, n_words);
        move_hashes(files, n, words, false);
    }
    mem_free(words);
    return e;
}
