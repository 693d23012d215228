/* SPDX-License-Identifier: Apache-2.0 */
/* Key files of users, and the journal's `key`: the data key wrapped by one or, during a rotation, two of
 * them. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/seal.h"

#define KEY_PREFIX "tidemark-key-1:"
#define KEY_FILE_LIMIT_BYTES 4096u
#define KEY_ID_LABEL "tidemark key id"

static const char *const key_names[] = {"key", "key.copy"};

/* ---- users' key files ---- */

static int set_id(struct seal_user_key *k)
{
    uint8_t mac[AEAD_MAC_BYTES];
    int r = aead_mac(k->key, sizeof k->key, KEY_ID_LABEL, sizeof KEY_ID_LABEL - 1, mac);
    memcpy(k->id, mac, sizeof k->id);
    return r;
}

static void to_hex(const uint8_t *bytes, size_t count, char *text)
{
    for (size_t i = 0; i < count; i++)
        snprintf(text + 2 * i, 3, "%02x", bytes[i]);
}

const char *seal_key_id_format(const uint8_t id[SEAL_KEY_ID_BYTES], char text[SEAL_KEY_ID_TEXT_BYTES])
{
    to_hex(id, SEAL_KEY_ID_BYTES, text);
    return text;
}

int seal_key_generate(const char *path, struct seal_user_key *ret, struct error *err)
{
    char text[512], hex[2 * AEAD_KEY_BYTES + 1], id[SEAL_KEY_ID_TEXT_BYTES];
    if (aead_random(ret->key, sizeof ret->key) < 0 || set_id(ret) < 0)
        return error_set(err, -EIO, "cannot make a key: no random bytes");
    to_hex(ret->key, sizeof ret->key, hex);
    int length = snprintf(text, sizeof text,
                          "# Key %s of Tidemark. Whoever has it can read the journals that it protects; "
                          "without it nobody can.\n"
                          "# Keep a copy where the journals are not.\n" KEY_PREFIX "%s\n",
                          seal_key_id_format(ret->id, id), hex);
    int r = 0;
    _cleanup_close_ int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (fd < 0)
        r = error_errno(err, -errno, "cannot create the key file %s", path);
    else if ((r = io_pwrite_full(fd, text, (size_t)length, 0)) < 0 || (fsync(fd) < 0 && (r = -errno))) {
        unlink(path);
        r = error_errno(err, r, "cannot write the key file %s", path);
    }
    aead_wipe(text, sizeof text);
    aead_wipe(hex, sizeof hex);
    return r;
}

static bool from_hex(const char *text, uint8_t *bytes, size_t count)
{
    static const char digits[] = "0123456789abcdef";
    for (size_t i = 0; i < 2 * count; i++) {
        const char *d = text[i] ? strchr(digits, text[i]) : NULL;
        if (!d)
            return false;
        bytes[i / 2] = (uint8_t)(bytes[i / 2] << 4 | (d - digits));
    }
    return true;
}

