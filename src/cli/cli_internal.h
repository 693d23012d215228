/* SPDX-License-Identifier: Apache-2.0 */
/* The command line: a table of commands, each in a file of its own. The table is the only source of the
 * parser, the help, the completion and the checks of the man page.
 *
 * Threads: everything runs on the main thread, but for the ticker of struct cli_progress. */
#ifndef TIDEMARK_CLI_CLI_INTERNAL_H
#define TIDEMARK_CLI_CLI_INTERNAL_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include "base/error.h"
#include "base/log.h"

#define CLI_OPTIONS_MAX 32  /* options given on one command line */
#define CLI_OPERANDS_MAX 8  /* operands given on one command line */
#define CLI_NAME_BYTES 128  /* an application's, view's or volume's name with its NUL */
#define CLI_POINT_BYTES 128 /* a point as written, with its NUL */
#define CLI_COLUMNS_MAX 12  /* columns of a table */
#define CLI_PATH_BYTES 4096

/* Exit codes, as the man page has them. */
enum cli_exit {
    CLI_EXIT_OK = 0,
    CLI_EXIT_FAILED = 1,
    CLI_EXIT_USAGE = 2,
    CLI_EXIT_NOT_FOUND = 3,
    CLI_EXIT_REFUSED = 4,
    CLI_EXIT_UNREACHABLE = 5,
    CLI_EXIT_DAMAGED = 6,
};

/* What a value is: checked by the parser, offered by the completion. */
enum cli_kind {
    CLI_KIND_NONE, /* a flag */
    CLI_KIND_TEXT,
    CLI_KIND_APPLICATION,
    CLI_KIND_APPLICATION_AT_POINT,
    CLI_KIND_POINT,
    CLI_KIND_TAG,
    CLI_KIND_LABEL,
    CLI_KIND_VIEW,
    CLI_KIND_VOLUME,
    CLI_KIND_NUMBER,
    CLI_KIND_FILE,
    CLI_KIND_DIRECTORY,
    CLI_KIND_FORMAT,
    CLI_KIND_COMMAND,
    CLI_KIND_SHELL,
    CLI_KIND_LEVEL,
    /* of `kubectl tidemark` */
    CLI_KIND_MEMBER, /* NAMESPACE/NAME or NAME of an application */
    CLI_KIND_MEMBER_AT_POINT,
    CLI_KIND_NAMESPACE,
    CLI_KIND_PAIR, /* FROM=TO */
    CLI_KIND_DURATION,
};

struct cli_option {
    const char *name; /* long, without dashes; NULL ends a list */
    int letter;       /* 0: none */
    enum cli_kind kind;
    const char *argument; /* what help calls the value; NULL for a flag */
    const char *help;
    bool repeat;   /* may be given several times */
    bool required; /* must be given */
};

struct cli_operand {
    const char *name; /* NULL ends a list */
    enum cli_kind kind;
    bool optional;
    bool repeat; /* the last one: may be given several times */
};

struct cli;
struct cli_completion;

struct cli_command {
    const char *name;
    const char *summary;     /* one line */
    const char *description; /* paragraphs; lines of at most 78 characters */
    const struct cli_operand *operands;
    /* For the completion, where what the next operand is depends on those before it; NULL: as `operands` say. */
    enum cli_kind (*next_operand)(const struct cli *cli);
    const struct cli_option *options; /* its own; the common ones come in addition */
    bool formats;                     /* takes -o */
    const char *const *examples;      /* ends with NULL */
    enum cli_exit (*run)(struct cli *cli);
};

/* The binary under one of its names: its commands and what they have in common. */
struct cli_program {
    const char *name;    /* as people type it: "tidemark", "kubectl tidemark" */
    const char *summary; /* one line */
    const struct cli_command *const *commands; /* in the order of the help, ended by NULL */
    const struct cli_option *options;          /* of every command, ended by a NULL name */
    const char *unreachable;                   /* what exit code 5 means */
    /* What to say of a command that it does not have (a static text), or NULL. NULL: nothing. */
    const char *(*elsewhere)(const char *command);
    const char *more; /* a line below the list of commands */
    /* Offers values of a kind that has to be asked for: applications, points, views, volumes, namespaces. */
    void (*complete)(struct cli_completion *completion, enum cli_kind kind);
};

/* commands.c */
const struct cli_program *cli_program_tidemark(void);
const struct cli_command *cli_find_command(const struct cli_program *program, const char *name);
const struct cli_option *cli_format_option(void);
/* kubectl_commands.c: `kubectl tidemark`, which kubectl runs as kubectl-tidemark. */
const struct cli_program *cli_program_kubectl(void);

enum cli_format { CLI_FORMAT_TABLE, CLI_FORMAT_JSON, CLI_FORMAT_YAML };

struct cli_given {
    const struct cli_option *option;
    const char *value; /* NULL for a flag */
};

