/* SPDX-License-Identifier: Apache-2.0 */
#include "signal/signal.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "signal/classes.h"
#include "signal/signal_format.h"

/* A verdict on how evenly bytes are spread. Compressed content exceeds the 255 of ciphertext by samples times 0.001 (gzip), 0.002 to
 * 0.004 (zstd), 0.02 (bzip2, JPEG): with the samples of 256 blocks most shows, with those of 1024 gzip too. Uneven is
 * said at once, even after FULL samples, or after ENOUGH when no more came for a while. */
#define UNIFORM_ENOUGH_SAMPLES (256u * SIGNAL_SAMPLE_BYTES)
#define UNIFORM_FULL_SAMPLES (1024u * SIGNAL_SAMPLE_BYTES)
#define UNIFORM_WAIT_S 8u
#define UNIFORM_PATIENCE_S 60u /* then too few samples are dropped */
/* 255 + 6 standard deviations; and with very many samples an excess that ciphertext with its headers does not reach. */
#define UNIFORM_CHI_MAX 391.0
#define UNIFORM_EXCESS_MAX 0.0005
#define STATE_LIMIT_BYTES (64u << 20)

/* Bytes of high entropy, added up. A writer that finds it in use leaves its sample out: nobody waits. */
struct uniformity {
    atomic_flag busy;
    uint32_t counts[SIGNAL_ALPHABET];
    uint64_t samples;
};

struct signal {
    struct signal_classes classes;
    struct uniformity uniformity;
    _Atomic uint64_t written, high, overwritten, freed;
    struct signal_counts before; /* as of the last tick */
    uint64_t tick_ns, tick_lsn;  /* of the last tick; 0: none yet */
    uint64_t waiting_bytes, waiting_s; /* of high entropy, no verdict yet */
    pthread_mutex_t mutex;       /* of the detector and its seconds */
    uint64_t seconds;
    struct signal_detector detector;
};

int signal_new(uint64_t volume_bytes, size_t table_bytes, struct signal **ret, struct error *err)
{
    struct signal *s = calloc(1, sizeof *s);
    if (!s)
        return error_errno(err, -ENOMEM, "cannot watch a volume");
    int r = signal_classes_init(&s->classes, volume_bytes, table_bytes, err);
    if (r < 0) {
        free(s);
        return r;
    }
    pthread_mutex_init(&s->mutex, NULL);
    *ret = s;
    return 0;
}

void signal_free(struct signal *s)
{
    if (!s)
        return;
    signal_classes_release(&s->classes);
    pthread_mutex_destroy(&s->mutex);
    free(s);
}

/* ---- the way of a write ---- */

static void add_uniformity(struct uniformity *u, const struct signal_estimate *e)
{
    if (atomic_flag_test_and_set_explicit(&u->busy, memory_order_acquire))
        return;
    for (size_t i = 0; i < SIGNAL_ALPHABET; i++)
        u->counts[i] += e->counts[i];
    u->samples += e->samples;
    atomic_flag_clear_explicit(&u->busy, memory_order_release);
}

static void add(_Atomic uint64_t *counter, uint64_t bytes)
{
    if (bytes)
        atomic_fetch_add_explicit(counter, bytes, memory_order_relaxed);
}

static void note_data(struct signal *s, uint64_t offset_bytes, const char *data, size_t bytes)
{
    struct signal_estimate e;
    uint64_t high = 0, overwritten = 0, written = bytes;
    while (bytes) {
        size_t room = SIGNAL_BLOCK_BYTES - offset_bytes % SIGNAL_BLOCK_BYTES, part = bytes < room ? bytes : room;
        signal_estimate(data, part, &e);
        enum signal_class old = signal_classes_set(&s->classes, offset_bytes / SIGNAL_BLOCK_BYTES, e.class);
        if (e.class == SIGNAL_CLASS_HIGH) {
            high += part;
            overwritten += signal_class_is_low(old) ? part : 0;
            add_uniformity(&s->uniformity, &e);
        }
        offset_bytes += part;
        data += part;
        bytes -= part;
    }
    add(&s->written, written);
    add(&s->high, high);
    add(&s->overwritten, overwritten);
}

void signal_note(struct signal *s, uint64_t offset_bytes, const void *data, size_t bytes)
{
    if (!s)
        return;
    if (data) {
        note_data(s, offset_bytes, data, bytes);
        return;
    }
    uint64_t first = (offset_bytes + SIGNAL_BLOCK_BYTES - 1) / SIGNAL_BLOCK_BYTES, end = (offset_bytes + bytes) / SIGNAL_BLOCK_BYTES;
    if (end > first)
        add(&s->freed, signal_classes_free_range(&s->classes, first, end - first) * SIGNAL_BLOCK_BYTES);
}

