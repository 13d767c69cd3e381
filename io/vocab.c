/* Open addressing over a store of strings that lie behind each other; ids index the same store. */
#include "io/vocab.h"

#include "io/growbuf.h"

#include <inttypes.h>
#include <stdlib.h>

typedef struct slot {
    uint32_t hash; /* upper half; tells most strings apart without a look at them */
    int32_t id;    /* -1: free */
} slot;

/* Where the token of an id stands in the store; offset 0 is a lone NUL: no such id. */
typedef struct place {
    uint32_t at, len;
} place;

struct vocab {
    growbuf store;  /* the tokens, each with a NUL behind it */
    growbuf places; /* place, by id */
    slot *slots;
    uint64_t mask, n_used;
};

/* Multiply and fold, 16 bytes a turn; the constants are the golden ratio and the root of 3. */
static uint64_t mix(uint64_t a, uint64_t b) {
    unsigned __int128 m = (unsigned __int128)(a ^ 0x9e3779b97f4a7c15u) * (b ^ 0xbb67ae8584caa73bu);
    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

static uint64_t word_of(const char *p, size_t n) {
    uint64_t v = 0;
    memcpy(&v, p, n);
    return v;
}

uint64_t vocab_hash(const char *bytes, size_t len) {
    uint64_t h = len;
    for (; len > 16; bytes += 16, len -= 16) h = mix(h ^ word_of(bytes, 8), word_of(bytes + 8, 8));
    if (len >= 8) return mix(h ^ word_of(bytes, 8), word_of(bytes + len - 8, 8));
    if (len >= 4) return mix(h ^ word_of(bytes, 4), word_of(bytes + len - 4, 4));
    if (len == 0) return mix(h, 0);
    uint64_t few = (uint64_t)(unsigned char)bytes[0] |
                   (uint64_t)(unsigned char)bytes[len / 2] << 8 |
                   (uint64_t)(unsigned char)bytes[len - 1] << 16;
    return mix(h ^ few, 0);
}

static slot *free_slots(uint64_t n) {
    slot *s = malloc(n * sizeof *s);
    for (uint64_t i = 0; s && i < n; i++) s[i] = (slot){0, -1};
    return s;
}

vocab *vocab_create(size_t n_expected) {
    vocab *v = calloc(1, sizeof *v);
    uint64_t n = 64;
    while (n < 2 * (uint64_t)n_expected && n < (uint64_t)4 * VOCAB_MAX_ID) n *= 2;
    if (!v) return NULL;
    v->slots = free_slots(n);
    v->mask = n - 1;
    if (!v->slots || !growbuf_add(&v->store, "", 1)) vocab_destroy(&v);
    return v;
}

void vocab_destroy(vocab **v) {
    if (!*v) return;
    growbuf_clear(&(*v)->store);
    growbuf_clear(&(*v)->places);
    free((*v)->slots);
    free(*v);
    *v = NULL;
}

int64_t vocab_size(const vocab *v) {
    return (int64_t)(v->places.len / sizeof(place));
}

static const place *place_of(const vocab *v, int32_t id) {
    if (id < 0 || id >= vocab_size(v)) return NULL;
    const place *p = (const place *)v->places.data + id;
    return p->at ? p : NULL;
}

/* The slot that has the string, or the free one where it belongs. */
static slot *find_slot(const vocab *v, const char *bytes, size_t len, uint64_t hash) {
    for (uint64_t i = hash & v->mask;; i = (i + 1) & v->mask) {
        slot *s = &v->slots[i];
        if (s->id < 0) return s;
        if (s->hash != (uint32_t)(hash >> 32)) continue;
        const place *p = (const place *)v->places.data + s->id;
        if (p->len == len && memcmp(v->store.data + p->at, bytes, len) == 0) return s;
    }
}

static bool rehash(vocab *v) {
    uint64_t n = 2 * (v->mask + 1);
    slot *slots = free_slots(n);
    if (!slots) return false;
    free(v->slots);
    v->slots = slots;
    v->mask = n - 1;
    for (int64_t id = 0; id < vocab_size(v); id++) {
        const place *p = place_of(v, (int32_t)id);
        if (!p) continue;
        uint64_t hash = vocab_hash(v->store.data + p->at, p->len);
        uint64_t i = hash & v->mask;
        while (slots[i].id >= 0) i = (i + 1) & v->mask;
        slots[i] = (slot){(uint32_t)(hash >> 32), (int32_t)id};
    }
    return true;
}

static bool store(vocab *v, const char *token, size_t len, int32_t id) {
    size_t old = v->places.len, want = ((size_t)id + 1) * sizeof(place);
    if (want > old) {
        if (!growbuf_reserve(&v->places, want - old)) return false;
        memset(v->places.data + old, 0, want - old);
    }
    place p = {(uint32_t)v->store.len, (uint32_t)len};
    if (len > UINT32_MAX - 1 - v->store.len || !growbuf_add(&v->store, token, len + 1))
        return false;
    if (want > old) v->places.len = want;
    ((place *)v->places.data)[id] = p;
    return true;
}

err vocab_add(vocab *v, const char *token, int64_t id, const char *where) {
    if (id < 0 || id > VOCAB_MAX_ID)
        return err_make(ERR_INPUT, where, "fetch tokenizer.json again",
                        "token \"%.40s\" has the id %" PRId64 ", not in 0..%d", token, id,
                        VOCAB_MAX_ID);
    if (place_of(v, (int32_t)id))
        return err_make(ERR_INPUT, where, "fetch tokenizer.json again",
                        "id %" PRId64 " is given to \"%.40s\" and to \"%.40s\"", id,
                        vocab_token(v, (int32_t)id), token);
    if (2 * (v->n_used + 1) > v->mask && !rehash(v)) return growbuf_full();
    size_t len = strlen(token);
    uint64_t hash = vocab_hash(token, len);
    slot *s = find_slot(v, token, len, hash);
    if (s->id >= 0)
        return err_make(ERR_INPUT, where, "fetch tokenizer.json again",
                        "token \"%.40s\" is there twice", token);
    if (!store(v, token, len, (int32_t)id)) return growbuf_full();
    *s = (slot){(uint32_t)(hash >> 32), (int32_t)id};
    v->n_used++;
    return err_none();
}

int32_t vocab_find(const vocab *v, const char *bytes, size_t len) {
    return find_slot(v, bytes, len, vocab_hash(bytes, len))->id;
}

const char *vocab_token(const vocab *v, int32_t id) {
    const place *p = place_of(v, id);
    return p ? v->store.data + p->at : NULL;
}
