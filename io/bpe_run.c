/* Encodes one word: start with characters or bytes, then again and again apply the merge of least
 * rank, leftmost first. Short words scan all pairs; long ones keep candidates in a heap over a
 * linked list, O(n log n). Results of short words are cached. */
#include "io/bpe_internal.h"

#include "io/utf8.h"

#include <stdlib.h>

/* Words up to CACHED_WORD bytes are remembered, up to CACHE_WORDS of them, then all are forgotten:
 * memory stays small on a text of any size. */
enum { CACHED_WORD = 64, CACHE_WORDS = 1 << 17, FEW_SYMBOLS = 32 };

typedef struct known_word {
    uint64_t hash;
    uint32_t at, len; /* of the word in `words` */
    uint32_t ids, n;  /* of its ids in `word_ids`, counted in ids; n == 0 and len == 0: free */
} known_word;

/* A symbol of a long word, in a list by place; next == NONE: the last; gone: merged into its left.
 */
typedef struct symbol {
    int32_t id;
    uint32_t prev, next;
    bool gone;
} symbol;

static const uint32_t NONE = UINT32_MAX;

/* A merge that may be done: order is rank << 32 | place, so ties go to the left. */
typedef struct candidate {
    uint64_t order;
    int32_t id;
} candidate;

struct bpe_run {
    const bpe *b;    /* borrowed */
    growbuf *ids;    /* borrowed; the result */
    growbuf start;   /* int32_t; what a word begins as */
    growbuf symbols; /* symbol */
    growbuf heap;    /* candidate */
    growbuf spelled;
    known_word *cache;
    uint64_t mask, n_cached;
    growbuf words, word_ids;
    err failed;
};

static known_word *cache_slots(uint64_t n) {
    return calloc(n, sizeof(known_word));
}

err bpe_run_create(const bpe *b, growbuf *ids, bpe_run **out) {
    *out = NULL;
    bpe_run *r = calloc(1, sizeof *r);
    if (!r) return growbuf_full();
    *r = (bpe_run){.b = b, .ids = ids, .mask = 255, .failed = err_none()};
    r->cache = cache_slots(r->mask + 1);
    if (!r->cache) {
        bpe_run_destroy(&r);
        return growbuf_full();
    }
    *out = r;
    return err_none();
}

void bpe_run_destroy(bpe_run **r) {
    if (!*r) return;
    growbuf *all[] = {&(*r)->start, &(*r)->symbols,  &(*r)->heap,
                      &(*r)->words, &(*r)->word_ids, &(*r)->spelled};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) growbuf_clear(all[i]);
    free((*r)->cache);
    free(*r);
    *r = NULL;
}

err bpe_error(const bpe_run *r) {
    return r->failed;
}

static bool fail(bpe_run *r, err e) {
    r->failed = e;
    return false;
}

static bool put_ids(growbuf *to, const int32_t *ids, size_t n) {
    return growbuf_add(to, ids, n * sizeof *ids);
}

/* An unknown character. It is put only once the next known one comes, as the `tokenizers` package
 * does; the order shows where tokens of bytes stand between. */
static bool start_unknown(bpe_run *r, bool *pending) {
    const bpe *b = r->b;
    if (!*b->unk_name) return true; /* it vanishes */
    if (b->unk < 0)
        return fail(r, err_make(ERR_INPUT, "tokenizer", NULL,
                                "the token \"%s\" for unknown text is not in the vocabulary",
                                b->unk_name));
    if (*pending && !b->fuse_unk && !put_ids(&r->start, &b->unk, 1)) return fail(r, growbuf_full());
    *pending = true;
    return true;
}

static bool start_character(bpe_run *r, const char *p, size_t width, bool *pending) {
    const bpe *b = r->b;
    bool in_table = b->byte_level || width == 1;
    bpe_start found;
    const bpe_start *s = &found;
    if (in_table)
        s = &b->of_byte[(unsigned char)*p];
    else
        found = bpe_start_of(b, p, width);
    if (s->n == 0) return start_unknown(r, pending);
    if (*pending && s->direct) {
        if (!put_ids(&r->start, &b->unk, 1)) return fail(r, growbuf_full());
        *pending = false;
    }
    return put_ids(&r->start, s->ids, (size_t)s->n) || fail(r, growbuf_full());
}

