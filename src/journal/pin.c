/* SPDX-License-Identifier: Apache-2.0 */
/* Pins: a point with the list of index files that its image needs, newest group first. A pin is entered in the table
 * under the mutex together with the check against the base's target, so that it and a drop of history cannot pass
 * each other. External pins live as long as somebody holds the flock on pins/<name>.lock; so none
 * of these outlives a loss of power, and none is made durable. Those that are kept (PIN_KEPT_PREFIX) need no holder: they are durable
 * when journal_pin returns, and end by journal_unpin only. After any end a pin's own file is there only with all that it names: that is
 * durable before it, and goes after it. */
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/history.h"
#include "journal/journal_internal.h"
#include "journal/pin.h"

#define REVOKED_WAIT_NS (5 * NS_PER_SECOND) /* a view that was told to end has so long */

struct sources {
    struct pin_source *list;
    size_t count, capacity;
};

static int add_source(struct sources *s, const char *file, struct lsn low, struct lsn high, uint32_t group, uint32_t segment,
                      struct error *err)
{
    if (s->count == s->capacity) {
        size_t capacity = s->capacity ? s->capacity * 2 : 32;
        struct pin_source *larger = realloc(s->list, capacity * sizeof *larger);
        if (!larger)
            return error_errno(err, -ENOMEM, "cannot pin a point");
        s->list = larger;
        s->capacity = capacity;
    }
    struct pin_source source = {.low_lsn = le64_of(low.n), .high_lsn = le64_of(high.n), .group = le32_of(group),
                                .segment = le32_of(segment)};
    snprintf(source.file, sizeof source.file, "%s", file);
    s->list[s->count++] = source;
    return 0;
}

/* The rewinds whose LSN is in (low, high]. */
static int add_rewinds(struct sources *s, const struct manifest *m, struct lsn low, struct lsn high, uint32_t group,
                       struct error *err)
{
    char name[JOURNAL_FILE_BYTES];
    int r = 0;
    for (size_t i = m->rewind_count; i-- > 0 && r == 0;)
        if (m->rewinds[i].lsn.n > low.n && m->rewinds[i].lsn.n <= high.n)
            r = add_source(s, journal_rewind_file(m->rewinds[i].lsn, name), low, high, group, 0, err);
    return r;
}

/* The highest run whose last segment is number `i` of the table, or NULL. Of the numbers that it covers the last ones may be gone:
 * thinned history has fewer. */
static const struct run_info *run_ending(const struct manifest *m, size_t i)
{
    const struct run_info *best = NULL;
    uint32_t number = m->segments[i].number, next = i + 1 < m->segment_count ? m->segments[i + 1].number : m->next_segment;
    for (size_t k = 0; k < m->run_count; k++) {
        const struct run_info *run = &m->runs[k];
        if (run->first_segment <= number && run->last_segment >= number && run->last_segment < next && (!best || run->level > best->level))
            best = run;
    }
    return best;
}

static int add_sealed(struct sources *s, const struct manifest *m, struct lsn lsn, uint32_t group, struct error *err)
{
    char name[JOURNAL_FILE_BYTES];
    int r = 0;
    for (size_t i = manifest_segments_until(m, lsn); i-- > 0 && r == 0;) {
        const struct segment_info *segment = &m->segments[i];
        const struct run_info *run = segment->last.n <= lsn.n ? run_ending(m, i) : NULL;
        group++;
        if (run) {
            r = add_source(s, journal_run_file(run->level, run->first_segment, name), LSN_NONE, run->high, group, 0, err);
            i = manifest_find_segment(m, run->first_segment);
            continue;
        }
        struct lsn high = segment->last.n < lsn.n ? segment->last : lsn;
        journal_l0_file_of(segment->number, segment->generation, name);
        r = add_source(s, name, LSN_NONE, high, group, segment->number, err);
        if (r == 0)
            r = add_rewinds(s, m, manifest_rewinds_above(m, i), high, group, err);
    }
    return r;
}

