/* SPDX-License-Identifier: Apache-2.0 */
/* The NBD protocol on the wire: https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md, of which
 * this is the part that is served. */
#ifndef TIDEMARK_EXPORT_NBD_FORMAT_H
#define TIDEMARK_EXPORT_NBD_FORMAT_H

#include <assert.h>

#include "base/endian.h"

#define NBD_MAGIC 0x4e42444d41474943ull        /* "NBDMAGIC" */
#define NBD_OPTION_MAGIC 0x49484156454f5054ull /* "IHAVEOPT" */
#define NBD_OPTION_REPLY_MAGIC 0x3e889045565a9ull
#define NBD_REQUEST_MAGIC 0x25609513u
#define NBD_SIMPLE_REPLY_MAGIC 0x67446698u
#define NBD_CHUNK_MAGIC 0x668e33efu

enum nbd_handshake_flags { NBD_FIXED_NEWSTYLE = 1 << 0, NBD_NO_ZEROES = 1 << 1 }; /* the same of the client */

enum nbd_option {
    NBD_OPT_EXPORT_NAME = 1,
    NBD_OPT_ABORT = 2,
    NBD_OPT_LIST = 3,
    NBD_OPT_INFO = 6,
    NBD_OPT_GO = 7,
    NBD_OPT_STRUCTURED_REPLY = 8,
    NBD_OPT_LIST_META_CONTEXT = 9,
    NBD_OPT_SET_META_CONTEXT = 10,
};

enum nbd_option_reply {
    NBD_REP_ACK = 1,
    NBD_REP_SERVER = 2,
    NBD_REP_INFO = 3,
    NBD_REP_META_CONTEXT = 4,
    NBD_REP_ERR_UNSUP = (int)0x80000001,
    NBD_REP_ERR_INVALID = (int)0x80000003,
    NBD_REP_ERR_UNKNOWN = (int)0x80000006,
    NBD_REP_ERR_TOO_BIG = (int)0x80000009,
};

enum nbd_info { NBD_INFO_EXPORT = 0, NBD_INFO_NAME = 1, NBD_INFO_BLOCK_SIZE = 3 };

enum nbd_transmission_flags {
    NBD_FLAG_HAS_FLAGS = 1 << 0,
    NBD_FLAG_SEND_FLUSH = 1 << 2,
    NBD_FLAG_SEND_FUA = 1 << 3,
    NBD_FLAG_SEND_TRIM = 1 << 5,
    NBD_FLAG_SEND_WRITE_ZEROES = 1 << 6,
    NBD_FLAG_SEND_DF = 1 << 7,
    NBD_FLAG_CAN_MULTI_CONN = 1 << 8,
    NBD_FLAG_SEND_CACHE = 1 << 10,
    NBD_FLAG_SEND_FAST_ZERO = 1 << 11,
};

enum nbd_command {
    NBD_CMD_READ = 0,
    NBD_CMD_WRITE = 1,
    NBD_CMD_DISC = 2,
    NBD_CMD_FLUSH = 3,
    NBD_CMD_TRIM = 4,
    NBD_CMD_CACHE = 5,
    NBD_CMD_WRITE_ZEROES = 6,
    NBD_CMD_BLOCK_STATUS = 7,
};

enum nbd_command_flags {
    NBD_CMD_FLAG_FUA = 1 << 0,
    NBD_CMD_FLAG_NO_HOLE = 1 << 1,
    NBD_CMD_FLAG_DF = 1 << 2,
    NBD_CMD_FLAG_REQ_ONE = 1 << 3,
    NBD_CMD_FLAG_FAST_ZERO = 1 << 4,
};

enum nbd_chunk_type {
    NBD_REPLY_NONE = 0,
    NBD_REPLY_OFFSET_DATA = 1,
    NBD_REPLY_BLOCK_STATUS = 5,
    NBD_REPLY_ERROR = 32769,
};
enum nbd_chunk_flags { NBD_REPLY_DONE = 1 << 0 };
enum nbd_state_flags { NBD_STATE_HOLE = 1 << 0, NBD_STATE_ZERO = 1 << 1 };

enum nbd_error {
    NBD_EPERM = 1,
    NBD_EIO = 5,
    NBD_ENOMEM = 12,
    NBD_EINVAL = 22,
    NBD_ENOSPC = 28,
    NBD_EOVERFLOW = 75,
    NBD_ESHUTDOWN = 108,
};

struct nbd_greeting {
    struct be64 magic, option_magic;
    struct be16 flags;
} __attribute__((packed));
static_assert(sizeof(struct nbd_greeting) == 18, "on the wire");

struct nbd_option_header {
    struct be64 magic;
    struct be32 option, length_bytes;
} __attribute__((packed));
static_assert(sizeof(struct nbd_option_header) == 16, "on the wire");

struct nbd_option_reply_header {
    struct be64 magic;
    struct be32 option, type, length_bytes;
} __attribute__((packed));
static_assert(sizeof(struct nbd_option_reply_header) == 20, "on the wire");

struct nbd_info_export {
    struct be16 type;
    struct be64 size_bytes;
    struct be16 flags;
} __attribute__((packed));
static_assert(sizeof(struct nbd_info_export) == 12, "on the wire");

struct nbd_info_block_size {
    struct be16 type;
    struct be32 minimum, preferred, maximum;
} __attribute__((packed));
static_assert(sizeof(struct nbd_info_block_size) == 14, "on the wire");

struct nbd_export_name_reply { /* without zeroes: the first ten bytes */
    struct be64 size_bytes;
    struct be16 flags;
    char zeroes[124];
} __attribute__((packed));
static_assert(sizeof(struct nbd_export_name_reply) == 134, "on the wire");

struct nbd_request_header {
    struct be32 magic;
    struct be16 flags, command;
    struct be64 cookie, offset_bytes;
    struct be32 length_bytes;
} __attribute__((packed));
static_assert(sizeof(struct nbd_request_header) == 28, "on the wire");

struct nbd_simple_reply {
    struct be32 magic, error;
    struct be64 cookie;
} __attribute__((packed));
static_assert(sizeof(struct nbd_simple_reply) == 16, "on the wire");

struct nbd_chunk_header {
    struct be32 magic;
    struct be16 flags, type;
    struct be64 cookie;
    struct be32 length_bytes;
} __attribute__((packed));
static_assert(sizeof(struct nbd_chunk_header) == 20, "on the wire");

struct nbd_chunk_error {
    struct be32 error;
    struct be16 message_bytes;
} __attribute__((packed));
static_assert(sizeof(struct nbd_chunk_error) == 6, "on the wire");

struct nbd_block_descriptor {
    struct be32 length_bytes, flags;
} __attribute__((packed));
static_assert(sizeof(struct nbd_block_descriptor) == 8, "on the wire");

#endif
