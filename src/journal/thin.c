/* SPDX-License-Identifier: Apache-2.0 */
/* Thinning old history (J5): a stretch of sealed segments becomes fewer ones, of the next generation, in the same format,
 * with the records that are the newest of some sector as of some kept point, at the LSNs that they had, and all events. Only
 * kept points have the flag LAST there. A kill at any step leaves the old history or the new:
 *  1. read the indexes, and the headers of frames in which an interval ends: which points are kept, which records survive;
 *  2. what rewinds refer to in these segments is copied to their rescue stores;
 *  3. the survivors are written to new files, synced, which the manifest does not name yet;
 *  4. one replacement of the manifest: the new segments instead of the old ones, without the runs over them;
 *  5. the old files go.
 * Something that reads the stretch by a pin, or waits for the maintenance, makes it give up: nothing has happened then. */
#include "journal/thin.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/frame.h"
#include "journal/journal_internal.h"
#include "journal/segment_reader.h"
#include "journal/thin_internal.h"

#define WINDOW_BYTES ((size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES)
#define READ_BLOCKS 64u /* 256 KiB */
#define QUOTA_PART 8u /* a stretch is at most so small a part of the quota */

struct job {
    struct journal *j;
    struct manifest m;
    struct thin_stretch stretch;
    const struct segment_info *sources;
    struct thin_chooser chooser;
    struct thin_survivors survivors;
    struct thin_output output;
    char *window;
    struct thin_pace pace;
    bool killed; /* by a test: nothing is cleaned up */
};

/* ---- reading the frames of one segment ---- */

struct source {
    struct job *job;
    const struct segment_info *info;
    struct segment_reader file;
    struct frame_expectation expected;
    uint32_t block;                  /* of the next frame */
    uint32_t window_at, window_blocks; /* what job->window holds */
    const struct frame_header *frame;
};

static int open_source(struct job *job, size_t i, struct source *ret, struct error *err)
{
    const struct segment_info *s = &job->sources[i];
    *ret = (struct source){.job = job, .info = s, .file.fd = -1, .block = 1};
    int r = segment_reader_open(job->j->directory, s->number, s->generation, true, &ret->file, err);
    if (r < 0)
        return r;
    ret->expected = (struct frame_expectation){.journal_id = job->m.journal_id, .epoch = s->epoch, .number = s->first_frame,
                                               .previous_crc = s->first_previous_crc, .after = {s->first.n - 1}};
    return 0;
}

/* Makes the window begin at the next frame. In small pieces: the application's requests wait behind each in the disk's queue. */
static int fill_window(struct source *s, struct error *err)
{
    uint32_t left = s->info->used_blocks - s->block, wanted = left < FRAME_MAX_BLOCKS ? left : FRAME_MAX_BLOCKS;
    uint32_t skip = s->block - s->window_at, have = skip < s->window_blocks ? s->window_blocks - skip : 0;
    char *window = s->job->window;
    if (s->file.key) /* what is left may be decrypted already */
        have = 0;
    memmove(window, window + (size_t)skip * JOURNAL_BLOCK_BYTES, (size_t)have * JOURNAL_BLOCK_BYTES);
    s->window_at = s->block;
    s->window_blocks = wanted;
    for (uint32_t count; have < wanted; have += count) {
        count = wanted - have < READ_BLOCKS ? wanted - have : READ_BLOCKS;
        int r = segment_reader_blocks(&s->file, s->block + have, count, window + (size_t)have * JOURNAL_BLOCK_BYTES);
        if (r < 0 && r != -EBADMSG) /* a damaged chunk shows in the frames' checksums */
            return error_errno(err, r, "cannot read segment %u at block %u", s->info->number, s->block + have);
        thin_pace(&s->job->pace, s->job->j);
    }
    return 0;
}

