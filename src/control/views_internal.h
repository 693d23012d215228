/* SPDX-License-Identifier: Apache-2.0 */
/* Shared by views.c and view_open.c. */
#ifndef TIDEMARK_CONTROL_VIEWS_INTERNAL_H
#define TIDEMARK_CONTROL_VIEWS_INTERNAL_H

#include "control/control_internal.h"

int views_path(const char *directory, const char *name, char ret[PATH_MAX], struct error *err) MUST_CHECK;
/* Unmounts and detaches all volumes of the view in `directory`. */
int views_clear_mounts(const char *directory, bool force, struct error *err) MUST_CHECK;
/* Removes its directories once its process has ended. `state` may be NULL. */
void views_remove(const struct control *control, const char *directory, const json_t *state);
void views_list(struct control *control, struct view *view);
/* What the API tells of control.json. */
json_t *views_public(const json_t *state);

#endif
