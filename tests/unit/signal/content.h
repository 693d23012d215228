/* SPDX-License-Identifier: Apache-2.0 */
/* Contents of known kinds, from a seed. */
#ifndef TIDEMARK_TESTS_SIGNAL_CONTENT_H
#define TIDEMARK_TESTS_SIGNAL_CONTENT_H

#include <string.h>

#include "check.h"

/* As evenly spread as ciphertext. */
static inline void content_cipher(unsigned char *data, size_t bytes, uint64_t *state)
{
    for (size_t at = 0; at < bytes; at += 8) {
        uint64_t x = check_random(state);
        memcpy(data + at, &x, bytes - at < 8 ? bytes - at : 8);
    }
}

/* High entropy, but not even: one byte in 16 is drawn from half of the alphabet, as what a Huffman coder leaves. */
static inline void content_compressed(unsigned char *data, size_t bytes, uint64_t *state)
{
    content_cipher(data, bytes, state);
    for (size_t at = 0; at < bytes; at += 1 + check_random(state) % 31)
        data[at] &= 0x7f;
}

static inline void content_text(unsigned char *data, size_t bytes, uint64_t *state)
{
    static const char *const words[] = {"the ",  "invoice ", "of ",     "customer ", "number ", "is ",    "to be ",   "paid ",
                                        "until ", "March.\n", "Please ", "quote ",    "this, ",  "total ", "amount: ", "12.50 "};
    for (size_t at = 0; at < bytes;) {
        const char *word = words[check_random(state) % 16];
        size_t n = strlen(word), room = bytes - at;
        memcpy(data + at, word, n < room ? n : room);
        at += n;
    }
}

/* Rows of a table: counters, small numbers, names, padding. */
static inline void content_table(unsigned char *data, size_t bytes, uint64_t *state)
{
    memset(data, 0, bytes);
    for (size_t at = 0; at + 64 <= bytes; at += 64) {
        uint32_t id = (uint32_t)(at / 64), amount = (uint32_t)(check_random(state) % 10000);
        memcpy(data + at, &id, 4);
        memcpy(data + at + 8, &amount, 4);
        content_text(data + at + 16, 40, state);
    }
}

static inline void content_base64(unsigned char *data, size_t bytes, uint64_t *state)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t at = 0; at < bytes; at++)
        data[at] = at % 65 == 64 ? '\n' : (unsigned char)digits[check_random(state) % 64];
}

#endif
