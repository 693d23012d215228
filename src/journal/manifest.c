/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/manifest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/frame.h"
#include "journal/seal.h"

#define MANIFEST_LIMIT_BYTES (256u << 20)
#define KNOWN_FLAGS ((uint32_t)(MANIFEST_THINNED | MANIFEST_SEALED | MANIFEST_SEEDING | MANIFEST_RESIZED | MANIFEST_COLD))

const char *journal_segment_file(uint32_t number, char text[JOURNAL_FILE_BYTES])
{
    snprintf(text, JOURNAL_FILE_BYTES, "segment-%010u.tmj", number);
    return text;
}
const char *journal_l0_file(uint32_t number, char text[JOURNAL_FILE_BYTES])
{
    snprintf(text, JOURNAL_FILE_BYTES, "l0-%010u.idx", number);
    return text;
}
const char *journal_segment_file_of(uint32_t number, uint32_t generation, char text[JOURNAL_FILE_BYTES])
{
    if (generation == 0)
        return journal_segment_file(number, text);
    snprintf(text, JOURNAL_FILE_BYTES, "segment-%010u.g%u.tmj", number, generation);
    return text;
}
const char *journal_l0_file_of(uint32_t number, uint32_t generation, char text[JOURNAL_FILE_BYTES])
{
    if (generation == 0)
        return journal_l0_file(number, text);
    snprintf(text, JOURNAL_FILE_BYTES, "l0-%010u.g%u.idx", number, generation);
    return text;
}
const char *journal_cold_file_of(uint32_t number, uint32_t generation, char text[JOURNAL_FILE_BYTES])
{
    if (generation == 0)
        snprintf(text, JOURNAL_FILE_BYTES, "segment-%010u.tmc", number);
    else
        snprintf(text, JOURNAL_FILE_BYTES, "segment-%010u.g%u.tmc", number, generation);
    return text;
}
const char *journal_run_file(uint32_t level, uint32_t first_segment, char text[JOURNAL_FILE_BYTES])
{
    snprintf(text, JOURNAL_FILE_BYTES, "run-%u-%010u.idx", level, first_segment);
    return text;
}
const char *journal_rewind_file(struct lsn lsn, char text[JOURNAL_FILE_BYTES])
{
    snprintf(text, JOURNAL_FILE_BYTES, "rewind-%020llu.idx", (unsigned long long)lsn.n);
    return text;
}
const char *journal_rewind_copy_file(struct lsn lsn, char text[JOURNAL_FILE_BYTES])
{
    snprintf(text, JOURNAL_FILE_BYTES, "rewind-%020llu.idx.copy", (unsigned long long)lsn.n);
    return text;
}

/* Makes room for one more element in a table that grows by doubling. */
static int grow(void **table, size_t count, size_t element_bytes, size_t maximum, const char *what, struct error *err)
{
    if (count >= maximum)
        return error_set(err, -ENOSPC, "the journal has reached its maximum of %zu %s", maximum, what);
    if (count && (count & (count - 1)))
        return 0; /* capacity is the next power of two */
    void *larger = realloc(*table, (count ? count * 2 : 1) * element_bytes);
    if (!larger)
        return error_errno(err, -ENOMEM, "cannot extend the table of %s", what);
    *table = larger;
    return 0;
}

#define ADD(function, type, table, count, maximum, what)                                                         \
    int function(struct manifest *m, const struct type *item, struct error *err)                                \
    {                                                                                                            \
        int r = grow((void **)&m->table, m->count, sizeof *m->table, maximum, what, err);                       \
        if (r < 0)                                                                                               \
            return r;                                                                                            \
        m->table[m->count++] = *item;                                                                            \
        return 0;                                                                                                \
    }
