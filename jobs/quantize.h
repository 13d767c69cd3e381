/* quantize - checkpoint in, archive out: the command as named steps, and the table of its phases,
 * which `plan` walks too. */
#ifndef SPINSHARD_JOBS_QUANTIZE_H
#define SPINSHARD_JOBS_QUANTIZE_H

#include "jobs/run/phase.h"

err job_quantize(const comm *c, const options *o); /* collective on c */
const phase_table *quantize_phases(void);          /* local */

#endif