/* Fill r->start with what the word begins as, before any merge. */
static bool start_word(bpe_run *r, const char *word, size_t len) {
    bool pending = false;
    r->start.len = 0;
    for (size_t i = 0, width; i < len; i += width) {
        width = r->b->byte_level ? 1 : utf8_width(word[i]);
        if (!start_character(r, word + i, width, &pending)) return false;
    }
    return !pending || put_ids(&r->start, &r->b->unk, 1) || fail(r, growbuf_full());
}

static void look_up(const bpe *b, const int32_t *ids, size_t i, uint32_t *rank, int32_t *to) {
    const bpe_merge *m = bpe_find_merge(b, ids[i], ids[i + 1]);
    rank[i] = m ? m->rank : NONE;
    to[i] = m ? m->id : -1;
}

/* Merge at most FEW_SYMBOLS ids in place; returns how many are left. */
static size_t merge_few(const bpe *b, int32_t *ids, size_t n) {
    uint32_t rank[FEW_SYMBOLS];
    int32_t to[FEW_SYMBOLS];
    for (size_t i = 0; i + 1 < n; i++) look_up(b, ids, i, rank, to);
    for (;;) {
        size_t best = 0;
        uint32_t least = NONE;
        for (size_t i = 0; i + 1 < n; i++) {
            if (rank[i] >= least) continue;
            least = rank[i];
            best = i;
        }
        if (least == NONE) return n;
        ids[best] = to[best];
        n--;
        for (size_t i = best + 1; i < n; i++) {
            ids[i] = ids[i + 1];
            rank[i] = rank[i + 1];
            to[i] = to[i + 1];
        }
        if (best > 0) look_up(b, ids, best - 1, rank, to);
        if (best + 1 < n) look_up(b, ids, best, rank, to);
    }
}

static bool heap_push(growbuf *heap, candidate c) {
    if (!growbuf_add(heap, &c, sizeof c)) return false;
    candidate *h = (candidate *)heap->data;
    size_t i = heap->len / sizeof c - 1;
    for (; i > 0 && h[(i - 1) / 2].order > c.order; i = (i - 1) / 2) h[i] = h[(i - 1) / 2];
    h[i] = c;
    return true;
}

/* The least candidate; the heap is not empty. */
static candidate heap_pop(growbuf *heap) {
    candidate *h = (candidate *)heap->data, top = h[0];
    heap->len -= sizeof top;
    size_t n = heap->len / sizeof top, i = 0;
    candidate last = h[n];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && h[child + 1].order < h[child].order) child++;
        if (h[child].order >= last.order) break;
        h[i] = h[child];
    }
    if (n) h[i] = last;
    return top;
}

/* Note that the symbol at `place` may merge with its right neighbour, where it may. */
static bool offer(bpe_run *r, uint32_t place) {
    const symbol *s = (const symbol *)r->symbols.data;
    if (place == NONE || s[place].next == NONE) return true;
    const bpe_merge *m = bpe_find_merge(r->b, s[place].id, s[s[place].next].id);
    return !m || heap_push(&r->heap, (candidate){(uint64_t)m->rank << 32 | place, m->id});
}

static bool list_symbols(bpe_run *r) {
    size_t n = r->start.len / sizeof(int32_t);
    const int32_t *ids = (const int32_t *)r->start.data;
    r->symbols.len = r->heap.len = 0;
    if (!growbuf_reserve(&r->symbols, n * sizeof(symbol))) return false;
    symbol *s = (symbol *)r->symbols.data;
    for (size_t i = 0; i < n; i++)
        s[i] = (symbol){ids[i], (uint32_t)i - 1, i + 1 < n ? (uint32_t)i + 1 : NONE, false};
    for (size_t i = 0; i < n; i++)
        if (!offer(r, (uint32_t)i)) return false;
    return true;
}

/* Merge any number of symbols, O(n log n), and append the ids. A candidate whose pair has changed
 * since it was offered no longer gives the same id: both symbols only ever grow. */
static bool merge_many(bpe_run *r) {
    if (r->start.len / sizeof(int32_t) >= NONE)
        return fail(
            r, err_make(ERR_INPUT, "text", "cut the text", "a word of more than 2^32 characters"));
    if (!list_symbols(r)) return fail(r, growbuf_full());
    symbol *s = (symbol *)r->symbols.data;
    while (r->heap.len) {
        candidate top = heap_pop(&r->heap);
        uint32_t place = (uint32_t)top.order, right = s[place].next;
        if (s[place].gone || right == NONE) continue;
        const bpe_merge *m = bpe_find_merge(r->b, s[place].id, s[right].id);
        if (!m || m->id != top.id) continue;
        s[place].id = top.id;
        s[place].next = s[right].next;
        s[right].gone = true;
        if (s[right].next != NONE) s[s[right].next].prev = place;
        if (!offer(r, s[place].prev) || !offer(r, place)) return fail(r, growbuf_full());
    }
    for (uint32_t i = 0; i != NONE; i = s[i].next)
        if (!put_ids(r->ids, &s[i].id, 1)) return fail(r, growbuf_full());
    return true;
}

