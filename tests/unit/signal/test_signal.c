/* SPDX-License-Identifier: Apache-2.0 */
/* A volume's signal from its writes on: what counts as lost and as new, memory that stays bounded (J7), and state that survives a
 * restart and is never believed when it is damaged (J6). */
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

#include "base/thread.h"
#include "content.h"
#include "signal/classes.h"
#include "signal/signal.h"

#define MIB (1ull << 20)
#define VOLUME (256 * MIB)

static struct error err;
static uint64_t state, now_ns, lsn;

static void (*const kinds[])(unsigned char *, size_t, uint64_t *) = {content_text, content_cipher, content_compressed};
enum kind { TEXT, CIPHER, COMPRESSED };

static void put(struct signal *s, enum kind kind, uint64_t offset, uint64_t bytes)
{
    static _Thread_local unsigned char data[64 << 10];
    uint64_t seed = offset * 31 + kind; /* no state: several threads put */
    for (uint64_t at = 0; at < bytes; at += sizeof data) {
        uint64_t part = bytes - at < sizeof data ? bytes - at : sizeof data;
        kinds[kind](data, part, &seed);
        signal_note(s, offset + at, data, part);
    }
}

static enum signal_change tick(struct signal *s, struct signal_stretch *ret)
{
    now_ns += 1000000000;
    lsn += 100;
    return signal_tick(s, now_ns, lsn, ret);
}

/* Ticks until something changes; after how many, 0 if nothing did. */
static unsigned ticks(struct signal *s, unsigned count, struct signal_stretch *ret)
{
    for (unsigned i = 1; i <= count; i++)
        if (tick(s, ret) != SIGNAL_SAME)
            return i;
    return 0;
}

static struct signal *make(void)
{
    struct signal *s;
    state = 1, now_ns = 1000000000, lsn = 1;
    check_ok(signal_new(VOLUME, SIGNAL_TABLES_BYTES, &s, &err));
    return s;
}

static void in_place(void **unused)
{
    (void)unused;
    struct signal *s = make();
    struct signal_stretch stretch;
    struct signal_status status;
    put(s, TEXT, 0, 64 * MIB);
    assert_int_equal(ticks(s, 300, &stretch), 0);
    signal_status(s, &status);
    assert_int_equal(status.low_bytes, 64 * MIB);
    uint64_t before = lsn;
    unsigned after = 0;
    for (unsigned i = 0; i < 30 && !after; i++) {
        put(s, CIPHER, i * MIB, MIB);
        after = tick(s, &stretch) == SIGNAL_BEGAN ? i + 1 : 0;
    }
    assert_true(after && after < 10);
    assert_int_equal(stretch.begin_lsn, before);
    assert_int_equal(stretch.end_lsn, 0);
    signal_status(s, &status);
    assert_true(status.suspicious && status.counts.overwritten == after * MIB && status.low_bytes == (64 - after) * MIB);
    assert_true(ticks(s, 200, &stretch) > SIGNAL_QUIET_S - 30);
    assert_true(stretch.end_lsn > stretch.begin_lsn);
    signal_free(s);
}

/* New files beside the old ones, which are discarded. Compressed content in their place says nothing. */
static void beside(void **unused)
{
    (void)unused;
    for (int kind = CIPHER; kind <= COMPRESSED; kind++) {
        struct signal *s = make();
        struct signal_stretch stretch;
        put(s, TEXT, 0, 32 * MIB);
        ticks(s, 200, &stretch);
        for (unsigned i = 0; i < 20; i++) {
            put(s, kind, (64 + i) * MIB, MIB);
            signal_note(s, i * MIB, NULL, MIB);
        }
        assert_int_equal(ticks(s, 60, &stretch) > 0, kind == CIPHER);
        signal_free(s);
    }
}

