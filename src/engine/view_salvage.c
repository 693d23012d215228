/* SPDX-License-Identifier: Apache-2.0 */
/* The damage map of a view that was opened for salvage: a thread reads all of its volumes once. */
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/thread.h"
#include "engine/view_salvage_internal.h"

#define RANGES_MAX 4096u
#define REASON_BYTES 200

struct range {
    size_t volume; /* its place in the list */
    uint64_t offset_bytes, length_bytes;
    char reason[REASON_BYTES];
};
struct view_salvage {
    struct image *image;
    struct view_salvage_volume volumes[GROUP_MAX_VOLUMES];
    size_t count;
    pthread_t thread;
    bool runs;
    uint64_t total_bytes;
    _Atomic uint64_t done_bytes;
    atomic_bool stop;
    pthread_mutex_t mutex; /* guards what follows */
    struct range *ranges;
    size_t range_count, mapping;
    uint64_t damaged_bytes;
    bool complete, truncated;
    char problem[256]; /* why the map is not whole; "" */
};

/* The same cause: messages differ in the place only, which comes after " at ". */
static bool same_cause(const char *a, const char *b)
{
    const char *end = strstr(a, " at ");
    return end ? strncmp(a, b, (size_t)(end - a)) == 0 : strncmp(a, b, REASON_BYTES - 1) == 0;
}

static int add_range(void *context, uint64_t offset_bytes, uint64_t length_bytes, const char *reason,
                     struct error *err)
{
    struct view_salvage *s = context;
    MUTEX_GUARD(guard, &s->mutex);
    struct range *last = s->range_count ? &s->ranges[s->range_count - 1] : NULL;
    (void)err;
    s->damaged_bytes += length_bytes;
    if (last && last->volume == s->mapping && last->offset_bytes + last->length_bytes == offset_bytes &&
        same_cause(last->reason, reason)) {
        last->length_bytes += length_bytes;
    } else if (s->range_count == RANGES_MAX) {
        s->truncated = true;
    } else {
        s->ranges[s->range_count] =
            (struct range){.volume = s->mapping, .offset_bytes = offset_bytes, .length_bytes = length_bytes};
        snprintf(s->ranges[s->range_count++].reason, REASON_BYTES, "%s", reason);
    }
    return 0;
}

static void *map_main(void *context)
{
    struct view_salvage *s = context;
    struct error err = ERROR_INIT;
    int r = 0;
    for (size_t i = 0; i < s->count && r == 0; i++) {
        pthread_mutex_lock(&s->mutex);
        s->mapping = i;
        pthread_mutex_unlock(&s->mutex);
        r = image_map_damage(s->image, s->volumes[i].id, s->volumes[i].size_bytes, add_range, s,
                             &s->done_bytes, &s->stop, &err);
    }
    MUTEX_GUARD(guard, &s->mutex);
    if (r < 0)
        snprintf(s->problem, sizeof s->problem, "the map of the damage is not whole: %.200s", err.message);
    s->complete = true;
    return NULL;
}

int view_salvage_start(struct image *image, const struct view_salvage_volume *volumes, size_t count,
                       struct view_salvage **ret, struct error *err)
{
    struct view_salvage *s = calloc(1, sizeof *s);
    if (s)
        s->ranges = calloc(RANGES_MAX, sizeof *s->ranges);
    if (!s || !s->ranges) {
        free(s);
        return error_errno(err, -ENOMEM, "cannot look for damage");
    }
    s->image = image;
    s->count = count;
    pthread_mutex_init(&s->mutex, NULL);
    for (size_t i = 0; i < count; i++) {
        s->volumes[i] = volumes[i];
        s->total_bytes += volumes[i].size_bytes;
    }
    int r = thread_start(&s->thread, "salvage", map_main, s, err);
    s->runs = r == 0;
    if (r < 0)
        view_salvage_free(s);
    else
        *ret = s;
    return r;
}

void view_salvage_free(struct view_salvage *s)
{
    if (!s)
        return;
    atomic_store(&s->stop, true);
    if (s->runs)
        pthread_join(s->thread, NULL);
    pthread_mutex_destroy(&s->mutex);
    free(s->ranges);
    free(s);
}

json_t *view_salvage_json(struct view_salvage *s)
{
    const char *text;
    json_t *damage = json_array(), *findings = json_array();
    for (size_t i = 0; (text = image_finding(s->image, i)); i++)
        json_array_append_new(findings, json_string(text));
    MUTEX_GUARD(guard, &s->mutex);
    for (size_t i = 0; i < s->range_count; i++) {
        const struct range *range = &s->ranges[i];
        json_array_append_new(damage,
                              json_pack("{s:s, s:I, s:I, s:s}", "volume", s->volumes[range->volume].name,
                                        "offset_bytes", (json_int_t)range->offset_bytes, "length_bytes",
                                        (json_int_t)range->length_bytes, "reason", range->reason));
    }
    if (s->problem[0])
        json_array_append_new(findings, json_string(s->problem));
    /* All is done only when the last range is in the map: who waits goes by these two. */
    uint64_t done = atomic_load(&s->done_bytes);
    done = s->complete ? s->total_bytes : done < s->total_bytes ? done : s->total_bytes - 1;
    return json_pack("{s:b, s:I, s:I, s:I, s:b, s:o, s:o}", "complete", s->complete && !s->problem[0],
                     "done_bytes", (json_int_t)done, "total_bytes", (json_int_t)s->total_bytes,
                     "damaged_bytes", (json_int_t)s->damaged_bytes, "truncated", s->truncated, "findings",
                     findings, "damage", damage);
}
