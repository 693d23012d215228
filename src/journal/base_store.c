/* SPDX-License-Identifier: Apache-2.0 */
/* A block and what is known of it (checksum, mask, tag) stand in several files, which cannot be changed at once. Readers have no part in
 * that: they run in other processes, which may stop anywhere, and nobody waits for them.
 *
 *  S1  Who changes a block has a write lock (OFD) on its entry in the .crc file from before the first byte to after the last. The kernel
 *      lets go of it when the process ends. Nobody else takes it: a reader only asks whether it is held.
 *  S2  A block that does not match is damaged if it was read twice, with the same bytes in all files, and nobody held its lock in
 *      between: that is what the files have, and not what somebody leaves for a moment. How long a change takes does not matter.
 *  S3  What a killed process has left half changed looks the same. Whoever knows that the change will be repeated waits for it
 *      (payload.c). */
#include "journal/base_store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/endian.h"
#include "base/io.h"
#include "journal/seal.h"

#define BLOCK_BYTES 4096u
#define MAGIC "TMKBASE" /* and its NUL */
#define VERSION 1u
#define VERSION_LOST 2u    /* of a store that was made anew, so that no older program takes it for whole */
#define HEADER_BYTES 4096u /* of the .crc file; its entries follow */
#define BLOCK_SECTORS 8u
#define SECTOR_BYTES 512u
#define STORE_TAG_BYTES 16u
#define MAX_VOLUMES 256u
#define ENTRIES_AT_ONCE 512u
#define SETTLE_NS 1000000u                         /* between two looks at a block that somebody changes */
#define SETTLE_LIMIT_NS (60u * (uint64_t)1000000000) /* a writer that takes longer is stuck, as its disk is */
#define SETTLE_LOOKS 1000u                         /* at a block that is another one each time */

struct entry { /* of the .crc file; all zero: the block is absent, or (below lost_blocks) lost */
    struct le32 crc;     /* CRC32C of the block */
    struct le32 present; /* bits 0 to 7: sectors of the block; bits 8 to 31: check over crc, mask and block number */
};

struct store_header {
    char magic[8];
    struct le32 version;
    struct le32 crc; /* of the header with this field zero */
    struct le32 volume;
    struct le32 zero;
    struct le64 blocks; /* both files are at least long enough for them: a shorter one was cut */
    struct le64 lost_blocks; /* VERSION_LOST only: what these held is lost where nothing was written since */
};
#define HEADER_1_BYTES offsetof(struct store_header, lost_blocks)
static_assert(HEADER_1_BYTES == 32 && sizeof(struct store_header) == 40, "store header");

struct store_volume {
    uint32_t id;
    int data_fd, crc_fd, mac_fd; /* mac_fd -1: plain */
    uint64_t lost_blocks;
    struct aead_xts *xts;        /* NULL: plain */
    uint8_t mac_key[AEAD_KEY_BYTES];
};
/* What is known of a block. Lost: it went into the store damaged, reading any of it is an error. */
enum entry_state { ENTRY_SOUND, ENTRY_LOST, ENTRY_DAMAGED };
struct base_store {
    char directory[PATH_MAX];
    bool writable, holes; /* holes: base_store_expect_holes */
    pthread_mutex_t mutex; /* guards the table of volumes */
    struct store_volume volumes[MAX_VOLUMES];
    size_t count;
};

static struct entry entry_make(enum entry_state state, uint32_t crc, uint32_t mask, uint64_t block)
{
    struct {
        struct le32 crc, mask;
        struct le64 block;
    } covered = {le32_of(crc), le32_of(mask), le64_of(block)};
    uint32_t check = crc32c(state, &covered, sizeof covered) & 0xffffff00u;
    return (struct entry){le32_of(crc), le32_of(check | mask)};
}

static bool is_absent(const struct entry *entry)
{
    static const struct entry absent;
    return memcmp(entry, &absent, sizeof absent) == 0;
}

/* Of a block that has nothing: absent, where that does not say that it is lost. */
static struct entry entry_of_nothing(const struct store_volume *v, uint64_t block)
{
    return block < v->lost_blocks ? entry_make(ENTRY_SOUND, 1, 0, block) : (struct entry){0};
}

static enum entry_state entry_check(const struct store_volume *v, const struct entry *e, uint64_t block, uint32_t *ret_mask)
{
    uint32_t mask = le32_get(e->present) & 0xff;
    *ret_mask = mask;
    if (mask == 0) {
        struct entry nothing = entry_of_nothing(v, block);
        if (memcmp(e, &nothing, sizeof nothing) == 0)
            return ENTRY_SOUND;
        if (!is_absent(e))
            return ENTRY_DAMAGED;
        *ret_mask = 0xff;
        return ENTRY_LOST;
    }
    for (enum entry_state state = ENTRY_SOUND; state <= ENTRY_LOST; state++) {
        struct entry expected = entry_make(state, le32_get(e->crc), mask, block);
        if (memcmp(e, &expected, sizeof expected) == 0)
            return state;
    }
    return ENTRY_DAMAGED;
}

