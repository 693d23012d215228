/* SPDX-License-Identifier: Apache-2.0 */
#include <string.h>

#include "cli/cli_internal.h"

#define SUGGEST_LENGTH_MAX 32

/* Damerau-Levenshtein with adjacent transpositions (optimal string alignment). */
static size_t distance(const char *a, size_t a_length, const char *b, size_t b_length)
{
    size_t d[SUGGEST_LENGTH_MAX + 1][SUGGEST_LENGTH_MAX + 1];
    for (size_t i = 0; i <= a_length; i++)
        d[i][0] = i;
    for (size_t j = 0; j <= b_length; j++)
        d[0][j] = j;
    for (size_t i = 1; i <= a_length; i++)
        for (size_t j = 1; j <= b_length; j++) {
            size_t best = d[i - 1][j - 1] + (a[i - 1] != b[j - 1]);
            if (d[i - 1][j] + 1 < best)
                best = d[i - 1][j] + 1;
            if (d[i][j - 1] + 1 < best)
                best = d[i][j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] && d[i - 2][j - 2] + 1 < best)
                best = d[i - 2][j - 2] + 1;
            d[i][j] = best;
        }
    return d[a_length][b_length];
}

const char *cli_suggest(const char *text, const char *const *candidates)
{
    const char *nearest = NULL;
    size_t length = strlen(text), nearest_distance = length / 3 + 2;
    if (length == 0 || length > SUGGEST_LENGTH_MAX)
        return NULL;
    for (; *candidates; candidates++) {
        size_t candidate_length = strlen(*candidates);
        if (candidate_length > SUGGEST_LENGTH_MAX)
            continue;
        size_t d = distance(text, length, *candidates, candidate_length);
        if (length >= 2 && strncmp(text, *candidates, length) == 0)
            d = 1;
        /* Less than the whole word must change: "xy" is not meant to be "up". */
        if (d < nearest_distance && d < candidate_length) {
            nearest = *candidates;
            nearest_distance = d;
        }
    }
    return nearest;
}
