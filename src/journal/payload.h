/* SPDX-License-Identifier: Apache-2.0 */
/* Reading what an extent points at, with its checksums (J6), from a journal's directory: in the engine, or in a view's
 * process while the engine drops old history.
 *
 * Where the bytes of an extent with LSN e are: e <= base: in the base. A rewind's reference (e is the rewind's LSN):
 * in its rescue store where that has them, else in the base (kind BASE) or in their segment. Else: in the segment.
 * History moves into the base before its segments go, so a reader that finds a segment gone asks the manifest
 * again; its pin keeps the base from passing the reader's point. Segments are not recycled while anything is pinned. */
#ifndef TIDEMARK_JOURNAL_PAYLOAD_H
#define TIDEMARK_JOURNAL_PAYLOAD_H

#include "journal/base_store.h"
#include "journal/extent.h"
#include "journal/index.h"

struct payload_reader;

/* A stretch of a segment that was read at once, for a caller who goes through segments from their beginning to their end. */
#define PAYLOAD_WINDOW_BYTES (256u << 10) /* the application's requests wait behind each in the disk's queue */
struct payload_window {
    char *data; /* page-aligned */
    uint32_t segment, generation;
    uint32_t block, count; /* what is in it; count 0: nothing */
    uint32_t single_to;    /* up to there it could not be read at once */
};

/* `cache` is borrowed; at most `open_segments` segments are open at a time. */
int payload_reader_new(const char *directory, struct index_cache *cache, size_t open_segments, struct payload_reader **ret,
                       struct error *err) MUST_CHECK;
/* The same without a look at the manifest: the base went up to `base` a short time ago. When something is found to be gone it is asked. */
int payload_reader_new_at(const char *directory, struct index_cache *cache, size_t open_segments, const struct uuid *journal_id,
                          struct lsn base, struct payload_reader **ret, struct error *err) MUST_CHECK;
void payload_reader_free(struct payload_reader *p);
/* For whoever drops or thins history: it does not wait until that is done (drop_wait.h). Before reading begins. */
void payload_reader_in_drop(struct payload_reader *p);
/* The CRCs of segment `segment` are in the index `file` (a view's TAIL) instead of l0-<segment>.idx. */
int payload_reader_tail(struct payload_reader *p, uint32_t segment, const char *file, struct error *err) MUST_CHECK;
/* The same with a path from anywhere: an index that was made again. */
int payload_reader_index(struct payload_reader *p, uint32_t segment, uint32_t generation, const char *path, struct error *err) MUST_CHECK;
/* Reads all of `e` (a clipped extent, up to 1 MiB) into `data`. Thread-safe. -EBADMSG: damaged; what may be an interrupted drop is waited
 * for (drop_wait.h). */
int payload_read(struct payload_reader *p, const struct extent *e, void *data, struct error *err) MUST_CHECK;
/* The same for one thread's reads in ascending order: what `window` does not have of a segment is read with what follows it. */
int payload_read_along(struct payload_reader *p, struct payload_window *window, const struct extent *e, void *data,
                       struct error *err) MUST_CHECK;
/* `length_bytes` from `block` of a segment, checked, for event payloads (up to 1 MiB). */
int payload_read_blocks(struct payload_reader *p, uint32_t segment, uint32_t generation, uint32_t block, void *data,
                        uint32_t length_bytes, struct error *err) MUST_CHECK;
/* What no extent covers: the base. */
int payload_read_base(struct payload_reader *p, uint32_t volume, uint64_t lba, uint32_t length, void *data, struct error *err) MUST_CHECK;
struct base_store *payload_base(struct payload_reader *p);
/* The base's LSN as of the last look at the manifest. */
struct lsn payload_base_lsn(struct payload_reader *p);
int payload_refresh(struct payload_reader *p, struct error *err) MUST_CHECK;
/* Tells the reader that the base has moved (the engine's own readers, without asking the file). */
void payload_set_base_lsn(struct payload_reader *p, struct lsn base);
/* Directory of a rewind's rescue store. */
void payload_rescue_directory(const char *directory, struct lsn rewind, char *path, size_t path_bytes);

#endif