#define ROOM_RECORDS 1024u /* that may come between a look at a tail and its copy: twice as many with each attempt */
#define ROOM_BLOCKS 1024u

/* The tails that cover LSNs up to `lsn`, newest first; returns their number. With the mutex. */
static size_t find_tails(const struct journal *j, struct lsn lsn, const struct tail *ret[2])
{
    const struct manifest *m = &j->manifest;
    const struct tail *order[2] = {&j->tails[j->active], j->sealing ? &j->tails[!j->active] : NULL};
    size_t count = 0;
    for (int i = 0; i < 2; i++) {
        if (!order[i] || order[i]->frame_count == 0 || order[i]->info.first.n > lsn.n)
            continue;
        if (m->segment_count && m->segments[m->segment_count - 1].number >= order[i]->info.number)
            continue; /* in the manifest already, but not let go yet */
        ret[count++] = order[i];
    }
    return count;
}

static uint32_t least(uint64_t wanted, uint32_t limit)
{
    return wanted < limit ? (uint32_t)wanted : limit;
}

/* Makes `tails` large enough for what there is now, and some more: populating memory takes longer than all the rest, and appends would
 * wait for it with the mutex. */
static int make_room(struct journal *j, struct lsn lsn, unsigned attempt, struct tail tails[2], size_t *ret_count, struct error *err)
{
    const struct tail *found[2];
    uint32_t blocks[2], records[2];
    pthread_mutex_lock(&j->mutex);
    size_t count = find_tails(j, lsn, found);
    for (size_t i = 0; i < count; i++) {
        blocks[i] = least(found[i]->info.used_blocks + ((uint64_t)ROOM_BLOCKS << attempt), found[i]->segment_blocks);
        records[i] = least(found[i]->extent_count + ((uint64_t)ROOM_RECORDS << attempt), found[i]->max_records);
    }
    pthread_mutex_unlock(&j->mutex);
    int r = 0;
    for (size_t i = 0; i < count && r == 0; i++) {
        r = tail_init(&tails[i], blocks[i], records[i], err);
        if (r == 0 && j->seal)
            r = tail_reserve_tags(&tails[i], err);
    }
    *ret_count = count;
    return r;
}

static bool has_room(const struct tail *to, const struct tail *from)
{
    return from->extent_count <= to->max_records && from->info.used_blocks <= to->segment_blocks && from->frame_count <= to->segment_blocks;
}

/* With the mutex. */
static void copy_tail(const struct tail *from, struct tail *to)
{
    memcpy(to->extents, from->extents, from->extent_count * sizeof *to->extents);
    memcpy(to->events, from->events, from->event_count * sizeof *to->events);
    memcpy(to->frames, from->frames, from->frame_count * sizeof *to->frames);
    memcpy(to->crcs, from->crcs, from->info.used_blocks * sizeof *to->crcs);
    if (from->tags)
        memcpy(to->tags, from->tags, from->info.used_blocks * sizeof *to->tags);
    to->info = from->info;
    to->extent_count = from->extent_count;
    to->event_count = from->event_count;
    to->frame_count = from->frame_count;
}

/* What a pin takes of the journal, as of one moment. */
struct snapshot {
    struct manifest rewinds; /* nothing else of a manifest is there */
    struct lsn base, sealed_last; /* sealed_last: rewinds above it stand with the tails */
    struct tail tails[2]; /* newest first; what is not there is all zero */
    size_t tail_count;
    struct sources sealed; /* of groups after the tails' */
};

static void release_snapshot(struct snapshot *s)
{
    for (size_t i = 0; i < 2; i++)
        tail_release(&s->tails[i]);
    manifest_release(&s->rewinds);
    free(s->sealed.list);
}

