/* SPDX-License-Identifier: Apache-2.0 */
/* The files of the signal, in the directory signal/ of the journal: docs/formats/signal.md. */
#ifndef TIDEMARK_SIGNAL_SIGNAL_FORMAT_H
#define TIDEMARK_SIGNAL_SIGNAL_FORMAT_H

#include <assert.h>

#include "base/endian.h"

#define SIGNAL_STATE_MAGIC 0x53534d54u   /* "TMSS" */
#define SIGNAL_STRETCH_MAGIC 0x45534d54u /* "TMSE" */
#define SIGNAL_FORMAT_VERSION 1u

/* Head of the state of a volume; the table of classes follows. */
struct signal_state_head {
    struct le32 magic;
    struct le32 version;
    struct le64 blocks;
    struct le32 shift;
    struct le32 table_bytes;
    struct le64 baseline_windows;
    struct le64 baseline_mean, baseline_deviation; /* bytes */
    struct le32 table_crc;                         /* CRC32C */
    struct le32 head_crc;                          /* CRC32C of what stands before it */
};
static_assert(sizeof(struct signal_state_head) == 56, "format");

/* One suspicious stretch. */
struct signal_stretch_entry {
    struct le32 magic;
    struct le32 version;
    struct le32 volume;
    struct le32 reserved; /* 0 */
    struct le64 begin_lsn, end_lsn, begin_ns, end_ns, bytes;
    struct le32 reserved2; /* 0 */
    struct le32 crc;       /* CRC32C of what stands before it */
};
static_assert(sizeof(struct signal_stretch_entry) == 64, "format");

#endif
