/* SPDX-License-Identifier: Apache-2.0 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "engine/engine_internal.h"

static int copy(char *to, size_t room, const char *from, const char *field, struct error *err)
{
    if (strlen(from) >= room)
        return error_set(err, -ENAMETOOLONG, "%s is too long: at most %zu bytes", field, room - 1);
    memcpy(to, from, strlen(from) + 1);
    return 0;
}

static int read_volume(json_t *object, struct engine_config *c, struct error *err)
{
    const char *name, *backing;
    size_t i = c->volume_count;
    int r = json_reject_unknown(object, err, "name", "size_bytes", "backing", "adopt", NULL);
    if (r == 0)
        r = json_get_string(object, "name", &name, err);
    if (r == 0)
        r = json_get_string(object, "backing", &backing, err);
    if (r == 0)
        r = json_get_u64(object, "size_bytes", &c->volumes[i].size_bytes, err);
    if (r == 0)
        r = json_get_optional_bool(object, "adopt", &c->volumes[i].adopt, err);
    if (r == 0)
        r = copy(c->volumes[i].name, sizeof c->volumes[i].name, name, "volumes[].name", err);
    if (r == 0)
        r = copy(c->volumes[i].backing, sizeof c->volumes[i].backing, backing, "volumes[].backing", err);
    if (r == 0)
        c->volume_count++;
    return r;
}

static int read_source(json_t *object, struct engine_config *c, struct error *err)
{
    const char *journal, *pin, *key_file = "";
    int r = json_reject_unknown(object, err, "journal", "pin", "key_file", NULL);
    if (r == 0)
        r = json_get_string(object, "journal", &journal, err);
    if (r == 0)
        r = json_get_string(object, "pin", &pin, err);
    if (r == 0)
        r = json_get_optional_string(object, "key_file", &key_file, err);
    if (r == 0)
        r = copy(c->source.journal, sizeof c->source.journal, journal, "source.journal", err);
    if (r == 0)
        r = copy(c->source.pin, sizeof c->source.pin, pin, "source.pin", err);
    if (r == 0)
        r = copy(c->source.key_file, sizeof c->source.key_file, key_file, "source.key_file", err);
    return r;
}

/* The steps must be as the policy's: ascending in both. */
int engine_config_thinning(json_t *list, struct engine_config *c, struct error *err)
{
    json_t *object;
    size_t i;
    if (json_array_size(list) > JOURNAL_MAX_THINNING)
        return error_set(err, -EINVAL, "thinning: expected at most %u steps", JOURNAL_MAX_THINNING);
    json_array_foreach(list, i, object) {
        uint64_t keep_s;
        struct journal_thinning *step = &c->thinning[i];
        int r = json_reject_unknown(object, err, "after_ns", "keep_s", NULL);
        if (r == 0)
            r = json_get_u64(object, "after_ns", &step->after_ns, err);
        if (r == 0)
            r = json_get_u64(object, "keep_s", &keep_s, err);
        bool rises = i == 0 || (step->after_ns > step[-1].after_ns && keep_s > step[-1].keep_s);
        if (r == 0 && (keep_s == 0 || keep_s > UINT32_MAX || !rises))
            r = error_set(err, -EINVAL, "after_ns %llu, keep_s %llu: expected more than in the step before",
                          (unsigned long long)step->after_ns, (unsigned long long)keep_s);
        if (r < 0)
            return error_context(err, "thinning[%zu]", i);
        step->keep_s = (uint32_t)keep_s;
        c->thinning_count = i + 1;
    }
    return 0;
}

static int read_config(json_t *object, struct engine_config *c, struct error *err)
{
    const char *application, *journal, *socket, *ack = "write", *failure_mode = "availability", *key_file = "";
    json_t *volumes, *volume, *thinning = NULL, *source = NULL;
    size_t i;
    int r = json_reject_unknown(object, err, "application", "journal", "socket", "ack", "failure_mode", "quota_bytes", "history_ns", "thinning",
                                "compress_after_ns", "seed_bytes_per_second", "key_file", "source", "volumes", NULL);
    if (r == 0)
        r = json_get_string(object, "application", &application, err);
    if (r == 0)
        r = json_get_string(object, "journal", &journal, err);
    if (r == 0)
        r = json_get_string(object, "socket", &socket, err);
    if (r == 0)
        r = json_get_optional_string(object, "ack", &ack, err);
    if (r == 0)
        r = json_get_optional_string(object, "failure_mode", &failure_mode, err);
    if (r == 0)
        r = json_get_optional_string(object, "key_file", &key_file, err);
    if (r == 0)
        r = json_get_optional_u64(object, "quota_bytes", &c->quota_bytes, err);
    if (r == 0)
        r = json_get_optional_u64(object, "history_ns", &c->history_ns, err);
    c->compress_after_ns = UINT64_MAX;
    if (r == 0)
        r = json_get_optional_u64(object, "compress_after_ns", &c->compress_after_ns, err);
    c->seed_bytes_per_second = GROUP_SEED_BYTES_PER_SECOND;
    if (r == 0)
        r = json_get_optional_u64(object, "seed_bytes_per_second", &c->seed_bytes_per_second, err);
    if (r == 0)
        r = json_get_optional_array(object, "thinning", &thinning, err);
    if (r == 0 && thinning)
        r = engine_config_thinning(thinning, c, err);
    if (r == 0)
        r = json_get_optional_object(object, "source", &source, err);
    if (r == 0 && source)
        r = read_source(source, c, err);
    if (r == 0)
        r = json_get_array(object, "volumes", &volumes, err);
    if (r == 0)
        r = copy(c->application, sizeof c->application, application, "application", err);
    if (r == 0)
        r = copy(c->journal, sizeof c->journal, journal, "journal", err);
    if (r == 0)
        r = copy(c->socket, sizeof c->socket, socket, "socket", err);
    if (r == 0)
        r = copy(c->key_file, sizeof c->key_file, key_file, "key_file", err);
    if (r < 0)
        return r;
    if (strcmp(ack, "write") != 0 && strcmp(ack, "flush") != 0)
        return error_set(err, -EINVAL, "ack is '%s': expected write or flush", ack);
    c->ack = strcmp(ack, "flush") == 0 ? GROUP_ACK_FLUSH : GROUP_ACK_WRITE;
    if (strcmp(failure_mode, "availability") != 0 && strcmp(failure_mode, "protection") != 0)
        return error_set(err, -EINVAL, "failure_mode is '%s': expected availability or protection", failure_mode);
    c->holds = strcmp(failure_mode, "protection") == 0;
    if (json_array_size(volumes) == 0 || json_array_size(volumes) > GROUP_MAX_VOLUMES)
        return error_set(err, -EINVAL, "volumes: expected 1 to %u of them", GROUP_MAX_VOLUMES);
    json_array_foreach(volumes, i, volume) {
        r = read_volume(volume, c, err);
        if (r < 0)
            return error_context(err, "volumes[%zu]", i);
    }
    return 0;
}

int engine_config_load(const char *path, struct engine_config *ret, struct error *err)
{
    _cleanup_json_ json_t *object = NULL;
    memset(ret, 0, sizeof *ret);
    int r = json_parse_file(path, &object, err);
    if (r == 0)
        r = read_config(object, ret, err);
    return r < 0 ? error_context(err, "%s", path) : 0;
}
