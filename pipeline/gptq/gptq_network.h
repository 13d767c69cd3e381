/* gptq_network - how many bytes go between ranks for a layer of GPTQ, counted as mpi/comm.h counts
 * them: for plans. Not a measurement. */
#ifndef SPINSHARD_PIPELINE_GPTQ_GPTQ_NETWORK_H
#define SPINSHARD_PIPELINE_GPTQ_GPTQ_NETWORK_H

#include "pipeline/gptq/gptq_layer.h"

/* Local. Bytes of a layer that each party but one gets or gives, without what ScaLAPACK sends; of
 * so many parties, ranks or nodes. s->c and s->ids are not looked at. */
uint64_t gptq_network_bytes(const gptq_settings *s, int parties);

#endif
