/* SPDX-License-Identifier: Apache-2.0 */
/* What kind of content a block has, from a sample of it: nothing, structured (text, tables, programs, the file system's own
 * blocks) or of high entropy (encrypted or compressed). Pure: no state, no allocation, any thread.
 *
 * The measure is the number of equal pairs among n sampled bytes (the collision count; n(n-1)/2 times 2^-H2 is expected, H2
 * being the Renyi entropy of order 2). It needs no logarithm, is exact for small samples and can stop early. For n = 256
 * evenly spread bytes have 127.5 pairs with a standard deviation of 11.3; English text has about 2000. */
#ifndef TIDEMARK_SIGNAL_ESTIMATE_H
#define TIDEMARK_SIGNAL_ESTIMATE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIGNAL_BLOCK_BYTES 4096u
#define SIGNAL_SAMPLE_CHUNKS 8u
#define SIGNAL_SAMPLE_CHUNK_BYTES 32u
#define SIGNAL_SAMPLE_BYTES (SIGNAL_SAMPLE_CHUNKS * SIGNAL_SAMPLE_CHUNK_BYTES)
#define SIGNAL_ALPHABET 256u

enum signal_class {
    SIGNAL_CLASS_FREE, /* zeroes, discarded, or never seen */
    SIGNAL_CLASS_LOW,  /* structured */
    SIGNAL_CLASS_HIGH, /* encrypted or compressed */
    SIGNAL_CLASS_KEPT, /* structured, and the file system has said since that it belongs to something */
};

static inline bool signal_class_is_low(enum signal_class class)
{
    return class == SIGNAL_CLASS_LOW || class == SIGNAL_CLASS_KEPT;
}

struct signal_estimate {
    enum signal_class class;
    uint32_t samples, pairs;          /* `pairs` is complete for SIGNAL_CLASS_HIGH only: others stop early */
    uint16_t counts[SIGNAL_ALPHABET]; /* of the sampled bytes; the same holds */
};

/* `bytes`: 512 to 4096, a multiple of 512. Chunks of zeroes are left out, so that a short file's tail does not hide it. */
void signal_estimate(const void *data, size_t bytes, struct signal_estimate *ret);

/* Pearson's chi-square of `counts` against evenly spread bytes: 255 +- 22.6 for ciphertext, far more for what is merely
 * compressed, once there are some ten thousand samples. */
double signal_chi_square(const uint32_t counts[SIGNAL_ALPHABET], uint64_t samples);

#endif
