/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_CONTROLLER_RECOVERY_STREAMS_H
#define TIDEMARK_CONTROLLER_RECOVERY_STREAMS_H

#include "controller/recovery.h"

/* Volumes over the node agents. The context is struct controller, with `data` set. */
extern const struct data_ops recovery_streams_ops;

#endif