/* The id of the whole word where it is a token, or -1. */
static int32_t whole_word(bpe_run *r, const char *word, size_t len) {
    if (!r->b->byte_level) return vocab_find(r->b->vocab, word, len);
    r->spelled.len = 0;
    for (size_t i = 0; i < len; i++) {
        char text[4];
        if (!growbuf_add(&r->spelled, text, bpe_spell_byte((unsigned char)word[i], text)))
            return -1;
    }
    return vocab_find(r->b->vocab, r->spelled.data, r->spelled.len);
}

static bool encode(bpe_run *r, const char *word, size_t len) {
    int32_t whole = r->b->ignore_merges ? whole_word(r, word, len) : -1;
    if (whole >= 0) return put_ids(r->ids, &whole, 1) || fail(r, growbuf_full());
    if (!start_word(r, word, len)) return false;
    size_t n = r->start.len / sizeof(int32_t);
    if (n == 0) return true;
    if (n > FEW_SYMBOLS) return merge_many(r);
    n = merge_few(r->b, (int32_t *)r->start.data, n);
    return put_ids(r->ids, (const int32_t *)r->start.data, n) || fail(r, growbuf_full());
}

static bool grow_cache(bpe_run *r) {
    if (r->n_cached >= CACHE_WORDS) {
        memset(r->cache, 0, (r->mask + 1) * sizeof *r->cache);
        r->n_cached = 0;
        r->words.len = r->word_ids.len = 0;
        return true;
    }
    uint64_t n = 4 * (r->mask + 1);
    known_word *old = r->cache, *cache = cache_slots(n);
    if (!cache) return false;
    for (uint64_t i = 0; i <= r->mask; i++) {
        if (old[i].len == 0) continue;
        uint64_t to = old[i].hash & (n - 1);
        while (cache[to].len) to = (to + 1) & (n - 1);
        cache[to] = old[i];
    }
    free(old);
    r->cache = cache;
    r->mask = n - 1;
    return true;
}

static bool cached_word(bpe_run *r, const char *word, size_t len) {
    if (len > CACHED_WORD) return encode(r, word, len);
    if (2 * r->n_cached > r->mask && !grow_cache(r)) return fail(r, growbuf_full());
    uint64_t hash = vocab_hash(word, len), i = hash & r->mask;
    for (; r->cache[i].len; i = (i + 1) & r->mask) {
        const known_word *k = &r->cache[i];
        if (k->hash == hash && k->len == len && memcmp(r->words.data + k->at, word, len) == 0)
            return k->n == 0 || put_ids(r->ids, (const int32_t *)r->word_ids.data + k->ids, k->n) ||
                   fail(r, growbuf_full());
    }
    size_t before = r->ids->len;
    if (!encode(r, word, len)) return false;
    size_t n = (r->ids->len - before) / sizeof(int32_t);
    known_word k = {hash, (uint32_t)r->words.len, (uint32_t)len,
                    (uint32_t)(r->word_ids.len / sizeof(int32_t)), (uint32_t)n};
    if (!growbuf_add(&r->words, word, len) ||
        !put_ids(&r->word_ids, (const int32_t *)(r->ids->data + before), n))
        return fail(r, growbuf_full());
    r->cache[i] = k;
    r->n_cached++;
    return true;
}

/* Bytes up to the next mark that follows another character, or len. */
static size_t next_cut(const char *word, size_t len) {
    size_t i = 0;
    while (len - i >= BPE_MARK_LEN && memcmp(word + i, BPE_MARK, BPE_MARK_LEN) == 0)
        i += BPE_MARK_LEN;
    const char *mark = memmem(word + i, len - i, BPE_MARK, BPE_MARK_LEN);
    return mark ? (size_t)(mark - word) : len;
}

bool bpe_word(void *run, const char *word, size_t len) {
    bpe_run *r = run;
    if (!r->b->cut_at_mark) return cached_word(r, word, len);
    for (size_t i = 0; i < len;) {
        size_t n = next_cut(word + i, len - i);
        if (!cached_word(r, word + i, n)) return false;
        i += n;
    }
    return true;
}
