/* SPDX-License-Identifier: Apache-2.0 */
/* Server and client against each other, over a real socket. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "base/cleanup.h"
#include "lib/http_client.h"
#include "lib/http_server.h"
#include "lib/json.h"

static char *directory;
static char socket_path[512];
static struct http_server *server;
static struct http_client_options client;
static atomic_uint running, most_running;
static atomic_bool held;

static int handler(void *context, const struct http_request *request, struct http_response *response,
                   struct error *err)
{
    assert_ptr_equal(context, &running);
    if (strcmp(request->path, "/echo") == 0) {
        _cleanup_json_ json_t *body = NULL;
        int r = http_request_json(request, &body, err);
        if (r < 0)
            return r;
        const char *q = http_request_query(request, "q"), *flag = http_request_query(request, "flag");
        http_response_json(response, 200,
                           json_pack("{s:s, s:s*, s:b, s:O, s:I}", "method", request->method, "q", q, "flag",
                                     flag != NULL, "body", body, "uid", (json_int_t)request->peer_uid));
        return 0;
    }
    if (strcmp(request->path, "/metrics") == 0) {
        http_response_text(response, 200, "text/plain; version=0.0.4", strdup("up 1\n"));
        return 0;
    }
    if (strcmp(request->path, "/slow") == 0) {
        unsigned now = atomic_fetch_add(&running, 1) + 1, most = atomic_load(&most_running);
        while (now > most && !atomic_compare_exchange_weak(&most_running, &most, now))
            ;
        nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
        atomic_fetch_sub(&running, 1);
        http_response_json(response, 200, json_pack("{s:b}", "slow", 1));
        return 0;
    }
    if (strcmp(request->path, "/held") == 0) {
        while (held)
            nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
        http_response_json(response, 200, json_pack("{s:b}", "held", 1));
        return 0;
    }
    if (strcmp(request->path, "/length") == 0) {
        http_response_json(response, 200,
                           json_pack("{s:I}", "length", (json_int_t)request->body_length_bytes));
        return 0;
    }
    if (strcmp(request->path, "/text") == 0) {
        http_response_text(response, 200, NULL, strdup("not json"));
        return 0;
    }
    const char *code = http_request_query(request, "errno");
    return error_set(err, code ? json_errno_of_name(code) : -ENOENT, "no '%s' here", request->path);
}

static int setup(void **unused)
{
    struct error err = ERROR_INIT;
    (void)unused;
    directory = check_make_directory();
    snprintf(socket_path, sizeof socket_path, "%s/s.sock", directory);
    client = (struct http_client_options){.socket_path = socket_path, .unreachable_hint = "is `tidemark up` running?"};
    const struct http_server_options options = {
        .socket_path = socket_path, .tcp_address = "127.0.0.1:0", .handler = handler, .context = &running};
    check_ok(http_server_start(&options, &server, &err));
    return 0;
}
static int teardown(void **unused)
{
    (void)unused;
    http_server_stop(server);
    assert_int_equal(access(socket_path, F_OK), -1);
    check_remove_directory(directory);
    return 0;
}

static void calls(void **unused)
{
    struct error err = ERROR_INIT;
    _cleanup_json_ json_t *body = json_pack("{s:I}", "lsn", (json_int_t)INT64_MAX), *answer = NULL;
    _cleanup_free_ char *encoded = http_client_encode("a b&c=d/\xc3\xa9%"), *path = NULL;
    (void)unused;
    assert_string_equal(encoded, "a%20b%26c%3Dd%2F%C3%A9%25");
    assert_true(asprintf(&path, "/echo?q=%s&flag", encoded) > 0);
    check_ok(http_client_call_with(&client, "POST", path, body, 60000, &answer, &err));
    assert_string_equal(json_string_value(json_object_get(answer, "method")), "POST");
    assert_string_equal(json_string_value(json_object_get(answer, "q")), "a b&c=d/\xc3\xa9%");
    assert_true(json_is_true(json_object_get(answer, "flag")));
    assert_true(json_equal(json_object_get(answer, "body"), body));
    assert_int_equal(json_integer_value(json_object_get(answer, "uid")), getuid());
    json_t *get = NULL;
    check_ok(http_client_call(socket_path, "GET", "/echo", NULL, 60000, &get, &err));
    assert_null(json_object_get(get, "q"));
    assert_true(json_is_false(json_object_get(get, "flag")));
    json_decref(get);
    check_ok(http_client_call(socket_path, "POST", "/echo", NULL, 60000, NULL, &err));
    check_ok(http_client_call(socket_path, "DELETE", "/echo", NULL, 60000, NULL, &err));
    _cleanup_free_ char *text = NULL;
    check_ok(http_client_get_text(&client, "/metrics", 60000, &text, &err));
    assert_string_equal(text, "up 1\n");
    struct stat st;
    assert_int_equal(stat(socket_path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
}

/* A process that is killed in the middle of a handshake says nothing about certificates. */
struct cut {
    int listening;
    const char *says; /* NULL: nothing */
    bool resets;
};

