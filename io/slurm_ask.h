/* slurm_ask - what Slurm says of a job, by its command squeue. Nothing is submitted or changed. */
#ifndef SPINSHARD_IO_SLURM_ASK_H
#define SPINSHARD_IO_SLURM_ASK_H

typedef enum slurm_word {
    SLURM_SILENT, /* no squeue here, or no answer: nobody knows */
    SLURM_THERE,  /* its processes run, or are being ended */
    SLURM_GONE,   /* none of its processes is left, or its user hides it from others */
} slurm_word;

/* Local. A step of a job; step "" asks for the whole job. Takes up to 10 s. */
slurm_word slurm_ask(const char *job, const char *step);

/* Local. The name of the cluster that answers here, from the environment of a job or from Slurm,
 * which takes up to 10 s; "" where neither knows. Ids of jobs mean something within one cluster
 * only. */
void slurm_cluster(char name[64]);

#endif
