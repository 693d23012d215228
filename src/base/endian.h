/* SPDX-License-Identifier: Apache-2.0 */
/* Little-endian wrapper types for on-disk and wire structs: they cannot be used by accident as host integers. */
#ifndef TIDEMARK_BASE_ENDIAN_H
#define TIDEMARK_BASE_ENDIAN_H

#include <endian.h>
#include <stdint.h>

struct le16 {
    uint16_t raw;
} __attribute__((packed));
struct le32 {
    uint32_t raw;
} __attribute__((packed));
struct le64 {
    uint64_t raw;
} __attribute__((packed));

static inline uint16_t le16_get(struct le16 v)
{
    return le16toh(v.raw);
}
static inline uint32_t le32_get(struct le32 v)
{
    return le32toh(v.raw);
}
static inline uint64_t le64_get(struct le64 v)
{
    return le64toh(v.raw);
}
static inline struct le16 le16_of(uint16_t v)
{
    return (struct le16){htole16(v)};
}
static inline struct le32 le32_of(uint32_t v)
{
    return (struct le32){htole32(v)};
}
static inline struct le64 le64_of(uint64_t v)
{
    return (struct le64){htole64(v)};
}

#endif
