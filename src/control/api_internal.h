/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_CONTROL_API_INTERNAL_H
#define TIDEMARK_CONTROL_API_INTERNAL_H

#include "control/control_internal.h"

struct api_route {
    const char *method;
    const char *path; /* as in api/openapi.yaml, with {name} for one segment */
};

/* For the test that compares them with api/openapi.yaml. */
size_t api_route_count(void);
const struct api_route *api_route(size_t i);
/* Whether `path` matches; the segment for {...} goes to `argument`. */
bool api_match(const char *pattern, const char *path, char *argument, size_t size);

#endif
