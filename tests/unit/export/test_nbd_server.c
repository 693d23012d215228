/* SPDX-License-Identifier: Apache-2.0 */
/* The NBD server over its socket, by a client that may say anything. Invariants N1 to N5 of nbd_loop.c. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/clock.h"
#include "block/block.h"
#include "block/queue.h"
#include "export/nbd.h"
#include "export/nbd_protocol.h"

#define VOLUME_BYTES (4u << 20)

static struct stand {
    char path[64];
    struct block *blocks[2];
    struct nbd_server *server;
    struct log log; /* into memory */
} x;
static struct error err;

static atomic_int refusals; /* so often there is no descriptor for a client */

int __real_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags);
int __wrap_accept4(int fd, struct sockaddr *address, socklen_t *length, int flags)
{
    if (atomic_load(&refusals) == 0)
        return __real_accept4(fd, address, length, flags);
    atomic_fetch_sub(&refusals, 1);
    errno = EMFILE;
    return -1;
}

static int set_up(void **state)
{
    static const char *const names[] = {"data", "wal"};
    (void)state;
    snprintf(x.path, sizeof x.path, "/tmp/tidemark-nbd-%d.sock", getpid());
    char file[80];
    snprintf(file, sizeof file, "%s.img", x.path);
    check_ok(block_file_open(file, VOLUME_BYTES, false, &x.blocks[0], &err)); /* has a queue */
    unlink(file);
    check_ok(block_memory_new(VOLUME_BYTES, &x.blocks[1], &err)); /* has none, as a view */
    x.log = (struct log){.fd = memfd_create("log", MFD_CLOEXEC), .level = LOG_LEVEL_WARNING, .name = "test"};
    struct nbd_server_options o = {.socket_path = x.path, .count = 2, .blocks = x.blocks, .names = names, .log = &x.log};
    check_ok(nbd_server_start(&o, &x.server, &err));
    return 0;
}

static int tear_down(void **state)
{
    struct stat st;
    (void)state;
    nbd_server_free(x.server);
    block_free(x.blocks[0]);
    block_free(x.blocks[1]);
    close(x.log.fd);
    assert_int_equal(stat(x.path, &st), -1);
    return 0;
}

static int dial(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct timeval limit = {.tv_sec = 120};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", x.path);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void say(int fd, const void *data, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = send(fd, (const char *)data + done, length - done, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        assert_true(n > 0);
        done += (size_t)n;
    }
}

static bool hears(int fd, void *data, size_t length)
{
    for (size_t done = 0; done < length;) {
        ssize_t n = recv(fd, (char *)data + done, length - done, 0);
        if (n < 0 &&
            errno == EINTR) /* io_uring tells this thread, which has made the ring, that it has news */
            continue;
        if (n <= 0)
            return false;
        done += (size_t)n;
    }
    return true;
}

static void hear(int fd, void *data, size_t length)
{
    assert_true(hears(fd, data, length));
}

/* A connection that was greeted; once there is room, which clients that have gone may still take. `ret` may be NULL. */
static int dial_in_time(struct nbd_greeting *ret)
{
    struct nbd_greeting greeting;
    for (unsigned waited_ms = 0; waited_ms < 120000; waited_ms += 10) {
        int fd = dial();
        if (hears(fd, ret ? ret : &greeting, sizeof greeting))
            return fd;
        close(fd);
        usleep(10000);
    }
    fail_msg("no room although all clients have gone");
    return -1;
}

/* By NBD_OPT_EXPORT_NAME, so that replies are simple. */
static int choose(const char *name)
{
    struct nbd_greeting greeting;
    struct nbd_export_name_reply reply;
    struct be32 flags = be32_of(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES);
    struct nbd_option_header option = {.magic = be64_of(NBD_OPTION_MAGIC),
                                       .option = be32_of(NBD_OPT_EXPORT_NAME),
                                       .length_bytes = be32_of((uint32_t)strlen(name))};
    int fd = dial_in_time(&greeting);
    assert_true(be64_get(greeting.magic) == NBD_MAGIC);
    say(fd, &flags, sizeof flags);
    say(fd, &option, sizeof option);
    say(fd, name, strlen(name));
    hear(fd, &reply, 10);
    assert_int_equal(be64_get(reply.size_bytes), VOLUME_BYTES);
    return fd;
}

