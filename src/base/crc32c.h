/* SPDX-License-Identifier: Apache-2.0 */
/* CRC32C (Castagnoli, RFC 3720 appendix B.4), by the CPU's instruction where there is one. Thread-safe. */
#ifndef TIDEMARK_BASE_CRC32C_H
#define TIDEMARK_BASE_CRC32C_H

#include <stddef.h>
#include <stdint.h>

/* CRC of `length_bytes` at `data`, continuing from `crc` (0 to start; crc32c(crc32c(0,a),b) == crc32c(0,ab)). */
uint32_t crc32c(uint32_t crc, const void *data, size_t length_bytes);
/* The table-driven implementation, for CPUs without the instruction and for tests. */
uint32_t crc32c_portable(uint32_t crc, const void *data, size_t length_bytes);

#endif
