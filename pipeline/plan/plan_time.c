/* Seconds = flop of products / rate + passes over numbers / rate + bytes / rate, with constants
 * fitted once (docs/MEASUREMENTS.md). */
#include "pipeline/plan/plan_time.h"

#include "model/tensors.h"
#include "pipeline/plan/product_peak.h"
#include "quant/gptq.h"
#include "quant/scale_search.h"

#include <math.h>

/* Passes of vector work over the numbers of a unit, fitted on SmolLM2-135M on 1, 2 and 4 ranks. */
#define OF_BLOCK    4.0   /* hidden + intermediate of a token and layer, one way, no sites */
#define OF_SITES    8.0   /* the same with every site on */
#define OF_LOGITS   3.0   /* the vocabulary of a token: softmax and loss */
#define OF_ROWS     2.0   /* a row of range: draw, ends, terms of the gradient */
#define OF_LOOKED   1.0   /* the same without terms of the gradient */
#define OF_NORM     0.25  /* a number that scales of norms are tried on: in one go */
#define OF_TRIAL    0.3   /* the same of a quantizer */
#define OF_POOL     3.0   /* a number of the pool: sensitivities, normalising */
#define OF_TURN     3.0   /* a number of a weight through a fast transform */
#define OF_ROUND    3.0   /* a number of a weight to its code */
#define OF_MOMENT   20.0  /* times a product in fp32: plain loops over the moment of R2 */
#define OF_STEP     8.0   /* n^3 flop of a Cayley step: G R^T, elimination, its product */
#define OF_STREAM   4.0   /* hidden + intermediate of a token and layer, in GPTQ */
#define OF_SUM      0.5   /* an entry of a window's product to an exact sum */
#define FIXED_S     0.005 /* seconds: two flushes and their folder, as on a local disk of 2026 */
#define FIRST_TOUCH 0.5e9 /* bytes a second of fresh memory that a rank fills */

/* Shares of the peak of products: sums of Hessians; their factor on one rank, and on a grid. */
#define OF_PEAK_HESSIAN     0.6
#define OF_PEAK_FACTOR      0.5
#define OF_PEAK_FACTOR_GRID 0.8

static double channels(const llama_config *cfg) {
    return (double)cfg->hidden + (double)cfg->intermediate;
}

static double head_params(const llama_config *cfg) {
    return (double)cfg->vocab * (double)cfg->hidden;
}

static double vector(const plan_rank *r, double numbers) {
    return numbers / (r->rates->vector * r->cores);
}

static double product(const plan_rank *r, double rate, double flop) {
    return flop / (rate * r->cores);
}

double plan_time_load(const plan_rank *r, uint64_t bytes) {
    return (double)bytes / fmin(FIRST_TOUCH * fmax(1, r->cores / 2), r->rates->read);
}

/* Scores and values of one token: half the window on average, two products. */
static double attention_flop(const llama_config *cfg, int64_t window) {
    return 2.0 * (double)window * (double)(cfg->heads * cfg->head_dim);
}

double plan_time_capture(const plan_rank *r, const llama_config *cfg, int64_t n_layers, bool head,
                         int64_t window) {
    enum { WAYS = 3 }; /* forward, again, backward */
    const double layer = product(r, r->rates->bf16, WAYS * 2.0 * (double)llama_layer_params(cfg)) +
                         vector(r, WAYS * OF_BLOCK * channels(cfg)) +
                         product(r, r->rates->f32, 4.5 * attention_flop(cfg, window));
    double token = (double)n_layers * layer;
    if (head)
        token += product(r, r->rates->bf16, 4.0 * head_params(cfg)) +
                 vector(r, OF_LOGITS * (double)cfg->vocab);
    return token * (double)window;
}

double plan_time_forward(const plan_rank *r, const llama_config *cfg, int64_t window) {
    return (double)window * (product(r, r->rates->bf16, 2.0 * (double)llama_layer_params(cfg)) +
                             vector(r, OF_BLOCK * channels(cfg)) +
                             product(r, r->rates->f32, attention_flop(cfg, window)));
}

double plan_time_pca(const plan_rank *r, const llama_config *cfg, int64_t n_layers,
                     int64_t tokens) {
    const double n = (double)cfg->hidden, d = (double)cfg->head_dim;
    const double rows = 2.0 * (double)n_layers * (double)tokens;
    const plan_rank one = {.rates = r->rates, .cores = 1};
    const double r2 = 2.0 * (double)n_layers * (double)(tokens * cfg->heads) * d * d;
    return product(r, r->rates->f32, 2 * rows * n * n) + product(r, r->rates->f64, 40 * n * n * n) +
           product(&one, r->rates->f32, OF_MOMENT * r2 / 2) + vector(r, OF_POOL * rows * n);
}

double plan_time_cayley(const plan_rank *r, int64_t n, int cells) {
    const double flop = OF_STEP * pow((double)n, 3);
    return product(r, r->rates->f64, flop) / cells;
}

/* Products of all rows with what they are rotated by, and passes over them. */
static double range_rows(const plan_rank *r, const llama_config *cfg, double rows, double r2,
                         double passes) {
    enum { R2_ROWS = 1024 };
    const double n = (double)cfg->hidden, d = (double)cfg->head_dim;
    return product(r, r->rates->bf16, 2 * rows * n * n) + vector(r, passes * rows * n) +
           r2 * (product(r, r->rates->bf16, 2 * R2_ROWS * d * d) + vector(r, passes * R2_ROWS * d));
}

