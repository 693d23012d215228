/* SPDX-License-Identifier: Apache-2.0 */
/* Volumes that were deleted and whose history is kept: which, until when, and an end to it now. The
 * controller's records of them are ConfigMaps of its namespace (csi/records_kube.c); data.keep is how many
 * seconds they are kept. */
#include <errno.h>
#include <string.h>

#include "base/clock.h"
#include "base/units.h"
#include "cli/kubectl_internal.h"
#include "controller/purge.h"

static uint64_t keep_s_of(const json_t *item, const json_t *record)
{
    struct error ignored = ERROR_INIT;
    uint64_t keep_s;
    const char *keep = cli_field_text(json_object_get(item, "data"), "keep", NULL);
    if (keep && units_parse_u64(keep, UINT64_MAX / NS_PER_SECOND, &keep_s, &ignored) == 0)
        return keep_s;
    return *cli_field_text(record, "recovery", "") ? 0 : PURGE_KEEP_DEFAULT_S;
}

static json_t *describe(const json_t *item)
{
    struct error ignored = ERROR_INIT;
    char deleted[CLOCK_TEXT_BYTES], removed[CLOCK_TEXT_BYTES];
    const char *text = cli_field_text(json_object_get(item, "data"), "record", "");
    _cleanup_json_ json_t *record = NULL;
    if (json_parse("record", text, strlen(text), &record, &ignored) < 0)
        return NULL;
    uint64_t deleted_ns = cli_field_u64(record, "deleted_ns"), keep_s = keep_s_of(item, record);
    if (!deleted_ns)
        return NULL;
    clock_format_rfc3339(deleted_ns, deleted);
    clock_format_rfc3339(
        keep_s < (UINT64_MAX - deleted_ns) / NS_PER_SECOND ? deleted_ns + keep_s * NS_PER_SECOND : UINT64_MAX,
        removed);
    const char *kept = cli_field_text(json_object_get(item, "data"), "kept", "");
    bool over = keep_s < (UINT64_MAX - deleted_ns) / NS_PER_SECOND && deleted_ns + keep_s * NS_PER_SECOND < clock_realtime_ns(clock_system());
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:s, s:s, s:s*}", "volume", kube_object_name(item),
                     "namespace", cli_field_text(record, "claim_namespace", ""), "claim",
                     cli_field_text(record, "claim_name", ""), "node", cli_field_text(record, "node", ""),
                     "stream", cli_field_text(record, "stream", ""), "sizeBytes",
                     (json_int_t)cli_field_u64(record, "size_bytes"), "deletedTime", deleted, "removedTime",
                     removed, "keptBecause", over && *kept ? kept : NULL);
}

int kubectl_kept(struct kubectl *k, json_t **ret, struct error *err)
{
    const struct kube_target target = {
        .resource = &kube_configmaps,
        .namespace = cli_options_value(k->cli, "system-namespace", KUBECTL_SYSTEM_NAMESPACE)};
    const struct kube_list_options options = {.label_selector = "tidemark.io/volume-record=true"};
    _cleanup_json_ json_t *items = NULL;
    json_t *kept = json_array(), *item;
    size_t i;
    int r = kube_list_all(k->client, &target, &options, &items, err);
    json_array_foreach(items, i, item)
    {
        json_t *one = describe(item);
        if (one && cli_options_value(k->cli, "namespace", NULL) &&
            strcmp(cli_field_text(one, "namespace", ""), cli_options_value(k->cli, "namespace", "")) != 0) {
            json_decref(one);
            continue;
        }
        if (one)
            json_array_append_new(kept, one);
    }
    if (r < 0)
        json_decref(kept);
    else
        *ret = kept;
    return r;
}

/* NAMESPACE/CLAIM, or the volume. */
static bool is_meant(const json_t *volume, const char *asked)
{
    char claim[2 * KUBECTL_NAME_BYTES];
    snprintf(claim, sizeof claim, "%s/%s", cli_field_text(volume, "namespace", ""),
             cli_field_text(volume, "claim", ""));
    return strcmp(asked, claim) == 0 || strcmp(asked, cli_field_text(volume, "volume", "")) == 0;
}

static enum cli_exit choose(const struct cli *cli, const json_t *kept, json_t *chosen)
{
    size_t i;
    json_t *volume;
    for (size_t n = 0; n < cli->operand_count; n++) {
        size_t before = json_array_size(chosen);
        json_array_foreach(kept, i, volume)
        {
            if (is_meant(volume, cli->operands[n]))
                json_array_append(chosen, volume);
        }
        if (json_array_size(chosen) == before)
            return cli_output_fail(
                cli, CLI_EXIT_NOT_FOUND, "`kubectl tidemark purge` lists those there are",
                "purge: there is no deleted volume '%.100s' (NAMESPACE/CLAIM, or a volume tm-...)",
                cli->operands[n]);
    }
    return CLI_EXIT_OK;
}