/* The same without discards: the bitmaps tell, but only of blocks that they had called used before. */
static void told(void **unused)
{
    (void)unused;
    struct signal *s = make();
    struct signal_stretch stretch;
    struct signal_status status;
    put(s, TEXT, 0, 32 * MIB);
    signal_told(s, 0, VOLUME / 4096, true); /* written back before the files were made: says nothing */
    signal_status(s, &status);
    assert_int_equal(status.counts.freed, 0);
    signal_told(s, 0, 32 * MIB / 4096, false);
    ticks(s, 200, &stretch);
    put(s, CIPHER, 64 * MIB, 20 * MIB);
    assert_int_equal(ticks(s, 30, &stretch), 0);
    signal_told(s, 0, 20 * MIB / 4096, true);
    assert_int_equal(ticks(s, 60, &stretch), 1);
    signal_status(s, &status);
    assert_true(status.counts.freed == 20 * MIB && status.low_bytes == 12 * MIB);
    signal_forget(s); /* a rewind */
    signal_status(s, &status);
    assert_true(!status.suspicious && status.low_bytes == 0);
    unsigned char block[4096];
    content_text(block, sizeof block, &state);
    signal_seen(s, 0, block, sizeof block);
    put(s, CIPHER, 4096, 4096);
    signal_seen(s, 4096, block, sizeof block); /* was written meanwhile */
    signal_status(s, &status);
    assert_int_equal(status.low_bytes, 4096);
    signal_free(s);
}

/* Slow, as gpg is beside other work: 4 MiB a minute to new files, which the kernel keeps in memory for 30 s; the old ones are removed,
 * which ext4's log tells 5 s later, without a discard. Noticed within a minute of the first file, from before the first ciphertext
 * on. */
static void slow_without_discard(void **unused)
{
    (void)unused;
    const uint64_t kib_s = 72, content = 40 * MIB;
    struct signal *s = make();
    struct signal_stretch stretch;
    uint64_t told = 0, written = 0, before = 0;
    unsigned after = 0;
    put(s, TEXT, 0, content);
    signal_told(s, 0, content / 4096, false);
    assert_int_equal(ticks(s, 200, &stretch), 0);
    for (unsigned i = 1; i <= 60 && !after; i++) {
        if (i % 5 == 0 && i >= 5) {
            uint64_t removed = (i - 5) * kib_s * 1024 / 4096 * 4096;
            signal_told(s, told / 4096, (removed - told) / 4096, true);
            told = removed;
        }
        if (i % 5 == 0 && i >= 30) {
            uint64_t due = (i - 25) * kib_s * 1024 / 4096 * 4096;
            before = before ? before : lsn;
            put(s, CIPHER, 64 * MIB + written, due - written);
            written = due;
        }
        after = tick(s, &stretch) == SIGNAL_BEGAN ? i : 0;
    }
    assert_in_range(after, 31, 60);
    assert_true(stretch.begin_lsn <= before);
    signal_free(s);
}

/* A table with a tenth of a per cent of the memory: coarse, but a file written over in order still counts once. */
static void coarse(void **unused)
{
    (void)unused;
    struct signal *s;
    struct signal_status status;
    state = 5;
    check_ok(signal_new(64ull << 30, SIGNAL_CLASSES_MIN_BYTES, &s, &err)); /* grains of 4 MiB */
    put(s, TEXT, 0, 64 * MIB);
    signal_status(s, &status);
    assert_int_equal(status.low_bytes, 64 * MIB);
    put(s, CIPHER, 0, 64 * MIB);
    put(s, CIPHER, 0, 64 * MIB);
    signal_status(s, &status);
    assert_true(status.counts.overwritten == 64 * MIB && status.low_bytes == 0);
    signal_note(s, (64ull << 30) - 4096, NULL, 4096); /* its last block */
    put(s, TEXT, (64ull << 30) - 4096, 4096);
    signal_free(s);
}

static void unaligned(void **unused)
{
    (void)unused;
    struct signal *s = make();
    uint64_t random = 3;
    unsigned char data[32768];
    signal_note(NULL, 0, data, 512);
    for (int i = 0; i < 20000; i++) {
        uint64_t offset = check_random(&random) % (VOLUME / 512) * 512, bytes = 512 * (1 + check_random(&random) % 64);
        if (offset + bytes > VOLUME)
            bytes = VOLUME - offset;
        signal_note(s, offset, i % 5 ? data : NULL, bytes);
    }
    signal_free(s);
}

