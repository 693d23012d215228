/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "base/units.h"
#include "cli/cli_internal.h"
#include "lib/json.h"

static void print_fields(const struct cli *cli, const json_t *result)
{
    const char *key;
    json_t *value;
    char size[UNITS_TEXT_BYTES];
    json_object_foreach((json_t *)(uintptr_t)result, key, value)
    {
        size_t length = strlen(key);
        if (json_is_integer(value) && length > 6 && strcmp(key + length - 6, "_bytes") == 0)
            cli_output_say(cli, "  %.*s: %s", (int)(length - 6), key,
                           units_format_bytes(cli_field_u64(result, key), size));
        else if (json_is_integer(value))
            cli_output_say(cli, "  %s: %lld", key, (long long)json_integer_value(value));
        else if (json_is_string(value))
            cli_output_say(cli, "  %s: %s", key, json_string_value(value));
    }
}

static enum cli_exit run(struct cli *cli)
{
    _cleanup_json_ json_t *result = NULL;
    _cleanup_json_ json_t *body = json_object();
    char path[CLI_PATH_BYTES], what[CLI_TEXT_BYTES];
    const char *application = cli->operands[0];
    snprintf(what, sizeof what, "verify %s", application);
    cli_api_application_path(application, "/verify", path);
    enum cli_exit code = cli_api_operate(cli, what, "POST", path, body, &result);
    if (code != CLI_EXIT_OK)
        return code;
    bool ok = json_is_true(json_object_get(result, "ok"));
    if (cli->format != CLI_FORMAT_TABLE)
        code = cli_output_value(cli, result);
    else
        cli_output_say(cli,
                       ok ? "%s: every record, payload and index reads back as it was written"
                          : "%s: the journal is damaged",
                       application);
    if (cli->format == CLI_FORMAT_TABLE)
        print_fields(cli, result);
    if (code != CLI_EXIT_OK || ok)
        return code;
    return cli_output_fail(cli, CLI_EXIT_DAMAGED,
                           "what is damaged is never given out as data; check the disk, and look at the "
                           "messages above and in engine.log",
                           "%s: damage was found", what);
}

const struct cli_command cli_verify = {
    .name = "verify",
    .summary = "read the whole journal and check every checksum",
    .description = "Reads the application's journal, records, payloads and indexes, in a process of its\n"
                   "own while the application goes on, and compares every checksum. Ends with exit code\n"
                   "6 when it found damage.",
    .operands = (const struct cli_operand[]){{"APP", .kind = CLI_KIND_APPLICATION}, {0}},
    .formats = true,
    .examples = (const char *const[]){"tidemark verify shop", "tidemark verify shop -o json", NULL},
    .run = run,
};