static void ask(int fd, uint16_t command, uint16_t flags, uint64_t cookie, uint64_t offset, uint32_t length)
{
    struct nbd_request_header h = {.magic = be32_of(NBD_REQUEST_MAGIC),
                                   .flags = be16_of(flags),
                                   .command = be16_of(command),
                                   .cookie = be64_of(cookie),
                                   .offset_bytes = be64_of(offset),
                                   .length_bytes = be32_of(length)};
    say(fd, &h, sizeof h);
}

static uint32_t answer(int fd, uint64_t *ret_cookie)
{
    struct nbd_simple_reply reply;
    hear(fd, &reply, sizeof reply);
    assert_true(be32_get(reply.magic) == NBD_SIMPLE_REPLY_MAGIC);
    *ret_cookie = be64_get(reply.cookie);
    return be32_get(reply.error);
}

static uint32_t call(int fd, uint16_t command, uint16_t flags, uint64_t offset, uint32_t length)
{
    uint64_t cookie;
    ask(fd, command, flags, 42, offset, length);
    uint32_t error = answer(fd, &cookie);
    assert_int_equal(cookie, 42);
    return error;
}

static void is_closed(int fd)
{
    char byte;
    ssize_t n;
    do
        n = recv(fd, &byte, 1, 0);
    while (n < 0 && errno == EINTR);
    assert_true(n == 0 || (n < 0 && errno == ECONNRESET));
    close(fd);
}

static void what_is_written_is_read(void **state)
{
    static char data[1u << 20], got[1u << 20];
    static const char *const names[] = {"data", "wal"};
    (void)state;
    for (int v = 0; v < 2; v++) {
        int fd = choose(names[v]);
        uint64_t seed = 7, cookie;
        const uint32_t lengths[] = {512, 4096, 65536, 128 << 10, 256 << 10, 512 << 10, 1 << 20};
        for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
            for (size_t k = 0; k < lengths[i]; k++)
                data[k] = (char)check_random(&seed);
            ask(fd, NBD_CMD_WRITE, i % 2 ? NBD_CMD_FLAG_FUA : 0, i, 512 * i, lengths[i]);
            say(fd, data, lengths[i]);
            assert_int_equal(answer(fd, &cookie), 0);
            assert_int_equal(cookie, i);
            assert_int_equal(call(fd, NBD_CMD_FLUSH, 0, 0, 0), 0);
            assert_int_equal(call(fd, NBD_CMD_READ, 0, 512 * i, lengths[i]), 0);
            hear(fd, got, lengths[i]);
            assert_memory_equal(data, got, lengths[i]);
        }
        assert_int_equal(call(fd, NBD_CMD_TRIM, 0, 0, 4096), 0);
        assert_int_equal(call(fd, NBD_CMD_WRITE_ZEROES, NBD_CMD_FLAG_NO_HOLE, 4096, 4096), 0);
        assert_int_equal(call(fd, NBD_CMD_CACHE, 0, 0, 4096), 0);
        assert_int_equal(call(fd, NBD_CMD_READ, 0, 0, 8192), 0);
        hear(fd, got, 8192);
        memset(data, 0, 8192);
        assert_memory_equal(data, got, 8192);
        ask(fd, NBD_CMD_DISC, 0, 0, 0, 0);
        is_closed(fd);
    }
}

/* N6: what is larger than the memory of a connection is served in parts, several clients at once, and nothing else comes in
 * between. */
