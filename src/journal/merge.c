/* SPDX-License-Identifier: Apache-2.0 */
/* Merging: run (level l, group g) covers fanout^l segments; it is made when all of them are sealed and the runs below
 * are there, newest wins, with the reference runs of the rewinds in it. Payloads stay where they are. Segments that were thinned to
 * different distances are not merged: the run would not live long. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "journal/index.h"
#include "journal/journal_internal.h"
#include "journal/thin_internal.h"

#define MAX_LEVELS 12u

struct merge {
    uint32_t level, first_segment, last_segment;
};

static uint64_t group_segments(const struct journal *j, uint32_t level)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < level; i++)
        n *= j->options.fanout;
    return n;
}

static const struct run_info *find_run(const struct manifest *m, uint32_t level, uint32_t first)
{
    for (size_t i = 0; i < m->run_count; i++)
        if (m->runs[i].level == level && m->runs[i].first_segment == first)
            return &m->runs[i];
    return NULL;
}

/* Whether segments [i, end) of the table can be merged to a run: all keep points at the same distance, and the runs of the
 * level below are there. */
static bool is_ready(const struct manifest *m, uint32_t level, uint64_t below, size_t i, size_t end)
{
    for (size_t k = i; k < end; k++) {
        uint64_t sub = m->segments[k].number / below * below;
        if (m->segments[k].keep_s != m->segments[i].keep_s)
            return false;
        if (level > 1 && (k == i || m->segments[k - 1].number < sub) && !find_run(m, level - 1, (uint32_t)sub))
            return false;
    }
    return true;
}

/* Finds the lowest merge that can be done. Numbers may be far apart where history was thinned, so it goes by the segments. */
static bool find_merge(const struct journal *j, const struct manifest *m, struct merge *ret)
{
    uint64_t last = m->next_segment - 1;
    for (uint32_t level = 1; level <= MAX_LEVELS && m->segment_count; level++) {
        uint64_t width = group_segments(j, level), below = width / j->options.fanout;
        for (size_t i = 0, end; i < m->segment_count; i = end) {
            uint64_t first = m->segments[i].number / width * width;
            for (end = i; end < m->segment_count && m->segments[end].number < first + width;)
                end++;
            if (first + width - 1 > last)
                break;
            if (m->segments[end - 1].last.n <= j->merge_after.n || find_run(m, level, (uint32_t)first) || !is_ready(m, level, below, i, end))
                continue;
            *ret = (struct merge){level, (uint32_t)first, (uint32_t)(first + width - 1)};
            return true;
        }
        if (width > last)
            break;
    }
    return false;
}

/* Rewinds may be many; each has an index of its own. */
static int make_room(struct index_inputs *in, struct error *err)
{
    if (in->count < in->capacity)
        return 0;
    size_t capacity = in->capacity ? in->capacity * 2 : 64;
    void *indexes = realloc(in->indexes, capacity * sizeof *in->indexes);
    if (indexes)
        in->indexes = indexes;
    void *streams = indexes ? realloc(in->streams, capacity * sizeof *in->streams) : NULL;
    if (!streams)
        return error_errno(err, -ENOMEM, "cannot merge %zu indexes", in->count);
    in->streams = streams;
    in->capacity = capacity;
    return 0;
}

static int add_input(struct journal *j, struct index_inputs *in, const char *file, struct error *err)
{
    char path[JOURNAL_PATH_BYTES];
    journal_path(j, file, path);
    int r = make_room(in, err);
    if (r < 0)
        return r;
    r = index_open(path, j->cache, &in->indexes[in->count], err);
    if (r == 0) {
        r = index_stream(in->indexes[in->count], LSN_NONE, LSN_MAX, &in->streams[in->count], err);
        if (r < 0)
            index_free(in->indexes[in->count]);
        else
            in->count++;
    }
    return r;
}

/* The streams are owned by a sweep once it is made. */
void inputs_release(struct index_inputs *in, bool streams)
{
    for (size_t i = 0; i < in->count; i++) {
        if (streams)
            extent_stream_free(in->streams[i]);
        index_free(in->indexes[i]);
    }
    free(in->indexes);
    free(in->streams);
    *in = (struct index_inputs){0};
}

/* The index of a segment, or what is left of one that is lost up to an LSN in it. */
static int add_l0(struct journal *j, struct index_inputs *in, const struct segment_info *s, struct lsn lost, struct error *err)
{
    char name[JOURNAL_FILE_BYTES], left[JOURNAL_PATH_BYTES];
    mend_left_path(j, s, left);
    if (lost.n >= s->first.n && access(left, F_OK) == 0)
        return add_input(j, in, strrchr(left, '/') + 1, err);
    return add_input(j, in, journal_l0_file_of(s->number, s->generation, name), err);
}

/* Those that have something above `lost`. */
int inputs_add_segments(struct journal *j, struct index_inputs *in, const struct manifest *m, uint32_t first, uint32_t last, struct lsn lost,
                              struct error *err)
{
    char name[JOURNAL_FILE_BYTES];
    int r = 0;
    for (size_t i = 0; i < m->segment_count && r == 0; i++) {
        const struct segment_info *s = &m->segments[i];
        if (s->number < first || s->number > last || s->last.n <= lost.n)
            continue;
        r = add_l0(j, in, s, lost, err);
        for (size_t k = 0; k < m->rewind_count && r == 0; k++)
            if (m->rewinds[k].lsn.n > manifest_rewinds_above(m, i).n && m->rewinds[k].lsn.n <= s->last.n && m->rewinds[k].lsn.n > lost.n)
                r = add_input(j, in, journal_rewind_file(m->rewinds[k].lsn, name), err);
    }
    return r;
}

