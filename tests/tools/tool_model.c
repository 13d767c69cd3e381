/* tool_model OUT [KEY=NUMBER...] - a LLaMA checkpoint of any shape whose activations look like
 * those of trained models, for tests and benches of learning. Not trained: its text is noise, but
 * what a rotation has to cope with is there:
 *   - channels of the embedding and of each linear have norms that spread (log-normal);
 *   - `outliers` channels of the embedding are `scale` times the others and keep their sign, as the
 *     outlier channels of trained models do, so that inputs have a mean;
 *   - one token in 128 is massive: a single channel of it is `massive` times the others;
 *   - gains of norms spread.
 * Every number is drawn by its place (base/rng.h), so equal arguments give equal bytes. Tensors are
 * made and written a band of rows at a time: a layer of 70B shape takes as long as its file.
 *
 * Keys and defaults: hidden=256 intermediate=704 layers=2 heads=4 kv_heads=4 vocab=512 outliers=3
 * scale=40 massive=300 seed=1 every=1. The vocabulary must have room for that of the tokenizer put
 * beside it. every=K: of embedding and head, rows from 4096 on are written where K divides their
 * number alone; the others are holes of the file, zeros. */
#include "base/file.h"
#include "base/half.h"
#include "base/rng.h"
#include "base/size.h"
#include "io/safetensors.h"
#include "model/tensors.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BAND_BYTES = 1 << 24, MASSIVE_EVERY = 128 };

typedef struct wish {
    llama_config cfg;
    int64_t outliers, scale, massive, seed, every;
} wish;

/* Streams of numbers: one for each tensor and purpose. */
enum { DRAW_ENTRY, DRAW_ROW, DRAW_COL, DRAW_OUTLIER, DRAWS };

static double draw(const wish *w, int64_t tensor, int what, int64_t i) {
    const uint64_t seed = (uint64_t)w->seed * 1000003u + (uint64_t)(tensor * DRAWS + what);
    return rng_normal(seed, RNG_TEST, (uint64_t)i);
}

/* Outlier k stands at a channel of its own, spread over the hidden size. */
static int64_t outlier_channel(const wish *w, int64_t k) {
    return (k * 2 + 1) * w->cfg.hidden / (2 * size_max(1, w->outliers));
}

static void embedding_row(const wish *w, int64_t token, const float *cols, bf16 *out) {
    const int64_t n = w->cfg.hidden;
    const double unit = 0.02;
    for (int64_t j = 0; j < n; j++)
        out[j] = half_to_bf16((float)(unit * cols[j] * draw(w, 0, DRAW_ENTRY, token * n + j)));
    for (int64_t k = 0; k < w->outliers; k++) {
        const double sign = draw(w, 0, DRAW_OUTLIER, k) < 0 ? -1 : 1,
                     size = 1 + 0.3 * draw(w, 0, DRAW_OUTLIER, (token + 1) * w->outliers + k);
        out[outlier_channel(w, k)] = half_to_bf16((float)(unit * (double)w->scale * sign * size));
    }
    if (w->outliers && token % MASSIVE_EVERY == 1)
        out[outlier_channel(w, 0)] = half_to_bf16((float)(unit * (double)w->massive));
}

/* Output projections are smaller, as initialisations of deep models make them: the stream stays of
 * the size that the embedding gave it. */
static double spread_of(const wish *w, const llama_tensor *t) {
    const double each = 1 / sqrt((double)t->cols);
    if (t->role == ROLE_O || t->role == ROLE_DOWN)
        return each * 0.05 / sqrt(2 * (double)w->cfg.layers);
    return each;
}

static void linear_row(const wish *w, int64_t tensor, const llama_tensor *t, int64_t row,
                       const float *cols, bf16 *out) {
    const double size = spread_of(w, t) * exp(0.3 * draw(w, tensor, DRAW_ROW, row));
    for (int64_t j = 0; j < t->cols; j++)
        out[j] =
            half_to_bf16((float)(size * cols[j] * draw(w, tensor, DRAW_ENTRY, row * t->cols + j)));
}

static void make_row(const wish *w, int64_t tensor, const llama_tensor *t, int64_t row,
                     const float *cols, bf16 *out) {
    if (t->n_dims == 1)
        *out = half_to_bf16((float)exp(0.25 * draw(w, tensor, DRAW_ENTRY, row)));
    else if (t->role == ROLE_EMBED)
        embedding_row(w, row, cols, out);
    else
        linear_row(w, tensor, t, row, cols, out);
}

enum { ALL_ROWS = 4096 }; /* before those of which only some are written */

static bool is_written(const wish *w, const llama_tensor *t, int64_t row) {
    return (t->role != ROLE_EMBED && t->role != ROLE_HEAD) || row < ALL_ROWS || row % w->every == 0;
}

/* The rows of a band that are written, each run of them at once. */
static err write_band(const wish *w, const llama_tensor *t, int64_t first, int64_t count,
                      const bf16 *rows, int fd, const char *path, uint64_t at) {
    const int64_t cols = t->n_dims == 1 ? 1 : t->cols;
    const uint64_t row_bytes = (uint64_t)cols * sizeof *rows;
    err e = err_none();
    for (int64_t i = 0, n; i < count && !e.code; i += n) {
        for (n = 0; i + n < count && is_written(w, t, first + i + n);) n++;
        if (n)
            e = file_pwrite(fd, path, rows + i * cols, (uint64_t)n * row_bytes,
                            at + (uint64_t)(first + i) * row_bytes);
        else
            n = 1;
    }
    return e;
}

