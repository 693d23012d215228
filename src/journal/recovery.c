/* SPDX-License-Identifier: Apache-2.0 */
/* Opening after whatever happened. The frames after the last sealed segment are followed by number, epoch and previous
 * CRC to the first that does not fit; what was found is sealed, and a new epoch begins in a new segment, so that no
 * stale frame can ever be taken for a new one (J3).
 *
 * A stop that a later frame's durable LSN covers is damage, not a torn tail: it is reported, and since the records
 * behind it are unknown, everything is compared with the backing. After a kill the ring holds what was not written
 * and which backing writes are open; after a power loss only the comparison can tell. */
#include <errno.h>
#include <fcntl.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/frame.h"
#include "journal/journal_internal.h"
#include "journal/losses.h"

struct scan {
    struct journal *j;
    struct aead *key; /* of the segment that is being scanned */
    struct frame_expectation expected;
    char *buffer; /* FRAME_MAX_BLOCKS blocks */
    uint32_t crcs[FRAME_MAX_BLOCKS];
    seal_tag tags[FRAME_MAX_BLOCKS];
    uint64_t damaged_records;
    bool damaged; /* a header was: what follows is unknown */
    bool awaited; /* the segment is there, whatever happened */
    char loss[160]; /* what is lost of the segment that is being scanned; "": nothing */
};

/* Whether a frame from block `at` on says that LSN `lsn` was durable. */
static bool covered_later(struct scan *s, int fd, uint32_t at, uint32_t blocks, struct lsn lsn)
{
    char *block = io_alloc_pages(JOURNAL_BLOCK_BYTES);
    bool covered = false;
    for (uint32_t i = at; block && i < blocks && !covered; i++) {
        if (sealed_read_header(s->key, fd, i, block, NULL) < 0)
            continue;
        const struct frame_header *h = (const struct frame_header *)block;
        covered = frame_is_intact(block, &s->expected.journal_id, s->expected.epoch) &&
                  le64_get(h->number) > s->expected.number && le64_get(h->durable_lsn) >= lsn.n;
    }
    io_free_pages(block, JOURNAL_BLOCK_BYTES);
    return covered;
}

static void accept_frame(struct scan *s, struct tail *t)
{
    const struct frame_header *h = (const struct frame_header *)s->buffer;
    tail_add_tags(t, s->tags, le32_get(h->blocks));
    tail_add_frame(t, s->buffer, s->crcs);
    s->expected.number++;
    s->expected.previous_crc = le32_get(h->header_crc);
    s->expected.after = t->info.last;
    s->j->recovery.frames++;
}

/* The payload of the frame at `at`; of what cannot be read, something that has a wrong CRC. */
static int read_payload(struct scan *s, int fd, uint32_t at, uint32_t length, const seal_tag digest)
{
    int r = sealed_read_payload(s->key, fd, at, s->buffer, length, digest, s->tags);
    if (r != -EIO && r != -ENODATA)
        return r;
    for (uint32_t i = 1; i < length; i++) {
        char *block = s->buffer + (size_t)i * JOURNAL_BLOCK_BYTES;
        if (io_pread_full(fd, block, JOURNAL_BLOCK_BYTES, (uint64_t)(at + i) * JOURNAL_BLOCK_BYTES) < 0)
            memset(block, i & 1 ? 0x5a : 0xa5, JOURNAL_BLOCK_BYTES);
    }
    return sealed_open_payload(s->key, at, s->buffer, length, digest, s->tags);
}

