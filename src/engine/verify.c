/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "engine/engine_internal.h"
#include "journal/seal.h"
#include "journal/verify.h"

#define PROGRESS_INTERVAL_NS (500 * NS_PER_MS)

static void print_damage(void *context, const struct verify_damage *d)
{
    (void)context;
    json_t *line = json_pack("{s:s, s:s, s:s, s:I, s:I, s:o, s:o, s:s?}", "kind", "damage", "file", d->file, "what", d->what,
                             "low_lsn", (json_int_t)d->low.n, "high_lsn", (json_int_t)d->high.n, "low_time",
                             engine_json_time(d->low_realtime_ns), "high_time", engine_json_time(d->high_realtime_ns), "volume",
                             d->volume_name);
    bool known = d->length_bytes > 0;
    json_object_set_new(line, "offset_bytes", known ? json_u64(d->offset_bytes) : json_null());
    json_object_set_new(line, "length_bytes", known ? json_u64(d->length_bytes) : json_null());
    engine_print_line(line);
}

static void print_progress(void *context, uint64_t done_bytes, uint64_t total_bytes)
{
    engine_print_progress(context, PROGRESS_INTERVAL_NS, done_bytes, total_bytes);
}

/* -EBADMSG: damage was found; without manifest or key nothing else can be. */
static int read_all(const char *config_path, struct verify_summary *ret, struct error *err)
{
    uint64_t told_ns = 0;
    struct verify_report report = {print_damage, print_progress, &told_ns};
    _cleanup_free_ struct engine_config *config = calloc(1, sizeof *config);
    if (!config)
        return error_errno(err, -ENOMEM, "cannot verify");
    *ret = (struct verify_summary){0};
    int r = engine_config_load(config_path, config, err);
    if (r < 0)
        return r;
    const char *file = "key";
    r = seal_unlock(config->journal, config->key_file, err);
    if (r == 0) {
        file = "manifest";
        r = journal_verify(config->journal, &report, ret, err);
    }
    if (r == -EBADMSG && !ret->damages) {
        print_damage(NULL, &(struct verify_damage){.file = file, .what = err->message});
        ret->damages = 1;
    }
    return r;
}

int engine_verify(const char *config_path, const char *pin, struct error *err)
{
    struct verify_summary s;
    (void)pin; /* held by the caller: it keeps history from being dropped meanwhile */
    int r = read_all(config_path, &s, err);
    if (r < 0 && r != -EBADMSG) {
        engine_print_line(json_of_error(err));
        return r;
    }
    engine_print_line(json_pack("{s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I}", "kind", "summary", "segments", (json_int_t)s.segments, "frames",
                                (json_int_t)s.frames, "records", (json_int_t)s.records, "indexes", (json_int_t)s.indexes, "pins",
                                (json_int_t)s.pins, "bytes", (json_int_t)s.bytes, "damages", (json_int_t)s.damages));
    return r;
}
