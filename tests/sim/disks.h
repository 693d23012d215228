/* SPDX-License-Identifier: Apache-2.0 */
/* Two disks that lose power: what the program under test does to the files below ROOT/backing and
 * ROOT/journal is recorded in the calls themselves (-Wl,--wrap, so that neither the code nor its io_uring
 * writes can go by), and from that each state can be built that the disks may have after a loss of power at
 * some moment.
 *
 * The model: a write is on the disk for certain once an fsync of its file, begun after the write had ended,
 * has ended. Until then any subset of its 512-byte sectors may be there, independently of all others. Names,
 * sizes and directories change in their order (as in the journals of ext4 and xfs): of those not covered by
 * an fsync of a directory, or of the file whose size changed, a prefix is there. The two disks are
 * independent. A write by io_uring has ended when its completion was consumed. */
#ifndef TIDEMARK_TESTS_SIM_DISKS_H
#define TIDEMARK_TESTS_SIM_DISKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What is there is durable; from now on it is recorded. What was recorded before is forgotten. */
void disks_begin(const char *root);
/* A moment: after all that has ended, before all that will begin. */
uint64_t disks_now(void);
/* Nothing is recorded any more. */
void disks_end(void);

/* Called before and after each of these calls, with its name and of what file it is, in whatever thread; NULL: none. For who ends the program there. */
void disks_watch(void (*watch)(const char *call, const char *path, bool after));

/* Moments at which a power loss leaves other states than just before: something was begun, or a flush has
 * ended. Ascending. */
size_t disks_moments(uint64_t *moments, size_t capacity);

/* Of a state: how many things may or may not have happened by then. */
struct disks_open {
    size_t writes;     /* each there or not */
    size_t changes[2]; /* of names and sizes, a disk: a prefix of them is there */
};
void disks_open(uint64_t moment, struct disks_open *ret);
/* How the state is chosen. */
struct disks_choice {
    uint64_t writes;   /* bit i: the ith open write is there */
    size_t changes[2]; /* how many are there */
    uint64_t random;   /* not 0: a seed, and what is above does not count */
    bool torn;         /* an open write that is there may lack any of its sectors */
};
/* Makes the state below `to` (new). */
void disks_build(uint64_t moment, const struct disks_choice *choice, const char *to);

#endif