/* Follows the frames of one segment from its first block on. */
static void scan_frames(struct scan *s, struct tail *t, int fd, uint32_t blocks)
{
    for (;;) {
        uint32_t at = t->info.used_blocks;
        s->expected.room_blocks = blocks - at;
        const char *why = "cannot be read";
        if (at >= blocks)
            return;
        seal_tag digest;
        bool expected = sealed_read_header(s->key, fd, at, s->buffer, digest) == 0 &&
                        frame_is_expected(s->buffer, &s->expected, &why);
        struct lsn next = {s->expected.after.n + 1};
        if (!expected) {
            if (covered_later(s, fd, at, blocks, next)) {
                log_error(s->j->log, "segment %u is damaged at block %u (%s): the history after LSN %llu is lost up to now",
                          t->info.number, at, why, (unsigned long long)s->expected.after.n);
                s->damaged = true;
                snprintf(s->loss, sizeof s->loss, "frame header at block %u: %s", at, why);
            }
            return;
        }
        const struct frame_header *h = (const struct frame_header *)s->buffer;
        uint32_t count = le16_get(h->record_count), length = le32_get(h->blocks);
        if (!tail_fits(t, count, length) || read_payload(s, fd, at, length, digest) < 0)
            return;
        uint32_t damaged = frame_payload_crcs(s->buffer, s->crcs);
        if (damaged) {
            if (!covered_later(s, fd, at + length, blocks, next))
                return; /* torn */
            log_error(s->j->log, "segment %u is damaged at block %u: %u records from LSN %llu cannot be read",
                      t->info.number, at, damaged, (unsigned long long)next.n);
            s->damaged_records += damaged;
        }
        accept_frame(s, t);
    }
}

/* Everything has to be compared, and what says so is about to go (a damaged tail is sealed, the ring emptied). */
static int remember_compare_all(struct journal *j, struct error *err)
{
    return journal_mark(j, JOURNAL_COMPARE_FILE, err);
}

/* Before the segment is sealed: afterwards nothing but this note tells that there was more. */
static void note_loss(struct scan *s, uint32_t number)
{
    struct journal *j = s->j;
    struct error err = ERROR_INIT;
    uint64_t low = s->expected.after.n, reserved = j->manifest.lsn_reserved.n;
    struct loss loss = {.low = {low}, .high = {reserved > low ? reserved : low + 1}, .segment = number,
                        .found_realtime_ns = clock_realtime_ns(j->clock), .what = s->loss};
    if (s->loss[0] && losses_add(j->directory, &loss, j->manifest.base, &err) < 0)
        log_error(j->log, "cannot keep note of what was lost: %s", err.message);
}

/* What was in the segment is not known. */
static void lose(struct scan *s, uint32_t number, const char *what)
{
    log_error(s->j->log, "segment %u %s: the history after LSN %llu is lost up to now", number, what, (unsigned long long)s->expected.after.n);
    s->damaged = true;
    if (!s->loss[0])
        snprintf(s->loss, sizeof s->loss, "the segment %s", what);
}

static int lose_all(struct scan *s, uint32_t number, struct error *err)
{
    lose(s, number, "is missing");
    note_loss(s, number);
    return remember_compare_all(s->j, err);
}

