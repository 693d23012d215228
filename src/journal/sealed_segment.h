/* SPDX-License-Identifier: Apache-2.0 */
/* Frames of encrypted segments. Each block of 4 KiB is encrypted on its own, under a key of the segment, with
 * its number as the nonce; the payload blocks' tags stand in the segment's index, and a digest of them in the
 * frame's header, so that frames need no more room than plain ones. `key` NULL: the segment is plain, and
 * these read and write as it is. */
#ifndef TIDEMARK_JOURNAL_SEALED_SEGMENT_H
#define TIDEMARK_JOURNAL_SEALED_SEGMENT_H

#include "journal/journal_format.h"
#include "journal/seal.h"

typedef uint8_t seal_tag[AEAD_TAG_BYTES]; /* an array type: not a struct in disguise */

/* The key of the segment whose header block has this salt. */
int sealed_segment_key(const struct seal *s, const uint8_t salt[SEAL_SALT_BYTES], struct aead **ret,
                       struct error *err) MUST_CHECK;
/* The same by the header in the file, whose salt is there three times; *ret NULL where the file at `path` is
 * not encrypted. */
int sealed_segment_open(const char *path, int fd, struct aead **ret, struct error *err) MUST_CHECK;
/* Puts a salt into a header block, which gets the flag; before its CRC is computed. */
void sealed_segment_salt(void *header_block, const uint8_t salt[SEAL_SALT_BYTES]);
void sealed_segment_get_salt(const void *header_block, uint8_t ret[SEAL_SALT_BYTES]);

/* Encrypts a frame of `blocks` blocks for the place `at` of the segment. `tags` gets one for each block but
 * the first. */
int sealed_frame_write(struct aead *key, uint32_t at, const void *frame, void *target, uint32_t blocks,
                       seal_tag *tags) MUST_CHECK;
/* Reads one block that should be a frame's header. -EBADMSG when it is not authentic. */
int sealed_read_header(struct aead *key, int fd, uint32_t at, void *block, seal_tag ret_digest) MUST_CHECK;
/* Decrypts in place what was read from `at` on; the block is then as it was before it was encrypted.
 * `ret_digest` (may be NULL) is for its payload. */
int sealed_open_header(struct aead *key, uint32_t at, void *block, seal_tag ret_digest) MUST_CHECK;
/* Decrypts the payload of a frame whose header was opened; `tags` (may be NULL) as above. Payload that is not
 * what was written has a wrong CRC afterwards. */
int sealed_open_payload(struct aead *key, uint32_t at, void *frame, uint32_t blocks, const seal_tag digest,
                        seal_tag *tags) MUST_CHECK;
/* Reads a whole frame whose header is in `frame`, opened: its payload. */
int sealed_read_payload(struct aead *key, int fd, uint32_t at, void *frame, uint32_t blocks,
                        const seal_tag digest, seal_tag *tags) MUST_CHECK;
/* Decrypts payload blocks by their tags. -EBADMSG, and *ret_bad the first that is not authentic. */
int sealed_open_blocks(struct aead *key, uint32_t at, void *data, uint32_t count, const seal_tag *tags,
                       uint32_t *ret_bad) MUST_CHECK;

#endif
