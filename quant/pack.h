/* pack - codes to the INT words of compressed-tensors' `pack-quantized` form and back.
 * Element i of a row takes the bits [i*b, i*b + b) of the row's bit string; words are little-endian
 * int32, so at 4 bits the low nibble comes first, 8 a word. A row is filled up with zero bits.
 * Zero points are packed the same way down the columns: element j along the outputs.
 * Codes are in offset form (quant/rtn.h). Not scales, not files. On the way: codes -> shard bytes.
 * Source: compressed-tensors, pack_quantized; 3, 5, 6, 7 bits are dense as from its version 0.17.
 */
#ifndef SPINSHARD_QUANT_PACK_H
#define SPINSHARD_QUANT_PACK_H

#include <stdint.h>

/* Local. Words that n codes of `bits` take: ceil(n * bits / 32). */
int64_t pack_words(int64_t n, int bits);

/* Local. n codes (0..2^bits - 1, bits 2..8) to pack_words(n, bits) words and back. */
void pack_row(const uint8_t *codes, int64_t n, int bits, int32_t *words);
void unpack_row(const int32_t *words, int64_t n, int bits, uint8_t *codes);

/* Local. Codes [rows, cols] to words [rows, pack_words(cols)]; rows are shared out to threads. */
void pack_rows(const uint8_t *codes, int64_t rows, int64_t cols, int bits, int32_t *words);
void unpack_rows(const int32_t *words, int64_t rows, int64_t cols, int bits, uint8_t *codes);

/* Local. Zero points [rows, groups] (offset form: signed zero + 2^(b-1)) to words
 * [pack_words(rows, bits), groups] and back. */
void pack_zeros(const uint8_t *zeros, int64_t rows, int64_t groups, int bits, int32_t *words);
void unpack_zeros(const int32_t *words, int64_t rows, int64_t groups, int bits, uint8_t *zeros);

#endif
