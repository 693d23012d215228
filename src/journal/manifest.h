/* SPDX-License-Identifier: Apache-2.0 */
/* The manifest: which segments, runs, volumes, rewinds and refused intervals a journal has. One file, replaced as a
 * whole (io_replace_file), so that after a crash either the old or the new one is there; and then a copy of it, so that
 * either of the two is enough. A struct manifest is plain data; its owner guards it. */
#ifndef TIDEMARK_JOURNAL_MANIFEST_H
#define TIDEMARK_JOURNAL_MANIFEST_H

#include <stdbool.h>
#include <stddef.h>

#include "base/uuid.h"
#include "journal/journal_format.h"
#include "journal/lsn.h"

#define MANIFEST_MAX_VOLUMES 256u
#define MANIFEST_MAX_SEGMENTS 1048576u
#define MANIFEST_MAX_REWINDS 4096u
#define MANIFEST_MAX_REFUSED 4096u
#define MANIFEST_MAX_RESIZES 4096u

struct volume_info {
    uint32_t id;
    uint64_t size_bytes;
    struct lsn created, deleted; /* deleted.n 0: in use */
    char name[JOURNAL_NAME_BYTES];
    bool adopted; /* its backing held something when it was created */
    bool seeding; /* what that was is still being copied to the base */
    bool taken;   /* it was adopted because its history of before was lost, not because it was asked for */
};
struct segment_info {
    uint32_t number, used_blocks, records, events, frames, index_kib, epoch, first_previous_crc;
    uint64_t first_frame;
    struct lsn first, last; /* LSNs of its records; last < first when it has none */
    uint64_t first_realtime_ns, last_realtime_ns, first_boottime_ns, last_boottime_ns;
    struct uuid boot;
    uint32_t keep_s;     /* points are kept at this distance; 0: every one */
    uint16_t generation; /* how often it was thinned; part of its files' names */
    bool open_end;       /* its last LSN lies between two kept points: no base can end there */
    uint32_t cold_kib;   /* size of its compressed file; 0: it is not compressed */
    bool dense;          /* and that is not worth it */
};
struct run_info {
    uint32_t level, first_segment, last_segment, index_kib;
    struct lsn low, high;
};
struct refused_info {
    struct lsn low, high; /* points in (low, high) are refused; high.n 0: open */
};
struct rewind_info {
    struct lsn lsn, target;
};
struct resize_info {
    uint32_t volume;
    struct lsn lsn;     /* before it the volume had: */
    uint64_t old_bytes;
};

struct manifest {
    struct uuid journal_id, boot;
    uint32_t epoch, next_segment, next_volume, previous_crc;
    uint64_t next_frame;
    struct lsn lsn_reserved, base, base_target;
    uint64_t base_realtime_ns;
    bool clean, suspended;
    bool has_tail; /* the segment next_segment was made: it is there after any end */
    struct volume_info *volumes;
    struct segment_info *segments; /* ascending numbers */
    struct run_info *runs;
    struct refused_info *refused;
    struct rewind_info *rewinds; /* ascending LSNs, all above the base */
    struct resize_info *resizes; /* ascending LSNs, all above the base */
    size_t volume_count, segment_count, run_count, refused_count, rewind_count, resize_count;
};

/* The first that is whole. -ENOENT: neither is there; -EBADMSG: damaged, with no copy that could stand in. */
int manifest_load(const char *directory, struct manifest *ret, struct error *err) MUST_CHECK;
/* Whether the engine has dropped the rewind by now: its files go with the history that it is in. */
bool manifest_rewind_was_dropped(const char *directory, struct lsn rewind);
#define MANIFEST_DAMAGE_BYTES 160
/* The name of one of the two files that is damaged or missing, and what is wrong; NULL: both are whole. *ret_no_copy: the second one is
 * just not there, as a program of before left it. */
const char *manifest_check_files(const char *directory, bool *ret_no_copy, char text[MANIFEST_DAMAGE_BYTES]);
/* Whether either is there; whether one that is whole says that the journal is encrypted. */
bool manifest_exists(const char *directory);
bool manifest_is_encrypted(const char *directory);
/* Durable in both files, or an error: then neither, the first or both may be new. */
int manifest_save(const char *directory, const struct manifest *m, struct error *err) MUST_CHECK;
void manifest_release(struct manifest *m);
/* A deep copy, for use outside the lock. */
int manifest_copy(const struct manifest *m, struct manifest *ret, struct error *err) MUST_CHECK;

int manifest_add_volume(struct manifest *m, const struct volume_info *v, struct error *err) MUST_CHECK;
int manifest_add_segment(struct manifest *m, const struct segment_info *s, struct error *err) MUST_CHECK;
int manifest_add_run(struct manifest *m, const struct run_info *r, struct error *err) MUST_CHECK;
int manifest_add_refused(struct manifest *m, const struct refused_info *r, struct error *err) MUST_CHECK;
int manifest_add_rewind(struct manifest *m, const struct rewind_info *r, struct error *err) MUST_CHECK;
int manifest_add_resize(struct manifest *m, const struct resize_info *r, struct error *err) MUST_CHECK;
/* Bytes of a segment's file and its index; `full_bytes`: of the file of a segment that was not trimmed, 0: what is used of it counts. */
uint64_t segment_info_bytes(const struct segment_info *s, uint64_t full_bytes);
/* How many segments of the table there are up to the last one that begins at or before `lsn`: those after it are wholly later. */
size_t manifest_segments_until(const struct manifest *m, struct lsn lsn);
/* The place of the first segment with this number or a higher one. */
size_t manifest_find_segment(const struct manifest *m, uint32_t number);
/* The volume with that id, borrowed until the table changes; NULL. */
struct volume_info *manifest_find_volume(const struct manifest *m, uint32_t id);
/* Rewinds above this LSN stand with segment `i`: those whose record it has, and those whose record was lost before it. */
struct lsn manifest_rewinds_above(const struct manifest *m, size_t i);
/* The size that volume `v` of the manifest had at `lsn`, a point of the history. */
uint64_t manifest_size_at(const struct manifest *m, const struct volume_info *v, struct lsn lsn);

/* File names below the journal's directory. Buffers of 64 bytes. */
#define JOURNAL_FILE_BYTES 64
const char *journal_segment_file(uint32_t number, char text[JOURNAL_FILE_BYTES]);
const char *journal_l0_file(uint32_t number, char text[JOURNAL_FILE_BYTES]);
/* The same of a segment that was thinned `generation` times. */
const char *journal_segment_file_of(uint32_t number, uint32_t generation, char text[JOURNAL_FILE_BYTES]);
const char *journal_l0_file_of(uint32_t number, uint32_t generation, char text[JOURNAL_FILE_BYTES]);
/* And that of its compressed file, which stands in place of the segment's. */
const char *journal_cold_file_of(uint32_t number, uint32_t generation, char text[JOURNAL_FILE_BYTES]);
const char *journal_run_file(uint32_t level, uint32_t first_segment, char text[JOURNAL_FILE_BYTES]);
const char *journal_rewind_file(struct lsn lsn, char text[JOURNAL_FILE_BYTES]);
const char *journal_rewind_copy_file(struct lsn lsn, char text[JOURNAL_FILE_BYTES]);

#endif
