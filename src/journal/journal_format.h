/* SPDX-License-Identifier: Apache-2.0 */
/* On-disk structs of the journal: segments, frames, records, manifest, pins. See docs/formats/journal.md. */
#ifndef TIDEMARK_JOURNAL_JOURNAL_FORMAT_H
#define TIDEMARK_JOURNAL_JOURNAL_FORMAT_H

#include <assert.h>
#include <stddef.h>

#include "base/endian.h"

#define JOURNAL_BLOCK_BYTES 4096u
#define JOURNAL_BLOCK_SECTORS 8u
#define JOURNAL_VERSION 1u
#define JOURNAL_NAME_BYTES 64u /* with the NUL */

#define SEGMENT_MAGIC 0x31304745534b4d54ull  /* "TMKSEG01" */
#define FRAME_MAGIC 0x46524d54u              /* "TMRF" */
#define MANIFEST_MAGIC 0x314e414d4b4d54ull   /* "TMKMAN1" */
#define PENDING_MAGIC 0x31444e504b4d54ull          /* "TMKPND1" */
#define PIN_MAGIC 0x314e49504b4d54ull        /* "TMKPIN1" */

#define FRAME_MAX_RECORDS 82u
#define FRAME_MAX_BLOCKS 512u /* 2 MiB with its header block */
#define FRAME_SPARSE_RECORDS 64u    /* at most, in a frame with FRAME_SPARSE */
#define FRAME_SPARSE_LSN_OFFSET (JOURNAL_BLOCK_BYTES - FRAME_SPARSE_RECORDS * 8u)

enum journal_op {
    OP_VOID = 0, /* nothing: keeps a position */
    OP_WRITE = 1,
    OP_ZERO = 2,
    OP_DISCARD = 3,
    OP_BASE = 4,
    OP_RESYNC_BEGIN = 5, /* aux: last valid LSN before it */
    OP_RESYNC = 6,       /* as WRITE, with what was read back from the backing */
    OP_RESYNC_END = 7,   /* aux: LSN of the BEGIN */
    OP_GAP = 8,          /* aux: last LSN before the gap */
    OP_MARK = 9,         /* payload: name, NUL, JSON object of labels */
    OP_OBJECT = 10,      /* payload: name, NUL, zstd of the content; flag DELETED: none */
    OP_VOLUME = 11,      /* payload: JSON; aux: size in bytes */
    OP_REWIND = 12,      /* aux: target LSN; the image change is in rewind-<lsn>.idx */
};

enum record_flags {
    RECORD_LAST = 1 << 0,    /* last part of a request: only such LSNs are points */
    RECORD_FUA = 1 << 1,
    RECORD_DELETED = 1 << 2, /* OBJECT, VOLUME */
};

enum frame_flags {
    FRAME_SPARSE = 1 << 0, /* the records' LSNs stand in an array of le64 at FRAME_SPARSE_LSN_OFFSET */
};

enum segment_incompatible {
    SEGMENT_THINNED = 1 << 0, /* its frames are sparse */
    SEGMENT_SEALED = 1 << 1,  /* encrypted; the header block has the salt of its key */
    SEGMENT_COLD = 1 << 2,    /* its blocks are compressed, in chunks */
};

struct segment_header { /* in the first block of a segment */
    struct le64 magic;
    struct le32 version;
    struct le32 crc; /* CRC32C of the block with this field zero */
    struct le32 compatible;
    struct le32 incompatible; /* unknown bits: refuse */
    uint8_t journal_id[16];
    uint8_t boot_id[16];
    struct le32 number;
    struct le32 epoch;
    struct le32 blocks; /* size of the segment */
    struct le32 generation; /* how often its history was thinned */
    struct le64 created_realtime_ns;
};
static_assert(sizeof(struct segment_header) == 80, "segment header");

/* ---- a segment that is compressed: header block, chunks, table, the table again, the header block again ---- */
#define COLD_CHUNK_BLOCKS 8u       /* of what is written; a chunk is read as a whole */
#define COLD_CHUNK_BLOCKS_MAX 256u /* of what is read */
#define COLD_HEADER_OFFSET 128u    /* of struct cold_header in the header block */
struct cold_header {
    struct le64 table_at[2]; /* offsets of the table and of its copy */
    struct le32 chunk_blocks;
    struct le32 chunk_count; /* for the blocks from 1 on */
    struct le32 table_crc;   /* CRC32C, as it is stored */
    struct le32 reserved;
    uint8_t table_tag[16]; /* SEALED */
};
static_assert(sizeof(struct cold_header) == 48, "cold header");
struct cold_chunk {
    struct le64 offset; /* in the file */
    struct le32 bytes;  /* as many as the blocks have: not compressed */
    struct le32 crc;    /* CRC32C, as it is stored */
    uint8_t tag[16];    /* SEALED */
};
static_assert(sizeof(struct cold_chunk) == 32, "cold chunk");

