/* SPDX-License-Identifier: Apache-2.0 */
#include "stand.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "journal/seal.h"
#include "journal/set_aside.h"
#include "journal/verify.h"
#include "queued.h"
#include "view/image.h"
#include "volume/fill.h"

const struct spot spots[SPOTS] = {{0, 0}, {0, SPOT_BYTES}, {1, 0}, {1, REGION_BYTES}, {1, 2 * REGION_BYTES}};
const uint64_t sizes[VOLUMES] = {2 * SPOT_BYTES, 2 * REGION_BYTES + SPOT_BYTES};

static struct error err;

int __wrap_uuid_boot(struct uuid *ret, struct error *e);
int __wrap_uuid_boot(struct uuid *ret, struct error *e)
{
    (void)e;
    *ret = stand->boot;
    return 0;
}

/* Thousands of starts, each of which uses little of what it reserves. */
void *__real_mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset);
void *__wrap_mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return __real_mmap64(address, length, protection, flags & ~MAP_POPULATE, fd, offset);
}

uint64_t below(uint64_t n)
{
    return check_random(&stand->random) % n;
}

/* ---- directories ---- */

void stand_make(const char *name, const char *root)
{
    char path[160];
    snprintf(stand->base, sizeof stand->base, "/dev/shm/tidemark-%s-XXXXXX", name);
    if (!mkdtemp(stand->base))
        stand_broken("cannot make %s", stand->base);
    snprintf(stand->ring, sizeof stand->ring, "%.60s/ring", stand->base);
    snprintf(stand->root, sizeof stand->root, "%.60s/%.30s", stand->base, root);
    snprintf(path, sizeof path, "%s/backing", stand->root);
    OK(io_mkdirs(path, 0700, &err));
    snprintf(path, sizeof path, "%s/journal", stand->root);
    OK(io_mkdirs(path, 0700, &err));
    stand_new_boot();
}

/* The ring, and the maps beside it. */
static void remove_memory(void)
{
    char directory[sizeof stand->ring], path[PATH_MAX];
    snprintf(directory, sizeof directory, "%s", stand->ring);
    *strrchr(directory, '/') = '\0';
    DIR *d = opendir(directory);
    for (const struct dirent *entry; d && (entry = readdir(d));)
        if (strncmp(entry->d_name, "ring", 4) == 0 && snprintf(path, sizeof path, "%s/%s", directory, entry->d_name) > 0)
            unlink(path);
    if (d)
        closedir(d);
}

void stand_new_boot(void)
{
    uint64_t id = check_random(&stand->random);
    memcpy(stand->boot.bytes, &id, sizeof id);
    remove_memory();
}

void stand_forget_backings(void)
{
    char path[200];
    for (unsigned id = 1; id <= GROUP_MAX_VOLUMES; id++) {
        snprintf(path, sizeof path, "%s/journal/backing-%u.id", stand->root, id);
        unlink(path);
    }
}

/* What the second volume begins with, also in the model. */
static void fill_spot(size_t i)
{
    for (size_t k = 0; k < SPOT_BYTES; k += 8) {
        uint64_t word = check_random(&stand->random);
        memcpy(stand->live + i * SPOT_BYTES + k, &word, 8);
    }
}

void stand_fill_backing(void)
{
    char path[160];
    snprintf(path, sizeof path, "%s/backing/v1.img", stand->root);
    FILE *f = fopen(path, "w");
    assert_true(f && ftruncate(fileno(f), (off_t)sizes[1]) == 0);
    for (size_t i = 0; i < SPOTS; i++) {
        if (spots[i].volume != 1)
            continue;
        fill_spot(i);
        assert_true(fseek(f, (long)spots[i].offset, SEEK_SET) == 0 &&
                    fwrite(stand->live + i * SPOT_BYTES, 1, SPOT_BYTES, f) == SPOT_BYTES);
    }
    assert_int_equal(fclose(f), 0);
}

