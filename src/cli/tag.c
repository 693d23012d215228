/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "base/cleanup.h"
#include "cli/cli_internal.h"
#include "lib/json.h"

/* {"k": "v"} of the --label options; the parser has checked that each has a '='. NULL when out of memory. */
static json_t *labels_of(const struct cli *cli)
{
    _cleanup_json_ json_t *labels = json_object();
    const char *label;
    for (size_t i = 0; (label = cli_options_nth(cli, "label", i)); i++) {
        const char *equals = strchr(label, '=');
        _cleanup_free_ char *key = strndup(label, (size_t)(equals - label));
        if (!key || json_object_set_new(labels, key, json_string(equals + 1)) < 0)
            return NULL;
    }
    return take_ptr(labels);
}

static enum cli_exit run(struct cli *cli)
{
    _cleanup_json_ json_t *answer = NULL;
    _cleanup_json_ json_t *labels = labels_of(cli);
    char path[CLI_PATH_BYTES], what[2 * CLI_TEXT_BYTES];
    snprintf(what, sizeof what, "tag %s %s", cli->operands[0], cli->operands[1]);
    _cleanup_json_ json_t *body =
        labels ? json_pack("{s:s,s:O}", "name", cli->operands[1], "labels", labels) : NULL;
    if (!body)
        return cli_output_fail(cli, CLI_EXIT_FAILED, "labels are UTF-8", "%s: cannot build the request",
                               what);
    cli_api_application_path(cli->operands[0], "/tag", path);
    enum cli_exit code = cli_api_call(cli, what, "POST", path, body, &answer);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    cli_output_say(cli, "%s: tag:%s is LSN %llu, %s", cli->operands[0], cli->operands[1],
                   (unsigned long long)cli_field_u64(answer, "lsn"), cli_field_text(answer, "time", "-"));
    const char *note = cli_field_text(answer, "note", NULL);
    if (note)
        cli_output_say(cli, "  %s", note);
    return CLI_EXIT_OK;
}

const struct cli_command cli_tag = {
    .name = "tag",
    .summary = "give this moment a name",
    .description = "Names the present moment of an application, so that tag:NAME is a point. What\n"
                   "Linux holds in memory for mounted volumes is written before, so that it is in the\n"
                   "point. When it answers, the tag and every write acknowledged before it are durable.\n"
                   "A name can be given once.",
    .operands = (const struct cli_operand[]){{"APP", .kind = CLI_KIND_APPLICATION},
                                             {"NAME", .kind = CLI_KIND_TAG},
                                             {0}},
    .options =
        (const struct cli_option[]){
            {"label", 'l', CLI_KIND_LABEL, "KEY=VALUE", .help = "a label that is shown with it",
             .repeat = true},
            {0},
        },
    .formats = true,
    .examples =
        (const char *const[]){"tidemark tag shop before-migration",
                              "tidemark tag shop release-42 --label commit=1a2b3c --label build=1234", NULL},
    .run = run,
};