static enum cli_exit print(const struct cli *cli, const json_t *volumes)
{
    static const char *const columns[] = {"VOLUME",  "CLAIM",           "NODE", ">SIZE",
                                          "DELETED", "HISTORY REMOVED", "KEPT BECAUSE", NULL};
    _cleanup_cli_table_ struct cli_table *table = cli_table_new(columns);
    char size[UNITS_TEXT_BYTES], age[CLI_TEXT_BYTES];
    size_t i;
    json_t *v;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, volumes);
    if (json_array_size(volumes) == 0) {
        cli_output_say(cli, "no history of deleted volumes is kept");
        return CLI_EXIT_OK;
    }
    json_array_foreach(volumes, i, v)
    {
        if (!table)
            break;
        cli_table_row(table);
        cli_table_field(table, v, "volume");
        cli_table_cell(table, CLI_COLOUR_NONE, "%s/%s", cli_field_text(v, "namespace", "?"),
                       cli_field_text(v, "claim", "?"));
        cli_table_field(table, v, "node");
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", units_format_bytes(cli_field_u64(v, "sizeBytes"), size));
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_age(v, "deletedTime", age));
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_text(v, "removedTime", "-"));
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_text(v, "keptBecause", ""));
    }
    return cli_table_print(cli, table);
}

static enum cli_exit purge(struct kubectl *k, const json_t *chosen)
{
    struct error err = ERROR_INIT;
    size_t i;
    json_t *volume;
    _cleanup_json_ json_t *patch = json_pack("{s:{s:s}}", "data", "keep", "0");
    json_array_foreach(chosen, i, volume)
    {
        const struct kube_target target = {
            .resource = &kube_configmaps,
            .namespace = cli_options_value(k->cli, "system-namespace", KUBECTL_SYSTEM_NAMESPACE),
            .name = cli_field_text(volume, "volume", "")};
        int r = patch ? kube_patch(k->client, &target, KUBE_PATCH_MERGE, patch, NULL, &err) : -ENOMEM;
        if (r < 0 && r != -ENOENT) /* gone meanwhile: that is what was asked for */
            return kubectl_fail(k, "purge", &err);
        err = ERROR_INIT;
    }
    cli_output_note(k->cli, "the history is removed within a minute; that of volumes that one pod mounted "
                            "together, once it is over for all of them");
    return CLI_EXIT_OK;
}

static enum cli_exit run(struct cli *cli)
{
    _cleanup_kubectl_ struct kubectl k;
    _cleanup_json_ json_t *kept = NULL, *chosen = json_array();
    struct error err = ERROR_INIT;
    char question[CLI_TEXT_BYTES];
    enum cli_exit code = kubectl_open(&k, cli);
    if (code != CLI_EXIT_OK)
        return code;
    if (kubectl_kept(&k, &kept, &err) < 0)
        return kubectl_fail(&k, "purge", &err);
    if (!cli->operand_count)
        return print(cli, kept);
    code = choose(cli, kept, chosen);
    if (code == CLI_EXIT_OK)
        code = print(cli, chosen);
    if (code != CLI_EXIT_OK)
        return code;
    snprintf(question, sizeof question, "Remove data and history of %zu deleted volume%s for good?",
             json_array_size(chosen), json_array_size(chosen) == 1 ? "" : "s");
    if (!cli_options_flag(cli, "yes") && !cli_output_confirm(question))
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "purge: not confirmed, nothing was changed");
    return purge(&k, chosen);
}

const struct cli_command kubectl_purge = {
    .name = "purge",
    .summary = "deleted volumes whose history is kept, and an end to that",
    .description =
        "Without operands: the volumes that were deleted and whose data and history are kept for a\n"
        "restore, and when they are removed: the time is onDelete.keep of the application's policy\n"
        "(7d). With claims (NAMESPACE/CLAIM) or volumes: removes theirs now, for good. Needs the\n"
        "right to list and patch ConfigMaps of Tidemark's namespace.",
    .operands =
        (const struct cli_operand[]){
            {"NAMESPACE/CLAIM", .kind = CLI_KIND_TEXT, .optional = true, .repeat = true}, {0}},
    .options =
        (const struct cli_option[]){
            {"yes", 'y', CLI_KIND_NONE, NULL, .help = "do not ask"},
            {"system-namespace", 0, CLI_KIND_NAMESPACE, "NAMESPACE",
             .help = "where Tidemark runs (default tidemark-system)"},
            {0},
        },
    .formats = true,
    .examples = (const char *const[]){"kubectl tidemark purge",
                                      "kubectl tidemark purge shop/data-db-0 shop/wal-db-0 --yes", NULL},
    .run = run,
};
