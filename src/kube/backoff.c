/* SPDX-License-Identifier: Apache-2.0 */
/* Times between tries, random numbers for them, and a buffer that grows. */
#include <errno.h>
#include <string.h>
#include <sys/random.h>

#include "kube/kube_internal.h"

uint32_t kube_random(uint32_t limit)
{
    uint32_t value = 0;
    /* Without randomness (which a running Linux always has) all wait equally long: not wrong, only less
     * polite. */
    if (getrandom(&value, sizeof value, 0) != (ssize_t)sizeof value)
        value = limit / 2;
    return value % limit;
}

unsigned kube_backoff_ms(unsigned failures, unsigned min_ms, unsigned max_ms)
{
    unsigned ms = min_ms;
    while (failures-- > 0 && ms < max_ms)
        ms = ms > max_ms / 2 ? max_ms : ms * 2;
    return ms - ms / 2 + kube_random(ms / 2 + 1);
}

int kube_buffer_add(struct kube_buffer *buffer, const void *data, size_t length_bytes)
{
    if (length_bytes >= buffer->capacity_bytes - buffer->length_bytes) {
        size_t capacity = buffer->capacity_bytes ? buffer->capacity_bytes : 4096;
        while (capacity - buffer->length_bytes <= length_bytes) {
            if (capacity > SIZE_MAX / 2)
                return -ENOMEM;
            capacity *= 2;
        }
        char *larger = realloc(buffer->data, capacity);
        if (!larger)
            return -ENOMEM;
        buffer->data = larger;
        buffer->capacity_bytes = capacity;
    }
    if (length_bytes)
        memcpy(buffer->data + buffer->length_bytes, data, length_bytes);
    buffer->length_bytes += length_bytes;
    buffer->data[buffer->length_bytes] = '\0';
    return 0;
}
