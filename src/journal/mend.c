/* SPDX-License-Identifier: Apache-2.0 */
/* What history needs to move on (drops, merges) where an index is damaged or missing: a segment's L0 is made again from the segment's frames, in
 * its place when nothing of it is lost. Else what is left goes to a file of its own, which nobody takes for the index (J6), and the records
 * that cannot be known are noted in losses.json. */
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "journal/index.h"
#include "journal/journal_internal.h"
#include "journal/losses.h"
#include "journal/salvage.h"

#define MEND_TRIES 60u /* a second apart */

bool mend_may_come_back(struct journal *j, int r)
{
    return (r < 0 && !journal_is_damage(r)) || (r == -EIO && ++j->mend_tries <= MEND_TRIES);
}

void mend_left_path(const struct journal *j, const struct segment_info *s, char path[JOURNAL_PATH_BYTES])
{
    char name[JOURNAL_FILE_BYTES], file[JOURNAL_FILE_BYTES];
    snprintf(file, sizeof file, "%.40s.left.tmp", journal_l0_file_of(s->number, s->generation, name));
    journal_path(j, file, path);
}

/* Read whole. It must be of `kind`, and of `rewind` (LSN_NONE: of none). */
static int check_index(struct journal *j, const char *path, enum index_kind kind, struct lsn rewind, struct error *err)
{
    struct index *index;
    int r = index_open(path, j->cache, &index, err);
    if (r < 0)
        return r;
    const struct index_info *info = index_info(index);
    bool wanted = info->kind == kind && (!rewind.n || info->high.n == rewind.n);
    r = wanted ? index_verify(index, NULL, NULL, err) : error_set(err, -EBADMSG, "index %s is of something else", path);
    index_free(index);
    return r;
}

void mend_note_loss(struct journal *j, uint32_t segment, struct lsn low, struct lsn high, const char *what)
{
    struct error err = ERROR_INIT;
    struct loss loss = {.low = low, .high = high, .segment = segment, .found_realtime_ns = clock_realtime_ns(j->clock), .what = what};
    log_error(j->log, "%s: what was written from LSN %llu to %llu is not known: blocks that nothing later covers are lost", what,
              (unsigned long long)low.n + 1, (unsigned long long)high.n);
    if (losses_add(j->directory, &loss, j->manifest.base, &err) < 0)
        log_error(j->log, "cannot keep note of what was lost: %s", err.message);
}

/* `path`: of its L0, which is not whole, but `damage`. */
static int make_again(struct journal *j, const struct segment_info *s, const char *path, const struct error *damage, struct lsn *ret_lost,
                      struct error *err)
{
    char left[JOURNAL_PATH_BYTES];
    struct salvage_segment found;
    struct error why = ERROR_INIT;
    int r = salvage_scan(j->directory, &j->manifest.journal_id, s, &found, &why);
    int failed = r < 0 ? r : found.failed;
    if (mend_may_come_back(j, failed)) {
        salvage_release(&found);
        return r < 0 ? error_set(err, r, "%s", why.message) : error_errno(err, failed, "cannot read segment %u", s->number);
    }
    if (failed == 0 && found.gap_count && mend_may_come_back(j, damage->code)) {
        salvage_release(&found);
        return error_set(err, damage->code, "%s", damage->message);
    }
    if (journal_is_damage(r)) {
        *ret_lost = s->last;
        mend_note_loss(j, s->number, (struct lsn){s->first.n - 1}, s->last, why.message);
        return 0;
    }
    if (found.gap_count)
        mend_left_path(j, s, left);
    if (found.tail.frame_count)
        r = salvage_write_index(&found, &j->manifest.journal_id, found.gap_count ? left : path, err);
    for (size_t i = 0; i < found.gap_count && r == 0; i++) {
        *ret_lost = found.gaps[i].high;
        mend_note_loss(j, s->number, found.gaps[i].low, found.gaps[i].high, "frames and index of a segment are damaged");
    }
    if (r == 0 && !found.gap_count)
        log_warning(j->log, "%s is made again from the frames of its segment", path);
    salvage_release(&found);
    return r;
}

int mend_segment(struct journal *j, const struct segment_info *s, struct lsn *ret_lost, struct error *err)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    struct error why = ERROR_INIT;
    *ret_lost = LSN_NONE;
    journal_path(j, journal_l0_file_of(s->number, s->generation, name), path);
    int r = check_index(j, path, INDEX_L0, LSN_NONE, &why);
    if (!journal_is_damage(r))
        return r < 0 ? error_set(err, r, "%s", why.message) : 0;
    log_error(j->log, "%s", why.message);
    return make_again(j, s, path, &why, ret_lost, err);
}

int mend_rewind(struct journal *j, struct lsn lsn, bool *ret_whole, struct error *err)
{
    char name[JOURNAL_FILE_BYTES], path[JOURNAL_PATH_BYTES];
    struct error why = ERROR_INIT;
    journal_path(j, journal_rewind_file(lsn, name), path);
    int r = check_index(j, path, INDEX_REWIND, lsn, err);
    *ret_whole = r == 0;
    if (!journal_is_damage(r))
        return r;
    journal_path(j, journal_rewind_copy_file(lsn, name), path);
    int copy = check_index(j, path, INDEX_REWIND, lsn, &why);
    if (copy == 0) {
        *ret_whole = true;
        return rewind_use_copy(j, lsn, err);
    }
    if (mend_may_come_back(j, copy))
        return error_set(err, copy, "%s", why.message);
    return mend_may_come_back(j, r) ? r : 0;
}
