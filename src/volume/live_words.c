/* SPDX-License-Identifier: Apache-2.0 */
#include "volume/live_words.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"

#define LIVE_MAGIC 0x3156494c4453u /* "SDLIV1" */
#define LIVE_WORDS_OFFSET 4096u

struct live_header {        /* in the machine's byte order, for one boot */
    _Atomic uint64_t magic; /* set while it is trusted */
    uint64_t grains;
    uint8_t id[16];
    _Atomic uint64_t number;
};

int live_words_open(struct live_words *w, const char *path, uint64_t grains, const uint8_t id[16], bool *ret_valid, struct error *err)
{
    struct stat st;
    size_t length = LIVE_WORDS_OFFSET + ((grains + 63) / 64 + 1) * sizeof(uint64_t);
    /* What others could write is not believed. */
    _cleanup_close_ int fd = io_open_private(path, err);
    if (fd < 0)
        return fd;
    bool fits = fstat(fd, &st) == 0 && (size_t)st.st_size == length;
    int r = fits ? 0 : ftruncate(fd, 0) < 0 ? -errno : -posix_fallocate(fd, 0, (off_t)length);
    void *memory = r == 0 ? mmap(NULL, io_whole_pages(length), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0) : MAP_FAILED;
    if (memory == MAP_FAILED)
        return error_errno(err, r < 0 ? r : -errno, "cannot make %s", path);
    struct live_header *h = memory;
    *ret_valid = fits && atomic_load(&h->magic) == LIVE_MAGIC && h->grains == grains && memcmp(h->id, id, 16) == 0;
    if (!*ret_valid) {
        atomic_store(&h->magic, 0);
        h->grains = grains;
        memcpy(h->id, id, 16);
        atomic_store(&h->number, 0);
    }
    *w = (struct live_words){.memory = memory, .memory_bytes = length, .words = (_Atomic uint64_t *)(void *)((char *)memory + LIVE_WORDS_OFFSET)};
    return 0;
}

void live_words_trust(struct live_words *w, bool trusted)
{
    struct live_header *h = w->memory;
    atomic_store(&h->magic, trusted ? (uint64_t)LIVE_MAGIC : 0);
}

void live_words_set_number(struct live_words *w, uint64_t number)
{
    struct live_header *h = w->memory;
    atomic_store(&h->number, number);
}

uint64_t live_words_number(const struct live_words *w)
{
    const struct live_header *h = w->memory;
    return atomic_load(&h->number);
}

void live_words_close(struct live_words *w)
{
    if (w->memory)
        munmap(w->memory, io_whole_pages(w->memory_bytes));
    *w = (struct live_words){0};
}
