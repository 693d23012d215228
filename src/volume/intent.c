/* SPDX-License-Identifier: Apache-2.0 */
/* Four maps of one bit a region:
 *
 *   durable  a write may go on: set once the file has the bit. Read without a lock.
 *   hot      used in this round. Set before `durable` is read, while clearing clears `durable` and then reads
 * `hot`: one of the two sees the other. wanted   what the file is to have, a superset of `durable`. Under the
 * mutex. recent   `hot` of the rounds before.
 *
 * Whoever finds no write of the file under way writes it for all that were marked until then (as the
 * journal's group commit); bits are cleared only while none is under way. */
#include "volume/intent.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "base/crc32c.h"
#include "base/io.h"

#define REGION_SECTORS (INTENT_REGION_BYTES / 512u)
#define PAGE_WORDS (INTENT_PAGE_REGIONS / 64)
#define SECTOR_WORDS (INTENT_SECTOR_REGIONS / 64)
#define BURST_NS (100 * NS_PER_MS)
#define AHEAD_MAX 16u

struct intent {
    struct intent_options options;
    char path[PATH_MAX];
    int fd;
    uint64_t regions, pages;
    _Atomic uint64_t *durable, *hot;

    pthread_mutex_t mutex; /* guards all below; held over no I/O but that of saving and clearing */
    pthread_cond_t written;
    uint64_t *wanted, *recent[INTENT_IDLE_ROUNDS - 1], *candidates, *encoded;
    bool *dirty, *writes; /* a page: differs from the file; is being written */
    bool writing, lost;
    uint64_t asked, finished;
    uint64_t missed_ns, ahead; /* the last first touch, and how many regions are marked with it */
    struct lsn covered;
    char *page;
};

/* ---- the maps ---- */

static uint64_t word_count(const struct intent *in)
{
    return in->pages * PAGE_WORDS;
}

static uint64_t last_region(const struct intent *in, uint64_t lba, uint64_t length)
{
    uint64_t last = (lba + length - 1) / REGION_SECTORS;
    return last < in->regions ? last : in->regions - 1;
}

bool intent_is_marked(struct intent *in, uint64_t lba, uint64_t length)
{
    bool marked = true;
    for (uint64_t region = lba / REGION_SECTORS, last = last_region(in, lba, length); region <= last;
         region++) {
        uint64_t bit = 1ull << region % 64;
        if (!(atomic_load_explicit(&in->hot[region / 64], memory_order_relaxed) & bit))
            atomic_fetch_or(&in->hot[region / 64], bit);
        marked &= (atomic_load(&in->durable[region / 64]) & bit) != 0;
    }
    return marked;
}

bool intent_covers(struct intent *in, uint64_t offset_bytes, uint64_t length_bytes)
{
    MUTEX_GUARD(guard, &in->mutex);
    uint64_t last = last_region(in, offset_bytes / 512, (length_bytes + 511) / 512);
    for (uint64_t region = offset_bytes / INTENT_REGION_BYTES; region <= last; region++)
        if (in->wanted[region / 64] >> region % 64 & 1)
            return true;
    return false;
}

uint64_t intent_regions(struct intent *in, uint64_t region)
{
    MUTEX_GUARD(guard, &in->mutex);
    return region < in->regions ? in->wanted[region / 64] : 0;
}

static uint64_t count_marked(struct intent *in)
{
    uint64_t count = 0;
    MUTEX_GUARD(guard, &in->mutex);
    for (uint64_t w = 0; w < word_count(in); w++)
        count += (unsigned)__builtin_popcountll(in->wanted[w]);
    return count;
}

bool intent_any(struct intent *in)
{
    return count_marked(in) > 0;
}

uint64_t intent_marked_bytes(struct intent *in)
{
    return count_marked(in) * INTENT_REGION_BYTES;
}

/* With the mutex. */
static void want(struct intent *in, uint64_t region)
{
    in->wanted[region / 64] |= 1ull << region % 64;
    in->dirty[region / INTENT_PAGE_REGIONS] = true;
}

