/* source_tokens - special tokens that the files of a model folder say more than once, and not
 * alike: which of them counts is said, and nothing is changed. */
#ifndef SPINSHARD_JOBS_SETUP_SOURCE_TOKENS_H
#define SPINSHARD_JOBS_SETUP_SOURCE_TOKENS_H

#include "base/json.h"
#include "io/fileset.h"
#include "io/tokenizer.h"

#include <stdint.h>

/* Root only. Compares what the tokenizer puts before a text with bos_token_id of config.json and
 * with add_bos_token of tokenizer_config.json, and the tokens that begin and end a text in
 * config.json with those of generation_config.json; a line of the log for each that differs. Files
 * and keys that are not there contradict nothing. `config` is config.json. */
void source_warn_tokens(const fileset *files, const json_t *config, const tokenizer *t);

#endif
