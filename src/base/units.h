/* SPDX-License-Identifier: Apache-2.0 */
/* Sizes and durations as people write them. */
#ifndef TIDEMARK_BASE_UNITS_H
#define TIDEMARK_BASE_UNITS_H

#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define UNITS_TEXT_BYTES 32

/* A Kubernetes quantity of bytes: digits, optional fraction, suffix none k M G T P (10^3) or Ki Mi Gi Ti Pi (2^10). */
int units_parse_bytes(const char *text, uint64_t *ret_bytes, struct error *err) MUST_CHECK;
/* "90s", "1h30m", "250ms", "2d", "1.5h": number and unit ns us ms s m h d w, repeated. Without a sign. */
int units_parse_duration(const char *text, uint64_t *ret_ns, struct error *err) MUST_CHECK;
/* "8.0 GiB", "512 B". Returns `text`. */
const char *units_format_bytes(uint64_t bytes, char text[UNITS_TEXT_BYTES]);
/* "1.5 s", "2 h 3 min", "250 ms". Returns `text`. */
const char *units_format_duration(uint64_t ns, char text[UNITS_TEXT_BYTES]);
/* "36h", "90s": exact, in the largest unit that divides it; units_parse_duration gives it back. Returns `text`. */
const char *units_format_exact_duration(uint64_t ns, char text[UNITS_TEXT_BYTES]);
/* Decimal without sign or blanks, whole string, at most `max`. */
int units_parse_u64(const char *text, uint64_t max, uint64_t *ret, struct error *err) MUST_CHECK;

#endif
