/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>

#include "base/cleanup.h"
#include "controller/recovery_kube.h"
#include "controller/recovery_streams.h"
#include "lib/json.h"

static bool leads(void *context)
{
    return *(bool *)context;
}

/* Who is the leader no more changes nothing, in the middle of a step either. Nobody listens where the kubeconfig points to: what
 * gets so far as to try says so. */
static void what_leads_no_more_changes_nothing(void **state)
{
    (void)state;
    char *directory = check_make_directory(), path[300];
    struct kube_client *client;
    struct error err = ERROR_INIT;
    struct recovery_kube k;
    bool is_leader = false;
    snprintf(path, sizeof path, "%s/kubeconfig", directory);
    FILE *f = fopen(path, "w");
    fputs("{current-context: c, contexts: [{name: c, context: {cluster: k, user: u}}], clusters: [{name: k, cluster: "
          "{server: 'http://127.0.0.1:1'}}], users: [{name: u, user: {}}]}",
          f);
    fclose(f);
    check_ok(kube_open(&(const struct kube_options){.kubeconfig = path}, &client, &err));
    json_t *recovery = json_pack("{s:{s:s, s:s, s:s, s:{s:s}}}", "metadata", "name", "r", "namespace", "n", "uid", "u",
                                 "annotations", RECOVERY_REQUESTER_ANNOTATION, "{\"username\": \"ann\"}"),
           *object = json_pack("{s:s, s:s, s:{s:s, s:s}}", "apiVersion", "v1", "kind", "ConfigMap", "metadata", "name", "a",
                               "namespace", "n"),
           *written = NULL;
    check_ok(recovery_kube_init(&k, client, recovery, NULL, &err));
    k.leads = leads;
    k.leads_context = &is_leader;
    check_error(recovery_kube_store.write_status(&k, recovery, &written, &err), -ECANCELED, "not the leader");
    check_error(recovery_kube_store.write_plan(&k, recovery, 0, "{}", &err), -ECANCELED, "not the leader");
    kube_interrupt(client, true); /* not to wait for an API server; it says so in other words */
    is_leader = true;
    check_error(recovery_kube_store.write_status(&k, recovery, &written, &err), -ECANCELED, "interrupted");
    json_decref(object);
    recovery_kube_release(&k);
    json_decref(recovery);
    kube_close(client);
    check_remove_directory(directory);
}

/* What a node's rewind waits for is told; what an older node's says is nothing. */
static void a_rewind_that_goes_on_says_what_is_in_its_way(void **unused)
{
    (void)unused;
    static const struct {
        const char *rewind, *message;
        int code;
    } cases[] = {
        {"{\"state\": \"waiting\", \"message\": null}", "stream s1: waiting until the pods that use its volumes have ended", -EAGAIN},
        {"{\"state\": \"resolving\"}", "stream s1 is being put back", -EAGAIN},
        {"{\"state\": \"rewinding\", \"message\": null}", "stream s1 is being put back", -EAGAIN},
        {"{\"state\": \"rewinding\", \"message\": \"the data plane is away\"}", "stream s1 is being put back; it is tried again: the data plane is away", -EAGAIN},
        {"{\"state\": \"failed\", \"message\": \"the journal is damaged\"}", "the journal is damaged", -EIO},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct error err = ERROR_INIT;
        _cleanup_json_ json_t *stream = json_pack("{s:s}", "stream", "s1"), *rewind = json_loads(cases[i].rewind, 0, NULL), *done = NULL;
        assert_int_equal(recovery_judge_rewind(stream, rewind, &done, &err), cases[i].code);
        assert_string_equal(err.message, cases[i].message);
        assert_null(done);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_rewind_that_goes_on_says_what_is_in_its_way),
        cmocka_unit_test(what_leads_no_more_changes_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