/* 1 with s->frame (whole, payloads unchecked), 0 at the end. */
static int next_frame(struct source *s, struct error *err)
{
    if (s->block >= s->info->used_blocks)
        return 0;
    for (bool fresh = false;; fresh = true) {
        uint32_t skip = s->block - s->window_at;
        bool there = s->window_blocks && skip < s->window_blocks;
        const struct frame_header *h = (const struct frame_header *)(s->job->window + (size_t)skip * JOURNAL_BLOCK_BYTES);
        const char *why = "it is cut off";
        s->expected.room_blocks = s->info->used_blocks - s->block;
        seal_tag digest;
        why = there && sealed_open_header(s->file.key, s->block, (void *)h, digest) < 0 ? "not authentic" : why;
        if (there && frame_is_expected(h, &s->expected, &why) && skip + le32_get(h->blocks) <= s->window_blocks) {
            if (sealed_open_payload(s->file.key, s->block, (void *)h, le32_get(h->blocks), digest, NULL) < 0)
                return error_set(err, -EIO, "cannot decrypt segment %u", s->info->number);
            s->frame = h;
            s->block += le32_get(h->blocks);
            s->expected.number++;
            s->expected.previous_crc = le32_get(h->header_crc);
            s->expected.after.n = frame_last_lsn(h);
            return 1;
        }
        int r = fresh ? error_set(err, -EBADMSG, "segment %u is damaged at block %u (%s)", s->info->number, s->block, why)
                      : fill_window(s, err);
        if (r < 0)
            return r;
    }
}

/* For tests. */
static int fault(struct job *job, unsigned step, struct error *err)
{
    const struct journal_options *o = &job->j->options;
    if (!o->thin_fault || !o->thin_fault(o->thin_fault_context, step))
        return 0;
    job->killed = true;
    return error_set(err, -EAGAIN, "killed in step %u", step);
}

/* Where the sources are in `m`, unchanged; SIZE_MAX: some were dropped meanwhile. */
static size_t find_sources(const struct job *job, const struct manifest *m)
{
    for (size_t i = 0; i + job->stretch.count <= m->segment_count; i++) {
        if (m->segments[i].number != job->sources[0].number)
            continue;
        for (size_t k = 0; k < job->stretch.count; k++)
            if (m->segments[i + k].number != job->sources[k].number || m->segments[i + k].generation != job->sources[k].generation)
                return SIZE_MAX;
        return i;
    }
    return SIZE_MAX;
}

/* Between two segments, so that the quota holds although a stretch takes long: -EAGAIN when something more urgent waits. */
static int yield(struct job *job, struct error *err)
{
    struct journal *j = job->j;
    int r = maintain_quota(j, err); /* a failure is told by the next attempt to drop */
    pthread_mutex_lock(&j->mutex);
    bool go_on = r == 0 && !j->stop && pin_ceiling(j).n < job->sources[0].first.n && find_sources(job, &j->manifest) != SIZE_MAX;
    pthread_mutex_unlock(&j->mutex);
    if (!go_on || atomic_load(&j->hold_wanted))
        return error_set(err, -EAGAIN, "thinning is put off");
    return 0;
}

/* ---- 1: what stays ---- */

static int open_index(struct job *job, size_t i, struct index **ret, struct error *err)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    const struct segment_info *s = &job->sources[i];
    journal_path(job->j, journal_l0_file_of(s->number, s->generation, name), path);
    return index_open(path, job->j->cache, ret, err);
}

static int read_section(struct index *index, enum index_section section, size_t element_bytes, void **ret, uint32_t *ret_count,
                        struct error *err)
{
    uint64_t bytes = index_section_bytes(index, section);
    *ret = malloc(bytes ? bytes : 1);
    *ret_count = (uint32_t)(bytes / element_bytes);
    if (!*ret)
        return error_errno(err, -ENOMEM, "cannot thin old history");
    return bytes ? index_section_pread(index, section, *ret, bytes, 0, err) : 0;
}

struct headers {
    struct source source;
    const struct tail_frame *frames;
};

static int read_header(void *context, uint32_t i, const struct frame_header **ret, struct error *err)
{
    struct headers *h = context;
    const struct source *s = &h->source;
    seal_tag digest;
    uint32_t block = le32_get(h->frames[i].block);
    thin_pace(&s->job->pace, s->job->j);
    if (atomic_load(&s->job->j->hold_wanted))
        return error_set(err, -EAGAIN, "thinning is put off");
    int r = segment_reader_header(&s->file, block, s->job->window, digest);
    const struct frame_header *found = (const struct frame_header *)s->job->window;
    if (r == 0 && (!frame_is_intact(found, &s->job->m.journal_id, s->info->epoch) ||
                   le64_get(found->first_lsn) != le64_get(h->frames[i].first_lsn)))
        r = -EBADMSG;
    if (r == -EBADMSG)
        return error_set(err, r, "segment %u is damaged at block %u (frame header)", s->info->number, block);
    *ret = found;
    return r < 0 ? error_errno(err, r, "cannot read segment %u at block %u", s->info->number, block) : 0;
}