static void large_requests_are_served_in_parts(void **state)
{
    static char data[VOLUME_BYTES], got[VOLUME_BYTES];
    static const char *const names[] = {"data", "wal"};
    const uint32_t length = VOLUME_BYTES - 1024; /* the last part is a short one */
    (void)state;
    for (int v = 0; v < 2; v++) {
        uint64_t seed = 11, cookie;
        int fd = choose(names[v]), other = choose(names[v]);
        for (size_t k = 0; k < sizeof data; k++)
            data[k] = (char)check_random(&seed);
        for (uint16_t flags = 0; flags <= NBD_CMD_FLAG_FUA; flags += NBD_CMD_FLAG_FUA) {
            ask(fd, NBD_CMD_WRITE, flags, 9, 512, length);
            say(fd, data + flags, length / 2);
            assert_int_equal(call(other, NBD_CMD_READ, 0, VOLUME_BYTES - 512, 512), 0); /* is not kept waiting */
            hear(other, got, 512);
            say(fd, data + flags + length / 2, length - length / 2);
            assert_int_equal(answer(fd, &cookie), 0);
            assert_int_equal(cookie, 9);
            ask(fd, NBD_CMD_READ, 0, 10, 512, length);
            ask(fd, NBD_CMD_READ, 0, 11, 1024, 4096); /* its answer must not come into the midst of the first one's */
            assert_int_equal(answer(fd, &cookie), 0);
            assert_int_equal(cookie, 10);
            hear(fd, got, length);
            assert_memory_equal(data + flags, got, length);
            assert_int_equal(answer(fd, &cookie), 0);
            assert_int_equal(cookie, 11);
            hear(fd, got, 4096);
            assert_memory_equal(data + flags + 512, got, 4096);
        }
        ask(other, NBD_CMD_WRITE, 0, 12, 0, length); /* one that goes away in the middle leaves nothing behind */
        say(other, data, length / 2);
        close(other);
        other = choose(names[v]);
        ask(other, NBD_CMD_READ, 0, 13, 0, length);
        assert_int_equal(answer(other, &cookie), 0);
        close(other);
        for (int i = 0; i < 8; i++) {
            assert_int_equal(call(fd, NBD_CMD_READ, 0, 0, VOLUME_BYTES), 0);
            hear(fd, got, VOLUME_BYTES);
        }
        close(fd);
    }
}

/* A device whose second half cannot be read or written. */
static int half_pread(struct block *b, void *data, size_t length_bytes, uint64_t offset_bytes, struct error *e)
{
    (void)b;
    memset(data, 7, length_bytes);
    return offset_bytes + length_bytes > VOLUME_BYTES / 2 ? error_set(e, -EIO, "the second half is broken") : 0;
}
static int half_pwrite(struct block *b, const void *data, size_t length_bytes, uint64_t offset_bytes, unsigned flags,
                       struct error *e)
{
    (void)b, (void)data, (void)flags;
    return offset_bytes + length_bytes > VOLUME_BYTES / 2 ? error_set(e, -EIO, "the second half is broken") : 0;
}
static int half_flush(struct block *b, struct error *e)
{
    (void)b, (void)e;
    return 0;
}
static void half_free(struct block *b)
{
    (void)b;
}

/* What of a large request fails is told, and what cannot be told any more ends the connection: never data that were not read. */
static void a_part_that_fails_is_told(void **state)
{
    static const struct block_ops ops = {.pread = half_pread, .pwrite = half_pwrite, .flush = half_flush, .free = half_free};
    static char data[VOLUME_BYTES];
    (void)state;
    struct block half = {.ops = &ops, .size_bytes = VOLUME_BYTES}, *blocks[] = {&half};
    static const char *const names[] = {"data"};
    struct nbd_server *server;
    uint64_t cookie;
    char path[80], first[sizeof x.path];
    memcpy(first, x.path, sizeof first);
    snprintf(path, sizeof path, "%.40s.half", x.path);
    snprintf(x.path, sizeof x.path, "%s", path);
    struct nbd_server_options o = {.socket_path = path, .count = 1, .blocks = blocks, .names = names};
    check_ok(nbd_server_start(&o, &server, &err));
    int fd = choose("data");
    ask(fd, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 1, 0, VOLUME_BYTES);
    say(fd, data, VOLUME_BYTES);
    assert_int_equal(answer(fd, &cookie), NBD_EIO);
    assert_int_equal(call(fd, NBD_CMD_READ, 0, VOLUME_BYTES / 2, VOLUME_BYTES / 2), NBD_EIO); /* its first part */
    assert_int_equal(call(fd, NBD_CMD_READ, 0, 0, VOLUME_BYTES), 0);
    hear(fd, data, VOLUME_BYTES / 2);
    is_closed(fd);
    fd = choose("data");
    assert_int_equal(call(fd, NBD_CMD_FLUSH, 0, 0, 0), 0);
    close(fd);
    nbd_server_free(server);
    memcpy(x.path, first, sizeof x.path);
}

