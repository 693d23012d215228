/* SPDX-License-Identifier: Apache-2.0 */
#include "controller/object_shelf.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/io.h"
#include "lib/aead.h"
#include "lib/json.h"

/* One object's text, and in the file its tag after it. The nonce is its number. */
struct slot {
    char *text; /* NULL: it is in the file */
    uint64_t offset;
    size_t length_bytes;
};

struct object_shelf {
    char *directory; /* NULL: there is no file, and will be none */
    int fd;          /* -1: no file yet */
    struct aead *aead;
    uint64_t end;
    size_t held_bytes; /* in memory */
    json_t *numbers; /* {name: slot} */
    struct slot *slots;
    size_t count, capacity;
};

static int open_nameless(const char *directory)
{
    char path[4096];
    int fd = snprintf(path, sizeof path, "%s/.shelf-XXXXXX", directory) < (int)sizeof path
                 ? mkostemp(path, O_CLOEXEC)
                 : -1;
    if (fd >= 0)
        (void)unlink(path);
    return fd;
}

int object_shelf_new(const char *directory, struct object_shelf **ret, struct error *err)
{
    uint8_t key[AEAD_KEY_BYTES];
    struct object_shelf *shelf = calloc(1, sizeof *shelf);
    if (!shelf || !(shelf->numbers = json_object()) || (directory && !(shelf->directory = strdup(directory)))) {
        json_decref(shelf ? shelf->numbers : NULL);
        free(shelf);
        return error_set(err, -ENOMEM, "out of memory");
    }
    shelf->fd = -1;
    int r = aead_random(key, sizeof key) < 0 ? error_set(err, -EIO, "no random bytes for a key")
                                             : aead_new(key, &shelf->aead, err);
    aead_wipe(key, sizeof key);
    if (r < 0) {
        object_shelf_free(shelf);
        return r;
    }
    *ret = shelf;
    return 0;
}

static void free_text(char *text, size_t length_bytes)
{
    if (text)
        aead_wipe(text, length_bytes); /* it may be a Secret */
    free(text);
}

void object_shelf_free(struct object_shelf *shelf)
{
    if (!shelf)
        return;
    for (size_t i = 0; i < shelf->count; i++)
        free_text(shelf->slots[i].text, shelf->slots[i].length_bytes);
    if (shelf->fd >= 0)
        close(shelf->fd);
    aead_free(shelf->aead);
    json_decref(shelf->numbers);
    free(shelf->slots);
    free(shelf->directory);
    free(shelf);
}

static void nonce_of(size_t number, uint8_t nonce[AEAD_NONCE_BYTES])
{
    uint64_t n = number;
    memset(nonce, 0, AEAD_NONCE_BYTES);
    memcpy(nonce, &n, sizeof n);
}

/* Into the file. `text` has room for the tag, and is sealed in place. */
static int write_slot(struct object_shelf *shelf, size_t number, char *text, struct slot *slot)
{
    uint8_t nonce[AEAD_NONCE_BYTES];
    const struct aead_part part = {text, text, slot->length_bytes};
    nonce_of(number, nonce);
    slot->offset = shelf->end;
    int r = aead_seal(shelf->aead, nonce, &part, 1, (uint8_t *)text + slot->length_bytes);
    if (r == 0)
        r = io_pwrite_full(shelf->fd, text, slot->length_bytes + AEAD_TAG_BYTES, slot->offset);
    if (r == 0)
        shelf->end += slot->length_bytes + AEAD_TAG_BYTES;
    return r;
}

/* Few objects need no file; and one that would leave too little to the journals beside it takes no more: it is a recovery's own changes that
 * they are about to record. */
static bool wants_file(struct object_shelf *shelf, size_t length_bytes)
{
    struct statvfs disk;
    if (shelf->held_bytes + length_bytes <= SHELF_MEMORY_BYTES || !shelf->directory)
        return false;
    if (shelf->fd < 0 && (shelf->fd = open_nameless(shelf->directory)) < 0) {
        free(take_ptr(shelf->directory));
        return false;
    }
    return fstatvfs(shelf->fd, &disk) == 0 && disk.f_bavail * disk.f_frsize >= length_bytes + SHELF_SPARED_BYTES;
}

