/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "cli/cli_internal.h"
#include "lib/json.h"

static enum cli_exit run(struct cli *cli)
{
    _cleanup_json_ json_t *result = NULL;
    _cleanup_json_ json_t *body = json_pack("{s:b}", "disconnect", cli_options_flag(cli, "disconnect"));
    char path[CLI_PATH_BYTES], what[CLI_TEXT_BYTES];
    const char *application = cli->operands[0];
    snprintf(what, sizeof what, "upgrade-engine %s", application);
    if (!body)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "%s: out of memory", what);
    cli_api_application_path(application, "/upgrade-engine", path);
    enum cli_exit code = cli_api_operate(cli, what, "POST", path, body, &result);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, result);
    cli_output_say(cli, "%s: engine %s (pid %llu) took over from %s (pid %llu); I/O paused for %.1f ms", application,
                   cli_field_text(result, "to_version", "?"), (unsigned long long)cli_field_u64(result, "to_pid"),
                   cli_field_text(result, "from_version", "?"), (unsigned long long)cli_field_u64(result, "from_pid"),
                   json_number_value(json_object_get(result, "pause_ms")));
    if (json_is_true(json_object_get(result, "disconnected")))
        cli_output_say(cli, "  NBD clients were disconnected and have to connect again");
    return CLI_EXIT_OK;
}

const struct cli_command cli_upgrade_engine = {
    .name = "upgrade-engine",
    .summary = "replace a running engine by the installed program",
    .description = "Replaces the engine process of a running application by the program that is\n"
                   "installed now, after asking it whether it can read the configuration and the\n"
                   "journal. Volumes stay attached and mounted: applications see a pause and no error,\n"
                   "and the pause is measured and told. It needs a kernel that can send requests again\n"
                   "(Linux 6.9). An application exported by NBD is interrupted: its clients are\n"
                   "disconnected and have to connect again, which --disconnect allows.",
    .operands = (const struct cli_operand[]){{"APP", .kind = CLI_KIND_APPLICATION}, {0}},
    .options =
        (const struct cli_option[]){
            {"disconnect", 0, CLI_KIND_NONE, NULL, .help = "export nbd: disconnect its clients"},
            {0},
        },
    .formats = true,
    .examples = (const char *const[]){"tidemark upgrade-engine shop", "tidemark upgrade-engine shop -o json", NULL},
    .run = run,
};
