/* SPDX-License-Identifier: Apache-2.0 */
/* How long it takes until I/O goes on after a kill, and after a loss of power: fills volumes and a journal,
 * ends without order, opens.
 *
 *   recovery_time --directory DIR [--gib N] [--recent-mib N]
 *
 * Writes N GiB (10) in 1 MiB writes, lets all marks be cleared, then N MiB (64) more in random 4 KiB
 * writes to a tenth of the volume.
 * Prints one JSON object a case: "kill"; "power": the frame ring is gone, what is marked is compared;
 * "power-all": the bitmap too, everything is compared. The page cache is dropped before each (as root). */
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/io.h"
#include "base/units.h"
#include "volume/group.h"

#define PART_BYTES (1u << 20)

static char journal_path[512], ring_path[512], backing_path[512];
static struct error err;

static double now_s(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void must(int r)
{
    if (r < 0) {
        fprintf(stderr, "recovery_time: %s\n", err.message);
        exit(1);
    }
}

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void open_all(uint64_t volume_bytes, struct journal **ret_journal, struct group **ret_group)
{
    struct journal_options o = {.directory = journal_path, .ring_path = ring_path, .owner = "recovery_time"};
    must(journal_open(&o, ret_journal, &err));
    must(group_new(*ret_journal, GROUP_ACK_WRITE, NULL, ret_group, &err));
    must(group_add_volume(*ret_group, "v", volume_bytes, backing_path, &err));
    must(group_start(*ret_group, &err));
}

static void write_random(struct group *g, uint64_t volume_bytes, uint64_t bytes, void *data)
{
    uint64_t random = 88172645463325252ull;
    for (uint64_t done = 0; done < bytes; done += 4096) {
        *(uint64_t *)data = next_random(&random);
        must(block_pwrite(group_volume_block(g, 0), data, 4096, random % (volume_bytes / 10 / 4096) * 4096, 0,
                          &err));
    }
}

static void fill(uint64_t volume_bytes, void *data)
{
    struct journal *j;
    struct group *g;
    uint64_t random = 1, *words = data;
    for (size_t i = 0; i < PART_BYTES / 8; i++)
        words[i] = next_random(&random);
    open_all(volume_bytes, &j, &g);
    double start = now_s();
    for (uint64_t at = 0; at < volume_bytes; at += PART_BYTES) {
        words[at / PART_BYTES % 1000] = at;
        must(block_pwrite(group_volume_block(g, 0), data, PART_BYTES, at, 0, &err));
    }
    must(block_flush(group_volume_block(g, 0), &err));
    fprintf(stderr, "filled in %.1f s\n", now_s() - start);
    group_free(g);
    must(journal_close(j, &err));
}

/* Ends without order and opens again. */
static void measure(const char *what, uint64_t volume_bytes, uint64_t recent_bytes, void *data)
{
    struct journal *j;
    struct group *g;
    struct group_status s;
    char path[600];
    open_all(volume_bytes, &j, &g);
    group_settle(g);
    write_random(g, volume_bytes, recent_bytes, data);
    group_abandon(g);
    journal_abandon(j);
    if (strncmp(what, "power", 5) == 0)
        unlink(ring_path);
    snprintf(path, sizeof path, "%s/intent-1", journal_path);
    if (strcmp(what, "power-all") == 0)
        unlink(path);
    int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
    if (fd >= 0 && write(fd, "1", 1) == 1)
        close(fd);
    double start = now_s();
    open_all(volume_bytes, &j, &g);
    must(block_pwrite(group_volume_block(g, 0), data, 4096, 4096, 0, &err));
    double first = now_s();
    group_settle(g);
    double settled = now_s();
    group_status(g, &s);
    printf("{\"case\": \"%s\", \"first_write_s\": %.3f, \"protected_s\": %.3f, \"compared_mib\": %llu}\n",
           what, first - start, settled - start, (unsigned long long)s.resync_total_bytes >> 20);
    fflush(stdout);
    group_free(g);
    must(journal_close(j, &err));
}

int main(int argc, char **argv)
{
    static const struct option options[] = {{"directory", required_argument, NULL, 'd'},
                                            {"gib", required_argument, NULL, 'g'},
                                            {"recent-mib", required_argument, NULL, 'r'},
                                            {0}};
    const char *directory = NULL;
    uint64_t gib = 10, recent_mib = 64;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        if (option == 'd')
            directory = optarg;
        else if (option == 'g')
            must(units_parse_u64(optarg, 1024, &gib, &err));
        else if (option == 'r')
            must(units_parse_u64(optarg, 1024, &recent_mib, &err));
        else
            return 2;
    }
    void *data = io_alloc_pages(PART_BYTES);
    if (!directory || !gib || !data)
        return 2;
    snprintf(journal_path, sizeof journal_path, "%s/journal", directory);
    snprintf(ring_path, sizeof ring_path, "%s/ring", directory);
    snprintf(backing_path, sizeof backing_path, "%s/v.img", directory);
    must(io_mkdirs(journal_path, 0700, &err));
    fill(gib << 30, data);
    for (const char **what = (const char *[]){"kill", "power", "power-all", NULL}; *what; what++)
        measure(*what, gib << 30, recent_mib << 20, data);
    io_free_pages(data, PART_BYTES);
    return 0;
}
