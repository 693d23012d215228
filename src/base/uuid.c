/* SPDX-License-Identifier: Apache-2.0 */
#include "base/uuid.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>

#include "base/cleanup.h"
#include "base/io.h"

int uuid_random(struct uuid *ret, struct error *err)
{
    if (getrandom(ret->bytes, sizeof ret->bytes, 0) != sizeof ret->bytes)
        return error_errno(err, -errno, "cannot get random bytes");
    ret->bytes[6] = (uint8_t)((ret->bytes[6] & 0x0f) | 0x40);
    ret->bytes[8] = (uint8_t)((ret->bytes[8] & 0x3f) | 0x80);
    return 0;
}

int uuid_boot(struct uuid *ret, struct error *err)
{
    _cleanup_free_ char *text = NULL;
    int r = io_read_file("/proc/sys/kernel/random/boot_id", 256, &text, NULL, err);
    if (r < 0)
        return r;
    text[strcspn(text, "\n")] = '\0';
    return uuid_parse(text, ret, err);
}

const char *uuid_format(const struct uuid *uuid, char text[UUID_TEXT_BYTES])
{
    static const char hex[] = "0123456789abcdef";
    char *at = text;
    for (int i = 0; i < 16; i++) {
        if (i == 4 || i == 6 || i == 8 || i == 10)
            *at++ = '-';
        *at++ = hex[uuid->bytes[i] >> 4];
        *at++ = hex[uuid->bytes[i] & 15];
    }
    *at = '\0';
    return text;
}

static int hex_digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

int uuid_parse(const char *text, struct uuid *ret, struct error *err)
{
    struct uuid uuid;
    const char *at = text;
    for (int i = 0; i < 16; i++) {
        if ((i == 4 || i == 6 || i == 8 || i == 10) && *at++ != '-')
            return error_set(err, -EINVAL, "'%s' is not a UUID", text);
        int high = hex_digit(at[0]), low = high < 0 ? -1 : hex_digit(at[1]);
        if (low < 0)
            return error_set(err, -EINVAL, "'%s' is not a UUID", text);
        uuid.bytes[i] = (uint8_t)(high << 4 | low);
        at += 2;
    }
    if (*at)
        return error_set(err, -EINVAL, "'%s' is not a UUID", text);
    *ret = uuid;
    return 0;
}
