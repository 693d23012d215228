/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "engine/engine_internal.h"
#include "journal/seal.h"
#include "journal/verify.h"

#define PROGRESS_INTERVAL_NS (500 * NS_PER_MS)

struct printing {
    uint64_t last_ns;
};

void engine_print_line(json_t *line)
{
    _cleanup_free_ char *text = line ? json_to_text(line) : NULL;
    if (text)
        puts(text);
    fflush(stdout);
    json_decref(line);
}

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
    struct printing *p = context;
    uint64_t now = clock_boottime_ns(clock_system());
    if (now - p->last_ns < PROGRESS_INTERVAL_NS)
        return;
    p->last_ns = now;
    engine_print_line(json_pack("{s:s, s:I, s:I}", "kind", "progress", "done_bytes", (json_int_t)done_bytes, "total_bytes",
                    (json_int_t)total_bytes));
}

/* -EBADMSG: damage was found; without manifest or key nothing else can be. */
static int read_all(const char *config_path, struct verify_summary *ret, struct error *err)
{
    struct printing printing = {0};
    struct verify_report report = {print_damage, print_progress, &printing};
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