struct frame_header { /* 128 bytes, then up to 82 records, in one block; payload blocks follow */
    struct le32 magic;
    struct le32 header_crc; /* CRC32C of the whole block with this field zero */
    uint8_t journal_id[16];
    struct le32 epoch;
    struct le16 record_count;
    struct le16 flags;
    struct le64 number; /* +1 a frame, over all segments */
    struct le64 first_lsn;
    struct le64 durable_lsn; /* known durable when this frame was sealed */
    struct le64 realtime_ns;
    struct le64 boottime_ns;
    struct le64 barrier;      /* for cuts over several streams */
    struct le32 previous_crc; /* header_crc of the frame before */
    struct le32 blocks;       /* length of the frame, header included */
    uint8_t aead_digest[16]; /* of the payload blocks' tags; zero in a plain journal */
    uint8_t aead_tag[16];
    struct le64 reserved;
};
static_assert(sizeof(struct frame_header) == 128, "frame header");

struct frame_record { /* LSN = first_lsn + index, but see FRAME_SPARSE */
    struct le32 volume;
    uint8_t op;
    uint8_t flags;
    struct le16 payload_block; /* from the frame's start; 0: no payload */
    struct le64 lba;           /* sectors */
    struct le32 length;        /* sectors */
    struct le32 payload_crc;   /* one block: its CRC32C; more: CRC32C over the blocks' CRC32Cs (little-endian) */
    struct le32 delta_us;      /* after the frame's realtime_ns */
    struct le32 payload_bytes; /* before padding with zeroes to whole blocks */
    struct le64 tag;           /* for use above */
    struct le64 aux;
};
static_assert(sizeof(struct frame_record) == 48, "record");
static_assert(sizeof(struct frame_header) + FRAME_MAX_RECORDS * sizeof(struct frame_record) <= JOURNAL_BLOCK_BYTES,
              "a frame's header and records fit one block");
static_assert(sizeof(struct frame_header) + FRAME_SPARSE_RECORDS * sizeof(struct frame_record) <= FRAME_SPARSE_LSN_OFFSET,
              "and so do their LSNs");

/* ---- manifest: replaced as a whole; header, then the tables in this order ---- */
struct manifest_header {
    struct le64 magic;
    struct le32 version;
    struct le32 crc; /* CRC32C of the whole file with this field zero */
    struct le32 compatible;
    struct le32 incompatible;
    uint8_t journal_id[16];
    uint8_t boot_id[16];
    struct le64 lsn_reserved; /* no LSN above it has been used */
    struct le64 base_lsn;     /* the base holds image(base_lsn); older points are gone */
    struct le64 base_target;  /* >= base_lsn: the base is being moved there; points below are refused */
    struct le64 base_realtime_ns;
    struct le64 next_frame; /* expected after the last sealed segment */
    struct le32 previous_crc;
    struct le32 epoch;
    struct le32 next_segment; /* number after the last sealed segment */
    struct le32 next_volume;
    struct le32 flags; /* MANIFEST_CLEAN */
    struct le32 volume_count;
    struct le32 segment_count;
    struct le32 run_count;
    struct le32 refused_count;
    struct le32 rewind_count;
};
static_assert(sizeof(struct manifest_header) == 136, "manifest header");
enum manifest_flags {
    MANIFEST_CLEAN = 1 << 0,   /* closed in order; no recovery needed */
    MANIFEST_TAIL = 1 << 2, /* the segment after the sealed ones was made */
    MANIFEST_SUSPENDED = 1 << 1, /* writes went on unjournaled: compare everything before points count again */
};

enum manifest_volume_flags {
    VOLUME_ADOPTED = 1 << 0, /* what its backing held when it was created is part of its history */
    VOLUME_SEEDING = 1 << 1, /* and the base does not have all of that yet */
    VOLUME_TAKEN = 1 << 2,   /* it was not asked for: the history of before was lost */
};

struct manifest_volume {
    struct le32 id;
    struct le32 flags; /* manifest_volume_flags */
    struct le64 size_bytes;
    struct le64 created_lsn;
    struct le64 deleted_lsn;
    char name[JOURNAL_NAME_BYTES];
};
static_assert(sizeof(struct manifest_volume) == 96, "manifest volume");