/* The manifest's rewinds, and those of the tails, which it gets after their record. With the mutex. */
static int copy_rewinds(struct journal *j, struct snapshot *s, struct error *err)
{
    const struct manifest *m = &j->manifest;
    int r = 0;
    for (size_t i = 0; i < m->rewind_count && r == 0; i++)
        r = manifest_add_rewind(&s->rewinds, &m->rewinds[i], err);
    for (size_t i = r == 0 ? s->tail_count : 0; i-- > 0;)
        sealer_note_rewinds(j, &s->rewinds, &s->tails[i]);
    return r;
}

/* Of `s`, whose tails have room for `room` of them. The sources are chosen here: the manifest, which is the longer the more history there
 * is, is not copied for it. -EAGAIN: the tails have outgrown the room. */
static int fill_snapshot(struct journal *j, struct lsn lsn, size_t room, struct snapshot *s, struct error *err)
{
    const struct tail *found[2];
    MUTEX_GUARD(guard, &j->mutex);
    struct manifest m = j->manifest; /* borrows its tables */
    size_t count = find_tails(j, lsn, found);
    bool fits = count <= room;
    for (size_t i = 0; i < count && fits; i++)
        fits = has_room(&s->tails[i], found[i]);
    if (!fits)
        return -EAGAIN;
    s->base = m.base;
    s->sealed_last = manifest_rewinds_above(&m, m.segment_count);
    for (size_t i = 0; i < count; i++)
        copy_tail(found[i], &s->tails[i]);
    s->tail_count = count;
    int r = copy_rewinds(j, s, err);
    m.rewinds = s->rewinds.rewinds;
    m.rewind_count = s->rewinds.rewind_count;
    return r < 0 ? r : add_sealed(&s->sealed, &m, lsn, (uint32_t)count, err);
}

static int take_snapshot(struct journal *j, struct lsn lsn, struct snapshot *ret, struct error *err)
{
    for (unsigned attempt = 0;; attempt += attempt < 16) { /* the room ends where the tails do */
        size_t room;
        *ret = (struct snapshot){.tail_count = 0};
        int r = make_room(j, lsn, attempt, ret->tails, &room, err);
        if (r == 0)
            r = fill_snapshot(j, lsn, room, ret, err);
        if (r == 0)
            return 0;
        release_snapshot(ret);
        if (r != -EAGAIN)
            return r;
    }
}

