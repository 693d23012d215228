/* SPDX-License-Identifier: Apache-2.0 */
/* The volumes of a journal: created, adopted with what they hold, grown.
 *
 * A volume grows in steps that can each be repeated after a crash: the backing (the caller's), the base's
 * files, the VOLUME record, the manifest. Before the manifest has it the volume has its old size. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/cleanup.h"
#include "journal/base_store.h"
#include "journal/journal_internal.h"

/* The base has each volume's files from the beginning, so that missing ones are known to be. Those of a volume that `grows` and that are damaged
 * stay so until a drop makes them anew: made larger they would look whole. */
static int prepare_base(struct journal *j, uint32_t volume, uint64_t size_bytes, bool grows, struct error *err)
{
    char path[JOURNAL_PATH_BYTES];
    struct base_store *base = NULL;
    journal_path(j, "base", path);
    MUTEX_GUARD(guard, &j->base_mutex);
    int r = base_store_open(path, true, &base, err);
    if (r == 0 && grows)
        r = base_store_check(base, volume, err);
    bool is_damaged = r == -EBADMSG;
    if (is_damaged)
        log_error(j->log, "%s: the base does not grow", err->message);
    else if (r == 0)
        r = base_store_prepare(base, volume, size_bytes, err);
    base_store_free(base);
    return is_damaged ? 0 : r;
}

struct resize {
    struct resize_info info;
    uint64_t size_bytes;
};

static int append_change(struct journal *j, const struct volume_info *v, const char *change,
                         uint64_t old_bytes, uint64_t size_bytes, struct lsn *ret, struct error *err)
{
    char payload[256];
    int n = snprintf(payload, sizeof payload, "{\"name\":\"%s\",\"change\":\"%s\",\"size_bytes\":%llu}",
                     v->name, change, (unsigned long long)size_bytes);
    struct journal_record record = {.op = OP_VOLUME,
                                    .flags = RECORD_LAST,
                                    .volume = v->id,
                                    .payload = payload,
                                    .payload_bytes = (uint32_t)n,
                                    .tag = old_bytes,
                                    .aux = size_bytes};
    return journal_append_durable(j, &record, ret, err);
}

static int check_existing(const struct volume_info *v, bool adopt, struct error *err)
{
    if (v->adopted != adopt && !v->taken)
        return error_set(
            err, -EINVAL,
            "volume %s %s in this journal: its history does not belong to the backing that was named",
            v->name, v->adopted ? "was adopted" : "was made new");
    return 0;
}

static int find_or_make(struct journal *j, const char *name, uint64_t size_bytes, bool adopt, bool take,
                        struct volume_info *ret, struct error *err)
{
    struct volume_info volume = {.size_bytes = size_bytes, .adopted = adopt, .seeding = adopt, .taken = take};
    struct lsn lsn;
    pthread_mutex_lock(&j->mutex);
    for (size_t i = 0; i < j->manifest.volume_count; i++) {
        const struct volume_info *v = &j->manifest.volumes[i];
        if (v->deleted.n || strcmp(v->name, name) != 0)
            continue;
        volume = *v;
        pthread_mutex_unlock(&j->mutex);
        int r = check_existing(&volume, adopt, err);
        if (r == 0)
            *ret = volume;
        return r;
    }
    snprintf(volume.name, sizeof volume.name, "%s", name);
    volume.id = j->manifest.next_volume++;
    pthread_mutex_unlock(&j->mutex);
    int r = prepare_base(j, volume.id, size_bytes, false, err);
    pthread_mutex_lock(&j->mutex);
    volume.created.n = j->next_lsn;
    if (r == 0)
        r = manifest_add_volume(&j->manifest, &volume, err);
    pthread_mutex_unlock(&j->mutex);
    if (r == 0)
        r = sealer_save(j, err);
    if (r < 0)
        return r;
    r = append_change(j, &volume, adopt ? "adopted" : "created", 0, size_bytes, &lsn, err);
    *ret = volume;
    return r;
}

int journal_volume(struct journal *j, const char *name, uint64_t size_bytes, bool adopt, struct volume_info *ret,
                   struct error *err)
{
    return find_or_make(j, name, size_bytes, adopt, false, ret, err);
}

int journal_take_volume(struct journal *j, const char *name, uint64_t size_bytes, struct volume_info *ret, struct error *err)
{
    return find_or_make(j, name, size_bytes, true, true, ret, err);
}