ADD(manifest_add_volume, volume_info, volumes, volume_count, MANIFEST_MAX_VOLUMES, "volumes")
ADD(manifest_add_segment, segment_info, segments, segment_count, MANIFEST_MAX_SEGMENTS, "segments")
ADD(manifest_add_run, run_info, runs, run_count, MANIFEST_MAX_SEGMENTS, "runs")
ADD(manifest_add_refused, refused_info, refused, refused_count, MANIFEST_MAX_REFUSED, "refused intervals")
ADD(manifest_add_rewind, rewind_info, rewinds, rewind_count, MANIFEST_MAX_REWINDS, "rewinds")
ADD(manifest_add_resize, resize_info, resizes, resize_count, MANIFEST_MAX_RESIZES, "resizes")

uint64_t segment_info_bytes(const struct segment_info *s, uint64_t full_bytes)
{
    uint64_t used = (uint64_t)s->used_blocks * JOURNAL_BLOCK_BYTES;
    if (s->cold_kib)
        used = s->cold_kib * 1024ull;
    else if (full_bytes && !s->generation && s->used_blocks >= full_bytes / JOURNAL_BLOCK_BYTES / 2)
        used = full_bytes;
    return used + s->index_kib * 1024ull;
}

size_t manifest_segments_until(const struct manifest *m, struct lsn lsn)
{
    size_t low = 0, high = m->segment_count; /* what lies before low begins at or before lsn, or is empty; what from high on does not */
    while (low < high) {
        size_t middle = low + (high - low) / 2, at = middle + 1;
        while (at > low && m->segments[at - 1].first.n == 0) /* empty: it says nothing */
            at--;
        if (at == low || m->segments[at - 1].first.n <= lsn.n)
            low = middle + 1;
        else
            high = at - 1;
    }
    while (low > 0 && m->segments[low - 1].first.n == 0)
        low--;
    return low;
}

