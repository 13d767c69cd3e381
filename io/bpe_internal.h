/* bpe_internal - what io/bpe.c (loading) and io/bpe_run.c (encoding) share. */
#ifndef SPINSHARD_IO_BPE_INTERNAL_H
#define SPINSHARD_IO_BPE_INTERNAL_H

#include "io/bpe.h"
#include "io/vocab.h"

typedef struct bpe_merge {
    uint64_t pair; /* bpe_pair; BPE_NO_PAIR: a free slot */
    uint32_t rank; /* place in the list; the lowest is merged first */
    int32_t id;    /* of the result */
} bpe_merge;

#define BPE_NO_PAIR UINT64_MAX

/* The ids that a character or a byte begins as; n == 0: unknown to the vocabulary. */
typedef struct bpe_start {
    int32_t ids[4];
    int n;
    bool direct; /* a token of its own, not those of its bytes */
} bpe_start;

struct bpe {
    vocab *vocab;
    bpe_merge *merges; /* open addressing, a power of two of slots */
    uint64_t mask;
    bpe_start of_byte[256];  /* byte-level: of each byte; else of ASCII characters */
    int32_t byte_token[256]; /* of "<0xHH>", or -1 */
    char unk_name[64];       /* "": none */
    int32_t unk;             /* id of unk_name, or -1 */
    bool byte_level, byte_fallback, fuse_unk, ignore_merges;
    bool cut_at_mark; /* words may be cut before a mark that follows another character */
};

/* U+2581, which stands for a space in vocabularies that come from sentencepiece. */
#define BPE_MARK "\xe2\x96\x81"
enum { BPE_MARK_LEN = 3 };

static inline uint64_t bpe_pair(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

/* Local. The merge of a pair, or NULL. */
static inline const bpe_merge *bpe_find_merge(const bpe *b, int32_t left, int32_t right) {
    uint64_t pair = bpe_pair(left, right);
    uint64_t i = (pair * 0x9e3779b97f4a7c15u) >> 20;
    for (;; i++) {
        const bpe_merge *m = &b->merges[i & b->mask];
        if (m->pair == pair) return m;
        if (m->pair == BPE_NO_PAIR) return NULL;
    }
}

/* Local. How the byte-level alphabet spells a byte; returns the bytes written. */
size_t bpe_spell_byte(unsigned byte, char to[4]);

/* Local. What one character begins as: its token, else its bytes' tokens, else nothing. */
bpe_start bpe_start_of(const bpe *b, const char *character, size_t width);

#endif
