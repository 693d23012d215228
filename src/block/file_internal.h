/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_BLOCK_FILE_INTERNAL_H
#define TIDEMARK_BLOCK_FILE_INTERNAL_H

#include "block/block.h"

/* For tests, before any I/O: goes on as where O_DIRECT wants 4096-byte units. False when the file is not open with
 * O_DIRECT or its size is no multiple of that. */
bool block_file_force_pages(struct block *b);

#endif
