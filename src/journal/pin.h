/* SPDX-License-Identifier: Apache-2.0 */
/* Reading pins: what a view's process needs of a point. */
#ifndef TIDEMARK_JOURNAL_PIN_H
#define TIDEMARK_JOURNAL_PIN_H

#include "base/error.h"
#include "base/uuid.h"
#include "journal/journal_format.h"
#include "journal/lsn.h"

#define PIN_INTERNAL_PREFIX "engine-" /* pins that end with the engine */

#define PIN_KEPT_PREFIX "copy-"       /* pins that nobody has to hold: they stay, also over a loss of power, until they are removed by name */
#define PIN_VIEW_PREFIX "v-"          /* pins of views, which can be told to end */
#define PIN_REVOKED_SUFFIX ".revoked" /* a file that tells the pin's holder to end: its history is about to go. Holds the reason */

struct pin {
    struct uuid journal_id;
    struct lsn lsn, base; /* base: when it was made */
    struct pin_source *sources;
    size_t source_count;
};
int pin_load(const char *directory, const char *name, struct pin *ret, struct error *err) MUST_CHECK;
void pin_release(struct pin *pin);

struct journal;
struct journal_pin_info {
    char name[JOURNAL_NAME_BYTES];
    struct lsn lsn;
};
/* The external pins (views), at most `capacity`. Returns their number. */
size_t journal_pins(struct journal *j, struct journal_pin_info *pins, size_t capacity);
/* At opening: takes up the pins that are kept and those whose lock is held, removes the others, and what is left of pins that are not
 * there. */
void pin_reload(struct journal *j);

#endif
