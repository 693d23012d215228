/* SPDX-License-Identifier: Apache-2.0 */
/* A journal that cannot be opened any more is kept under another name, so that its application can go on: a
 * new journal begins in its place with what the backings hold. They hold all of it unless a rewind was being
 * copied back; then it is refused. */
#ifndef TIDEMARK_JOURNAL_SET_ASIDE_H
#define TIDEMARK_JOURNAL_SET_ASIDE_H

#include <limits.h>
#include <stdbool.h>

#include "base/error.h"

#define SET_ASIDE_MAX 16u
#define SET_ASIDE_REASON_FILE "set-aside.txt"

/* Renames it to "<directory>.damaged-N" and writes `why` into it. -EBUSY: it is in use, or what a rewind has
 * not copied back is known to it alone; -ENOSPC: so many are there already. A crash leaves it as it was, or
 * done. */
int journal_set_aside(const char *directory, const char *why, char ret_kept[PATH_MAX],
                      struct error *err) MUST_CHECK;
/* Whether a rewind is still to be copied back, with or without an engine; *ret_path: the file, or its copy, that says so. */
bool journal_find_pending(const char *directory, char ret_path[PATH_MAX]);
/* Removes what is in shared memory of the journal: one that is about to be removed, and that nobody uses. After a kill, or when it was suspended,
 * its last engine has left that for the next one. */
void journal_forget_memory(const char *directory);
/* Whether there is such a directory beside the journal: the newest, with the reason ("" when it is not
 * known). */
bool journal_find_set_aside(const char *directory, char ret_kept[PATH_MAX], char ret_why[512]);

#endif
