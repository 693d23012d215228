/* SPDX-License-Identifier: Apache-2.0 */
#include "app/objects_diff.h"

#include <errno.h>
#include <stdio.h>

#include "app/objects_internal.h"

struct differ {
    json_t *fields;
    size_t count;
    bool secret; /* the object is a Secret */
    char path[OBJECT_PATH_BYTES];
};

static int differ_value(struct differ *d, json_t *from, json_t *to, bool hidden);

static bool hides(const struct differ *d)
{
    return d->secret && (objects_has_prefix(d->path, "data.") || objects_has_prefix(d->path, "stringData.") ||
                         strcmp(d->path, "data") == 0 || strcmp(d->path, "stringData") == 0);
}

static int note(struct differ *d, const json_t *from, const json_t *to, bool hidden)
{
    if (d->count++ >= OBJECTS_DIFF_FIELDS_MAX)
        return 0;
    json_t *entry = json_pack("{s:s}", "path", d->path);
    int r = 0;
    if (hidden || hides(d)) {
        r = json_object_set_new(entry, "hidden", json_true());
        /* Whether it is there may be known, what it is not. */
        json_t *from_shown = from ? json_string("(hidden)") : NULL,
               *to_shown = to ? json_string("(hidden)") : NULL;
        if (from_shown)
            r |= json_object_set_new(entry, "from", from_shown);
        if (to_shown)
            r |= json_object_set_new(entry, "to", to_shown);
    } else {
        if (from)
            r |= json_object_set_new(entry, "from", json_deep_copy(from));
        if (to)
            r |= json_object_set_new(entry, "to", json_deep_copy(to));
    }
    return json_array_append_new(d->fields, entry) < 0 || r < 0 ? -ENOMEM : 0;
}

/* {"name": "DB_PASSWORD", "value": ...}: the value is hidden. */
static bool names_a_secret(const json_t *object)
{
    const char *name = objects_text(object, "name");
    return name[0] && objects_key_is_sensitive(name) && json_is_string(json_object_get(object, "value"));
}

static int differ_key(struct differ *d, const char *key, json_t *from, json_t *to, bool hidden)
{
    size_t length = strlen(d->path);
    snprintf(d->path + length, sizeof d->path - length, "%s%s", length ? "." : "", key);
    int r = differ_value(d, from, to, hidden);
    d->path[length] = '\0';
    return r;
}

static int differ_objects(struct differ *d, json_t *from, json_t *to, bool hidden)
{
    const char *key;
    json_t *value;
    bool env = names_a_secret(from) || names_a_secret(to);
    int r = 0;
    json_object_foreach(from, key, value)
    {
        bool text = json_is_string(value) || json_is_string(json_object_get(to, key));
        if (r == 0)
            r = differ_key(d, key, value, json_object_get(to, key),
                           hidden || (env && strcmp(key, "value") == 0) ||
                               (text && objects_key_is_sensitive(key) && strcmp(key, "secretName") != 0 &&
                                !objects_has_suffix(key, "Name")));
    }
    json_object_foreach(to, key, value)
    {
        if (r == 0 && !json_object_get(from, key))
            r = differ_key(d, key, NULL, value,
                           hidden || (env && strcmp(key, "value") == 0) ||
                               (json_is_string(value) && objects_key_is_sensitive(key) &&
                                strcmp(key, "secretName") != 0 && !objects_has_suffix(key, "Name")));
    }
    return r;
}

const char *objects_list_key(json_t *from, json_t *to)
{
    static const char *const keys[] = {"name", "key", "mountPath", "containerPort", "port", "host", "ip"};
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++) {
        bool good = true;
        for (int side = 0; side < 2 && good; side++) {
            _cleanup_json_ json_t *seen = json_object();
            size_t i;
            json_t *element;
            json_array_foreach(side ? to : from, i, element)
            {
                const json_t *value = json_object_get(element, keys[k]);
                char text[OBJECT_PATH_BYTES];
                if (json_is_integer(value))
                    snprintf(text, sizeof text, "%lld", (long long)json_integer_value(value));
                else
                    snprintf(text, sizeof text, "%s", json_is_string(value) ? json_string_value(value) : "");
                good = good && text[0] && !json_object_get(seen, text);
                if (good)
                    json_object_set_new(seen, text, json_true());
            }
        }
        if (good)
            return keys[k];
    }
    return NULL;
}

json_t *objects_list_find(json_t *list, const char *key, const json_t *value)
{
    size_t i;
    json_t *element;
    json_array_foreach(list, i, element)
    {
        if (json_equal(json_object_get(element, key), value))
            return element;
    }
    return NULL;
}

static int differ_element(struct differ *d, const char *label, json_t *from, json_t *to, bool hidden)
{
    size_t length = strlen(d->path);
    snprintf(d->path + length, sizeof d->path - length, "[%s]", label);
    int r = differ_value(d, from, to, hidden);
    d->path[length] = '\0';
    return r;
}

static int differ_lists(struct differ *d, json_t *from, json_t *to, bool hidden)
{
    const char *key = objects_list_key(from, to);
    int r = 0;
    for (int side = 0; side < 2; side++) {
        json_t *list = side ? to : from, *other = side ? from : to, *element;
        size_t i;
        json_array_foreach(list, i, element)
        {
            char label[128];
            const json_t *value = key ? json_object_get(element, key) : NULL;
            json_t *twin = key ? objects_list_find(other, key, value) : json_array_get(other, i);
            if (json_is_string(value))
                snprintf(label, sizeof label, "%s", json_string_value(value));
            else
                snprintf(label, sizeof label, "%lld",
                         value ? (long long)json_integer_value(value) : (long long)i);
            if (r == 0 && side == 0)
                r = differ_element(d, label, element, twin, hidden);
            else if (r == 0 && !twin)
                r = differ_element(d, label, NULL, element, hidden);
        }
    }
    return r;
}

