/* Lists are made by a rule (as many forward as are needed to keep the next stages busy, then one
 * backward and one forward in turn); simulation replays them against arrival times; the check
 * walks every list and every message. */
#include "pipeline/stages/schedule.h"

#include "base/mem.h"
#include "base/size.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct schedule {
    schedule_shape shape;
    int64_t *in_flight; /* [stages] */
    int64_t *n_ops;     /* [stages] */
    schedule_op *ops;   /* [stages, room] */
    int64_t room;
};

/* One stage's list. `held` is the window whose saved activations are there, with recompute. */
typedef struct list {
    schedule_op *ops;
    int64_t n, held;
} list;

static void add_window(list *l, op_kind kind, int64_t window, int64_t slices) {
    for (int64_t i = 0; i < slices; i++) {
        const int64_t slice = kind == OP_BACKWARD ? slices - 1 - i : i;
        l->ops[l->n++] = (schedule_op){kind, window, slice};
    }
    if (kind != OP_BACKWARD) l->held = window;
}

static void fill_stage(schedule *s, int stage, int64_t k) {
    const int64_t windows = s->shape.windows, slices = s->shape.slices;
    list l = {.ops = s->ops + stage * s->room, .held = -1};
    s->in_flight[stage] = k;
    for (int64_t w = 0; w < size_min(k, windows); w++) add_window(&l, OP_FORWARD, w, slices);
    for (int64_t w = 0; w < windows; w++) {
        if (s->shape.recompute && l.held != w) add_window(&l, OP_AGAIN, w, slices);
        add_window(&l, OP_BACKWARD, w, slices);
        if (w + k < windows) add_window(&l, OP_FORWARD, w + k, slices);
    }
    s->n_ops[stage] = l.n;
}

/* A stage is at work from its first forward to its first backward where it has
 * 1 + (stages after it) (1 + backward / forward) / slices windows to take in: `reach` stands for
 * the second factor. */
static void fill(schedule *s, double reach) {
    const int64_t most = s->shape.max_in_flight ? size_min(s->shape.max_in_flight, s->shape.windows)
                                                : s->shape.windows;
    for (int i = 0; i < s->shape.stages; i++) {
        const double after = s->shape.stages - 1 - i;
        const double k = 1 + ceil(after * reach / (double)s->shape.slices);
        fill_stage(s, i, size_max(1, k < (double)most ? (int64_t)k : most));
    }
}

static err allocate(const schedule_shape *shape, schedule **out) {
    *out = NULL;
    if (shape->stages < 1 || shape->slices < 1 || shape->windows < 0 || shape->max_in_flight < 0)
        return err_make(ERR_BUG, "schedule", NULL,
                        "%d stages, %" PRId64 " windows of %" PRId64 " slices", shape->stages,
                        shape->windows, shape->slices);
    schedule *s;
    err e = MEM_NEW(&s, 1, "schedule");
    if (e.code) return e;
    *s = (schedule){.shape = *shape, .room = 3 * shape->windows * shape->slices};
    e = MEM_NEW(&s->in_flight, shape->stages, "schedule");
    if (!e.code) e = MEM_NEW(&s->n_ops, shape->stages, "schedule");
    if (!e.code) e = MEM_NEW(&s->ops, shape->stages * s->room, "schedule");
    if (e.code) schedule_destroy(&s);
    *out = s;
    return e;
}

err schedule_create(const schedule_shape *shape, const schedule_costs *costs, schedule **out) {
    enum { HALVES = 16 };       /* reach 0 .. 8 in steps of one half, then no bound */
    const double NEARLY = 0.01; /* time that fewer windows in flight may cost */
    schedule *s;
    err e = allocate(shape, &s);
    *out = s;
    if (e.code) return e;
    double best = INFINITY, best_reach = 0, finish, idle;
    for (int i = 0; i <= HALVES + 1; i++) {
        const double reach = i > HALVES ? 1e9 : 0.5 * i;
        fill(s, reach);
        if (schedule_simulate(s, costs, &finish, &idle) && finish < best * (1 - NEARLY)) {
            best = finish;
            best_reach = reach;
        }
    }
    fill(s, best_reach);
    return e;
}

void schedule_destroy(schedule **s) {
    if (!*s) return;
    mem_free((*s)->in_flight);
    mem_free((*s)->n_ops);
    mem_free((*s)->ops);
    mem_free(*s);
    *s = NULL;
}

const schedule_shape *schedule_get_shape(const schedule *s) {
    return &s->shape;
}

const schedule_op *schedule_ops(const schedule *s, int stage, int64_t *n) {
    *n = s->n_ops[stage];
    return s->ops + stage * s->room;
}

