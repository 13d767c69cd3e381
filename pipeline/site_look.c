/* The rows as they come, then rotated in place to the other side, and told of both times. */
#include "pipeline/site_look.h"

#include "base/size.h"

#include <math.h>

/* Rows times the scales from `first` on, or over them; NULL: ones. */
static void scale_rows(const scale_vector *s, int64_t first, int64_t n, scale_way way, float *x,
                       int64_t rows, int64_t width) {
    for (int64_t t = 0; s && t < rows; t++)
        scale_times_f32((way == SCALE_OVER ? s->inverse32 : s->s32) + first, n, x + t * width);
}

/* x to x R S^-1, or (inverse) back. */
static void rotate_stream(const rotation *R1, const scale_vector *s, bool inverse, float *x,
                          int64_t rows, int64_t width) {
    if (inverse) scale_rows(s, 0, width, SCALE_TIMES, x, rows, width);
    rotation_apply_f32(R1, x, rows, width, inverse);
    if (!inverse) scale_rows(s, 0, width, SCALE_OVER, x, rows, width);
}

/* x to x S^-1 R, or (inverse) back: of d entries of the row from `at` on, scales from `first` on.
 */
static void rotate_part(const rotation *R, const scale_vector *s, int64_t first, int64_t d,
                        bool inverse, float *x, int64_t rows, int64_t width) {
    if (!inverse) scale_rows(s, first, d, SCALE_OVER, x, rows, width);
    rotation_apply_f32(R, x, rows, width, inverse);
    if (inverse) scale_rows(s, first, d, SCALE_TIMES, x, rows, width);
}

/* Head by head. */
static err rotate_heads(const llama_config *cfg, rotation_set *set, int64_t layer, bool inverse,
                        float *x, int64_t rows, int64_t width) {
    const scale_vector *s = scale_set_get(rotation_set_scales(set), SCALE_VO, layer);
    err e = rotation_set_prepare_r2(set, layer);
    for (int64_t h = 0; h < cfg->heads && !e.code; h++) {
        const int64_t kv = h / (cfg->heads / cfg->kv_heads), d = cfg->head_dim;
        rotate_part(rotation_set_r2(set, layer, kv), s, kv * d, d, inverse, x + h * d, rows, width);
    }
    return e;
}

static err rotate(const llama_config *cfg, rotation_set *set, int64_t layer, llama_step step,
                  bool inverse, float *x, int64_t rows) {
    const int64_t width = llama_step_width(cfg, step);
    if (!set) return err_none();
    const scale_set *scales = rotation_set_scales(set);
    switch (step) {
    case STEP_O:
        return rotate_heads(cfg, set, layer, inverse, x, rows, width);
    case STEP_DOWN:
        rotate_part(rotation_set_r4(set), scale_set_get(scales, SCALE_UD, layer), 0, width, inverse,
                    x, rows, width);
        return err_none();
    default:
        rotate_stream(rotation_set_r1(set),
                      scale_set_get(scales, step == STEP_QKV ? SCALE_ATTN : SCALE_MLP, layer),
                      inverse, x, rows, width);
        return err_none();
    }
}

/* Rotations leave volumes alone; each channel that is divided by a scale shrinks them by it. */
static double log_scales(const llama_config *cfg, rotation_set *set, int64_t layer,
                         llama_step step) {
    static const scale_kind kinds[STEP_COUNT] = {SCALE_ATTN, SCALE_VO, SCALE_MLP, SCALE_UD};
    const scale_vector *s =
        set ? scale_set_get(rotation_set_scales(set), kinds[step], layer) : NULL;
    const int64_t times_each = step == STEP_O ? cfg->heads / cfg->kv_heads : 1;
    double sum = 0;
    for (int64_t j = 0; s && j < s->n; j++) sum -= (double)times_each * log(s->s[j]);
    return sum;
}

/* The first tokens of the sample. */
static void draw(const float *x, int64_t width, double rms, const site_map *m, uint8_t *to) {
    for (int i = 0; i < m->rows; i++)
        for (int j = 0; j < m->cols; j++) {
            double most = 0;
            for (int64_t k = j * width / m->cols; k < (j + 1) * width / m->cols; k++)
                most = fmax(most, fabs((double)x[i * width + k]));
            const double level = most > 0 ? SITE_MAP_ONE + rint(16 * log2(most / rms)) : 0;
            to[i * m->cols + j] = (uint8_t)fmin(fmax(level, 0), 255);
        }
}

/* Of the side that the rows show. */
static void look(site_look *out, bool rotated, bool covariance, const float *x, int64_t rows) {
    site_stats *s = rotated ? &out->after : &out->before;
    site_stats_add(s, x, rows);
    draw(x, s->width, site_rms(s), &out->map, rotated ? out->map.after : out->map.before);
    if (covariance && !rotated && site_log_det(x, rows, s->width, &out->log_det).code)
        out->log_det = NAN; /* no memory: a number less in a report */
}

err site_look_take(const llama_config *cfg, rotation_set *set, int64_t layer, llama_step step,
                   site_side side, bool covariance, float *x, int64_t rows, site_look *out) {
    const int64_t width = llama_step_width(cfg, step);
    const bool rotated = side == SITE_AFTER;
    *out = (site_look){.before = {.width = width}, .after = {.width = width}, .log_det = NAN};
    if (layer == cfg->layers / 2)
        out->map = (site_map){.rows = (int)size_min(rows, SITE_MAP_ROWS),
                              .cols = (int)size_min(width, SITE_MAP_COLS)};
    look(out, rotated, covariance, x, rows);
    err e = rotate(cfg, set, layer, step, rotated, x, rows);
    if (e.code) return e;
    look(out, !rotated, covariance, x, rows);
    out->log_scales = log_scales(cfg, set, layer, step);
    out->there = true;
    return e;
}