static void saved(void **prestate)
{
    const char *path = *prestate;
    struct signal *s = make(), *other;
    struct signal_status a, b;
    struct signal_stretch stretch;
    uint64_t known = 1;
    check_ok(signal_load(s, path, &known, &err)); /* none */
    assert_int_equal(known, 0);
    put(s, TEXT, 0, 8 * MIB);
    put(s, CIPHER, 16 * MIB, MIB);
    ticks(s, 200, &stretch);
    check_ok(signal_save(s, path, 12 * MIB, &err)); /* while it is found out */
    check_ok(signal_new(VOLUME, SIGNAL_TABLES_BYTES, &other, &err));
    check_ok(signal_load(other, path, &known, &err));
    assert_int_equal(known, 12 * MIB);
    signal_free(other);
    check_ok(signal_save(s, path, UINT64_MAX, &err));
    signal_status(s, &a);
    signal_free(s);
    s = make();
    check_ok(signal_load(s, path, &known, &err));
    signal_status(s, &b);
    assert_true(known == VOLUME && a.low_bytes == b.low_bytes && a.baseline.windows == b.baseline.windows && a.baseline.windows > 0);
    check_ok(signal_new(VOLUME * 2, SIGNAL_TABLES_BYTES, &other, &err)); /* it has grown */
    check_ok(signal_load(other, path, &known, &err));
    signal_status(other, &b);
    assert_true(known == VOLUME && a.low_bytes == b.low_bytes && a.baseline.windows == b.baseline.windows);
    signal_free(other);
    check_ok(signal_new(VOLUME, SIGNAL_CLASSES_MIN_BYTES, &other, &err)); /* with coarser grains */
    check_ok(signal_load(other, path, &known, &err));
    signal_status(other, &b);
    assert_true(known == 0 && b.low_bytes == 0 && a.baseline.windows == b.baseline.windows);
    signal_free(other);
    check_ok(signal_new(VOLUME / 2, SIGNAL_TABLES_BYTES, &other, &err));
    assert_int_equal(signal_load(other, path, &known, &err), -EBADMSG);
    signal_free(other);
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    for (off_t at = 0; at < st.st_size; at += at < 64 ? 1 : 397) {
        unsigned char byte;
        int fd = open(path, O_RDWR);
        assert_int_equal(pread(fd, &byte, 1, at), 1);
        byte ^= 4;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        other = make();
        assert_int_equal(signal_load(other, path, &known, &err), -EBADMSG);
        signal_status(other, &b);
        assert_int_equal(b.low_bytes, 0);
        signal_free(other);
        byte ^= 4;
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        close(fd);
    }
    signal_free(s);
}

static void *writer(void *context)
{
    for (uint64_t i = 0; i < 64; i++)
        put(context, i % 3, i * MIB + (i % 7) * 4096, MIB / 2);
    return NULL;
}

static void threads(void **unused)
{
    (void)unused;
    struct signal *s = make();
    struct signal_stretch stretch;
    struct signal_status status;
    pthread_t all[4];
    for (int i = 0; i < 4; i++)
        check_ok(thread_start(&all[i], "writer", writer, s, &err));
    for (int i = 0; i < 50; i++)
        tick(s, &stretch);
    for (int i = 0; i < 4; i++)
        pthread_join(all[i], NULL);
    signal_status(s, &status);
    assert_int_equal(status.counts.written, 4 * 32 * MIB);
    signal_free(s);
}

int main(void)
{
    char *directory = check_make_directory(), path[4096];
    snprintf(path, sizeof path, "%s/volume", directory);
    const struct CMUnitTest tests[] = {cmocka_unit_test(in_place),  cmocka_unit_test(beside),    cmocka_unit_test(told), cmocka_unit_test(slow_without_discard),
                                       cmocka_unit_test(coarse),    cmocka_unit_test(unaligned), cmocka_unit_test_prestate(saved, path),
                                       cmocka_unit_test(threads)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    check_remove_directory(directory);
    return failed;
}