int64_t schedule_in_flight(const schedule *s, int stage) {
    return s->in_flight[stage];
}

/* Simulation. */

typedef struct clockwork {
    const schedule *s;
    const schedule_costs *costs;
    int64_t *at;           /* [stages] next operation */
    double *free_at;       /* [stages] */
    double *busy;          /* [stages] */
    double *done_forward;  /* [stages, windows, slices]; NAN: not done */
    double *done_backward; /* the same */
} clockwork;

static double cost_of(const clockwork *c, int stage, op_kind kind) {
    const double layers = c->costs->layers ? (double)c->costs->layers[stage] : 1;
    if (kind == OP_BACKWARD) return layers * c->costs->backward;
    const bool head = kind == OP_FORWARD && stage == c->s->shape.stages - 1;
    return layers * c->costs->forward + (head ? c->costs->head : 0);
}

/* When what the operation receives is there; NAN: not sent yet. */
static double arrival(const clockwork *c, int stage, const schedule_op *op) {
    const schedule_shape *g = &c->s->shape;
    const int64_t at = op->window * g->slices + op->slice, each = g->windows * g->slices;
    if (op->kind == OP_FORWARD && stage > 0)
        return c->done_forward[(stage - 1) * each + at] + c->costs->send;
    if (op->kind == OP_BACKWARD && stage < g->stages - 1)
        return c->done_backward[(stage + 1) * each + at] + c->costs->send;
    return 0;
}

/* As many operations of a stage as can go; true where there was one. */
static bool advance(clockwork *c, int stage) {
    const schedule_shape *g = &c->s->shape;
    const int64_t each = g->windows * g->slices;
    bool moved = false;
    while (c->at[stage] < c->s->n_ops[stage]) {
        const schedule_op *op = &c->s->ops[stage * c->s->room + c->at[stage]];
        const double there = arrival(c, stage, op), cost = cost_of(c, stage, op->kind);
        if (isnan(there)) break;
        c->free_at[stage] = fmax(c->free_at[stage], there) + cost;
        c->busy[stage] += cost;
        double *done = op->kind == OP_BACKWARD ? c->done_backward : c->done_forward;
        if (op->kind != OP_AGAIN)
            done[stage * each + op->window * g->slices + op->slice] = c->free_at[stage];
        c->at[stage]++;
        moved = true;
    }
    return moved;
}

static bool run(clockwork *c, double *finish, double *idle) {
    const int stages = c->s->shape.stages;
    const int64_t marks = stages * c->s->shape.windows * c->s->shape.slices;
    double busy = 0;
    for (int64_t i = 0; i < marks; i++) c->done_forward[i] = c->done_backward[i] = NAN;
    for (bool moved = true; moved;) {
        moved = false;
        for (int i = 0; i < stages; i++) moved |= advance(c, i);
    }
    *finish = 0;
    for (int i = 0; i < stages; i++) {
        if (c->at[i] < c->s->n_ops[i]) return false;
        *finish = fmax(*finish, c->free_at[i]);
        busy += c->busy[i];
    }
    *idle = *finish > 0 ? 1 - busy / (stages * *finish) : 0;
    return true;
}

bool schedule_simulate(const schedule *s, const schedule_costs *costs, double *finish,
                       double *idle) {
    const size_t stages = (size_t)s->shape.stages;
    const size_t marks = stages * (size_t)(s->shape.windows * s->shape.slices) + 1;
    clockwork c = {.s = s,
                   .costs = costs,
                   .at = calloc(stages, sizeof *c.at),
                   .free_at = calloc(stages, sizeof *c.free_at),
                   .busy = calloc(stages, sizeof *c.busy),
                   .done_forward = calloc(marks, sizeof *c.done_forward),
                   .done_backward = calloc(marks, sizeof *c.done_backward)};
    if (!c.at || !c.free_at || !c.busy || !c.done_forward || !c.done_backward) abort();
    const bool ok = run(&c, finish, idle);
    free(c.at);
    free(c.free_at);
    free(c.busy);
    free(c.done_forward);
    free(c.done_backward);
    return ok;
}

/* Checks. */

static err wrong(const schedule_op *op, int stage, const char *why) {
    static const char *const kinds[] = {"forward", "forward again", "backward"};
    return err_make(ERR_BUG, "schedule", NULL,
                    "stage %d, %s of window %" PRId64 ", slice %" PRId64 ": %s", stage,
                    kinds[op->kind], op->window, op->slice, why);
}

/* What a stage has done with a window, as an order of operations sees it. */
typedef struct progress {
    int64_t forward, again, backward; /* slices done; of `again` those that are there now */
} progress;

