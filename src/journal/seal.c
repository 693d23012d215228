/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/seal.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "journal/manifest.h"

#define CONTEXT_MAX_BYTES 128u

struct seal {
    struct seal *next;
    char directory[PATH_MAX];
    bool plain; /* the directory was encrypted once, and is not any more */
    uint8_t data_key[AEAD_KEY_BYTES];
};

/* Entries stay until the process ends: readers may hold them. The newest of a directory counts. */
static pthread_mutex_t registry_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct seal *registry;

static bool is_below(const char *path, const char *directory)
{
    size_t length = strlen(directory);
    return strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == '\0');
}

struct seal *seal_of(const char *path)
{
    MUTEX_GUARD(guard, &registry_mutex);
    for (struct seal *s = registry; s; s = s->next)
        if (is_below(path, s->directory))
            return s->plain ? NULL : s;
    return NULL;
}

/* data_key NULL: plain. */
static int make_known(const char *directory, const uint8_t *data_key, struct error *err)
{
    struct seal *before = seal_of(directory);
    if (data_key ? before && strcmp(before->directory, directory) == 0 &&
                       memcmp(before->data_key, data_key, AEAD_KEY_BYTES) == 0
                 : !before)
        return 0;
    struct seal *s = calloc(1, sizeof *s);
    if (!s)
        return error_errno(err, -ENOMEM, "cannot open the journal %s", directory);
    snprintf(s->directory, sizeof s->directory, "%s", directory);
    s->plain = !data_key;
    if (data_key)
        memcpy(s->data_key, data_key, sizeof s->data_key);
    MUTEX_GUARD(guard, &registry_mutex);
    s->next = registry;
    registry = s;
    return 0;
}

int seal_unlock(const char *directory, const char *key_file, struct error *err)
{
    uint8_t data_key[AEAD_KEY_BYTES];
    bool sealed = seal_exists(directory), wanted = key_file && key_file[0], exists = manifest_exists(directory);
    if (!exists && !sealed && wanted) { /* a new one */
        struct seal_user_key user;
        int r = seal_key_load(key_file, &user, err);
        aead_wipe(&user, sizeof user);
        return r;
    }
    if (exists && !sealed && wanted && manifest_is_encrypted(directory))
        return error_set(err, -EBADMSG,
                         "the journal %s is encrypted, and both copies of its wrapped key (key, key.copy) are missing: put "
                         "one back",
                         directory);
    if (exists && !sealed && wanted)
        return error_set(err, -EINVAL,
                         "the journal %s is not encrypted: encryption is chosen when an application is made; "
                         "take the key file "
                         "out of its configuration",
                         directory);
    if (exists && sealed && !wanted)
        return error_set(err, -EKEYREJECTED,
                         "the journal %s is encrypted: name its key file (spec.journal.encryption.keyFile)",
                         directory);
    if (!wanted || !sealed)
        return make_known(directory, NULL, err);
    int r = seal_read_data_key(directory, key_file, data_key, err);
    if (r == 0)
        r = make_known(directory, data_key, err);
    aead_wipe(data_key, sizeof data_key);
    return r;
}

int seal_unlock_also(const char *directory, const char *other, struct error *err)
{
    const struct seal *s = seal_of(directory);
    return make_known(other, s ? s->data_key : NULL, err);
}

int seal_derive(const struct seal *s, const char *purpose, const void *context, size_t context_bytes,
                uint8_t ret[AEAD_KEY_BYTES])
{
    /* HKDF-Expand (RFC 5869) of one block: the data key is uniformly random. */
    uint8_t info[CONTEXT_MAX_BYTES];
    size_t used = strlen(purpose) + 1;
    if (used + context_bytes + 1 > sizeof info)
        return -EINVAL;
    memcpy(info, purpose, used);
    if (context_bytes)
        memcpy(info + used, context, context_bytes);
    info[used + context_bytes] = 1;
    return aead_mac(s->data_key, sizeof s->data_key, info, used + context_bytes + 1, ret);
}

int seal_aead(const struct seal *s, const char *purpose, const void *context, size_t context_bytes,
              struct aead **ret, struct error *err)
{
    uint8_t key[AEAD_KEY_BYTES];
    int r = seal_derive(s, purpose, context, context_bytes, key);
    r = r < 0 ? error_set(err, r, "cannot derive a key for %s", purpose) : aead_new(key, ret, err);
    aead_wipe(key, sizeof key);
    return r;
}
