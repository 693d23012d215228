/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_CLI_REWIND_INTERNAL_H
#define TIDEMARK_CLI_REWIND_INTERNAL_H

#include "cli/cli_internal.h"

/* POSTs `body` to the verb ("rewind" or "undo") of the application that the first operand names, after plan
 * and question as --dry-run and --yes have it, and prints what came of it. Sets "dry_run" in `body`. */
enum cli_exit cli_rewind_perform(const struct cli *cli, const char *verb, json_t *body);

#endif