int seal_key_load(const char *path, struct seal_user_key *ret, struct error *err)
{
    struct stat st;
    char text[KEY_FILE_LIMIT_BYTES + 1];
    _cleanup_close_ int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0)
        return error_set(err, -ENOKEY, "cannot read the key file %s: %s", path, strerrordesc_np(errno));
    if (!S_ISREG(st.st_mode) || st.st_mode & 077) /* of the very file that is read */
        return error_set(err, -EKEYREJECTED,
                         "the key file %s can be used by others than its owner: chmod 600 %s", path, path);
    if (st.st_size > (off_t)KEY_FILE_LIMIT_BYTES)
        return error_set(err, -EFBIG, "the key file %s is larger than %u bytes", path, KEY_FILE_LIMIT_BYTES);
    ssize_t length = pread(fd, text, KEY_FILE_LIMIT_BYTES, 0);
    if (length < 0)
        return error_set(err, -ENOKEY, "cannot read the key file %s: %s", path, strerrordesc_np(errno));
    text[length] = '\0';
    const char *line = text;
    while (line && (*line == '#' || *line == '\n'))
        line = (line = strchr(line, '\n')) ? line + 1 : NULL;
    size_t digits = 2 * AEAD_KEY_BYTES;
    bool good =
        line && strncmp(line, KEY_PREFIX, strlen(KEY_PREFIX)) == 0 &&
        strlen(line) >= strlen(KEY_PREFIX) + digits &&
        from_hex(line + strlen(KEY_PREFIX), ret->key, sizeof ret->key) &&
        strspn(line + strlen(KEY_PREFIX) + digits, "\n") == strlen(line + strlen(KEY_PREFIX) + digits);
    aead_wipe(text, sizeof text);
    if (!good || set_id(ret) < 0)
        return error_set(err, -EINVAL, "%s is not a key file: `tidemark key generate` makes one", path);
    return 0;
}

/* ---- the journal's key ---- */

static void key_path(const char *directory, size_t which, char path[PATH_MAX])
{
    snprintf(path, PATH_MAX, "%s/%s", directory, key_names[which]);
}

/* `data` is at least one byte longer than the struct, as io_read_file leaves it. */
static bool is_whole(const char *data, size_t length)
{
    struct seal_key_file f;
    if (length != sizeof f)
        return false;
    memcpy(&f, data, sizeof f);
    uint32_t crc = le32_get(f.crc);
    f.crc = le32_of(0);
    return le64_get(f.magic) == SEAL_KEY_MAGIC && crc32c(0, &f, sizeof f) == crc;
}

static int read_one(const char *directory, size_t which, struct seal_key_file *ret, struct error *err)
{
    char path[PATH_MAX];
    _cleanup_free_ char *data = NULL;
    size_t length = 0;
    key_path(directory, which, path);
    int r = io_read_file(path, KEY_FILE_LIMIT_BYTES, &data, &length, err);
    if (r < 0)
        return r;
    if (!is_whole(data, length))
        return error_set(err, -EBADMSG, "%s is damaged", path);
    memcpy(ret, data, sizeof *ret);
    if (le32_get(ret->version) != SEAL_VERSION)
        return error_set(err, -EPROTONOSUPPORT, "%s has version %u; use a newer tidemark", path,
                         le32_get(ret->version));
    return 0;
}

/* Either of the two copies is enough. */
static int read_key(const char *directory, struct seal_key_file *ret, struct error *err)
{
    struct error other = ERROR_INIT;
    int r = read_one(directory, 0, ret, err);
    if (r == 0)
        return 0;
    int second = read_one(directory, 1, ret, &other);
    if (second == 0) {
        *err = ERROR_INIT;
        return 0;
    }
    struct error first = *err;
    return r == -ENOENT || r == -EIO || r == -EBADMSG
               ? error_set(err, second == -ENOENT || second == -EIO ? -EBADMSG : second,
                           "%.200s, and so is its copy: %.200s; put one of the two back", first.message, other.message)
               : r;
}

static int write_key(const char *directory, struct seal_key_file *f, struct error *err)
{
    char path[PATH_MAX];
    int r = 0;
    f->crc = le32_of(0);
    f->crc = le32_of(crc32c(0, f, sizeof *f));
    for (size_t i = 0; i < 2 && r == 0; i++) {
        key_path(directory, i, path);
        r = io_replace_file(path, f, sizeof *f, 0600, err);
    }
    return r;
}

bool seal_exists(const char *directory)
{
    char path[PATH_MAX];
    for (size_t i = 0; i < 2; i++) {
        key_path(directory, i, path);
        if (access(path, F_OK) == 0)
            return true;
    }
    return false;
}

