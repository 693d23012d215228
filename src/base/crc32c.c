/* SPDX-License-Identifier: Apache-2.0 */
/* The hardware path runs three independent CRC streams and joins them by a precomputed shift, because the
 * instruction has a latency of three cycles and a throughput of one (Intel: "Fast CRC Computation for iSCSI
 * Polynomial Using CRC32 Instruction"). */
#include "base/crc32c.h"

#include <pthread.h>
#include <string.h>

#define POLYNOMIAL 0x82f63b78u /* reflected */
#define STREAM_BYTES 1024u     /* three streams cover 3 KiB, a 4 KiB block is one round and a tail */

static uint32_t byte_table[256];
static uint32_t shift_table[4][256]; /* effect of STREAM_BYTES zero bytes on each byte of a CRC */
static pthread_once_t tables_once = PTHREAD_ONCE_INIT;

static uint32_t step_zeroes(uint32_t crc, size_t count)
{
    while (count--)
        crc = crc >> 8 ^ byte_table[crc & 255];
    return crc;
}

static void make_tables(void)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int bit = 0; bit < 8; bit++)
            c = c & 1 ? c >> 1 ^ POLYNOMIAL : c >> 1;
        byte_table[i] = c;
    }
    for (unsigned b = 0; b < 4; b++)
        for (uint32_t i = 0; i < 256; i++)
            shift_table[b][i] = step_zeroes(i << (8 * b), STREAM_BYTES);
}

uint32_t crc32c_portable(uint32_t crc, const void *data, size_t length_bytes)
{
    pthread_once(&tables_once, make_tables);
    const unsigned char *p = data;
    crc = ~crc;
    while (length_bytes--)
        crc = crc >> 8 ^ byte_table[(crc ^ *p++) & 255];
    return ~crc;
}

#if defined(__x86_64__)
#include <nmmintrin.h>

static uint32_t shift(uint32_t crc)
{
    return shift_table[0][crc & 255] ^ shift_table[1][crc >> 8 & 255] ^ shift_table[2][crc >> 16 & 255] ^
           shift_table[3][crc >> 24];
}

static inline uint64_t load64(const unsigned char *p)
{
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

__attribute__((target("sse4.2"))) static uint32_t crc32c_sse42(uint32_t crc, const void *data, size_t length_bytes)
{
    const unsigned char *p = data;
    uint64_t a = ~crc & 0xffffffffu;
    while (length_bytes >= 3 * STREAM_BYTES) {
        uint64_t b = 0, c = 0;
        for (size_t i = 0; i < STREAM_BYTES; i += 8) {
            a = _mm_crc32_u64(a, load64(p + i));
            b = _mm_crc32_u64(b, load64(p + STREAM_BYTES + i));
            c = _mm_crc32_u64(c, load64(p + 2 * STREAM_BYTES + i));
        }
        a = shift(shift((uint32_t)a) ^ (uint32_t)b) ^ (uint32_t)c;
        p += 3 * STREAM_BYTES;
        length_bytes -= 3 * STREAM_BYTES;
    }
    for (; length_bytes >= 8; p += 8, length_bytes -= 8)
        a = _mm_crc32_u64(a, load64(p));
    while (length_bytes--)
        a = _mm_crc32_u8((uint32_t)a, *p++);
    return ~(uint32_t)a;
}

uint32_t crc32c(uint32_t crc, const void *data, size_t length_bytes)
{
    if (!__builtin_cpu_supports("sse4.2"))
        return crc32c_portable(crc, data, length_bytes);
    pthread_once(&tables_once, make_tables);
    return crc32c_sse42(crc, data, length_bytes);
}
#else
uint32_t crc32c(uint32_t crc, const void *data, size_t length_bytes)
{
    return crc32c_portable(crc, data, length_bytes);
}
#endif