/* One invocation. Strings are borrowed from argv. */
struct cli {
    const struct cli_program *program;
    const struct cli_command *command;
    const char *operands[CLI_OPERANDS_MAX];
    size_t operand_count;
    struct cli_given given[CLI_OPTIONS_MAX];
    size_t given_count;
    const char *state_directory;
    char socket_path[CLI_PATH_BYTES];
    enum cli_format format;
    bool quiet;
    bool help;
    bool colour_out; /* colours on stdout */
    bool colour_err;
    bool terminal_err; /* stderr is a terminal */
    unsigned columns_out; /* of the terminal on stdout; 0: none, or not known */
    unsigned columns_err;
};

/* options.c: parses argv[1..] into *ret. Errors are -EINVAL; *ret->command is set when it was recognised. */
int cli_options_parse(struct cli *ret, const struct cli_program *program, int argc, char **argv,
                      struct error *err) MUST_CHECK;
/* Was the option given; its value or `fallback` (the last one given); its `nth` value or NULL. */
bool cli_options_flag(const struct cli *cli, const char *name);
const char *cli_options_value(const struct cli *cli, const char *name, const char *fallback);
const char *cli_options_nth(const struct cli *cli, const char *name, size_t nth);
/* "shop@-90s" in two; the point's grammar is checked. -EINVAL. */
int cli_options_split_point(const char *text, char ret_application[CLI_NAME_BYTES],
                            char ret_point[CLI_POINT_BYTES], struct error *err) MUST_CHECK;
/* `path` made absolute by the current directory (not resolved). */
int cli_options_absolute(const char *path, char ret_path[CLI_PATH_BYTES], struct error *err) MUST_CHECK;

/* Fills state_directory and socket_path from what was given. */
int cli_options_settle_socket(struct cli *cli, struct error *err) MUST_CHECK;

/* suggest.c: the nearest of `candidates` (ends with NULL), NULL when none is near. */
const char *cli_suggest(const char *text, const char *const *candidates);

/* complete.c: `PROGRAM __complete WORD...`. The process's exit status. */
int cli_complete(const struct cli_program *program, int argc, char **argv);
/* For cli_program.complete: the line before the word, without checks of its values; what is there of the
 * value; a candidate, which counts if it begins with that (`help` may be NULL); the forms of a point. */
const struct cli *cli_completion_line(const struct cli_completion *completion);
const char *cli_completion_word(const struct cli_completion *completion);
void cli_completion_offer(struct cli_completion *completion, const char *candidate, const char *help);
void cli_completion_points(struct cli_completion *completion);
/* Is a point to be completed, and of which application ("" when the line does not say)? The value is the
 * point from then on. */
bool cli_completion_point_of(struct cli_completion *completion, enum cli_kind kind,
                             char ret_application[2 * CLI_NAME_BYTES]);
/* completion.c: of `tidemark`. */
void cli_completion_ask(struct cli_completion *completion, enum cli_kind kind);

/* help.c */
void cli_help_short(const struct cli_program *program, FILE *out);
void cli_help_all(const struct cli_program *program, FILE *out);
void cli_help_command(const struct cli_program *program, const struct cli_command *command, FILE *out);

/* output.c: the user's side. Messages go to stderr as "tidemark: <what>: <why>" and the remedy on a line of
 * its own. */
enum cli_exit cli_output_fail(const struct cli *cli, enum cli_exit code, const char *remedy,
                              const char *format, ...) __attribute__((format(printf, 4, 5)));
