/* SPDX-License-Identifier: Apache-2.0 */
/* Makes a journal as if it had so many random 4 KiB writes, for measuring at sizes that no disk here has room
 * for:
 *
 *   journal_synth --directory DIR --writes N [--volumes 4] [--volume-bytes N] [--every 13] [--seed S]
 *
 * Manifest, L0 indexes and runs are whole and made by the journal's own functions. The segments' files have
 * their size but are sparse: all payload is zeroes, which is what the indexes' CRCs say. The frames' headers,
 * which resolving a point reads, are there in every `every`-th segment only (13 has no factor in common with
 * the fan-out, so these segments lie at all places of the runs above them); open_latency --stretch takes its
 * points there. Prints one JSON object. */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "base/units.h"
#include "bench_group.h"
#include "journal/frame.h"
#include "journal/tail.h"

#define WORKERS 2u
#define WRITE_NS 10000ull /* between two writes */
#define FRAME_BLOCKS (1u + FRAME_MAX_RECORDS)
#define SEGMENT_FRAMES ((JOURNAL_SEGMENT_BLOCKS - 1) / FRAME_BLOCKS)
#define SEGMENT_WRITES (SEGMENT_FRAMES * FRAME_MAX_RECORDS)

struct synth {
    const struct bench_group_options *group;
    uint64_t writes, seed;
    uint32_t every;
    char directory[512];
    struct manifest m;
    uint64_t first_lsn, first_frame, first_time_ns, first_boottime_ns;
    uint32_t first_segment, segments;
    uint32_t zero_crc;
};

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* A new journal with its volumes, closed in order. */
static int make_journal(struct synth *s, struct error *err)
{
    struct bench_group b;
    int r = bench_group_open(s->group, &b, err);
    return r < 0 ? r : bench_group_close(&b, err);
}

static void fill_frame(const struct synth *s, uint32_t segment, uint32_t frame, uint64_t *random,
                       uint32_t previous_crc, char *block)
{
    uint64_t blocks = s->group->volume_bytes / 4096,
             done = (uint64_t)segment * SEGMENT_WRITES + (uint64_t)frame * FRAME_MAX_RECORDS;
    struct frame_header *h = (struct frame_header *)block;
    struct frame_record *records = (struct frame_record *)(h + 1);
    memset(block, 0, JOURNAL_BLOCK_BYTES);
    *h = (struct frame_header){
        .magic = le32_of(FRAME_MAGIC),
        .epoch = le32_of(s->m.epoch),
        .record_count = le16_of(FRAME_MAX_RECORDS),
        .number = le64_of(s->first_frame + (uint64_t)segment * SEGMENT_FRAMES + frame),
        .first_lsn = le64_of(s->first_lsn + done),
        .durable_lsn = le64_of(s->first_lsn + done - 1),
        .realtime_ns = le64_of(s->first_time_ns + done * WRITE_NS),
        .boottime_ns = le64_of(s->first_boottime_ns + done * WRITE_NS),
        .previous_crc = le32_of(previous_crc),
        .blocks = le32_of(FRAME_BLOCKS),
    };
    memcpy(h->journal_id, s->m.journal_id.bytes, sizeof h->journal_id);
    for (uint32_t i = 0; i < FRAME_MAX_RECORDS; i++) {
        uint64_t at = bench_random(random) % (blocks * s->group->volume_count);
        records[i] = (struct frame_record){
            .volume = le32_of(1 + (uint32_t)(at / blocks)),
            .op = OP_WRITE,
            .flags = RECORD_LAST,
            .payload_block = le16_of((uint16_t)(1 + i)),
            .lba = le64_of(at % blocks * JOURNAL_BLOCK_SECTORS),
            .length = le32_of(JOURNAL_BLOCK_SECTORS),
            .payload_crc = le32_of(s->zero_crc),
            .delta_us = le32_of((uint32_t)(i * WRITE_NS / 1000)),
            .payload_bytes = le32_of(JOURNAL_BLOCK_BYTES),
        };
    }
    frame_seal(block);
}