static void bad_requests_are_refused_and_the_next_is_served(void **state)
{
    static const char payload[4096];
    (void)state;
    int fd = choose("data");
    uint64_t cookie;
    assert_int_equal(call(fd, NBD_CMD_READ, 0, VOLUME_BYTES, 512), NBD_EINVAL);
    assert_int_equal(call(fd, NBD_CMD_READ, 0, UINT64_MAX - 511, 1024), NBD_EINVAL);
    assert_int_equal(call(fd, NBD_CMD_READ, 0, 1, 512), NBD_EINVAL);
    assert_int_equal(call(fd, NBD_CMD_READ, 0xff00, 0, 512), NBD_EINVAL);
    assert_int_equal(call(fd, NBD_CMD_WRITE_ZEROES, 0, 0, UINT32_MAX), NBD_ENOSPC);
    assert_int_equal(call(fd, NBD_CMD_BLOCK_STATUS, 0, 0, 4096), NBD_EINVAL); /* not negotiated */
    assert_int_equal(call(fd, 77, 0, 0, 0), NBD_EINVAL);
    /* A read that must not be answered in parts. */
    assert_int_equal(call(fd, NBD_CMD_READ, NBD_CMD_FLAG_DF, 0, NBD_UNFRAGMENTED_BYTES_MAX + 512), NBD_EOVERFLOW);
    ask(fd, NBD_CMD_WRITE, 0, 5, VOLUME_BYTES - 512, sizeof payload); /* its data are skipped */
    say(fd, payload, sizeof payload);
    assert_int_equal(answer(fd, &cookie), NBD_ENOSPC);
    assert_int_equal(cookie, 5);
    assert_int_equal(call(fd, NBD_CMD_FLUSH, 0, 0, 0), 0);
    ask(fd, NBD_CMD_WRITE, 0, 6, 0, NBD_MAX_REQUEST_BYTES + 512); /* too much to skip */
    is_closed(fd);
    fd = choose("data");
    say(fd, payload, 28); /* no magic */
    is_closed(fd);
}

/* N3: one client stops in the middle of a request, one does not read its answers; a third is served all the
 * same. */
static void a_client_that_stops_harms_no_other(void **state)
{
    (void)state;
    static char got[256 << 10];
    int half = choose("data"), deaf = choose("data"), dumb = dial(), fd = choose("data");
    ask(half, NBD_CMD_WRITE, 0, 1, 0, 4096);
    say(half, got, 100);
    for (int i = 0; i < 100; i++)
        ask(deaf, NBD_CMD_READ, 0, (uint64_t)i, 0, sizeof got);
    for (int i = 0; i < 50; i++) {
        assert_int_equal(call(fd, NBD_CMD_READ, 0, 0, sizeof got), 0);
        hear(fd, got, sizeof got);
    }
    for (int i = 0; i < 100; i++) { /* it hears them all in the end */
        uint64_t cookie;
        assert_int_equal(answer(deaf, &cookie), 0);
        hear(deaf, got, sizeof got);
    }
    close(half);
    close(deaf);
    close(dumb);
    assert_int_equal(call(fd, NBD_CMD_FLUSH, 0, 0, 0), 0);
    close(fd);
}

/* How often the log has it. */
static unsigned told(const char *what)
{
    static char text[1u << 20];
    ssize_t n = pread(x.log.fd, text, sizeof text - 1, 0);
    unsigned count = 0;
    text[n > 0 ? n : 0] = '\0';
    for (const char *at = text; (at = strstr(at, what)); at++)
        count++;
    return count;
}

