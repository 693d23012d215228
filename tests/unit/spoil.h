/* SPDX-License-Identifier: Apache-2.0 */
/* Damages files where they hold a text. */
#ifndef TIDEMARK_TESTS_SPOIL_H
#define TIDEMARK_TESTS_SPOIL_H

#include <fcntl.h>
#include <ftw.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "check.h"

static const char *spoil_text;
static unsigned spoil_count;

static inline int spoil_file(const char *path, const struct stat *st, int type, struct FTW *at)
{
    (void)at;
    if (type != FTW_F || st->st_size == 0)
        return 0;
    size_t bytes = (size_t)st->st_size;
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_true(fd >= 0);
    char *content = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    assert_true(content != MAP_FAILED);
    for (char *found; (found = memmem(content, bytes, spoil_text, strlen(spoil_text))); spoil_count++)
        found[0] ^= 1;
    munmap(content, bytes);
    close(fd);
    return 0;
}

/* Flips a bit of the text wherever a file below the directory has it; fails when none has. */
static inline void spoil(const char *directory, const char *text)
{
    spoil_text = text;
    spoil_count = 0;
    assert_int_equal(nftw(directory, spoil_file, 16, FTW_PHYS), 0);
    assert_true(spoil_count > 0);
}

#endif