static int choose_in_segment(struct job *job, size_t i, struct error *err)
{
    struct index *index = NULL;
    _cleanup_free_ void *frames = NULL, *events = NULL;
    struct headers headers = {.source = {.file.fd = -1}};
    const struct segment_info *s = &job->sources[i];
    struct thin_points p = {.m = &job->m, .low = {s->first.n - 1}, .high = s->last, .header = read_header, .context = &headers};
    int r = open_index(job, i, &index, err);
    if (r == 0)
        r = read_section(index, INDEX_SECTION_FRAMES, sizeof *p.frames, &frames, &p.frame_count, err);
    if (r == 0)
        r = read_section(index, INDEX_SECTION_EVENTS, sizeof *p.events, &events, &p.event_count, err);
    index_free(index);
    if (r == 0)
        r = open_source(job, i, &headers.source, err);
    headers.frames = p.frames = frames;
    p.events = events;
    if (r == 0)
        r = thin_choose_points(&job->chooser, &p, err);
    segment_reader_close(&headers.source.file);
    return r;
}

static int choose(struct job *job, struct error *err)
{
    int r = 0;
    for (size_t i = 0; i < job->stretch.count && r == 0; i++) {
        r = yield(job, err);
        if (r == 0)
            r = choose_in_segment(job, i, err);
    }
    return r;
}

static void pace_job(void *context)
{
    struct job *job = context;
    thin_pace(&job->pace, job->j);
}

static int find_survivors(struct job *job, struct error *err)
{
    struct index *indexes[THIN_MAX_SEGMENTS] = {NULL};
    struct extent_stream *streams[THIN_MAX_SEGMENTS] = {NULL};
    size_t count = job->stretch.count;
    struct lsn low = {job->sources[0].first.n - 1}, high = job->sources[count - 1].last;
    int r = thin_survivors_init(&job->survivors, low, high, err);
    job->survivors.pace = pace_job;
    job->survivors.pace_context = job;
    for (size_t i = 0; i < count && r == 0; i++) {
        r = open_index(job, i, &indexes[i], err);
        if (r == 0)
            r = index_stream(indexes[i], LSN_NONE, LSN_MAX, &streams[i], err);
    }
    if (r == 0)
        r = thin_find_survivors(&job->survivors, &job->chooser, streams, count, err);
    for (size_t i = 0; i < count; i++) {
        if (streams[i])
            extent_stream_free(streams[i]);
        index_free(indexes[i]);
    }
    return r;
}

/* ---- 3: the new segments ---- */

static int write_frame(struct job *job, const struct frame_header *h, struct error *err)
{
    int r = 0;
    for (uint32_t i = 0; i < le16_get(h->record_count) && r == 0; i++) {
        const struct frame_record *record = &frame_records(h)[i];
        uint64_t delta_ns = le32_get(record->delta_us) * 1000ull;
        struct lsn lsn = {frame_record_lsn(h, i)};
        bool data = record->op == OP_WRITE || record->op == OP_RESYNC || record->op == OP_ZERO || record->op == OP_DISCARD;
        if (record->op == OP_VOID || record->op == OP_BASE || (data && !thin_survives(&job->survivors, lsn)))
            continue;
        struct thin_record out = {
            .lsn = lsn,
            .realtime_ns = le64_get(h->realtime_ns) + delta_ns,
            .boottime_ns = le64_get(h->boottime_ns) + delta_ns,
            .record = *record,
            .payload = (const char *)h + (size_t)le16_get(record->payload_block) * JOURNAL_BLOCK_BYTES,
            .cut = thin_is_cut(&job->chooser, lsn),
        };
        r = thin_output_add(&job->output, &out, err);
    }
    return r;
}

