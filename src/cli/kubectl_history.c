/* SPDX-License-Identifier: Apache-2.0 */
/* Questions about the history: a HistoryReview that is created without being stored, and asked for again
 * while its answer is on its way. verify; diff of two points. */
#include <errno.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/units.h"
#include "cli/kubectl_internal.h"

#define POLL_MS 200u
#define ELSEWHERE_S 30u /* until a controller leads */

static const struct kube_resource reviews = {"tidemark.io",   "v1alpha1", "historyreviews",
                                             "HistoryReview", true,       0};

static enum cli_exit no_memory(const struct cli *cli, const char *what)
{
    return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "%s: out of memory", what);
}

/* ---- asking ---- */

int kubectl_history_try(struct kubectl *k, const char *what, const struct kubectl_member *member,
                        const json_t *question, json_t **ret_answer, struct error *err)
{
    const char *namespace = k->history_from ? k->history_from : member->namespace;
    const struct kube_target target = {.resource = &reviews, .namespace = namespace, .dry_run = true};
    _cleanup_json_ json_t *spec = json_deep_copy(question);
    _cleanup_cli_progress_ struct cli_progress *progress = cli_progress_new(k->cli, what);
    uint64_t elsewhere_ns = 0;
    json_object_set_new(spec, "application", json_string(member->name));
    if (k->history_from)
        json_object_set_new(spec, "sourceNamespace", json_string(member->namespace));
    for (;;) {
        _cleanup_json_ json_t *made = NULL;
        _cleanup_json_ json_t *review = json_pack(
            "{s:s, s:s, s:{s:s, s:s}, s:O}", "apiVersion", "tidemark.io/v1alpha1", "kind", "HistoryReview",
            "metadata", "name", "question", "namespace", namespace, "spec", spec);
        int r = review ? kube_create(k->client, &target, review, &made, err)
                       : error_set(err, -ENOMEM, "out of memory");
        if (r < 0)
            return r;
        const json_t *status = json_object_get(made, "status"), *error = json_object_get(status, "error"),
                     *now = json_object_get(status, "progress");
        const char *phase = cli_field_text(status, "phase", "");
        if (strcmp(phase, "Answered") == 0) {
            *ret_answer = json_incref(json_object_get(status, "answer"));
            return *ret_answer ? 0 : error_set(err, -EPROTO, "the answer is empty");
        }
        if (strcmp(phase, "Failed") == 0) {
            int code = json_errno_of_name(cli_field_text(error, "code", ""));
            return error_set(err, code ? code : -EIO, "%s", cli_field_text(error, "message", "no reason"));
        }
        if (strcmp(phase, "Running") == 0) {
            json_object_set(spec, "job", json_object_get(status, "job"));
            cli_progress_set(progress, cli_field_text(now, "step", NULL), cli_field_u64(now, "done"),
                             cli_field_u64(now, "total"),
                             strcmp(cli_field_text(spec, "query", ""), "verify") == 0 ? "bytes" : "");
        } else if (strcmp(phase, "Elsewhere") == 0) { /* a replica that does not lead, or leads no more */
            uint64_t at = clock_boottime_ns(clock_system());
            elsewhere_ns = elsewhere_ns ? elsewhere_ns : at;
            if (at - elsewhere_ns > ELSEWHERE_S * NS_PER_SECOND)
                return error_set(err, -EAGAIN, "no controller answers: %s",
                                 cli_field_text(error, "message", "none leads"));
            if (json_object_get(spec, "job") && strstr(cli_field_text(error, "message", ""), "replaced"))
                json_object_del(spec, "job");
        } else {
            return error_set(err, -EAGAIN,
                             "nobody answers: the webhook historyreviews.tidemark.io is not installed");
        }
        nanosleep(&(struct timespec){0, POLL_MS * 1000000l}, NULL);
    }
}