/* A note to stderr, "tidemark: ...", unless -q. */
void cli_output_note(const struct cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* A line to stdout for a person, unless -q. */
void cli_output_say(const struct cli *cli, const char *format, ...) __attribute__((format(printf, 2, 3)));
/* `json` in the format asked for: JSON or YAML. */
enum cli_exit cli_output_value(const struct cli *cli, const json_t *json);
/* Can a person be asked: are stdin and stderr terminals? */
bool cli_output_can_ask(const struct cli *cli);
/* Asks on the terminal, default no. `question` without the "[y/N]". */
bool cli_output_confirm(const char *question);
enum cli_colour { CLI_COLOUR_NONE, CLI_COLOUR_BOLD, CLI_COLOUR_GREEN, CLI_COLOUR_YELLOW, CLI_COLOUR_RED };
/* Text may quote names from elsewhere: control characters other than newlines become '?', so that nothing in it steers the terminal. */
void cli_output_clean(char *text);
/* The escape that begins a colour; "" where there are none. CLI_COLOUR_NONE ends one. */
const char *cli_output_colour(bool enabled, enum cli_colour colour);

/* yaml.c: `json` as a YAML 1.1 document, such that every YAML reader gives the same value back. */
int cli_yaml_write(const json_t *json, FILE *out, struct error *err) MUST_CHECK;

/* table.c: rows of texts in aligned columns, or a line a cell on a terminal that is too narrow for them.
 * Control characters are shown as '?': names come from elsewhere.
 */
struct cli_table;
/* `columns` ends with NULL; a leading '>' aligns to the right. NULL when out of memory. */
struct cli_table *cli_table_new(const char *const *columns);
void cli_table_free(struct cli_table *table);
static inline void cleanup_cli_table(struct cli_table **table)
{
    cli_table_free(*table);
}
#define _cleanup_cli_table_ __attribute__((cleanup(cleanup_cli_table)))
/* Begins a row; then its cells from left to right. Missing cells are empty. Out of memory shows at the print.
 */
void cli_table_row(struct cli_table *table);
void cli_table_cell(struct cli_table *table, enum cli_colour colour, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* A cell with a size, "-" when the field is missing. */
void cli_table_bytes(struct cli_table *table, const json_t *object, const char *key);
/* A cell with a text or a number, "-" when the field is missing, null or empty. */
void cli_table_field(struct cli_table *table, const json_t *object, const char *key);
enum cli_exit cli_table_print(const struct cli *cli, const struct cli_table *table);

#define CLI_POINTS_LIMIT_DEFAULT "50"
/* points.c: --limit of `points`, 1 to `most`; CLI_EXIT_USAGE, with its message, when it is none. */
enum cli_exit cli_points_limit(const struct cli *cli, uint64_t most, uint64_t *ret) MUST_CHECK;

/* fields.c: reading an answer for people: lenient, since the server may be newer. */
#define CLI_TEXT_BYTES 192
uint64_t cli_field_u64(const json_t *object, const char *key);
const char *cli_field_text(const json_t *object, const char *key, const char *fallback);
/* "2 h 3 min ago" of an RFC 3339 time; "-" without one. */
const char *cli_field_age(const json_t *object, const char *key, char text[CLI_TEXT_BYTES]);
/* "data 1.2 MiB, wal 64.0 KiB": `size_key` of each in the array "volumes". */
const char *cli_field_volumes(const json_t *object, const char *size_key, char text[CLI_TEXT_BYTES]);

/* progress.c: shows what is going on once it has taken a second: one updating line on a terminal, else a line
 * now and then. A ticker thread does it, so that a blocking call shows progress too. */
struct cli_progress;
/* NULL when quiet or out of memory; the others accept NULL. */
struct cli_progress *cli_progress_new(const struct cli *cli, const char *what);
/* The step under way (NULL: none) and how far it is: `unit` is "bytes" or a word; `total` 0 is unknown. */
void cli_progress_set(struct cli_progress *progress, const char *step, uint64_t done, uint64_t total,
                      const char *unit);
/* Clears the line and ends the thread. */
void cli_progress_free(struct cli_progress *progress);
static inline void cleanup_cli_progress(struct cli_progress **progress)
{
    cli_progress_free(*progress);
}
#define _cleanup_cli_progress_ __attribute__((cleanup(cleanup_cli_progress)))

/* api.c: calls to `tidemark up`. `what` begins the message ("rewind shop"). On failure the message with its
 * remedy has been printed and the exit code is returned. *ret_body is the caller's. Progress is shown. */
enum cli_exit cli_api_call(const struct cli *cli, const char *what, const char *method, const char *path,
                           const json_t *body, json_t **ret_body);
/* The same with a text as the body (YAML). */
enum cli_exit cli_api_send(const struct cli *cli, const char *what, const char *path, const char *text,
                           json_t **ret_body);
/* As cli_api_call for a GET, without any message. */
int cli_api_try(const struct cli *cli, const char *path, json_t **ret_body, struct error *err) MUST_CHECK;
/* The same; an answer {"operation": {"id"}} is waited for with progress, and its result is given. */
enum cli_exit cli_api_operate(const struct cli *cli, const char *what, const char *method, const char *path,
                              const json_t *body, json_t **ret_result);
/* "/v1/applications/<name><suffix>" of a name that the parser accepted. Returns `path`. */
const char *cli_api_application_path(const char *application, const char *suffix, char path[CLI_PATH_BYTES]);

/* service.c: of the commands that run until a signal ends them. Tells the service manager, sd_notify(3). */
void cli_service_notify(const char *text);
/* Of --log-level. */
enum log_level cli_service_level(const struct cli *cli);
/* --state and --socket made absolute. */
int cli_service_paths(const struct cli *cli, char ret_state[CLI_PATH_BYTES], char ret_socket[CLI_PATH_BYTES],
                      struct error *err) MUST_CHECK;

extern const struct cli_command cli_data, cli_node, cli_controller;
extern const struct cli_command cli_up, cli_apply, cli_delete, cli_detach, cli_status, cli_policy, cli_key, cli_points, cli_tag, cli_open,
    cli_views, cli_close, cli_diff, cli_rewind, cli_undo, cli_verify, cli_upgrade_engine, cli_version, cli_completion, cli_help;

#endif
