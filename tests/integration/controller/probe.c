/* SPDX-License-Identifier: Apache-2.0 */
/* Drives the controller for test_controller.py:
 *   run STATE IDENTITY                       controller_run until SIGTERM
 *   read STATE NAMESPACE APPLICATION POINT   the objects as of a point as JSON, with the controller stopped
 *   times STATE NAMESPACE APPLICATION        "NAME REALTIME_NS" of each object's record, newest first
 *   history STATE NAMESPACE APPLICATION      a line for each record: object NAME LSN | deleted NAME LSN | gap
 * REASON LSN */
#include <errno.h>
#include <openssl/evp.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>

#include "base/cleanup.h"
#include "controller/controller.h"
#include "controller/object_store.h"
#include "kube/kube.h"
#include "lib/json.h"

static atomic_bool stop;
static const struct log program_log = {2, LOG_LEVEL_INFO, "controller"};

static void on_signal(int number)
{
    (void)number;
    stop = true;
}

static int failed(const struct error *err)
{
    printf("error %d %s\n", -err->code, err->message);
    return 1;
}

static int command_run(struct kube_client *client, char **a)
{
    struct error err = ERROR_INIT;
    const struct controller_options options = {
        .client = client, .state = a[0], .identity = a[1], .log = &program_log, .trust_requester = true, .stop = &stop};
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGTERM, &action, NULL);
    return controller_run(&options, &err) < 0 ? failed(&err) : 0;
}

static int load_key(struct kube_client *client, struct sealing *sealing, struct error *err)
{
    _cleanup_json_ json_t *secret = NULL;
    unsigned char key[64] = {0};
    const struct kube_target target = {
        .resource = &kube_secrets, .namespace = CONTROLLER_NAMESPACE, .name = "tidemark-object-key"};
    int r = kube_get(client, &target, &secret, err);
    if (r < 0)
        return r;
    const char *text = json_string_value(json_object_get(json_object_get(secret, "data"), "key"));
    EVP_DecodeBlock(key, (const unsigned char *)text, (int)strlen(text));
    return sealing_init(sealing, key, err);
}

static int command_read(struct kube_client *client, char **a)
{
    struct error err = ERROR_INIT;
    struct sealing sealing;
    struct object_store *store;
    struct point point;
    struct journal_point found;
    _cleanup_json_ json_t *set = NULL;
    _cleanup_free_ char *directory = NULL;
    if (asprintf(&directory, "%s/objects", a[0]) < 0 || load_key(client, &sealing, &err) < 0 ||
        point_parse(a[3], &point, &err) < 0 ||
        object_store_new(directory, &sealing, &program_log, 0, &store, &err) < 0)
        return failed(&err);
    int r = object_store_read(store, a[1], a[2], &point, &set, &found, &err);
    object_store_free(store);
    if (r < 0)
        return failed(&err);
    _cleanup_free_ char *text = json_to_text(set);
    printf("%s\n", text);
    return 0;
}

static int on_record(void *context, const struct journal_event *e, struct error *err)
{
    (void)context, (void)err;
    if (e->op == OP_OBJECT)
        printf("%s %s %llu\n", e->flags & RECORD_DELETED ? "deleted" : "object", e->payload,
               (unsigned long long)e->lsn.n);
    else if (e->op == OP_GAP)
        printf("gap %s %llu\n", e->payload, (unsigned long long)e->lsn.n);
    return 0;
}

static int on_time(void *context, const struct journal_event *e, struct error *err)
{
    (void)context, (void)err;
    if (e->op == OP_OBJECT)
        printf("%s %llu\n", e->payload, (unsigned long long)e->realtime_ns);
    return 0;
}

static int command_history(char **a, journal_event_visit visit)
{
    struct error err = ERROR_INIT;
    struct journal *journal;
    struct journal_status status;
    _cleanup_free_ char *directory = NULL;
    if (asprintf(&directory, "%s/objects/%s/%s", a[0], a[1], a[2]) < 0)
        return 1;
    const struct journal_options options = {.directory = directory,
                                            .segment_blocks = 1024,
                                            .segment_records = 2048,
                                            .owner = "probe",
                                            .log = &program_log};
    if (journal_open(&options, &journal, &err) < 0)
        return failed(&err);
    journal_status(journal, &status);
    int r = journal_events(journal, (struct lsn){0}, status.latest, false, visit, NULL, NULL, &err);
    if (journal_close(journal, &err) < 0 || r < 0)
        return failed(&err);
    return 0;
}

int main(int argc, char **argv)
{
    struct error err = ERROR_INIT;
    struct kube_client *client;
    int r = 2;
    if (kube_open(&(struct kube_options){.log = &program_log}, &client, &err) < 0)
        return failed(&err);
    if (argc == 4 && strcmp(argv[1], "run") == 0)
        r = command_run(client, argv + 2);
    else if (argc == 6 && strcmp(argv[1], "read") == 0)
        r = command_read(client, argv + 2);
    else if (argc == 5 && strcmp(argv[1], "history") == 0)
        r = command_history(argv + 2, on_record);
    else if (argc == 5 && strcmp(argv[1], "times") == 0)
        r = command_history(argv + 2, on_time);
    kube_close(client);
    return r;
}