int base_store_open(const char *directory, bool writable, struct base_store **ret, struct error *err)
{
    if (writable && io_mkdirs(directory, 0700, err) < 0)
        return err->code;
    struct base_store *s = calloc(1, sizeof *s);
    if (!s)
        return error_errno(err, -ENOMEM, "cannot open %s", directory);
    snprintf(s->directory, sizeof s->directory, "%s", directory);
    s->writable = writable;
    pthread_mutex_init(&s->mutex, NULL);
    *ret = s;
    return 0;
}

void base_store_expect_holes(struct base_store *s)
{
    s->holes = true;
}

void base_store_free(struct base_store *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->count; i++) {
        close(s->volumes[i].data_fd);
        close(s->volumes[i].crc_fd);
        if (s->volumes[i].mac_fd >= 0)
            close(s->volumes[i].mac_fd);
        aead_xts_free(s->volumes[i].xts);
        aead_wipe(s->volumes[i].mac_key, AEAD_KEY_BYTES);
    }
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

static void file_path(const struct base_store *s, uint32_t volume, const char *suffix, char path[PATH_MAX + 32])
{
    snprintf(path, PATH_MAX + 32, "%s/%u.%s", s->directory, volume, suffix);
}

static struct store_header header_make(uint32_t volume, uint64_t blocks, uint64_t lost_blocks)
{
    struct store_header h = {.magic = MAGIC, .version = le32_of(lost_blocks ? VERSION_LOST : VERSION), .volume = le32_of(volume),
                             .blocks = le64_of(blocks), .lost_blocks = le64_of(lost_blocks)};
    h.crc = le32_of(crc32c(0, &h, lost_blocks ? sizeof h : HEADER_1_BYTES));
    return h;
}

/* -EBADMSG: there is none, or it is damaged. What only cannot be read is another error: the disk may give it later. */
static int read_header(int crc_fd, uint32_t volume, struct store_header *ret)
{
    struct store_header h, expected;
    int r = io_pread_full(crc_fd, &h, sizeof h, 0);
    if (r < 0)
        return r == -ENODATA ? -EBADMSG : r;
    if (le32_get(h.version) != VERSION_LOST)
        h.lost_blocks = le64_of(0);
    expected = header_make(volume, le64_get(h.blocks), le64_get(h.lost_blocks));
    if (memcmp(&h, &expected, sizeof h) != 0)
        return -EBADMSG;
    *ret = h;
    return 0;
}

/* Whether header and lengths fit. A file that is damaged, cut or missing is never taken for an empty one (J6). */
static int check_files(const struct base_store *s, struct store_volume *v, struct error *err)
{
    struct store_header h;
    struct stat data, crc;
    int r = read_header(v->crc_fd, v->id, &h);
    if (r == -EBADMSG)
        return error_set(err, r, "%s/%u.crc is damaged (its header)", s->directory, v->id);
    if (r < 0)
        return error_errno(err, r, "cannot read %s/%u.crc", s->directory, v->id);
    v->lost_blocks = le64_get(h.lost_blocks);
    if (fstat(v->data_fd, &data) < 0 || fstat(v->crc_fd, &crc) < 0)
        return error_errno(err, -errno, "cannot open %s/%u.img", s->directory, v->id);
    uint64_t blocks = le64_get(h.blocks);
    if ((uint64_t)data.st_size < blocks * BLOCK_BYTES || (uint64_t)crc.st_size < HEADER_BYTES + blocks * sizeof(struct entry))
        return error_set(err, -EBADMSG, "%s/%u.%s is damaged (it was cut)", s->directory, v->id,
                         (uint64_t)data.st_size < blocks * BLOCK_BYTES ? "img" : "crc");
    return 0;
}

