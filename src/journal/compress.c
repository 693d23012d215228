/* SPDX-License-Identifier: Apache-2.0 */
/* Compressing sealed segments (J5, J6): the blocks stay what they are and where they are, so nothing that refers to them changes:
 * no pin forbids it, and a view that has the old file open reads on. A kill at any step leaves the old file or the new one:
 *  7. the compressed file is written under a temporary name;
 *  8. it has its name, and is durable; the manifest does not know it yet, an opening would remove it;
 *  9. the manifest says that the segment is compressed; the old file is there still, an opening removes it;
 *     then that goes.
 * A segment that hardly gets smaller, or that is damaged, stays as it is; the manifest keeps note of it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/age.h"
#include "journal/frame.h"
#include "journal/journal_internal.h"
#include "journal/segment_reader.h"
#include "journal/thin_internal.h"

#define LEAST_PART 8u /* worth it when it saves such a part of the segment */
#define FRAME_BYTES ((size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES)

struct cooling {
    struct journal *j;
    struct segment_info info;
    struct segment_reader file;
    struct cold_writer *writer;
    struct aead *key;
    char *frame, *header_block;
    char path[JOURNAL_PATH_BYTES];
    struct thin_pace pace;
    uint32_t kib;
    bool killed; /* by a test: nothing is cleaned up */
};

/* For tests. */
static int fault(struct cooling *c, unsigned step, struct error *err)
{
    const struct journal_options *o = &c->j->options;
    if (!o->thin_fault || !o->thin_fault(o->thin_fault_context, step))
        return 0;
    c->killed = true;
    return error_set(err, -EAGAIN, "killed in step %u", step);
}

/* With the mutex: the oldest segment that is due. Near the quota younger ones are too. */
static bool find_due(const struct journal *j, struct segment_info *ret)
{
    struct age_clock now;
    uint64_t after = j->options.compress_after_ns;
    uint32_t haste = thin_haste(maintain_journal_bytes(j), j->options.quota_bytes);
    if (haste > 100)
        after = after / haste * 100;
    age_clock_read(&j->manifest, j->clock, &now);
    for (size_t i = 0; i < j->manifest.segment_count; i++) {
        const struct segment_info *s = &j->manifest.segments[i];
        if (s->cold_kib || s->dense || age_of(&now, s) < after || s->used_blocks < 2 || s->first.n <= j->compress_after.n)
            continue;
        *ret = *s;
        return true;
    }
    return false;
}

static bool has_room(const struct cooling *c)
{
    struct statvfs st;
    uint64_t needed = (c->info.used_blocks + 2ull * c->j->options.segment_blocks) * JOURNAL_BLOCK_BYTES;
    return statvfs(c->j->directory, &st) < 0 || (uint64_t)st.f_bavail * st.f_frsize >= needed;
}

/* The header block that the new file gets: as it was, with a salt of its own. -EBADMSG when it is damaged. */
static int take_header(struct cooling *c, struct error *err)
{
    uint8_t salt[SEAL_SALT_BYTES];
    struct journal *j = c->j;
    int r = io_pread_full(c->file.fd, c->header_block, JOURNAL_BLOCK_BYTES, 0);
    if (r < 0)
        return error_errno(err, r, "cannot read segment %u", c->info.number);
    r = segment_check_header(&j->manifest.journal_id, c->info.number, c->header_block, err);
    if (r < 0 || !j->seal)
        return r;
    if (aead_random(salt, sizeof salt) < 0)
        return error_set(err, -EIO, "no random bytes");
    sealed_segment_salt(c->header_block, salt);
    return sealed_segment_key(j->seal, salt, &c->key, err);
}

static bool is_worth_it(const struct cooling *c)
{
    uint64_t plain = cold_writer_plain_bytes(c->writer), stored = cold_writer_stored_bytes(c->writer);
    return stored + plain / LEAST_PART <= plain;
}

static bool is_wanted_elsewhere(struct journal *j)
{
    MUTEX_GUARD(guard, &j->mutex);
    return j->stop || atomic_load(&j->hold_wanted);
}

/* Each frame is checked: what is damaged stays in the file in which it was found to be. -E2BIG: it hardly gets smaller. */
static int copy_frames(struct cooling *c, struct error *err)
{
    const struct segment_info *s = &c->info;
    const struct frame_header *h = (const struct frame_header *)c->frame;
    struct frame_expectation expected = {.journal_id = c->j->manifest.journal_id, .epoch = s->epoch, .number = s->first_frame,
                                         .previous_crc = s->first_previous_crc, .after = {s->first.n - 1}};
    uint32_t crcs[FRAME_MAX_BLOCKS];
    for (uint32_t block = 1; block < s->used_blocks;) {
        const char *why = "it cannot be read";
        seal_tag digest;
        if (is_wanted_elsewhere(c->j))
            return error_set(err, -EAGAIN, "compressing is put off");
        expected.room_blocks = s->used_blocks - block;
        if (segment_reader_header(&c->file, block, c->frame, digest) < 0 || !frame_is_expected(c->frame, &expected, &why))
            return error_set(err, -EBADMSG, "segment %u is damaged at block %u (%s)", s->number, block, why);
        uint32_t blocks = le32_get(h->blocks);
        if (segment_reader_payload(&c->file, block, c->frame, blocks, digest, NULL) < 0 || frame_payload_crcs(c->frame, crcs))
            return error_set(err, -EBADMSG, "segment %u is damaged at block %u (payload)", s->number, block);
        int r = cold_writer_add(c->writer, c->frame, blocks, err);
        if (r < 0)
            return r;
        expected.number++;
        expected.previous_crc = le32_get(h->header_crc);
        expected.after.n = frame_last_lsn(h);
        block += blocks;
        if (block > s->used_blocks / 4 && block > 8 * COLD_CHUNK_BLOCKS && !is_worth_it(c))
            return error_set(err, -E2BIG, "it is hardly compressible");
        thin_pace(&c->pace, c->j);
    }
    return is_worth_it(c) ? 0 : error_set(err, -E2BIG, "it is hardly compressible");
}

