/* SPDX-License-Identifier: Apache-2.0 */
/* Little-endian (ours) and big-endian (network protocols) wrapper types for on-disk and wire structs: they cannot be used by
 * accident as host integers. */
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

struct be16 {
    uint16_t raw;
} __attribute__((packed));
struct be32 {
    uint32_t raw;
} __attribute__((packed));
struct be64 {
    uint64_t raw;
} __attribute__((packed));

static inline uint16_t be16_get(struct be16 v)
{
    return be16toh(v.raw);
}
static inline uint32_t be32_get(struct be32 v)
{
    return be32toh(v.raw);
}
static inline uint64_t be64_get(struct be64 v)
{
    return be64toh(v.raw);
}
static inline struct be16 be16_of(uint16_t v)
{
    return (struct be16){htobe16(v)};
}
static inline struct be32 be32_of(uint32_t v)
{
    return (struct be32){htobe32(v)};
}
static inline struct be64 be64_of(uint64_t v)
{
    return (struct be64){htobe64(v)};
}

#endif
