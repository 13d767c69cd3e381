/* gptq_windows - what GPTQ keeps between two layers: of every calibration window of this rank the
 * residual stream, and the input of the linears at hand; one or two streams (GPTAQ: the quantized
 * one and that of full precision). In memory, or in files of a scratch folder. Not the forward pass
 * (model/forward.h) and no sums (gptq_moments.h). Stands between "block forward" and the Hessian.
 *
 * Windows are dealt to ranks in turn; nothing that comes out depends on who has which. Files are
 * unlinked as soon as they are open: whatever ends the run leaves none behind. */
#ifndef SPINSHARD_PIPELINE_GPTQ_GPTQ_WINDOWS_H
#define SPINSHARD_PIPELINE_GPTQ_GPTQ_WINDOWS_H

#include "base/err.h"
#include "base/half.h"
#include "model/forward.h"
#include "mpi/comm.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct gptq_windows gptq_windows;

/* The stream of the quantized model, that of full precision. */
enum { GPTQ_QUANTIZED = 0, GPTQ_FULL = 1 };

typedef struct gptq_windows_options {
    const llama_config *cfg; /* borrowed */
    const int32_t *ids;      /* borrowed; [count * length] */
    int64_t count, length;   /* all windows; tokens of one */
    int streams;             /* 1, or 2 with GPTQ_FULL */
    const char *scratch;     /* borrowed; folder for files; NULL: in memory */
} gptq_windows_options;

/* Collective on c. Zeros. Caller owns *out. Fails, agreed, with ERR_NOFIT, ERR_SPACE (the whole of
 * the files is taken at once), ERR_INPUT (a scratch folder that cannot be written). */
err gptq_windows_create(const comm *c, const gptq_windows_options *o, gptq_windows **out);
void gptq_windows_destroy(gptq_windows **w); /* local; NULL is fine; sets NULL */

/* Local. Bytes that this rank will hold in memory, and in files. */
uint64_t gptq_windows_bytes(const gptq_windows_options *o, int ranks, int rank);
uint64_t gptq_windows_file_bytes(const gptq_windows_options *o, int ranks, int rank);

const gptq_windows_options *gptq_windows_get_options(const gptq_windows *w); /* local */
int64_t gptq_windows_own(const gptq_windows *w);                   /* local; windows here */
int64_t gptq_windows_number(const gptq_windows *w, int64_t i);     /* local; of own window i */
const int32_t *gptq_windows_ids(const gptq_windows *w, int64_t i); /* local; [length] */

bool gptq_windows_in_memory(const gptq_windows *w); /* local; all of them */

/* Local. The residual stream [length, hidden] of own window i; what is changed there lasts after
 * put. Borrowed until the next get of the same stream; in memory as long as w. Fails with ERR_INPUT
 * (a file that is damaged), ERR_SPACE. */
err gptq_windows_get_x(gptq_windows *w, int stream, int64_t i, float **x);
err gptq_windows_put_x(gptq_windows *w, int stream, int64_t i);

/* Local. Get and put the input of the linears of the step at hand, [length, width of the step] in
 * bf16, with the lifetime and errors of gptq_windows_get_x. */
err gptq_windows_get_input(gptq_windows *w, int stream, int64_t i, bf16 **input);
err gptq_windows_put_input(gptq_windows *w, int stream, int64_t i);

#endif
