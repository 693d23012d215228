/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static void set(struct error *err, const char *file, int line, int code, const char *format, va_list args)
{
    err->code = code;
    err->file = file;
    err->line = line;
    vsnprintf(err->message, sizeof err->message, format, args);
}

int error_set_at(struct error *err, const char *file, int line, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    set(err, file, line, code, format, args);
    va_end(args);
    return code;
}

const char *error_reason(int code)
{
    const char *reason = code == -EDQUOT ? "Disk quota exceeded (of the file system, not of the journal)" : strerrordesc_np(-code);
    return reason ? reason : "unknown error";
}

int error_errno_at(struct error *err, const char *file, int line, int code, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    set(err, file, line, code, format, args);
    va_end(args);
    size_t used = strlen(err->message);
    snprintf(err->message + used, sizeof err->message - used, ": %s", error_reason(code));
    return code;
}

int error_context(struct error *err, const char *format, ...)
{
    char context[ERROR_MESSAGE_BYTES / 2];
    va_list args;
    va_start(args, format);
    vsnprintf(context, sizeof context, format, args);
    va_end(args);
    size_t prefix = strlen(context);
    size_t room = sizeof err->message - prefix - 3;
    size_t old = strnlen(err->message, sizeof err->message - 1);
    if (old > room)
        old = room;
    memmove(err->message + prefix + 2, err->message, old);
    memcpy(err->message, context, prefix);
    memcpy(err->message + prefix, ": ", 2);
    err->message[prefix + 2 + old] = '\0';
    return err->code;
}
