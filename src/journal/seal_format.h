/* SPDX-License-Identifier: Apache-2.0 */
/* On-disk structs of an encrypted journal; docs/formats/journal.md ("Encryption") has the tables. */
#ifndef TIDEMARK_JOURNAL_SEAL_FORMAT_H
#define TIDEMARK_JOURNAL_SEAL_FORMAT_H

#include <assert.h>

#include "base/endian.h"

#define SEAL_KEY_MAGIC 0x3159454b4d54ull      /* "TMKEY1" */
#define SEAL_FILE_MAGIC 0x314c4153454b4d54ull /* "TMKESAL1" */
#define SEAL_PAGES_MAGIC 0x315045534b4d54ull  /* "TMKSEP1" */
#define SEAL_VERSION 1u
#define SEAL_KEY_ID_BYTES 8u
#define SEAL_SALT_BYTES 16u
#define SEAL_SLOTS 2u

struct seal_slot { /* the data key, wrapped by the key of one key file; key id all zero: unused */
    uint8_t key_id[SEAL_KEY_ID_BYTES];
    uint8_t nonce[12]; /* random */
    struct le32 zero;
    uint8_t tag[16]; /* over the data key and, authenticated only, journal id and key id */
    uint8_t wrapped[32];
};
static_assert(sizeof(struct seal_slot) == 72, "format");
struct seal_key_file { /* key, and key.copy with the same content */
    struct le64 magic;
    struct le32 version;
    struct le32 crc; /* CRC32C of the file with this field zero */
    uint8_t journal_id[16];
    struct seal_slot slots[SEAL_SLOTS];
};
static_assert(sizeof(struct seal_key_file) == 176, "format");

struct sealed_file_header { /* of a file that is replaced as a whole; its content, encrypted, follows */
    struct le64 magic;
    struct le32 version;
    struct le32 crc; /* CRC32C of the file with this field zero */
    struct le64 length_bytes;
    uint8_t nonce[12]; /* random */
    struct le32 zero;
    uint8_t tag[16]; /* over content and, authenticated only, the file's name */
};
static_assert(sizeof(struct sealed_file_header) == 56, "format");

/* An index file: this header, then its pages, each encrypted and followed by its tag. The nonce is the page's
 * number. */
struct sealed_pages_header {
    struct le64 magic;
    struct le32 version;
    struct le32 crc;               /* CRC32C of the header with this field zero */
    uint8_t salt[SEAL_SALT_BYTES]; /* random: the file has a key of its own */
    uint8_t zero[32];
};
static_assert(sizeof(struct sealed_pages_header) == 64, "format");

#endif