double plan_time_range(const plan_rank *r, const llama_config *cfg, int64_t n_layers, double rows,
                       int64_t r2_heads) {
    const double r2 = (double)(n_layers * r2_heads), d = (double)cfg->head_dim;
    return range_rows(r, cfg, rows, r2, OF_ROWS) +
           r2 * product(r, r->rates->f64, 2 * OF_STEP * d * d * d);
}

double plan_time_range_look(const plan_rank *r, const llama_config *cfg, int64_t n_layers,
                            double rows, int64_t r2_heads) {
    return range_rows(r, cfg, rows, (double)(n_layers * r2_heads), OF_LOOKED);
}

double plan_time_peak(const plan_rank *r) {
    return product(r, r->rates->bf16, product_peak_flop());
}

double plan_time_fixed(void) {
    return FIXED_S;
}

double plan_time_trials(const plan_rank *r, double trials, double numbers) {
    return vector(r, OF_TRIAL * trials * numbers);
}

double plan_time_turned(const plan_rank *r, int64_t hidden, int64_t sites, double rows) {
    const double n = (double)hidden;
    return product(r, r->rates->f32, 2 * (double)sites * rows * 2 * n * n);
}

double plan_time_norms(const plan_rank *r, int64_t hidden, int64_t sites, double rows, bool r1,
                       int64_t looks) {
    return (r1 ? plan_time_turned(r, hidden, sites, rows) : 0) +
           vector(r, (double)looks * OF_NORM * (double)(sites * hidden) * rows);
}

double plan_time_pass(const plan_rank *r, const llama_config *cfg, const plan_pass *p) {
    const double n = (double)cfg->hidden, params = (double)llama_layer_params(cfg);
    const double rotations = p->r1 ? 4 * n * n : 0; /* two sites, there and back */
    const double forward = product(r, r->rates->bf16, 2 * (params + rotations)) +
                           vector(r, OF_SITES * channels(cfg)) +
                           product(r, r->rates->f32, attention_flop(cfg, p->window));
    const double more = p->through ? 1.35 : 1.05;
    const double head = product(r, r->rates->bf16, 4 * head_params(cfg)) +
                        vector(r, OF_LOGITS * (double)cfg->vocab);
    const double teacher = p->teacher ? 0.5 : 0, again = p->recompute ? 1 : 0;
    return (double)cfg->layers * forward * (1 + more + again + teacher) + head * (1 + teacher);
}

double plan_time_fuse(const plan_rank *r, int64_t hidden, double numbers, bool r1, bool dense) {
    if (r1 && dense) return product(r, r->rates->f64, 2.0 * (double)hidden * numbers);
    return vector(r, (r1 ? OF_TURN : 1) * numbers);
}

double plan_time_round(const plan_rank *r, double numbers, bool search) {
    const double tried =
        search ? SCALE_SEARCH_CANDIDATES * numbers / (r->rates->search * r->cores) : 0;
    return tried + vector(r, OF_ROUND * numbers);
}

/* The linears that share inputs of `width`, `rows` of them in all. Shares of the product peak that
 * the parts reach: docs/MEASUREMENTS.md. */
static double gptq_step(const plan_rank *r, const plan_gptq *g, double mine, double width,
                        double rows) {
    const double moments = mine * width * width * (g->corrects ? 3 : 1),
                 entries = mine / (double)g->window * width * width * (g->corrects ? 1.5 : 0.5);
    const bool dist = g->cells > 1 && width >= (double)g->grid_from;
    const double factor =
        2.0 / 3 * pow(width, 3) / (dist ? OF_PEAK_FACTOR_GRID * g->cells : OF_PEAK_FACTOR);
    const double row_flop = (g->corrects ? 4 : 3) * g->tries * width * width;
    /* Columns of cross terms are dealt in units: of few columns some ranks have none. */
    const double columns = ceil(ceil(width / GPTQ_CROSS_COLS) / g->ranks) * GPTQ_CROSS_COLS,
                 cross = g->corrects ? 2 * rows * width * fmin(width, columns) : 0;
    const double rounds = plan_time_round(r, rows * width, g->search) / g->ranks;
    return product(r, r->rates->bf16 * OF_PEAK_HESSIAN, moments) + vector(r, OF_SUM * entries) +
           product(r, r->rates->f64, factor + cross + row_flop * rows / g->ranks) +
           rounds * (g->asymmetric ? 2 : 1); /* to nearest: for scales, and to compare with */
}

double plan_time_gptq_layer(const plan_rank *r, const llama_config *cfg, const plan_gptq *g) {
    const double n = (double)cfg->hidden, f = (double)cfg->intermediate,
                 o = (double)(cfg->heads * cfg->head_dim),
                 kv = (double)(cfg->kv_heads * cfg->head_dim), streams = g->asymmetric ? 2 : 1;
    const double windows = ceil(g->tokens / (double)g->window / g->ranks),
                 mine = windows * (double)g->window;
    const double forward = product(r, r->rates->bf16, 2 * (double)llama_layer_params(cfg)) +
                           vector(r, OF_STREAM * channels(cfg)) +
                           product(r, r->rates->f32, attention_flop(cfg, g->window));
    return mine * streams * forward + gptq_step(r, g, mine, n, o + 2 * kv) +
           gptq_step(r, g, mine, o, n) + gptq_step(r, g, mine, n, 2 * f) +
           gptq_step(r, g, mine, f, n);
}