static void *cut_one(void *context)
{
    const struct cut *c = context;
    char hello[4096];
    int fd = accept4(c->listening, NULL, NULL, SOCK_CLOEXEC);
    assert_true(fd >= 0);
    assert_true(recv(fd, hello, sizeof hello, 0) > 0);
    if (c->says)
        assert_true(send(fd, c->says, strlen(c->says), 0) > 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &(struct linger){.l_onoff = c->resets}, sizeof(struct linger)), 0);
    close(fd);
    return NULL;
}

static void a_handshake_that_is_cut_may_be_tried_again(void **unused)
{
    static const struct {
        struct cut cut;
        int code;
        const char *text;
    } cases[] = {{{-1, NULL, true}, -ECONNRESET, "ended the connection"},
                 {{-1, NULL, false}, -ECONNRESET, "ended the connection"},
                 {{-1, "HTTP/1.0 400 no TLS here\r\n\r\n", false}, -EPROTO, "the certificate of the other side"}};
    struct error err = ERROR_INIT;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    char place[32];
    (void)unused;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0 && bind(fd, (struct sockaddr *)&address, length) == 0 && listen(fd, 1) == 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&address, &length), 0);
    snprintf(place, sizeof place, "127.0.0.1:%u", ntohs(address.sin_port));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct cut cut = cases[i].cut;
        pthread_t thread;
        json_t *answer = NULL;
        cut.listening = fd;
        assert_int_equal(pthread_create(&thread, NULL, cut_one, &cut), 0);
        struct http_client_options other = {.server = "tidemark-node:9443", .connect_to = place};
        check_error(http_client_call_with(&other, "POST", "/", NULL, 60000, &answer, &err), cases[i].code, cases[i].text);
        pthread_join(thread, NULL);
    }
    close(fd);
}

static void errors(void **unused)
{
    static const struct {
        int code, status;
    } map[] = {{-EINVAL, 400}, {-ENOENT, 404}, {-EEXIST, 409}, {-EBUSY, 409},
               {-ERANGE, 422}, {-ENOSPC, 507}, {-EDQUOT, 507}, {-EIO, 500},    {-EPERM, 403},
               {-EFBIG, 400},  {-ENAMETOOLONG, 400}, {-ENOTDIR, 400}, {-EISDIR, 400}, {-ELOOP, 400}, {-ENOTEMPTY, 409}, {-ESHUTDOWN, 409}};
    struct error err = ERROR_INIT;
    json_t *answer = NULL;
    (void)unused;
    for (size_t i = 0; i < sizeof map / sizeof *map; i++) {
        char path[64];
        assert_int_equal(http_status_of_errno(map[i].code), map[i].status);
        snprintf(path, sizeof path, "/fail?errno=%s", json_errno_name(map[i].code));
        check_error(http_client_call_with(&client, "GET", path, NULL, 60000, &answer, &err), map[i].code,
                    "no '/fail' here");
    }
    check_error(http_client_call_with(&client, "GET", "/text", NULL, 60000, &answer, &err), -EPROTO,
                "not valid JSON");
    held = true;
    check_error(http_client_call_with(&client, "GET", "/held", NULL, 50, &answer, &err), -ETIMEDOUT,
                "within 50 ms");
    held = false;
    struct http_client_options nobody = {.socket_path = "/nonexistent/x.sock", .unreachable_hint = "is `tidemark up` running?"};
    check_error(http_client_call_with(&nobody, "GET", "/", NULL, 60000, &answer, &err), -ECONNREFUSED,
                "cannot connect to /nonexistent/x.sock");
    assert_non_null(strstr(err.message, "(is `tidemark up` running?)"));
    char *text = NULL;
    check_error(http_client_get_text(&client, "/nothing", 60000, &text, &err), -ENOENT, "no '/nothing' here");
    assert_null(answer);
    assert_null(text);
    char nested[4096];
    memset(nested, '[', sizeof nested / 2); /* the threads have little stack */
    memset(nested + sizeof nested / 2, ']', sizeof nested / 2);
    nested[sizeof nested / 2] = '1';
    memcpy(nested, "{\"a\":", 5);
    nested[sizeof nested - 4] = '}';
    nested[sizeof nested - 3] = '\0';
    check_error(http_client_post_text(&client, "/echo", nested, 60000, &answer, &err), -EINVAL, "nested more than");
    check_ok(http_client_call(socket_path, "GET", "/echo", NULL, 60000, NULL, &err));
}

