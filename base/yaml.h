/* yaml - the one door to the YAML library: a YAML text as a json_t tree and back.
 * Plain scalars follow the YAML 1.2 core schema: null, true, false, integers, reals; all else is a
 * string (so `no` is a string). Refused: anchors, aliases, tags, several documents, duplicate keys.
 */
#ifndef SPINSHARD_BASE_YAML_H
#define SPINSHARD_BASE_YAML_H

#include "base/err.h"
#include "base/json.h"

/* Local. Parse; caller owns *out (json_decref). Fails with ERR_USAGE and the line. */
err yaml_parse(const char *text, size_t len, const char *where, json_t **out);

/* Local. A mapping as block YAML that yaml_parse reads back to an equal tree. Caller frees *out. */
err yaml_text(const json_t *v, char **out, size_t *len);

#endif
