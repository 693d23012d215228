/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/api_text_internal.h"

#include <curl/curl.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "lib/json.h"

static void cleanup_easy(CURL **curl)
{
    curl_easy_cleanup(*curl);
}
static void cleanup_list(struct curl_slist **list)
{
    curl_slist_free_all(*list);
}

static int perform(CURL *curl, const char *socket_path, const char *path, const char *text,
                   unsigned timeout_ms, FILE *answer, struct error *err)
{
    struct curl_slist *headers __attribute__((cleanup(cleanup_list))) = curl_slist_append(NULL, "Expect:");
    _cleanup_free_ char *url = NULL;
    if (!headers || !curl_slist_append(headers, "Content-Type: application/yaml") ||
        asprintf(&url, "http://localhost%s", path) < 0)
        return error_errno(err, -ENOMEM, "POST %s", path);
    curl_easy_setopt(curl, CURLOPT_URL, url);
    curl_easy_setopt(curl, CURLOPT_UNIX_SOCKET_PATH, socket_path);
    curl_easy_setopt(curl, CURLOPT_PROXY, "");
    curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L);
    curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)timeout_ms);
    curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers);
    curl_easy_setopt(curl, CURLOPT_POSTFIELDS, text);
    curl_easy_setopt(curl, CURLOPT_WRITEDATA, answer);
    CURLcode code = curl_easy_perform(curl);
    if (code == CURLE_OPERATION_TIMEDOUT)
        return error_set(err, -ETIMEDOUT, "no answer within %u ms", timeout_ms);
    if (code != CURLE_OK)
        return error_set(err, -EIO, "POST %s at %s: %s", path, socket_path, curl_easy_strerror(code));
    return 0;
}

int cli_api_text_post(const char *socket_path, const char *path, const char *text, unsigned timeout_ms,
                      json_t **ret_body, struct error *err)
{
    _cleanup_free_ char *data = NULL;
    size_t length_bytes = 0;
    long status = 0;
    CURL *curl __attribute__((cleanup(cleanup_easy))) = curl_easy_init();
    FILE *answer = open_memstream(&data, &length_bytes);
    int r = curl && answer ? perform(curl, socket_path, path, text, timeout_ms, answer, err)
                           : error_errno(err, -ENOMEM, "POST %s", path);
    if (answer && fclose(answer) != 0 && r == 0)
        r = error_errno(err, -ENOMEM, "POST %s", path);
    if (r < 0)
        return r;
    curl_easy_getinfo(curl, CURLINFO_RESPONSE_CODE, &status);
    _cleanup_json_ json_t *json = NULL;
    r = json_parse("the answer", data, length_bytes, &json, err);
    if (status >= 400)
        return json_to_error(json, -EIO, "the server refused it without a reason", err);
    if (r < 0)
        return error_context(err, "POST %s", path);
    *ret_body = take_ptr(json);
    return 0;
}
