/* A thin layer over the EVP interface of OpenSSL: failures of the library are aborts, since no
 * input can cause them; ranges are read and hashed in chunks. */
#include "base/sha256.h"

#include "base/file.h"

#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

struct sha256 {
    EVP_MD_CTX *ctx;
};

sha256 *sha256_create(void) {
    sha256 *h = malloc(sizeof *h);
    if (!h || !(h->ctx = EVP_MD_CTX_new()) || !EVP_DigestInit_ex(h->ctx, EVP_sha256(), NULL))
        abort();
    return h;
}

void sha256_add(sha256 *h, const void *data, size_t len) {
    if (!EVP_DigestUpdate(h->ctx, data, len)) abort();
}

void sha256_finish(sha256 **h, char hex[SHA256_HEX]) {
    unsigned char d[32];
    if (!EVP_DigestFinal_ex((*h)->ctx, d, NULL)) abort();
    for (int i = 0; i < 32; i++) snprintf(hex + 2 * i, 3, "%02x", d[i]);
    EVP_MD_CTX_free((*h)->ctx);
    free(*h);
    *h = NULL;
}

void sha256_of(const void *data, size_t len, char hex[SHA256_HEX]) {
    sha256 *h = sha256_create();
    sha256_add(h, data, len);
    sha256_finish(&h, hex);
}

err sha256_of_range(int fd, const char *path, uint64_t offset, uint64_t n, char hex[SHA256_HEX]) {
    enum { STEP = 256 << 10 }; /* many objects may be hashed at once, each by a thread */
    char *buf = malloc(STEP);
    if (!buf) abort();
    sha256 *h = sha256_create();
    err e = err_none();
    while (n && !e.code) {
        uint64_t take = n < STEP ? n : STEP;
        e = file_pread(fd, path, buf, take, offset);
        if (!e.code) sha256_add(h, buf, take);
        offset += take;
        n -= take;
    }
    sha256_finish(&h, hex);
    free(buf);
    return e;
}

err sha256_of_file(const char *path, char hex[SHA256_HEX]) {
    uint64_t bytes;
    int fd;
    hex[0] = 0;
    err e = file_open_read(path, &fd, &bytes);
    if (e.code) return e;
    e = sha256_of_range(fd, path, 0, bytes, hex);
    close(fd);
    return e;
}