static void close_some(int *fds, size_t from)
{
    for (size_t i = from; i < NBD_CONNECTIONS_MAX; i++)
        close(fds[i]);
}

/* More than there can be are told once, until there was room for a while. */
static void connections_are_limited(void **state)
{
    int fds[NBD_CONNECTIONS_MAX];
    (void)state;
    for (size_t i = 0; i < NBD_CONNECTIONS_MAX; i++)
        fds[i] = i % 2 ? choose("wal") : dial();
    assert_int_equal(told("are sent away"), 0);
    for (int i = 0; i < 5; i++)
        is_closed(dial());
    assert_int_equal(told("are sent away"), 1);
    assert_int_equal(told("64 connections"), 1);
    assert_int_equal(told(x.path), 1);
    close_some(fds, NBD_CONNECTIONS_MAX - 2);
    for (size_t i = NBD_CONNECTIONS_MAX - 2; i < NBD_CONNECTIONS_MAX; i++)
        fds[i] = dial_in_time(NULL);
    is_closed(dial());
    assert_int_equal(told("are sent away"), 1);
    for (int i = 0; i < 1000 && told("are sent away") == 1; i++) { /* the server may not have seen them go before others came */
        close_some(fds, NBD_CONNECTIONS_CALM / 2);
        for (size_t k = NBD_CONNECTIONS_CALM / 2; k < NBD_CONNECTIONS_MAX; k++)
            fds[k] = dial_in_time(NULL);
        is_closed(dial());
    }
    assert_true(told("are sent away") >= 2); /* more often where it saw some of them go only after one was sent away */
    close_some(fds, 0);
    close(dial_in_time(NULL));
}

/* Whoever waits for a descriptor does not keep a processor busy: it asks some times a second. */
static void without_descriptors_clients_wait(void **state)
{
    struct nbd_greeting greeting;
    (void)state;
    uint64_t start = clock_boottime_ns(clock_system());
    atomic_store(&refusals, 3);
    int fd = dial();
    hear(fd, &greeting, sizeof greeting);
    assert_true(clock_boottime_ns(clock_system()) - start >= 500 * NS_PER_MS);
    close(fd);
}

static void random_clients_are_survived(void **state)
{
    (void)state;
    uint64_t random = check_seed();
    for (int round = 0; round < 300; round++) {
        unsigned char data[600];
        int fd = check_random(&random) % 2 ? choose("data") : dial();
        size_t length = check_random(&random) % sizeof data;
        for (size_t i = 0; i < length; i++)
            data[i] = (unsigned char)(check_random(&random) % 4 ? 0 : check_random(&random));
        send(fd, data, length, MSG_NOSIGNAL);
        if (check_random(&random) % 2) {
            struct nbd_request_header h = {.magic = be32_of(NBD_REQUEST_MAGIC),
                                           .command = be16_of((uint16_t)(check_random(&random) % 10)),
                                           .offset_bytes = be64_of(check_random(&random) % 4 * 512),
                                           .length_bytes = be32_of((uint32_t)check_random(&random) % 70000)};
            send(fd, &h, sizeof h, MSG_NOSIGNAL);
        }
        close(fd);
    }
    int fd = choose("data");
    assert_int_equal(call(fd, NBD_CMD_FLUSH, 0, 0, 0), 0);
    close(fd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(what_is_written_is_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(large_requests_are_served_in_parts, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_part_that_fails_is_told, set_up, tear_down),
        cmocka_unit_test_setup_teardown(bad_requests_are_refused_and_the_next_is_served, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_client_that_stops_harms_no_other, set_up, tear_down),
        cmocka_unit_test_setup_teardown(connections_are_limited, set_up, tear_down),
        cmocka_unit_test_setup_teardown(without_descriptors_clients_wait, set_up, tear_down),
        cmocka_unit_test_setup_teardown(random_clients_are_survived, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