void intent_mark_all(struct intent *in)
{
    MUTEX_GUARD(guard, &in->mutex);
    for (uint64_t region = 0; region < in->regions; region++)
        want(in, region);
}

/* ---- the file ---- */

/* The page as it is to be in the file. */
static void encode_page(const struct intent *in, uint64_t page, char *to)
{
    memset(to, 0, INTENT_PAGE_BYTES);
    for (uint32_t s = 0; s < INTENT_PAGE_SECTORS; s++) {
        struct intent_sector *sector = (struct intent_sector *)(to + s * INTENT_SECTOR_BYTES);
        sector->index = le32_of((uint32_t)(page * INTENT_PAGE_SECTORS + s));
        sector->covered_lsn = le64_of(in->covered.n);
        for (uint32_t w = 0; w < SECTOR_WORDS; w++) {
            struct le64 word = le64_of(in->wanted[page * PAGE_WORDS + s * SECTOR_WORDS + w]);
            memcpy(sector->bits + w * 8, &word, sizeof word);
        }
        sector->crc = le32_of(crc32c(0, sector, sizeof *sector));
    }
}

static void encode_header(const struct intent *in, char *to)
{
    struct intent_header *h = (struct intent_header *)to;
    *h = (struct intent_header){.magic = le64_of(INTENT_MAGIC),
                                .version = le32_of(INTENT_VERSION),
                                .volume = le32_of(in->options.volume),
                                .region_bytes = le32_of(INTENT_REGION_BYTES)};
    memcpy(h->journal_id, in->options.journal_id.bytes, 16);
    h->crc = le32_of(crc32c(0, to, INTENT_SECTOR_BYTES));
}

static bool header_is_right(const struct intent *in, const char *data, size_t length)
{
    char expected[INTENT_SECTOR_BYTES] = {0};
    encode_header(in, expected);
    return length >= sizeof expected && memcmp(data, expected, sizeof expected) == 0;
}

/* W3: a sector that is missing or damaged is marked whole. Whether all were right. */
static bool decode(struct intent *in, const char *data, size_t length)
{
    bool right = length == (in->pages + 1) * INTENT_PAGE_BYTES;
    for (uint64_t i = 0; i < in->pages * INTENT_PAGE_SECTORS; i++) {
        struct intent_sector sector;
        size_t at = INTENT_PAGE_BYTES + i * INTENT_SECTOR_BYTES;
        bool intact = false;
        if (at + sizeof sector <= length) {
            memcpy(&sector, data + at, sizeof sector);
            uint32_t crc = le32_get(sector.crc);
            sector.crc = le32_of(0);
            intact = crc32c(0, &sector, sizeof sector) == crc && le32_get(sector.index) == i;
        }
        right &= intact;
        if (intact && le64_get(sector.covered_lsn) > in->covered.n)
            in->covered.n = le64_get(sector.covered_lsn);
        for (uint32_t w = 0; w < SECTOR_WORDS; w++) {
            struct le64 word;
            memcpy(&word, sector.bits + w * 8, sizeof word);
            in->wanted[i * SECTOR_WORDS + w] = intact ? le64_get(word) : UINT64_MAX;
        }
    }
    return right;
}

/* Bits of regions that the volume does not have. */
static void cut_behind_end(struct intent *in)
{
    for (uint64_t w = in->regions / 64; w < word_count(in); w++)
        in->wanted[w] &= w == in->regions / 64 ? (1ull << in->regions % 64) - 1 : 0;
}