size_t manifest_find_segment(const struct manifest *m, uint32_t number)
{
    size_t low = 0, high = m->segment_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (m->segments[middle].number < number)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

struct volume_info *manifest_find_volume(const struct manifest *m, uint32_t id)
{
    for (size_t i = 0; i < m->volume_count; i++)
        if (m->volumes[i].id == id)
            return &m->volumes[i];
    return NULL;
}

struct lsn manifest_rewinds_above(const struct manifest *m, size_t i)
{
    return i ? m->segments[i - 1].last : m->base;
}

uint64_t manifest_size_at(const struct manifest *m, const struct volume_info *v, struct lsn lsn)
{
    for (size_t i = 0; i < m->resize_count; i++)
        if (m->resizes[i].volume == v->id && m->resizes[i].lsn.n > lsn.n)
            return m->resizes[i].old_bytes;
    return v->size_bytes;
}

void manifest_release(struct manifest *m)
{
    free(m->volumes);
    free(m->segments);
    free(m->runs);
    free(m->refused);
    free(m->rewinds);
    free(m->resizes);
    *m = (struct manifest){0};
}

int manifest_copy(const struct manifest *m, struct manifest *ret, struct error *err)
{
    struct manifest copy = *m;
    copy.volumes = NULL, copy.segments = NULL, copy.runs = NULL, copy.refused = NULL, copy.rewinds = NULL, copy.resizes = NULL;
    copy.volume_count = copy.segment_count = copy.run_count = copy.refused_count = copy.rewind_count = copy.resize_count = 0;
    int r = 0;
    for (size_t i = 0; i < m->volume_count && r == 0; i++)
        r = manifest_add_volume(&copy, &m->volumes[i], err);
    for (size_t i = 0; i < m->segment_count && r == 0; i++)
        r = manifest_add_segment(&copy, &m->segments[i], err);
    for (size_t i = 0; i < m->run_count && r == 0; i++)
        r = manifest_add_run(&copy, &m->runs[i], err);
    for (size_t i = 0; i < m->refused_count && r == 0; i++)
        r = manifest_add_refused(&copy, &m->refused[i], err);
    for (size_t i = 0; i < m->rewind_count && r == 0; i++)
        r = manifest_add_rewind(&copy, &m->rewinds[i], err);
    for (size_t i = 0; i < m->resize_count && r == 0; i++)
        r = manifest_add_resize(&copy, &m->resizes[i], err);
    if (r < 0) {
        manifest_release(&copy);
        return r;
    }
    *ret = copy;
    return 0;
}

static bool is_thinned(const struct manifest *m)
{
    for (size_t i = 0; i < m->segment_count; i++)
        if (m->segments[i].generation)
            return true;
    return false;
}

/* Whether the table of compressed segments is needed. */
static bool is_cold(const struct manifest *m)
{
    for (size_t i = 0; i < m->segment_count; i++)
        if (m->segments[i].cold_kib || m->segments[i].dense)
            return true;
    return false;
}

static uint32_t incompatible_flags(const struct manifest *m)
{
    uint32_t flags = (is_thinned(m) ? MANIFEST_THINNED : 0) | (m->resize_count ? MANIFEST_RESIZED : 0) | (is_cold(m) ? MANIFEST_COLD : 0);
    for (size_t i = 0; i < m->volume_count; i++)
        flags |= m->volumes[i].seeding ? MANIFEST_SEEDING : 0;
    return flags;
}

static size_t encoded_bytes(const struct manifest *m)
{
    return sizeof(struct manifest_header) + m->volume_count * sizeof(struct manifest_volume) +
           m->segment_count * sizeof(struct manifest_segment) + m->run_count * sizeof(struct manifest_run) +
           m->refused_count * sizeof(struct manifest_refused) + m->rewind_count * sizeof(struct manifest_rewind) +
           (is_thinned(m) ? m->segment_count * sizeof(struct manifest_thinned) : 0) +
           (is_cold(m) ? m->segment_count * sizeof(struct manifest_cold) : 0) +
           (m->resize_count ? sizeof(struct le64) + m->resize_count * sizeof(struct manifest_resize) : 0);
}

static void encode_header(const struct manifest *m, struct manifest_header *h)
{
    *h = (struct manifest_header){
        .magic = le64_of(MANIFEST_MAGIC),
        .version = le32_of(JOURNAL_VERSION),
        .incompatible = le32_of(incompatible_flags(m)),
        .lsn_reserved = le64_of(m->lsn_reserved.n),
        .base_lsn = le64_of(m->base.n),
        .base_target = le64_of(m->base_target.n),
        .base_realtime_ns = le64_of(m->base_realtime_ns),
        .next_frame = le64_of(m->next_frame),
        .previous_crc = le32_of(m->previous_crc),
        .epoch = le32_of(m->epoch),
        .next_segment = le32_of(m->next_segment),
        .next_volume = le32_of(m->next_volume),
        .flags = le32_of((m->clean ? MANIFEST_CLEAN : 0) | (m->suspended ? MANIFEST_SUSPENDED : 0) | (m->has_tail ? MANIFEST_TAIL : 0)),
        .volume_count = le32_of((uint32_t)m->volume_count),
        .segment_count = le32_of((uint32_t)m->segment_count),
        .run_count = le32_of((uint32_t)m->run_count),
        .refused_count = le32_of((uint32_t)m->refused_count),
        .rewind_count = le32_of((uint32_t)m->rewind_count),
    };
    memcpy(h->journal_id, m->journal_id.bytes, 16);
    memcpy(h->boot_id, m->boot.bytes, 16);
}

static struct manifest_segment encode_segment(const struct segment_info *s)
{
    struct manifest_segment d = {
        .number = le32_of(s->number),
        .used_blocks = le32_of(s->used_blocks),
        .first_lsn = le64_of(s->first.n),
        .last_lsn = le64_of(s->last.n),
        .first_realtime_ns = le64_of(s->first_realtime_ns),
        .last_realtime_ns = le64_of(s->last_realtime_ns),
        .first_boottime_ns = le64_of(s->first_boottime_ns),
        .last_boottime_ns = le64_of(s->last_boottime_ns),
        .records = le32_of(s->records),
        .events = le32_of(s->events),
        .frames = le32_of(s->frames),
        .index_kib = le32_of(s->index_kib),
        .first_frame = le64_of(s->first_frame),
        .first_previous_crc = le32_of(s->first_previous_crc),
        .epoch = le32_of(s->epoch),
    };
    memcpy(d.boot_id, s->boot.bytes, 16);
    return d;
}

static struct segment_info decode_segment(const struct manifest_segment *d)
{
    struct segment_info s = {
        .number = le32_get(d->number),
        .used_blocks = le32_get(d->used_blocks),
        .records = le32_get(d->records),
        .events = le32_get(d->events),
        .frames = le32_get(d->frames),
        .index_kib = le32_get(d->index_kib),
        .epoch = le32_get(d->epoch),
        .first_previous_crc = le32_get(d->first_previous_crc),
        .first_frame = le64_get(d->first_frame),
        .first = {le64_get(d->first_lsn)},
        .last = {le64_get(d->last_lsn)},
        .first_realtime_ns = le64_get(d->first_realtime_ns),
        .last_realtime_ns = le64_get(d->last_realtime_ns),
        .first_boottime_ns = le64_get(d->first_boottime_ns),
        .last_boottime_ns = le64_get(d->last_boottime_ns),
    };
    memcpy(s.boot.bytes, d->boot_id, 16);
    return s;
}

static void encode_resizes(const struct manifest *m, char *at)
{
    struct le64 count = le64_of(m->resize_count);
    if (!m->resize_count)
        return;
    memcpy(at, &count, sizeof count);
    at += sizeof count;
    for (size_t i = 0; i < m->resize_count; i++, at += sizeof(struct manifest_resize)) {
        const struct resize_info *s = &m->resizes[i];
        struct manifest_resize d = {.volume = le32_of(s->volume), .lsn = le64_of(s->lsn.n), .old_bytes = le64_of(s->old_bytes)};
        memcpy(at, &d, sizeof d);
    }
}

/* `length`: all that is left of the file. */
static int decode_resizes(const char *at, size_t length, struct manifest *m, struct error *err)
{
    struct le64 count;
    if (length < sizeof count)
        return error_set(err, -EBADMSG, "the manifest is damaged (wrong length)");
    memcpy(&count, at, sizeof count);
    at += sizeof count;
    length -= sizeof count;
    if (le64_get(count) > MANIFEST_MAX_RESIZES || length != le64_get(count) * sizeof(struct manifest_resize))
        return error_set(err, -EBADMSG, "the manifest is damaged (wrong length)");
    int r = 0;
    for (uint64_t i = 0; i < le64_get(count) && r == 0; i++, at += sizeof(struct manifest_resize)) {
        struct manifest_resize d;
        memcpy(&d, at, sizeof d);
        struct resize_info s = {le32_get(d.volume), {le64_get(d.lsn)}, le64_get(d.old_bytes)};
        r = manifest_add_resize(m, &s, err);
    }
    return r;
}

static const char *const manifest_names[] = {"manifest", "manifest.copy"};

static const char *manifest_path(const char *directory, size_t which, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/%s", directory, manifest_names[which]);
    return path;
}

/* The first is durable before the second is touched: at any time one of them is whole, and the second is never ahead. */
static int write_both(const char *directory, const void *data, size_t length, struct error *err)
{
    char path[PATH_MAX];
    int r = 0;
    for (size_t i = 0; i < 2 && r == 0; i++)
        r = io_replace_file(manifest_path(directory, i, path), data, length, 0600, err);
    return r;
}

/* Of an encrypted journal: a header that tells programs of before not to read on, and all of it encrypted. */
static int write_files(const char *directory, const struct manifest_header *h, const char *data, size_t length, struct error *err)
{
    char path[PATH_MAX];
    const struct seal *s = seal_of(manifest_path(directory, 0, path));
    if (!s)
        return write_both(directory, data, length, err);
    _cleanup_free_ void *sealed = NULL;
    size_t sealed_length = 0;
    int r = sealed_wrap(s, "manifest", data, length, &sealed, &sealed_length, err);
    if (r < 0)
        return r;
    struct manifest_header clear = {.magic = h->magic, .version = h->version, .incompatible = le32_of(MANIFEST_SEALED)};
    _cleanup_free_ char *file = malloc(sizeof clear + sealed_length);
    if (!file)
        return error_errno(err, -ENOMEM, "cannot write %s", path);
    memcpy(clear.journal_id, h->journal_id, sizeof clear.journal_id);
    memcpy(file + sizeof clear, sealed, sealed_length);
    clear.crc = le32_of(crc32c(crc32c(0, &clear, sizeof clear), file + sizeof clear, sealed_length));
    memcpy(file, &clear, sizeof clear);
    return write_both(directory, file, sizeof clear + sealed_length, err);
}

int manifest_save(const char *directory, const struct manifest *m, struct error *err)
{
    size_t length = encoded_bytes(m);
    _cleanup_free_ char *data = calloc(1, length);
    if (!data)
        return error_errno(err, -ENOMEM, "cannot write the manifest");
    struct manifest_header *h = (struct manifest_header *)data;
    encode_header(m, h);
    char *at = data + sizeof *h;
    for (size_t i = 0; i < m->volume_count; i++, at += sizeof(struct manifest_volume)) {
        const struct volume_info *v = &m->volumes[i];
        struct manifest_volume d = {.id = le32_of(v->id),
                                    .flags = le32_of((v->adopted ? VOLUME_ADOPTED : 0) | (v->seeding ? VOLUME_SEEDING : 0) | (v->taken ? VOLUME_TAKEN : 0)),
                                    .size_bytes = le64_of(v->size_bytes),
                                    .created_lsn = le64_of(v->created.n),
                                    .deleted_lsn = le64_of(v->deleted.n)};
        memcpy(d.name, v->name, sizeof d.name);
        memcpy(at, &d, sizeof d);
    }
    for (size_t i = 0; i < m->segment_count; i++, at += sizeof(struct manifest_segment)) {
        struct manifest_segment d = encode_segment(&m->segments[i]);
        memcpy(at, &d, sizeof d);
    }
    for (size_t i = 0; i < m->run_count; i++, at += sizeof(struct manifest_run)) {
        const struct run_info *run = &m->runs[i];
        struct manifest_run d = {le32_of(run->level),        le32_of(run->first_segment), le32_of(run->last_segment),
                                 le32_of(run->index_kib),    le64_of(run->low.n),         le64_of(run->high.n)};
        memcpy(at, &d, sizeof d);
    }
    for (size_t i = 0; i < m->refused_count; i++, at += sizeof(struct manifest_refused)) {
        struct manifest_refused d = {le64_of(m->refused[i].low.n), le64_of(m->refused[i].high.n)};
        memcpy(at, &d, sizeof d);
    }
    for (size_t i = 0; i < m->rewind_count; i++, at += sizeof(struct manifest_rewind)) {
        struct manifest_rewind d = {le64_of(m->rewinds[i].lsn.n), le64_of(m->rewinds[i].target.n)};
        memcpy(at, &d, sizeof d);
    }
    bool thinned = is_thinned(m);
    for (size_t i = 0; thinned && i < m->segment_count; i++, at += sizeof(struct manifest_thinned)) {
        const struct segment_info *s = &m->segments[i];
        struct manifest_thinned d = {le32_of(s->keep_s), le16_of(s->generation), le16_of(s->open_end ? MANIFEST_OPEN_END : 0)};
        memcpy(at, &d, sizeof d);
    }
    bool cold = is_cold(m);
    for (size_t i = 0; cold && i < m->segment_count; i++, at += sizeof(struct manifest_cold)) {
        const struct segment_info *s = &m->segments[i];
        struct manifest_cold d = {le32_of(s->cold_kib), le32_of(s->dense ? MANIFEST_DENSE : 0)};
        memcpy(at, &d, sizeof d);
    }
    encode_resizes(m, at);
    h->crc = le32_of(crc32c(0, data, length));
    return write_files(directory, h, data, length, err);
}

static int decode_tables(const char *at, const char *end, const struct manifest_header *h, struct manifest *m, struct error *err)
{
    int r = 0;
    for (uint32_t i = 0; i < le32_get(h->volume_count) && r == 0; i++, at += sizeof(struct manifest_volume)) {
        struct manifest_volume d;
        memcpy(&d, at, sizeof d);
        struct volume_info v = {.id = le32_get(d.id),
                                .size_bytes = le64_get(d.size_bytes),
                                .adopted = le32_get(d.flags) & VOLUME_ADOPTED,
                                .seeding = le32_get(d.flags) & VOLUME_SEEDING,
                                .taken = le32_get(d.flags) & VOLUME_TAKEN,
                                .created = {le64_get(d.created_lsn)},
                                .deleted = {le64_get(d.deleted_lsn)}};
        memcpy(v.name, d.name, sizeof v.name);
        v.name[sizeof v.name - 1] = '\0';
        r = manifest_add_volume(m, &v, err);
    }
    for (uint32_t i = 0; i < le32_get(h->segment_count) && r == 0; i++, at += sizeof(struct manifest_segment)) {
        struct manifest_segment d;
        memcpy(&d, at, sizeof d);
        struct segment_info s = decode_segment(&d);
        r = manifest_add_segment(m, &s, err);
    }
    for (uint32_t i = 0; i < le32_get(h->run_count) && r == 0; i++, at += sizeof(struct manifest_run)) {
        struct manifest_run d;
        memcpy(&d, at, sizeof d);
        struct run_info run = {le32_get(d.level),     le32_get(d.first_segment), le32_get(d.last_segment),
                               le32_get(d.index_kib), {le64_get(d.low_lsn)},     {le64_get(d.high_lsn)}};
        r = manifest_add_run(m, &run, err);
    }
    for (uint32_t i = 0; i < le32_get(h->refused_count) && r == 0; i++, at += sizeof(struct manifest_refused)) {
        struct manifest_refused d;
        memcpy(&d, at, sizeof d);
        struct refused_info refused = {{le64_get(d.low_lsn)}, {le64_get(d.high_lsn)}};
        r = manifest_add_refused(m, &refused, err);
    }
    for (uint32_t i = 0; i < le32_get(h->rewind_count) && r == 0; i++, at += sizeof(struct manifest_rewind)) {
        struct manifest_rewind d;
        memcpy(&d, at, sizeof d);
        struct rewind_info rewind = {{le64_get(d.lsn)}, {le64_get(d.target_lsn)}};
        r = manifest_add_rewind(m, &rewind, err);
    }
    bool thinned = le32_get(h->incompatible) & MANIFEST_THINNED;
    for (size_t i = 0; thinned && i < m->segment_count && r == 0; i++, at += sizeof(struct manifest_thinned)) {
        struct manifest_thinned d;
        memcpy(&d, at, sizeof d);
        m->segments[i].keep_s = le32_get(d.keep_s);
        m->segments[i].generation = le16_get(d.generation);
        m->segments[i].open_end = le16_get(d.flags) & MANIFEST_OPEN_END;
    }
    bool cold = le32_get(h->incompatible) & MANIFEST_COLD;
    for (size_t i = 0; cold && i < m->segment_count && r == 0; i++, at += sizeof(struct manifest_cold)) {
        struct manifest_cold d;
        memcpy(&d, at, sizeof d);
        m->segments[i].cold_kib = le32_get(d.kib);
        m->segments[i].dense = le32_get(d.flags) & MANIFEST_DENSE;
    }
    if (r == 0 && le32_get(h->incompatible) & MANIFEST_RESIZED)
        r = decode_resizes(at, (size_t)(end - at), m, err);
    return r;
}

static int check_header(const char *path, char *data, size_t length, struct error *err)
{
    struct manifest_header *h = (struct manifest_header *)data;
    if (length < sizeof *h || le64_get(h->magic) != MANIFEST_MAGIC)
        return error_set(err, -EBADMSG, "%s is not a journal's manifest", path);
    uint32_t crc = le32_get(h->crc);
    h->crc = le32_of(0);
    if (crc32c(0, data, length) != crc)
        return error_set(err, -EBADMSG, "%s is damaged (wrong checksum)", path);
    if (le32_get(h->version) != JOURNAL_VERSION || le32_get(h->incompatible) & ~KNOWN_FLAGS)
        return error_set(err, -EPROTONOSUPPORT,
                         "%s has format version %u, flags %#x: this program reads version %u; use a newer tidemark",
                         path, le32_get(h->version), le32_get(h->incompatible), JOURNAL_VERSION);
    if (le32_get(h->incompatible) & MANIFEST_SEALED)
        return 0; /* its content tells */
    uint64_t expected = sizeof *h + (uint64_t)le32_get(h->volume_count) * sizeof(struct manifest_volume) +
                        (uint64_t)le32_get(h->segment_count) * sizeof(struct manifest_segment) +
                        (uint64_t)le32_get(h->run_count) * sizeof(struct manifest_run) +
                        (uint64_t)le32_get(h->refused_count) * sizeof(struct manifest_refused) +
                        (uint64_t)le32_get(h->rewind_count) * sizeof(struct manifest_rewind);
    if (le32_get(h->incompatible) & MANIFEST_THINNED)
        expected += (uint64_t)le32_get(h->segment_count) * sizeof(struct manifest_thinned);
    if (le32_get(h->incompatible) & MANIFEST_COLD)
        expected += (uint64_t)le32_get(h->segment_count) * sizeof(struct manifest_cold);
    bool more = le32_get(h->incompatible) & MANIFEST_RESIZED; /* decode_resizes looks at the rest */
    if (more ? length < expected : length != expected)
        return error_set(err, -EBADMSG, "%s is damaged (wrong length)", path);
    return 0;
}

static bool is_sealed(const char *data)
{
    return le32_get(((const struct manifest_header *)data)->incompatible) & MANIFEST_SEALED;
}

static int open_sealed(const char *path, const char *data, size_t length, char **ret, size_t *ret_length, struct error *err)
{
    const struct seal *s = seal_of(path);
    if (!s)
        return error_set(err, -EKEYREJECTED, "%s is encrypted: name the journal's key file (spec.journal.encryption.keyFile)", path);
    int r = sealed_unwrap(s, "manifest", data + sizeof(struct manifest_header), length - sizeof(struct manifest_header), ret, ret_length, err);
    if (r == 0 && (*ret_length < sizeof(struct manifest_header) || is_sealed(*ret))) {
        free(*ret);
        return error_set(err, -EBADMSG, "%s is damaged (encrypted twice)", path);
    }
    return r;
}

static int load_one(const char *directory, size_t which, struct manifest *ret, struct error *err)
{
    char path[PATH_MAX];
    manifest_path(directory, which, path);
    _cleanup_free_ char *data = NULL;
    size_t length;
    int r = io_read_file(path, MANIFEST_LIMIT_BYTES, &data, &length, err);
    if (r < 0)
        return r;
    r = check_header(path, data, length, err);
    if (r == 0 && is_sealed(data)) {
        char *plain = NULL;
        size_t plain_length = 0;
        r = open_sealed(path, data, length, &plain, &plain_length, err);
        if (r == 0) {
            free(data);
            data = plain;
            length = plain_length;
            r = check_header(path, data, length, err);
        }
    } else if (r == 0 && seal_of(path)) {
        r = error_set(err, -EBADMSG, "%s is not encrypted, and the journal is", path);
    }
    if (r < 0)
        return r;
    const struct manifest_header *h = (const struct manifest_header *)data;
    struct manifest m = {
        .epoch = le32_get(h->epoch),
        .next_segment = le32_get(h->next_segment),
        .next_volume = le32_get(h->next_volume),
        .previous_crc = le32_get(h->previous_crc),
        .next_frame = le64_get(h->next_frame),
        .lsn_reserved = {le64_get(h->lsn_reserved)},
        .base = {le64_get(h->base_lsn)},
        .base_target = {le64_get(h->base_target)},
        .base_realtime_ns = le64_get(h->base_realtime_ns),
        .clean = le32_get(h->flags) & MANIFEST_CLEAN,
        .suspended = le32_get(h->flags) & MANIFEST_SUSPENDED,
        .has_tail = le32_get(h->flags) & MANIFEST_TAIL,
    };
    memcpy(m.journal_id.bytes, h->journal_id, 16);
    memcpy(m.boot.bytes, h->boot_id, 16);
    r = decode_tables(data + sizeof *h, data + length, h, &m, err);
    if (r < 0) {
        manifest_release(&m);
        return r;
    }
    *ret = m;
    return 0;
}

/* A segment of a later epoch than the copy's: a program of before, which writes no copy, had the journal open since. Its segments
 * would be taken for strays. */
static bool is_outdated(const char *directory, const struct manifest *m)
{
    _cleanup_closedir_ DIR *d = opendir(directory);
    bool outdated = false;
    for (const struct dirent *entry; d && !outdated && (entry = readdir(d));) {
        struct segment_header h;
        struct error ignored = ERROR_INIT;
        unsigned number;
        char path[PATH_MAX], block[JOURNAL_BLOCK_BYTES];
        if (sscanf(entry->d_name, "segment-%10u", &number) != 1 || number < m->next_segment)
            continue;
        snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0 || io_pread_full(fd, block, sizeof block, 0) < 0 || segment_check_header(&m->journal_id, number, block, &ignored) < 0)
            continue;
        memcpy(&h, block, sizeof h);
        outdated = le32_get(h.epoch) > m->epoch;
    }
    return outdated;
}