const char *seal_check_files(const char *directory, char text[128])
{
    struct seal_key_file f, other;
    struct error err = ERROR_INIT;
    if (!seal_exists(directory))
        return NULL;
    for (size_t i = 0; i < 2; i++)
        if (read_one(directory, i, i ? &other : &f, &err) < 0) {
            snprintf(text, 128, "%s is damaged or missing: it is one of two copies of the wrapped key",
                     key_names[i]);
            return text;
        }
    if (memcmp(&f, &other, sizeof f) == 0)
        return NULL;
    snprintf(text, 128, "%s and %s differ: rotate the key again", key_names[0], key_names[1]);
    return text;
}

void seal_mend_files(const char *directory, const struct log *log)
{
    struct seal_key_file files[2];
    struct error err = ERROR_INIT;
    char path[PATH_MAX];
    bool whole[2];
    for (size_t i = 0; i < 2; i++)
        whole[i] = read_one(directory, i, &files[i], &err) == 0;
    if (whole[0] == whole[1])
        return;
    size_t bad = whole[0];
    key_path(directory, bad, path);
    log_error(log, "%s was damaged or missing: it is made again from its copy", path);
    if (io_replace_file(path, &files[!bad], sizeof files[!bad], 0600, &err) < 0)
        log_error(log, "%s", err.message);
}

static int crypt_slot(struct seal_slot *slot, const uint8_t journal_id[16], const struct seal_user_key *user,
                      uint8_t data_key[AEAD_KEY_BYTES], bool wrap, struct error *err)
{
    struct aead *a = NULL;
    int r = aead_new(user->key, &a, err);
    if (r < 0)
        return r;
    struct aead_part parts[] = {
        {journal_id, NULL, 16},
        {slot->key_id, NULL, SEAL_KEY_ID_BYTES},
        {wrap ? data_key : slot->wrapped, wrap ? slot->wrapped : data_key, AEAD_KEY_BYTES}};
    r = wrap ? aead_seal(a, slot->nonce, parts, 3, slot->tag)
             : aead_open(a, slot->nonce, parts, 3, slot->tag);
    aead_free(a);
    return r;
}

static int wrap_into(struct seal_slot *slot, const uint8_t journal_id[16], const struct seal_user_key *user,
                     uint8_t data_key[AEAD_KEY_BYTES], struct error *err)
{
    *slot = (struct seal_slot){0};
    memcpy(slot->key_id, user->id, sizeof slot->key_id);
    int r = aead_random(slot->nonce, sizeof slot->nonce);
    if (r == 0)
        r = crypt_slot(slot, journal_id, user, data_key, true, err);
    return r < 0 ? error_set(err, r, "cannot encrypt the journal's key") : 0;
}

static bool slot_is_used(const struct seal_slot *slot)
{
    static const uint8_t none[SEAL_KEY_ID_BYTES];
    return memcmp(slot->key_id, none, sizeof none) != 0;
}

static struct seal_slot *find_slot(struct seal_key_file *f, const struct seal_user_key *user)
{
    for (size_t i = 0; i < SEAL_SLOTS; i++)
        if (slot_is_used(&f->slots[i]) && memcmp(f->slots[i].key_id, user->id, SEAL_KEY_ID_BYTES) == 0)
            return &f->slots[i];
    return NULL;
}

/* The data key by the user's. */
static int unwrap(const char *directory, struct seal_key_file *f, const struct seal_user_key *user,
                  const char *key_file, uint8_t ret[AEAD_KEY_BYTES], struct error *err)
{
    char wanted[SEAL_KEY_ID_TEXT_BYTES], found[SEAL_KEY_ID_TEXT_BYTES];
    struct seal_slot *slot = find_slot(f, user);
    const struct seal_slot *first = slot_is_used(&f->slots[0]) ? &f->slots[0] : &f->slots[1];
    if (!slot)
        return error_set(
            err, -EKEYREJECTED,
            "%s holds key %s, but the journal %s is encrypted with key %s: name the key file of that one",
            key_file, seal_key_id_format(user->id, found), directory,
            seal_key_id_format(first->key_id, wanted));
    if (crypt_slot(slot, f->journal_id, user, ret, false, err) < 0)
        return error_set(err, -EKEYREJECTED, "the wrapped key of the journal %s is damaged", directory);
    return 0;
}

