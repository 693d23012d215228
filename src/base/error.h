/* SPDX-License-Identifier: Apache-2.0 */
/* Errors: a fixed-size value of the caller's, so that failure paths never allocate. A function that can fail
 * returns 0 or a negative errno and takes `struct error *err` last (never NULL); context is added on the way up. */
#ifndef TIDEMARK_BASE_ERROR_H
#define TIDEMARK_BASE_ERROR_H

#include <stdarg.h>
#include <stdbool.h>

#define ERROR_MESSAGE_BYTES 1024

struct error {
    int code;         /* negative errno, 0 when unset */
    int line;         /* where it was set */
    const char *file; /* static string */
    char message[ERROR_MESSAGE_BYTES];
};

#define ERROR_INIT ((struct error){0})
#define MUST_CHECK __attribute__((warn_unused_result))

/* Sets code (negative errno) and message: what was attempted, on what, why it failed, what to do. Returns code. */
#define error_set(err, code, ...)                                                                                 \
    ({                                                                                                           \
        int error_code_ = (code); /* the compiler sees that a constant is returned, and that it is not 0 */      \
        error_set_at((err), __FILE__, __LINE__, error_code_, __VA_ARGS__);                                        \
        error_code_;                                                                                             \
    })
int error_set_at(struct error *err, const char *file, int line, int code, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* What a negative errno means; never NULL. A quota of the file system is told apart from that of a journal. */
const char *error_reason(int code);

/* Like error_set with ": <error_reason(code)>" appended to the message. Returns code. */
#define error_errno(err, code, ...)                                                                                 \
    ({                                                                                                           \
        int error_code_ = (code); /* the compiler sees that a constant is returned, and that it is not 0 */      \
        error_errno_at((err), __FILE__, __LINE__, error_code_, __VA_ARGS__);                                        \
        error_code_;                                                                                             \
    })
int error_errno_at(struct error *err, const char *file, int line, int code, const char *format, ...)
    __attribute__((format(printf, 5, 6)));

/* Puts "<context>: " before the message. Returns the code that is there already. */
int error_context(struct error *err, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
