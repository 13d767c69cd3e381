/* The jobs are played through, unit by unit, with times at the long end of their range: what a job
 * does in a shorter time does no harm, what takes longer must not be promised. */
#include "jobs/planning/plan_slices.h"

#include "base/size.h"

#include <math.h>
#include <stdio.h>

/* From the start of a job to its first unit: ranks start, headers and calibration text are read.
 * And from the last unit to the end: a commit is flushed. */
enum { START_S = 20, END_S = 30, LEAST_LEAD_S = 60 };

static double unit_seconds(const plan_phase *f) {
    return f->seconds / (double)size_max(1, f->units);
}

/* The job at hand. */
typedef struct slice {
    double left_s;
    bool forward; /* a unit of some phase was finished in it */
    bool ready;   /* what its phase needs first is there */
} slice;

static slice fresh(double room_s) {
    return (slice){.left_s = room_s - START_S};
}

/* All units of f, in as many jobs as it takes. False where a job finishes none of them. */
static bool play(const run_plan *p, const plan_phase *f, double room_s, slice *at, plan_slices *s) {
    const double longer = p->rates.spread, unit = longer * unit_seconds(f);
    bool repeats = false;
    for (int64_t done = 0; done < f->units;) {
        if (!at->ready) {
            const double first = longer * (f->again_s + f->again_unit_s * (double)done);
            at->left_s -= first;
            at->ready = true;
            if (repeats) s->again_s += first;
        }
        /* Not by a division: a unit may take no time. */
        const double fit = unit * (double)(f->units - done) <= at->left_s
                               ? (double)(f->units - done)
                               : fmax(0, floor(at->left_s / unit));
        done += (int64_t)fit;
        at->left_s -= fit * unit;
        at->forward |= fit > 0;
        if (done == f->units) break;
        if (!at->forward) return false;
        *at = fresh(room_s);
        s->n++;
        repeats = true;
    }
    return true;
}

/* Plays the whole run with jobs of room_s until their signal; the phase that is stuck, or NULL. */
static const plan_phase *play_all(const run_plan *p, double room_s, plan_slices *s) {
    const plan_phase *before = NULL;
    slice at = fresh(room_s);
    s->n = 1;
    s->again_s = 0;
    for (int i = 0; i < p->n_phases; i++) {
        const plan_phase *f = &p->phases[i];
        if (!f->units) continue; /* done by those that need it */
        /* What a job has captured itself it need not read back. */
        if (before && before->again_s != f->again_s) at.ready = before->saved_bytes > 0;
        before = f;
        if (!play(p, f, room_s, &at, s)) return f;
    }
    return NULL;
}

plan_slices plan_slices_of(const run_plan *p, double limit_s) {
    enum { HALVINGS = 20 };
    plan_slices s = {.n = 1, .waits = &p->phases[0]}, unused;
    for (int i = 1; i < p->n_phases; i++)
        if (p->phases[i].blind_s > s.waits->blind_s) s.waits = &p->phases[i];
    s.lead_s = fmax(LEAST_LEAD_S, ceil(p->rates.spread * s.waits->blind_s) + END_S);
    if (limit_s <= 0) return s;
    s.stuck = play_all(p, limit_s - s.lead_s, &s);
    if (!s.stuck) return s;
    /* The shortest that does, between this one and one that is surely long enough. */
    double low = limit_s, high = limit_s;
    for (int k = 0; k < HALVINGS && play_all(p, high - s.lead_s, &unused); k++) high *= 2;
    for (int k = 0; k < HALVINGS && high - low > 1; k++) {
        const double mid = (low + high) / 2;
        if (play_all(p, mid - s.lead_s, &unused))
            low = mid;
        else
            high = mid;
    }
    s.least_s = ceil(high / 60) * 60;
    return s;
}

err plan_slices_refuse(const run_plan *p, double limit_s) {
    const plan_slices s = plan_slices_of(p, limit_s);
    const double longer = p->rates.spread;
    char hint[128];
    if (!s.stuck) return err_none();
    snprintf(hint, sizeof hint, "give --time %.0fm or more, or more nodes", s.least_s / 60);
    return err_make(ERR_NOFIT, "--time", hint,
                    "a job of %.0f min may finish nothing of %s, and so would all that follow: it "
                    "needs %d s to start, up to %.0f s to be where it was, %.0f s for a unit, and "
                    "%.0f s to stop",
                    limit_s / 60, s.stuck->name, START_S,
                    longer * (s.stuck->again_s + s.stuck->again_unit_s * (double)s.stuck->units),
                    longer * unit_seconds(s.stuck), s.lead_s);
}
