/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_VIEW_IMAGE_INTERNAL_H
#define TIDEMARK_VIEW_IMAGE_INTERNAL_H

#include <pthread.h>

#include "journal/payload.h"
#include "journal/pin.h"
#include "view/image.h"

#define IMAGE_OPEN_SEGMENTS 64u
#define IMAGE_REGION_SLOTS 4096u /* hash buckets */
#define IMAGE_TOUCH_SLOTS 1024u

/* An index; or, without one, records that are lost: whatever had LSN <= high may have been changed by them. */
struct source {
    struct index *index;
    char *lost; /* index NULL: what is lost, for messages */
    struct lsn low, high;
    uint32_t group;
};

struct region;
struct image {
    struct lsn lsn;
    struct source *sources; /* newest group first */
    size_t source_count, source_capacity;
    char **findings; /* salvage: what was found to be damaged */
    size_t finding_count;
    struct index_cache *cache;
    struct payload_reader *reader;
    pthread_mutex_t mutex; /* guards the regions */
    struct region *buckets[IMAGE_REGION_SLOTS];
    uint32_t touched[IMAGE_TOUCH_SLOTS]; /* the last region with such a hash of which a part was looked for alone, by the rest of the hash; 0: none */
    struct region *newest, *oldest;
    size_t region_bytes;
};

/* An image of the pin without sources or reader. */
int image_new(const char *directory, const char *pin_name, struct pin *ret_pin, struct image **ret, struct error *err) MUST_CHECK;
/* Takes source.index and source.lost, on failure too. */
int image_add_source(struct image *image, struct source source, struct error *err) MUST_CHECK;
void image_close_sources(struct image *image);

#endif
