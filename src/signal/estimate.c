/* SPDX-License-Identifier: Apache-2.0 */
#include "signal/estimate.h"

#include <string.h>

#define WORDS (SIGNAL_SAMPLE_CHUNK_BYTES / sizeof(uint64_t))
#define MIN_SAMPLES (2 * SIGNAL_SAMPLE_CHUNK_BYTES)

/* The most pairs that n evenly spread bytes may have: mean + 5 standard deviations (both of n(n-1)/2 pairs that are equal
 * with probability 1/256), by the number of chunks. */
static const uint16_t pairs_max[SIGNAL_SAMPLE_CHUNKS + 1] = {0, 8, 22, 39, 60, 85, 115, 147, 184};

static int chunk_is_zero(const unsigned char *chunk)
{
    uint64_t words[WORDS], any = 0;
    memcpy(words, chunk, sizeof words);
    for (size_t i = 0; i < WORDS; i++)
        any |= words[i];
    return any == 0;
}

/* Where chunk i lies in its eighth of the block: not always at the same place, since tables repeat by powers of two. */
static size_t chunk_offset(size_t i, size_t stride)
{
    return i * stride + (i * 5 % SIGNAL_SAMPLE_CHUNKS) * ((stride - SIGNAL_SAMPLE_CHUNK_BYTES) / SIGNAL_SAMPLE_CHUNKS);
}

void signal_estimate(const void *data, size_t bytes, struct signal_estimate *ret)
{
    const unsigned char *p = data;
    size_t stride = bytes / SIGNAL_SAMPLE_CHUNKS;
    uint32_t pairs = 0, chunks = 0;
    memset(ret, 0, sizeof *ret);
    for (size_t i = 0; i < SIGNAL_SAMPLE_CHUNKS; i++) {
        const unsigned char *chunk = p + chunk_offset(i, stride);
        if (chunk_is_zero(chunk))
            continue;
        for (size_t k = 0; k < SIGNAL_SAMPLE_CHUNK_BYTES; k++)
            pairs += ret->counts[chunk[k]]++;
        if (pairs > 2u * pairs_max[++chunks] + SIGNAL_SAMPLE_CHUNK_BYTES)
            break; /* structured beyond doubt: text is found out by its second chunk */
    }
    ret->samples = chunks * SIGNAL_SAMPLE_CHUNK_BYTES;
    ret->pairs = pairs;
    ret->class = chunks == 0                                                    ? SIGNAL_CLASS_FREE
                 : pairs <= pairs_max[chunks] && ret->samples >= MIN_SAMPLES ? SIGNAL_CLASS_HIGH
                                                                             : SIGNAL_CLASS_LOW;
}

double signal_chi_square(const uint32_t counts[SIGNAL_ALPHABET], uint64_t samples)
{
    double expected = (double)samples / SIGNAL_ALPHABET, sum = 0;
    if (samples == 0)
        return 0;
    for (size_t i = 0; i < SIGNAL_ALPHABET; i++) {
        double d = (double)counts[i] - expected;
        sum += d * d;
    }
    return sum / expected;
}
