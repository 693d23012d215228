/* SPDX-License-Identifier: Apache-2.0 */
/* For use inside the journal. */
#ifndef TIDEMARK_JOURNAL_HISTORY_H
#define TIDEMARK_JOURNAL_HISTORY_H

#include "journal/journal.h"

/* -ERANGE with the reason when the point `lsn` is in a refused interval. */
int history_check_refused(struct journal *j, struct lsn lsn, struct error *err) MUST_CHECK;
/* -ERANGE, naming the nearest points kept, when `lsn` is between two points that thinning kept. */
int history_check_kept(struct journal *j, struct lsn lsn, struct error *err) MUST_CHECK;
/* Saves the objects as of `lsn` to `path` (JSON), as the base of older history. */
/* That they are not known. */
int history_save_unknown(struct journal *j, const char *path, struct error *err) MUST_CHECK;
int history_save_objects(struct journal *j, struct lsn lsn, const char *path, struct error *err) MUST_CHECK;

#endif
