/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/sealed_segment.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/crc32c.h"
#include "base/io.h"
#include "journal/frame.h"

#define BLOCK JOURNAL_BLOCK_BYTES

enum domain { DOMAIN_PAYLOAD = 0, DOMAIN_HEADER = 1, DOMAIN_DIGEST = 2 };

/* Copies of the salt: a damaged header must not cost the whole segment. */
static const size_t salt_offsets[3] = {sizeof(struct segment_header), 2048, BLOCK - SEAL_SALT_BYTES};

static void make_nonce(uint32_t at, enum domain domain, uint8_t nonce[AEAD_NONCE_BYTES])
{
    struct le32 parts[3] = {le32_of(at), le32_of(domain), le32_of(0)};
    memcpy(nonce, parts, sizeof parts);
}

int sealed_segment_key(const struct seal *s, const uint8_t salt[SEAL_SALT_BYTES], struct aead **ret,
                       struct error *err)
{
    return seal_aead(s, "segment", salt, SEAL_SALT_BYTES, ret, err);
}

void sealed_segment_salt(void *header_block, const uint8_t salt[SEAL_SALT_BYTES])
{
    struct segment_header *h = header_block;
    h->incompatible = le32_of(le32_get(h->incompatible) | SEGMENT_SEALED);
    for (size_t i = 0; i < 3; i++)
        memcpy((char *)header_block + salt_offsets[i], salt, SEAL_SALT_BYTES);
}

/* Each bit as most of the copies have it. */
void sealed_segment_get_salt(const void *header_block, uint8_t ret[SEAL_SALT_BYTES])
{
    const uint8_t *block = header_block;
    for (size_t i = 0; i < SEAL_SALT_BYTES; i++) {
        uint8_t a = block[salt_offsets[0] + i], b = block[salt_offsets[1] + i],
                c = block[salt_offsets[2] + i];
        ret[i] = (uint8_t)((a & b) | (a & c) | (b & c));
    }
}

int sealed_segment_open(const char *path, int fd, struct aead **ret, struct error *err)
{
    const struct seal *s = seal_of(path);
    uint8_t salt[SEAL_SALT_BYTES];
    *ret = NULL;
    if (!s)
        return 0;
    void *block = io_alloc_pages(BLOCK);
    int r = block ? io_pread_full(fd, block, BLOCK, 0) : -ENOMEM;
    if (r == 0)
        sealed_segment_get_salt(block, salt);
    io_free_pages(block, BLOCK);
    if (r == -ENODATA)
        return error_set(err, -EBADMSG, "%s is damaged: it has no header", path);
    if (r < 0)
        return error_errno(err, r, "cannot read the header of %s", path);
    return sealed_segment_key(s, salt, ret, err);
}

/* The parts of a header block: what tells whose frame it is and the digest are authenticated, the rest is
 * encrypted too. */
#define HEADER_PARTS 6u
static void header_parts(const char *in, char *out, struct aead_part parts[HEADER_PARTS])
{
    const size_t crc = offsetof(struct frame_header, header_crc),
                 id = offsetof(struct frame_header, journal_id);
    const size_t count = offsetof(struct frame_header, record_count),
                 digest = offsetof(struct frame_header, aead_digest);
    const size_t rest = offsetof(struct frame_header, reserved);
    struct aead_part all[HEADER_PARTS] = {{in, NULL, crc},
                                          {in + id, NULL, count - id},
                                          {in + digest, NULL, sizeof(seal_tag)},
                                          {in + crc, out + crc, id - crc},
                                          {in + count, out + count, digest - count},
                                          {in + rest, out + rest, BLOCK - rest}};
    memcpy(parts, all, sizeof all);
}

static int make_digest(struct aead *key, uint32_t at, const seal_tag *tags, uint32_t count, seal_tag ret)
{
    uint8_t nonce[AEAD_NONCE_BYTES];
    struct aead_part part = {tags, NULL, count * sizeof *tags};
    make_nonce(at, DOMAIN_DIGEST, nonce);
    return aead_seal(key, nonce, &part, count ? 1 : 0, ret);
}

