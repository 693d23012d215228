/* SPDX-License-Identifier: Apache-2.0 */
/* Cold segments: files that hold the blocks of a sealed segment in chunks which are compressed one by one, so that any block is
 * read without the rest (docs/formats/journal.md, Cold segment). What a block holds, and its number, are those of the segment that was
 * compressed: indexes, runs, pins and rewinds need not know.
 *
 * CS1  A file with its final name is whole and durable.
 * CS2  Damage of a chunk costs the blocks of this chunk; header block and table are there twice.
 * CS3  In an encrypted journal the blocks are compressed first; chunks and table are authenticated by their place. */
#ifndef TIDEMARK_JOURNAL_COLD_H
#define TIDEMARK_JOURNAL_COLD_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"
#include "journal/journal_format.h"
#include "lib/aead.h"

/* ---- reading; thread-safe. Each thread that reads keeps the last chunk it has read, and the memory for one. ---- */
struct cold_reader;
/* Takes `fd` over when it succeeds. -EBADMSG: header or table are damaged in both copies. */
int cold_open(const char *path, int fd, struct cold_reader **ret, struct error *err) MUST_CHECK;
void cold_close(struct cold_reader *c);
/* Reads blocks [block, block + count), block 0 is not there. -ENODATA beyond the end. -EBADMSG: damaged chunks, whose blocks are
 * filled with something that matches no checksum; the others are right. */
int cold_read(struct cold_reader *c, uint32_t block, uint32_t count, void *data) MUST_CHECK;
/* The header block that was taken, not necessarily the first in the file. */
const void *cold_header_block(const struct cold_reader *c);
/* Whether a copy of header block or table is damaged: the other one was used. */
bool cold_is_worn(const struct cold_reader *c);

/* ---- writing ---- */
struct cold_writer;
/* Writes <path>.tmp. `key` (NULL: plain) is borrowed. */
int cold_writer_new(const char *path, struct aead *key, struct cold_writer **ret, struct error *err) MUST_CHECK;
/* The next blocks, from number 1 on, as they were before any encryption. */
int cold_writer_add(struct cold_writer *w, const void *blocks, uint32_t count, struct error *err) MUST_CHECK;
/* So far. */
uint64_t cold_writer_plain_bytes(const struct cold_writer *w);
uint64_t cold_writer_stored_bytes(const struct cold_writer *w);
/* `header_block`: the segment's, with its salt where it is encrypted; it gets its size, flag and CRC. Afterwards `path` is there,
 * durably. */
int cold_writer_finish(struct cold_writer *w, void *header_block, uint32_t *ret_kib, struct error *err) MUST_CHECK;
/* Removes what is not finished, unless `leave` (a test's kill). NULL allowed. */
void cold_writer_free(struct cold_writer *w, bool leave);

#endif