/* Writes segment number `i` of those made here and its index; what the manifest says of it goes to *ret. */
static int write_segment(const struct synth *s, uint32_t i, struct tail *t, struct extent *scratch,
                         char *block, struct segment_info *ret, struct error *err)
{
    char path[600], name[JOURNAL_FILE_BYTES];
    uint32_t number = s->first_segment + i, crcs[FRAME_BLOCKS], previous_crc = 0;
    uint64_t random = bench_seed(s->seed, i);
    snprintf(path, sizeof path, "%s/%s", s->directory, journal_segment_file(number, name));
    _cleanup_close_ int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, (off_t)JOURNAL_SEGMENT_BLOCKS * JOURNAL_BLOCK_BYTES) < 0)
        return error_errno(err, -errno, "cannot make %s", path);
    tail_reset(t, number, s->m.epoch, &s->m.boot);
    for (uint32_t b = 0; b < FRAME_BLOCKS; b++)
        crcs[b] = s->zero_crc;
    for (uint32_t frame = 0; frame < SEGMENT_FRAMES; frame++) {
        fill_frame(s, i, frame, &random, previous_crc, block);
        previous_crc = le32_get(((struct frame_header *)block)->header_crc);
        crcs[0] = crc32c(0, block, JOURNAL_BLOCK_BYTES);
        int r = i % s->every == 0 ? io_pwrite_full(fd, block, JOURNAL_BLOCK_BYTES,
                                                   (uint64_t)t->info.used_blocks * JOURNAL_BLOCK_BYTES)
                                  : 0;
        if (r < 0)
            return error_errno(err, r, "cannot write %s", path);
        tail_add_frame(t, block, crcs);
    }
    snprintf(path, sizeof path, "%s/%s", s->directory, journal_l0_file_of(number, 0, name));
    int r = tail_write_index(t, path, &s->m.journal_id, INDEX_L0, LSN_MAX, scratch, &t->info.index_kib, err);
    *ret = t->info;
    return r;
}

/* Every WORKERS-th segment from `first` on; what the manifest gets goes to a file, by its place. */
static int work(const struct synth *s, uint32_t first, int table, struct error *err)
{
    struct tail t;
    char *block = io_alloc_pages(JOURNAL_BLOCK_BYTES);
    struct extent *scratch = io_alloc_pages(SEGMENT_WRITES * sizeof *scratch);
    int r = tail_init(&t, JOURNAL_SEGMENT_BLOCKS, JOURNAL_SEGMENT_RECORDS, err);
    if (r == 0 && (!block || !scratch))
        r = error_errno(err, -ENOMEM, "no memory");
    for (uint32_t i = first; i < s->segments && r == 0; i += WORKERS) {
        struct segment_info info;
        r = write_segment(s, i, &t, scratch, block, &info, err);
        if (r == 0)
            r = io_pwrite_full(table, &info, sizeof info, (uint64_t)i * sizeof info);
    }
    return r;
}

/* In processes of their own: the work is independent, and whatever they lock or cache goes with them. */
static int write_segments(const struct synth *s, int table, struct error *err)
{
    pid_t pids[WORKERS];
    int r = 0;
    for (unsigned w = 0; w < WORKERS; w++) {
        pids[w] = fork();
        if (pids[w] == 0) {
            int failed = work(s, w, table, err);
            if (failed < 0)
                fprintf(stderr, "journal_synth: %s\n", err->message);
            _exit(failed < 0);
        }
        if (pids[w] < 0)
            r = error_errno(err, -errno, "cannot start a worker");
    }
    for (unsigned w = 0; w < WORKERS; w++) {
        int status = 0;
        if (pids[w] > 0 && (waitpid(pids[w], &status, 0) < 0 || status != 0) && r == 0)
            r = error_set(err, -EIO, "a worker failed");
    }
    return r;
}

/* The chain of checksums goes over segments, too: the manifest says what each begins with, and here each
 * begins anew. */
static int extend_manifest(struct synth *s, int table, struct error *err)
{
    int r = 0;
    for (uint32_t i = 0; i < s->segments && r == 0; i++) {
        struct segment_info info;
        r = io_pread_full(table, &info, sizeof info, (uint64_t)i * sizeof info);
        if (r == 0)
            r = manifest_add_segment(&s->m, &info, err);
    }
    s->m.next_segment += s->segments;
    s->m.next_frame += (uint64_t)s->segments * SEGMENT_FRAMES;
    s->m.previous_crc = 0;
    s->m.lsn_reserved.n = s->first_lsn + (uint64_t)s->segments * SEGMENT_WRITES;
    return r < 0 ? r : manifest_save(s->directory, &s->m, err);
}