static bool is_unusable(int r)
{
    return r == -EBADMSG || r == -ENOENT || r == -EIO || r == -ENODATA || r == -EFBIG;
}

int manifest_load(const char *directory, struct manifest *ret, struct error *err)
{
    struct error why = ERROR_INIT;
    struct manifest m = {0};
    int r = load_one(directory, 0, ret, err);
    if (!is_unusable(r))
        return r;
    int other = load_one(directory, 1, &m, &why);
    if (other == 0 && is_outdated(directory, &m)) {
        manifest_release(&m);
        other = error_set(&why, -EBADMSG, "%s/%s is older than the history beside it", directory, manifest_names[1]);
    }
    if (other == 0) {
        *err = ERROR_INIT;
        *ret = m;
        return 0;
    }
    if (r == -ENOENT && other == -ENOENT)
        return r;
    struct error first = *err;
    if (!is_unusable(other)) /* a newer program's, or without its key: not damaged */
        return error_set(err, other, "%.200s; %.200s", first.message, why.message);
    return error_set(err, -EBADMSG, "%.200s, and so is its copy: %.200s", first.message, why.message);
}

bool manifest_rewind_was_dropped(const char *directory, struct lsn rewind)
{
    struct manifest now;
    struct error ignored = ERROR_INIT;
    if (manifest_load(directory, &now, &ignored) < 0)
        return false;
    bool dropped = now.base.n >= rewind.n;
    manifest_release(&now);
    return dropped;
}