static int add_resize(void *context, struct manifest *m, struct error *err)
{
    const struct resize *resize = context;
    int r = manifest_add_resize(m, &resize->info, err);
    for (size_t i = 0; i < m->volume_count && r == 0; i++)
        if (m->volumes[i].id == resize->info.volume)
            m->volumes[i].size_bytes = resize->size_bytes;
    return r;
}

int journal_resize(struct journal *j, uint32_t volume, uint64_t size_bytes, struct error *err)
{
    struct volume_info info;
    struct resize resize = {.info = {.volume = volume}, .size_bytes = size_bytes};
    pthread_mutex_lock(&j->mutex);
    struct volume_info *v = manifest_find_volume(&j->manifest, volume);
    if (v)
        info = *v;
    pthread_mutex_unlock(&j->mutex);
    if (!v)
        return error_set(err, -ENOENT, "there is no volume %u in the journal", volume);
    if (info.size_bytes == size_bytes)
        return 0;
    resize.info.old_bytes = info.size_bytes;
    int r = prepare_base(j, volume, size_bytes, true, err);
    if (r == 0)
        r = append_change(j, &info, "resized", info.size_bytes, size_bytes, &resize.info.lsn, err);
    /* Saved before it counts: repeated after a failure it is done again, and not taken for done. */
    return r < 0 ? r : sealer_change(j, add_resize, &resize, err);
}

/* With base_mutex: the base to write to. */
static int open_seed_store(struct journal *j, struct error *err)
{
    char path[JOURNAL_PATH_BYTES];
    journal_path(j, "base", path);
    return j->seed_store ? 0 : base_store_open(path, true, &j->seed_store, err);
}

int journal_seed(struct journal *j, uint32_t volume, uint64_t lba, uint32_t length, const void *data,
                 struct error *err)
{
    MUTEX_GUARD(guard, &j->base_mutex);
    int r = journal_fault_at(j, "seed");
    if (r < 0)
        return error_errno(err, r, "cannot write the base");
    r = open_seed_store(j, err);
    if (r < 0)
        return r;
    return data ? base_store_write(j->seed_store, volume, lba, length, data, true, err)
                : base_store_lose(j->seed_store, volume, lba, length, err);
}

int journal_seed_sync(struct journal *j, struct error *err)
{
    {
        MUTEX_GUARD(guard, &j->base_mutex);
        int r = open_seed_store(j, err);
        if (r == 0)
            r = base_store_sync(j->seed_store, err);
        if (r < 0)
            return r;
    }
    volumes_count_base(j);
    return 0;
}

void volumes_count_base(struct journal *j)
{
    char path[JOURNAL_PATH_BYTES];
    struct error ignored = ERROR_INIT;
    struct base_store *base = NULL;
    struct manifest m;
    journal_path(j, "base", path);
    if (journal_manifest(j, &m, &ignored) < 0)
        return;
    if (base_store_open(path, false, &base, &ignored) == 0)
        for (size_t i = 0; i < m.volume_count; i++)
            if (base_store_check(base, m.volumes[i].id, &ignored) < 0)
                log_debug(j->log, "%s", ignored.message); /* not counted */
    manifest_release(&m);
    uint64_t used = base ? base_store_used_bytes(base) : 0;
    base_store_free(base);
    MUTEX_GUARD(guard, &j->mutex);
    j->base_bytes = used;
}

int journal_seeded(struct journal *j, uint32_t volume, struct error *err)
{
    int r = journal_seed_sync(j, err);
    if (r < 0)
        return r;
    pthread_mutex_lock(&j->mutex);
    struct volume_info *v = manifest_find_volume(&j->manifest, volume);
    if (v)
        v->seeding = false;
    pthread_mutex_unlock(&j->mutex);
    return sealer_save(j, err);
}

void journal_memory_path(const struct journal *j, const char *suffix, char *path, size_t size)
{
    snprintf(path, size, "%s.%s", j->ring.path, suffix);
}

void journal_configure(struct journal *j, const struct journal_options *options)
{
    MUTEX_GUARD(guard, &j->mutex);
    j->options.quota_bytes = options->quota_bytes;
    j->options.history_ns = options->history_ns;
    memcpy(j->options.thinning, options->thinning, sizeof j->options.thinning);
    j->options.thinning_count = options->thinning_count;
    j->options.compress = options->compress;
    j->options.compress_after_ns = options->compress_after_ns;
    pthread_cond_signal(&j->janitor_work);
}
