/* SPDX-License-Identifier: Apache-2.0 */
/* Calls to `tidemark up`, and what their errors mean to a script (exit code) and to a person (remedy). */

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "base/clock.h"
#include "cli/cli_internal.h"
#include "lib/http_client.h"
#include "lib/json.h"

#define API_POLL_MS 1000             /* the server answers earlier when something changes */
#define API_ANSWER_TIMEOUT_MS 600000 /* apply makes file systems, open may wait for a flush */
#define API_TRY_TIMEOUT_MS 3000
#define API_STOPPED_NS (3 * NS_PER_SECOND) /* so long may `up` be stopped before nobody waits for it any more */

const char *cli_api_application_path(const char *application, const char *suffix, char path[CLI_PATH_BYTES])
{
    snprintf(path, CLI_PATH_BYTES, "/v1/applications/%s%s", application, suffix);
    return path;
}

/* 0 when somebody listens on the socket, else a negative errno: tells an engine that is away from `up` being
 * away. *ret_pid: who it is; 0 where that cannot be told. */
static int probe(const char *socket_path, pid_t *ret_pid)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer = {0};
    socklen_t length = sizeof peer;
    *ret_pid = 0;
    if (strlen(socket_path) >= sizeof address.sun_path)
        return -ENAMETOOLONG;
    memcpy(address.sun_path, socket_path, strlen(socket_path));
    _cleanup_close_ int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return -errno;
    if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0)
        *ret_pid = peer.pid;
    return 0;
}

/* Stopped by a signal or its terminal (state T of proc(5)): what it is asked waits until somebody lets it go on. */
static bool is_stopped(pid_t pid)
{
    char path[32], line[512];
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    _cleanup_fclose_ FILE *file = pid > 0 ? fopen(path, "re") : NULL;
    const char *name_end = file && fgets(line, sizeof line, file) ? strrchr(line, ')') : NULL;
    return name_end && name_end[1] == ' ' && (name_end[2] == 'T' || name_end[2] == 't');
}

/* `up`, while an answer of it is waited for. */
struct patience {
    pid_t pid;
    uint64_t stopped_ns; /* since then it is; 0: it is not */
};

static bool is_over(void *context)
{
    struct patience *p = context;
    uint64_t now = clock_boottime_ns(clock_system());
    if (!is_stopped(p->pid))
        p->stopped_ns = 0;
    else if (!p->stopped_ns)
        p->stopped_ns = now;
    return p->stopped_ns && now - p->stopped_ns >= API_STOPPED_NS;
}

static struct http_client_options options_of(const struct cli *cli, struct patience *p)
{
    *p = (struct patience){0};
    (void)probe(cli->socket_path, &p->pid); /* what is wrong the call will tell */
    return (struct http_client_options){.socket_path = cli->socket_path, .gives_up = is_over, .context = p};
}

static enum cli_exit unreachable(const struct cli *cli, const char *what, int code)
{
    const char *remedy =
        "start it with `tidemark up`, or `systemctl start tidemark`; another place is told by --state or "
        "--socket";
    if (code == -EACCES || code == -EPERM)
        remedy = "the API is open to root only: try it with sudo";
    else if (code == -ENAMETOOLONG)
        remedy =
            "the path of a Unix socket has at most 107 bytes: choose a shorter one with --state or --socket";
    else if (code == -EAGAIN)
        remedy = "as many wait there as can: it is stopped (`kill -CONT` lets it go on), or has very much to do";
    const char *why = strerrordesc_np(-code);
    return cli_output_fail(cli, CLI_EXIT_UNREACHABLE, remedy, "%s: cannot reach `tidemark up` at %s: %s",
                           what, cli->socket_path, why ? why : "unknown error");
}

static enum cli_exit exit_of(int code)
{
    switch (-code) {
    case ENOENT:
        return CLI_EXIT_NOT_FOUND;
    case EBUSY:
    case EEXIST:
    case ERANGE:
    case ENODATA:
    case ESTALE:
    case EALREADY:
    case EINPROGRESS:
    case EADDRINUSE:
    case ENOTEMPTY:
        return CLI_EXIT_REFUSED;
    case EBADMSG:
    case EUCLEAN:
        return CLI_EXIT_DAMAGED;
    default:
        return CLI_EXIT_FAILED;
    }
}

