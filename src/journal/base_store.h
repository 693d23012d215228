/* SPDX-License-Identifier: Apache-2.0 */
/* A checksummed sparse image a volume: what dropped history leaves behind (the base), and what a rewind's reference
 * run still needs of it (its rescue store). `<directory>/<volume>.img` holds the bytes, `<volume>.crc` for each 4 KiB
 * block its CRC32C and a mask of the sectors that are present; absent sectors read as zeroes (J6).
 *
 * One writer; readers, in other processes too, may run beside it. A read of a block that is being changed waits until it has been (60 s,
 * then -ETIMEDOUT). What a killed writer has left half changed is -EBADMSG until the change is repeated (drop_wait.h). */
#ifndef TIDEMARK_JOURNAL_BASE_STORE_H
#define TIDEMARK_JOURNAL_BASE_STORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

struct base_store;

/* `writable` creates the directory. */
int base_store_open(const char *directory, bool writable, struct base_store **ret, struct error *err) MUST_CHECK;
void base_store_free(struct base_store *s);
/* From here on an absent block whose image holds something is damaged: its entry was lost. Not for a rescue store, where an interrupted copy leaves such. */
void base_store_expect_holes(struct base_store *s);

/* Makes a volume's files, durable, or makes them larger; every other function finds a volume without them damaged (-EBADMSG). */
int base_store_prepare(struct base_store *s, uint32_t volume, uint64_t size_bytes, struct error *err) MUST_CHECK;
/* Whether the volume's files are there and whole, by their header and lengths: -EBADMSG if not, other errors say nothing of it. */
int base_store_check(struct base_store *s, uint32_t volume, struct error *err) MUST_CHECK;
/* Replaces a volume's files by new ones: its first `lost_bytes` are as after base_store_lose, the rest absent. Done again it goes on being so, wherever
 * it was interrupted. Only before the volume is used by this store. */
int base_store_renew(struct base_store *s, uint32_t volume, uint64_t size_bytes, uint64_t lost_bytes, struct error *err) MUST_CHECK;

/* LBAs and lengths in sectors. */
int base_store_read(struct base_store *s, uint32_t volume, uint64_t lba, uint32_t length, void *data, struct error *err) MUST_CHECK;
/* `repair`: blocks that are damaged already are taken as they are: the write is repeated after a crash in it. */
int base_store_write(struct base_store *s, uint32_t volume, uint64_t lba, uint32_t length, const void *data, bool repair,
                     struct error *err) MUST_CHECK;
/* The blocks that these sectors touch cannot be known any more: reading them is an error until they are written whole. */
int base_store_lose(struct base_store *s, uint32_t volume, uint64_t lba, uint32_t length, struct error *err) MUST_CHECK;
/* Makes sectors absent. */
int base_store_clear(struct base_store *s, uint32_t volume, uint64_t lba, uint64_t length, bool repair, struct error *err) MUST_CHECK;
/* Length of the stretch at `lba`, at most `length`, that is wholly present or wholly absent; *ret_present says which. */
int base_store_extent(struct base_store *s, uint32_t volume, uint64_t lba, uint64_t length, bool *ret_present,
                      uint64_t *ret_length, struct error *err) MUST_CHECK;
/* Begins to write what base_store_write has left in the page cache, and waits for it; durable it is only after base_store_sync. After
 * an error that would not tell of it any more: what was written since the last base_store_sync has to be written again. */
int base_store_push(struct base_store *s, struct error *err) MUST_CHECK;
int base_store_sync(struct base_store *s, struct error *err) MUST_CHECK;
/* Bytes in use on disk. */
uint64_t base_store_used_bytes(struct base_store *s);

#endif
