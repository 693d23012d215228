/* SPDX-License-Identifier: Apache-2.0 */
/* Writes thinned segments: the same frames as any, but sparse (each record says its LSN), in files of their own generation,
 * which nothing knows before the manifest names them. A segment may be a quarter larger than the configured size, so that
 * rewriting, with fewer records a frame, never needs more segments than there were. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/frame.h"
#include "journal/journal_internal.h"
#include "journal/thin_internal.h"

#define CLOCK_DRIFT_NS (10 * NS_PER_MS) /* between realtime and boottime within a frame: it has one delta for both */

static uint32_t output_blocks(const struct journal *j)
{
    return j->options.segment_blocks + j->options.segment_blocks / 4 + 2 * FRAME_MAX_BLOCKS;
}

static struct frame_header *header_of(struct thin_output *o)
{
    return (struct frame_header *)o->frame;
}

int thin_output_init(struct thin_output *o, struct journal *j, struct error *err)
{
    *o = (struct thin_output){.j = j, .fd = -1};
    o->frame = io_alloc_pages((size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    o->scratch = io_alloc_pages(j->options.segment_records * sizeof *o->scratch);
    int r = o->frame && o->scratch ? 0 : error_errno(err, -ENOMEM, "cannot thin old history");
    if (r == 0)
        r = tail_init(&o->tail, output_blocks(j), j->options.segment_records, err);
    pthread_mutex_lock(&j->mutex); /* journal_configure may change it */
    o->compress = j->options.compress;
    pthread_mutex_unlock(&j->mutex);
    if (r < 0 || !j->seal || o->compress)
        return r;
    o->sealed = io_alloc_pages((size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    return o->sealed ? tail_reserve_tags(&o->tail, err) : error_errno(err, -ENOMEM, "cannot thin old history");
}

static void remove_output(struct thin_output *o, uint32_t number)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    journal_path(o->j, journal_segment_file_of(number, o->generation, name), path);
    unlink(path);
    journal_path(o->j, journal_cold_file_of(number, o->generation, name), path);
    unlink(path);
    journal_path(o->j, journal_l0_file_of(number, o->generation, name), path);
    unlink(path);
}

void thin_output_release(struct thin_output *o)
{
    if (o->fd >= 0)
        close(o->fd);
    if (o->fd >= 0 || o->cold)
        remove_output(o, o->tail.info.number);
    cold_writer_free(o->cold, false);
    for (size_t i = 0; i < o->segment_count; i++)
        remove_output(o, o->segments[i].number);
    tail_release(&o->tail);
    io_free_pages(o->frame, (size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    io_free_pages(o->sealed, (size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    aead_free(o->key);
    io_free_pages(o->scratch, o->j->options.segment_records * sizeof *o->scratch);
    *o = (struct thin_output){.fd = -1, .j = o->j};
}

void thin_output_leave(struct thin_output *o)
{
    if (o->fd >= 0)
        close(o->fd);
    o->fd = -1;
    cold_writer_free(take_ptr(o->cold), true);
    o->segment_count = 0;
}

static int begin_file(struct thin_output *o, struct error *err)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    if (o->compress) {
        journal_path(o->j, journal_cold_file_of(o->number, o->generation, name), path);
        return cold_writer_new(path, o->key, &o->cold, err);
    }
    journal_path(o->j, journal_segment_file_of(o->number, o->generation, name), path);
    o->fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC | O_DIRECT, 0600);
    if (o->fd < 0 && errno == EINVAL) /* a file system without direct I/O */
        o->fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (o->fd < 0)
        return error_errno(err, -errno, "cannot create %s", path);
    return 0;
}

static int begin_segment(struct thin_output *o, struct error *err)
{
    if (o->number > o->last_number || o->segment_count == THIN_MAX_SEGMENTS)
        return error_set(err, -E2BIG, "thinned history needs more segments than before: it is left as it is");
    aead_free(take_ptr(o->key));
    if (o->j->seal && aead_random(o->salt, sizeof o->salt) < 0)
        return error_set(err, -EIO, "cannot thin old history: no random bytes");
    if (o->j->seal && sealed_segment_key(o->j->seal, o->salt, &o->key, err) < 0)
        return err->code;
    int r = begin_file(o, err);
    if (r < 0)
        return r;
    tail_reset(&o->tail, o->number++, o->epoch, &o->boot);
    o->tail.info.generation = (uint16_t)o->generation;
    o->tail.info.keep_s = o->keep_s;
    o->frame_number = 1;
    o->previous_crc = 0;
    return 0;
}

/* The header block, and what else makes the file whole. */
static int end_file(struct thin_output *o, struct error *err)
{
    struct segment_info *info = &o->tail.info;
    char *block = io_alloc_pages(JOURNAL_BLOCK_BYTES);
    if (!block)
        return error_errno(err, -ENOMEM, "cannot thin old history");
    segment_make_thinned_header(o->j, info, o->key ? o->salt : NULL, block);
    int r = 0;
    if (o->cold) {
        r = cold_writer_finish(o->cold, block, &info->cold_kib, err);
    } else {
        r = io_pwrite_full(o->fd, block, JOURNAL_BLOCK_BYTES, 0);
        if (r == 0 && fsync(o->fd) < 0)
            r = -errno;
        if (r < 0)
            error_errno(err, r, "cannot write the thinned segment %u", info->number);
    }
    io_free_pages(block, JOURNAL_BLOCK_BYTES);
    return r;
}

/* `last`: the segment whose end is this one's end too, or NULL. */
static int end_segment(struct thin_output *o, const struct segment_info *last, struct error *err)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    struct segment_info *info = &o->tail.info;
    info->first = o->first; /* it answers for what was thinned away before its first record, too */
    info->open_end = last ? last->open_end : !o->written_cut;
    if (last) {
        info->last = last->last;
        info->last_realtime_ns = last->last_realtime_ns;
        info->last_boottime_ns = last->last_boottime_ns;
    }
    o->first.n = info->last.n + 1;
    int r = end_file(o, err);
    if (r < 0)
        return r;
    journal_path(o->j, journal_l0_file_of(info->number, o->generation, name), path);
    r = tail_write_index(&o->tail, path, &o->j->manifest.journal_id, INDEX_L0, LSN_MAX, o->scratch, &info->index_kib, err);
    if (r < 0)
        return r;
    if (o->fd >= 0)
        close(o->fd);
    o->fd = -1;
    cold_writer_free(take_ptr(o->cold), false);
    o->segments[o->segment_count++] = *info;
    return 0;
}

static bool is_open(const struct thin_output *o)
{
    return o->fd >= 0 || o->cold;
}

/* Writes the frame, which is complete. */
static int write_frame(struct thin_output *o, struct error *err)
{
    const char *written = o->frame;
    int r = 0;
    if (o->cold)
        return cold_writer_add(o->cold, o->frame, o->blocks, err);
    if (o->key) {
        seal_tag tags[FRAME_MAX_BLOCKS];
        r = sealed_frame_write(o->key, o->tail.info.used_blocks, o->frame, o->sealed, o->blocks, tags);
        tail_add_tags(&o->tail, tags, o->blocks);
        written = o->sealed;
    }
    if (r == 0)
        r = io_pwrite_full(o->fd, written, (size_t)o->blocks * JOURNAL_BLOCK_BYTES,
                           (uint64_t)o->tail.info.used_blocks * JOURNAL_BLOCK_BYTES);
    return r < 0 ? error_errno(err, r, "cannot write the thinned segment %u", o->tail.info.number) : 0;
}

static int end_frame(struct thin_output *o, struct error *err)
{
    uint32_t crcs[FRAME_MAX_BLOCKS];
    if (!o->count)
        return 0;
    int r = 0;
    if (is_open(o) && !tail_fits(&o->tail, o->count, o->blocks))
        r = end_segment(o, NULL, err);
    if (r == 0 && !is_open(o))
        r = begin_segment(o, err);
    if (r < 0)
        return r;
    struct frame_header *h = header_of(o);
    h->record_count = le16_of((uint16_t)o->count);
    h->number = le64_of(o->frame_number++);
    h->durable_lsn = le64_of(frame_record_lsn(h, o->count - 1));
    h->previous_crc = le32_of(o->previous_crc);
    h->blocks = le32_of(o->blocks);
    frame_seal(h);
    o->previous_crc = le32_get(h->header_crc);
    frame_payload_crcs(h, crcs); /* what was damaged before gets a wrong CRC in the index, and stays so */
    r = write_frame(o, err);
    if (r < 0)
        return r;
    tail_add_frame(&o->tail, h, crcs);
    o->written_cut = o->frame_cut;
    o->count = 0;
    return 0;
}

static void begin_frame(struct thin_output *o, const struct thin_record *r)
{
    struct frame_header *h = header_of(o);
    memset(o->frame, 0, JOURNAL_BLOCK_BYTES);
    *h = (struct frame_header){
        .magic = le32_of(FRAME_MAGIC),
        .epoch = le32_of(o->epoch),
        .flags = le16_of(FRAME_SPARSE),
        .first_lsn = le64_of(r->lsn.n),
        .realtime_ns = le64_of(r->realtime_ns),
        .boottime_ns = le64_of(r->boottime_ns),
    };
    memcpy(h->journal_id, o->j->manifest.journal_id.bytes, sizeof h->journal_id);
    o->blocks = 1;
}

/* Whether the record fits the frame that is being filled. */
static bool joins(struct thin_output *o, const struct thin_record *r, uint32_t blocks)
{
    const struct frame_header *h = header_of(o);
    uint64_t realtime = le64_get(h->realtime_ns), boottime = le64_get(h->boottime_ns);
    if (o->count == FRAME_SPARSE_RECORDS || o->blocks + blocks > FRAME_MAX_BLOCKS || o->count == o->j->options.segment_records)
        return false;
    if (r->realtime_ns < realtime || (r->realtime_ns - realtime) / 1000 > UINT32_MAX)
        return false;
    int64_t drift = (int64_t)(r->boottime_ns - boottime) - (int64_t)(r->realtime_ns - realtime);
    return drift < (int64_t)CLOCK_DRIFT_NS && drift > -(int64_t)CLOCK_DRIFT_NS;
}

int thin_output_add(struct thin_output *o, const struct thin_record *r, struct error *err)
{
    uint32_t bytes = le32_get(r->record.payload_bytes), blocks = (bytes + JOURNAL_BLOCK_BYTES - 1) / JOURNAL_BLOCK_BYTES;
    int result = o->count && !joins(o, r, blocks) ? end_frame(o, err) : 0;
    if (result < 0)
        return result;
    if (!o->count)
        begin_frame(o, r);
    struct frame_record record = r->record;
    record.payload_block = le16_of(blocks ? (uint16_t)o->blocks : 0);
    record.delta_us = le32_of((uint32_t)((r->realtime_ns - le64_get(header_of(o)->realtime_ns)) / 1000));
    if (!r->cut)
        record.flags &= (uint8_t)~RECORD_LAST; /* only what is kept is a point */
    struct le64 lsn = le64_of(r->lsn.n);
    memcpy(o->frame + sizeof(struct frame_header) + o->count * sizeof record, &record, sizeof record);
    memcpy(o->frame + FRAME_SPARSE_LSN_OFFSET + o->count * sizeof lsn, &lsn, sizeof lsn);
    if (blocks) {
        char *to = o->frame + (size_t)o->blocks * JOURNAL_BLOCK_BYTES;
        memcpy(to, r->payload, bytes);
        memset(to + bytes, 0, (size_t)blocks * JOURNAL_BLOCK_BYTES - bytes);
    }
    o->blocks += blocks;
    o->frame_cut = r->cut;
    o->count++;
    return 0;
}

int thin_output_finish(struct thin_output *o, const struct segment_info *last, struct error *err)
{
    int r = end_frame(o, err);
    return r == 0 && is_open(o) ? end_segment(o, last, err) : r;
}
