/* The largest phase decides whether a plan fits; its largest buffer is named where it does not. */
#include "jobs/run/run_plan.h"

#include "base/size.h"

#include <math.h>
#include <string.h>

const plan_phase *plan_find(const run_plan *p, const char *name) {
    for (int i = 0; i < p->n_phases; i++)
        if (!strcmp(p->phases[i].name, name)) return &p->phases[i];
    return NULL;
}

const plan_phase *plan_largest(const run_plan *p) {
    const plan_phase *best = &p->phases[0];
    for (int i = 1; i < p->n_phases; i++)
        if (memory_plan_total(&p->phases[i].memory) > memory_plan_total(&best->memory))
            best = &p->phases[i];
    return best;
}

double plan_seconds(const run_plan *p) {
    double sum = 0;
    for (int i = 0; i < p->n_phases; i++) sum += p->phases[i].seconds;
    return sum;
}

/* Measured rates are those of cores: what a disk does stays by the table, half or twice as fast. */
#define DISK 2.0

double plan_low(const run_plan *p, const plan_phase *f) {
    return f->seconds / (f->disk ? fmax(DISK, p->rates.faster) : p->rates.faster);
}

double plan_high(const run_plan *p, const plan_phase *f) {
    return f->seconds * (f->disk ? fmax(DISK, p->rates.spread) : p->rates.spread);
}

bool plan_fits(const run_plan *p) {
    return !p->place.limit || memory_plan_total(&plan_largest(p)->memory) <= p->place.limit;
}

err plan_refuse(const run_plan *p, const char *hint) {
    const plan_phase *f = plan_largest(p);
    const memory_plan *m = &f->memory;
    char need[32], have[32], most[32];
    int b = 0;
    if (plan_fits(p)) return err_none();
    for (int i = 1; i < m->n; i++)
        if (m->buffers[i].bytes > m->buffers[b].bytes) b = i;
    return err_make(
        ERR_NOFIT, f->name, hint, "needs %s on rank %d (most of it %s, %s), and a rank has %s (%s)",
        size_text(memory_plan_total(m), need), f->rank, m->buffers[b].name,
        size_text(m->buffers[b].bytes, most), size_text(p->place.limit, have), p->place.limit_from);
}