/* The application that the command line begins with: "shop" of shop@-90s. "APP" when there is none. */
static const char *application_of(const struct cli *cli, char name[CLI_NAME_BYTES])
{
    const struct cli_operand *operand = cli->command->operands;
    bool first = cli->operand_count &&
                 (operand->kind == CLI_KIND_APPLICATION || operand->kind == CLI_KIND_APPLICATION_AT_POINT);
    const char *text = first ? cli->operands[0] : "APP";
    snprintf(name, CLI_NAME_BYTES, "%.*s", (int)strcspn(text, "@"), text);
    return name;
}

/* What a person can do, in `text`; NULL where the message says all there is to say: what stands behind a
 * semicolon is what to do, in messages of `up` and the engine. */
static const char *remedy_of(const struct cli *cli, int code, const char *message, char text[CLI_TEXT_BYTES])
{
    char name[CLI_NAME_BYTES];
    if (strstr(message, "; "))
        return NULL;
    application_of(cli, name);
    switch (-code) {
    case ENOENT:
        if (cli->command == &cli_close)
            return "`tidemark views` lists the open views";
        snprintf(text, CLI_TEXT_BYTES,
                 "`tidemark status` lists the applications, `tidemark points %s` the points of one", name);
        return text;
    case ERANGE:
    case ENODATA:
        snprintf(text, CLI_TEXT_BYTES,
                 "`tidemark status %s` says how far the history goes, `tidemark points %s` what is in it",
                 name, name);
        return text;
    case EBUSY:
    case EALREADY:
    case EINPROGRESS:
        return "`tidemark status` shows what is under way";
    case ETIMEDOUT:
        return "`tidemark status` shows whether it goes on";
    case ENOSPC:
        return "make room on that disk, or use a smaller quota, and try again";
    case EDQUOT:
        return "make room there, or have that quota of the file system made larger, and try again";
    default:
        return NULL;
    }
}

static enum cli_exit fail(const struct cli *cli, const char *what, int code, const char *message)
{
    char text[CLI_TEXT_BYTES];
    size_t length = strlen(what);
    const char *same = strncmp(message, "cannot ", 7) == 0 ? message + 7 : message; /* "cannot open shop@-1h: " says it again */
    if (strncmp(same, what, length) == 0 && strncmp(same + length, ": ", 2) == 0)
        message = same + length + 2;
    return cli_output_fail(cli, exit_of(code), remedy_of(cli, code, message, text), "%s: %s", what, message);
}

/* A call that failed: because nobody is there, or because of what was answered. */
static enum cli_exit call_failed(const struct cli *cli, const char *what, const struct error *err)
{
    char remedy[96];
    pid_t pid;
    int r = probe(cli->socket_path, &pid);
    if (r < 0)
        return unreachable(cli, what, r);
    if (err->code == -ECANCELED && is_stopped(pid)) {
        snprintf(remedy, sizeof remedy, "`kill -CONT %d` lets it go on, and then it does what it was asked", (int)pid);
        return cli_output_fail(cli, CLI_EXIT_UNREACHABLE, remedy, "%s: `tidemark up` (pid %d) at %s is stopped and answers nobody", what,
                               (int)pid, cli->socket_path);
    }
    return fail(cli, what, err->code, err->message);
}

enum cli_exit cli_api_call(const struct cli *cli, const char *what, const char *method, const char *path,
                           const json_t *body, json_t **ret_body)
{
    struct error err = ERROR_INIT;
    struct patience patience;
    const struct http_client_options options = options_of(cli, &patience);
    struct cli_progress *progress = cli_progress_new(cli, what);
    int r = http_client_call_with(&options, method, path, body, API_ANSWER_TIMEOUT_MS, ret_body, &err);
    cli_progress_free(progress);
    return r < 0 ? call_failed(cli, what, &err) : CLI_EXIT_OK;
}

enum cli_exit cli_api_send(const struct cli *cli, const char *what, const char *path, const char *text,
                           json_t **ret_body)
{
    struct error err = ERROR_INIT;
    struct patience patience;
    struct http_client_options options = options_of(cli, &patience);
    options.content_type = "application/yaml"; /* so that messages can name its lines */
    struct cli_progress *progress = cli_progress_new(cli, what);
    int r = http_client_post_text(&options, path, text, API_ANSWER_TIMEOUT_MS, ret_body, &err);
    cli_progress_free(progress);
    return r < 0 ? call_failed(cli, what, &err) : CLI_EXIT_OK;
}

