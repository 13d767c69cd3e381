/* Character checks, and a sort without regard to case that finds names which would meet on other
 * file systems. */
#include "shard/entry_names.h"

#include "base/file.h"
#include "base/mem.h"
#include "io/fileset.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

enum { MAX_COMPONENT = 255 }; /* what file systems take */

static const char *component_fault(const char *s, size_t len) {
    if (len == 0) return "has an empty component";
    if (len > MAX_COMPONENT) return "has a component of more than 255 bytes";
    if (len == 1 && s[0] == '.') return "has a component \".\"";
    if (len == 2 && s[0] == '.' && s[1] == '.') return "has a component \"..\"";
    for (size_t i = 0; i < len; i++)
        if (s[i] < 0x20 || s[i] > 0x7e || s[i] == '\\')
            return "has a character outside printable ASCII, or a backslash";
    return NULL;
}

const char *entry_base_fault(const char *name) {
    return strchr(name, '/') ? "is not a base name" : component_fault(name, strlen(name));
}

/* What must be a base name in the name of a file. */
static const char *last_part(const char *file) {
    const size_t n = strlen(FILESET_TEMPLATES "/");
    return strncmp(file, FILESET_TEMPLATES "/", n) ? file : file + n;
}

const char *entry_file_fault(const char *name) {
    return entry_base_fault(last_part(name));
}

const char *entry_name_fault(const char *name) {
    if (name[0] == '/') return "is absolute";
    const char *slash = strchr(name, '/');
    if (!slash || strchr(last_part(slash + 1), '/')) return "is not <folder>/<base name>";
    const char *fault = component_fault(name, (size_t)(slash - name));
    return fault ? fault : entry_file_fault(slash + 1);
}

const char *entry_file(const char *name) {
    const char *slash = strchr(name, '/');
    return slash ? slash + 1 : name;
}

static int compare_folded(const void *a, const void *b) {
    return strcasecmp(*(const char *const *)a, *(const char *const *)b);
}

err entry_names_distinct(const char *const *names, int64_t n, const char *where) {
    const char **sorted;
    err e = MEM_NEW(&sorted, n, "entry names");
    if (e.code) return e;
    if (n) memcpy(sorted, names, (size_t)n * sizeof *names);
    qsort(sorted, (size_t)n, sizeof *sorted, compare_folded);
    for (int64_t i = 1; i < n && !e.code; i++) {
        if (strcasecmp(sorted[i - 1], sorted[i])) continue;
        bool same = !strcmp(sorted[i - 1], sorted[i]);
        e = err_make(ERR_VERIFY, where, "fetch it again, or quantize again",
                     same ? "the entry \"%s\" stands there twice"
                          : "the entries \"%s\" and \"%s\" differ by case alone",
                     sorted[i - 1], sorted[i]);
    }
    mem_free(sorted);
    return e;
}
