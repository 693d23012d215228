/* SPDX-License-Identifier: Apache-2.0 */
/* The damage map of a view that was opened for salvage. Thread-safe but for the end. */
#ifndef TIDEMARK_ENGINE_VIEW_SALVAGE_INTERNAL_H
#define TIDEMARK_ENGINE_VIEW_SALVAGE_INTERNAL_H

#include "engine/engine_internal.h"
#include "view/image.h"

struct view_salvage;
struct view_salvage_volume {
    char name[JOURNAL_NAME_BYTES];
    uint32_t id;
    uint64_t size_bytes;
};
/* Starts to read all volumes of the image, which is borrowed. */
int view_salvage_start(struct image *image, const struct view_salvage_volume *volumes, size_t count, struct view_salvage **ret,
                       struct error *err) MUST_CHECK;
/* {"complete","done_bytes","total_bytes","damaged_bytes","truncated","findings","damage"}; done_bytes is total_bytes when it
 * has ended. */
json_t *view_salvage_json(struct view_salvage *s);
void view_salvage_free(struct view_salvage *s); /* ends it; NULL allowed */

#endif
