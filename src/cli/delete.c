/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli_internal.h"
#include "lib/json.h"

static void print_kept(const struct cli *cli, const json_t *answer)
{
    size_t i;
    json_t *volume;
    const char *journal = cli_field_text(answer, "journal", NULL);
    if (journal)
        cli_output_say(cli, "  kept: journal %s", journal);
    json_array_foreach(json_object_get(answer, "volumes"), i, volume)
    {
        const char *backing = cli_field_text(volume, "backing", NULL);
        if (backing)
            cli_output_say(cli, "  kept: volume %s in %s", cli_field_text(volume, "name", "?"), backing);
    }
}

static enum cli_exit run(struct cli *cli)
{
    _cleanup_json_ json_t *answer = NULL;
    char path[CLI_PATH_BYTES], what[CLI_TEXT_BYTES], question[2 * CLI_TEXT_BYTES];
    const char *name = cli->operands[0];
    bool purge = cli_options_flag(cli, "purge");
    if (purge && !cli_options_flag(cli, "yes") && cli_output_can_ask(cli)) {
        snprintf(question, sizeof question, "Destroy the data and the whole history of %s?", name);
        if (!cli_output_confirm(question))
            return cli_output_fail(cli, CLI_EXIT_FAILED, NULL,
                                   "delete %s: not confirmed, nothing was changed", name);
    }
    snprintf(what, sizeof what, "delete %s", name);
    cli_api_application_path(name, purge ? "?purge=true" : "", path);
    enum cli_exit code = cli_api_call(cli, what, "DELETE", path, NULL, &answer);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    cli_output_say(cli, purge ? "%s deleted, with its data and history" : "%s deleted", name);
    print_kept(cli, answer);
    return CLI_EXIT_OK;
}

const struct cli_command cli_delete = {
    .name = "delete",
    .summary = "stop protecting an application",
    .description = "Unmounts and detaches the application's volumes and forgets the application. Its\n"
                   "data and journal stay on disk, and the places are told, unless --purge is given:\n"
                   "that destroys both, after a question on a terminal. Refused while a rewind is being\n"
                   "copied back, where the data of a volume stays: it is not whole before.",
    .operands = (const struct cli_operand[]){{"APP", .kind = CLI_KIND_APPLICATION}, {0}},
    .options =
        (const struct cli_option[]){
            {"purge", 0, CLI_KIND_NONE, NULL, .help = "destroy the volumes' data and the journal too"},
            {"yes", 'y', CLI_KIND_NONE, NULL, .help = "do not ask"},
            {0},
        },
    .formats = true,
    .examples = (const char *const[]){"tidemark delete shop", "tidemark delete shop --purge --yes", NULL},
    .run = run,
};
