/* run_end - what a run tells of itself over all its starts: at a new start how the last one ended,
 * at its end what it took in all and how good the weights are. From its events alone; not its
 * report (jobs/reporting/). */
#ifndef SPINSHARD_JOBS_RUN_RUN_END_H
#define SPINSHARD_JOBS_RUN_RUN_END_H

/* Root only. Says so where the last start ended without a word. */
void run_tell_death(const char *out_dir);
/* Root only. Time, node hours, starts; errors of weights or of the outputs of GPTQ's layers. */
void run_tell_totals(const char *out_dir);

#endif
