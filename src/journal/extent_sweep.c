/* SPDX-License-Identifier: Apache-2.0 */
/* The newest-wins join. A line sweeps over (volume, LBA). Extents come in by their start, from a heap of the
 * streams' heads; those that cover the line, or may again, are in the active heap, whose top is the newest.
 *
 * Invariants:
 * SW1 The top of the active heap covers `position`, or the heap is empty (dead extents below the top are left
 * until they surface or the heap is compacted). SW2 An extent which ends no later than a newer one that
 * covers its start can never be seen: it is not kept. SW3 Compaction keeps the heap within twice the extents
 * that overlap one sector, and ACTIVE_MIN. SW4 What is emitted is ascending, does not overlap, and is never
 * empty. SW5 What is emitted with a checksum lies within the block that it is of. */
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "journal/index.h"

#define ACTIVE_MIN 64u

struct head {
    struct extent extent;
    struct extent_stream *stream;
};

struct active {
    uint64_t lsn; /* the key, beside the extent for the sake of the cache */
    uint64_t end;
    struct extent extent;
};

struct sweep {
    struct extent_stream stream; /* first */
    bool started;
    int failed;
    uint32_t volume;
    uint64_t position;
    bool pending_valid;
    struct extent pending; /* may still grow by what follows */
    size_t active_count, active_room, compact_at;
    struct active *active;
    size_t head_count, stream_count;
    struct extent_stream **streams; /* all, for freeing */
    struct head heads[];
};

/* ---- the streams' heads: a heap by (volume, LBA) ---- */

static inline bool starts_before(const struct extent *a, const struct extent *b)
{
    unsigned __int128 ka = (unsigned __int128)a->volume << 64 | a->lba,
                      kb = (unsigned __int128)b->volume << 64 | b->lba;
    return ka < kb;
}

static void sink_head(struct sweep *s, size_t at)
{
    struct head moved = s->heads[at];
    for (size_t child; (child = 2 * at + 1) < s->head_count; at = child) {
        if (child + 1 < s->head_count && starts_before(&s->heads[child + 1].extent, &s->heads[child].extent))
            child++;
        if (!starts_before(&s->heads[child].extent, &moved.extent))
            break;
        s->heads[at] = s->heads[child];
    }
    s->heads[at] = moved;
}

static int start(struct sweep *s, struct error *err)
{
    for (size_t i = 0; i < s->stream_count; i++) {
        struct head *head = &s->heads[s->head_count];
        head->stream = s->streams[i];
        int r = head->stream->next(head->stream, &head->extent, err);
        if (r < 0)
            return r;
        s->head_count += r > 0;
    }
    for (size_t i = s->head_count / 2; i-- > 0;)
        sink_head(s, i);
    s->started = true;
    return 0;
}

/* Replaces the first head by its stream's next extent. */
static int advance_head(struct sweep *s, struct error *err)
{
    struct head *head = &s->heads[0];
    struct extent before = head->extent;
    int r = head->stream->next(head->stream, &head->extent, err);
    if (r < 0)
        return r;
    if (r == 0) {
        if (--s->head_count == 0)
            return 0;
        *head = s->heads[s->head_count];
    } else {
        assert(!starts_before(&head->extent, &before));
    }
    sink_head(s, 0);
    return 0;
}

/* ---- the active heap: newest first ---- */

static void sink_active(struct sweep *s, size_t at)
{
    struct active moved = s->active[at];
    for (size_t child; (child = 2 * at + 1) < s->active_count; at = child) {
        if (child + 1 < s->active_count && s->active[child + 1].lsn > s->active[child].lsn)
            child++;
        if (s->active[child].lsn <= moved.lsn)
            break;
        s->active[at] = s->active[child];
    }
    s->active[at] = moved;
}

static void pop_active(struct sweep *s)
{
    s->active[0] = s->active[--s->active_count];
    if (s->active_count > 1)
        sink_active(s, 0);
}

/* Forgets those that end no later than the top (they are dead, or hidden until they are). */
static void compact_active(struct sweep *s)
{
    size_t kept = 1;
    for (size_t i = 1; i < s->active_count; i++)
        if (s->active[i].end > s->active[0].end)
            s->active[kept++] = s->active[i];
    s->active_count = kept;
    for (size_t i = kept / 2; i-- > 0;)
        sink_active(s, i);
    s->compact_at = 2 * kept > ACTIVE_MIN ? 2 * kept : ACTIVE_MIN;
}

static int push_active(struct sweep *s, const struct extent *e, struct error *err)
{
    if (s->active_count >= s->compact_at)
        compact_active(s);
    if (s->active_count == s->active_room) {
        size_t room = s->active_room ? 2 * s->active_room : ACTIVE_MIN;
        struct active *larger = reallocarray(s->active, room, sizeof *larger);
        if (!larger)
            return error_errno(err, -ENOMEM, "cannot join extents: %zu overlap", s->active_count);
        s->active = larger;
        s->active_room = room;
    }
    struct active item = {e->lsn.n, e->lba + e->length, *e};
    size_t at = s->active_count++;
    for (size_t parent; at > 0 && s->active[parent = (at - 1) / 2].lsn < item.lsn; at = parent)
        s->active[at] = s->active[parent];
    s->active[at] = item;
    return 0;
}

