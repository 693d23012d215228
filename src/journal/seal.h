/* SPDX-License-Identifier: Apache-2.0 */
/* Encryption at rest. A journal has one random data key, which its file `key` holds, wrapped by the key of
 * the user's key file. Every key that encrypts anything is derived from it: one a segment, one an index, one
 * a store.
 *
 * Invariants: SE1 no nonce is used twice with a key: keys of segments and indexes are derived with a random
 * salt of the file, and each of its places is written once; SE2 nothing in the journal's directory is written
 * in the clear but what docs/formats/journal.md says; SE3 with the wrong key nothing is written.
 *
 * The journals that this process may read are kept by directory, since readers name files by path:
 * seal_unlock makes known under which key; seal_of finds it. Thread-safe. */
#ifndef TIDEMARK_JOURNAL_SEAL_H
#define TIDEMARK_JOURNAL_SEAL_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"
#include "base/log.h"
#include "base/uuid.h"
#include "journal/seal_format.h"
#include "lib/aead.h"

#define SEAL_KEY_ID_TEXT_BYTES (2u * SEAL_KEY_ID_BYTES + 1u)

/* ---- key files of users ---- */
struct seal_user_key {
    uint8_t key[AEAD_KEY_BYTES];
    uint8_t id[SEAL_KEY_ID_BYTES]; /* tells nothing of the key */
};
/* Writes a new random key; -EEXIST rather than over a file. */
int seal_key_generate(const char *path, struct seal_user_key *ret, struct error *err) MUST_CHECK;
/* -ENOKEY: it is not there; -EKEYREJECTED: others than its owner may use it. Wipe it after use. */
int seal_key_load(const char *path, struct seal_user_key *ret, struct error *err) MUST_CHECK;
const char *seal_key_id_format(const uint8_t id[SEAL_KEY_ID_BYTES], char text[SEAL_KEY_ID_TEXT_BYTES]);

/* ---- the journal's `key` ---- */
/* Makes the journal's data key, wrapped by the user's; durable. Before its manifest is made. */
int seal_create(const char *directory, const struct uuid *journal, const char *key_file,
                struct error *err) MUST_CHECK;
/* Wraps the data key by `new_file`'s key in addition, so that both open the journal. */
int seal_add_key(const char *directory, const char *old_file, const char *new_file,
                 struct error *err) MUST_CHECK;
/* Leaves only what `key_file` opens. */
int seal_keep_key(const char *directory, const char *key_file, struct error *err) MUST_CHECK;
/* The id of the key that opens the journal. -ENOENT: it is not encrypted. */
int seal_journal_key_id(const char *directory, char text[SEAL_KEY_ID_TEXT_BYTES]) MUST_CHECK;
/* Whether the journal in `directory` is encrypted. */
bool seal_exists(const char *directory);
/* NULL, or what is wrong with the journal's `key` or `key.copy`, for verification. */
const char *seal_check_files(const char *directory, char text[128]);
/* Where one of the two is damaged or missing it is made again from the other. */
void seal_mend_files(const char *directory, const struct log *log);
/* The data key. -EKEYREJECTED when `key_file` does not open it. */
int seal_read_data_key(const char *directory, const char *key_file, uint8_t ret[AEAD_KEY_BYTES],
                       struct error *err) MUST_CHECK;

/* ---- the journals that this process may read ---- */
struct seal;
/* Reads the journal's data key by `key_file` (NULL or "": it is not encrypted). Refuses a key file for a
 * plain journal and none for an encrypted one. Writes nothing. A journal that does not exist yet: 0,
 * seal_create comes next. */
int seal_unlock(const char *directory, const char *key_file, struct error *err) MUST_CHECK;
/* Files below `other` are encrypted as the journal's in `directory`. */
int seal_unlock_also(const char *directory, const char *other, struct error *err) MUST_CHECK;
/* By whose key a file is encrypted; NULL: by none. Valid to the end of the process. */
struct seal *seal_of(const char *path);
/* A key for one purpose. */
int seal_derive(const struct seal *s, const char *purpose, const void *context, size_t context_bytes,
                uint8_t ret[AEAD_KEY_BYTES]) MUST_CHECK;
/* A cipher with a key of its own. */
int seal_aead(const struct seal *s, const char *purpose, const void *context, size_t context_bytes,
              struct aead **ret, struct error *err) MUST_CHECK;

/* ---- files that are replaced as a whole: as io_replace_file and io_read_file, encrypted where the journal
 * is ---- */
int sealed_replace_file(const char *path, const void *data, size_t length_bytes, mode_t mode,
                        struct error *err) MUST_CHECK;
/* As io_replace_volatile_file. */
int sealed_replace_volatile_file(const char *path, const void *data, size_t length_bytes, mode_t mode,
                                 struct error *err) MUST_CHECK;
/* As io_overwrite_file. */
int sealed_overwrite_file(const char *path, const void *data, size_t length_bytes, struct error *err) MUST_CHECK;
int sealed_read_file(const char *path, size_t limit_bytes, char **ret_data, size_t *ret_length_bytes,
                     struct error *err) MUST_CHECK;
/* The encrypted form of a content, and back. `name` is authenticated with it. Free *ret. */
int sealed_wrap(const struct seal *s, const char *name, const void *data, size_t length_bytes, void **ret,
                size_t *ret_length_bytes, struct error *err) MUST_CHECK;
int sealed_unwrap(const struct seal *s, const char *name, const void *data, size_t length_bytes, char **ret,
                  size_t *ret_length_bytes, struct error *err) MUST_CHECK;

/* ---- files of pages of 4 KiB that are written once ---- */
struct sealed_pages;
/* Writes the header of a new file. */
int sealed_pages_create(const struct seal *s, int fd, struct sealed_pages **ret,
                        struct error *err) MUST_CHECK;
int sealed_pages_open(const struct seal *s, int fd, const char *path, struct sealed_pages **ret,
                      struct error *err) MUST_CHECK;
void sealed_pages_free(struct sealed_pages *p);
/* 0 or a negative errno. A page that is not authentic is read as zeroes. */
int sealed_pages_pwrite(struct sealed_pages *p, int fd, const void *data, uint64_t first,
                        uint32_t count) MUST_CHECK;
int sealed_pages_pread(struct sealed_pages *p, int fd, void *data, uint64_t first, uint32_t count) MUST_CHECK;
uint64_t sealed_pages_file_bytes(uint64_t pages);

#endif
