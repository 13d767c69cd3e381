/* Rank 0 reads config, index and headers and broadcasts their texts; every rank parses them, so
 * all know every tensor. Names are found by binary search. Descriptors of shards are opened on
 * demand and the oldest closed. */
#include "io/hf_checkpoint.h"

#include "base/file.h"
#include "base/log.h"
#include "base/size.h"
#include "io/safetensors.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const SINGLE = "model.safetensors";
static const char *const INDEX = "model.safetensors.index.json";

enum {
    MAX_CONFIG_BYTES = 16 << 20,
    MAX_INDEX_BYTES = 64 << 20,
    MAX_OPEN = 32,        /* shards open at once, well below any limit on files */
    PIECE_BYTES = 4 << 20 /* hashed while in cache, while the kernel reads the next */
};

typedef struct shard {
    char *name;
    char *where;      /* for messages: the path, and the name where that is not its end */
    const char *path; /* borrowed from the file set */
    uint64_t offset, bytes;
    st_header *header;
    int fd; /* -1: not open */
} shard;

typedef struct alias {
    const char *name; /* borrowed from the header */
    const hf_tensor *tensor;
} alias;

/* A cache behind the const of reading calls. */
typedef struct open_files {
    int ring[MAX_OPEN]; /* shards in the order in which they were opened */
    uint64_t n_opened;
} open_files;

struct hf_checkpoint {
    const fileset *fs;
    char *config_text;
    size_t config_len;
    char config_sha256[SHA256_HEX];
    json_t *config;
    json_t *index; /* NULL: one file without an index */
    shard *shards; /* sorted by name */
    int n_shards;
    open_files *open;
    hf_tensor *tensors; /* sorted by name */
    int64_t n_tensors;
    alias *aliases; /* sorted by name */
    int64_t n_aliases;
    uint64_t bytes;
};

/* What an index says otherwise than the shards, without harm. */
typedef struct oddities {
    int64_t unnamed;          /* tensors of shards that the index does not name */
    int64_t absent;           /* names that no shard has */
    const char *first_absent; /* borrowed from the index */
} oddities;

static err no_memory(const hf_checkpoint *ck) {
    return err_make(ERR_NOFIT, fileset_where(ck->fs), NULL, "no memory for the list of tensors");
}

static bool ends_with(const char *name, const char *end) {
    size_t n = strlen(name), m = strlen(end);
    return n >= m && !strcmp(name + n - m, end);
}

/* The first file of the folder with this ending, or NULL. */
static const char *file_ending(const fileset *fs, const char *end) {
    for (int i = 0; i < fileset_count(fs); i++)
        if (ends_with(fileset_name(fs, i), end)) return fileset_name(fs, i);
    return NULL;
}

static err no_weights(const fileset *fs) {
    static const char *const NAMES[] = {SINGLE, INDEX};
    for (int i = 0; i < 2; i++)
        if (fileset_is_dangling(fs, NAMES[i]))
            return err_make(ERR_INPUT, fileset_where(fs), "fetch the model again",
                            "%s is a link to a file that is not there", NAMES[i]);
    static const char *const PICKLES[] = {".bin", ".pt", ".pth", ".ckpt"};
    for (size_t i = 0; i < sizeof PICKLES / sizeof PICKLES[0]; i++) {
        const char *name = file_ending(fs, PICKLES[i]);
        if (!name) continue;
        return err_make(ERR_INPUT, fileset_where(fs),
                        "convert it once with transformers: "
                        "AutoModelForCausalLM.from_pretrained(DIR, dtype=\"auto\")"
                        ".save_pretrained(NEW_DIR, safe_serialization=True)",
                        "%.120s is a pickled file, which can run code when it is opened; only "
                        "safetensors are read",
                        name);
    }
    const char *gguf = file_ending(fs, ".gguf");
    if (gguf)
        return err_make(ERR_INPUT, fileset_where(fs),
                        "take the original checkpoint in safetensors form",
                        "%.120s: GGUF files are not read", gguf);
    if (fileset_find(fs, "adapter_config.json", NULL, NULL, NULL))
        return err_make(ERR_INPUT, fileset_where(fs),
                        "merge it with peft: merge_and_unload(), then save_pretrained(NEW_DIR)",
                        "holds an adapter (adapter_config.json), not the model that it changes");
    const char *other = file_ending(fs, ".safetensors");
    return err_make(ERR_INPUT, fileset_where(fs), "give the folder of a Hugging Face model",
                    other ? "neither %s nor %s; %.120s alone does not say what it is part of"
                          : "neither %s nor %s is there",
                    SINGLE, INDEX, other);
}