void stand_make_clone(void)
{
    char path[160], backing[160];
    struct group *group;
    struct journal *journal;
    struct journal_status s;
    struct journal_options o = {.directory = path, .segment_blocks = 64, .segment_records = 24, .fanout = 2, .ring_path = stand->ring, .owner = "stand",
                                .key_file = stand->options.key_file};
    uint64_t words[(2 * REGION_BYTES + SPOT_BYTES) / GROUP_GRAIN_BYTES / 64 + 1] = {0};
    snprintf(path, sizeof path, "%s/source", stand->base);
    snprintf(backing, sizeof backing, "%s/source.img", stand->base);
    OK(journal_open(&o, &journal, &err));
    OK(group_new(journal, GROUP_ACK_WRITE, NULL, &group, &err));
    OK(group_add_volume(group, "v", sizes[1], backing, &err));
    OK(group_start(group, &err));
    for (size_t i = 0; i < SPOTS; i++) {
        if (spots[i].volume != 1)
            continue;
        fill_spot(i);
        uint64_t grain = spots[i].offset / GROUP_GRAIN_BYTES;
        words[grain / 64] |= 1ull << grain % 64;
        OK(block_pwrite(group_volume_block(group, 0), stand->live + i * SPOT_BYTES, SPOT_BYTES, spots[i].offset, 0, &err));
    }
    OK(journal_sync(journal, -1, NULL, &err)); /* the latest is what was written */
    journal_status(journal, &s);
    OK(journal_pin(journal, STAND_PIN, s.latest, false, &err));
    group_free(group);
    OK(journal_close(journal, &err));
    snprintf(backing, sizeof backing, "%s/backing/v1.img", stand->root);
    OK(fill_create(backing, 1, sizes[1], words, &err));
    stand_new_boot();
}

/* ---- the program under test ---- */

int stand_open_journal(struct error *e)
{
    static const struct log told = {STDERR_FILENO, LOG_LEVEL_INFO, "test"};
    static char path[160];
    struct journal_options o = stand->options;
    snprintf(path, sizeof path, "%s/journal", stand->root);
    o.directory = path;
    o.segment_blocks = 64;
    o.segment_records = 24;
    o.fanout = 2;
    o.ring_path = stand->ring;
    o.owner = "stand";
    o.log = getenv("TIDEMARK_LOG") ? &told : NULL;
    stand->options.log = o.log;
    return journal_open(&o, &stand->journal, e);
}

void stand_open_volumes(void)
{
    char path[160];
    OK(group_new(stand->journal, stand->ack, stand->options.log, &stand->group, &err));
    for (int i = 0; i < VOLUMES; i++) {
        char name[8];
        snprintf(name, sizeof name, "v%d", i);
        snprintf(path, sizeof path, "%s/backing/v%d.img", stand->root, i);
        OK((stand->adopt && i == 1 ? group_adopt_volume : group_add_volume)(stand->group, name, sizes[i], path, &err));
    }
    snprintf(path, sizeof path, "%s/source", stand->base);
    if (stand->fill) {
        OK(seal_unlock(path, stand->options.key_file, &err));
        OK(group_set_source(stand->group, path, STAND_PIN, &err));
    }
    group_set_seed_speed(stand->group, stand->slowly ? 1 : 0);
    OK(group_start(stand->group, &err));
}

void stand_open(void)
{
    OK(stand_open_journal(&err));
    stand_open_volumes();
}

bool stand_open_anew(void)
{
    char path[160], kept[PATH_MAX];
    int r = stand_open_journal(&err);
    bool aside = r == -EBADMSG;
    struct error lost = err;
    snprintf(path, sizeof path, "%s/journal", stand->root);
    if (aside) {
        OK(journal_set_aside(path, lost.message, kept, &err));
        r = stand_open_journal(&err);
    }
    OK(r);
    stand_open_volumes();
    return aside;
}

void stand_close(void)
{
    group_free(stand->group);
    OK(journal_close(stand->journal, &err));
}

bool stand_is_protected(void)
{
    struct group_status g;
    struct journal_status s;
    group_status(stand->group, &g);
    journal_status(stand->journal, &s);
    return !g.resyncing && !s.suspended;
}

uint64_t stand_latest(void)
{
    return journal_next_lsn(stand->journal).n - 1;
}

void stand_read(char *data)
{
    for (size_t i = 0; i < SPOTS; i++)
        OK(block_pread(group_volume_block(stand->group, (size_t)spots[i].volume), data + i * SPOT_BYTES, SPOT_BYTES, spots[i].offset, &err));
}