int sealed_frame_write(struct aead *key, uint32_t at, const void *frame, void *target, uint32_t blocks,
                       seal_tag *tags)
{
    uint8_t nonce[AEAD_NONCE_BYTES];
    const char *from = frame;
    char *to = target;
    int r = 0;
    for (uint32_t i = 1; i < blocks && r == 0; i++) {
        struct aead_part part = {from + (size_t)i * BLOCK, to + (size_t)i * BLOCK, BLOCK};
        make_nonce(at + i, DOMAIN_PAYLOAD, nonce);
        r = aead_seal(key, nonce, &part, 1, tags[i]);
    }
    struct frame_header *h = target;
    struct aead_part parts[HEADER_PARTS];
    memcpy(target, frame, BLOCK);
    if (r == 0)
        r = make_digest(key, at, tags + 1, blocks - 1, h->aead_digest);
    header_parts(target, target, parts);
    make_nonce(at, DOMAIN_HEADER, nonce);
    memset(tags[0], 0, sizeof tags[0]);
    return r < 0 ? r : aead_seal(key, nonce, parts, HEADER_PARTS, h->aead_tag);
}

int sealed_open_header(struct aead *key, uint32_t at, void *block, seal_tag ret_digest)
{
    uint8_t nonce[AEAD_NONCE_BYTES];
    struct frame_header *h = block;
    struct aead_part parts[HEADER_PARTS];
    if (!key)
        return 0;
    if (le32_get(h->magic) != FRAME_MAGIC) /* it can be no frame: not worth a decryption */
        return -EBADMSG;
    header_parts(block, block, parts);
    make_nonce(at, DOMAIN_HEADER, nonce);
    int r = aead_open(key, nonce, parts, HEADER_PARTS, h->aead_tag);
    if (ret_digest)
        memcpy(ret_digest, h->aead_digest, sizeof h->aead_digest);
    memset(h->aead_digest, 0, sizeof h->aead_digest);
    memset(h->aead_tag, 0, sizeof h->aead_tag);
    return r;
}

int sealed_read_header(struct aead *key, int fd, uint32_t at, void *block, seal_tag ret_digest)
{
    int r = io_pread_full(fd, block, BLOCK, (uint64_t)at * BLOCK);
    return r < 0 ? r : sealed_open_header(key, at, block, ret_digest);
}

int sealed_open_payload(struct aead *key, uint32_t at, void *frame, uint32_t blocks, const seal_tag digest,
                        seal_tag *tags)
{
    seal_tag own[FRAME_MAX_BLOCKS], found;
    uint32_t crcs[FRAME_MAX_BLOCKS];
    uint8_t nonce[AEAD_NONCE_BYTES];
    if (!key)
        return 0;
    if (!tags)
        tags = own;
    memset(tags[0], 0, sizeof tags[0]);
    int r = 0;
    for (uint32_t i = 1; i < blocks && r == 0; i++) {
        make_nonce(at + i, DOMAIN_PAYLOAD, nonce);
        r = aead_retag(key, nonce, (char *)frame + (size_t)i * BLOCK, BLOCK, tags[i]);
    }
    if (r == 0)
        r = make_digest(key, at, tags + 1, blocks - 1, found);
    if (r < 0)
        return r;
    bool authentic = aead_equal(digest, found, sizeof found);
    /* Damage shows in the CRCs of the records that it hit. A forgery that does not costs the frame. */
    if (!authentic && frame_payload_crcs(frame, crcs) == 0)
        for (uint32_t i = 1; i < blocks; i++)
            memset((char *)frame + (size_t)i * BLOCK, i & 1 ? 0x5a : 0xa5, BLOCK);
    return 0;
}

int sealed_read_payload(struct aead *key, int fd, uint32_t at, void *frame, uint32_t blocks,
                        const seal_tag digest, seal_tag *tags)
{
    int r =
        io_pread_full(fd, (char *)frame + BLOCK, (size_t)(blocks - 1) * BLOCK, (uint64_t)(at + 1) * BLOCK);
    return r < 0 ? r : sealed_open_payload(key, at, frame, blocks, digest, tags);
}

int sealed_open_blocks(struct aead *key, uint32_t at, void *data, uint32_t count, const seal_tag *tags,
                       uint32_t *ret_bad)
{
    uint8_t nonce[AEAD_NONCE_BYTES];
    for (uint32_t i = 0; i < count; i++) {
        char *block = (char *)data + (size_t)i * BLOCK;
        struct aead_part part = {block, block, BLOCK};
        make_nonce(at + i, DOMAIN_PAYLOAD, nonce);
        int r = aead_open(key, nonce, &part, 1, tags[i]);
        if (r < 0) {
            *ret_bad = at + i;
            return r;
        }
    }
    return 0;
}