static int write_file(struct cooling *c, struct error *err)
{
    char name[JOURNAL_FILE_BYTES];
    journal_path(c->j, journal_cold_file_of(c->info.number, c->info.generation, name), c->path);
    int r = segment_reader_open(c->j->directory, c->info.number, c->info.generation, true, &c->file, err);
    if (r == 0 && c->file.cold) { /* of before a manifest that could not be saved: it is made again */
        segment_reader_close(&c->file);
        unlink(c->path);
        r = segment_reader_open(c->j->directory, c->info.number, c->info.generation, true, &c->file, err);
    }
    if (r == 0)
        r = take_header(c, err);
    if (r == 0)
        r = cold_writer_new(c->path, c->key, &c->writer, err);
    if (r == 0)
        r = copy_frames(c, err);
    if (r == 0)
        r = fault(c, 7, err);
    return r == 0 ? cold_writer_finish(c->writer, c->header_block, &c->kib, err) : r;
}

/* In place: id, epoch and boot are read without the mutex. */
static int mark(void *context, struct manifest *m, struct error *err)
{
    const struct cooling *c = context;
    for (size_t i = 0; i < m->segment_count; i++) {
        struct segment_info *s = &m->segments[i];
        if (s->number != c->info.number || s->generation != c->info.generation)
            continue;
        s->cold_kib = c->kib;
        s->dense = c->kib == 0;
        return 0;
    }
    return error_set(err, -EAGAIN, "compressing is put off");
}

static void remove_old(struct cooling *c)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    struct journal *j = c->j;
    bool may_recycle = pin_floor(j).n == UINT64_MAX; /* a view may have it open; later ones open the new one */
    pthread_rwlock_wrlock(&j->files_lock);
    if (c->info.generation) {
        journal_path(j, journal_segment_file_of(c->info.number, c->info.generation, name), path);
        unlink(path);
    } else {
        segment_recycle(j, c->info.number, may_recycle);
    }
    pthread_rwlock_unlock(&j->files_lock);
}

static int publish(struct cooling *c, struct error *err)
{
    int r = fault(c, 8, err);
    if (r == 0)
        r = sealer_change(c->j, mark, c, err);
    if (r < 0 && !c->killed && !c->j->unsaved) /* else the manifest on disk may name it */
        unlink(c->path);
    if (r == 0)
        r = fault(c, 9, err);
    if (r == 0)
        remove_old(c);
    return r;
}

static int compress_segment(struct journal *j, const struct segment_info *info, struct error *err)
{
    struct cooling c = {.j = j, .info = *info, .file.fd = -1};
    if (!has_room(&c))
        return error_set(err, -ENOSPC, "the disk has no room");
    c.frame = io_alloc_pages(FRAME_BYTES);
    c.header_block = io_alloc_pages(JOURNAL_BLOCK_BYTES);
    int r = c.frame && c.header_block ? write_file(&c, err) : error_errno(err, -ENOMEM, "no memory");
    if (r == 0) {
        r = publish(&c, err);
    } else if (r == -E2BIG || r == -EBADMSG) {
        if (r == -EBADMSG)
            log_warning(j->log, "%s; it is left as it is", err->message);
        c.kib = 0;
        r = sealer_change(j, mark, &c, err);
    }
    cold_writer_free(c.writer, c.killed);
    segment_reader_close(&c.file);
    aead_free(c.key);
    io_free_pages(c.frame, FRAME_BYTES);
    io_free_pages(c.header_block, JOURNAL_BLOCK_BYTES);
    return r;
}

int compress_step(struct journal *j, bool *ret_done, struct error *err)
{
    int r = 0;
    *ret_done = false;
    for (unsigned n = 0; n < COMPRESS_BATCH && r == 0; n++) {
        struct segment_info info;
        pthread_mutex_lock(&j->mutex);
        bool due = j->options.compress && !j->stop && !j->suspended && find_due(j, &info);
        pthread_mutex_unlock(&j->mutex);
        if (!due || atomic_load(&j->hold_wanted))
            break;
        r = compress_segment(j, &info, err);
        *ret_done |= r == 0;
        if (r == 0)
            r = maintain_quota(j, err); /* it must not wait for all of them */
        else if (r != -EAGAIN && !io_is_no_room(r) && r != -ENOMEM && !j->unsaved) { /* it would fail again and again */
            log_warning(j->log, "segment %u is not compressed: %s", info.number, err->message);
            j->compress_after = info.last;
            r = 0;
        }
    }
    return r == -EAGAIN || io_is_no_room(r) || r == -ENOMEM ? 0 : r;
}
