/* SPDX-License-Identifier: Apache-2.0 */
/* Memory that an io_uring knows: the kernel looks its pages up once, not at each write from it. */
#ifndef TIDEMARK_BASE_URING_H
#define TIDEMARK_BASE_URING_H

#include <liburing.h>
#include <sys/uio.h>

/* Makes memory known to a ring that has none yet, in the thread that may use the ring. It stays in memory
 * until the ring has ended, and has to stay mapped as it is: what is mapped there later is not what is
 * written. Returns what the ring knows: nothing where that is refused (by the limit of locked memory, say).
 */
static inline struct iovec uring_register(struct io_uring *ring, struct iovec memory)
{
    bool known = memory.iov_len && io_uring_register_buffers(ring, &memory, 1) == 0;
    return known ? memory : (struct iovec){0};
}

/* As io_uring_prep_write; `known` is of uring_register. */
static inline void uring_prep_write(struct io_uring_sqe *sqe, const struct iovec *known, int fd,
                                    const void *data, unsigned length_bytes, uint64_t offset_bytes)
{
    size_t at = (uintptr_t)data - (uintptr_t)known->iov_base;
    if (at < known->iov_len && length_bytes <= known->iov_len - at)
        io_uring_prep_write_fixed(sqe, fd, data, length_bytes, offset_bytes, 0);
    else
        io_uring_prep_write(sqe, fd, data, length_bytes, offset_bytes);
}

#endif
