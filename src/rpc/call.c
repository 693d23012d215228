/* SPDX-License-Identifier: Apache-2.0 */
/* One call in a worker: from the request's bytes to the reply's. */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "rpc/rpc_internal.h"

bool rpc_call_cancelled(const struct rpc_call *call)
{
    return atomic_load(&call->cancelled);
}

uint64_t rpc_call_deadline_ns(const struct rpc_call *call)
{
    return call->deadline_ns;
}

enum rpc_code rpc_code_of_errno(int code)
{
    switch (code < 0 ? -code : code) {
    case EINVAL:
        return RPC_INVALID_ARGUMENT;
    case ENOENT:
        return RPC_NOT_FOUND;
    case EEXIST:
        return RPC_ALREADY_EXISTS;
    case EACCES:
    case EPERM:
        return RPC_PERMISSION_DENIED;
    case EBUSY:
        return RPC_FAILED_PRECONDITION;
    case EAGAIN:
    case ECONNREFUSED:
        return RPC_UNAVAILABLE;
    case EALREADY:
        return RPC_ABORTED;
    case ERANGE:
        return RPC_OUT_OF_RANGE;
    case ENOSPC:
    case EDQUOT:
    case ENOMEM:
    case EFBIG:
        return RPC_RESOURCE_EXHAUSTED;
    case EOPNOTSUPP:
        return RPC_UNIMPLEMENTED;
    case ETIMEDOUT:
        return RPC_DEADLINE_EXCEEDED;
    case ECANCELED:
        return RPC_CANCELLED;
    default:
        return RPC_INTERNAL;
    }
}

int rpc_reply(struct rpc_call *call, const ProtobufCMessage *reply, struct error *err)
{
    size_t length = protobuf_c_message_get_packed_size(reply);
    if (length > RPC_MESSAGE_BYTES_MAX)
        return error_set(err, -EFBIG,
                         "the reply has %zu bytes; a message has at most %u: ask for less at once", length,
                         RPC_MESSAGE_BYTES_MAX);
    uint8_t *data = malloc(RPC_PREFIX_BYTES + length);
    if (!data)
        return error_set(err, -ENOMEM, "out of memory for a reply of %zu bytes", length);
    data[0] = 0; /* not compressed */
    for (unsigned i = 0; i < 4; i++)
        data[1 + i] = (uint8_t)(length >> (24 - 8 * i));
    protobuf_c_message_pack(reply, data + RPC_PREFIX_BYTES);
    free(call->reply);
    call->reply = data;
    call->reply_bytes = RPC_PREFIX_BYTES + length;
    return 0;
}

static int run(struct task *task, struct error *err)
{
    const ProtobufCMessageDescriptor *in = task->method->request;
    int r = wire_check(in, task->request, task->request_bytes, err);
    if (r < 0)
        return error_context(err, "%s", task->method->path);
    ProtobufCMessage *request = protobuf_c_message_unpack(in, NULL, task->request_bytes, task->request);
    if (!request)
        return error_set(err, -EINVAL, "%s: the request is no %s", task->method->path, in->name);
    r = task->method->handler(task->server->context, &task->call, request, err);
    protobuf_c_message_free_unpacked(request, NULL);
    if (r == 0 && !task->call.reply)
        return error_set(err, -EIO, "%s: no reply was made", task->method->path);
    return r;
}

void task_run(struct task *task)
{
    struct rpc_server *server = task->server;
    struct rpc_call *call = &task->call;
    uint64_t one = 1;
    call->err = ERROR_INIT;
    call->result = atomic_load(&call->cancelled)
                       ? error_set(&call->err, -ECANCELED, "cancelled by the client")
                       : run(task, &call->err);
    if (call->result < 0 && !call->err.code)
        error_errno(&call->err, call->result, "%s", task->method->path);
    /* The wake-up is inside the mutex: once the loop has seen the last task, the server may be freed. */
    MUTEX_GUARD(guard, &server->mutex);
    task->next = server->done;
    server->done = task;
    write(server->wake_fd, &one, sizeof one);
}

void task_free(struct task *task)
{
    free(task->request);
    free(task->call.reply);
    free(task);
}
