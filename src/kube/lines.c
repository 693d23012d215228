/* SPDX-License-Identifier: Apache-2.0 */
#include "kube/lines.h"

#include <errno.h>
#include <string.h>

int lines_feed(struct lines *l, const char *data, size_t length_bytes)
{
    while (length_bytes) {
        const char *end = memchr(data, '\n', length_bytes);
        size_t n = end ? (size_t)(end - data) : length_bytes;
        int r;
        if (l->rest.length_bytes + n > l->limit_bytes)
            return -EFBIG;
        if (end && l->rest.length_bytes == 0) { /* the usual case: no copy */
            r = n ? l->line(l->context, data, n) : 0;
        } else {
            r = kube_buffer_add(&l->rest, data, n);
            if (r == 0 && end) {
                r = l->line(l->context, l->rest.data, l->rest.length_bytes);
                kube_buffer_release(&l->rest); /* a large object must not keep its memory for each watch */
            }
        }
        if (r != 0)
            return r;
        n += end != NULL;
        data += n;
        length_bytes -= n;
    }
    return 0;
}
