/* Signatures are those of the formats' own specifications. */
#include "base/file_kind.h"

#include <string.h>

#define SIGNATURE(s) s, sizeof s - 1
#define TEXTS        "write its texts into a file, one after the other"
#define DATA_SET                                                                                   \
    "write its texts into a file: python -c \"import datasets, sys; [print(x['text']) for x in "   \
    "datasets.load_dataset('parquet', data_files=sys.argv[1])['train']]\" FILE > TEXT"
#define FETCH_PAGE "download the file again: this is what a server answered instead"

static const struct {
    const char *bytes;
    size_t n;
    bool text; /* it may be meant as a text */
    const char *kind, *hint;
} signatures[] = {
    {SIGNATURE("version https://git-lfs"), false, "a Git LFS pointer",
     "fetch the file itself with `git lfs pull`"},
    {SIGNATURE("<!DOCTYPE"), true, "a web page", FETCH_PAGE},
    {SIGNATURE("<!doctype"), true, "a web page", FETCH_PAGE},
    {SIGNATURE("<html"), true, "a web page", FETCH_PAGE},
    {SIGNATURE("\x1f\x8b"), false, "compressed by gzip", "unpack it: gzip -dk FILE"},
    {SIGNATURE("\x28\xb5\x2f\xfd"), false, "compressed by zstd", "unpack it: zstd -d FILE"},
    {SIGNATURE("BZh"), false, "compressed by bzip2", "unpack it: bzip2 -dk FILE"},
    {SIGNATURE("\xfd"
               "7zXZ"),
     false, "compressed by xz", "unpack it: xz -dk FILE"},
    {SIGNATURE("PAR1"), false, "a parquet file", DATA_SET},
    {SIGNATURE("ARROW1"), false, "an Arrow file", TEXTS},
    {SIGNATURE("\x89HDF\r\n"), false, "an HDF5 file", TEXTS},
    {SIGNATURE("SQLite format 3"), false, "an SQLite data base", TEXTS},
    {SIGNATURE("PK\x03\x04"), false, "a zip archive", "unpack it: unzip FILE"},
    {SIGNATURE("\x93NUMPY"), false, "a NumPy array",
     "token ids are read as text: --calib-ids FILE, with integers between white space"},
    {SIGNATURE("\x80\x04\x95"), false, "a pickled file", "write its texts into a file"},
    {SIGNATURE("GGUF"), true, "a GGUF file", "take the original checkpoint in safetensors form"},
    {SIGNATURE("%PDF-"), false, "a PDF file", "write its text into a file: pdftotext FILE"},
    {SIGNATURE("\xff\xfe"), false, "UTF-16", "convert it: iconv -f UTF-16 -t UTF-8 FILE"},
    {SIGNATURE("\xfe\xff"), false, "UTF-16", "convert it: iconv -f UTF-16 -t UTF-8 FILE"},
};

/* Every other byte, from `first` on, is zero and no other one: as UTF-16 writes the characters of
 * western texts, which are UTF-8 too, if of control characters. */
static bool zeros_from(const char *data, size_t len, size_t first) {
    const size_t n = len < 32 ? len : 32;
    for (size_t i = 0; i < n; i++)
        if (!data[i] != (i % 2 == first)) return false;
    return n >= 8;
}

const char *file_kind(const void *data, size_t len, bool text, const char **hint) {
    for (size_t i = 0; i < sizeof signatures / sizeof *signatures; i++) {
        if (len < signatures[i].n || memcmp(data, signatures[i].bytes, signatures[i].n) != 0 ||
            (text && signatures[i].text))
            continue;
        *hint = signatures[i].hint;
        return signatures[i].kind;
    }
    const bool little = zeros_from(data, len, 1);
    if (!little && !zeros_from(data, len, 0)) return NULL;
    *hint = little ? "convert it: iconv -f UTF-16LE -t UTF-8 FILE"
                   : "convert it: iconv -f UTF-16BE -t UTF-8 FILE";
    return "UTF-16";
}

err file_kind_refuse(const char *where, const void *data, size_t len, bool text,
                     const char *wanted) {
    const char *hint, *kind = file_kind(data, len, text, &hint);
    return kind ? err_make(ERR_INPUT, where, hint, "is %s, not %s", kind, wanted) : err_none();
}