void signal_told(struct signal *s, uint64_t block, uint64_t count, bool is_free)
{
    add(&s->freed, signal_classes_told(&s->classes, block, count, is_free) * SIGNAL_BLOCK_BYTES);
}

/* ---- what a rewind or a first start leaves to be found out ---- */

void signal_forget(struct signal *s)
{
    signal_classes_clear(&s->classes);
    MUTEX_GUARD(guard, &s->mutex);
    s->detector = (struct signal_detector){.baseline = s->detector.baseline};
}

void signal_seen(struct signal *s, uint64_t offset_bytes, const void *data, size_t bytes)
{
    struct signal_estimate e;
    for (size_t at = 0; at + SIGNAL_BLOCK_BYTES <= bytes; at += SIGNAL_BLOCK_BYTES) {
        uint64_t block = (offset_bytes + at) / SIGNAL_BLOCK_BYTES;
        if (signal_classes_get(&s->classes, block) != SIGNAL_CLASS_FREE)
            continue;
        signal_estimate((const char *)data + at, SIGNAL_BLOCK_BYTES, &e);
        if (e.class != SIGNAL_CLASS_FREE)
            (void)signal_classes_set(&s->classes, block, e.class);
    }
}

/* ---- each second ---- */

static struct signal_counts counts_now(struct signal *s)
{
    return (struct signal_counts){.written = atomic_load(&s->written),
                                  .high = atomic_load(&s->high),
                                  .overwritten = atomic_load(&s->overwritten),
                                  .freed = atomic_load(&s->freed)};
}

/* How many of the bytes of high entropy that waited for a verdict are spread as evenly as ciphertext; the oldest of them were
 * written *ret_seconds ago. */
static uint64_t judge_uniformity(struct signal *s, uint64_t high, uint64_t *ret_seconds)
{
    struct uniformity *u = &s->uniformity;
    uint64_t even = 0;
    s->waiting_bytes += high;
    s->waiting_s = s->waiting_bytes ? s->waiting_s + 1 : 0;
    while (atomic_flag_test_and_set_explicit(&u->busy, memory_order_acquire))
        ; /* for as long as it takes to add 256 numbers */
    double chi = signal_chi_square(u->counts, u->samples);
    bool enough = u->samples >= UNIFORM_ENOUGH_SAMPLES;
    bool uneven = enough && chi > UNIFORM_CHI_MAX && (chi - 255) / (double)u->samples > UNIFORM_EXCESS_MAX;
    bool is_even = enough && !uneven && (u->samples >= UNIFORM_FULL_SAMPLES || s->waiting_s > UNIFORM_WAIT_S);
    if (uneven || is_even || s->waiting_s > UNIFORM_PATIENCE_S) {
        even = is_even ? s->waiting_bytes : 0;
        *ret_seconds = is_even ? s->waiting_s - 1 : 0;
        s->waiting_bytes = s->waiting_s = 0;
        memset(u->counts, 0, sizeof u->counts);
        u->samples = 0;
    }
    atomic_flag_clear_explicit(&u->busy, memory_order_release);
    return even;
}

enum signal_change signal_tick(struct signal *s, uint64_t realtime_ns, uint64_t lsn, struct signal_stretch *ret)
{
    struct signal_counts now = counts_now(s), old = s->before;
    struct signal_second second = {.realtime_ns = s->tick_ns,
                                   .lsn = s->tick_lsn,
                                   .written = now.written - old.written,
                                   .high = now.high - old.high,
                                   .overwritten = now.overwritten - old.overwritten,
                                   .freed = now.freed - old.freed};
    bool first = s->tick_ns == 0;
    s->before = now;
    s->tick_ns = realtime_ns;
    s->tick_lsn = lsn;
    second.uniform = judge_uniformity(s, second.high, &second.uniform_s);
    if (first) { /* nobody knows when this second began */
        second.realtime_ns = realtime_ns;
        second.lsn = lsn;
    }
    MUTEX_GUARD(guard, &s->mutex);
    struct signal_detector *d = &s->detector;
    s->seconds++;
    enum signal_change change = signal_detector_add(d, &second, lsn, realtime_ns, signal_classes_low_bytes(&s->classes));
    if (change != SIGNAL_SAME)
        *ret = (struct signal_stretch){.begin_lsn = d->begin_lsn,
                                       .end_lsn = change == SIGNAL_ENDED ? d->end_lsn : 0,
                                       .begin_ns = d->begin_ns,
                                       .end_ns = d->end_ns,
                                       .bytes = d->stretch_bytes};
    return change;
}

