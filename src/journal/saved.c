/* SPDX-License-Identifier: Apache-2.0 */
#include "journal/saved.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/crc32c.h"
#include "base/io.h"
#include "journal/seal.h"

#define SAVED_LIMIT_BYTES (256u << 20)
#define SAVED_CRC_BYTES 10u

static void format_crc(const char *text, size_t length, char crc[SAVED_CRC_BYTES + 1])
{
    snprintf(crc, SAVED_CRC_BYTES + 1, "\n%08x\n", crc32c(0, text, length));
}

int saved_write(const char *path, const json_t *json, struct error *err)
{
    _cleanup_free_ char *text = json ? json_to_text(json) : NULL, *file = NULL;
    char crc[SAVED_CRC_BYTES + 1];
    if (!text)
        return error_errno(err, -ENOMEM, "cannot write %s", path);
    format_crc(text, strlen(text), crc);
    if (strlen(text) + SAVED_CRC_BYTES > SAVED_LIMIT_BYTES) /* nobody could read it */
        return error_set(err, -EFBIG, "cannot write %s: it would have %zu bytes, more than %u", path, strlen(text), SAVED_LIMIT_BYTES);
    if (asprintf(&file, "%s%s", text, crc) < 0)
        return error_errno(err, -ENOMEM, "cannot write %s", path);
    return sealed_replace_file(path, file, strlen(file), 0600, err);
}

int saved_read(const char *path, json_t **ret, struct error *err)
{
    _cleanup_free_ char *text = NULL;
    size_t length;
    char crc[SAVED_CRC_BYTES + 1];
    int r = sealed_read_file(path, SAVED_LIMIT_BYTES, &text, &length, err);
    if (r < 0)
        return r;
    length = length >= SAVED_CRC_BYTES ? length - SAVED_CRC_BYTES : 0;
    format_crc(text, length, crc);
    if (strcmp(text + length, crc) != 0)
        return error_set(err, -EBADMSG, "%s is damaged (wrong checksum)", path);
    json_error_t at; /* of our own making, as the checksum says: json_parse is for what others may have written, and takes less */
    json_t *json = json_loadb(text, length, JSON_DECODE_ANY, &at);
    if (!json)
        return error_set(err, json_error_code(&at) == json_error_out_of_memory ? -ENOMEM : -EBADMSG, "cannot read %s: %s", path, at.text);
    *ret = json;
    return 0;
}
