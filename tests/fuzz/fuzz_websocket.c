/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever a server sends: frames within the input, or -EPROTO; and an answer's headers are judged within
 * their text. */
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "kube/websocket.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct error err = ERROR_INIT;
    size_t at = 0;
    int r = 1;
    char *copy = malloc(size + 1), protocol[16];
    if (!copy)
        return 0;
    if (size)
        memcpy(copy, data, size);
    copy[size] = '\0';
    while (at < size && r == 1) {
        struct websocket_frame f;
        r = websocket_parse(copy + at, size - at, &f, &err);
        assert(r == 0 || r == 1 || r == -EPROTO);
        if (r == 1) {
            assert(f.total_bytes >= 2 && f.total_bytes <= size - at);
            assert((const char *)f.data >= copy + at &&
                   (const char *)f.data + f.length_bytes == copy + at + f.total_bytes);
            at += f.total_bytes;
        }
    }
    r = websocket_check_upgrade(copy, "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=", protocol, sizeof protocol, &err);
    assert(r == -EPROTO || (r == 0 && strlen(protocol) < sizeof protocol));
    free(copy);
    return 0;
}