/* The tails' sources, of groups from 1 on, with their indexes. */
static int add_tails(struct journal *j, const char *name, struct snapshot *snapshot, struct lsn lsn, struct sources *s, struct error *err)
{
    uint32_t group = 0;
    uint32_t count = 1; /* or what there is: populating memory for what a segment holds takes longer than all the rest */
    for (size_t i = 0; i < snapshot->tail_count; i++)
        count = snapshot->tails[i].extent_count > count ? snapshot->tails[i].extent_count : count;
    struct extent *scratch = io_alloc_pages(count * sizeof *scratch);
    int r = scratch ? 0 : error_errno(err, -ENOMEM, "cannot pin a point");
    for (size_t i = 0; i < snapshot->tail_count && r == 0; i++) {
        const struct tail *t = &snapshot->tails[i];
        char file[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
        snprintf(file, sizeof file, "pins/%.24s.%u.idx", name, t->info.number);
        journal_path(j, file, path);
        group++;
        struct lsn above = i + 1 < snapshot->tail_count ? snapshot->tails[i + 1].info.last : snapshot->sealed_last;
        struct lsn high = t->info.last.n < lsn.n ? t->info.last : lsn;
        r = tail_write_index(t, path, &j->manifest.journal_id, INDEX_TAIL, lsn, scratch, NULL, err);
        if (r == 0)
            r = add_source(s, file, LSN_NONE, lsn, group, t->info.number, err);
        if (r == 0)
            r = add_rewinds(s, &snapshot->rewinds, above, high, group, err);
    }
    if (scratch)
        io_free_pages(scratch, count * sizeof *scratch);
    return r;
}

static bool is_kept(const char *name)
{
    return strncmp(name, PIN_KEPT_PREFIX, sizeof PIN_KEPT_PREFIX - 1) == 0;
}

/* Of the tails' sources `s`, and those of sealed segments. */
static int write_pin(struct journal *j, const char *name, struct lsn lsn, const struct snapshot *snapshot, const struct sources *s,
                     struct error *err)
{
    char file[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    const struct sources *sealed = &snapshot->sealed;
    size_t tails_bytes = s->count * sizeof *s->list, sealed_bytes = sealed->count * sizeof *sealed->list;
    size_t length = sizeof(struct pin_header) + tails_bytes + sealed_bytes;
    _cleanup_free_ char *data = calloc(1, length);
    if (!data)
        return error_errno(err, -ENOMEM, "cannot pin a point");
    struct pin_header *h = (struct pin_header *)data;
    *h = (struct pin_header){.magic = le64_of(PIN_MAGIC),
                             .version = le32_of(JOURNAL_VERSION),
                             .lsn = le64_of(lsn.n),
                             .base_lsn = le64_of(snapshot->base.n),
                             .source_count = le32_of((uint32_t)(s->count + sealed->count))};
    memcpy(h->journal_id, j->manifest.journal_id.bytes, 16);
    if (s->count)
        memcpy(data + sizeof *h, s->list, tails_bytes);
    if (sealed->count)
        memcpy(data + sizeof *h + tails_bytes, sealed->list, sealed_bytes);
    h->crc = le32_of(crc32c(0, data, length));
    snprintf(file, sizeof file, "pins/%.40s", name);
    journal_path(j, file, path);
    return (is_kept(name) ? sealed_replace_file : sealed_replace_volatile_file)(path, data, length, 0600, err);
}

int pin_load(const char *directory, const char *name, struct pin *ret, struct error *err)
{
    char path[PATH_MAX];
    _cleanup_free_ char *data = NULL;
    size_t length;
    snprintf(path, sizeof path, "%s/pins/%s", directory, name);
    int r = sealed_read_file(path, 16u << 20, &data, &length, err);
    if (r < 0)
        return r;
    struct pin_header *h = (struct pin_header *)data;
    uint32_t crc = length >= sizeof *h ? le32_get(h->crc) : 0;
    if (length >= sizeof *h)
        h->crc = le32_of(0);
    if (length < sizeof *h || le64_get(h->magic) != PIN_MAGIC || crc32c(0, data, length) != crc ||
        length != sizeof *h + (uint64_t)le32_get(h->source_count) * sizeof(struct pin_source))
        return error_set(err, -EBADMSG, "%s is damaged", path);
    if (le32_get(h->version) != JOURNAL_VERSION)
        return error_set(err, -EPROTONOSUPPORT, "%s has version %u; use a newer tidemark", path, le32_get(h->version));
    size_t count = le32_get(h->source_count);
    ret->sources = calloc(count ? count : 1, sizeof *ret->sources);
    if (!ret->sources)
        return error_errno(err, -ENOMEM, "cannot read %s", path);
    memcpy(ret->sources, data + sizeof *h, count * sizeof *ret->sources);
    for (size_t i = 0; i < count; i++)
        ret->sources[i].file[sizeof ret->sources[i].file - 1] = '\0';
    ret->source_count = count;
    memcpy(ret->journal_id.bytes, h->journal_id, sizeof ret->journal_id.bytes);
    ret->lsn.n = le64_get(h->lsn);
    ret->base.n = le64_get(h->base_lsn);
    return 0;
}

void pin_release(struct pin *pin)
{
    free(pin->sources);
    *pin = (struct pin){0};
}

static bool name_is_valid(const char *name)
{
    size_t length = strlen(name);
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)name[i]) && name[i] != '-')
            return false;
    return length > 0 && length <= 24;
}