/* A tree that appears or goes is told as a whole, unless something in it must be hidden. */
static bool holds_sensitive(const json_t *value)
{
    const char *key;
    json_t *below;
    size_t i;
    if (names_a_secret(value))
        return true;
    json_object_foreach((json_t *)(uintptr_t)value, key, below)
    {
        if ((json_is_string(below) && objects_key_is_sensitive(key)) || holds_sensitive(below))
            return true;
    }
    json_array_foreach(value, i, below)
    {
        if (holds_sensitive(below))
            return true;
    }
    return false;
}

static int differ_value(struct differ *d, json_t *from, json_t *to, bool hidden)
{
    if (from && to && json_equal(from, to))
        return 0;
    if ((json_is_object(from) && json_is_object(to)) ||
        (!hidden && (json_is_object(from) || json_is_object(to)) && (!from || !to) &&
         holds_sensitive(from ? from : to)))
        return differ_objects(d, from, to, hidden);
    if (json_is_array(from) && json_is_array(to))
        return differ_lists(d, from, to, hidden);
    return note(d, from, to, hidden || holds_sensitive(from) || holds_sensitive(to));
}

static int diff_one(const char *name, json_t *from, json_t *to, json_t *objects, size_t counts[4])
{
    if (from && to && json_equal(from, to)) {
        counts[3]++;
        return 0;
    }
    const char *change = !from ? "created" : to ? "changed" : "deleted";
    counts[!from ? 0 : to ? 1 : 2]++;
    json_t *entry = json_pack("{s:s, s:s}", "object", name, "change", change);
    if (json_array_append_new(objects, entry) < 0)
        return -ENOMEM;
    if (!from || !to)
        return 0;
    struct differ d = {.fields = json_array(), .secret = object_is_secret(from) || object_is_secret(to)};
    int r = differ_objects(&d, from, to, false);
    if (json_object_set_new(entry, "fields", d.fields) < 0)
        r = -ENOMEM;
    if (r == 0 && d.count > OBJECTS_DIFF_FIELDS_MAX &&
        json_object_set_new(entry, "moreFields",
                            json_integer((json_int_t)(d.count - OBJECTS_DIFF_FIELDS_MAX))) < 0)
        r = -ENOMEM;
    return r;
}

int objects_diff(const json_t *from, const json_t *to, json_t **ret, struct error *err)
{
    _cleanup_json_ json_t *all = json_object(), *names = NULL, *objects = json_array();
    size_t counts[4] = {0}, i;
    json_t *name;
    int r = json_object_update(all, (json_t *)(uintptr_t)from) < 0 ||
                    json_object_update(all, (json_t *)(uintptr_t)to) < 0 || !objects
                ? -ENOMEM
                : 0;
    names = r == 0 ? objects_sorted_names(all) : NULL;
    if (!names)
        return objects_no_memory(err);
    json_array_foreach(names, i, name)
    {
        const char *text = json_string_value(name);
        if (r == 0)
            r = diff_one(text, json_object_get(from, text), json_object_get(to, text), objects, counts);
    }
    json_t *result = r == 0 ? json_pack("{s:I, s:I, s:I, s:I, s:O}", "created", (json_int_t)counts[0],
                                        "changed", (json_int_t)counts[1], "deleted", (json_int_t)counts[2],
                                        "same", (json_int_t)counts[3], "objects", objects)
                            : NULL;
    if (!result)
        return objects_no_memory(err);
    *ret = result;
    return 0;
}

static void print_value(FILE *out, const json_t *value)
{
    if (!value) {
        fputs("(none)", out);
        return;
    }
    _cleanup_free_ char *text = json_to_text(value);
    size_t length = text ? strlen(text) : 0;
    size_t cut = length > OBJECTS_DIFF_VALUE_BYTES ? OBJECTS_DIFF_VALUE_BYTES : length;
    while (cut < length && cut > 0 && ((unsigned char)text[cut] & 0xc0) == 0x80)
        cut--; /* not in the middle of a character */
    fprintf(out, "%.*s%s", (int)cut, text ? text : "", cut < length ? "..." : "");
}

char *objects_diff_text(const json_t *diff)
{
    char *text = NULL;
    size_t size, i, k;
    json_t *entry, *field;
    FILE *out = open_memstream(&text, &size);
    if (!out)
        return NULL;
    json_array_foreach(json_object_get(diff, "objects"), i, entry)
    {
        const char *change = objects_text(entry, "change");
        fprintf(out, "%c %s\n",
                strcmp(change, "created") == 0   ? '+'
                : strcmp(change, "deleted") == 0 ? '-'
                                                 : '~',
                objects_text(entry, "object"));
        json_array_foreach(json_object_get(entry, "fields"), k, field)
        {
            fprintf(out, "    %s: ", objects_text(field, "path"));
            print_value(out, json_object_get(field, "from"));
            fputs(" -> ", out);
            print_value(out, json_object_get(field, "to"));
            fputc('\n', out);
        }
        if (json_object_get(entry, "moreFields"))
            fprintf(out, "    and %lld more fields\n",
                    (long long)json_integer_value(json_object_get(entry, "moreFields")));
    }
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    return text;
}