static int write_frames(struct job *job, struct error *err)
{
    int r = 0;
    for (size_t i = 0; i < job->stretch.count && r == 0; i++) {
        struct source s = {.file.fd = -1};
        r = yield(job, err);
        if (r == 0)
            r = open_source(job, i, &s, err);
        while (r == 0) {
            int more = next_frame(&s, err);
            if (more <= 0) {
                r = more;
                break;
            }
            thin_pace(&job->pace, job->j);
            r = atomic_load(&job->j->hold_wanted) ? error_set(err, -EAGAIN, "thinning is put off") : write_frame(job, s.frame, err);
        }
        segment_reader_close(&s.file);
    }
    return r;
}

static int write_output(struct job *job, struct error *err)
{
    const struct segment_info *first = &job->sources[0], *last = &job->sources[job->stretch.count - 1];
    struct thin_output *o = &job->output;
    int r = thin_output_init(o, job->j, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < job->stretch.count; i++)
        if (job->sources[i].generation >= o->generation)
            o->generation = job->sources[i].generation + 1u;
    o->number = first->number;
    o->last_number = last->number;
    o->keep_s = job->stretch.keep_s;
    o->epoch = last->epoch;
    o->boot = last->boot;
    o->first = first->first;
    r = write_frames(job, err);
    if (r == 0)
        r = fault(job, 3, err);
    return r == 0 ? thin_output_finish(o, last, err) : r;
}

/* ---- 4 and 5: publishing ---- */

static bool overlaps(const struct job *job, const struct run_info *run)
{
    return run->first_segment <= job->sources[job->stretch.count - 1].number && run->last_segment >= job->sources[0].number;
}

/* In place: id, epoch and boot are read without the mutex. */
static int replace(void *context, struct manifest *m, struct error *err)
{
    struct job *job = context;
    size_t added = job->output.segment_count, removed = job->stretch.count, at = find_sources(job, m), k = 0;
    if (at == SIZE_MAX)
        return error_set(err, -EAGAIN, "thinning is put off");
    const size_t count = m->segment_count;
    for (size_t i = removed; i < added; i++) { /* where numbers are free between the sources it may be more segments */
        struct segment_info room = {0};
        if (manifest_add_segment(m, &room, err) < 0) {
            m->segment_count = count;
            return err->code;
        }
    }
    memmove(&m->segments[at + added], &m->segments[at + removed], (count - at - removed) * sizeof *m->segments);
    memcpy(&m->segments[at], job->output.segments, added * sizeof *m->segments);
    m->segment_count = count - removed + added;
    for (size_t i = 0; i < m->run_count; i++)
        if (!overlaps(job, &m->runs[i]))
            m->runs[k++] = m->runs[i];
    m->run_count = k;
    return 0;
}

/* A pin names files: it would name the old ones, which go, or the new ones, which a kill before the manifest is saved would take. */
static bool begin_publishing(struct job *job)
{
    struct journal *j = job->j;
    MUTEX_GUARD(guard, &j->mutex);
    j->publishing = find_sources(job, &j->manifest) != SIZE_MAX && pin_ceiling(j).n < job->sources[0].first.n && !j->stop;
    return j->publishing;
}

static void end_publishing(struct journal *j)
{
    MUTEX_GUARD(guard, &j->mutex);
    j->publishing = false;
    pthread_cond_broadcast(&j->published);
}

static int publish(struct job *job, struct error *err)
{
    struct journal *j = job->j;
    if (!begin_publishing(job))
        return error_set(err, -EAGAIN, "thinning is put off");
    int r = fault(job, 5, err);
    if (r == 0)
        r = sealer_change(j, replace, job, err);
    end_publishing(j);
    if (r == 0 || j->unsaved)
        job->output.segment_count = 0; /* its files are the journal's now, or the manifest on disk may name them */
    if (r == 0)
        r = fault(job, 6, err);
    if (r < 0) /* the old files stay until the next opening */
        return r;
    bool may_recycle = pin_floor(j).n == UINT64_MAX;
    pthread_rwlock_wrlock(&j->files_lock);
    for (size_t i = 0; i < job->stretch.count; i++)
        maintain_remove_segment(j, &job->sources[i], may_recycle);
    for (size_t i = 0; i < job->m.run_count; i++)
        if (overlaps(job, &job->m.runs[i]))
            maintain_remove_run(j, &job->m.runs[i]);
    pthread_rwlock_unlock(&j->files_lock);
    return 0;
}