void signal_status(struct signal *s, struct signal_status *ret)
{
    MUTEX_GUARD(guard, &s->mutex);
    *ret = (struct signal_status){.counts = counts_now(s),
                                  .low_bytes = signal_classes_low_bytes(&s->classes),
                                  .suspicious = s->detector.suspicious,
                                  .seconds = s->seconds,
                                  .score = s->detector.score,
                                  .limit = s->detector.limit,
                                  .baseline = s->detector.baseline};
}

/* ---- the file ---- */

int signal_save(struct signal *s, const char *path, uint64_t known_bytes, struct error *err)
{
    size_t table = s->classes.size_bytes;
    uint64_t known = known_bytes / SIGNAL_BLOCK_BYTES;
    struct signal_state_head head = {.magic = le32_of(SIGNAL_STATE_MAGIC),
                                     .version = le32_of(SIGNAL_FORMAT_VERSION),
                                     .blocks = le64_of(known < s->classes.blocks ? known : s->classes.blocks),
                                     .shift = le32_of(s->classes.shift),
                                     .table_bytes = le32_of((uint32_t)table)};
    _cleanup_free_ char *file = malloc(sizeof head + table);
    if (!file)
        return error_errno(err, -ENOMEM, "cannot save what is known of a volume's content");
    for (size_t i = 0; i < table; i++)
        file[sizeof head + i] = (char)atomic_load_explicit(&s->classes.bytes[i], memory_order_relaxed);
    pthread_mutex_lock(&s->mutex);
    head.baseline_windows = le64_of(s->detector.baseline.windows);
    head.baseline_mean = le64_of((uint64_t)s->detector.baseline.mean);
    head.baseline_deviation = le64_of((uint64_t)s->detector.baseline.deviation);
    pthread_mutex_unlock(&s->mutex);
    head.table_crc = le32_of(crc32c(0, file + sizeof head, table));
    head.head_crc = le32_of(crc32c(0, &head, offsetof(struct signal_state_head, head_crc)));
    memcpy(file, &head, sizeof head);
    return io_replace_file(path, file, sizeof head + table, 0600, err);
}

static const char *why_not(const struct signal *s, const struct signal_state_head *head, const char *file, size_t length)
{
    uint64_t table = le32_get(head->table_bytes);
    if (le32_get(head->magic) != SIGNAL_STATE_MAGIC || le32_get(head->version) != SIGNAL_FORMAT_VERSION)
        return "of another kind or version";
    if (le32_get(head->head_crc) != crc32c(0, head, offsetof(struct signal_state_head, head_crc)))
        return "wrong checksum";
    if (length != sizeof *head + table || le64_get(head->blocks) > s->classes.blocks)
        return "of another size";
    if (le32_get(head->table_crc) != crc32c(0, file + sizeof *head, table))
        return "wrong checksum of the table";
    return NULL;
}

int signal_load(struct signal *s, const char *path, uint64_t *ret_known_bytes, struct error *err)
{
    _cleanup_free_ char *file = NULL;
    size_t length;
    struct signal_state_head head;
    int r = io_read_file(path, STATE_LIMIT_BYTES, &file, &length, err);
    if (r == -ENOENT) {
        *err = ERROR_INIT;
        *ret_known_bytes = 0;
        return 0;
    }
    if (r < 0)
        return r;
    if (length >= sizeof head)
        memcpy(&head, file, sizeof head);
    const char *why = length < sizeof head ? "too short" : why_not(s, &head, file, length);
    if (why)
        return error_set(err, -EBADMSG, "%s cannot be used (%s): what the volume's blocks hold is found out again", path, why);
    *ret_known_bytes = 0;
    if (le32_get(head.shift) == s->classes.shift && le32_get(head.table_bytes) <= s->classes.size_bytes) {
        for (size_t i = 0; i < le32_get(head.table_bytes); i++)
            atomic_store_explicit(&s->classes.bytes[i], (uint8_t)file[sizeof head + i], memory_order_relaxed);
        signal_classes_recount(&s->classes);
        *ret_known_bytes = le64_get(head.blocks) * SIGNAL_BLOCK_BYTES;
    }
    s->detector.baseline = (struct signal_baseline){.windows = le64_get(head.baseline_windows),
                                                    .mean = (double)le64_get(head.baseline_mean),
                                                    .deviation = (double)le64_get(head.baseline_deviation)};
    return 0;
}