static int open_file(const struct base_store *s, uint32_t volume, const char *suffix, struct error *err)
{
    char path[PATH_MAX + 32];
    file_path(s, volume, suffix, path);
    int fd = open(path, (s->writable ? O_RDWR : O_RDONLY) | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return error_set(err, -EBADMSG, "%s is missing", path);
    return fd < 0 ? error_errno(err, -errno, "cannot open %s", path) : fd;
}

/* Keys of an encrypted volume: of its own, so that the same content looks different in each. */
static int unlock_volume(const struct base_store *s, struct store_volume *v, struct error *err)
{
    const struct seal *seal = seal_of(s->directory);
    const char *name = strrchr(s->directory, '/');
    char context[64];
    uint8_t keys[2 * AEAD_KEY_BYTES];
    v->mac_fd = -1;
    if (!seal)
        return 0;
    int n = snprintf(context, sizeof context, "%.40s/%u", name ? name + 1 : s->directory, v->id);
    int r = seal_derive(seal, "store 1", context, (size_t)n, keys);
    if (r == 0)
        r = seal_derive(seal, "store 2", context, (size_t)n, keys + AEAD_KEY_BYTES);
    if (r == 0)
        r = seal_derive(seal, "store tags", context, (size_t)n, v->mac_key);
    r = r < 0 ? error_set(err, r, "cannot derive the keys of %s", s->directory) : aead_xts_new(keys, &v->xts, err);
    aead_wipe(keys, sizeof keys);
    if (r < 0)
        return r;
    v->mac_fd = open_file(s, v->id, "tag", err);
    if (v->mac_fd >= 0)
        return 0;
    aead_xts_free(take_ptr(v->xts));
    return v->mac_fd;
}

/* The tag of an encrypted block, with what its entry says. */
static int make_tag(const struct store_volume *v, uint64_t block, uint32_t mask, const char data[BLOCK_BYTES], uint8_t ret[STORE_TAG_BYTES])
{
    struct {
        struct le64 block;
        struct le32 mask;
        char data[BLOCK_BYTES];
    } covered = {le64_of(block), le32_of(mask), {0}};
    uint8_t mac[AEAD_MAC_BYTES];
    static_assert(sizeof covered == 12 + BLOCK_BYTES, "no padding");
    memcpy(covered.data, data, BLOCK_BYTES);
    int r = aead_mac(v->mac_key, sizeof v->mac_key, &covered, sizeof covered, mac);
    memcpy(ret, mac, STORE_TAG_BYTES);
    return r;
}

/* Encrypts a block in place and notes its tag. Nothing in a plain store. */
static int seal_block(const struct store_volume *v, uint64_t block, uint32_t mask, char data[BLOCK_BYTES])
{
    uint8_t tag[STORE_TAG_BYTES];
    if (!v->xts)
        return 0;
    int r = aead_xts_crypt(v->xts, true, block, data, data, BLOCK_BYTES);
    if (r == 0)
        r = make_tag(v, block, mask, data, tag);
    return r < 0 ? r : io_pwrite_full(v->mac_fd, tag, sizeof tag, block * STORE_TAG_BYTES);
}

/* Decrypts a block in place; false: it is not authentic. Unchecked with `repair`: its sectors that were not being written are
 * what they were. */
static bool open_block(const struct store_volume *v, uint64_t block, uint32_t mask, bool repair, const uint8_t tag[STORE_TAG_BYTES],
                       char data[BLOCK_BYTES])
{
    uint8_t expected[STORE_TAG_BYTES];
    if (!v->xts)
        return true;
    if (!repair && (make_tag(v, block, mask, data, expected) < 0 || !aead_equal(tag, expected, sizeof expected)))
        return false;
    return aead_xts_crypt(v->xts, false, block, data, data, BLOCK_BYTES) == 0;
}

static int find_volume(struct base_store *s, uint32_t volume, struct store_volume *ret, struct error *err)
{
    MUTEX_GUARD(guard, &s->mutex);
    for (size_t i = 0; i < s->count; i++)
        if (s->volumes[i].id == volume) {
            *ret = s->volumes[i];
            return 0;
        }
    if (s->count == MAX_VOLUMES)
        return error_set(err, -ENOSPC, "%s holds more than %u volumes", s->directory, MAX_VOLUMES);
    _cleanup_close_ int data_fd = open_file(s, volume, "img", err);
    if (data_fd < 0)
        return data_fd;
    _cleanup_close_ int crc_fd = open_file(s, volume, "crc", err);
    if (crc_fd < 0)
        return crc_fd;
    struct store_volume v = {.id = volume, .data_fd = data_fd, .crc_fd = crc_fd, .mac_fd = -1};
    int r = check_files(s, &v, err);
    if (r == 0)
        r = unlock_volume(s, &v, err);
    if (r < 0)
        return r;
    data_fd = crc_fd = -1; /* the table's now */
    s->volumes[s->count++] = v;
    *ret = v;
    return 0;
}

static uint64_t blocks_of(uint64_t size_bytes)
{
    return (size_bytes + BLOCK_BYTES - 1) / BLOCK_BYTES;
}

/* `lost_blocks`: of files that are not there. */
static int prepare_files(struct base_store *s, uint32_t volume, uint64_t blocks, uint64_t lost_blocks, struct error *err)
{
    char image[PATH_MAX + 32], crc[PATH_MAX + 32];
    struct store_header old = {.blocks = le64_of(0), .lost_blocks = le64_of(lost_blocks)};
    file_path(s, volume, "img", image);
    file_path(s, volume, "crc", crc);
    _cleanup_close_ int data_fd = open(image, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    _cleanup_close_ int crc_fd = open(crc, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (data_fd < 0 || crc_fd < 0)
        return error_errno(err, -errno, "cannot create %s", data_fd < 0 ? image : crc);
    if (seal_of(s->directory)) {
        char tag[PATH_MAX + 32];
        file_path(s, volume, "tag", tag);
        _cleanup_close_ int tag_fd = open(tag, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
        if (tag_fd < 0)
            return error_errno(err, -errno, "cannot create %s", tag);
    }
    int r = read_header(crc_fd, volume, &old);
    if (r < 0 && r != -EBADMSG)
        return error_errno(err, r, "cannot read %s", crc);
    if (le64_get(old.blocks) >= blocks)
        return 0; /* find_volume looks at it whole */
    struct store_header h = header_make(volume, blocks, le64_get(old.lost_blocks));
    struct stat st;
    if (fstat(data_fd, &st) < 0 || (st.st_size < (off_t)(blocks * BLOCK_BYTES) && ftruncate(data_fd, (off_t)(blocks * BLOCK_BYTES)) < 0) ||
        ftruncate(crc_fd, (off_t)(HEADER_BYTES + blocks * sizeof(struct entry))) < 0)
        return error_errno(err, -errno, "cannot create %s", image);
    /* The header last: where it is, the sizes are; a file that is too small then is damaged. */
    r = fsync(data_fd) < 0 || fsync(crc_fd) < 0 ? -errno : io_pwrite_full(crc_fd, &h, sizeof h, 0);
    if (r == 0 && fsync(crc_fd) < 0)
        r = -errno;
    if (r < 0)
        return error_errno(err, r, "cannot write %s", crc);
    return io_sync_directory(s->directory, err);
}

int base_store_prepare(struct base_store *s, uint32_t volume, uint64_t size_bytes, struct error *err)
{
    return prepare_files(s, volume, blocks_of(size_bytes), 0, err);
}

static off_t entry_offset(uint64_t block)
{
    return (off_t)(HEADER_BYTES + block * sizeof(struct entry));
}

int base_store_check(struct base_store *s, uint32_t volume, struct error *err)
{
    struct store_volume ignored;
    return find_volume(s, volume, &ignored, err);
}

int base_store_renew(struct base_store *s, uint32_t volume, uint64_t size_bytes, uint64_t lost_bytes, struct error *err)
{
    char path[PATH_MAX + 32];
    for (const char **suffix = (const char *[]){"img", "crc", "tag", NULL}; *suffix; suffix++) {
        file_path(s, volume, *suffix, path);
        if (unlink(path) < 0 && errno != ENOENT)
            return error_errno(err, -errno, "cannot remove %s", path);
    }
    return prepare_files(s, volume, blocks_of(size_bytes), blocks_of(lost_bytes), err);
}

/* Reads `length_bytes`; what is beyond the end of the file is zeroes. */
static int read_padded(int fd, void *data, size_t length_bytes, uint64_t offset)
{
    char *p = data;
    while (length_bytes) {
        ssize_t n = pread(fd, p, length_bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0) {
            memset(p, 0, length_bytes);
            return 0;
        }
        p += n;
        offset += (size_t)n;
        length_bytes -= (size_t)n;
    }
    return 0;
}

/* A block as the files have it. */
struct raw_block {
    char data[BLOCK_BYTES] __attribute__((aligned(64))); /* zeroes when nothing of it is present (but see base_store_expect_holes) */
    struct entry entry;
    uint8_t tag[STORE_TAG_BYTES]; /* zeroes in a plain store */
};

static int fetch_block(const struct base_store *s, const struct store_volume *v, uint64_t block, struct raw_block *ret, struct error *err)
{
    memset(ret->tag, 0, sizeof ret->tag);
    int r = read_padded(v->crc_fd, &ret->entry, sizeof ret->entry, (uint64_t)entry_offset(block));
    if (r == 0 && (le32_get(ret->entry.present) & 0xff) == 0)
        memset(ret->data, 0, BLOCK_BYTES);
    else if (r == 0)
        r = read_padded(v->data_fd, ret->data, BLOCK_BYTES, block * BLOCK_BYTES);
    if (r == 0 && s->holes && is_absent(&ret->entry))
        r = read_padded(v->data_fd, ret->data, BLOCK_BYTES, block * BLOCK_BYTES);
    if (r == 0 && v->xts)
        r = read_padded(v->mac_fd, ret->tag, sizeof ret->tag, block * STORE_TAG_BYTES);
    return r < 0 ? error_errno(err, r, "cannot read %s/%u.img at %llu", s->directory, v->id, (unsigned long long)(block * BLOCK_BYTES)) : 0;
}

/* Makes of `raw` what it means: absent sectors zeroed, decrypted; checked unless `repair`. entry.present is the bare mask afterwards.
 * What is not sound stays as it was. */
static enum entry_state judge_block(const struct store_volume *v, uint64_t block, struct raw_block *raw, bool repair)
{
    uint32_t present = 0;
    enum entry_state state = entry_check(v, &raw->entry, block, &present);
    if (state == ENTRY_LOST)
        return state;
    if (!repair && (state == ENTRY_DAMAGED || (present && crc32c(0, raw->data, BLOCK_BYTES) != le32_get(raw->entry.crc))))
        return ENTRY_DAMAGED;
    if (!present && !io_is_zero(raw->data, BLOCK_BYTES)) /* its entry is lost */
        return ENTRY_DAMAGED;
    if (present && !open_block(v, block, present, repair, raw->tag, raw->data))
        return ENTRY_DAMAGED;
    for (uint32_t i = 0; i < BLOCK_SECTORS; i++)
        if (!(present & 1u << i))
            memset(raw->data + i * SECTOR_BYTES, 0, SECTOR_BYTES);
    raw->entry.present = le32_of(present);
    return ENTRY_SOUND;
}

static int refuse_block(const struct base_store *s, const struct store_volume *v, uint64_t block, enum entry_state state, struct error *err)
{
    return error_set(err, -EBADMSG, "%s/%u.img is damaged at %llu (%s)", s->directory, v->id, (unsigned long long)(block * BLOCK_BYTES),
                     state == ENTRY_LOST ? "it was read from a damaged journal" : "wrong checksum");
}

/* For who changes it: what is there is nobody else's. */
static int read_block(const struct base_store *s, const struct store_volume *v, uint64_t block, struct raw_block *ret, bool repair,
                      struct error *err)
{
    int r = fetch_block(s, v, block, ret, err);
    enum entry_state state = r == 0 ? judge_block(v, block, ret, repair) : ENTRY_SOUND;
    return r < 0 || state == ENTRY_SOUND ? r : refuse_block(s, v, block, state, err);
}

/* ---- who changes what (S1) ---- */

static int lock_entries(const struct store_volume *v, short type, int command, uint64_t first, uint64_t count, short *ret_type)
{
    struct flock range = {.l_type = type, .l_whence = SEEK_SET, .l_start = entry_offset(first), .l_len = (off_t)(count * sizeof(struct entry))};
    while (fcntl(v->crc_fd, command, &range) < 0) {
        if (errno == EOPNOTSUPP || errno == ENOLCK || errno == ENOSYS) { /* a file system without locks has none */
            range.l_type = F_UNLCK;
            break;
        }
        if (errno != EINTR)
            return -errno;
    }
    if (ret_type)
        *ret_type = range.l_type;
    return 0;
}

static int begin_change(const struct base_store *s, const struct store_volume *v, uint64_t first, uint64_t count, struct error *err)
{
    int r = lock_entries(v, F_WRLCK, F_OFD_SETLKW, first, count, NULL);
    return r < 0 ? error_errno(err, r, "cannot lock %s/%u.crc", s->directory, v->id) : 0;
}

static void end_change(const struct store_volume *v, uint64_t first, uint64_t count)
{
    lock_entries(v, F_UNLCK, F_OFD_SETLK, first, count, NULL);
}

/* Waits while somebody changes the block. 0: nobody did at the moment of the question. */
static int await_change(const struct base_store *s, const struct store_volume *v, uint64_t block, struct error *err)
{
    struct timespec pause = {.tv_nsec = SETTLE_NS};
    for (uint64_t waited = 0; waited < SETTLE_LIMIT_NS; waited += SETTLE_NS) {
        short type = F_WRLCK;
        int r = lock_entries(v, F_RDLCK, F_OFD_GETLK, block, 1, &type);
        if (r < 0)
            return error_errno(err, r, "cannot tell whether %s/%u.img is being changed", s->directory, v->id);
        if (type == F_UNLCK)
            return 0;
        nanosleep(&pause, NULL);
    }
    return error_set(err, -ETIMEDOUT, "%s/%u.img is being changed at %llu, and that does not end", s->directory, v->id,
                     (unsigned long long)(block * BLOCK_BYTES));
}

static bool is_same(const struct raw_block *a, const struct raw_block *b)
{
    return memcmp(&a->entry, &b->entry, sizeof a->entry) == 0 && memcmp(a->tag, b->tag, sizeof a->tag) == 0 &&
           memcmp(a->data, b->data, sizeof a->data) == 0;
}

/* For readers beside who changes it (S2). */
static int read_settled_block(const struct base_store *s, const struct store_volume *v, uint64_t block, struct raw_block *ret,
                              struct error *err)
{
    struct raw_block before;
    int r = fetch_block(s, v, block, ret, err);
    enum entry_state state = r == 0 ? judge_block(v, block, ret, false) : ENTRY_SOUND;
    for (unsigned look = 0; r == 0 && state != ENTRY_SOUND; look++) {
        before = *ret;
        r = await_change(s, v, block, err);
        if (r == 0)
            r = fetch_block(s, v, block, ret, err);
        if (r == 0 && (is_same(&before, ret) || look == SETTLE_LOOKS))
            return refuse_block(s, v, block, state, err);
        if (r == 0)
            state = judge_block(v, block, ret, false);
    }
    return r;
}

/* Sectors that are present. */
static int read_present(const struct base_store *s, const struct store_volume *v, uint64_t lba, uint32_t length, char *to,
                        struct error *err)
{
    struct raw_block block;
    while (length) {
        uint32_t skip = lba % BLOCK_SECTORS, count = BLOCK_SECTORS - skip < length ? BLOCK_SECTORS - skip : length;
        int r = read_settled_block(s, v, lba / BLOCK_SECTORS, &block, err);
        if (r < 0)
            return r;
        memcpy(to, block.data + skip * SECTOR_BYTES, (size_t)count * SECTOR_BYTES);
        to += (size_t)count * SECTOR_BYTES;
        lba += count;
        length -= count;
    }
    return 0;
}

int base_store_read(struct base_store *s, uint32_t volume, uint64_t lba, uint32_t length, void *data, struct error *err)
{
    struct store_volume v;
    int r = find_volume(s, volume, &v, err);
    char *to = data;
    while (length && r == 0) {
        bool present;
        uint64_t stretch;
        if (base_store_extent(s, volume, lba, length, &present, &stretch, err) < 0)
            return err->code;
        if (present)
            r = read_present(s, &v, lba, (uint32_t)stretch, to, err);
        else
            memset(to, 0, (size_t)stretch * SECTOR_BYTES);
        to += (size_t)stretch * SECTOR_BYTES;
        lba += stretch;
        length -= (uint32_t)stretch;
    }
    return r;
}

/* What a block becomes: tag, data, entry. With its lock. */
static int put_block(const struct store_volume *v, uint64_t block, uint32_t present, char data[BLOCK_BYTES])
{
    int r = present ? seal_block(v, block, present, data) : 0;
    struct entry entry = present ? entry_make(ENTRY_SOUND, crc32c(0, data, BLOCK_BYTES), present, block) : entry_of_nothing(v, block);
    if (r == 0 && present)
        r = io_pwrite_full(v->data_fd, data, BLOCK_BYTES, block * BLOCK_BYTES);
    else if (r == 0 && fallocate(v->data_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)(block * BLOCK_BYTES), BLOCK_BYTES) < 0)
        r = errno == EOPNOTSUPP || errno == ENODEV ? io_pwrite_full(v->data_fd, data, BLOCK_BYTES, block * BLOCK_BYTES) : -errno; /* zeroes */
    return r < 0 ? r : io_pwrite_full(v->crc_fd, &entry, sizeof entry, (uint64_t)entry_offset(block));
}

/* Changes sectors [skip, skip+count) of one block, not all of it: data NULL clears. The rest of a block that is damaged stays
 * unreadable, and so does all of it then. */
static int change_block(struct base_store *s, const struct store_volume *v, uint64_t block_number, uint32_t skip,
                        uint32_t count, const char *data, bool repair, struct error *err)
{
    struct raw_block block;
    uint32_t mask = ((1u << count) - 1) << skip;
    int r = read_block(s, v, block_number, &block, repair, err);
    if (r == -EBADMSG)
        return base_store_lose(s, v->id, block_number * BLOCK_SECTORS, BLOCK_SECTORS, err);
    if (r < 0)
        return r;
    if (data)
        memcpy(block.data + skip * SECTOR_BYTES, data, (size_t)count * SECTOR_BYTES);
    else
        memset(block.data + skip * SECTOR_BYTES, 0, (size_t)count * SECTOR_BYTES);
    uint32_t present = le32_get(block.entry.present);
    r = begin_change(s, v, block_number, 1, err);
    if (r < 0)
        return r;
    r = put_block(v, block_number, data ? present | mask : present & ~mask, block.data);
    end_change(v, block_number, 1);
    return r < 0 ? error_errno(err, r, "cannot write %s/%u.img", s->directory, v->id) : 0;
}

/* Whole blocks, with their locks. `sealed`: a copy of the data to be encrypted; NULL: the store is plain. */
static int put_blocks(const struct store_volume *v, uint64_t first, uint32_t count, const char *data, char *sealed)
{
    struct entry entries[ENTRIES_AT_ONCE];
    int r = 0;
    for (uint32_t i = 0; sealed && i < count && r == 0; i++)
        r = seal_block(v, first + i, 0xff, sealed + (size_t)i * BLOCK_BYTES);
    data = sealed ? sealed : data;
    for (uint32_t i = 0; i < count; i++)
        entries[i] = entry_make(ENTRY_SOUND, crc32c(0, data + (size_t)i * BLOCK_BYTES, BLOCK_BYTES), 0xff, first + i);
    if (r == 0)
        r = io_pwrite_full(v->data_fd, data, (size_t)count * BLOCK_BYTES, first * BLOCK_BYTES);
    return r < 0 ? r : io_pwrite_full(v->crc_fd, entries, count * sizeof *entries, (uint64_t)entry_offset(first));
}

/* Whole blocks, at most ENTRIES_AT_ONCE. */
static int write_blocks(const struct base_store *s, const struct store_volume *v, uint64_t first, uint32_t count, const char *data,
                        struct error *err)
{
    _cleanup_free_ char *sealed = v->xts ? malloc((size_t)count * BLOCK_BYTES) : NULL;
    if (v->xts && !sealed)
        return error_errno(err, -ENOMEM, "cannot write %s/%u.img", s->directory, v->id);
    if (sealed)
        memcpy(sealed, data, (size_t)count * BLOCK_BYTES);
    int r = begin_change(s, v, first, count, err);
    if (r < 0)
        return r;
    r = put_blocks(v, first, count, data, sealed);
    end_change(v, first, count);
    return r < 0 ? error_errno(err, r, "cannot write %s/%u.img", s->directory, v->id) : 0;
}

int base_store_write(struct base_store *s, uint32_t volume, uint64_t lba, uint32_t length, const void *data, bool repair,
                     struct error *err)
{
    struct store_volume v;
    const char *from = data;
    int r = find_volume(s, volume, &v, err);
    while (r == 0 && length) {
        uint32_t skip = lba % BLOCK_SECTORS, count = BLOCK_SECTORS - skip < length ? BLOCK_SECTORS - skip : length;
        if (count == BLOCK_SECTORS) {
            uint32_t blocks = length / BLOCK_SECTORS < ENTRIES_AT_ONCE ? length / BLOCK_SECTORS : ENTRIES_AT_ONCE;
            r = write_blocks(s, &v, lba / BLOCK_SECTORS, blocks, from, err);
            count = blocks * BLOCK_SECTORS;
        } else {
            r = change_block(s, &v, lba / BLOCK_SECTORS, skip, count, from, repair, err);
        }
        from += (size_t)count * SECTOR_BYTES;
        lba += count;
        length -= count;
    }
    return r;
}

/* The entries of blocks without data, with their locks: lost ones, or those of nothing. */
static int put_entries(const struct store_volume *v, uint64_t block, uint64_t count, bool lost)
{
    struct entry entries[ENTRIES_AT_ONCE];
    int r = 0;
    for (uint64_t at = block, end = block + count, part; at < end && r == 0; at += part) {
        part = end - at < ENTRIES_AT_ONCE ? end - at : ENTRIES_AT_ONCE;
        for (uint64_t i = 0; i < part; i++)
            entries[i] = lost ? entry_make(ENTRY_LOST, 0, 0xff, at + i) : entry_of_nothing(v, at + i);
        r = io_pwrite_full(v->crc_fd, entries, part * sizeof *entries, (uint64_t)entry_offset(at));
    }
    return r;
}

int base_store_lose(struct base_store *s, uint32_t volume, uint64_t lba, uint32_t length, struct error *err)
{
    struct store_volume v;
    uint64_t first = lba / BLOCK_SECTORS, count = (lba + length + BLOCK_SECTORS - 1) / BLOCK_SECTORS - first;
    int r = find_volume(s, volume, &v, err);
    if (r == 0)
        r = begin_change(s, &v, first, count, err);
    if (r < 0)
        return r;
    r = put_entries(&v, first, count, true);
    end_change(&v, first, count);
    return r < 0 ? error_errno(err, r, "cannot write %s/%u.crc", s->directory, volume) : 0;
}

/* Clears whole blocks by holes in both files; of what was lost the entries say it. */
static int punch(struct base_store *s, const struct store_volume *v, uint64_t block, uint64_t count, struct error *err)
{
    int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    uint64_t lost = v->lost_blocks > block ? v->lost_blocks - block : 0;
    if (lost > count)
        lost = count;
    int r = begin_change(s, v, block, count, err);
    if (r < 0)
        return r;
    r = put_entries(v, block, lost, false);
    if (r == 0 && lost < count && fallocate(v->crc_fd, mode, entry_offset(block + lost), (off_t)((count - lost) * sizeof(struct entry))) < 0)
        r = -errno;
    if (r == 0 && fallocate(v->data_fd, mode, (off_t)(block * BLOCK_BYTES), (off_t)(count * BLOCK_BYTES)) < 0)
        r = -errno;
    end_change(v, block, count);
    return r < 0 ? error_errno(err, r, "cannot free space in %s/%u.img", s->directory, v->id) : 0;
}

int base_store_clear(struct base_store *s, uint32_t volume, uint64_t lba, uint64_t length, bool repair, struct error *err)
{
    struct store_volume v;
    int r = find_volume(s, volume, &v, err);
    while (r == 0 && length) {
        uint32_t skip = lba % BLOCK_SECTORS;
        if (skip == 0 && length >= BLOCK_SECTORS) {
            uint64_t count = length / BLOCK_SECTORS;
            r = punch(s, &v, lba / BLOCK_SECTORS, count, err);
            lba += count * BLOCK_SECTORS;
            length -= count * BLOCK_SECTORS;
            continue;
        }
        uint32_t count = BLOCK_SECTORS - skip < length ? BLOCK_SECTORS - skip : (uint32_t)length;
        r = change_block(s, &v, lba / BLOCK_SECTORS, skip, count, NULL, repair, err);
        lba += count;
        length -= count;
    }
    return r;
}

/* The mask of an entry that was read as `seen`, which is not one: it may just have been written (S2). */
static int read_settled_mask(const struct base_store *s, const struct store_volume *v, uint64_t block, struct entry seen, uint32_t *ret_mask,
                             struct error *err)
{
    for (unsigned look = 0; look <= SETTLE_LOOKS; look++) {
        struct entry entry;
        int r = await_change(s, v, block, err);
        if (r < 0)
            return r;
        r = read_padded(v->crc_fd, &entry, sizeof entry, (uint64_t)entry_offset(block));
        if (r < 0)
            return error_errno(err, r, "cannot read %s/%u.crc", s->directory, v->id);
        if (entry_check(v, &entry, block, ret_mask) != ENTRY_DAMAGED)
            return 0;
        if (memcmp(&entry, &seen, sizeof entry) == 0)
            break;
        seen = entry;
    }
    return error_set(err, -EBADMSG, "%s/%u.crc is damaged at %llu", s->directory, v->id, (unsigned long long)entry_offset(block));
}

/* The first block from `block` on whose place in the image is no hole; UINT64_MAX: none. */
static int next_in_image(const struct base_store *s, const struct store_volume *v, uint64_t block, uint64_t *ret, struct error *err)
{
    off_t next = lseek(v->data_fd, (off_t)(block * BLOCK_BYTES), SEEK_DATA);
    if (next < 0 && errno != ENXIO)
        return error_errno(err, -errno, "cannot read %s/%u.img", s->directory, v->id);
    *ret = next < 0 ? UINT64_MAX : (uint64_t)next / BLOCK_BYTES;
    return 0;
}

/* Whether the image holds something for a block that is absent. *next_data: see next_in_image, for the blocks before it. */
static int is_stray(const struct base_store *s, const struct store_volume *v, uint64_t block, uint64_t *next_data, bool *ret, struct error *err)
{
    char data[BLOCK_BYTES];
    int r = *next_data < block ? next_in_image(s, v, block, next_data, err) : 0;
    *ret = false;
    if (r < 0 || *next_data > block)
        return r;
    r = read_padded(v->data_fd, data, sizeof data, block * BLOCK_BYTES);
    *ret = r == 0 && !io_is_zero(data, BLOCK_BYTES);
    return r < 0 ? error_errno(err, r, "cannot read %s/%u.img", s->directory, v->id) : 0;
}

int base_store_extent(struct base_store *s, uint32_t volume, uint64_t lba, uint64_t length, bool *ret_present,
                      uint64_t *ret_length, struct error *err)
{
    struct store_volume v;
    int r = find_volume(s, volume, &v, err);
    if (r < 0)
        return r;
    *ret_present = false;
    *ret_length = length;
    struct entry entries[ENTRIES_AT_ONCE];
    uint64_t at = lba, end = lba + length, next_data = 0, looked_at = UINT64_MAX;
    bool stray = false; /* of block `looked_at`: it is told as present, and reading it fails */
    r = s->holes ? next_in_image(s, &v, lba / BLOCK_SECTORS, &next_data, err) : 0;
    if (r < 0)
        return r;
    while (at < end) {
        uint64_t block = at / BLOCK_SECTORS;
        off_t next = lseek(v.crc_fd, entry_offset(block), SEEK_DATA);
        if (next < 0 && errno != ENXIO) /* no hole, but trouble */
            return error_errno(err, -errno, "cannot read %s/%u.crc", s->directory, volume);
        uint64_t hole_to = next < 0 ? end : ((uint64_t)next - HEADER_BYTES) / sizeof *entries * BLOCK_SECTORS;
        if (s->holes && next_data < block && hole_to > at && (r = next_in_image(s, &v, block, &next_data, err)) < 0)
            return r;
        if (s->holes && next_data < hole_to / BLOCK_SECTORS)
            hole_to = next_data * BLOCK_SECTORS;
        if (hole_to > at) { /* absent up to there, or lost */
            bool is_lost = at < v.lost_blocks * BLOCK_SECTORS;
            if (is_lost && hole_to > v.lost_blocks * BLOCK_SECTORS)
                hole_to = v.lost_blocks * BLOCK_SECTORS;
            if (at > lba && *ret_present != is_lost)
                break;
            *ret_present = is_lost;
            at = hole_to < end ? hole_to : end;
            continue;
        }
        r = read_padded(v.crc_fd, entries, sizeof entries, (uint64_t)entry_offset(block));
        if (r < 0)
            return error_errno(err, r, "cannot read %s/%u.crc", s->directory, volume);
        for (uint64_t stop = (block + ENTRIES_AT_ONCE) * BLOCK_SECTORS; at < stop && at < end; at++) {
            uint32_t mask;
            const struct entry *entry = &entries[at / BLOCK_SECTORS - block];
            if (entry_check(&v, entry, at / BLOCK_SECTORS, &mask) == ENTRY_DAMAGED &&
                read_settled_mask(s, &v, at / BLOCK_SECTORS, *entry, &mask, err) < 0)
                return err->code;
            if (s->holes && is_absent(entry) && looked_at != at / BLOCK_SECTORS) {
                looked_at = at / BLOCK_SECTORS;
                r = is_stray(s, &v, looked_at, &next_data, &stray, err);
                if (r < 0)
                    return r;
            }
            bool present = (mask >> at % BLOCK_SECTORS & 1) || (stray && looked_at == at / BLOCK_SECTORS);
            if (at == lba)
                *ret_present = present;
            else if (present != *ret_present)
                goto done;
        }
    }
done:
    *ret_length = at - lba;
    return 0;
}

int base_store_push(struct base_store *s, struct error *err)
{
    MUTEX_GUARD(guard, &s->mutex);
    for (size_t i = 0; i < s->count; i++)
        if (sync_file_range(s->volumes[i].data_fd, 0, 0, SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER) < 0 && errno != ENOSYS)
            return error_errno(err, -errno, "cannot write %s/%u.img", s->directory, s->volumes[i].id);
    return 0;
}

int base_store_sync(struct base_store *s, struct error *err)
{
    MUTEX_GUARD(guard, &s->mutex);
    for (size_t i = 0; i < s->count; i++)
        if (fdatasync(s->volumes[i].data_fd) < 0 || fdatasync(s->volumes[i].crc_fd) < 0 ||
            (s->volumes[i].mac_fd >= 0 && fdatasync(s->volumes[i].mac_fd) < 0))
            return error_errno(err, -errno, "cannot sync %s/%u.img", s->directory, s->volumes[i].id);
    return s->count ? io_sync_directory(s->directory, err) : 0;
}

uint64_t base_store_used_bytes(struct base_store *s)
{
    MUTEX_GUARD(guard, &s->mutex);
    uint64_t used = 0;
    for (size_t i = 0; i < s->count; i++) {
        struct stat st;
        if (fstat(s->volumes[i].data_fd, &st) == 0)
            used += (uint64_t)st.st_blocks * SECTOR_BYTES;
        if (s->volumes[i].mac_fd >= 0 && fstat(s->volumes[i].mac_fd, &st) == 0)
            used += (uint64_t)st.st_blocks * SECTOR_BYTES;
        if (fstat(s->volumes[i].crc_fd, &st) == 0)
            used += (uint64_t)st.st_blocks * SECTOR_BYTES;
    }
    return used;
}
