/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_CONTROLLER_ADMISSION_INTERNAL_H
#define TIDEMARK_CONTROLLER_ADMISSION_INTERNAL_H

#include "controller/admission.h"
#include "controller/controller_internal.h"

/* One request; all borrowed. */
struct admission_request {
    const struct admission *a;
    const json_t *request;
    json_t *object, *old; /* NULL: deleted, or created */
    const char *kind, *namespace, *name;
    json_t *warnings;
};

/* Anything but a Recovery. -EINVAL, -ENOENT, -EBUSY, -EEXIST, -EACCES refuse it, other errors become a warning. */
int admission_validate_kind(struct admission_request *q, struct error *err) MUST_CHECK;

/* object.a.b as a text, or NULL. */
const char *admission_text(const json_t *object, const char *a, const char *b);
void admission_warn(struct admission_request *q, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

#endif