enum cli_exit kubectl_history_fail(struct kubectl *k, const char *what, const struct kubectl_member *member,
                                   const struct error *err)
{
    char remedy[2 * CLI_TEXT_BYTES + CLI_NAME_BYTES];
    if (err->code == -EAGAIN)
        return cli_output_fail(k->cli, CLI_EXIT_UNREACHABLE,
                               "`kubectl tidemark status` says what is wrong with the installation", "%s: %s",
                               what, err->message);
    if (err->code == -ERANGE || err->code == -ENOENT) {
        snprintf(remedy, sizeof remedy,
                 "`kubectl tidemark points %s/%s` says since when there is a history, and lists its points",
                 member->namespace, member->name);
        return cli_output_fail(k->cli, err->code == -ENOENT ? CLI_EXIT_NOT_FOUND : CLI_EXIT_REFUSED, remedy,
                               "%s: %s", what, err->message);
    }
    return kubectl_fail(k, what, err);
}

enum cli_exit kubectl_history_find(struct kubectl *k, const char *what, const struct kubectl_member *member, json_t **ret)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *namespace = NULL, *answer = NULL, *question = json_pack("{s:s, s:i}", "query", "points", "limit", 0);
    const struct kube_target target = {.resource = &kubectl_applications, .namespace = member->namespace, .name = member->name},
                             place = {.resource = &kube_namespaces, .name = member->namespace};
    int r = kube_get(k->client, &target, ret, &err);
    if (r == 0)
        return CLI_EXIT_OK;
    bool gone = kube_get(k->client, &place, &namespace, &err) == -ENOENT;
    if (r == -ENOENT && gone)
        k->history_from = strcmp(k->namespace, member->namespace) != 0 ? k->namespace : "default";
    if (r == -ENOENT && (r = kubectl_history_try(k, what, member, question, &answer, &err)) == 0) {
        cli_output_note(k->cli, "%s: %s; its history is kept, and `kubectl tidemark restore %s/%s` brings it back", what,
                        gone ? "its namespace is gone" : "it is not protected any more", member->namespace, member->name);
        return CLI_EXIT_OK;
    }
    if (r == -EACCES && k->history_from)
        cli_output_note(k->cli, "%s: if there is a history of it, you may not ask: %s", what, err.message);
    return kubectl_find(k, what, member, ret);
}

/* Opens, finds the application, asks. */
static enum cli_exit ask(struct kubectl *k, const char *verb, const json_t *question, json_t **ret_answer)
{
    _cleanup_json_ json_t *papp = NULL;
    struct kubectl_member member;
    struct error err = ERROR_INIT;
    char what[3 * CLI_TEXT_BYTES];
    kubectl_member_of(k, k->cli->operands[0], &member);
    snprintf(what, sizeof what, "%s %s/%s", verb, member.namespace, member.name);
    enum cli_exit code = kubectl_history_find(k, what, &member, &papp);
    if (code == CLI_EXIT_OK && !question)
        code = no_memory(k->cli, what);
    if (code == CLI_EXIT_OK && kubectl_history_try(k, what, &member, question, ret_answer, &err) < 0)
        code = kubectl_history_fail(k, what, &member, &err);
    return code;
}

/* ---- diff of two points ---- */

