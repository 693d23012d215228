/* SPDX-License-Identifier: Apache-2.0 */
#ifndef TIDEMARK_KUBE_LIST_INTERNAL_H
#define TIDEMARK_KUBE_LIST_INTERNAL_H

#include "kube/kube_internal.h"

/* "limit=500&labelSelector=...&continue=..."; the caller frees it. */
int kube_list_query(const char *label_selector, const char *field_selector, unsigned limit, const char *next,
                    char **ret, struct error *err) MUST_CHECK;
/* A chunk's items with apiVersion and kind, the token of the next chunk (NULL: the last) and the version.
 * Borrowed. */
int kube_list_page(json_t *page, const struct kube_resource *resource, json_t **ret_items,
                   const char **ret_continue, const char **ret_version, struct error *err) MUST_CHECK;

#endif