/* ---- the sweep ---- */

/* The next visible piece: 1, 0 at the end. */
static int next_piece(struct sweep *s, struct extent *ret, struct error *err)
{
    for (;;) {
        while (s->active_count > 0 && s->active[0].end <= s->position)
            pop_active(s);
        if (s->active_count == 0) {
            if (s->head_count == 0)
                return 0;
            struct extent e = s->heads[0].extent;
            s->volume = e.volume;
            s->position = e.lba;
            int r = push_active(s, &e, err);
            if (r == 0)
                r = advance_head(s, err);
            if (r < 0)
                return r;
        }
        struct active *top = &s->active[0];
        uint64_t from = s->position, to = top->end;
        struct extent visible = top->extent;
        while (s->head_count > 0) {
            struct extent e = s->heads[0].extent;
            if (e.volume != s->volume || e.lba >= top->end)
                break;
            bool newer = e.lsn.n > top->lsn, hidden = !newer && e.lba + e.length <= top->end;
            int r = 0;
            if (newer && e.lba + e.length >= top->end) /* the old top is hidden for good (SW2) */
                *top = (struct active){e.lsn.n, e.lba + e.length, e};
            else if (!hidden)
                r = push_active(s, &e, err);
            if (r == 0)
                r = advance_head(s, err);
            if (r < 0)
                return r;
            top = &s->active[0]; /* pushing may move the heap */
            if (!newer)
                continue;
            to = s->position = e.lba;
            if (to > from)
                break;
            visible = top->extent;
            to = top->end;
        }
        s->position = to;
        if (to > from) {
            *ret = extent_clip(visible, from, to - from);
            return 1;
        }
    }
}

static uint32_t length_max(uint16_t kind)
{
    return kind == EXTENT_DATA ? EXTENT_DATA_MAX_SECTORS : EXTENT_ZERO_MAX_SECTORS;
}

static bool continues(const struct extent *a, const struct extent *b)
{
    return a->lba + a->length == b->lba && a->lsn.n == b->lsn.n && a->volume == b->volume &&
           a->kind == b->kind && (a->flags | EXTENT_CHECKED) == (b->flags | EXTENT_CHECKED) && a->segment == b->segment &&
           (a->kind != EXTENT_DATA || a->position + a->length == b->position) &&
           (uint64_t)a->length + b->length <= length_max(a->kind);
}

/* Pieces of one block stay one with its checksum; a reference run's neighbours may be of two. */
static void join(struct extent *a, const struct extent *b)
{
    a->length += b->length;
    if (!(b->flags & EXTENT_CHECKED) || !extent_is_in_one_block(a))
        a->flags &= (uint16_t)~EXTENT_CHECKED;
}

static int sweep_next(struct extent_stream *stream, struct extent *ret, struct error *err)
{
    struct sweep *s = (struct sweep *)stream;
    if (s->failed)
        return error_errno(err, s->failed, "cannot join extents: a stream failed before");
    int r = s->started ? 0 : start(s, err);
    while (r == 0) {
        struct extent piece;
        r = next_piece(s, &piece, err);
        if (r < 0)
            break;
        if (r > 0 && s->pending_valid && continues(&s->pending, &piece)) {
            join(&s->pending, &piece);
            r = 0;
            continue;
        }
        bool had = s->pending_valid;
        struct extent out = s->pending;
        s->pending_valid = r > 0;
        if (r > 0)
            s->pending = piece;
        if (had) {
            *ret = out;
            return 1;
        }
        if (r == 0)
            return 0;
        r = 0;
    }
    s->failed = r;
    return r;
}

static void sweep_free(struct extent_stream *stream)
{
    struct sweep *s = (struct sweep *)stream;
    for (size_t i = 0; i < s->stream_count; i++)
        extent_stream_free(s->streams[i]);
    free(s->streams);
    free(s->active);
    free(s);
}

/* On failure the inputs stay the caller's. */
int extent_sweep(struct extent_stream **streams, size_t count, struct extent_stream **ret, struct error *err)
{
    struct sweep *s = NULL;
    size_t bytes;
    if (!__builtin_mul_overflow(count, sizeof *s->heads, &bytes) &&
        !__builtin_add_overflow(bytes, sizeof *s, &bytes))
        s = calloc(1, bytes);
    struct extent_stream **copy = s ? calloc(count ? count : 1, sizeof(struct extent_stream *)) : NULL;
    if (!copy) {
        free(s);
        return error_errno(err, -ENOMEM, "cannot join %zu streams of extents", count);
    }
    for (size_t i = 0; i < count; i++)
        copy[i] = streams[i];
    s->stream = (struct extent_stream){sweep_next, sweep_free};
    s->streams = copy;
    s->stream_count = count;
    s->compact_at = ACTIVE_MIN;
    *ret = &s->stream;
    return 0;
}