int cli_api_try(const struct cli *cli, const char *path, json_t **ret_body, struct error *err)
{
    const struct http_client_options options = {.socket_path = cli->socket_path};
    return http_client_call_with(&options, "GET", path, NULL, API_TRY_TIMEOUT_MS, ret_body, err);
}

/* Ctrl-C while an operation runs: it goes on in `up`, and the user is told so. */
static void interrupted(int signal_number)
{
    static const char note[] =
        "\ntidemark: no longer waiting; the operation goes on, `tidemark status` shows it\n";
    ssize_t n = write(STDERR_FILENO, note, sizeof note - 1);
    (void)n;
    _exit(128 + signal_number);
}

static void show_progress(struct cli_progress *progress, const json_t *operation)
{
    const json_t *amount = json_object_get(operation, "progress");
    const char *step = NULL;
    size_t i;
    json_t *s;
    json_array_foreach(json_object_get(operation, "steps"), i, s)
    {
        if (strcmp(cli_field_text(s, "state", ""), "running") == 0)
            step = cli_field_text(s, "name", NULL);
    }
    cli_progress_set(progress, step, cli_field_u64(amount, "done"), cli_field_u64(amount, "total"),
                     cli_field_text(amount, "unit", ""));
}

/* Asks for the operation until it has ended; *operation is replaced by the newest answer. */
static int wait_for(const struct cli *cli, struct cli_progress *progress, json_t **operation,
                    struct error *err)
{
    struct patience patience;
    const struct http_client_options options = options_of(cli, &patience);
    char path[CLI_PATH_BYTES];
    while (strcmp(cli_field_text(*operation, "state", ""), "running") == 0) {
        json_t *answer = NULL;
        show_progress(progress, *operation);
        snprintf(path, sizeof path, "/v1/operations/%s?wait_ms=%d&version=%llu",
                 cli_field_text(*operation, "id", ""), API_POLL_MS,
                 (unsigned long long)cli_field_u64(*operation, "version"));
        int r = http_client_call_with(&options, "GET", path, NULL, API_ANSWER_TIMEOUT_MS, &answer, err);
        if (r < 0)
            return r;
        json_decref(*operation);
        *operation = json_incref(json_object_get(answer, "operation"));
        json_decref(answer);
        if (!json_is_object(*operation))
            return error_set(err, -EPROTO, "%s: the answer has no field 'operation'", path);
    }
    return 0;
}

static enum cli_exit operation_result(const struct cli *cli, const char *what, const json_t *operation,
                                      json_t **ret_result)
{
    const char *state = cli_field_text(operation, "state", "unknown");
    const json_t *error = json_object_get(operation, "error");
    if (strcmp(state, "succeeded") == 0) {
        *ret_result = json_incref(json_object_get(operation, "result"));
        if (!json_is_object(*ret_result))
            return fail(cli, what, -EPROTO, "the answer has no result");
        return CLI_EXIT_OK;
    }
    int code = json_errno_of_name(cli_field_text(error, "code", "EIO"));
    return fail(cli, what, code ? code : -EIO,
                cli_field_text(error, "message", "it failed, and gave no reason"));
}

enum cli_exit cli_api_operate(const struct cli *cli, const char *what, const char *method, const char *path,
                              const json_t *body, json_t **ret_result)
{
    _cleanup_json_ json_t *answer = NULL;
    _cleanup_json_ json_t *operation = NULL;
    struct error err = ERROR_INIT;
    enum cli_exit code = cli_api_call(cli, what, method, path, body, &answer);
    if (code != CLI_EXIT_OK)
        return code;
    operation = json_incref(json_object_get(answer, "operation"));
    if (!operation) {
        *ret_result = take_ptr(answer);
        return CLI_EXIT_OK;
    }
    struct sigaction action = {.sa_handler = interrupted}, before;
    sigaction(SIGINT, &action, &before);
    struct cli_progress *progress = cli_progress_new(cli, what);
    int r = wait_for(cli, progress, &operation, &err);
    cli_progress_free(progress);
    sigaction(SIGINT, &before, NULL);
    if (r < 0)
        return call_failed(cli, what, &err);
    return operation_result(cli, what, operation, ret_result);
}
