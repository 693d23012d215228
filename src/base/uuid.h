/* SPDX-License-Identifier: Apache-2.0 */
/* 128-bit ids, and this boot's id. */
#ifndef TIDEMARK_BASE_UUID_H
#define TIDEMARK_BASE_UUID_H

#include <stdint.h>

#include "base/error.h"

#define UUID_TEXT_BYTES 37

struct uuid {
    uint8_t bytes[16];
};

/* A random id (RFC 4122 version 4) from getrandom(2). */
int uuid_random(struct uuid *ret, struct error *err) MUST_CHECK;
/* This boot's id, from /proc/sys/kernel/random/boot_id. */
int uuid_boot(struct uuid *ret, struct error *err) MUST_CHECK;
const char *uuid_format(const struct uuid *uuid, char text[UUID_TEXT_BYTES]);
int uuid_parse(const char *text, struct uuid *ret, struct error *err) MUST_CHECK;

#endif