/* ---- changes ---- */

struct change stand_choose_change(void)
{
    struct change c = {.spot = below(SPOTS)};
    c.sector = below(SPOT_BYTES / 512);
    c.length = 1 + below(12);
    if (below(2)) {
        c.sector = c.sector / 8 * 8;
        c.length = 8;
    }
    if (c.sector + c.length > SPOT_BYTES / 512)
        c.length = SPOT_BYTES / 512 - c.sector;
    c.at = c.spot * (SPOT_BYTES / 512) + c.sector;
    c.flags = below(12) == 0 ? BLOCK_FUA : 0;
    c.how = (unsigned)below(10);
    c.name = c.how == 0 ? "discard" : c.how == 1 ? "zero" : c.flags ? "FUA write" : "write";
    for (size_t i = 0; i < c.length * 512; i += 8) {
        uint64_t word = c.how < 2 ? 0 : check_random(&stand->random);
        memcpy(stand->live + c.at * 512 + i, &word, 8);
    }
    return c;
}

void stand_make_change(const struct change *c)
{
    const char *model = stand->live + c->at * 512;
    uint64_t offset = spots[c->spot].offset + c->sector * 512, length = c->length * 512;
    struct block *b = group_volume_block(stand->group, (size_t)spots[c->spot].volume);
    int written = 0;
    if (c->how == 0)
        OK(block_discard(b, length, offset, c->flags, &err));
    else if (c->how == 1)
        OK(block_zero(b, length, offset, c->flags, &err));
    else if (stand->queue && !c->flags && below(2) == 0)
        OK(written = queued_write(b, model, length, offset, 0, &err));
    if (c->how > 1 && !written)
        OK(block_pwrite(b, model, length, offset, c->flags, &err));
}

/* ---- checks ---- */

void stand_check_pin(const char *pin, uint64_t lsn, const char *model)
{
    static char data[SPOT_BYTES] __attribute__((aligned(4096)));
    struct image *image;
    struct group_volume_status volume;
    char path[160];
    snprintf(path, sizeof path, "%s/journal", stand->root);
    OK(image_open(path, pin, &image, &err));
    for (size_t i = 0; i < SPOTS; i++) {
        group_volume_status(stand->group, (size_t)spots[i].volume, &volume);
        OK(image_read(image, volume.id, spots[i].offset / 512, SPOT_BYTES / 512, data, &err));
        for (size_t at = 0; at < SPOT_BYTES; at += 512)
            if (memcmp(data + at, model + i * SPOT_BYTES + at, 512) != 0)
                stand_broken("image(%llu) is wrong at byte %zu of spot %zu", (unsigned long long)lsn, at, i);
    }
    image_free(image);
}

int stand_try_image(uint64_t lsn, const char *model, struct error *e)
{
    struct journal_point found;
    int r = journal_resolve(stand->journal, &(struct point){.kind = POINT_LSN, .lsn = {lsn}}, &found, e);
    if (r == 0)
        r = journal_pin(stand->journal, "engine-look", (struct lsn){lsn}, true, e);
    if (r == -ERANGE)
        return r;
    if (r < 0)
        stand_broken("LSN %llu: %s", (unsigned long long)lsn, e->message);
    stand_check_pin("engine-look", lsn, model);
    OK(journal_unpin(stand->journal, "engine-look", &err));
    return 0;
}

void stand_check_image(uint64_t lsn, const char *model)
{
    OK(stand_try_image(lsn, model, &err));
}

static void tell_damage(void *context, const struct verify_damage *damage)
{
    (void)context;
    stand_broken("verify: %s: %s", damage->file, damage->what);
}

static void tell_progress(void *context, uint64_t done, uint64_t total)
{
    (void)context, (void)done, (void)total;
}

void stand_verify(void)
{
    char path[160];
    struct verify_report report = {tell_damage, tell_progress, NULL};
    struct verify_summary summary;
    snprintf(path, sizeof path, "%s/journal", stand->root);
    OK(journal_seal(stand->journal, &err));
    OK(journal_verify(path, &report, &summary, &err));
}