static int grow(struct object_shelf *shelf)
{
    if (shelf->count < shelf->capacity)
        return 0;
    size_t capacity = shelf->capacity ? 2 * shelf->capacity : 64;
    struct slot *slots = reallocarray(shelf->slots, capacity, sizeof *slots);
    if (!slots)
        return -ENOMEM;
    shelf->slots = slots;
    shelf->capacity = capacity;
    return 0;
}

/* What is in the file stays there. */
static void let_go(struct object_shelf *shelf, const char *name)
{
    const json_t *number = json_object_get(shelf->numbers, name);
    struct slot *slot = number ? &shelf->slots[json_integer_value(number)] : NULL;
    if (!slot || !slot->text)
        return;
    free_text(take_ptr(slot->text), slot->length_bytes);
    shelf->held_bytes -= slot->length_bytes;
}

int object_shelf_put(struct object_shelf *shelf, const char *name, const json_t *object, struct error *err)
{
    _cleanup_free_ char *sealed = NULL;
    char *text = json_to_text(object);
    struct slot slot = {.length_bytes = text ? strlen(text) : 0};
    size_t number = shelf->count;
    let_go(shelf, name);
    bool file = text && wants_file(shelf, slot.length_bytes);
    if (!text || grow(shelf) < 0 || (file && !(sealed = malloc(slot.length_bytes + AEAD_TAG_BYTES))) ||
        json_object_set_new(shelf->numbers, name, json_integer((json_int_t)number)) < 0) {
        free_text(text, slot.length_bytes);
        return error_set(err, -ENOMEM, "%s: out of memory", name);
    }
    if (file) {
        memcpy(sealed, text, slot.length_bytes);
        file = write_slot(shelf, number, sealed, &slot) == 0;
    }
    if (file) {
        free_text(text, slot.length_bytes);
    } else {
        slot.text = text;
        shelf->held_bytes += slot.length_bytes;
    }
    shelf->slots[shelf->count++] = slot;
    return 0;
}

void object_shelf_drop(struct object_shelf *shelf, const char *name)
{
    let_go(shelf, name);
    (void)json_object_del(shelf->numbers, name);
}

int object_shelf_rename(struct object_shelf *shelf, const json_t *names)
{
    _cleanup_json_ json_t *numbers = json_object();
    const char *name;
    json_t *number;
    json_object_foreach(shelf->numbers, name, number)
    {
        const char *now = json_string_value(json_object_get(names, name));
        if (json_object_set(numbers, now ? now : name, number) < 0)
            return -ENOMEM;
    }
    json_decref(shelf->numbers);
    shelf->numbers = take_ptr(numbers);
    return 0;
}

int object_shelf_get(struct object_shelf *shelf, const char *name, json_t **ret, struct error *err)
{
    const json_t *number = json_object_get(shelf->numbers, name);
    if (!number)
        return error_set(err, -ENOENT, "%s was not put away", name);
    const size_t n = (size_t)json_integer_value(number);
    const struct slot *slot = &shelf->slots[n];
    if (slot->text)
        return json_parse_foreign(name, slot->text, slot->length_bytes, ret, err);
    char *text = malloc(slot->length_bytes + AEAD_TAG_BYTES);
    uint8_t nonce[AEAD_NONCE_BYTES];
    const struct aead_part part = {text, text, slot->length_bytes};
    nonce_of(n, nonce);
    int r =
        text ? io_pread_full(shelf->fd, text, slot->length_bytes + AEAD_TAG_BYTES, slot->offset) : -ENOMEM;
    if (r == 0)
        r = aead_open(shelf->aead, nonce, &part, 1, (const uint8_t *)text + slot->length_bytes);
    r = r < 0 ? error_errno(err, r, "%s cannot be read again", name)
              : json_parse_foreign(name, text, slot->length_bytes, ret, err);
    free_text(text, slot->length_bytes);
    return r;
}