/* Whether somebody holds the pin's lock. */
static bool lock_is_held(const struct journal *j, const char *name)
{
    char file[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    snprintf(file, sizeof file, "pins/%.40s.lock", name);
    journal_path(j, file, path);
    _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);
    return fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK;
}

static bool is_held(const struct journal *j, const char *name)
{
    return is_kept(name) || lock_is_held(j, name);
}

/* Whether a file in pins/ is the pin `name` or belongs to it. */
static bool belongs_to(const char *file, const char *name)
{
    size_t length = strlen(name);
    return strncmp(file, name, length) == 0 && (file[length] == '\0' || file[length] == '.');
}

/* The indexes of its tails, and their names. */
static int make_durable(const struct journal *j, const char *name, struct error *err)
{
    char file[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES], directory[JOURNAL_PATH_BYTES];
    journal_path(j, "pins", directory);
    _cleanup_closedir_ DIR *d = opendir(directory);
    if (!d)
        return error_errno(err, -errno, "cannot read %s", directory);
    for (const struct dirent *entry; (entry = readdir(d));) {
        if (!belongs_to(entry->d_name, name))
            continue;
        snprintf(file, sizeof file, "pins/%.50s", entry->d_name);
        journal_path(j, file, path);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || fsync(fd) < 0)
            return error_errno(err, -errno, "cannot make %s durable", path);
    }
    return io_sync_directory(directory, err);
}