static err write_tensor(const wish *w, int64_t tensor, const llama_tensor *t, int fd,
                        const char *path, uint64_t at) {
    const int64_t cols = t->n_dims == 1 ? 1 : t->cols, band = size_max(1, BAND_BYTES / 2 / cols);
    float *spread = malloc((size_t)cols * sizeof *spread);
    bf16 *rows = malloc((size_t)(band * cols) * sizeof *rows);
    err e = err_none();
    if (!spread || !rows) abort();
    for (int64_t j = 0; j < cols; j++) spread[j] = (float)exp(0.3 * draw(w, tensor, DRAW_COL, j));
    for (int64_t first = 0; first < t->rows && !e.code; first += band) {
        const int64_t count = size_min(band, t->rows - first);
#pragma omp parallel for
        for (int64_t i = 0; i < count; i++)
            if (is_written(w, t, first + i))
                make_row(w, tensor, t, first + i, spread, rows + i * cols);
        e = write_band(w, t, first, count, rows, fd, path, at);
    }
    free(spread);
    free(rows);
    return e;
}

static err write_weights(const wish *w, const char *path) {
    const int64_t n = llama_tensor_count(&w->cfg);
    st_tensor *st = calloc((size_t)n, sizeof *st);
    llama_tensor *t = calloc((size_t)n, sizeof *t);
    char *header = NULL;
    const char *const metadata[] = {"format", "pt", NULL};
    uint64_t end = 0;
    size_t len = 0;
    int fd = -1;
    if (!st || !t) abort();
    for (int64_t i = 0; i < n; i++) {
        llama_tensor_at(&w->cfg, i, &t[i]);
        st[i] = (st_tensor){.name = t[i].name, .dtype = ST_BF16, .n_dims = t[i].n_dims};
        st[i].shape[0] = t[i].rows;
        st[i].shape[1] = t[i].cols;
        st[i].begin = end;
        end += 2 * (uint64_t)(t[i].rows * (t[i].n_dims == 1 ? 1 : t[i].cols));
        st[i].end = end;
    }
    err e = st_header_write(st, n, metadata, &header, &len);
    if (!e.code) e = file_create(path, &fd);
    if (!e.code) e = file_pwrite(fd, path, header, len, 0);
    for (int64_t i = 0; i < n && !e.code; i++)
        e = write_tensor(w, i, &t[i], fd, path, len + st[i].begin);
    if (!e.code && ftruncate(fd, (off_t)(len + end)) != 0) e = err_errno(path, "make it as long");
    if (fd >= 0) {
        err closed = file_close(fd, path);
        if (!e.code) e = closed;
    }
    free(header);
    free(st);
    free(t);
    return e;
}

static err write_config(const wish *w, const char *path) {
    const llama_config *c = &w->cfg;
    char text[1024];
    const int len = snprintf(
        text, sizeof text,
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"hidden_act\": "
        "\"silu\", \"hidden_size\": %" PRId64 ", \"intermediate_size\": %" PRId64
        ", \"num_hidden_layers\": %" PRId64 ", \"num_attention_heads\": %" PRId64
        ", \"num_key_value_heads\": %" PRId64 ", \"head_dim\": %" PRId64
        ", \"vocab_size\": %" PRId64
        ", \"max_position_embeddings\": 4096, \"rms_norm_eps\": 1e-5, \"rope_theta\": 10000.0, "
        "\"tie_word_embeddings\": false, \"torch_dtype\": \"bfloat16\", \"bos_token_id\": 1, "
        "\"eos_token_id\": 2}\n",
        c->hidden, c->intermediate, c->layers, c->heads, c->kv_heads, c->head_dim, c->vocab);
    return file_publish(path, text, (size_t)len);
}

static bool take_word(wish *w, const char *word) {
    const struct {
        const char *key;
        int64_t *at;
    } keys[] = {{"hidden", &w->cfg.hidden},
                {"intermediate", &w->cfg.intermediate},
                {"layers", &w->cfg.layers},
                {"heads", &w->cfg.heads},
                {"kv_heads", &w->cfg.kv_heads},
                {"vocab", &w->cfg.vocab},
                {"outliers", &w->outliers},
                {"scale", &w->scale},
                {"massive", &w->massive},
                {"seed", &w->seed},
                {"every", &w->every}};
    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
        const size_t len = strlen(keys[k].key);
        char *end;
        if (strncmp(word, keys[k].key, len) || word[len] != '=') continue;
        *keys[k].at = strtoll(word + len + 1, &end, 10);
        return *end == '\0' && *keys[k].at >= 0;
    }
    return false;
}

int main(int argc, char **argv) {
    wish w = {.cfg = {.hidden = 256,
                      .intermediate = 704,
                      .layers = 2,
                      .heads = 4,
                      .kv_heads = 4,
                      .vocab = 512},
              .outliers = 3,
              .scale = 40,
              .massive = 300,
              .seed = 1,
              .every = 1};
    bool good = argc > 1;
    for (int i = 2; i < argc; i++) good = good && take_word(&w, argv[i]);
    good = good && w.every > 0;
    if (!good) {
        fprintf(stderr, "usage: tool_model OUT [KEY=NUMBER...]; keys are in the source\n");
        return ERR_USAGE;
    }
    w.cfg.head_dim = w.cfg.hidden / size_max(1, w.cfg.heads);
    err e = file_make_dirs(argv[1]);
    char *weights = file_join(argv[1], "model.safetensors"),
         *config = file_join(argv[1], "config.json");
    if (!e.code) e = write_weights(&w, weights);
    if (!e.code) e = write_config(&w, config);
    if (e.code) fprintf(stderr, "%s: %s\n", e.where, e.what);
    free(weights);
    free(config);
    return e.code;
}
