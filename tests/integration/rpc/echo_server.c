/* SPDX-License-Identifier: Apache-2.0 */
/* A server for test_rpc.py: echo_server SOCKET. SIGTERM stops it; status 0 after a clean stop, 3 when a call
 * is stuck. */
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "echo.pb-c.h"
#include "rpc/rpc.h"

static atomic_ullong cancellations, sleeping;

static int echo(void *context, struct rpc_call *call, const ProtobufCMessage *request, struct error *err)
{
    const Echo__EchoRequest *in = (const Echo__EchoRequest *)request;
    Echo__EchoResponse reply = ECHO__ECHO_RESPONSE__INIT;
    uint64_t deadline_ns = rpc_call_deadline_ns(call);
    (void)context;
    uint64_t end_ns = clock_boottime_ns(clock_system()) + in->sleep_ms * NS_PER_MS;
    atomic_fetch_add(&sleeping, in->sleep_ms > 0);
    while (clock_boottime_ns(clock_system()) < end_ns && !rpc_call_cancelled(call))
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    atomic_fetch_sub(&sleeping, in->sleep_ms > 0);
    if (rpc_call_cancelled(call))
        atomic_fetch_add(&cancellations, 1);
    if (in->fail)
        return error_set(err, -in->fail, "%s", in->text);
    reply.text = in->text;
    for (size_t i = 0; i < in->data.len; i++)
        reply.sum += in->data.data[i];
    reply.data.len = in->reply_bytes;
    reply.data.data = in->reply_bytes ? calloc(1, in->reply_bytes) : NULL;
    reply.left_ms =
        deadline_ns == UINT64_MAX ? -1 : (int64_t)(deadline_ns - clock_boottime_ns(clock_system())) / 1000000;
    reply.cancellations = atomic_load(&cancellations);
    reply.sleeping = atomic_load(&sleeping);
    int r = rpc_reply(call, &reply.base, err);
    free(reply.data.data);
    return r;
}

int main(int argc, char **argv)
{
    static const struct rpc_method methods[] = {{"/echo.Echo/Echo", &echo__echo_request__descriptor, echo},
                                                {0}};
    const struct rpc_server_options options = {
        .socket_path = argc > 1 ? argv[1] : "echo.sock", .methods = methods, .workers = 4, .drain_ms = 5000};
    struct rpc_server *server;
    struct error err = ERROR_INIT;
    sigset_t stop;
    int number;
    sigemptyset(&stop);
    sigaddset(&stop, SIGTERM);
    sigprocmask(SIG_BLOCK, &stop, NULL);
    if (rpc_server_start(&options, &server, &err) < 0) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    puts("ready");
    fflush(stdout);
    sigwait(&stop, &number);
    if (!rpc_server_stop(server))
        _exit(3);
    return 0;
}
