/* SPDX-License-Identifier: Apache-2.0 */
/* Whatever the text: a point of the grammar, or -EINVAL with a message and nothing touched. */
#include <assert.h>
#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "journal/point.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);
    struct error err = ERROR_INIT;
    struct point point, before;
    if (!text)
        return 0;
    if (size > 0)
        memcpy(text, data, size);
    text[size] = '\0';
    memset(&point, 0xee, sizeof point);
    before = point;
    if (point_parse(text, &point, &err) < 0) {
        assert(err.code == -EINVAL && strstr(err.message, "is not a point in time"));
        assert(memcmp(&point, &before, sizeof point) == 0);
    } else {
        assert((point.kind == POINT_LATEST) == (strcmp(text, "latest") == 0));
        assert((point.kind == POINT_AGO) == (text[0] == '-'));
        assert((point.kind == POINT_LSN) == (strncmp(text, "lsn:", 4) == 0));
        assert((point.kind == POINT_TAG) == (strncmp(text, "tag:", 4) == 0));
        assert(point.kind != POINT_TAG || strcmp(point.tag, text + 4) == 0);
        assert(point.kind != POINT_TAG || point_check_tag(point.tag, &err) == 0);
    }
    free(text);
    return 0;
}
