/* SPDX-License-Identifier: Apache-2.0 */
/* Which of the suspicious stretches count now, and what is told of them. */
#include <errno.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "engine/watch_internal.h"

/* An alarm is told this long after its stretch ended, unless the application is rewound to before it. */
#define TOLD_NS (24 * 3600 * NS_PER_SECOND)
/* Stretches with less than this between them are one attack: the last clean point is before all of them. */
#define SAME_NS (600 * NS_PER_SECOND)

/* Is any record of (begin, end] in effect? A rewind at LSN r to s takes (s, r) out of effect, unless another led past r. */
static bool in_effect(const struct manifest *m, const struct signal_stretch *stretch)
{
    uint64_t high = UINT64_MAX, end = stretch->end_lsn ? stretch->end_lsn : UINT64_MAX;
    for (size_t i = m->rewind_count; i-- > 0;) {
        if (m->rewinds[i].lsn.n > high)
            continue;
        uint64_t low = m->rewinds[i].lsn.n;
        if (end > low && stretch->begin_lsn < high)
            return true; /* meets (low, high], in effect */
        high = m->rewinds[i].target.n;
    }
    return stretch->begin_lsn < high;
}

int suspicion_load(struct engine *e, struct suspicion *ret, struct error *err)
{
    struct manifest m;
    ret->count = 0;
    size_t count = signal_stretches_copy(&e->watch->stretches, ret->list);
    if (count == 0)
        return 0;
    int r = journal_manifest(e->journal, &m, err);
    if (r < 0)
        return r;
    for (size_t i = 0; i < count; i++)
        if (in_effect(&m, &ret->list[i]))
            ret->list[ret->count++] = ret->list[i];
    manifest_release(&m);
    return 0;
}

static bool is_told(const struct signal_stretch *s, uint64_t now_ns)
{
    return s->end_lsn == 0 || now_ns < s->end_ns + TOLD_NS;
}

uint64_t suspicion_since_ns(const struct suspicion *s, uint64_t now_ns)
{
    uint64_t since = 0;
    for (size_t i = 0; i < s->count; i++)
        if (is_told(&s->list[i], now_ns) && (since == 0 || s->list[i].begin_ns < since))
            since = s->list[i].begin_ns;
    return since;
}

static const char *name_of(struct engine *e, uint32_t volume)
{
    for (size_t i = 0; i < group_volume_count(e->group); i++) {
        struct group_volume_status s;
        group_volume_status(e->group, i, &s);
        if (s.id == volume)
            return s.name;
    }
    return "that is no more";
}

void suspicion_alarms(struct engine *e, const struct suspicion *s, uint64_t now_ns, json_t *alarms)
{
    char begin[CLOCK_TEXT_BYTES], end[CLOCK_TEXT_BYTES], bytes[UNITS_TEXT_BYTES];
    for (size_t i = 0; i < s->count; i++) {
        const struct signal_stretch *stretch = &s->list[i];
        if (!is_told(stretch, now_ns))
            continue;
        json_t *text = json_sprintf(
            "volume %s %s: at least %s of structured content were replaced by what looks like ciphertext; `tidemark points %s "
            "--last-clean` names the last point before",
            name_of(e, stretch->volume), stretch->end_lsn ? "was probably encrypted" : "is probably being encrypted",
            units_format_bytes(stretch->bytes, bytes), e->config->application);
        json_t *when = stretch->end_lsn ? json_sprintf("%s (%s to %s)", json_string_value(text), clock_format_rfc3339(stretch->begin_ns, begin),
                                                        clock_format_rfc3339(stretch->end_ns, end))
                                        : json_sprintf("%s (since %s)", json_string_value(text), clock_format_rfc3339(stretch->begin_ns, begin));
        json_decref(text);
        json_array_append_new(alarms, when);
    }
}

bool suspicion_has(const struct signal_stretch *list, size_t count, uint64_t lsn)
{
    for (size_t i = 0; i < count; i++)
        if (signal_stretch_has(&list[i], lsn))
            return true;
    return false;
}

/* The newest stretch, with those before it that belong to it. */
static struct signal_stretch newest_attack(const struct suspicion *s)
{
    struct signal_stretch attack = s->list[0];
    for (size_t i = 1; i < s->count; i++)
        if (s->list[i].begin_lsn > attack.begin_lsn)
            attack = s->list[i];
    for (bool grown = true; grown;) {
        grown = false;
        for (size_t i = 0; i < s->count; i++) {
            const struct signal_stretch *o = &s->list[i];
            if (o->begin_lsn < attack.begin_lsn && (o->end_lsn == 0 || o->end_ns + SAME_NS >= attack.begin_ns)) {
                attack.begin_lsn = o->begin_lsn;
                attack.begin_ns = o->begin_ns;
                grown = true;
            }
        }
    }
    return attack;
}

int suspicion_last_clean(struct engine *e, struct signal_stretch *ret_stretch, struct journal_point *ret, struct error *err)
{
    _cleanup_free_ struct suspicion *s = malloc(sizeof *s);
    if (!s)
        return error_errno(err, -ENOMEM, "cannot look for suspicious stretches");
    int r = suspicion_load(e, s, err);
    if (r < 0)
        return r;
    if (s->count == 0)
        return error_set(err, -ENOENT, "nothing suspicious is in the history of %s, or it was rewound away", e->config->application);
    *ret_stretch = newest_attack(s);
    r = journal_resolve_before(e->journal, (struct lsn){ret_stretch->begin_lsn}, ret, err);
    return r < 0 ? error_context(err, "cannot tell the last point before the suspicious stretch") : 0;
}
