/* SPDX-License-Identifier: Apache-2.0 */
/* Opening a point of a damaged journal. Each index that the point needs is read whole and checked. A damaged run is replaced
 * by the indexes of its segments, a damaged index of a segment is made again from the segment's frames; what is neither
 * there nor there is a source without an index: everything that is not newer is unknown (J6). */
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "journal/base_store.h"
#include "journal/manifest.h"
#include "journal/salvage.h"
#include "journal/segment_reader.h"
#include "view/image_internal.h"

#define FINDINGS_MAX 1000u

/* What is left of a segment's index. */
struct remains {
    char *path; /* of the index; NULL: none */
    struct salvage_gap *gaps;
    size_t gap_count;
};

struct salvage {
    struct image *image;
    const char *directory, *scratch;
    struct manifest m;
    struct remains *remains; /* one a segment of the manifest */
    uint32_t group;
};

__attribute__((format(printf, 2, 3))) static void find(struct salvage *s, const char *format, ...)
{
    struct image *image = s->image;
    va_list args;
    if (image->finding_count == FINDINGS_MAX)
        return;
    char **larger = reallocarray(image->findings, image->finding_count + 1, sizeof *larger);
    if (!larger)
        return;
    image->findings = larger;
    va_start(args, format);
    if (vasprintf(&image->findings[image->finding_count], format, args) >= 0)
        image->finding_count++;
    va_end(args);
}

const char *image_finding(const struct image *image, size_t i)
{
    return i < image->finding_count ? image->findings[i] : NULL;
}

/* Opens an index and reads all of it. */
static int open_checked(struct salvage *s, const char *path, struct index **ret, struct error *err)
{
    struct index *index;
    int r = index_open(path, s->image->cache, &index, err);
    if (r < 0)
        return r;
    r = index_verify(index, NULL, NULL, err);
    if (r < 0)
        index_free(index);
    else
        *ret = index;
    return r;
}

/* ---- segments ---- */

/* Makes the index of a segment again. 0 also when nothing is left of it. */
static int rebuild(struct salvage *s, const struct segment_info *info, struct remains *ret, struct error *err)
{
    char path[PATH_MAX], name[JOURNAL_FILE_BYTES];
    struct salvage_segment found;
    struct error why = ERROR_INIT;
    int r = salvage_scan(s->directory, &s->m.journal_id, info, &found, &why);
    if (r == -ENOMEM)
        return error_set(err, r, "%s", why.message);
    if (r < 0 || found.tail.frame_count == 0) {
        find(s, "%s: nothing of it is left: what was written from LSN %llu to %llu is not known",
             journal_segment_file_of(info->number, info->generation, name), (unsigned long long)info->first.n, (unsigned long long)info->last.n);
        if (r == 0)
            salvage_release(&found);
        return 0;
    }
    snprintf(path, sizeof path, "%s/%s", s->scratch, journal_l0_file_of(info->number, info->generation, name));
    r = salvage_write_index(&found, &s->m.journal_id, path, err);
    if (r == 0)
        r = payload_reader_index(s->image->reader, info->number, info->generation, path, err);
    ret->path = r == 0 ? strdup(path) : NULL;
    if (r == 0 && !ret->path)
        r = error_errno(err, -ENOMEM, "cannot salvage the point");
    ret->gaps = take_ptr(found.gaps);
    ret->gap_count = found.gap_count;
    salvage_release(&found);
    if (r == 0)
        find(s, "%s was made again from the frames of its segment", journal_l0_file_of(info->number, info->generation, name));
    for (size_t i = 0; r == 0 && i < ret->gap_count; i++)
        find(s, "%s: frames are damaged: what was written from LSN %llu to %llu is not known",
             journal_segment_file_of(info->number, info->generation, name), (unsigned long long)ret->gaps[i].low.n + 1,
             (unsigned long long)ret->gaps[i].high.n);
    return r;
}