struct manifest_segment { /* a sealed segment; its index is l0-<number>.idx */
    struct le32 number;
    struct le32 used_blocks;
    struct le64 first_lsn;
    struct le64 last_lsn;
    struct le64 first_realtime_ns;
    struct le64 last_realtime_ns;
    struct le64 first_boottime_ns;
    struct le64 last_boottime_ns;
    uint8_t boot_id[16];
    struct le32 records;
    struct le32 events;
    struct le32 frames;
    struct le32 index_kib;
    struct le64 first_frame;
    struct le32 first_previous_crc; /* previous_crc of its first frame */
    struct le32 epoch;
};
static_assert(sizeof(struct manifest_segment) == 104, "manifest segment");

struct manifest_thinned { /* with MANIFEST_THINNED: one a segment, in the same order, after the other tables */
    struct le32 keep_s;     /* points are kept at this distance; 0: every one */
    struct le16 generation; /* 0: as it was written; else part of the names of its files */
    struct le16 flags;      /* MANIFEST_OPEN_END */
};
static_assert(sizeof(struct manifest_thinned) == 8, "manifest thinned");
struct manifest_cold { /* with MANIFEST_COLD: one a segment, in the same order */
    struct le32 kib;   /* size of the compressed file; 0: it is not compressed */
    struct le32 flags; /* manifest_cold_flags */
};
static_assert(sizeof(struct manifest_cold) == 8, "manifest cold");
enum manifest_cold_flags { MANIFEST_DENSE = 1 << 0 }; /* compressing it is not worth it */
enum manifest_incompatible {
    MANIFEST_THINNED = 1 << 0,
    MANIFEST_SEEDING = 1 << 4, /* a volume is VOLUME_SEEDING: its points cannot be opened yet */
    MANIFEST_RESIZED = 1 << 5, /* the last table is that of the resizes */
    MANIFEST_COLD = 1 << 6,    /* a table of compressed segments follows that of the thinned ones */
    MANIFEST_SEALED = 1 << 1, /* the header is followed by the whole manifest, encrypted; its other fields are zero */
};
enum manifest_thinned_flags { MANIFEST_OPEN_END = 1 << 0 }; /* it ends between two kept points */

struct manifest_run { /* run-<level>-<first>.idx */
    struct le32 level;
    struct le32 first_segment;
    struct le32 last_segment;
    struct le32 index_kib;
    struct le64 low_lsn;
    struct le64 high_lsn;
};
static_assert(sizeof(struct manifest_run) == 32, "manifest run");

struct manifest_refused { /* points in (low, high) are refused; high 0: still open */
    struct le64 low_lsn;
    struct le64 high_lsn;
};
struct manifest_rewind {
    struct le64 lsn;
    struct le64 target_lsn;
};

struct manifest_resize { /* with MANIFEST_RESIZED: a count (le64) and these, after all other tables; ascending LSNs */
    struct le32 volume;
    struct le32 reserved;
    struct le64 lsn; /* of the VOLUME record: from it on the size is another one */
    struct le64 old_bytes;
};
static_assert(sizeof(struct manifest_resize) == 24, "manifest resize");

/* ---- rewind.pending: header; for each volume its entry, then a bitmap of its grains in 8-byte words ---- */
struct pending_header {
    struct le64 magic;
    struct le32 crc; /* CRC32C of the whole file with this field zero */
    struct le32 volumes;
    struct le64 rewind_lsn;
    struct le64 target_lsn;
};
static_assert(sizeof(struct pending_header) == 32, "pending header");
struct pending_volume {
    struct le32 id;
    struct le32 reserved;
    struct le64 grains;
};
static_assert(sizeof(struct pending_volume) == 16, "pending volume");

/* ---- base/<volume>.seed: header, then a bitmap of grains in 8-byte words: set where the base lacks what an adopted volume held ---- */
#define SEED_MAGIC 0x3144454553544dull /* "MTSEED1" */
struct seed_header {
    struct le64 magic;
    struct le32 crc; /* CRC32C of the whole file with this field zero */
    struct le32 flags;
    struct le32 volume;
    struct le32 reserved;
    struct le64 grains;
};
static_assert(sizeof(struct seed_header) == 32, "seed header");
enum seed_flags { SEED_EXACT = 1 << 0 }; /* saved at a clean end: nothing that is set was written over since */

/* ---- pin: what a view needs; pins/<pin> ---- */
struct pin_header {
    struct le64 magic;
    struct le32 version;
    struct le32 crc;
    uint8_t journal_id[16];
    struct le64 lsn;
    struct le64 base_lsn;
    struct le64 realtime_ns;
    struct le32 source_count;
    struct le32 reserved;
};
static_assert(sizeof(struct pin_header) == 64, "pin header");
struct pin_source { /* newest group first */
    char file[48];  /* relative to the journal's directory */
    struct le64 low_lsn;
    struct le64 high_lsn;
    struct le32 group;
    struct le32 segment; /* L0 and TAIL: whose payload CRCs it holds; else 0 */
};
static_assert(sizeof(struct pin_source) == 72, "pin source");

#endif