/* Collective on c. */
static err read_config(const comm *c, hf_checkpoint *ck) {
    err e = fileset_read_shared(c, ck->fs, "config.json", MAX_CONFIG_BYTES, &ck->config_text,
                                &ck->config_len);
    if (e.code) return e;
    sha256_of(ck->config_text, ck->config_len, ck->config_sha256);
    e = json_parse_foreign(ck->config_text, ck->config_len, "config.json", &ck->config);
    if (!e.code && !json_is_object(ck->config))
        e = err_make(ERR_INPUT, "config.json", NULL, "not a JSON object");
    return err_at(e, fileset_where(ck->fs));
}

static int by_text(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static err add_shard(hf_checkpoint *ck, const char *name) {
    shard *s = &ck->shards[ck->n_shards];
    if (!fileset_find(ck->fs, name, &s->path, &s->offset, &s->bytes))
        return err_make(ERR_INPUT, fileset_where(ck->fs),
                        "fetch the model again: most tools go on where they stopped",
                        "shard %.200s is missing, or is not a regular file", name);
    s->fd = -1;
    ck->n_shards++;
    bool plain = ends_with(s->path, name);
    s->name = strdup(name);
    if (!s->name || asprintf(&s->where, plain ? "%s" : "%s: %s", s->path, name) < 0) {
        s->where = NULL;
        return no_memory(ck);
    }
    return err_none();
}

/* Shard names come from outside: base names only, so that none leads out of the folder. */
static err names_of_index(const hf_checkpoint *ck, const json_t *map, const char **names) {
    const char *tensor;
    json_t *v;
    size_t n = 0;
    json_object_foreach((json_t *)map, tensor, v) {
        const char *name = json_string_value(v);
        if (!name)
            return err_make(ERR_INPUT, fileset_where(ck->fs), NULL,
                            "%s: the shard of %.160s is not a text", INDEX, tensor);
        if (!file_is_base_name(name))
            return err_make(ERR_INPUT, fileset_where(ck->fs),
                            "shards must lie in the folder of the model",
                            "%s: \"%.160s\" is not a plain file name", INDEX, name);
        names[n++] = name;
    }
    qsort(names, n, sizeof *names, by_text);
    return err_none();
}

static err shards_of_index(hf_checkpoint *ck) {
    const json_t *map = json_object_get(ck->index, "weight_map");
    size_t n = json_object_size(map);
    if (!json_is_object(map) || n == 0)
        return err_make(ERR_INPUT, fileset_where(ck->fs), NULL,
                        "%s: weight_map must be an object that names tensors", INDEX);
    const char **names = calloc(n, sizeof *names);
    if (!names) return no_memory(ck);
    err e = names_of_index(ck, map, names);
    size_t distinct = 0;
    for (size_t i = 0; i < n && !e.code; i++)
        if (i == 0 || strcmp(names[i], names[i - 1])) names[distinct++] = names[i];
    if (!e.code && distinct > 100000)
        e = err_make(ERR_INPUT, fileset_where(ck->fs), NULL, "%s: too many shards", INDEX);
    if (!e.code && !(ck->shards = calloc(distinct, sizeof *ck->shards))) e = no_memory(ck);
    for (size_t i = 0; i < distinct && !e.code; i++) e = add_shard(ck, names[i]);
    free(names);
    return e;
}

/* Collective on c. */
static err list_shards(const comm *c, hf_checkpoint *ck) {
    if (fileset_find(ck->fs, SINGLE, NULL, NULL, NULL)) {
        if (!(ck->shards = calloc(1, sizeof *ck->shards))) return no_memory(ck);
        return add_shard(ck, SINGLE);
    }
    if (!fileset_find(ck->fs, INDEX, NULL, NULL, NULL)) return no_weights(ck->fs);
    char *text;
    size_t len;
    err e = fileset_read_shared(c, ck->fs, INDEX, MAX_INDEX_BYTES, &text, &len);
    if (e.code) return e;
    e = err_at(json_parse(text, len, INDEX, &ck->index), fileset_where(ck->fs));
    free(text);
    return e.code ? e : shards_of_index(ck);
}

static err open_shard(const hf_checkpoint *ck, int i) {
    shard *s = &ck->shards[i];
    uint64_t size;
    if (s->fd >= 0) return err_none();
    err e = file_open_read(s->path, &s->fd, &size);
    if (e.code) return e;
    if (s->offset <= size && s->bytes <= size - s->offset) {
        posix_fadvise(s->fd, (off_t)s->offset, (off_t)s->bytes, POSIX_FADV_SEQUENTIAL);
        return e;
    }
    close(s->fd);
    s->fd = -1;
    return err_make(ERR_INPUT, s->path, NULL, "shorter than when it was listed");
}

static void close_shard(shard *s) {
    if (s->fd >= 0) close(s->fd);
    s->fd = -1;
}

/* The descriptor of a shard; the one opened longest ago makes room. */
static err shard_fd(const hf_checkpoint *ck, int i, int *fd) {
    open_files *o = ck->open;
    bool was_open = ck->shards[i].fd >= 0;
    if (!was_open && o->n_opened >= MAX_OPEN)
        close_shard(&ck->shards[o->ring[o->n_opened % MAX_OPEN]]);
    err e = open_shard(ck, i);
    *fd = ck->shards[i].fd;
    if (!e.code && !was_open) o->ring[o->n_opened++ % MAX_OPEN] = i;
    return e;
}

/* Root only. */
static err read_header_texts(const hf_checkpoint *ck, char **texts, size_t *lens) {
    for (int i = 0; i < ck->n_shards; i++) {
        const shard *s = &ck->shards[i];
        int fd;
        err e = shard_fd(ck, i, &fd);
        if (!e.code)
            e = st_header_read_text(fd, s->where, s->offset, s->bytes, &texts[i], &lens[i]);
        if (e.code) return e;
    }
    return err_none();
}

/* Collective on c. Reading has one voice; parsing is the same work on the same bytes everywhere. */
static err share_headers(const comm *c, hf_checkpoint *ck, char **texts, size_t *lens) {
    err e = comm_rank(c) == 0 ? read_header_texts(ck, texts, lens) : err_none();
    e = comm_agree(c, e, "reading the headers of the shards", NULL);
    if (e.code) return e;
    for (int i = 0; i < ck->n_shards; i++) comm_bcast_blob(c, (void **)&texts[i], &lens[i], 0);
    for (int i = 0; i < ck->n_shards && !e.code; i++) {
        shard *s = &ck->shards[i];
        e = st_header_parse(texts[i], lens[i], s->bytes - 8 - lens[i], s->where, &s->header);
    }
    return e;
}

/* Collective on c. */
static err read_headers(const comm *c, hf_checkpoint *ck) {
    char **texts = calloc((size_t)ck->n_shards, sizeof *texts);
    size_t *lens = calloc((size_t)ck->n_shards, sizeof *lens);
    err e = comm_agree(c, texts && lens ? err_none() : no_memory(ck), "the headers", NULL);
    if (!e.code) e = share_headers(c, ck, texts, lens);
    for (int i = 0; texts && i < ck->n_shards; i++) free(texts[i]);
    free(texts);
    free(lens);
    return e;
}

/* The shard that the index gives for a name; without an index there is one shard. NULL: not named.
 */
static const char *shard_by_index(const hf_checkpoint *ck, const char *name) {
    if (!ck->index) return ck->shards[0].name;
    return json_string_value(json_object_get(json_object_get(ck->index, "weight_map"), name));
}

/* Every tensor of every shard that belongs to the checkpoint; *unnamed counts those that the index
 * does not know. */
static err collect_tensors(hf_checkpoint *ck, int64_t *unnamed) {
    int64_t n = 0;
    for (int s = 0; s < ck->n_shards; s++) n += st_header_count(ck->shards[s].header);
    ck->tensors = calloc((size_t)n + 1, sizeof *ck->tensors);
    if (!ck->tensors) return no_memory(ck);
    *unnamed = 0;
    for (int s = 0; s < ck->n_shards; s++) {
        const st_header *h = ck->shards[s].header;
        for (int64_t i = 0; i < st_header_count(h); i++) {
            const st_tensor *t = st_header_at(h, i);
            const char *home = shard_by_index(ck, t->name);
            if (home && strcmp(home, ck->shards[s].name))
                return err_make(ERR_INPUT, fileset_where(ck->fs), "remove the shard that is stale",
                                "tensor %.160s is in %.80s, but the index puts it into %.80s",
                                t->name, ck->shards[s].name, home);
            if (home)
                ck->tensors[ck->n_tensors++] = (hf_tensor){*t, s};
            else
                ++*unnamed;
        }
    }
    return err_none();
}

static int by_tensor_name(const void *a, const void *b) {
    return strcmp(((const hf_tensor *)a)->info.name, ((const hf_tensor *)b)->info.name);
}

static const hf_tensor *find_tensor(const hf_checkpoint *ck, const char *name) {
    const hf_tensor key = {.info.name = name};
    return bsearch(&key, ck->tensors, (size_t)ck->n_tensors, sizeof key, by_tensor_name);
}

static int by_alias_name(const void *a, const void *b) {
    const alias *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : x->tensor->shard - y->tensor->shard;
}

static const hf_tensor *find_alias(const hf_checkpoint *ck, const char *name) {
    for (int64_t lo = 0, hi = ck->n_aliases; lo < hi;) {
        int64_t mid = lo + (hi - lo) / 2;
        int order = strcmp(ck->aliases[mid].name, name);
        if (!order) return ck->aliases[mid].tensor;
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

/* Metadata that maps a name which is no tensor to a tensor of the same shard. Other metadata never
 * reads as that, since its values are no tensor names. */
static err collect_aliases(hf_checkpoint *ck) {
    int64_t n = 0;
    for (int s = 0; s < ck->n_shards; s++) n += st_header_metadata_count(ck->shards[s].header);
    alias *list = calloc((size_t)n + 1, sizeof *list);
    if (!list) return no_memory(ck);
    n = 0;
    for (int s = 0; s < ck->n_shards; s++) {
        const st_header *h = ck->shards[s].header;
        for (int64_t i = 0; i < st_header_metadata_count(h); i++) {
            const char *key, *value;
            st_header_metadata_at(h, i, &key, &value);
            const hf_tensor *t = find_tensor(ck, value);
            if (t && t->shard == s && !find_tensor(ck, key)) list[n++] = (alias){key, t};
        }
    }
    qsort(list, (size_t)n, sizeof *list, by_alias_name);
    ck->aliases = list;
    for (int64_t i = 0; i < n; i++)
        if (i == 0 || strcmp(list[i].name, list[i - 1].name)) list[ck->n_aliases++] = list[i];
    return err_none();
}

/* Each name of the index is a tensor of its shard, an alias stated there, or in no shard at all:
 * whether the model needs it is for its reader to say. *absent counts the latter. */
static err check_index(const hf_checkpoint *ck, oddities *odd) {
    const char *name;
    json_t *v;
    json_object_foreach(json_object_get(ck->index, "weight_map"), name, v) {
        const hf_tensor *t = hf_checkpoint_find(ck, name);
        if (t && strcmp(ck->shards[t->shard].name, json_string_value(v)))
            return err_make(ERR_INPUT, fileset_where(ck->fs), "fetch the model again",
                            "tensor %.160s is not in %.80s, where the index puts it", name,
                            json_string_value(v));
        if (!t && !odd->absent++) odd->first_absent = name;
    }
    return err_none();
}

/* Root only. Oddities that do not change what is read. */
static void warn_of_index(const hf_checkpoint *ck, const oddities *odd) {
    const json_t *total = json_object_get(json_object_get(ck->index, "metadata"), "total_size");
    if (odd->unnamed)
        log_line(LOG_WARN, "%s: %" PRId64 " tensors of the shards are not in %s and are not read",
                 fileset_where(ck->fs), odd->unnamed, INDEX);
    if (odd->absent)
        log_line(LOG_WARN, "%s: %s names %" PRId64 " tensors that no shard has (%.160s%s)",
                 fileset_where(ck->fs), INDEX, odd->absent, odd->first_absent,
                 odd->absent > 1 ? ", ..." : "");
    if (json_is_number(total) && json_number_value(total) != (double)ck->bytes)
        log_line(LOG_WARN, "%s: total_size in %s is %.0f, the tensors have %" PRIu64 " bytes",
                 fileset_where(ck->fs), INDEX, json_number_value(total), ck->bytes);
}

/* Local. */
static err index_tensors(hf_checkpoint *ck, oddities *odd) {
    err e = collect_tensors(ck, &odd->unnamed);
    if (e.code) return e;
    qsort(ck->tensors, (size_t)ck->n_tensors, sizeof *ck->tensors, by_tensor_name);
    for (int64_t i = 0; i < ck->n_tensors; i++)
        if (!size_add(ck->bytes, hf_tensor_bytes(&ck->tensors[i]), &ck->bytes))
            return err_make(ERR_INPUT, fileset_where(ck->fs), NULL,
                            "more bytes than 64 bits count");
    e = collect_aliases(ck);
    if (!e.code && ck->index) e = check_index(ck, odd);
    if (!e.code && ck->n_tensors == 0)
        e = err_make(ERR_INPUT, fileset_where(ck->fs), NULL, "the checkpoint holds no tensors");
    return e;
}

static err create(const fileset *fs, hf_checkpoint **out) {
    hf_checkpoint *ck = calloc(1, sizeof *ck);
    if (ck) ck->fs = fs;
    if (ck) ck->open = calloc(1, sizeof *ck->open);
    *out = ck;
    return ck && ck->open ? err_none() : err_make(ERR_NOFIT, fileset_where(fs), NULL, "no memory");
}

err hf_checkpoint_open(const comm *c, const fileset *fs, hf_checkpoint **out) {
    oddities odd = {.unnamed = 0};
    hf_checkpoint *ck;
    *out = NULL;
    err e = comm_agree(c, create(fs, &ck), "opening the checkpoint", NULL);
    /* The shards first: a folder of pickles is named as such even without a config. */
    if (!e.code) e = comm_agree(c, list_shards(c, ck), "listing the shards", NULL);
    if (!e.code) e = comm_agree(c, read_config(c, ck), "reading config.json", NULL);
    if (!e.code) e = comm_agree(c, read_headers(c, ck), "reading the headers", NULL);
    if (!e.code) e = comm_agree(c, index_tensors(ck, &odd), "listing the tensors", NULL);
    if (e.code) {
        hf_checkpoint_destroy(&ck);
        return e;
    }
    if (comm_rank(c) == 0) warn_of_index(ck, &odd);
    *out = ck;
    return e;
}

/* One shard that is no file. */
static err described_shard(hf_checkpoint *ck, const char *header, size_t len, uint64_t data_bytes) {
    if (!(ck->shards = calloc(1, sizeof *ck->shards))) return no_memory(ck);
    shard *s = &ck->shards[ck->n_shards++];
    *s = (shard){.bytes = 8 + len + data_bytes,
                 .name = strdup(SINGLE),
                 .where = strdup(fileset_where(ck->fs)),
                 .fd = -1};
    s->path = s->where;
    if (!s->name || !s->where) return no_memory(ck);
    return st_header_parse(header, len, data_bytes, s->where, &s->header);
}

err hf_checkpoint_describe(const fileset *fs, const char *header, size_t len, uint64_t data_bytes,
                           hf_checkpoint **out) {
    oddities odd = {.unnamed = 0};
    hf_checkpoint *ck;
    *out = NULL;
    err e = create(fs, &ck);
    if (!e.code) e = read_config(comm_world(), ck);
    if (!e.code) e = described_shard(ck, header, len, data_bytes);
    if (!e.code) e = index_tensors(ck, &odd);
    if (e.code) {
        hf_checkpoint_destroy(&ck);
        return e;
    }
    *out = ck;
    return e;
}

void hf_checkpoint_destroy(hf_checkpoint **ck) {
    if (!*ck) return;
    for (int i = 0; i < (*ck)->n_shards; i++) {
        close_shard(&(*ck)->shards[i]);
        st_header_destroy(&(*ck)->shards[i].header);
        free((*ck)->shards[i].name);
        free((*ck)->shards[i].where);
    }
    free((*ck)->shards);
    free((*ck)->tensors);
    free((*ck)->aliases);
    free((*ck)->open);
    free((*ck)->config_text);
    json_decref((*ck)->config);
    json_decref((*ck)->index);
    free(*ck);
    *ck = NULL;
}

const fileset *hf_checkpoint_fileset(const hf_checkpoint *ck) {
    return ck->fs;
}

const json_t *hf_checkpoint_config(const hf_checkpoint *ck) {
    return ck->config;
}

const char *hf_checkpoint_config_sha256(const hf_checkpoint *ck) {
    return ck->config_sha256;
}

const hf_tensor *hf_checkpoint_find(const hf_checkpoint *ck, const char *name) {
    const hf_tensor *t = find_tensor(ck, name);
    return t ? t : find_alias(ck, name);
}

err hf_checkpoint_put_alias(hf_checkpoint *ck, const char *name, const hf_tensor *t) {
    alias *list = realloc(ck->aliases, (size_t)(ck->n_aliases + 1) * sizeof *list);
    if (!list) return no_memory(ck);
    list[ck->n_aliases++] = (alias){name, t};
    qsort(list, (size_t)ck->n_aliases, sizeof *list, by_alias_name);
    ck->aliases = list;
    return err_none();
}

int64_t hf_checkpoint_count(const hf_checkpoint *ck) {
    return ck->n_tensors;
}

const hf_tensor *hf_checkpoint_at(const hf_checkpoint *ck, int64_t i) {
    return &ck->tensors[i];
}

/* n bytes from byte `begin` of t, hashed on the way where h is given. */
static err read_bytes(const hf_checkpoint *ck, const hf_tensor *t, uint64_t begin, uint64_t n,
                      char *to, sha256 *h) {
    const shard *s = &ck->shards[t->shard];
    int fd;
    err e = shard_fd(ck, t->shard, &fd);
    uint64_t at = s->offset + st_header_data_offset(s->header) + t->info.begin + begin;
    while (n && !e.code) {
        uint64_t piece = n < PIECE_BYTES ? n : PIECE_BYTES;
        e = file_pread(fd, s->path, to, piece, at);
        at += piece;
        n -= piece;
        if (n) posix_fadvise(fd, (off_t)at, PIECE_BYTES, POSIX_FADV_WILLNEED);
        if (h && !e.code) sha256_add(h, to, piece);
        to += piece;
    }
    return e.code ? err_at(e, t->info.name) : e;
}

err hf_checkpoint_read(const hf_checkpoint *ck, const hf_tensor *t, void *to,
                       char sha256_hex[SHA256_HEX]) {
    char hex[SHA256_HEX];
    sha256 *h = sha256_hex ? sha256_create() : NULL;
    err e = read_bytes(ck, t, 0, hf_tensor_bytes(t), to, h);
    if (!h) return e;
    sha256_finish(&h, hex);
    memcpy(sha256_hex, hex, SHA256_HEX);
    return e;
}

err hf_checkpoint_read_range(const hf_checkpoint *ck, const hf_tensor *t, uint64_t begin,
                             uint64_t n, void *to) {
    uint64_t bytes = hf_tensor_bytes(t);
    if (begin > bytes || n > bytes - begin)
        return err_make(ERR_BUG, t->info.name, NULL, "a range outside of the tensor");
    return read_bytes(ck, t, begin, n, to, NULL);
}

int hf_checkpoint_shards(const hf_checkpoint *ck) {
    return ck->n_shards;
}

const char *hf_checkpoint_shard_name(const hf_checkpoint *ck, int i) {
    return ck->shards[i].name;
}

const char *hf_checkpoint_header_sha256(const hf_checkpoint *ck, int i) {
    return st_header_sha256(ck->shards[i].header);
}

const st_header *hf_checkpoint_header(const hf_checkpoint *ck, int i) {
    return ck->shards[i].header;
}

uint64_t hf_checkpoint_shard_bytes(const hf_checkpoint *ck, int i) {
    return ck->shards[i].bytes;
}

uint64_t hf_checkpoint_bytes(const hf_checkpoint *ck) {
    return ck->bytes;
}
