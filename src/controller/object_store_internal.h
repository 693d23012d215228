/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_CONTROLLER_OBJECT_STORE_INTERNAL_H
#define TIDEMARK_CONTROLLER_OBJECT_STORE_INTERNAL_H

#include <pthread.h>

#include "controller/object_store.h"

#define STORE_HASH_BYTES 16u
#define STORE_SEGMENT_BLOCKS 1024u /* 4 MiB: objects are few and small */
#define STORE_SEGMENT_RECORDS 2048u

struct known_object {
    struct known_object *previous, *next;
    uint64_t version;
    uint8_t hash[STORE_HASH_BYTES];
    bool seen, deleted; /* deleted: kept for S3 while there is a list */
    char name[];
};

struct pending_change {
    struct pending_change *next;
    char *content; /* NULL: deleted */
    size_t bytes;
    char name[]; /* "": a gap, content says why */
};

struct stored_application {
    struct stored_application *next;
    void *by_name;
    struct known_object *known;
    struct pending_change *first, **last;
    size_t pending;
    uint64_t written; /* changes, ever */
    uint64_t turn;    /* of what waits: the lowest is written first */
    char *gap;        /* one that is not queued yet */
    uint64_t ended;   /* the version of its end (S7); 0: it has not ended */
    bool listing;     /* see object_store_list */
    bool dropped;     /* nobody keeps it; freed by the writer when nothing is pending */
    bool writing;
    char error[256];
    char *namespace, *name;
};

/* A place for an open journal. */
struct open_journal {
    struct journal *journal;
    uint64_t used;
    unsigned users;         /* while there are any it stays open */
    bool changing;          /* it is being opened or closed */
    char *namespace, *name; /* NULL: the place is free */
};

struct object_store {
    char *directory;
    const struct sealing *sealing;
    const struct log *log;
    pthread_mutex_t verifying; /* one at a time; before io */
    pthread_mutex_t keeping;   /* the same: of object_store_keep */
    pthread_mutex_t io;        /* over the places; not held during I/O */
    pthread_cond_t places_changed;
    struct open_journal *places;
    size_t place_count;
    uint64_t uses;
    pthread_mutex_t mutex; /* over all below */
    pthread_cond_t changed;
    struct stored_application *applications;
    size_t pending_bytes;
    uint64_t turns;
    bool stopping, interrupted;
    pthread_t writers[OBJECT_STORE_WRITERS];
    unsigned writer_count;
};

/* ---- object_journal.c ---- */
/* Room for so many open journals (0: OBJECT_STORE_JOURNALS), or as many as the process may have. */
int store_new_places(struct object_store *store, unsigned journals) MUST_CHECK;
/* The journal, opened if need be, in the place of the one that was not used for longest; it stays open until
 * store_release (NULL allowed). With no other one acquired by this thread, and without the io mutex. -ENOENT:
 * there is none. */
int store_acquire(struct object_store *store, const char *namespace, const char *name, bool create,
                  struct open_journal **ret, bool *ret_existed, struct error *err) MUST_CHECK;
void store_release(struct object_store *store, struct open_journal *o);
/* Closes all; nothing else is under way. */
void store_close_journals(struct object_store *store);
/* Writes the changes in order and makes them durable together; frees those that are. */
int store_write(struct object_store *store, struct journal *journal, struct pending_change **changes,
                struct error *err) MUST_CHECK;
/* Calls visit with each object at the point, opened. */
int store_objects(struct object_store *store, struct journal *journal, struct lsn lsn, object_visit visit,
                  void *context, struct error *err) MUST_CHECK;
int store_hash(const json_t *object, uint8_t hash[STORE_HASH_BYTES]);

#endif
