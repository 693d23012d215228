/* SPDX-License-Identifier: Apache-2.0 */
/* The image of a stream's volumes as of a pinned point, read from the journal's files alone.
 *
 * What is asked for is looked up from the newest group of indexes to the oldest until every sector is found; from the second touch of a
 * region of 128 KiB on all of it, which is kept as a list of pieces in a bounded LRU. What no index covers is the base's.
 * Thread-safe; it blocks. */
#ifndef TIDEMARK_VIEW_IMAGE_H
#define TIDEMARK_VIEW_IMAGE_H

#include <stdatomic.h>

#include "base/error.h"
#include "block/block.h"
#include "journal/extent.h"
#include "journal/index.h"

#define IMAGE_REGION_SECTORS 256u
#define IMAGE_CACHE_BYTES (8u << 20)  /* index pages */
#define IMAGE_REGION_BYTES (8u << 20) /* resolved regions */

struct image;

/* Opens the pin `pin` of the journal in `directory`. */
int image_open(const char *directory, const char *pin, struct image **ret, struct error *err) MUST_CHECK;
/* The same although parts of the journal are damaged or missing. Indexes of segments are made again from their frames, below
 * the directory `scratch` (created; the caller's to remove). Where it cannot be known which blocks a lost record has changed,
 * every block that no later record covers is damaged: image_read gives -EBADMSG, and never wrong bytes. */
int image_open_salvage(const char *directory, const char *pin, const char *scratch, struct image **ret, struct error *err) MUST_CHECK;
/* What was found to be damaged then; text of the image. NULL from `i` on. */
const char *image_finding(const struct image *image, size_t i);
/* -EBADMSG with its name when a file is missing that image_open does not need, but the reading of the pin's point may: of one of these
 * volumes, or with `volumes` NULL of any. */
int image_check_files(const char *directory, const char *pin, const uint32_t *volumes, size_t volume_count, struct error *err) MUST_CHECK;
/* Reads all of a volume and calls visit for each range that cannot be read, ascending, in units of 4 KiB; visit's negative
 * result ends it. *done_bytes grows (of size_bytes); *stop ends it with -ECANCELED. */
typedef int (*image_damage_visit)(void *context, uint64_t offset_bytes, uint64_t length_bytes, const char *reason, struct error *err);
int image_map_damage(struct image *image, uint32_t volume, uint64_t size_bytes, image_damage_visit visit, void *context,
                     _Atomic uint64_t *done_bytes, const _Atomic bool *stop, struct error *err) MUST_CHECK;

/* The caller has made sure that nobody reads it. NULL allowed. */
void image_free(struct image *image);
struct lsn image_lsn(const struct image *image);
/* Takes the memory of its cache at once: for a process whose I/O must not wait for memory and which does not lock what it has later. */
void image_populate(struct image *image);

/* Sectors of `volume`. -EBADMSG where the journal is damaged, never wrong bytes. */
int image_read(struct image *image, uint32_t volume, uint64_t lba, uint32_t length, void *data, struct error *err) MUST_CHECK;

/* Describes [lba, lba+length) within one region of 128 KiB as pieces in ascending order without gaps: DATA, ZERO, or
 * BASE where no index covers it (lsn 0). At most IMAGE_REGION_SECTORS pieces. *ret_pieces is the caller's to free. */
int image_resolve(struct image *image, uint32_t volume, uint64_t lba, uint32_t length, struct extent **ret_pieces,
                  size_t *ret_count, struct error *err) MUST_CHECK;

/* All extents that records with LSN in (low, image's] made, newest wins: what may differ from the image at `low`. The stream
 * must end before the image is freed. */
int image_changes(struct image *image, struct lsn low, struct extent_stream **ret, struct error *err) MUST_CHECK;

/* Whether the base holds anything at `lba`, and how far that stays so (at most `length`). */
int image_base_extent(struct image *image, uint32_t volume, uint64_t lba, uint64_t length, bool *ret_present,
                      uint64_t *ret_length, struct error *err) MUST_CHECK;

/* One volume of the image as a read-only block device (writes are refused with -EROFS). The image is borrowed. */
int image_block(struct image *image, uint32_t volume, uint64_t size_bytes, struct block **ret, struct error *err) MUST_CHECK;

#endif