static int examine_segment(struct salvage *s, const struct segment_info *info, struct remains *ret, struct error *err)
{
    char path[PATH_MAX], name[JOURNAL_FILE_BYTES];
    struct index *index;
    struct error why = ERROR_INIT;
    journal_segment_file_of(info->number, info->generation, name);
    if (!segment_reader_find(s->directory, info->number, info->generation, path, sizeof path))
        find(s, "%s is missing: what it held of LSN %llu to %llu cannot be read", name, (unsigned long long)info->first.n,
             (unsigned long long)info->last.n);
    snprintf(path, sizeof path, "%s/%s", s->directory, journal_l0_file_of(info->number, info->generation, name));
    if (open_checked(s, path, &index, &why) == 0) {
        index_free(index);
        ret->path = strdup(path);
        return ret->path ? 0 : error_errno(err, -ENOMEM, "cannot salvage the point");
    }
    find(s, "%s: %s", name, why.code == -ENOENT ? "is missing" : why.message);
    return rebuild(s, info, ret, err);
}

static bool is_needed(const struct salvage *s, const struct segment_info *info)
{
    return info->first.n <= s->image->lsn.n && info->last.n > s->m.base.n;
}

static int examine_segments(struct salvage *s, struct error *err)
{
    s->remains = calloc(s->m.segment_count + 1, sizeof *s->remains);
    int r = s->remains ? 0 : error_errno(err, -ENOMEM, "cannot salvage the point");
    for (size_t i = 0; r == 0 && i < s->m.segment_count; i++)
        if (is_needed(s, &s->m.segments[i]))
            r = examine_segment(s, &s->m.segments[i], &s->remains[i], err);
    return r;
}

/* ---- sources ---- */

static int add_lost(struct salvage *s, const char *what, struct lsn low, struct lsn high, struct error *err)
{
    struct source source = {.low = low, .high = high, .group = s->group};
    if (low.n >= s->image->lsn.n)
        return 0; /* later than the point */
    if (asprintf(&source.lost, "%s: what was written from LSN %llu to %llu is lost, and nothing later covers this", what,
                 (unsigned long long)low.n + 1, (unsigned long long)high.n) < 0)
        return error_errno(err, -ENOMEM, "cannot salvage the point");
    return image_add_source(s->image, source, err);
}

static int add_index(struct salvage *s, struct index *index, struct lsn high, struct error *err)
{
    return image_add_source(s->image, (struct source){.index = index, .low = LSN_NONE, .high = high, .group = s->group}, err);
}

static int add_rewind(struct salvage *s, struct lsn rewind, struct lsn high, struct error *err)
{
    char path[PATH_MAX], name[JOURNAL_FILE_BYTES];
    struct index *index;
    struct error why = ERROR_INIT;
    snprintf(path, sizeof path, "%s/%s", s->directory, journal_rewind_file(rewind, name));
    if (rewind.n > s->image->lsn.n)
        return 0;
    if (open_checked(s, path, &index, &why) == 0)
        return add_index(s, index, high, err);
    find(s, "%s: %s: what the rewind of LSN %llu changed is not known", name,
         why.code == -ENOENT ? "is missing" : why.message, (unsigned long long)rewind.n);
    return add_lost(s, name, (struct lsn){rewind.n - 1}, rewind, err);
}

static int add_segment(struct salvage *s, size_t i, struct error *err)
{
    const struct segment_info *info = &s->m.segments[i];
    const struct remains *left = &s->remains[i];
    char name[JOURNAL_FILE_BYTES];
    struct index *index;
    journal_segment_file_of(info->number, info->generation, name);
    if (!left->path)
        return add_lost(s, name, (struct lsn){info->first.n - 1}, info->last, err);
    int r = index_open(left->path, s->image->cache, &index, err);
    if (r == 0)
        r = add_index(s, index, info->last, err);
    for (size_t k = 0; k < left->gap_count && r == 0; k++)
        r = add_lost(s, name, left->gaps[k].low, left->gaps[k].high, err);
    return r;
}

