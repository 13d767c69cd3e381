/* One comma at a time. */
#include "jobs/setup/list_word.h"

#include <stdlib.h>
#include <string.h>

char *list_word_next(const char **at) {
    if (!*at) return NULL;
    const size_t n = strcspn(*at, ",");
    char *name = strndup(*at, n);
    if (!name) abort();
    *at = (*at)[n] ? *at + n + 1 : NULL;
    return name;
}
