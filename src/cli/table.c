/* SPDX-License-Identifier: Apache-2.0 */
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/cleanup.h"
#include "base/units.h"
#include "cli/cli_internal.h"

struct cell {
    char *text;
    enum cli_colour colour;
};

struct cli_table {
    const char *const *columns;
    size_t column_count;
    struct cell *cells; /* row_count * column_count */
    size_t row_count;
    size_t capacity_rows;
    size_t next; /* column of the next cell */
    bool failed; /* out of memory */
};

struct cli_table *cli_table_new(const char *const *columns)
{
    struct cli_table *table = calloc(1, sizeof *table);
    if (!table)
        return NULL;
    table->columns = columns;
    while (columns[table->column_count] && table->column_count < CLI_COLUMNS_MAX)
        table->column_count++;
    return table;
}

void cli_table_free(struct cli_table *table)
{
    if (!table)
        return;
    for (size_t i = 0; i < table->row_count * table->column_count; i++)
        free(table->cells[i].text);
    free(table->cells);
    free(table);
}

void cli_table_row(struct cli_table *table)
{
    if (table->row_count == table->capacity_rows) {
        size_t capacity = table->capacity_rows ? 2 * table->capacity_rows : 16;
        struct cell *cells = reallocarray(table->cells, capacity * table->column_count, sizeof *cells);
        if (!cells) {
            table->failed = true;
            return;
        }
        table->cells = cells;
        table->capacity_rows = capacity;
    }
    memset(table->cells + table->row_count * table->column_count, 0,
           table->column_count * sizeof *table->cells);
    table->row_count++;
    table->next = 0;
}

void cli_table_cell(struct cli_table *table, enum cli_colour colour, const char *format, ...)
{
    if (table->failed || table->next == table->column_count)
        return;
    struct cell *cell = table->cells + (table->row_count - 1) * table->column_count + table->next++;
    va_list args;
    va_start(args, format);
    if (vasprintf(&cell->text, format, args) < 0) {
        cell->text = NULL;
        table->failed = true;
    }
    va_end(args);
    cell->colour = colour;
    if (cell->text)
        cli_output_clean(cell->text);
    for (char *p = cell->text; p && (p = strchr(p, '\n'));)
        *p = '?';
}

void cli_table_bytes(struct cli_table *table, const json_t *object, const char *key)
{
    char text[UNITS_TEXT_BYTES];
    const json_t *field = json_object_get(object, key);
    if (json_is_integer(field))
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", units_format_bytes(cli_field_u64(object, key), text));
    else
        cli_table_cell(table, CLI_COLOUR_NONE, "-");
}

void cli_table_field(struct cli_table *table, const json_t *object, const char *key)
{
    const json_t *field = json_object_get(object, key);
    if (json_is_integer(field))
        cli_table_cell(table, CLI_COLOUR_NONE, "%lld", (long long)json_integer_value(field));
    else
        cli_table_cell(table, CLI_COLOUR_NONE, "%s", cli_field_text(object, key, "-"));
}

/* Characters of UTF-8, each taken as one column wide. */
static size_t width_of(const char *text)
{
    size_t width = 0;
    for (; text && *text; text++)
        width += ((unsigned char)*text & 0xc0) != 0x80;
    return width;
}

static void print_cell(const char *text, size_t width, bool right, const char *after, const char *begin,
                       const char *end)
{
    int blanks = (int)(width - width_of(text));
    bool last = *after == '\n';
    printf("%*s%s%s%s%*s%s", right ? blanks : 0, "", begin, text, end, right || last ? 0 : blanks, "", after);
}

/* A line each: for a terminal that is too narrow for the columns. */
static void print_records(const struct cli *cli, const struct cli_table *table)
{
    size_t width = 0;
    for (size_t c = 0; c < table->column_count; c++)
        if (strlen(table->columns[c]) > width)
            width = strlen(table->columns[c]);
    for (size_t i = 0; i < table->row_count * table->column_count; i++) {
        const struct cell *cell = &table->cells[i];
        size_t c = i % table->column_count;
        bool coloured = cli->colour_out && cell->colour != CLI_COLOUR_NONE;
        if (i && c == 0)
            fputc('\n', stdout);
        if (!cell->text || !*cell->text)
            continue;
        print_cell(table->columns[c] + (*table->columns[c] == '>'), width, false, "  ",
                   cli_output_colour(cli->colour_out, CLI_COLOUR_BOLD),
                   cli_output_colour(cli->colour_out, CLI_COLOUR_NONE));
        print_cell(cell->text, 0, false, "\n", cli_output_colour(coloured, cell->colour),
                   cli_output_colour(coloured, CLI_COLOUR_NONE));
    }
}

/* What stands between columns, such that they fit on the terminal; NULL when nothing does. The last column
 * may wrap. */
static const char *gap_of(const struct cli *cli, const struct cli_table *table, const size_t *widths)
{
    size_t last = table->column_count - 1, needed = width_of(table->columns[last]);
    for (size_t c = 0; c < last; c++)
        needed += widths[c];
    if (!cli->columns_out || needed + 2 * last <= cli->columns_out)
        return "  ";
    return needed + last <= cli->columns_out ? " " : NULL;
}

enum cli_exit cli_table_print(const struct cli *cli, const struct cli_table *table)
{
    size_t widths[CLI_COLUMNS_MAX];
    if (!table || table->failed)
        return cli_output_fail(cli, CLI_EXIT_FAILED, NULL, "cannot show the table: out of memory");
    for (size_t c = 0; c < table->column_count; c++) {
        widths[c] = width_of(table->columns[c] + (*table->columns[c] == '>'));
        for (size_t r = 0; r < table->row_count; r++) {
            size_t width = width_of(table->cells[r * table->column_count + c].text);
            widths[c] = width > widths[c] ? width : widths[c];
        }
    }
    const char *gap = gap_of(cli, table, widths);
    if (!gap && !table->row_count)
        gap = " ";
    if (!gap) {
        print_records(cli, table);
        return CLI_EXIT_OK;
    }
    for (size_t c = 0; c < table->column_count; c++) {
        bool right = *table->columns[c] == '>';
        print_cell(table->columns[c] + right, widths[c], right, c + 1 == table->column_count ? "\n" : gap,
                   cli_output_colour(cli->colour_out, CLI_COLOUR_BOLD),
                   cli_output_colour(cli->colour_out, CLI_COLOUR_NONE));
    }
    for (size_t i = 0; i < table->row_count * table->column_count; i++) {
        const struct cell *cell = &table->cells[i];
        size_t c = i % table->column_count;
        bool coloured = cli->colour_out && cell->colour != CLI_COLOUR_NONE;
        print_cell(cell->text ? cell->text : "", widths[c], *table->columns[c] == '>',
                   c + 1 == table->column_count ? "\n" : gap, cli_output_colour(coloured, cell->colour),
                   cli_output_colour(coloured, CLI_COLOUR_NONE));
    }
    return CLI_EXIT_OK;
}