/* The segments of a damaged run, and the rewinds in between that were merged into it. */
static int add_instead_of_run(struct salvage *s, uint32_t first_segment, struct lsn high, struct error *err)
{
    int r = 0;
    for (size_t i = s->m.segment_count; i-- > 0 && r == 0;) {
        const struct segment_info *info = &s->m.segments[i];
        if (info->number < first_segment || info->last.n > high.n || !is_needed(s, info))
            continue;
        s->group++;
        r = add_segment(s, i, err);
        for (size_t k = s->m.rewind_count; k-- > 0 && r == 0;)
            if (s->m.rewinds[k].lsn.n > manifest_rewinds_above(&s->m, i).n && s->m.rewinds[k].lsn.n <= info->last.n)
                r = add_rewind(s, s->m.rewinds[k].lsn, info->last, err);
    }
    return r;
}

static int find_segment(const struct salvage *s, uint32_t number, size_t *ret)
{
    for (size_t i = 0; i < s->m.segment_count; i++)
        if (s->m.segments[i].number == number && is_needed(s, &s->m.segments[i])) {
            *ret = i;
            return 0;
        }
    return -ENOENT;
}

/* The index of a segment that was not sealed when the pin was made, or anything else. */
static int add_other(struct salvage *s, const struct pin_source *from, struct error *err)
{
    char path[PATH_MAX];
    struct index *index;
    size_t i;
    struct lsn high = {le64_get(from->high_lsn)};
    struct error why = ERROR_INIT;
    uint32_t segment = le32_get(from->segment);
    snprintf(path, sizeof path, "%s/%s", s->directory, from->file);
    int r = open_checked(s, path, &index, &why);
    if (r == 0) {
        bool tail = index_info(index)->kind == INDEX_TAIL;
        r = add_index(s, index, high, err);
        if (r == 0 && tail && find_segment(s, segment, &i) < 0) /* a sealed one has its own by now */
            r = payload_reader_tail(s->image->reader, segment, from->file, err);
        return r;
    }
    find(s, "%s: %s", from->file, why.code == -ENOENT ? "is missing" : why.message);
    if (segment && find_segment(s, segment, &i) == 0)
        return add_segment(s, i, err);
    return add_lost(s, from->file, s->m.base, high, err);
}

static int add_source_of_pin(struct salvage *s, const struct pin_source *from, struct error *err)
{
    unsigned level, number;
    unsigned long long lsn;
    size_t i;
    char path[PATH_MAX];
    struct index *index;
    struct error why = ERROR_INIT;
    struct lsn high = {le64_get(from->high_lsn)};
    if (sscanf(from->file, "l0-%10u.idx", &number) == 1 && find_segment(s, number, &i) == 0)
        return add_segment(s, i, err);
    if (sscanf(from->file, "rewind-%20llu.idx", &lsn) == 1)
        return add_rewind(s, (struct lsn){lsn}, high, err);
    if (sscanf(from->file, "run-%u-%10u.idx", &level, &number) != 2)
        return add_other(s, from, err);
    snprintf(path, sizeof path, "%s/%s", s->directory, from->file);
    if (open_checked(s, path, &index, &why) == 0)
        return add_index(s, index, high, err);
    find(s, "%s: %s: its segments are read instead", from->file, why.code == -ENOENT ? "is missing" : why.message);
    return add_instead_of_run(s, number, high, err);
}

static int add_sources(struct salvage *s, const struct pin *pin, struct error *err)
{
    uint32_t group = UINT32_MAX;
    int r = 0;
    for (size_t i = 0; i < pin->source_count && r == 0; i++) {
        if (le64_get(pin->sources[i].high_lsn) <= s->m.base.n)
            continue;
        s->group += le32_get(pin->sources[i].group) != group;
        group = le32_get(pin->sources[i].group);
        r = add_source_of_pin(s, &pin->sources[i], err);
    }
    return r;
}

/* ---- the whole ---- */