static void say_value(const struct cli *cli, const char *sign, const json_t *value)
{
    _cleanup_free_ char *text = value ? json_dumps(value, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    if (text)
        cli_output_say(cli, "        %s %.200s%s", sign, text, strlen(text) > 200 ? " ..." : "");
}

static void say_fields(const struct cli *cli, const json_t *object)
{
    size_t i;
    json_t *field;
    json_array_foreach(json_object_get(object, "fields"), i, field)
    {
        cli_output_say(cli, "    %s%s", cli_field_text(field, "path", "?"),
                       json_is_true(json_object_get(field, "hidden")) ? " (not shown)" : "");
        if (json_is_true(json_object_get(field, "hidden")))
            continue;
        say_value(cli, "-", json_object_get(field, "from"));
        say_value(cli, "+", json_object_get(field, "to"));
    }
    if (cli_field_u64(object, "moreFields"))
        cli_output_say(cli, "    and %llu more fields",
                       (unsigned long long)cli_field_u64(object, "moreFields"));
    if (json_is_true(json_object_get(object, "fieldsLeftOut")))
        cli_output_say(cli, "    (too much to tell: diff of points closer together)");
}

static enum cli_exit print_diff(const struct cli *cli, const json_t *answer)
{
    static const char *const columns[] = {"CLAIM", ">CHANGED", ">EXTENTS", "REMARKS", NULL};
    const json_t *objects = json_object_get(answer, "objects"), *volumes = json_object_get(answer, "volumes");
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    size_t i;
    json_t *item;
    cli_output_say(cli, "from %s\nto   %s\nobjects: %llu created, %llu changed, %llu deleted, %llu the same",
                   cli_field_text(json_object_get(answer, "from"), "time", "-"),
                   cli_field_text(json_object_get(answer, "to"), "time", "-"),
                   (unsigned long long)cli_field_u64(objects, "created"),
                   (unsigned long long)cli_field_u64(objects, "changed"),
                   (unsigned long long)cli_field_u64(objects, "deleted"),
                   (unsigned long long)cli_field_u64(objects, "same"));
    json_array_foreach(json_object_get(objects, "objects"), i, item)
    {
        cli_output_say(cli, "  %s %s%s", cli_field_text(item, "change", "?"),
                       cli_field_text(item, "object", "?"),
                       json_is_true(json_object_get(item, "hidden")) ? " (you may not see these)" : "");
        say_fields(cli, item);
    }
    if (cli_field_u64(objects, "moreObjects"))
        cli_output_say(cli, "  and %llu more objects",
                       (unsigned long long)cli_field_u64(objects, "moreObjects"));
    json_array_foreach(volumes, i, item)
    {
        if (!table)
            break;
        cli_table_row(table);
        cli_table_field(table, item, "claim");
        cli_table_bytes(table, item, "changedBytes");
        cli_table_field(table, item, "extents");
        cli_table_cell(table, CLI_COLOUR_RED, "%s", cli_field_text(item, "error", ""));
    }
    return json_array_size(volumes) ? cli_table_print(cli, table) : CLI_EXIT_OK;
}

enum cli_exit kubectl_history_diff(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k;
    _cleanup_json_ json_t *answer = NULL, *question = NULL;
    struct kubectl_member from, to;
    enum cli_exit code = kubectl_open(&k, cli);
    if (code != CLI_EXIT_OK)
        return code;
    kubectl_member_of(&k, cli->operands[0], &from);
    kubectl_member_of(&k, cli->operands[1], &to);
    if (strcmp(from.namespace, to.namespace) != 0 || strcmp(from.name, to.name) != 0)
        return cli_output_fail(cli, CLI_EXIT_USAGE, "compare two points of the same application",
                               "diff: %s/%s and %s/%s are two applications", from.namespace, from.name,
                               to.namespace, to.name);
    question = json_pack("{s:s, s:s, s:s}", "query", "diff", "from", from.point, "to", to.point);
    code = ask(&k, "diff", question, &answer);
    if (code != CLI_EXIT_OK)
        return code;
    return cli->format == CLI_FORMAT_TABLE ? print_diff(cli, answer) : cli_output_value(cli, answer);
}

/* ---- verify ---- */

static void add_damages(struct cli_table *table, const char *of, const json_t *part)
{
    size_t i;
    json_t *damage;
    json_array_foreach(json_object_get(part, "damage"), i, damage)
    {
        cli_table_row(table);
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", of);
        cli_table_field(table, damage, "low_time");
        cli_table_field(table, damage, "high_time");
        cli_table_field(table, damage, "claim");
        cli_table_field(table, damage, "offset_bytes");
        cli_table_field(table, damage, "length_bytes");
        cli_table_field(table, damage, "file");
        cli_table_cell(table, CLI_COLOUR_RED, "%s", cli_field_text(damage, "what", "?"));
    }
}

static void say_part(const struct cli *cli, const char *of, const json_t *part)
{
    char bytes[UNITS_TEXT_BYTES];
    const char *error = cli_field_text(part, "error", NULL);
    if (error)
        cli_output_say(cli, "  %s: NOT READ: %s", of, error);
    else
        cli_output_say(cli, "  %s: %s, %s, %llu records", of,
                       json_is_true(json_object_get(part, "ok")) ? "whole" : "DAMAGED",
                       units_format_bytes(cli_field_u64(part, "bytes"), bytes),
                       (unsigned long long)cli_field_u64(part, "records"));
}

static enum cli_exit print_verify(const struct cli *cli, const json_t *answer)
{
    static const char *const columns[] = {
        "OF", "FROM", "TO", "CLAIM", ">OFFSET", ">LENGTH", "FILE", "WHAT IS DAMAGED", NULL};
    const json_t *objects = json_object_get(answer, "objects");
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    size_t i;
    json_t *stream;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    cli_output_say(cli, "%s",
                   json_is_true(json_object_get(answer, "ok"))
                       ? "every record, payload and index that was read is as it was written"
                       : "the history is damaged");
    say_part(cli, "objects", objects);
    json_array_foreach(json_object_get(answer, "streams"), i, stream)
        say_part(cli, cli_field_text(stream, "stream", "?"), stream);
    if (!table)
        return CLI_EXIT_FAILED;
    add_damages(table, "objects", objects);
    json_array_foreach(json_object_get(answer, "streams"), i, stream)
        add_damages(table, cli_field_text(stream, "stream", "?"), stream);
    return json_is_true(json_object_get(answer, "ok")) ? CLI_EXIT_OK : cli_table_print(cli, table);
}

static enum cli_exit run_verify(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k;
    _cleanup_json_ json_t *answer = NULL, *question = json_pack("{s:s}", "query", "verify");
    enum cli_exit code = kubectl_open(&k, cli);
    if (code == CLI_EXIT_OK)
        code = ask(&k, "verify", question, &answer);
    if (code == CLI_EXIT_OK)
        code = print_verify(cli, answer);
    if (code != CLI_EXIT_OK)
        return code;
    if (!json_is_true(json_object_get(answer, "ok")))
        return cli_output_fail(
            cli, CLI_EXIT_DAMAGED,
            "what is damaged is never given out as data; check the disk of the node, or of the controller",
            "verify %s: damage was found", cli->operands[0]);
    if (!json_is_true(json_object_get(answer, "complete")))
        return cli_output_fail(cli, CLI_EXIT_UNREACHABLE,
                               "`kubectl -n " KUBECTL_SYSTEM_NAMESPACE
                               " get pods -o wide` tells what runs where",
                               "verify %s: not all of it could be read", cli->operands[0]);
    return CLI_EXIT_OK;
}

const struct cli_command kubectl_verify = {
    .name = "verify",
    .summary = "read the whole history of an application and check every checksum",
    .description = "Reads the journal of the application's objects and, on their nodes, those of its\n"
                   "volumes, while the application goes on, and names what is damaged: the times and,\n"
                   "where it is known, the claim and the bytes. Ends with exit code 6 when it found\n"
                   "damage, 5 when a node could not be asked.",
    .operands = (const struct cli_operand[]){{"NAMESPACE/NAME", .kind = CLI_KIND_MEMBER}, {0}},
    .formats = true,
    .examples = (const char *const[]){"kubectl tidemark verify shop/shop",
                                      "kubectl tidemark verify shop/shop -o json", NULL},
    .run = run_verify,
};