/* Effect of one operation. `saved` counts slices with saved activations, `open` windows begun and
 * not finished. */
static err take_op(const schedule *s, int stage, const schedule_op *op, progress *of,
                   int64_t *saved, int64_t *open) {
    const int64_t slices = s->shape.slices;
    progress *p = &of[op->window];
    if (op->window < 0 || op->window >= s->shape.windows || op->slice < 0 || op->slice >= slices)
        return wrong(op, stage, "there is no such slice");
    if (op->kind == OP_BACKWARD) {
        if (p->forward < slices) return wrong(op, stage, "not all slices are forward");
        if (p->again != slices - p->backward)
            return wrong(op, stage, "its saved activations are not there");
        if (op->slice != slices - 1 - p->backward) return wrong(op, stage, "out of order");
        p->backward++;
        p->again--;
        --*saved;
        if (p->backward == slices) --*open;
        return err_none();
    }
    if (op->kind == OP_AGAIN && (p->forward < slices || p->backward || !s->shape.recompute))
        return wrong(op, stage, "not its time");
    if (s->shape.recompute && op->slice == 0) /* the room is filled anew */
        for (int64_t w = 0; w < s->shape.windows; w++) {
            *saved -= of[w].again;
            of[w].again = 0;
        }
    if (op->slice != (op->kind == OP_FORWARD ? p->forward : p->again))
        return wrong(op, stage, "out of order");
    if (op->kind == OP_FORWARD && p->forward++ == 0) ++*open;
    p->again++;
    ++*saved;
    return err_none();
}

static err check_stage(const schedule *s, int stage, int64_t *most) {
    const int64_t k = s->in_flight[stage], windows = s->shape.windows;
    progress *of = calloc((size_t)windows + 1, sizeof *of);
    int64_t saved = 0, open = 0;
    err e = err_none();
    if (!of) abort();
    *most = 0;
    for (int64_t i = 0; i < s->n_ops[stage] && !e.code; i++) {
        const schedule_op *op = &s->ops[stage * s->room + i];
        e = take_op(s, stage, op, of, &saved, &open);
        *most = size_max(*most, saved);
        if (!e.code && open > k) e = wrong(op, stage, "more windows in flight than planned");
        if (!e.code && saved > s->shape.slices * (s->shape.recompute ? 1 : k))
            e = wrong(op, stage, "more slices saved than planned");
    }
    for (int64_t w = 0; w < windows && !e.code; w++)
        if (of[w].backward < s->shape.slices)
            e = wrong(&(schedule_op){OP_BACKWARD, w, 0}, stage, "is missing");
    free(of);
    return e;
}

/* Messages between two stages are taken in the order in which they are sent. */
static err check_way(const schedule *s, int stage, op_kind kind) {
    const schedule_op *a = &s->ops[stage * s->room], *b = a + s->room;
    const schedule_op *a_end = a + s->n_ops[stage], *b_end = b + s->n_ops[stage + 1];
    for (;; a++, b++) {
        while (a < a_end && a->kind != kind) a++;
        while (b < b_end && b->kind != kind) b++;
        if (a == a_end || b == b_end) return err_none();
        if (a->window != b->window || a->slice != b->slice)
            return wrong(b, stage + 1, "is not what the stage before has in its place");
    }
}

err schedule_check(const schedule *s) {
    const schedule_costs even = {.forward = 1, .backward = 1};
    err e = err_none();
    int64_t most;
    double finish, idle;
    for (int i = 0; i < s->shape.stages && !e.code; i++) e = check_stage(s, i, &most);
    for (int i = 0; i + 1 < s->shape.stages && !e.code; i++) {
        e = check_way(s, i, OP_FORWARD);
        if (!e.code) e = check_way(s, i, OP_BACKWARD);
    }
    if (!e.code && !schedule_simulate(s, &even, &finish, &idle))
        e = err_make(ERR_BUG, "schedule", NULL, "the stages wait for each other");
    return e;
}

int64_t schedule_saved_slices(const schedule *s, int stage) {
    int64_t most;
    return check_stage(s, stage, &most).code ? -1 : most;
}

char *schedule_text(const schedule *s) {
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    if (!f) abort();
    for (int i = 0; i < s->shape.stages; i++) {
        fprintf(f, "stage %d:", i);
        for (int64_t j = 0; j < s->n_ops[i]; j++) {
            const schedule_op *op = &s->ops[i * s->room + j];
            fprintf(f, " %c%" PRId64 ".%" PRId64, "FAB"[op->kind], op -> window, op -> slice);
        }
        fputc('\n', f);
    }
    fclose(f);
    return text;
}