static void start_over(struct salvage *s)
{
    struct image *image = s->image;
    for (size_t i = 0; s->remains && i < s->m.segment_count; i++) {
        free(s->remains[i].path);
        free(s->remains[i].gaps);
    }
    free(s->remains);
    s->remains = NULL;
    manifest_release(&s->m);
    image_close_sources(image);
    payload_reader_free(image->reader);
    image->reader = NULL;
    while (image->finding_count)
        free(image->findings[--image->finding_count]);
}

/* A drop of history takes files away in good order: then what was found missing is not damage, and it is done again. */
static int base_moved(const struct salvage *s, bool *ret_moved, struct error *err)
{
    struct manifest now;
    int r = manifest_load(s->directory, &now, err);
    if (r < 0)
        return r;
    *ret_moved = now.base.n != s->m.base.n;
    manifest_release(&now);
    return 0;
}

static int salvage(struct salvage *s, const struct pin *pin, struct error *err)
{
    for (bool moved = true;;) {
        int r = manifest_load(s->directory, &s->m, err);
        if (r == 0)
            r = payload_reader_new(s->directory, s->image->cache, IMAGE_OPEN_SEGMENTS, &s->image->reader, err);
        if (r == 0)
            r = examine_segments(s, err);
        if (r == 0)
            r = add_sources(s, pin, err);
        if (r == 0)
            r = base_moved(s, &moved, err);
        if (r < 0 || !moved)
            return r;
        start_over(s);
    }
}

int image_open_salvage(const char *directory, const char *pin_name, const char *scratch, struct image **ret, struct error *err)
{
    struct pin pin;
    struct salvage s = {.directory = directory, .scratch = scratch};
    int r = io_mkdirs(scratch, 0700, err);
    if (r == 0)
        r = image_new(directory, pin_name, &pin, &s.image, err);
    if (r < 0)
        return r;
    r = salvage(&s, &pin, err);
    pin_release(&pin);
    for (size_t i = 0; s.remains && i < s.m.segment_count; i++) {
        free(s.remains[i].path);
        free(s.remains[i].gaps);
    }
    free(s.remains);
    manifest_release(&s.m);
    if (r < 0) {
        image_free(s.image);
        return error_context(err, "cannot salvage the point of the pin %s", pin_name);
    }
    *ret = s.image;
    return 0;
}

/* ---- without salvage ---- */

