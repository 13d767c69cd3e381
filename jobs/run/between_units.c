/* Units of small models are short: events come at most once a second, at the last, and where the
 * run stops. */
#include "jobs/run/between_units.h"

#include "base/clock.h"
#include "base/log.h"
#include "jobs/run/stop.h"

/* Root only. */
static void tell(quantize_run *q, const char *phase, int64_t done, int64_t total, bool stop) {
    const double now = clock_now_s();
    run_state_heartbeat(q->state);
    if (done < total && now - q->unit_told_s < 1 && !stop) return;
    q->unit_told_s = now;
    events_add(q->events, phase, "unit",
               json_pack("{s:I, s:I}", "done", (json_int_t)done, "total", (json_int_t)total));
}

err between_units(quantize_run *q, const comm *c, const char *phase, int64_t done, int64_t total) {
    const bool stop = done < total && stop_agreed(c);
    if (q->state) tell(q, phase, done, total, stop);
    log_progress(phase, done, total);
    return stop ? stop_error(q->out) : err_none();
}
