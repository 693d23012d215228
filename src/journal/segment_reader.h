/* SPDX-License-Identifier: Apache-2.0 */
/* Reading a sealed segment, whatever form its file has: as it was written, encrypted, or compressed. Blocks have the same
 * numbers and, once decrypted, the same content in each. Thread-safe but for opening and closing. */
#ifndef TIDEMARK_JOURNAL_SEGMENT_READER_H
#define TIDEMARK_JOURNAL_SEGMENT_READER_H

#include "journal/cold.h"
#include "journal/sealed_segment.h"

struct segment_reader {
    int fd;                   /* -1: compressed */
    struct aead *key;         /* of what is read by segment_reader_blocks; NULL: it is plain */
    struct cold_reader *cold; /* NULL: not compressed */
};

/* `direct`: past the page cache where the file system can. -ENOENT when the segment has no file. The compressed one is looked for
 * first: it is whole and durable before the other one goes, which is then used for another segment perhaps. */
int segment_reader_open(const char *directory, uint32_t number, uint32_t generation, bool direct, struct segment_reader *ret,
                        struct error *err) MUST_CHECK;
void segment_reader_close(struct segment_reader *r);
/* The file's path, or where it should be; false: there is none. */
bool segment_reader_find(const char *directory, uint32_t number, uint32_t generation, char *path, size_t path_bytes);
/* Reads blocks from 1 on, `data` page-aligned. Damaged chunks: -EBADMSG, as cold_read. */
int segment_reader_blocks(const struct segment_reader *r, uint32_t block, uint32_t count, void *data) MUST_CHECK;
/* As many of `count` blocks as one read gives, as they are in the file; 0: none, or the segment is compressed. */
uint32_t segment_reader_stretch(const struct segment_reader *r, uint32_t block, uint32_t count, void *data);
/* As sealed_read_header and sealed_read_payload, of any segment. */
int segment_reader_header(const struct segment_reader *r, uint32_t at, void *block, seal_tag ret_digest) MUST_CHECK;
int segment_reader_payload(const struct segment_reader *r, uint32_t at, void *frame, uint32_t blocks, const seal_tag digest,
                           seal_tag *tags) MUST_CHECK;

#endif
