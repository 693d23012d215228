/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/cli_internal.h"
#include "lib/json.h"

static enum cli_exit run(struct cli *cli)
{
    _cleanup_json_ json_t *answer = NULL, *body = json_object();
    char path[CLI_PATH_BYTES], what[CLI_TEXT_BYTES], question[2 * CLI_TEXT_BYTES];
    const char *name = cli->operands[0];
    size_t i;
    json_t *volume;
    if (!cli_options_flag(cli, "yes") && cli_output_can_ask(cli)) {
        snprintf(question, sizeof question, "Stop protecting %s and give up its history? Its data stay.",
                 name);
        if (!cli_output_confirm(question))
            return cli_output_fail(cli, CLI_EXIT_FAILED, NULL,
                                   "detach %s: not confirmed, nothing was changed", name);
    }
    snprintf(what, sizeof what, "detach %s", name);
    cli_api_application_path(name, "/detach", path);
    enum cli_exit code = cli_api_call(cli, what, "POST", path, body, &answer);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    cli_output_say(cli, "%s detached; its history is gone, its data are complete in plain images", name);
    json_array_foreach(json_object_get(answer, "volumes"), i, volume) cli_output_say(
        cli, "  volume %s: %s", cli_field_text(volume, "name", "?"), cli_field_text(volume, "image", "?"));
    return CLI_EXIT_OK;
}

const struct cli_command cli_detach = {
    .name = "detach",
    .summary = "give an application's data back as plain images",
    .description = "Unmounts and detaches the application's volumes and ends its protection. The data of\n"
                   "each volume stay as a plain image that needs no Tidemark, and where it is is told:\n"
                   "for a volume with a source that very file or device, else a file in the directory\n"
                   "`detached` of the state directory. The history ends: journal and views are removed.\n"
                   "Refused while a rewind is being copied back, since an image is not whole before.",
    .operands = (const struct cli_operand[]){{"APP", .kind = CLI_KIND_APPLICATION}, {0}},
    .options =
        (const struct cli_option[]){
            {"yes", 'y', CLI_KIND_NONE, NULL, .help = "do not ask"},
            {0},
        },
    .formats = true,
    .examples = (const char *const[]){"tidemark detach shop", "tidemark detach shop --yes -o json", NULL},
    .run = run,
};