static bool is_there(const char *directory, const char *name)
{
    char path[PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return access(path, F_OK) == 0;
}

static bool still_needed(const char *directory, uint32_t segment)
{
    struct manifest now;
    struct error ignored = ERROR_INIT;
    bool needed = false;
    if (manifest_load(directory, &now, &ignored) < 0)
        return true;
    for (size_t i = 0; i < now.segment_count; i++)
        needed |= now.segments[i].number == segment;
    manifest_release(&now);
    return needed;
}

enum { FOUND_SEGMENT = 1, FOUND_INDEX = 2, FOUND_BOTH = 3 };

/* segment-NUMBER[.gGENERATION].tmj or .tmc, l0-NUMBER[.gGENERATION].idx; others are passed over. */
static void note_file(const struct manifest *m, const char *name, uint8_t *found)
{
    static const char segment[] = "segment-", l0[] = "l0-";
    bool index = strncmp(name, l0, sizeof l0 - 1) == 0;
    if (!index && strncmp(name, segment, sizeof segment - 1) != 0)
        return;
    char *end;
    unsigned long number = strtoul(name + (index ? sizeof l0 : sizeof segment) - 1, &end, 10), generation = 0;
    if (strncmp(end, ".g", 2) == 0)
        generation = strtoul(end + 2, &end, 10);
    if (strcmp(end, index ? ".idx" : ".tmj") != 0 && (index || strcmp(end, ".tmc") != 0))
        return;
    size_t i = number <= UINT32_MAX ? manifest_find_segment(m, (uint32_t)number) : m->segment_count;
    if (i < m->segment_count && m->segments[i].number == number && m->segments[i].generation == generation)
        found[i] |= index ? FOUND_INDEX : FOUND_SEGMENT;
}

/* Which of the manifest's segments are there, by one look at the directory: one at each file would be most of an opening. What it does
 * not find may have got another name meanwhile. NULL when out of memory. */
static uint8_t *find_files(const char *directory, const struct manifest *m)
{
    uint8_t *found = calloc(m->segment_count + 1, 1);
    _cleanup_closedir_ DIR *d = found ? opendir(directory) : NULL;
    for (const struct dirent *entry; d && (entry = readdir(d));)
        note_file(m, entry->d_name, found);
    return found;
}

/* NULL: all of them. */
struct chosen {
    const uint32_t *volumes;
    size_t count;
};

static bool is_chosen(const struct chosen *c, uint32_t volume)
{
    for (size_t i = 0; c->volumes && i < c->count; i++)
        if (c->volumes[i] == volume)
            return true;
    return !c->volumes;
}

/* The files of the chosen volumes in the base, or with `rewind` in that rewind's rescue store: there, and as long as they say. Their content is
 * looked at when it is read. */
static int check_store(const char *directory, const char *name, const struct manifest *m, const struct chosen *c, struct lsn lsn, struct error *err)
{
    char path[PATH_MAX];
    struct base_store *store = NULL;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    int r = base_store_open(path, false, &store, err);
    for (size_t i = 0; r == 0 && i < m->volume_count; i++)
        if (m->volumes[i].created.n <= lsn.n && is_chosen(c, m->volumes[i].id))
            r = base_store_check(store, m->volumes[i].id, err);
    base_store_free(store);
    return r;
}

static int check_stores(const char *directory, const struct manifest *m, const struct chosen *c, struct lsn lsn, struct error *err)
{
    char name[JOURNAL_FILE_BYTES];
    int r = check_store(directory, "base", m, c, lsn, err);
    for (size_t i = 0; r == 0 && i < m->rewind_count && m->rewinds[i].lsn.n <= lsn.n; i++) {
        struct lsn rewind = m->rewinds[i].lsn;
        snprintf(name, sizeof name, "rescue-%llu", (unsigned long long)rewind.n);
        r = check_store(directory, name, m, c, rewind, err);
        if (r < 0 && manifest_rewind_was_dropped(directory, rewind)) {
            *err = (struct error)ERROR_INIT;
            r = 0;
        }
    }
    return r;
}

int image_check_files(const char *directory, const char *pin_name, const uint32_t *volumes, size_t volume_count, struct error *err)
{
    struct pin pin;
    struct manifest m;
    char l0[JOURNAL_FILE_BYTES], segment[JOURNAL_FILE_BYTES], path[PATH_MAX];
    int r = pin_load(directory, pin_name, &pin, err);
    if (r < 0)
        return r;
    struct lsn lsn = pin.lsn;
    pin_release(&pin);
    r = manifest_load(directory, &m, err);
    if (r < 0)
        return r;
    _cleanup_free_ uint8_t *found = find_files(directory, &m);
    if (!found)
        r = error_errno(err, -ENOMEM, "cannot look at the files of %s", directory);
    for (size_t i = 0; r == 0 && i < m.segment_count; i++) {
        const struct segment_info *info = &m.segments[i];
        if (info->first.n > lsn.n || info->last.n <= m.base.n || found[i] == FOUND_BOTH)
            continue;
        journal_segment_file_of(info->number, info->generation, segment);
        const char *missing = NULL;
        if (!segment_reader_find(directory, info->number, info->generation, path, sizeof path))
            missing = segment;
        else if (!is_there(directory, journal_l0_file_of(info->number, info->generation, l0)))
            missing = l0;
        if (missing && still_needed(directory, info->number))
            r = error_set(err, -EBADMSG, "%s/%s is missing: what was written from LSN %llu to %llu cannot be read", directory,
                          missing, (unsigned long long)info->first.n, (unsigned long long)info->last.n);
    }
    if (r == 0)
        r = check_stores(directory, &m, &(struct chosen){volumes, volume_count}, lsn, err);
    manifest_release(&m);
    return r;
}