/* The pin's own file first: while it is there, all that it names is (a verification relies on it). */
static void remove_files(const struct journal *j, const char *name)
{
    char file[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    snprintf(file, sizeof file, "pins/%.40s", name);
    journal_path(j, file, path);
    unlink(path);
    journal_path(j, "pins", path);
    _cleanup_closedir_ DIR *d = opendir(path);
    struct dirent *entry;
    while (d && (entry = readdir(d))) {
        if (!belongs_to(entry->d_name, name))
            continue;
        snprintf(file, sizeof file, "pins/%.50s", entry->d_name);
        journal_path(j, file, path);
        unlink(path);
    }
}

static bool is_entered(const struct journal *j, const char *name)
{
    for (size_t i = 0; i < j->pin_count; i++)
        if (strcmp(j->pins[i].name, name) == 0)
            return true;
    return false;
}

static bool is_internal(const char *name)
{
    return strncmp(name, PIN_INTERNAL_PREFIX, sizeof PIN_INTERNAL_PREFIX - 1) == 0;
}

static int enter(struct journal *j, const char *name, struct lsn lsn, struct error *err)
{
    MUTEX_GUARD(guard, &j->mutex);
    while (j->publishing)
        pthread_cond_wait(&j->published, &j->mutex);
    if (lsn.n < j->manifest.base_target.n || lsn.n < j->manifest.base.n)
        return error_set(err, -ERANGE, "LSN %llu is before the history, which begins at LSN %llu",
                         (unsigned long long)lsn.n, (unsigned long long)j->manifest.base_target.n);
    if (is_entered(j, name))
        return error_set(err, -EEXIST, "the pin %s is there already", name);
    size_t external = 0;
    for (size_t i = 0; i < j->pin_count; i++)
        external += !is_internal(j->pins[i].name);
    if (j->pin_count == JOURNAL_MAX_PINS || (!is_internal(name) && external == JOURNAL_MAX_PINS - JOURNAL_OWN_PINS))
        return error_set(err, -EMFILE, "more than %u views of the application are open: `tidemark views` lists them, `tidemark close ID` closes one",
                         JOURNAL_MAX_PINS - JOURNAL_OWN_PINS);
    struct internal_pin *pin = &j->pins[j->pin_count++];
    snprintf(pin->name, sizeof pin->name, "%s", name);
    pin->lsn = lsn;
    pin->revoked_ns = 0;
    return 0;
}

static void leave(struct journal *j, const char *name)
{
    MUTEX_GUARD(guard, &j->mutex);
    for (size_t i = 0; i < j->pin_count; i++)
        if (strcmp(j->pins[i].name, name) == 0) {
            j->pins[i] = j->pins[--j->pin_count];
            return;
        }
}

int journal_pin(struct journal *j, const char *name, struct lsn lsn, bool internal, struct error *err)
{
    if (!name_is_valid(name))
        return error_set(err, -EINVAL, "'%s' cannot name a pin: expected 1 to 24 letters, digits or dashes", name);
    bool kept = is_kept(name);
    if (!internal && !is_held(j, name))
        return error_set(err, -EINVAL, "nobody holds the lock pins/%s.lock", name);
    int r = journal_sync(j, -1, NULL, err);
    if (r == 0 || (r == -ESHUTDOWN && !kept)) /* a suspended journal can still be read, but may not be durable */
        r = enter(j, name, lsn, err);
    if (r < 0)
        return r;
    struct snapshot snapshot;
    struct sources sources = {0};
    r = history_check_kept(j, lsn, err); /* entered above: from here on nothing thins it away */
    if (r != -ERANGE) /* it cannot be told over damage: who salvages has resolved the point by what is left */
        r = take_snapshot(j, lsn, &snapshot, err);
    if (r == 0) {
        r = add_tails(j, name, &snapshot, lsn, &sources, err);
        if (r == 0 && kept)
            r = make_durable(j, name, err);
        if (r == 0)
            r = write_pin(j, name, lsn, &snapshot, &sources, err);
        release_snapshot(&snapshot);
    }
    free(sources.list);
    if (r < 0) {
        leave(j, name);
        remove_files(j, name);
        return error_context(err, "cannot open LSN %llu", (unsigned long long)lsn.n);
    }
    return 0;
}

int journal_unpin(struct journal *j, const char *name, struct error *err)
{
    if (!name_is_valid(name))
        return error_set(err, -EINVAL, "'%s' cannot name a pin", name);
    remove_files(j, name);
    leave(j, name);
    pthread_mutex_lock(&j->mutex);
    pthread_cond_signal(&j->janitor_work);
    pthread_mutex_unlock(&j->mutex);
    return 0;
}

static bool is_view(const char *name)
{
    return strncmp(name, PIN_VIEW_PREFIX, sizeof PIN_VIEW_PREFIX - 1) == 0;
}

bool pin_is_ending(const struct journal *j)
{
    uint64_t now = clock_boottime_ns(j->clock);
    for (size_t i = 0; i < j->pin_count; i++)
        if (j->pins[i].revoked_ns && now - j->pins[i].revoked_ns < REVOKED_WAIT_NS)
            return true;
    return false;
}

bool pin_may_end(const struct journal *j)
{
    for (size_t i = 0; i < j->pin_count; i++)
        if (is_view(j->pins[i].name) && !j->pins[i].revoked_ns)
            return true;
    return pin_is_ending(j);
}

void pin_revoke_oldest(struct journal *j)
{
    char name[JOURNAL_NAME_BYTES] = "", file[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    struct error err = ERROR_INIT;
    pthread_mutex_lock(&j->mutex);
    struct internal_pin *oldest = NULL;
    for (size_t i = 0; i < j->pin_count; i++)
        if (is_view(j->pins[i].name) && !j->pins[i].revoked_ns && (!oldest || j->pins[i].lsn.n < oldest->lsn.n))
            oldest = &j->pins[i];
    if (oldest && !pin_is_ending(j)) {
        oldest->revoked_ns = clock_boottime_ns(j->clock);
        snprintf(name, sizeof name, "%s", oldest->name);
    }
    pthread_mutex_unlock(&j->mutex);
    if (!name[0])
        return;
    log_warning(j->log, "the journal has outgrown its quota by half of what it may: the view %s, the oldest, is closed", name);
    snprintf(file, sizeof file, "pins/%.40s" PIN_REVOKED_SUFFIX, name);
    journal_path(j, file, path);
    static const char why[] = "the journal had outgrown its quota, and this was the oldest view\n";
    if (io_replace_file(path, why, sizeof why - 1, 0600, &err) < 0)
        log_error(j->log, "%s", err.message);
}

struct lsn pin_ceiling(const struct journal *j)
{
    struct lsn ceiling = LSN_NONE;
    for (size_t i = 0; i < j->pin_count; i++)
        if (j->pins[i].lsn.n > ceiling.n)
            ceiling = j->pins[i].lsn;
    return ceiling;
}

struct lsn pin_floor(struct journal *j)
{
    struct internal_pin pins[JOURNAL_MAX_PINS];
    struct lsn floor = LSN_MAX;
    struct error ignored = ERROR_INIT;
    pthread_mutex_lock(&j->mutex);
    size_t count = j->pin_count;
    memcpy(pins, j->pins, count * sizeof *pins);
    pthread_mutex_unlock(&j->mutex);
    for (size_t i = 0; i < count; i++) {
        if (!is_internal(pins[i].name) && !is_held(j, pins[i].name)) {
            log_info(j->log, "the view %s is gone: its pin is removed", pins[i].name);
            if (journal_unpin(j, pins[i].name, &ignored) < 0)
                log_warning(j->log, "%s", ignored.message);
            continue;
        }
        if (pins[i].lsn.n < floor.n)
            floor = pins[i].lsn;
    }
    return floor;
}

size_t journal_pins(struct journal *j, struct journal_pin_info *pins, size_t capacity)
{
    MUTEX_GUARD(guard, &j->mutex);
    size_t count = 0;
    for (size_t i = 0; i < j->pin_count && count < capacity; i++) {
        if (is_internal(j->pins[i].name))
            continue;
        snprintf(pins[count].name, sizeof pins[count].name, "%s", j->pins[i].name);
        pins[count++].lsn = j->pins[i].lsn;
    }
    return count;
}

/* Unless somebody holds it. Who takes one looks whether it is still there once it has it (control/pin.c). */
static void remove_lock(const char *path)
{
    _cleanup_close_ int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) == 0)
        unlink(path);
}