/* Scans segment `number`; 1 if it held frames and was sealed, 0 if there is nothing. */
static int scan_segment(struct scan *s, uint32_t number, struct error *err)
{
    struct journal *j = s->j;
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    journal_path(j, journal_segment_file(number, name), path);
    _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);
    s->loss[0] = '\0';
    bool expected = s->awaited;
    s->awaited = false;
    if (fd < 0 && errno != ENOENT)
        return error_errno(err, -errno, "cannot open %s", path);
    if (fd < 0)
        return expected ? lose_all(s, number, err) : 0;
    int awaited = segment_await(path, fd, err);
    if (awaited < 0)
        return awaited;
    struct segment_header header = {.blocks = le32_of(j->options.segment_blocks)};
    memcpy(header.boot_id, j->manifest.boot.bytes, sizeof header.boot_id);
    bool intact = io_pread_full(fd, s->buffer, JOURNAL_BLOCK_BYTES, 0) == 0 &&
                  segment_check_header(&j->manifest.journal_id, number, s->buffer, err) == 0;
    if (intact)
        memcpy(&header, s->buffer, sizeof header);
    if (le32_get(header.blocks) > j->options.segment_blocks)
        return error_set(err, -EINVAL, "%s has %u blocks, more than this configuration's %u", path, le32_get(header.blocks),
                         j->options.segment_blocks);
    struct uuid boot;
    memcpy(boot.bytes, header.boot_id, 16);
    struct tail *t = &j->tails[0];
    tail_reset(t, number, j->manifest.epoch, &boot);
    int opened = sealed_segment_open(path, fd, &s->key, err);
    if (opened == -EBADMSG && expected) {
        lose(s, number, "has no header");
        note_loss(s, number);
        return remember_compare_all(j, err);
    }
    if (opened == -EBADMSG) { /* it has no header: it was just being made */
        log_warning(j->log, "%s: not used", err->message);
        return 0;
    }
    if (opened < 0)
        return opened;
    scan_frames(s, t, fd, le32_get(header.blocks));
    aead_free(take_ptr(s->key));
    struct stat st;
    /* The sealer trims it to its frames, and may have ended before the manifest had it. */
    if (expected && intact && fstat(fd, &st) == 0 && (uint64_t)st.st_size < (uint64_t)le32_get(header.blocks) * JOURNAL_BLOCK_BYTES &&
        (uint64_t)st.st_size != (uint64_t)t->info.used_blocks * JOURNAL_BLOCK_BYTES)
        lose(s, number, "was cut");
    if (!intact && (t->frame_count || s->damaged || expected)) {
        log_error(j->log, "the header of segment %u is damaged; its frames were followed without", number);
        s->damaged = true;
        if (!s->loss[0])
            snprintf(s->loss, sizeof s->loss, "the segment's header");
    } else if (!intact) {
        log_warning(j->log, "segment %u was not ready when the engine ended: not used", number);
    }
    note_loss(s, number);
    int r = s->damaged ? remember_compare_all(j, err) : 0;
    if (r < 0 || t->frame_count == 0)
        return r;
    j->written_realtime_ns = t->info.last_realtime_ns;
    j->written_boottime_ns = t->info.last_boottime_ns;
    r = sealer_seal(j, t, fd, err);
    return r < 0 ? r : 1;
}

/* The manifest's segment of this number and generation, or NULL; `rest`: what follows the number in the file's name,
 * ".g<generation>" or nothing. */