static int merge_inputs(struct journal *j, const struct manifest *m, const struct merge *merge, struct index_inputs *in,
                        struct error *err)
{
    if (merge->level == 1)
        return inputs_add_segments(j, in, m, merge->first_segment, merge->last_segment, LSN_NONE, err);
    char name[JOURNAL_FILE_BYTES];
    int r = 0;
    uint32_t below = (uint32_t)group_segments(j, merge->level - 1);
    for (uint32_t sub = merge->first_segment; sub <= merge->last_segment && r == 0; sub += below)
        if (find_run(m, merge->level - 1, sub))
            r = add_input(j, in, journal_run_file(merge->level - 1, sub, name), err);
    return r;
}

/* Copies a sweep of the inputs to a flat index. */
static int write_run(struct journal *j, struct index_inputs *in, const char *path, const struct index_info *info, bool *ret_streams_taken,
                     struct error *err)
{
    struct thin_pace pace = {0};
    struct extent_stream *sweep = NULL;
    struct index_writer *w = NULL;
    int r = extent_sweep(in->streams, in->count, &sweep, err);
    *ret_streams_taken = r == 0;
    if (r == 0)
        r = index_writer_new(path, info, &w, err);
    for (uint64_t n = 1; r == 0; n++) {
        struct extent e;
        int more = sweep->next(sweep, &e, err);
        if (more <= 0) {
            r = more;
            break;
        }
        r = index_writer_add(w, &e, err);
        if (n % THIN_PACE_EXTENTS == 0)
            thin_pace(&pace, j);
    }
    if (r == 0)
        r = index_writer_finish(w, err);
    index_writer_free(w);
    if (sweep)
        extent_stream_free(sweep);
    return r;
}

static void span_lsns(const struct manifest *m, const struct merge *merge, struct lsn *low, struct lsn *high)
{
    *low = LSN_MAX, *high = LSN_NONE;
    for (size_t i = 0; i < m->segment_count; i++) {
        const struct segment_info *s = &m->segments[i];
        if (s->number < merge->first_segment || s->number > merge->last_segment)
            continue;
        if (s->first.n - 1 < low->n)
            low->n = s->first.n - 1;
        if (s->last.n > high->n)
            *high = s->last;
    }
}

static int add_run(void *context, struct manifest *m, struct error *err)
{
    return manifest_add_run(m, context, err);
}

/* Makes the indexes below a merge again where they can be. Runs are not: what is below them may be thinned by now. */
static int mend_merged(struct journal *j, const struct manifest *m, const struct merge *merge, struct error *err)
{
    char left[JOURNAL_PATH_BYTES];
    struct lsn low, high, lost;
    bool whole;
    int r = 0;
    span_lsns(m, merge, &low, &high);
    for (size_t i = 0; i < m->segment_count && r == 0; i++)
        if (m->segments[i].number >= merge->first_segment && m->segments[i].number <= merge->last_segment) {
            r = mend_segment(j, &m->segments[i], &lost, err);
            mend_left_path(j, &m->segments[i], left);
            unlink(left);
        }
    for (size_t i = 0; i < m->rewind_count && r == 0; i++)
        if (m->rewinds[i].lsn.n > low.n && m->rewinds[i].lsn.n <= high.n)
            r = mend_rewind(j, m->rewinds[i].lsn, &whole, err);
    return r;
}

static int make_run(struct journal *j, const struct manifest *m, const struct merge *merge, struct run_info *run, struct error *err)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    struct index_inputs in = {0};
    bool taken = false;
    struct stat st = {0};
    struct index_info info = {.journal_id = m->journal_id, .kind = INDEX_RUN, .flat = true, .low = run->low, .high = run->high,
                              .first_segment = run->first_segment, .last_segment = run->last_segment};
    journal_path(j, journal_run_file(run->level, run->first_segment, name), path);
    int r = merge_inputs(j, m, merge, &in, err);
    if (r == 0)
        r = write_run(j, &in, path, &info, &taken, err);
    inputs_release(&in, !taken);
    if (r == 0 && stat(path, &st) == 0)
        run->index_kib = (uint32_t)(st.st_size / 1024);
    return r < 0 ? error_context(err, "cannot merge %s", name) : 0;
}

static int do_merge(struct journal *j, const struct manifest *m, const struct merge *merge, struct error *err)
{
    struct run_info run = {.level = merge->level, .first_segment = merge->first_segment, .last_segment = merge->last_segment};
    span_lsns(m, merge, &run.low, &run.high);
    int r = make_run(j, m, merge, &run, err);
    if (journal_is_damage(r) && merge->level == 1) {
        r = mend_merged(j, m, merge, err);
        if (r == 0)
            r = make_run(j, m, merge, &run, err);
    }
    if (journal_is_damage(r)) { /* it would fail again and again */
        log_warning(j->log, "%s; it is left as it is", err->message);
        j->merge_after = run.high;
        return 0;
    }
    return r < 0 ? r : sealer_change(j, add_run, &run, err);
}

int merge_step(struct journal *j, const struct manifest *m, bool *ret_done, struct error *err)
{
    struct merge merge;
    *ret_done = find_merge(j, m, &merge);
    return *ret_done ? do_merge(j, m, &merge, err) : 0;
}
