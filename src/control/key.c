/* SPDX-License-Identifier: Apache-2.0 */
/* `key rotate`: another key file opens an application's journal from now on. Its data is not written again:
 * only the data key is wrapped anew. Each step leaves a journal that the configuration opens: both key files
 * do, then the configuration names the new one, then only that one does. Rotating again after a failure goes
 * on with the next. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control/control_internal.h"
#include "journal/seal.h"

#define KEY_WAIT_MS 10000

static int rotate(struct application *a, const char *key_file, struct error *err)
{
    char journal[PATH_MAX];
    int r = application_path(a, journal, err, "journal");
    if (r == 0)
        r = seal_add_key(journal, a->spec->key_file, key_file, err);
    if (r < 0)
        return r;
    char *copy = strdup(key_file);
    if (!copy)
        return error_set(err, -ENOMEM, "out of memory");
    pthread_mutex_lock(&a->mutex);
    char *old = a->spec->key_file;
    a->spec->key_file = copy;
    pthread_mutex_unlock(&a->mutex);
    free(old);
    r = application_save(a, err);
    if (r == 0)
        r = export_write_engine_config(a, err);
    return r < 0 ? r : seal_keep_key(journal, key_file, err);
}

int key_rotate(struct application *a, const char *key_file, json_t **ret, struct error *err)
{
    char id[SEAL_KEY_ID_TEXT_BYTES];
    struct seal_user_key key;
    if (key_file[0] != '/')
        return error_set(err, -EINVAL, "key_file: expected an absolute path");
    int r = clone_check_unused(a->control, a->name, err); /* clones that are being copied open it by the key file that they know */
    if (r == 0)
        r = application_begin(a, "key rotate", KEY_WAIT_MS, err);
    if (r < 0)
        return r;
    if (!a->spec->key_file)
        r = error_set(err, -EINVAL,
                      "the journal of %s is not encrypted: encryption is chosen when an application is made",
                      a->name);
    if (r == 0)
        r = seal_key_load(key_file, &key, err);
    if (r == 0)
        r = rotate(a, key_file, err);
    application_end(a);
    if (r == 0) {
        seal_key_id_format(key.id, id);
        log_info(a->control->log, "%s: its journal is opened by key %s of %s now", a->name, id, key_file);
        *ret = json_pack("{s:s, s:s, s:s}", "application", a->name, "key_file", key_file, "key_id", id);
    }
    aead_wipe(&key, sizeof key);
    return r;
}

json_t *key_to_json(const struct application *a)
{
    char journal[PATH_MAX], id[SEAL_KEY_ID_TEXT_BYTES];
    struct error ignored = ERROR_INIT;
    if (!a->spec->key_file)
        return json_null();
    bool known =
        application_path(a, journal, &ignored, "journal") == 0 && seal_journal_key_id(journal, id) == 0;
    return json_pack("{s:s, s:s?}", "key_file", a->spec->key_file, "key_id", known ? id : NULL);
}