static int open_descriptor(struct intent *in, struct error *err)
{
    int fd = open(in->path, O_RDWR | O_CLOEXEC | O_DIRECT);
    if (fd < 0 && errno == EINVAL) /* a file system without direct I/O (tmpfs) */
        fd = open(in->path, O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return error_errno(err, -errno, "cannot open %s", in->path);
    if (in->fd >= 0)
        close(in->fd);
    in->fd = fd;
    return 0;
}

static int fault(const struct intent *in)
{
    return in->options.fault ? in->options.fault(in->options.context) : 0;
}

/* With the mutex. */
static void publish_all(struct intent *in)
{
    for (uint64_t w = 0; w < word_count(in); w++)
        atomic_store(&in->durable[w], in->wanted[w]);
}

int intent_save(struct intent *in, struct error *err)
{
    MUTEX_GUARD(guard, &in->mutex);
    while (in->writing)
        pthread_cond_wait(&in->written, &in->mutex);
    size_t length = (in->pages + 1) * INTENT_PAGE_BYTES;
    _cleanup_free_ char *data = calloc(1, length);
    if (!data)
        return error_errno(err, -ENOMEM, "cannot write %s", in->path);
    encode_header(in, data);
    for (uint64_t page = 0; page < in->pages; page++) {
        encode_page(in, page, data + (page + 1) * INTENT_PAGE_BYTES);
        in->dirty[page] = false;
    }
    int r = fault(in);
    if (r < 0)
        return error_errno(err, r, "cannot write %s", in->path);
    r = io_replace_file(in->path, data, length, 0600, err);
    if (r == 0)
        r = open_descriptor(in, err);
    if (r < 0)
        return r;
    in->lost = false;
    publish_all(in);
    return 0;
}

/* Without the mutex, but alone: the pages of `writes`. */
static int write_pages(struct intent *in)
{
    int r = fault(in);
    for (uint64_t page = 0; page < in->pages && r == 0; page++) {
        if (!in->writes[page])
            continue;
        pthread_mutex_lock(
            &in->mutex); /* what is marked from here on finds the page dirty, and waits for the next write */
        encode_page(in, page, in->page);
        memcpy(in->encoded + page * PAGE_WORDS, in->wanted + page * PAGE_WORDS,
               PAGE_WORDS * sizeof *in->encoded);
        in->dirty[page] = false;
        pthread_mutex_unlock(&in->mutex);
        r = io_pwrite_full(in->fd, in->page, INTENT_PAGE_BYTES, (page + 1) * INTENT_PAGE_BYTES);
    }
    if (r == 0 && fdatasync(in->fd) < 0)
        r = -errno;
    return r;
}

/* With the mutex (dropped meanwhile) and nobody else writing: the file gets what is wanted. */
static void write_dirty(struct intent *in)
{
    uint64_t covers = in->asked;
    char why[160];
    in->writing = true;
    memcpy(in->writes, in->dirty, in->pages * sizeof *in->dirty);
    pthread_mutex_unlock(&in->mutex);
    int r = write_pages(in);
    if (r < 0) {
        snprintf(why, sizeof why, "cannot write %.80s: %s", in->path, error_reason(r));
        in->options.lost(in->options.context, why); /* before anybody goes on */
    }
    pthread_mutex_lock(&in->mutex);
    in->lost |= r < 0;
    for (uint64_t page = 0; page < in->pages; page++) {
        in->dirty[page] |= r < 0 && in->writes[page];
        for (uint64_t w = page * PAGE_WORDS; in->writes[page] && w < (page + 1) * PAGE_WORDS; w++)
            atomic_fetch_or(&in->durable[w], r < 0 ? in->wanted[w] : in->encoded[w]);
    }
    in->finished = covers;
    in->writing = false;
    pthread_cond_broadcast(&in->written);
}

/* Where first touches come fast (a new volume, a long sequential write) neighbours are marked with them: a
 * mark too many costs a comparison, and goes when it stays idle; a mark too few costs a write. */
static uint64_t look_ahead(struct intent *in)
{
    uint64_t now = clock_boottime_ns(clock_system());
    bool burst = in->missed_ns && now - in->missed_ns < BURST_NS;
    in->missed_ns = now;
    return in->ahead = !burst ? 1 : in->ahead < AHEAD_MAX ? in->ahead * 2 : AHEAD_MAX;
}

void intent_mark(struct intent *in, uint64_t lba, uint64_t length)
{
    if (intent_is_marked(in, lba, length))
        return;
    MUTEX_GUARD(guard, &in->mutex);
    uint64_t ahead = look_ahead(in), first = lba / REGION_SECTORS / ahead * ahead;
    uint64_t last = (last_region(in, lba, length) / ahead + 1) * ahead - 1;
    last = last < in->regions ? last : in->regions - 1;
    for (uint64_t region = first; region <= last; region++) {
        want(in, region);
        if (in->lost)
            atomic_fetch_or(&in->durable[region / 64], 1ull << region % 64);
    }
    uint64_t ticket = ++in->asked;
    while (in->finished < ticket && !in->lost) {
        if (in->writing)
            pthread_cond_wait(&in->written, &in->mutex);
        else
            write_dirty(in);
    }
}

/* ---- clearing ---- */

bool intent_collect(struct intent *in)
{
    uint64_t any = 0;
    MUTEX_GUARD(guard, &in->mutex);
    for (uint64_t w = 0; w < word_count(in); w++) {
        uint64_t used = atomic_exchange(&in->hot[w], 0), lately = used;
        for (uint32_t i = INTENT_IDLE_ROUNDS - 1; i-- > 0;) {
            lately |= in->recent[i][w];
            in->recent[i][w] = i ? in->recent[i - 1][w] : used;
        }
        in->candidates[w] = in->wanted[w] & ~lately;
        any |= in->candidates[w];
    }
    return any && !in->lost;
}

void intent_clear(struct intent *in, struct lsn covered)
{
    uint64_t any = 0;
    MUTEX_GUARD(guard, &in->mutex);
    while (in->writing)
        pthread_cond_wait(&in->written, &in->mutex);
    if (in->lost)
        return;
    if (covered.n > in->covered.n)
        in->covered = covered;
    for (uint64_t w = 0; w < word_count(in); w++) {
        uint64_t clear = in->candidates[w];
        if (!clear)
            continue;
        clear &= atomic_fetch_and(&in->durable[w], ~clear);
        uint64_t again =
            clear & atomic_load(&in->hot[w]); /* it was marked when that was looked at: it still is */
        atomic_fetch_or(&in->durable[w], again);
        clear &= ~again;
        in->wanted[w] &= ~clear;
        in->candidates[w] = 0;
        in->dirty[w / PAGE_WORDS] |= clear != 0;
        any |= clear;
    }
    if (any)
        write_dirty(in);
}

void intent_clear_all(struct intent *in, struct lsn covered)
{
    MUTEX_GUARD(guard, &in->mutex);
    if (in->lost)
        return;
    if (covered.n > in->covered.n)
        in->covered = covered;
    bool any = false;
    for (uint64_t w = 0; w < word_count(in); w++) {
        in->dirty[w / PAGE_WORDS] |= in->wanted[w] != 0;
        any |= in->wanted[w] != 0;
        in->wanted[w] = 0;
        atomic_store(&in->durable[w], 0);
    }
    if (any)
        write_dirty(in);
}

struct lsn intent_covered(const struct intent *in)
{
    return in->covered;
}

bool intent_is_lost(struct intent *in)
{
    MUTEX_GUARD(guard, &in->mutex);
    return in->lost;
}

/* ---- opening ---- */

static void release_maps(struct intent *in)
{
    free((void *)in->durable);
    free((void *)in->hot);
    free(in->wanted);
    for (uint32_t i = 0; i < INTENT_IDLE_ROUNDS - 1; i++)
        free(in->recent[i]);
    free(in->candidates);
    free(in->encoded);
    free(in->dirty);
    free(in->writes);
}

static int make_maps(struct intent *in, uint64_t size_bytes, struct error *err)
{
    in->regions = (size_bytes + INTENT_REGION_BYTES - 1) / INTENT_REGION_BYTES;
    in->pages = (in->regions + INTENT_PAGE_REGIONS - 1) / INTENT_PAGE_REGIONS;
    uint64_t words = word_count(in);
    bool made = true;
    made &= (in->durable = calloc(words, sizeof *in->durable)) != NULL;
    made &= (in->hot = calloc(words, sizeof *in->hot)) != NULL;
    made &= (in->wanted = calloc(words, sizeof *in->wanted)) != NULL;
    for (uint32_t i = 0; i < INTENT_IDLE_ROUNDS - 1; i++)
        made &= (in->recent[i] = calloc(words, sizeof *in->recent[i])) != NULL;
    made &= (in->candidates = calloc(words, sizeof *in->candidates)) != NULL;
    made &= (in->encoded = calloc(words, sizeof *in->encoded)) != NULL;
    made &= (in->dirty = calloc(in->pages, sizeof *in->dirty)) != NULL;
    made &= (in->writes = calloc(in->pages, sizeof *in->writes)) != NULL;
    return made ? 0 : error_errno(err, -ENOMEM, "cannot reserve the write-intent bitmap");
}

int intent_resize(struct intent *in, uint64_t size_bytes, struct error *err)
{
    struct intent larger = {0};
    int r = make_maps(&larger, size_bytes, err);
    if (r < 0) {
        release_maps(&larger);
        return r;
    }
    uint64_t words = word_count(in) < word_count(&larger) ? word_count(in) : word_count(&larger);
    pthread_mutex_lock(&in->mutex);
    while (in->writing)
        pthread_cond_wait(&in->written, &in->mutex);
    memcpy(larger.wanted, in->wanted, words * sizeof *in->wanted);
    release_maps(in);
    in->durable = larger.durable;
    in->hot = larger.hot;
    in->wanted = larger.wanted;
    memcpy(in->recent, larger.recent, sizeof in->recent);
    in->candidates = larger.candidates;
    in->encoded = larger.encoded;
    in->dirty = larger.dirty;
    in->writes = larger.writes;
    in->regions = larger.regions;
    in->pages = larger.pages;
    cut_behind_end(in);
    pthread_mutex_unlock(&in->mutex);
    return intent_save(in, err);
}

static int load(struct intent *in, struct error *err)
{
    _cleanup_free_ char *data = NULL;
    size_t length = 0;
    if (access(in->path, F_OK) < 0) {
        if (!in->options.fresh)
            intent_mark_all(in);
        return intent_save(in, err);
    }
    struct error unread = ERROR_INIT;
    bool right =
        io_read_file(in->path, 1u << 30, &data, &length, &unread) == 0 && header_is_right(in, data, length);
    right = decode(in, data, right ? length : 0);
    cut_behind_end(in);
    if (!right)
        return intent_save(in, err);
    publish_all(in);
    return open_descriptor(in, err);
}

int intent_open(const struct intent_options *options, struct intent **ret, struct error *err)
{
    struct intent *in = calloc(1, sizeof *in);
    if (!in)
        return error_errno(err, -ENOMEM, "cannot reserve the write-intent bitmap");
    in->options = *options;
    in->fd = -1;
    pthread_mutex_init(&in->mutex, NULL);
    pthread_cond_init(&in->written, NULL);
    int r = 0;
    if (snprintf(in->path, sizeof in->path, "%s/intent-%u", options->directory, options->volume) >=
        (int)sizeof in->path)
        r = error_errno(err, -ENAMETOOLONG, "cannot keep the write-intent bitmap below %s",
                        options->directory);
    if (r == 0)
        r = make_maps(in, options->size_bytes, err);
    if (r == 0 && !(in->page = io_alloc_pages(INTENT_PAGE_BYTES)))
        r = error_errno(err, -ENOMEM, "cannot reserve the write-intent bitmap");
    if (r == 0)
        r = load(in, err);
    if (r < 0) {
        intent_free(in);
        return r;
    }
    *ret = in;
    return 0;
}

void intent_free(struct intent *in)
{
    if (!in)
        return;
    release_maps(in);
    io_free_pages(in->page, INTENT_PAGE_BYTES);
    if (in->fd >= 0)
        close(in->fd);
    pthread_mutex_destroy(&in->mutex);
    pthread_cond_destroy(&in->written);
    free(in);
}
