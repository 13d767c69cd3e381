/* card_front - the front matter of a model card: what hubs read of a model, carried over from the
 * card of the source where it says so. Not the text of the card (shard/small_files.h). */
#ifndef SPINSHARD_SHARD_CARD_FRONT_H
#define SPINSHARD_SHARD_CARD_FRONT_H

#include "base/err.h"
#include "base/json.h"
#include "io/fileset.h"
#include "shard/form.h"

#include <stdio.h>

/* Local. The front matter of README.md of the source: an object; NULL where there is no card, none
 * of it, or it is not YAML as base/yaml.h reads it, which is logged and is no error. Caller owns
 * *out. */
err card_front_read(const fileset *source, json_t **out);

/* Local. That of an archive to f, between lines of dashes: base_model (NULL: not known) with
 * base_model_relation, library_name; license, license_name, license_link, language and pipeline_tag
 * of `source` (may be NULL); its tags behind those of the archive. s: how its
 * linears are stored. */
void card_front_put(FILE *f, const json_t *source, const char *base_model, const form_scheme *s);

#endif
