/* SPDX-License-Identifier: Apache-2.0 */
/* What `verify` and `copy` print: a JSON object a line. */
#include <stdio.h>

#include "base/cleanup.h"
#include "engine/engine_internal.h"

void engine_print_line(json_t *line)
{
    _cleanup_free_ char *text = line ? json_to_text(line) : NULL;
    if (text)
        puts(text);
    fflush(stdout);
    json_decref(line);
}

void engine_print_progress(uint64_t *told_ns, uint64_t interval_ns, uint64_t done_bytes, uint64_t total_bytes)
{
    uint64_t now = clock_boottime_ns(clock_system());
    if (now - *told_ns < interval_ns)
        return;
    *told_ns = now;
    engine_print_line(json_pack("{s:s, s:I, s:I}", "kind", "progress", "done_bytes", (json_int_t)done_bytes, "total_bytes",
                                (json_int_t)total_bytes));
}
