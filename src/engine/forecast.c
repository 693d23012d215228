/* SPDX-License-Identifier: Apache-2.0 */
/* POST /v1/forecast: what other limits of the journal would do to the history that is there. */
#include "journal/forecast.h"

#include <errno.h>
#include <stdlib.h>

#include "base/cleanup.h"
#include "engine/engine_internal.h"

static json_t *forecast_json(const struct forecast *f)
{
    json_t *steps = json_array();
    for (size_t i = 0; i < f->step_count; i++) {
        const struct forecast_step *s = &f->steps[i];
        json_array_append_new(steps, json_pack("{s:I, s:o, s:o, s:I, s:I, s:I}", "granularity_seconds", (json_int_t)s->keep_s, "from",
                                               engine_json_time(s->from_ns), "to", engine_json_time(s->to_ns), "points",
                                               (json_int_t)s->points, "points_after", (json_int_t)s->points_after, "bytes",
                                               (json_int_t)s->bytes));
    }
    return json_pack("{s:I, s:o, s:I, s:o, s:I, s:I, s:o}", "oldest_lsn", (json_int_t)f->oldest.n, "oldest_time",
                     engine_json_time(f->oldest_ns), "oldest_lsn_after", (json_int_t)f->oldest_after.n, "oldest_time_after",
                     engine_json_time(f->oldest_after_ns), "dropped_bytes", (json_int_t)f->dropped_bytes, "dropped_points",
                     (json_int_t)f->dropped_points, "thinned", steps);
}

int engine_forecast(struct engine *e, const json_t *body, json_t **ret, struct error *err)
{
    struct manifest m;
    struct forecast f;
    json_t *thinning = NULL;
    _cleanup_free_ struct engine_config *c = calloc(1, sizeof *c);
    if (!c)
        return error_errno(err, -ENOMEM, "cannot look ahead");
    int r = json_reject_unknown(body, err, "quota_bytes", "history_ns", "thinning", NULL);
    c->quota_bytes = e->config->quota_bytes; /* where it says none: as it is */
    if (r == 0)
        r = json_get_optional_u64(body, "quota_bytes", &c->quota_bytes, err);
    if (r == 0)
        r = json_get_optional_u64(body, "history_ns", &c->history_ns, err);
    if (r == 0)
        r = json_get_optional_array(body, "thinning", &thinning, err);
    if (r == 0 && thinning)
        r = engine_config_thinning(thinning, c, err);
    if (r == 0)
        r = journal_manifest(e->journal, &m, err);
    if (r < 0)
        return r;
    const struct forecast_limits limits = {.quota_bytes = c->quota_bytes,
                                           .history_ns = c->history_ns,
                                           .segment_bytes = (uint64_t)JOURNAL_SEGMENT_BLOCKS * JOURNAL_BLOCK_BYTES,
                                           .thinning = c->thinning,
                                           .thinning_count = c->thinning_count};
    struct age_clock now;
    age_clock_read(&m, clock_system(), &now);
    forecast_make(&m, &limits, &now, &f);
    manifest_release(&m);
    *ret = forecast_json(&f);
    return 0;
}
