/* Characters that HTML and Markdown have alike: both are UTF-8. */
#include "jobs/reporting/report_figure.h"

#include <math.h>

void report_figure(FILE *f, const json_t *o, const char *key, double times, int digits) {
    char error[64];
    snprintf(error, sizeof error, "%s_stderr", key);
    const double v = json_real_of(o, key), e = json_real_of(o, error);
    if (!isfinite(v)) {
        fputs("-", f);
        return;
    }
    fprintf(f, "%.*f", digits, times * v);
    if (isfinite(e)) fprintf(f, " \u00b1 %.*f", digits, times * e);
}
