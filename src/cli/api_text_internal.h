/* SPDX-License-Identifier: Apache-2.0 */
/* One call with a body that is not JSON: YAML for /v1/apply, so that messages can name its lines. */
#ifndef TIDEMARK_CLI_API_TEXT_INTERNAL_H
#define TIDEMARK_CLI_API_TEXT_INTERNAL_H

#include <jansson.h>

#include "base/error.h"

/* POSTs `text` as application/yaml; otherwise as http_client_call. Blocks. */
int cli_api_text_post(const char *socket_path, const char *path, const char *text, unsigned timeout_ms,
                      json_t **ret_body, struct error *err) MUST_CHECK;

#endif
