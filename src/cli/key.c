/* SPDX-License-Identifier: Apache-2.0 */
/* Key files of encrypted journals. No key is ever printed: its id tells which one it is. */
#include <errno.h>
#include <string.h>

#include "cli/cli_internal.h"
#include "journal/seal.h"
#include "lib/json.h"

static enum cli_exit usage(struct cli *cli)
{
    return cli_output_fail(cli, CLI_EXIT_USAGE, "`tidemark help key` explains it",
                           "key: expected 'generate FILE', 'show FILE' or 'rotate APP FILE'");
}

static enum cli_exit say_key(struct cli *cli, const char *file, struct seal_user_key *key, const char *what)
{
    char id[SEAL_KEY_ID_TEXT_BYTES];
    seal_key_id_format(key->id, id);
    aead_wipe(key, sizeof *key);
    if (cli->format != CLI_FORMAT_TABLE) {
        _cleanup_json_ json_t *answer = json_pack("{s:s, s:s}", "key_file", file, "key_id", id);
        return cli_output_value(cli, answer);
    }
    cli_output_say(cli, "%s: key %s%s", file, id, what);
    return CLI_EXIT_OK;
}

static enum cli_exit generate(struct cli *cli, const char *file)
{
    struct seal_user_key key;
    struct error err = ERROR_INIT;
    if (seal_key_generate(file, &key, &err) < 0)
        return cli_output_fail(cli, err.code == -EEXIST ? CLI_EXIT_REFUSED : CLI_EXIT_FAILED,
                               err.code == -EEXIST ? "a key file is never written over: name another one"
                                                   : NULL,
                               "key generate: %s", err.message);
    return say_key(cli, file, &key,
                   "; keep a copy of it where the journals are not: without it they cannot be read");
}

static enum cli_exit show(struct cli *cli, const char *file)
{
    struct seal_user_key key;
    struct error err = ERROR_INIT;
    if (seal_key_load(file, &key, &err) < 0)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "key show: %s", err.message);
    return say_key(cli, file, &key, "");
}

static enum cli_exit rotate(struct cli *cli, const char *application, const char *file)
{
    char absolute[CLI_PATH_BYTES], path[CLI_PATH_BYTES], what[2 * CLI_TEXT_BYTES];
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *answer = NULL;
    snprintf(what, sizeof what, "key rotate %s", application);
    if (cli_options_absolute(file, absolute, &err) < 0)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "%s: %s", what, err.message);
    _cleanup_json_ json_t *body = json_pack("{s:s}", "key_file", absolute);
    if (!body)
        return cli_output_fail(cli, CLI_EXIT_FAILED, "paths are UTF-8", "%s: cannot build the request", what);
    cli_api_application_path(application, "/key", path);
    enum cli_exit code = cli_api_call(cli, what, "POST", path, body, &answer);
    if (code != CLI_EXIT_OK)
        return code;
    if (cli->format != CLI_FORMAT_TABLE)
        return cli_output_value(cli, answer);
    cli_output_say(cli, "%s: key %s of %s opens its journal now; the key file of before does not any more",
                   application, cli_field_text(answer, "key_id", "?"), absolute);
    return CLI_EXIT_OK;
}

static enum cli_exit run(struct cli *cli)
{
    const char *what = cli->operands[0];
    if (strcmp(what, "generate") == 0 && cli->operand_count == 2)
        return generate(cli, cli->operands[1]);
    if (strcmp(what, "show") == 0 && cli->operand_count == 2)
        return show(cli, cli->operands[1]);
    if (strcmp(what, "rotate") == 0 && cli->operand_count == 3)
        return rotate(cli, cli->operands[1], cli->operands[2]);
    return usage(cli);
}

/* "rotate APP FILE", "generate FILE", "show FILE". */
static enum cli_kind next_operand(const struct cli *cli)
{
    bool rotates = cli->operand_count && strcmp(cli->operands[0], "rotate") == 0;
    if (rotates && cli->operand_count == 1)
        return CLI_KIND_APPLICATION;
    return cli->operand_count == (rotates ? 2 : 1) ? CLI_KIND_FILE : CLI_KIND_NONE;
}

const struct cli_command cli_key = {
    .name = "key",
    .summary = "key files of encrypted journals: make one, take another",
    .description = "generate FILE writes a new random key. An application whose YAML names it\n"
                   "(spec.journal.encryption.keyFile) gets an encrypted journal. show FILE tells the id\n"
                   "of a key; `tidemark status APP` tells which one opens a journal.\n"
                   "rotate APP FILE makes the key in FILE the one that opens the journal of APP. Nothing\n"
                   "but the journal's own key is encrypted anew, and the key file of before is not\n"
                   "needed any more. Name the new file in the application's YAML too.",
    .operands = (const struct cli_operand[]){{"generate|show|rotate", .kind = CLI_KIND_TEXT},
                                             {"OPERAND", .kind = CLI_KIND_FILE, .repeat = true},
                                             {0}},
    .next_operand = next_operand,
    .formats = true,
    .examples = (const char *const[]){"tidemark key generate /etc/tidemark/shop.key",
                                      "tidemark key rotate shop /etc/tidemark/shop-2027.key", NULL},
    .run = run,
};
