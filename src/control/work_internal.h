/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_CONTROL_WORK_INTERNAL_H
#define TIDEMARK_CONTROL_WORK_INTERNAL_H

#include "control/control_internal.h"

#define WORK_OPEN_WAIT_MS 30000u /* for another open of the same application to end */

enum work_kind { WORK_OPEN, WORK_REWIND, WORK_UNDO, WORK_VERIFY, WORK_UPGRADE, WORK_CLONE };

/* Starts it in a thread; the request has been checked. -EBUSY. */
int work_start(struct application *application, enum work_kind kind, json_t *request,
               char ret_id[CONTROL_ID_BYTES], struct error *err) MUST_CHECK;

/* The same for one that is busy already (a clone in the making), whose right to change it passes on. */
int work_start_busy(struct application *application, enum work_kind kind, json_t *request,
                    char ret_id[CONTROL_ID_BYTES], struct error *err) MUST_CHECK;

#endif