static void large_bodies(void **unused)
{
    struct error err = ERROR_INIT;
    json_t *answer = NULL;
    _cleanup_free_ char *big = malloc(5u << 20);
    (void)unused;
    memset(big, 'x', 5u << 20);
    _cleanup_json_ json_t *fits = json_stringn(big, (4u << 20) - 2), *above = json_stringn(big, 4u << 20);
    check_ok(http_client_call_with(&client, "POST", "/length", fits, 60000, &answer, &err));
    assert_int_equal(json_integer_value(json_object_get(answer, "length")), 4u << 20);
    json_decref(answer);
    answer = NULL;
    check_error(http_client_call_with(&client, "POST", "/length", above, 60000, &answer, &err), -EFBIG,
                "larger than");
    check_error(http_client_call_with(&client, "POST", "/echo", fits, 60000, &answer, &err), -EINVAL,
                "expected a JSON object");
}

static void *call_slow(void *context)
{
    struct error err = ERROR_INIT;
    (void)context;
    return (void *)(intptr_t)http_client_call(socket_path, "GET", "/slow", NULL, 60000, NULL, &err);
}

/* Several handlers at once; and stop lets the running ones finish and sends their answers (H2). */
static void concurrent_calls_and_stop(void **unused)
{
    pthread_t threads[3];
    struct error err = ERROR_INIT;
    (void)unused;
    atomic_store(&most_running, 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, call_slow, NULL), 0);
    for (int i = 0; i < 3; i++) {
        void *result;
        pthread_join(threads[i], &result);
        assert_null(result);
    }
    assert_true(atomic_load(&most_running) >= 1);
    assert_int_equal(pthread_create(&threads[0], NULL, call_slow, NULL), 0);
    while (atomic_load(&running) == 0)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    http_server_stop(server);
    void *result;
    pthread_join(threads[0], &result);
    assert_null(result);
    check_error(http_client_call_with(&client, "GET", "/echo", NULL, 60000, NULL, &err), -ECONNREFUSED,
                socket_path);
    const struct http_server_options options = {
        .socket_path = socket_path, .handler = handler, .context = &running};
    check_ok(http_server_start(&options, &server, &err));
}

static void sockets(void **unused)
{
    struct error err = ERROR_INIT;
    struct http_server *second = NULL;
    struct http_server_options options = {
        .socket_path = socket_path, .handler = handler, .context = &running};
    char path[600];
    (void)unused;
    check_error(http_server_start(&options, &second, &err), -EADDRINUSE, "another process");
    check_ok(http_client_call(socket_path, "GET", "/echo", NULL, 60000, NULL,
                              &err)); /* the first one still answers */
    /* stale: bound, but nobody listens any more */
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(path, sizeof path, "%s/stale", directory);
    memcpy(address.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
    options.socket_path = path;
    check_ok(http_server_start(&options, &second, &err));
    check_ok(http_client_call(path, "GET", "/echo", NULL, 60000, NULL, &err));
    http_server_stop(second);
    second = NULL;
    check_ok(io_replace_file(path, "precious", 8, 0600, &err));
    check_error(http_server_start(&options, &second, &err), -EEXIST, "something else");
    assert_int_equal(access(path, F_OK), 0);
    options.socket_path = NULL;
    options.tcp_address = "nonsense";
    check_error(http_server_start(&options, &second, &err), -EINVAL, "host:port");
    assert_null(second);
}

static void tcp_serves_metrics_only(void **unused)
{
    static const struct {
        const char *request, *status, *header;
    } exchanges[] = {{"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 200", NULL},
                     {"GET /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", "HTTP/1.1 404", NULL},
                     {"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
                      "HTTP/1.1 405", "\r\nAllow: GET, HEAD\r\n"}};
    (void)unused;
    assert_true(http_server_tcp_port(server) > 0);
    for (size_t i = 0; i < sizeof exchanges / sizeof *exchanges; i++) {
        struct sockaddr_in address = {.sin_family = AF_INET,
                                      .sin_port = htons((uint16_t)http_server_tcp_port(server)),
                                      .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        char answer[2000] = {0};
        size_t used = 0;
        _cleanup_close_ int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
        assert_true(write(fd, exchanges[i].request, strlen(exchanges[i].request)) > 0);
        for (ssize_t n;
             used < sizeof answer - 1 && (n = read(fd, answer + used, sizeof answer - 1 - used)) > 0;)
            used += (size_t)n;
        assert_memory_equal(answer, exchanges[i].status, strlen(exchanges[i].status));
        if (exchanges[i].header)
            assert_non_null(strstr(answer, exchanges[i].header));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(calls, setup, teardown),
        cmocka_unit_test(a_handshake_that_is_cut_may_be_tried_again),
        cmocka_unit_test_setup_teardown(errors, setup, teardown),
        cmocka_unit_test_setup_teardown(large_bodies, setup, teardown),
        cmocka_unit_test_setup_teardown(concurrent_calls_and_stop, setup, teardown),
        cmocka_unit_test_setup_teardown(sockets, setup, teardown),
        cmocka_unit_test_setup_teardown(tcp_serves_metrics_only, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