/* What an engine leaves that ended while it made or removed a pin. A lock may be held by who is about to ask for one. */
static void remove_leftovers(const struct journal *j, const char *directory)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    _cleanup_closedir_ DIR *d = opendir(directory);
    for (const struct dirent *entry; d && (entry = readdir(d));) {
        size_t length = strcspn(entry->d_name, ".");
        snprintf(name, sizeof name, "%.*s", (int)(length < 40 ? length : 40), entry->d_name);
        if (!length || (!io_is_temporary(entry->d_name) && is_entered(j, name)))
            continue;
        snprintf(name, sizeof name, "pins/%.50s", entry->d_name);
        journal_path(j, name, path);
        if (strcmp(entry->d_name + length, ".lock") == 0)
            remove_lock(path);
        else
            unlink(path);
    }
}

void pin_reload(struct journal *j)
{
    char path[JOURNAL_PATH_BYTES];
    struct error err = ERROR_INIT;
    journal_path(j, "pins", path);
    _cleanup_closedir_ DIR *d = opendir(path);
    struct dirent *entry;
    while (d && (entry = readdir(d))) {
        struct pin pin;
        char name[JOURNAL_NAME_BYTES];
        snprintf(name, sizeof name, "%.40s", entry->d_name);
        if (!name_is_valid(name))
            continue; /* locks and tails go with their pin */
        bool held = !is_internal(name) && is_held(j, name);
        if (!held || pin_load(j->directory, name, &pin, &err) < 0) {
            if (held)
                log_error(j->log, "the pin %s is lost: %s", name, err.message);
            remove_files(j, name);
            continue;
        }
        if (enter(j, name, pin.lsn, &err) < 0)
            log_warning(j->log, "the view %s is lost: %s", name, err.message);
        pin_release(&pin);
    }
    remove_leftovers(j, path);
}