static int make_segments(struct synth *s, struct error *err)
{
    char path[600];
    static const char zero[JOURNAL_BLOCK_BYTES];
    int r = manifest_load(s->directory, &s->m, err);
    if (r < 0)
        return r;
    const struct segment_info *last = s->m.segment_count ? &s->m.segments[s->m.segment_count - 1] : NULL;
    struct timespec boot;
    clock_gettime(CLOCK_BOOTTIME, &boot);
    uint64_t took_ns = (uint64_t)s->segments * SEGMENT_WRITES * WRITE_NS,
             boot_ns = (uint64_t)boot.tv_sec * 1000000000u;
    s->zero_crc = crc32c(0, zero, sizeof zero);
    s->first_lsn = (last ? last->last.n : s->m.base.n) + 1;
    s->first_frame = s->m.next_frame;
    s->first_segment = s->m.next_segment;
    s->first_time_ns = (last ? last->last_realtime_ns : s->m.base_realtime_ns) - took_ns;
    s->first_boottime_ns = boot_ns > took_ns ? boot_ns - took_ns : 0;
    s->m.base_realtime_ns = s->first_time_ns - 1;
    snprintf(path, sizeof path, "%s/segments.table", s->group->directory);
    _cleanup_close_ int table = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (table < 0)
        return error_errno(err, -errno, "cannot make %s", path);
    unlink(path);
    r = write_segments(s, table, err);
    return r < 0 ? r : extend_manifest(s, table, err);
}

/* The journal's own merging. */
static int merge(struct synth *s, struct journal_status *ret, struct error *err)
{
    struct journal *j;
    struct journal_options o = {.directory = s->directory, .owner = "bench"};
    int r = journal_open(&o, &j, err);
    if (r < 0)
        return r;
    r = journal_maintain(j, err);
    journal_status(j, ret);
    struct error closing = ERROR_INIT;
    int closed = journal_close(j, &closing);
    if (r == 0 && closed < 0)
        *err = closing;
    return r < 0 ? r : closed;
}

static int synthesize(struct synth *s, struct error *err)
{
    struct journal_status status = {0};
    double start = now_s(), made = 0;
    s->segments = (uint32_t)((s->writes + SEGMENT_WRITES - 1) / SEGMENT_WRITES);
    snprintf(s->directory, sizeof s->directory, "%s/journal", s->group->directory);
    int r = make_journal(s, err);
    if (r == 0)
        r = make_segments(s, err);
    made = now_s();
    if (r == 0)
        r = merge(s, &status, err);
    manifest_release(&s->m);
    if (r == 0)
        printf("{\"writes\": %" PRIu64 ", \"lsn\": %" PRIu64 ", \"segments\": %" PRIu64 ", \"runs\": %" PRIu64
               ", \"stretch\": \"%" PRIu64 ",%u,%u,%u\", \"indexes_s\": %.1f, \"merging_s\": %.1f}\n",
               (uint64_t)s->segments * SEGMENT_WRITES, status.latest.n, status.segments, status.runs,
               s->first_lsn, SEGMENT_WRITES, s->every, s->segments, made - start, now_s() - made);
    return r;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"directory", required_argument, NULL, 'd'},
                                            {"writes", required_argument, NULL, 'w'},
                                            {"volumes", required_argument, NULL, 'v'},
                                            {"volume-bytes", required_argument, NULL, 'b'},
                                            {"every", required_argument, NULL, 'e'},
                                            {"seed", required_argument, NULL, 's'},
                                            {0}};
    struct error err = ERROR_INIT;
    struct bench_group_options o = {.volume_bytes = 512ull << 20, .volume_count = 4, .ack = GROUP_ACK_FLUSH};
    struct synth s = {.group = &o};
    uint64_t volumes = o.volume_count, every = 13, seed = 1;
    int option, r = 0;
    while (r == 0 && (option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'd')
            o.directory = optarg;
        else if (option == 'w')
            r = units_parse_u64(optarg, 10000000000u, &s.writes, &err);
        else if (option == 'v')
            r = units_parse_u64(optarg, GROUP_MAX_VOLUMES, &volumes, &err);
        else if (option == 'b')
            r = units_parse_u64(optarg, 1ull << 50, &o.volume_bytes, &err);
        else if (option == 'e')
            r = units_parse_u64(optarg, 1000, &every, &err);
        else if (option == 's')
            r = units_parse_u64(optarg, UINT64_MAX, &seed, &err);
        else
            return 2;
    }
    if (r == 0 &&
        (!o.directory || !s.writes || !volumes || !every || o.volume_bytes < 4096 || optind != argc))
        r = error_set(&err, -EINVAL,
                      "usage: journal_synth --directory DIR --writes N [--volumes N] [--volume-bytes N] "
                      "[--every N] [--seed N]");
    o.volume_count = (unsigned)volumes;
    s.every = (uint32_t)every;
    s.seed = seed;
    if (r == 0)
        r = synthesize(&s, &err);
    if (r < 0)
        fprintf(stderr, "journal_synth: %s\n", err.message);
    return r < 0;
}
