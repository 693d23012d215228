/* SPDX-License-Identifier: Apache-2.0 */
/* Index files: extents sorted by (volume, LBA, LSN) in checksummed 4 KiB pages under a static B+tree of fence
 * pages, so that opening one costs its header and root, and a lookup one page a level. Format: docs/formats/index.md.
 *
 * Two shapes: an L0 holds every version (several extents may cover one sector); a `flat` run holds one extent a
 * sector at most. Extra sections (events, frames, payload CRCs) are checksummed byte streams in the same file. */
#ifndef TIDEMARK_JOURNAL_INDEX_H
#define TIDEMARK_JOURNAL_INDEX_H

#include <stdbool.h>
#include <stddef.h>

#include "base/uuid.h"
#include "journal/extent.h"

enum index_kind { INDEX_L0 = 1, INDEX_RUN = 2, INDEX_REWIND = 3, INDEX_TAIL = 4 };

enum index_section {
    INDEX_SECTION_EVENTS = 0,
    INDEX_SECTION_FRAMES = 1,
    INDEX_SECTION_CRCS = 2,
    INDEX_SECTION_TAGS = 3, /* of an encrypted segment: AEAD tags by block */
    INDEX_SECTION_COUNT = 4,
};

struct index_info {
    struct uuid journal_id;
    enum index_kind kind;
    bool flat;
    uint32_t first_segment; /* what it covers, for the reader's use */
    uint32_t last_segment;
    struct lsn low;  /* covers LSNs in (low, high] */
    struct lsn high;
    uint64_t extents;    /* filled in by the writer */
    uint64_t file_bytes; /* filled in by the writer */
};

/* ---- writing: one thread; nothing is visible under `path` until finish has fsynced (but for INDEX_TAIL, which goes with its pin) and renamed it ---- */
struct index_writer;
int index_writer_new(const char *path, const struct index_info *info, struct index_writer **ret, struct error *err) MUST_CHECK;
/* Extents in ascending (volume, LBA, LSN); a flat index must not overlap. Breaking the order is a bug (assert). */
int index_writer_add(struct index_writer *w, const struct extent *extent, struct error *err) MUST_CHECK;
/* After the last extent, each section at most once. */
int index_writer_section(struct index_writer *w, enum index_section section, const void *data, size_t length_bytes,
                         struct error *err) MUST_CHECK;
int index_writer_finish(struct index_writer *w, struct error *err) MUST_CHECK;
/* NULL allowed; removes the temporary file when it was not finished. */
void index_writer_free(struct index_writer *w);

/* ---- page cache: shared by several open indexes, fixed memory, thread-safe ---- */
struct index_cache;
int index_cache_new(size_t bytes, struct index_cache **ret, struct error *err) MUST_CHECK;
/* The same, with memory that is taken when it is first used: 8 MiB at once are a good part of the time in which a point is opened. */
int index_cache_new_lazy(size_t bytes, struct index_cache **ret, struct error *err) MUST_CHECK;
/* Takes all of it now, so that no lookup waits for memory. */
void index_cache_populate(struct index_cache *cache);
void index_cache_free(struct index_cache *cache);
/* From now on only indexes of that journal are opened with the cache: one of another is damage. Before others use the cache. */
void index_cache_set_journal(struct index_cache *cache, const struct uuid *journal_id);

/* ---- reading: thread-safe; every page's CRC is checked, damage is -EBADMSG with file and page named ---- */
struct index;
int index_open(const char *path, struct index_cache *cache, struct index **ret, struct error *err) MUST_CHECK;
void index_free(struct index *index);
const struct index_info *index_info(const struct index *index);
const char *index_path(const struct index *index);

/* Calls visit for every extent of `volume` that overlaps [lba, lba+length) with LSN in (low, high], in key order,
 * whole (not clipped). A negative return of visit ends the lookup and is returned. */
typedef int (*index_visit)(void *context, const struct extent *extent, struct error *err);
int index_lookup(struct index *index, uint32_t volume, uint64_t lba, uint64_t length, struct lsn low, struct lsn high,
                 index_visit visit, void *context, struct error *err) MUST_CHECK;

uint64_t index_section_bytes(const struct index *index, enum index_section section);
int index_section_pread(struct index *index, enum index_section section, void *data, size_t length_bytes,
                        uint64_t offset, struct error *err) MUST_CHECK;

/* Reads every page and section and checks it. Reports the first damage of each page by `damage` (may be NULL); returns
 * -EBADMSG if there was any, and another error if a page could not be read. */
int index_verify(struct index *index, void (*damage)(void *context, const char *what), void *context,
                 struct error *err) MUST_CHECK;

/* ---- streams of extents, sorted by (volume, LBA, LSN) ---- */
struct extent_stream {
    /* 1 and *ret, 0 at the end, or a negative errno. */
    int (*next)(struct extent_stream *stream, struct extent *ret, struct error *err);
    void (*free)(struct extent_stream *stream);
};
/* All extents with LSN in (low, high], read ahead sequentially with a buffer of its own, not through the cache. */
int index_stream(struct index *index, struct lsn low, struct lsn high, struct extent_stream **ret, struct error *err) MUST_CHECK;
/* Over an array in memory (borrowed, sorted). */
int extent_stream_array(const struct extent *extents, size_t count, struct lsn low, struct lsn high,
                        struct extent_stream **ret, struct error *err) MUST_CHECK;
void extent_stream_free(struct extent_stream *stream);

/* Newest wins: joins any number of streams (each may overlap itself) into flat, ascending, non-overlapping
 * extents: each sector comes from the covering extent with the greatest LSN. Extents are clipped with their positions
 * moved along; neighbours that continue each other (same volume, LSN, kind, flags, segment; adjacent LBA and
 * position) are joined while they stay within the kind's maximum length. Memory is bounded by the extents that overlap one sector.
 * The result is a stream too; it owns the inputs. */
int extent_sweep(struct extent_stream **streams, size_t count, struct extent_stream **ret, struct error *err) MUST_CHECK;

#endif
