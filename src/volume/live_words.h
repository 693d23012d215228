/* SPDX-License-Identifier: Apache-2.0 */
/* The words of a map of grains in shared memory, where a kill loses nothing and a loss of power everything: what they say is believed by the
 * next opening if it is of the same thing (`id`) and size, and was said to be trusted. */
#ifndef TIDEMARK_VOLUME_LIVE_WORDS_H
#define TIDEMARK_VOLUME_LIVE_WORDS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct live_words {
    void *memory; /* NULL: not open */
    size_t memory_bytes;
    _Atomic uint64_t *words;
};

/* Maps the file `path`, made when it is missing. *ret_valid: it is trusted, of that id and size; else it is not trusted, and holds anything. */
int live_words_open(struct live_words *w, const char *path, uint64_t grains, const uint8_t id[16], bool *ret_valid, struct error *err) MUST_CHECK;
void live_words_trust(struct live_words *w, bool trusted);
/* A number that stands with them, whose meaning is the caller's; 0 at first. */
void live_words_set_number(struct live_words *w, uint64_t number);
uint64_t live_words_number(const struct live_words *w);
/* Not open: nothing. */
void live_words_close(struct live_words *w);

#endif