static const struct segment_info *find_segment(const struct manifest *m, unsigned number, const char *rest)
{
    unsigned generation = 0;
    if (sscanf(rest, ".g%u", &generation) != 1)
        generation = 0;
    size_t low = 0, high = m->segment_count;
    while (low < high) { /* there may be thousands, each with files to be looked up */
        size_t middle = low + (high - low) / 2;
        if (m->segments[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    bool there = low < m->segment_count && m->segments[low].number == number && m->segments[low].generation == generation;
    return there ? &m->segments[low] : NULL;
}

static bool ends_with(const char *name, const char *end)
{
    size_t length = strlen(name), part = strlen(end);
    return length > part && strcmp(name + length - part, end) == 0;
}

/* Of a file "segment-<number>" or "l0-<number>"; a segment has one form, that the manifest says. */
static bool is_segment_file(const struct manifest *m, const char *name, unsigned number, const char *rest)
{
    const struct segment_info *s = find_segment(m, number, rest);
    if (!s || strncmp(name, "segment-", 8) != 0)
        return s;
    return ends_with(name, s->cold_kib ? ".tmc" : ".tmj");
}

/* What was being written in a directory of the journal when the engine ended. */
static void remove_temporaries(struct journal *j, const char *directory)
{
    char path[JOURNAL_PATH_BYTES];
    struct error ignored = ERROR_INIT;
    journal_path(j, directory, path);
    if (io_remove_temporaries(path, &ignored) < 0)
        log_warning(j->log, "%s", ignored.message);
}

/* The base's files of a volume whose creation did not come to its end: another one may get its number. */
static void remove_unknown_volumes(struct journal *j)
{
    char file[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    unsigned id;
    journal_path(j, "base", path);
    _cleanup_closedir_ DIR *d = opendir(path);
    for (const struct dirent *entry; d && (entry = readdir(d));) {
        if (sscanf(entry->d_name, "%u.", &id) != 1 || manifest_find_volume(&j->manifest, id))
            continue;
        snprintf(file, sizeof file, "base/%.40s", entry->d_name);
        journal_path(j, file, path);
        unlink(path);
    }
}

/* Removes files that no manifest knows: segments that are not sealed (or keeps them to be used again), dropped or thinned ones, indexes and rewinds not
 * published. */
static void remove_strays(struct journal *j)
{
    _cleanup_closedir_ DIR *d = opendir(j->directory);
    struct dirent *entry;
    while (d && (entry = readdir(d))) {
        char path[JOURNAL_PATH_BYTES], name[JOURNAL_FILE_BYTES];
        unsigned level, number;
        unsigned long long lsn;
        bool known = true;
        int end = 0;
        if (sscanf(entry->d_name, "segment-%10u%n", &number, &end) == 1 || sscanf(entry->d_name, "l0-%10u%n", &number, &end) == 1) {
            known = is_segment_file(&j->manifest, entry->d_name, number, entry->d_name + end);
        } else if (sscanf(entry->d_name, "rewind-%20llu.idx", &lsn) == 1 || sscanf(entry->d_name, "rescue-%20llu", &lsn) == 1) {
            known = false;
            for (size_t i = 0; i < j->manifest.rewind_count; i++)
                known |= j->manifest.rewinds[i].lsn.n == lsn;
        } else if (sscanf(entry->d_name, "run-%u-%10u.idx", &level, &number) == 2) {
            known = false;
            for (size_t i = 0; i < j->manifest.run_count; i++)
                known |= j->manifest.runs[i].level == level && j->manifest.runs[i].first_segment == number;
        }
        if (io_is_temporary(entry->d_name))
            known = false;
        snprintf(name, sizeof name, "%.63s", entry->d_name);
        if (known && strncmp(name, "rescue-", 7) == 0)
            remove_temporaries(j, name);
        if (known)
            continue;
        /* One that was compressed may be open in a view: it goes, but is not used again. */
        if (strncmp(entry->d_name, "segment-", 8) == 0 && strcmp(entry->d_name + end, ".tmj") == 0 &&
            !find_segment(&j->manifest, number, "")) {
            segment_recycle(j, number, true); /* most likely the one that was ready: making another takes its time */
            continue;
        }
        journal_path(j, name, path);
        struct error ignored = ERROR_INIT;
        if (io_remove_tree(path, &ignored) < 0)
            log_warning(j->log, "%s", ignored.message);
    }
    remove_temporaries(j, "base");
    remove_unknown_volumes(j);
}

/* When the newest record that is there was made. */
struct replay_clock {
    uint64_t realtime_ns, boottime_ns;
};

static struct replay_clock find_newest(const struct journal *j)
{
    const struct manifest *m = &j->manifest;
    const struct segment_info *last = m->segment_count ? &m->segments[m->segment_count - 1] : NULL;
    bool same_boot = last && memcmp(last->boot.bytes, m->boot.bytes, sizeof m->boot.bytes) == 0;
    return (struct replay_clock){last ? last->last_realtime_ns : 0, same_boot ? last->last_boottime_ns : 0};
}

/* Decides what the ring can tell and takes note of open backing writes. */
static void examine_ring(struct journal *j, bool same_boot)
{
    struct journal_recovery *rec = &j->recovery;
    bool usable = same_boot && !j->ring.fresh && ring_epoch(&j->ring) == j->manifest.epoch;
    rec->compare = !usable || j->manifest.suspended || ring_suspended(&j->ring);
    if (!j->ring.fresh && ring_suspended(&j->ring) & RING_UNMARKED)
        rec->compare_all = true;
    if (!usable)
        return;
    for (uint32_t i = 0; i < RING_SLOTS; i++) {
        const struct ring_slot *slot = ring_slot(&j->ring, i);
        uint32_t count = atomic_load(&slot->count);
        if (!atomic_load(&slot->number) || count > FRAME_MAX_RECORDS)
            continue;
        const struct frame_record *records = frame_records(ring_frame(&j->ring, i));
        for (uint32_t k = 0; k < count; k++) {
            bool data = records[k].op == OP_WRITE || records[k].op == OP_ZERO || records[k].op == OP_DISCARD ||
                        records[k].op == OP_RESYNC;
            if (data && !(atomic_load(&slot->state[k]) & RING_BACKED))
                rec->in_flight[rec->in_flight_count++] = (struct journal_in_flight){
                    le32_get(records[k].volume), le64_get(records[k].lba), le32_get(records[k].length)};
        }
    }
}

/* Frames that are gone without a trace in the segments: the ring has later ones, or the manifest a later rewind. */
static int check_rest(struct scan *s, struct error *err)
{
    struct journal *j = s->j;
    const struct manifest *m = &j->manifest;
    uint64_t next = s->expected.number;
    bool later = m->rewind_count && m->rewinds[m->rewind_count - 1].lsn.n > s->expected.after.n;
    bool usable = !m->clean && !j->recovery.compare && !j->ring.fresh;
    bool here = usable && atomic_load(&ring_slot(&j->ring, (uint32_t)(next % RING_SLOTS))->number) == next;
    for (uint32_t i = 0; usable && !here && i < RING_SLOTS; i++)
        later |= atomic_load(&ring_slot(&j->ring, i)->number) > next;
    if (!later)
        return 0;
    s->loss[0] = '\0';
    lose(s, m->next_segment, "lacks its last frames");
    note_loss(s, m->next_segment);
    return remember_compare_all(j, err);
}

void recovery_lose(struct journal *j)
{
    j->recovery.compare = true;
    j->recovered = false;
    if (j->next_lsn <= j->manifest.lsn_reserved.n)
        j->next_lsn = j->manifest.lsn_reserved.n + 1;
}

int recovery_run(struct journal *j, struct error *err)
{
    bool same_boot = false;
    struct uuid boot;
    int r = uuid_boot(&boot, err);
    if (r < 0)
        return r;
    same_boot = memcmp(boot.bytes, j->manifest.boot.bytes, 16) == 0;
    struct scan s = {.j = j,
                     .expected = {.journal_id = j->manifest.journal_id,
                                  .epoch = j->manifest.epoch,
                                  .number = j->manifest.next_frame,
                                  .previous_crc = j->manifest.previous_crc}};
    if (j->manifest.segment_count)
        s.expected.after = j->manifest.segments[j->manifest.segment_count - 1].last;
    if (s.expected.after.n < j->manifest.base.n)
        s.expected.after = j->manifest.base;
    s.buffer = io_alloc_pages((size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    if (!s.buffer)
        return error_errno(err, -ENOMEM, "cannot recover the journal");
    j->recovery.compare = j->manifest.suspended; /* also when it was closed in order: the comparison was not over */
    j->recovery.memory_kept = same_boot && !j->ring.fresh && ring_epoch(&j->ring) <= j->manifest.epoch;
    if (!j->manifest.clean)
        examine_ring(j, same_boot);
    s.awaited = j->manifest.has_tail && !j->manifest.clean && !j->manifest.suspended;
    j->manifest.has_tail = false; /* until another is made */
    do
        r = scan_segment(&s, j->manifest.next_segment, err);
    while (r > 0);
    if (r == 0 && !s.damaged)
        r = check_rest(&s, err);
    io_free_pages(s.buffer, (size_t)FRAME_MAX_BLOCKS * JOURNAL_BLOCK_BYTES);
    if (r < 0)
        return r;
    if (s.damaged)
        j->recovery.compare = j->recovery.compare_all = true;
    bool lost = j->recovery.compare && !j->recovery.created;
    if (lost && j->recovery.compare_all && (r = remember_compare_all(j, err)) < 0)
        return r;
    j->recovery.clean = j->manifest.clean;
    j->recovery.last = s.expected.after;
    j->last_lsn = j->durable_lsn = s.expected.after.n;
    j->written_lsn = s.expected.after.n;
    j->next_lsn = s.expected.after.n + 1;
    j->recovered = j->recovery.in_flight_count == 0;
    if (lost)
        recovery_lose(j);
    j->submit_number = j->open_number = j->complete_number = s.expected.number;
    j->previous_crc = s.expected.previous_crc;
    j->manifest.epoch++;
    j->manifest.boot = boot;
    j->manifest.clean = false;
    if (!j->written_realtime_ns) { /* all of it was sealed */
        const struct replay_clock newest = find_newest(j);
        j->written_realtime_ns = newest.realtime_ns;
        j->written_boottime_ns = newest.boottime_ns;
    }
    r = sealer_save(j, err);
    if (r == 0) /* before, the absence of a segment without frames would be a loss */
        remove_strays(j);
    return r;
}

/* ---- replay of the ring ---- */

/* Who was told that a record was there (mode flush) may ask for the moment at which it was: it keeps its time. Not where that is not known,
 * or a clock was set. */
static void keep_time(struct journal *j, const struct frame_header *h, const struct frame_record *r, struct replay_clock *newest,
                      struct journal_record *record)
{
    uint64_t delta_ns = le32_get(r->delta_us) * 1000ull, realtime_ns = le64_get(h->realtime_ns) + delta_ns,
             boottime_ns = le64_get(h->boottime_ns) + delta_ns;
    if (!h->boottime_ns.raw || realtime_ns < newest->realtime_ns || boottime_ns < newest->boottime_ns ||
        realtime_ns > clock_realtime_ns(j->clock) || boottime_ns > clock_boottime_ns(j->clock))
        return;
    record->realtime_ns = realtime_ns;
    record->boottime_ns = boottime_ns;
    *newest = (struct replay_clock){realtime_ns, boottime_ns};
}

static int replay_record(struct journal *j, const char *frame, uint32_t index, struct replay_clock *newest, struct error *err)
{
    const struct frame_record *r = &frame_records(frame)[index];
    uint32_t block = le16_get(r->payload_block), bytes = le32_get(r->payload_bytes);
    if (bytes > JOURNAL_PAYLOAD_MAX_BYTES || block + (bytes + 4095u) / 4096u > FRAME_MAX_BLOCKS)
        return 0;
    struct journal_record record = {
        .op = r->op,
        .flags = r->flags,
        .volume = le32_get(r->volume),
        .lba = le64_get(r->lba),
        .length = le32_get(r->length),
        .payload = bytes ? frame + (size_t)block * JOURNAL_BLOCK_BYTES : NULL,
        .payload_bytes = bytes,
        .tag = le64_get(r->tag),
        .aux = le64_get(r->aux),
    };
    if (record.op == OP_REWIND) /* its index was made for another LSN; it was not committed */
        return 0;
    keep_time(j, (const struct frame_header *)frame, r, newest, &record);
    struct journal_ticket ticket;
    int result = journal_append(j, &record, &ticket, err);
    if (result < 0)
        return result;
    journal_backed(j, &ticket);
    j->recovery.replayed++;
    return 0;
}

int recovery_replay(struct journal *j, struct error *err)
{
    uint64_t next = j->open_number;
    bool usable = !j->ring.fresh && !j->recovery.compare && ring_epoch(&j->ring) + 1 == j->manifest.epoch;
    struct ring copy = j->ring;
    copy.memory = usable ? io_alloc_pages(j->ring.length_bytes) : NULL;
    if (usable && !copy.memory)
        return error_errno(err, -ENOMEM, "cannot read the frame ring");
    if (usable)
        memcpy(copy.memory, j->ring.memory, j->ring.length_bytes);
    ring_clear(&j->ring, &j->manifest.journal_id, j->manifest.epoch, usable || !j->recovered);
    int r = 0;
    struct replay_clock newest = find_newest(j);
    for (uint64_t number = next; usable && r == 0 && number < next + RING_SLOTS; number++) {
        const struct ring_slot *slot = ring_slot(&copy, (uint32_t)(number % RING_SLOTS));
        uint32_t count = atomic_load(&slot->count);
        if (atomic_load(&slot->number) != number || count > FRAME_MAX_RECORDS)
            break;
        for (uint32_t k = 0; k < count && r == 0; k++)
            if (atomic_load(&slot->state[k]) & RING_FILLED)
                r = replay_record(j, ring_frame(&copy, (uint32_t)(number % RING_SLOTS)), k, &newest, err);
    }
    if (j->recovery.replayed)
        writer_close_open(j); /* what comes now is younger by more than its records can tell */
    if (usable)
        io_free_pages(copy.memory, j->ring.length_bytes);
    if (r == 0 && j->recovered)
        ring_recovered(&j->ring);
    if (j->suspended)
        ring_suspend(&j->ring, RING_UNJOURNALED);
    return r;
}
