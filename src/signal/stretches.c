/* SPDX-License-Identifier: Apache-2.0 */
#include "signal/stretches.h"

#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "signal/signal_format.h"

#define FILE_LIMIT_BYTES (SIGNAL_STRETCHES_MAX * sizeof(struct signal_stretch_entry))
#define CRC_OFFSET offsetof(struct signal_stretch_entry, crc)

void signal_stretches_init(struct signal_stretches *s)
{
    s->count = 0;
    pthread_mutex_init(&s->mutex, NULL);
}

void signal_stretches_release(struct signal_stretches *s)
{
    pthread_mutex_destroy(&s->mutex);
}

static bool decode(const struct signal_stretch_entry *e, uint64_t latest_lsn, struct signal_stretch *ret)
{
    if (le32_get(e->magic) != SIGNAL_STRETCH_MAGIC || le32_get(e->version) != SIGNAL_FORMAT_VERSION ||
        le32_get(e->crc) != crc32c(0, e, CRC_OFFSET))
        return false;
    *ret = (struct signal_stretch){.volume = le32_get(e->volume),
                                   .begin_lsn = le64_get(e->begin_lsn),
                                   .end_lsn = le64_get(e->end_lsn),
                                   .begin_ns = le64_get(e->begin_ns),
                                   .end_ns = le64_get(e->end_ns),
                                   .bytes = le64_get(e->bytes)};
    if (ret->end_lsn == 0)
        ret->end_lsn = latest_lsn > ret->begin_lsn ? latest_lsn : ret->begin_lsn + 1;
    return ret->begin_lsn < ret->end_lsn;
}

static struct signal_stretch_entry encode(const struct signal_stretch *s)
{
    struct signal_stretch_entry e = {.magic = le32_of(SIGNAL_STRETCH_MAGIC),
                                     .version = le32_of(SIGNAL_FORMAT_VERSION),
                                     .volume = le32_of(s->volume),
                                     .begin_lsn = le64_of(s->begin_lsn),
                                     .end_lsn = le64_of(s->end_lsn),
                                     .begin_ns = le64_of(s->begin_ns),
                                     .end_ns = le64_of(s->end_ns),
                                     .bytes = le64_of(s->bytes)};
    e.crc = le32_of(crc32c(0, &e, CRC_OFFSET));
    return e;
}

int signal_stretches_load(struct signal_stretches *s, const char *path, uint64_t latest_lsn, size_t *ret_damaged,
                          struct error *err)
{
    _cleanup_free_ char *file = NULL;
    size_t length, damaged = 0;
    *ret_damaged = 0;
    int r = io_read_file(path, FILE_LIMIT_BYTES, &file, &length, err);
    if (r < 0)
        return r == -ENOENT ? 0 : r;
    MUTEX_GUARD(guard, &s->mutex);
    s->count = 0;
    for (size_t at = 0; at < length; at += sizeof(struct signal_stretch_entry)) {
        struct signal_stretch_entry e = {0};
        size_t left = length - at;
        memcpy(&e, file + at, left < sizeof e ? left : sizeof e);
        if (decode(&e, latest_lsn, &s->list[s->count]))
            s->count++;
        else
            damaged++;
    }
    *ret_damaged = damaged;
    return 0;
}

int signal_stretches_save(struct signal_stretches *s, const char *path, struct error *err)
{
    _cleanup_free_ struct signal_stretch_entry *file = calloc(SIGNAL_STRETCHES_MAX, sizeof *file);
    if (!file)
        return error_errno(err, -ENOMEM, "cannot save the suspicious stretches");
    pthread_mutex_lock(&s->mutex);
    size_t count = s->count;
    for (size_t i = 0; i < count; i++)
        file[i] = encode(&s->list[i]);
    pthread_mutex_unlock(&s->mutex);
    return io_replace_file(path, file, count * sizeof *file, 0600, err);
}

void signal_stretches_put(struct signal_stretches *s, const struct signal_stretch *stretch)
{
    MUTEX_GUARD(guard, &s->mutex);
    for (size_t i = s->count; i-- > 0;) {
        if (s->list[i].volume == stretch->volume && s->list[i].begin_lsn == stretch->begin_lsn) {
            s->list[i] = *stretch;
            return;
        }
    }
    if (s->count == SIGNAL_STRETCHES_MAX)
        memmove(s->list, s->list + 1, --s->count * sizeof *s->list);
    s->list[s->count++] = *stretch;
}

void signal_stretches_end(struct signal_stretches *s, uint64_t lsn, uint64_t realtime_ns)
{
    MUTEX_GUARD(guard, &s->mutex);
    for (size_t i = 0; i < s->count; i++) {
        struct signal_stretch *stretch = &s->list[i];
        if (stretch->end_lsn != 0)
            continue;
        stretch->end_lsn = lsn > stretch->begin_lsn ? lsn : stretch->begin_lsn + 1;
        stretch->end_ns = realtime_ns;
    }
}

size_t signal_stretches_drop(struct signal_stretches *s, uint64_t oldest_lsn)
{
    MUTEX_GUARD(guard, &s->mutex);
    size_t kept = 0, before = s->count;
    for (size_t i = 0; i < before; i++)
        if (s->list[i].end_lsn == 0 || s->list[i].end_lsn > oldest_lsn)
            s->list[kept++] = s->list[i];
    s->count = kept;
    return before - kept;
}

size_t signal_stretches_copy(struct signal_stretches *s, struct signal_stretch *list)
{
    MUTEX_GUARD(guard, &s->mutex);
    memcpy(list, s->list, s->count * sizeof *list);
    return s->count;
}