const char *manifest_check_files(const char *directory, bool *ret_no_copy, char text[MANIFEST_DAMAGE_BYTES])
{
    for (size_t i = 0; i < 2; i++) {
        struct error err = ERROR_INIT;
        struct manifest m = {0};
        int r = load_one(directory, i, &m, &err);
        manifest_release(&m);
        if (!is_unusable(r))
            continue;
        *ret_no_copy = i == 1 && r == -ENOENT;
        snprintf(text, MANIFEST_DAMAGE_BYTES, "%s %s: it is one of two copies, and is made anew when the journal changes", manifest_names[i],
                 r == -ENOENT ? "is missing" : "is damaged");
        return manifest_names[i];
    }
    return NULL;
}

bool manifest_exists(const char *directory)
{
    char path[PATH_MAX];
    return access(manifest_path(directory, 0, path), F_OK) == 0 || access(manifest_path(directory, 1, path), F_OK) == 0;
}

bool manifest_is_encrypted(const char *directory)
{
    char path[PATH_MAX];
    for (size_t i = 0; i < 2; i++) {
        _cleanup_free_ char *data = NULL;
        size_t length;
        struct error ignored = ERROR_INIT;
        if (io_read_file(manifest_path(directory, i, path), MANIFEST_LIMIT_BYTES, &data, &length, &ignored) == 0 &&
            check_header(path, data, length, &ignored) == 0)
            return is_sealed(data);
    }
    return false;
}
