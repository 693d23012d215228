/* SPDX-License-Identifier: Apache-2.0 */
/* What the simulations of ends share: two volumes over one journal, in files below root/journal and root/backing, and a model of what they hold. A
 * part of them, the spots, is used: the rest of a region of the write-intent bitmap costs time and tells nothing. Not thread-safe. */
#ifndef TIDEMARK_TESTS_SIM_STAND_H
#define TIDEMARK_TESTS_SIM_STAND_H

#include "check.h"

#include "base/uuid.h"
#include "journal/journal.h"
#include "journal/pin.h"
#include "volume/group.h"

#define SPOT_BYTES 32768u /* what is used of a region of 4 MiB */
#define REGION_BYTES (4u << 20)
#define SPOTS 5u
#define VOLUMES 2
#define MODEL_BYTES (SPOTS * SPOT_BYTES)
#define SECTORS (MODEL_BYTES / 512)
#define STAND_PIN PIN_KEPT_PREFIX "1"

/* Where each spot of the model lies. */
struct spot {
    int volume;
    uint64_t offset;
};
extern const struct spot spots[SPOTS];
extern const uint64_t sizes[VOLUMES];

struct stand {
    char base[64], root[96], ring[96]; /* base has the root, the ring and a clone's source */
    enum group_ack ack;
    struct journal_options options; /* in addition to what stand_open sets */
    struct journal *journal;
    struct group *group;
    char live[MODEL_BYTES];
    uint64_t random, seed;
    struct uuid boot;
    bool queue;         /* writes go by block/queue.h where they can */
    bool fill;          /* the second volume is a clone's, which is copied only when it has to be */
    bool adopt, slowly; /* the second volume held something before; it is seeded only when it has to be */
};
extern struct stand *stand; /* the test's */

/* The test's: says what it was doing, and ends the program. */
void __attribute__((noreturn, format(printf, 1, 2))) stand_broken(const char *format, ...);
#define OK(call)                                                                                             \
    do {                                                                                                     \
        if ((call) < 0)                                                                                      \
            stand_broken("%s: %s", #call, err.message);                                                      \
    } while (0)

uint64_t below(uint64_t n);

/* ---- directories ---- */
/* New, empty ones: /dev/shm/tidemark-NAME-XXXXXX with the root `root` in it. */
void stand_make(const char *name, const char *root);
/* After a loss of power: nothing of shared memory is left. */
void stand_new_boot(void);
/* The backings are other files, as copies are: not a reason to compare them. */
void stand_forget_backings(void);
/* What the volume that is adopted holds; or, of a clone, its source beside, pinned, and its backing with nothing of it. */
void stand_fill_backing(void);
void stand_make_clone(void);

/* ---- the program under test ---- */
/* Opens the journal, which was made or is there, and adds the volumes to a group. */
int stand_open_journal(struct error *e);
void stand_open_volumes(void);
void stand_open(void);
/* Opens it as tidemark-engine does: what cannot be opened any more is set aside. Whether it was. */
bool stand_open_anew(void);
void stand_close(void);
bool stand_is_protected(void);
uint64_t stand_latest(void);
void stand_read(char *data);

/* A write, discard or zeroing at random: chosen, entered in the model, and then done. */
struct change {
    const char *name;
    size_t spot, sector, at, length; /* sectors: in the spot, in the model */
    unsigned how, flags;
};
struct change stand_choose_change(void);
void stand_make_change(const struct change *c);

/* ---- checks ---- */
/* The image that the pin has is the model. */
void stand_check_pin(const char *pin, uint64_t lsn, const char *model);
/* -ERANGE, with *e: the point is not in the history any more. */
int stand_try_image(uint64_t lsn, const char *model, struct error *e);
void stand_check_image(uint64_t lsn, const char *model);
/* Seals; a verification finds no damage. */
void stand_verify(void);

#endif
