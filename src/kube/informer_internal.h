/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_KUBE_INFORMER_INTERNAL_H
#define TIDEMARK_KUBE_INFORMER_INTERNAL_H

#include "kube/cache.h"
#include "kube/informer.h"
#include "kube/lines.h"
#include "kube/list_internal.h"

enum informer_state {
    INFORMER_WAITING, /* until due_ns, then it lists or watches */
    INFORMER_LISTING, /* a chunk is on its way */
    INFORMER_WATCHING,
};

struct kube_informer {
    struct kube_informers *set;
    struct kube_informer *next;
    struct kube_informer_options options;
    struct kube_resource resource; /* texts owned */
    char *namespace, *label_selector, *field_selector, *path;
    /* Under the set's mutex: */
    struct cache cache;
    bool synced, removing;
    /* The thread's own: */
    enum informer_state state;
    uint64_t due_ns;
    unsigned failures;
    bool must_list; /* else the watch goes on from `version` */
    bool slot;      /* it is one of those that list now */
    bool alone;     /* on a connection of its own, since nothing came on that of the others */
    char *next_chunk;
    unsigned chunk; /* objects of the next one */
    char *version;
    unsigned refused_generation, generation; /* of the credentials */
    /* of the transfer */
    CURL *curl;
    struct curl_slist *headers;
    struct kube_secrets_copy secrets;
    struct kube_buffer body; /* of a chunk, or a refusal */
    struct lines lines;
    uint64_t begun_ns, heard_ns;
    bool expired; /* an ERROR event with 410 came */
    struct error trouble;
    char detail[CURL_ERROR_SIZE];
};

struct kube_informers {
    struct kube_client *client;
    const struct log *log;
    CURLM *multi; /* changed by the thread under the mutex, under which others wake it */
    pthread_t thread;
    pthread_mutex_t mutex; /* over the list and the caches; not held in callbacks */
    pthread_cond_t changed;
    struct kube_informer *informers;
    bool stopping;
    unsigned listing;
    bool received;     /* something, in this round; the thread's own, as are */
    unsigned look_ms;  /* after which there is a round although the socket has nothing */
    uint64_t heard_ns; /* when anything came of anything the last time */
};

/* ---- informer_events.c: objects into the cache and to the callbacks ---- */
int informer_object(struct kube_informer *i, json_t *object, struct error *err) MUST_CHECK;
int informer_deleted(struct kube_informer *i, json_t *object, uint64_t version, struct error *err) MUST_CHECK;
/* After a list (of this version): what it had not is gone. */
void informer_sweep(struct kube_informer *i, const char *version);
/* One line of a watch. */
int informer_line(void *context, const char *text, size_t length_bytes);
int informer_set_version(struct kube_informer *i, const char *version, struct error *err) MUST_CHECK;

#endif
