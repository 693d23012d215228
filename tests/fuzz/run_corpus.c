/* SPDX-License-Identifier: Apache-2.0 */
/* Runs a fuzz target over the files of its corpus without libFuzzer: run_corpus DIRECTORY [MUTATIONS]. Each
 * file is given as it is and then with MUTATIONS (default 200) changes from fixed seeds, so that the test
 * finds the same today and tomorrow. On a crash the file and the seed are printed; that, in a file of its
 * own, belongs into the corpus. */
#include <dirent.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"

#define INPUT_LIMIT_BYTES (16u << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char current[512];

static void on_crash(int signal_number)
{
    static const char before[] = "crashed by ";
    (void)!write(2, before, sizeof before - 1);
    (void)!write(2, current, strnlen(current, sizeof current));
    (void)!write(2, "\n", 1);
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull; /* splitmix64 */
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ x >> 27) * 0x94d049bb133111ebull;
    return x ^ x >> 31;
}

/* A few changed, doubled or lost bytes; returns the new size, at most `size` + 64. */
static size_t mutate(uint8_t *data, size_t size, uint64_t seed)
{
    uint64_t random = seed;
    for (uint64_t changes = next_random(&random) % 8 + 1; changes; changes--) {
        size_t at = size ? next_random(&random) % size : 0;
        switch (next_random(&random) % 5) {
        case 0:
            if (size)
                data[at] = (uint8_t)next_random(&random);
            break;
        case 1:
            if (size)
                data[at] ^= (uint8_t)(1u << next_random(&random) % 8);
            break;
        case 2:
            memmove(data + at + 8, data + at, size - at);
            size += 8;
            break;
        case 3: {
            size_t cut = size ? next_random(&random) % (size - at) % 16 : 0;
            memmove(data + at, data + at + cut, size - at - cut);
            size -= cut;
            break;
        }
        default:
            size = at;
        }
    }
    return size;
}

static int run_file(const char *directory, const char *name, unsigned mutations)
{
    char path[4096];
    struct error err = ERROR_INIT;
    _cleanup_free_ char *data = NULL;
    size_t size;
    snprintf(path, sizeof path, "%s/%s", directory, name);
    if (io_read_file(path, INPUT_LIMIT_BYTES, &data, &size, &err) < 0) {
        fprintf(stderr, "%s\n", err.message);
        return -1;
    }
    snprintf(current, sizeof current, "%s", path);
    for (unsigned seed = 0; seed <= mutations; seed++) {
        /* Of exactly the input's size, so that the address sanitizer sees a read behind it. */
        uint8_t *room = malloc(size + 64);
        if (!room)
            return -1;
        memcpy(room, data, size);
        size_t length = seed ? mutate(room, size, seed) : size;
        uint8_t *input = malloc(length ? length : 1);
        if (!input)
            return -1;
        memcpy(input, room, length);
        free(room);
        if (seed)
            snprintf(current, sizeof current, "%.400s with mutation %u", path, seed);
        LLVMFuzzerTestOneInput(input, length);
        free(input);
    }
    return 0;
}

int main(int argc, char **argv)
{
    unsigned mutations = argc > 2 ? (unsigned)strtoul(argv[2], NULL, 10) : 200;
    _cleanup_closedir_ DIR *directory = argc > 1 ? opendir(argv[1]) : NULL;
    unsigned count = 0;
    if (!directory) {
        fprintf(stderr, "usage: %s CORPUS_DIRECTORY [MUTATIONS]\n", argv[0]);
        return 2;
    }
    signal(SIGABRT, on_crash);
    signal(SIGSEGV, on_crash);
    for (struct dirent *entry; (entry = readdir(directory));) {
        if (entry->d_name[0] == '.')
            continue;
        if (run_file(argv[1], entry->d_name, mutations) < 0)
            return 1;
        count++;
    }
    printf("%u files, %u mutations each\n", count, mutations);
    return count ? 0 : 1;
}