int seal_journal_key_id(const char *directory, char text[SEAL_KEY_ID_TEXT_BYTES])
{
    struct seal_key_file f;
    struct error ignored = ERROR_INIT;
    int r = read_key(directory, &f, &ignored);
    if (r == 0)
        seal_key_id_format(slot_is_used(&f.slots[0]) ? f.slots[0].key_id : f.slots[1].key_id, text);
    return r;
}

int seal_read_data_key(const char *directory, const char *key_file, uint8_t ret[AEAD_KEY_BYTES],
                       struct error *err)
{
    struct seal_key_file f;
    struct seal_user_key user;
    int r = seal_key_load(key_file, &user, err);
    if (r == 0)
        r = read_key(directory, &f, err);
    if (r == 0)
        r = unwrap(directory, &f, &user, key_file, ret, err);
    aead_wipe(&user, sizeof user);
    return r;
}

int seal_create(const char *directory, const struct uuid *journal, const char *key_file, struct error *err)
{
    struct seal_key_file f = {.magic = le64_of(SEAL_KEY_MAGIC), .version = le32_of(SEAL_VERSION)};
    struct seal_user_key user;
    uint8_t data_key[AEAD_KEY_BYTES];
    memcpy(f.journal_id, journal->bytes, sizeof f.journal_id);
    int r = seal_key_load(key_file, &user, err);
    if (r == 0 && aead_random(data_key, sizeof data_key) < 0)
        r = error_set(err, -EIO, "cannot make the journal's key: no random bytes");
    if (r == 0)
        r = wrap_into(&f.slots[0], f.journal_id, &user, data_key, err);
    if (r == 0)
        r = write_key(directory, &f, err);
    aead_wipe(&user, sizeof user);
    aead_wipe(data_key, sizeof data_key);
    return r;
}

int seal_add_key(const char *directory, const char *old_file, const char *new_file, struct error *err)
{
    struct seal_key_file f;
    struct seal_user_key old = {0}, new = {0};
    uint8_t data_key[AEAD_KEY_BYTES];
    int r = seal_key_load(new_file, &new, err);
    if (r == 0)
        r = read_key(directory, &f, err);
    if (r == 0 && find_slot(&f, &new)) { /* begun before */
        r = unwrap(directory, &f, &new, new_file, data_key, err);
        goto out;
    }
    if (r == 0)
        r = seal_key_load(old_file, &old, err);
    if (r == 0)
        r = unwrap(directory, &f, &old, old_file, data_key, err);
    if (r == 0) {
        size_t other = find_slot(&f, &old) == &f.slots[0];
        r = wrap_into(&f.slots[other], f.journal_id, &new, data_key, err);
    }
    if (r == 0)
        r = write_key(directory, &f, err);
out:
    aead_wipe(&old, sizeof old);
    aead_wipe(&new, sizeof new);
    aead_wipe(data_key, sizeof data_key);
    return r;
}

int seal_keep_key(const char *directory, const char *key_file, struct error *err)
{
    struct seal_key_file f;
    struct seal_user_key user;
    uint8_t data_key[AEAD_KEY_BYTES];
    int r = seal_key_load(key_file, &user, err);
    if (r == 0)
        r = read_key(directory, &f, err);
    if (r == 0)
        r = unwrap(directory, &f, &user, key_file, data_key, err);
    if (r == 0) {
        size_t other = find_slot(&f, &user) == &f.slots[0];
        f.slots[other] = (struct seal_slot){0};
        r = write_key(directory, &f, err);
    }
    aead_wipe(&user, sizeof user);
    aead_wipe(data_key, sizeof data_key);
    return r;
}
