/* SPDX-License-Identifier: Apache-2.0 */
/* What signal_note costs: ns a write and a block, of writes of 4 KiB and 1 MiB whose data is in the cache, as it is on the way of
 * a write, which has just been received. */
#include <stdio.h>
#include <stdlib.h>

#include "base/clock.h"
#include "content.h"
#include "signal/signal.h"

#define BUFFER_BYTES (1u << 20)
#define ROUNDS 200

static double measure(struct signal *s, const unsigned char *data, size_t write_bytes)
{
    uint64_t best = UINT64_MAX;
    for (int round = 0; round < ROUNDS; round++) {
        uint64_t begin = clock_boottime_ns(clock_system());
        for (size_t at = 0; at + write_bytes <= BUFFER_BYTES; at += write_bytes)
            signal_note(s, at, data + at, write_bytes);
        uint64_t took = clock_boottime_ns(clock_system()) - begin;
        best = took < best ? took : best;
    }
    return (double)best / (BUFFER_BYTES / write_bytes);
}

int main(void)
{
    static const struct {
        const char *name;
        void (*make)(unsigned char *, size_t, uint64_t *);
    } kinds[] = {{"ciphertext", content_cipher}, {"text", content_text}, {"table", content_table}, {"base64", content_base64}};
    struct error err = ERROR_INIT;
    struct signal *s;
    uint64_t state = 1;
    unsigned char *data = malloc(BUFFER_BYTES);
    if (!data || signal_new(1ull << 30, SIGNAL_TABLES_BYTES, &s, &err) < 0)
        return 1;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        kinds[i].make(data, BUFFER_BYTES, &state);
        double small = measure(s, data, 4096), large = measure(s, data, BUFFER_BYTES);
        printf("%-12s 4 KiB: %6.0f ns a write   1 MiB: %8.0f ns a write, %4.0f ns a block\n", kinds[i].name, small, large, large / 256);
    }
    signal_free(s);
    free(data);
    return 0;
}