/* ---- a step ---- */

/* Whether the disk has room for the new files beside the old ones and what the writer may need meanwhile. */
static bool has_room(const struct job *job)
{
    struct statvfs st;
    uint64_t needed = 4ull * job->j->options.segment_blocks;
    for (size_t i = 0; i < job->stretch.count; i++)
        needed += job->sources[i].used_blocks;
    return statvfs(job->j->directory, &st) < 0 || (uint64_t)st.f_bavail * st.f_frsize >= needed * JOURNAL_BLOCK_BYTES;
}

static int run_job(struct job *job, struct error *err)
{
    const struct segment_info *first = &job->sources[0], *last = &job->sources[job->stretch.count - 1];
    thin_chooser_init(&job->chooser, job->stretch.keep_s);
    job->window = io_alloc_pages(WINDOW_BYTES);
    int r = job->window ? 0 : error_errno(err, -ENOMEM, "cannot thin old history");
    if (r == 0)
        r = choose(job, err);
    if (r == 0)
        r = fault(job, 1, err);
    if (r == 0)
        r = thin_choose_last(&job->chooser, err);
    if (r == 0)
        r = find_survivors(job, err);
    if (r == 0)
        r = maintain_rescue(job->j, first->number, last->number, err);
    if (r == 0)
        r = fault(job, 2, err);
    if (r == 0)
        r = write_output(job, err);
    if (r == 0)
        r = fault(job, 4, err);
    if (r == 0)
        r = publish(job, err);
    if (job->killed)
        thin_output_leave(&job->output);
    thin_output_release(&job->output);
    thin_survivors_release(&job->survivors);
    thin_chooser_release(&job->chooser);
    io_free_pages(job->window, WINDOW_BYTES);
    if (r < 0)
        return error_context(err, "cannot thin the history from LSN %llu to %llu", (unsigned long long)first->first.n,
                             (unsigned long long)last->last.n);
    return 0;
}

int thin_step(struct journal *j, bool *ret_done, struct error *err)
{
    struct job *job = calloc(1, sizeof *job);
    struct thin_policy policy = {.steps = j->options.thinning};
    *ret_done = false;
    if (!job)
        return error_errno(err, -ENOMEM, "cannot thin old history");
    *job = (struct job){.j = j, .output = {.j = j, .fd = -1}};
    pthread_mutex_lock(&j->mutex); /* journal_configure may change them */
    policy.step_count = j->options.thinning_count;
    pthread_mutex_unlock(&j->mutex);
    if (policy.step_count)
        pin_floor(j); /* pins whose view is gone do not count */
    pthread_mutex_lock(&j->mutex);
    policy.step_count = j->options.thinning_count;
    policy.max_bytes = j->options.quota_bytes / QUOTA_PART;
    policy.haste_percent = thin_haste(maintain_journal_bytes(j), j->options.quota_bytes);
    policy.segment_blocks = j->options.segment_blocks;
    policy.segment_records = j->options.segment_records;
    policy.above = pin_ceiling(j);
    age_clock_read(&j->manifest, j->clock, &policy.now);
    if (j->thin_after.n > policy.above.n)
        policy.above = j->thin_after;
    bool due = policy.step_count && !j->suspended && thin_find(&j->manifest, &policy, &job->stretch);
    int r = due ? manifest_copy(&j->manifest, &job->m, err) : 0;
    pthread_mutex_unlock(&j->mutex);
    if (due && r == 0) {
        job->sources = &job->m.segments[job->stretch.first];
        due = has_room(job);
        r = due ? run_job(job, err) : 0;
        *ret_done = due && r == 0;
        if (r < 0 && r != -EAGAIN && !io_is_no_room(r) && r != -ENOMEM && !j->unsaved) { /* once is enough: it would fail again and again */
            log_warning(j->log, "%s; it is left as it is", err->message);
            j->thin_after = job->sources[job->stretch.count - 1].last;
            r = 0;
        }
        manifest_release(&job->m);
    }
    free(job);
    return r == -EAGAIN ? 0 : r;
}
