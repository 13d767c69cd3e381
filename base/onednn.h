/* onednn - the calls of oneDNN that its versions 2 and 3 spell differently: making a matmul of bf16
 * factors with fp32 sums, and the reorder that packs its second factor. Descriptors are structs in
 * version 2 and handles in version 3; all that comes after creation is the same in both. One file a
 * version, base/onednn2.c and base/onednn3.c; for base/gemm_bf16.c alone, which keeps and runs
 * them. */
#ifndef SPINSHARD_BASE_ONEDNN_H
#define SPINSHARD_BASE_ONEDNN_H

#include <oneapi/dnnl/dnnl.h>
#include <stdbool.h>
#include <stdint.h>

/* c[m,n] = a[m,k] b[k,n], plus c where add. Strides of rows in elements; b is transposed in memory,
 * or, where packed, in the order that the kernel likes best (trans_b and ldb are 0 then). */
typedef struct matmul_key {
    int64_t m, n, k, lda, ldb, ldc;
    int64_t trans_b, add; /* 64 bits: no padding, so keys compare by memcmp */
    int64_t packed;
} matmul_key;

typedef struct matmul {
    matmul_key key;
    dnnl_primitive_t primitive; /* NULL: free slot */
    dnnl_memory_t a, b, c;      /* without data */
    size_t b_bytes;
    dnnl_primitive_t pack; /* NULL, or b as it is into the kernel's order */
    dnnl_memory_t loose, packed;
    int64_t loose_trans, loose_ld;
    bool in_pairs; /* b packed is BA16a64b2a: blocks of 64 columns, rows two by two */
} matmul;

/* Local. Everything of *out but its packing; the first status that is not success. */
dnnl_status_t onednn_matmul_create(dnnl_engine_t engine, const matmul_key *k, matmul *out);

/* Local. pack, loose and packed of *p, for b [k,n] or transposed, with that stride. */
dnnl_status_t onednn_pack_create(dnnl_engine_t engine, bool trans_b, int64_t ldb, matmul *p);

#endif
