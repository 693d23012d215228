/* SPDX-License-Identifier: Apache-2.0 */
/* The FUSE server over a socket pair that keeps packets apart, as /dev/fuse does: the test plays the kernel. Everything twice:
 * with threads (a block in memory), and with the loop, for a block that can queue (a file). */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>

#include "export/fuse_internal.h"

#define VOLUME_BYTES (1u << 20)
#define IO_LIMIT_BYTES (64u << 10) /* fits the socket's buffer */
#define ROUNDS 4000
#define AT_ONCE 16u

static bool by_loop;

struct kernel {
    struct block *block;
    struct fuse_export *export;
    int ours, theirs;
    uint64_t unique;
    char request[sizeof(struct fuse_in_header) + 128 + IO_LIMIT_BYTES];
    char answer[sizeof(struct fuse_out_header) + IO_LIMIT_BYTES];
    size_t answer_bytes; /* of the payload */
};

static void start_on(struct kernel *k, struct block *block, bool resume, unsigned threads)
{
    struct error err = ERROR_INIT;
    int pair[2];
    memset(k, 0, sizeof *k);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair), 0);
    k->ours = pair[0];
    k->theirs = pair[1];
    k->block = block;
    if (by_loop)
        assert_int_equal(fcntl(k->theirs, F_SETFL, O_NONBLOCK), 0);
    struct fuse_export_options options = {.block = block,
                                          .fd = k->theirs,
                                          .nonblock_fd = by_loop ? k->theirs : -1,
                                          .spin_us = by_loop ? 20 : 0,
                                          .resume = resume,
                                          .threads = threads,
                                          .name = "test"};
    check_ok(fuse_export_start(&options, &k->export, &err));
}

static struct kernel *start(bool resume)
{
    struct error err = ERROR_INIT;
    struct kernel *k = malloc(sizeof *k);
    struct block *block;
    assert_non_null(k);
    if (by_loop) {
        char path[] = "/var/tmp/tidemark-fuse-XXXXXX"; /* a disk's file system: what is in memory has no direct I/O */
        int fd = mkstemp(path);
        assert_true(fd >= 0);
        check_ok(block_file_open(path, VOLUME_BYTES, false, &block, &err));
        unlink(path);
        close(fd);
    } else {
        check_ok(block_memory_new(VOLUME_BYTES, &block, &err));
    }
    start_on(k, block, resume, 0);
    return k;
}

static void end(struct kernel *k)
{
    fuse_export_free(k->export);
    block_free(k->block);
    close(k->ours);
    close(k->theirs);
    free(k);
}

static void send_request(struct kernel *k, uint32_t opcode, uint64_t node, const void *head,
                         size_t head_bytes, const void *data, size_t data_bytes)
{
    struct fuse_in_header h = {.len = (uint32_t)(sizeof h + head_bytes + data_bytes),
                               .opcode = opcode,
                               .unique = ++k->unique,
                               .nodeid = node};
    memcpy(k->request, &h, sizeof h);
    if (head_bytes)
        memcpy(k->request + sizeof h, head, head_bytes);
    if (data_bytes)
        memcpy(k->request + sizeof h + head_bytes, data, data_bytes);
    assert_int_equal(send(k->ours, k->request, h.len, 0), h.len);
}

static ssize_t receive(struct kernel *k)
{
    ssize_t n;
    do /* closing an io_uring interrupts, later on, the thread that made it */
        n = recv(k->ours, k->answer, sizeof k->answer, 0);
    while (n < 0 && errno == EINTR);
    assert_true(n >= (ssize_t)sizeof(struct fuse_out_header));
    return n;
}

/* The code of the answer, whose payload is at *ret_payload. */
static int receive_answer(struct kernel *k, uint64_t unique, const void **ret_payload)
{
    ssize_t n = receive(k);
    struct fuse_out_header h;
    memcpy(&h, k->answer, sizeof h);
    assert_int_equal(h.len, n);
    assert_int_equal(h.unique, unique);
    k->answer_bytes = (size_t)n - sizeof h;
    if (h.error)
        assert_int_equal(k->answer_bytes, 0);
    if (ret_payload)
        *ret_payload = k->answer + sizeof h;
    return h.error;
}

static int call(struct kernel *k, uint32_t opcode, uint64_t node, const void *head, size_t head_bytes,
                const void *data, size_t data_bytes, const void **ret_payload)
{
    send_request(k, opcode, node, head, head_bytes, data, data_bytes);
    return receive_answer(k, k->unique, ret_payload);
}

static int do_write(struct kernel *k, uint64_t offset, const void *data, uint32_t length)
{
    struct fuse_write_in in = {.fh = FUSE_FILE_HANDLE, .offset = offset, .size = length};
    const void *payload;
    int r = call(k, FUSE_WRITE, FUSE_NODE_FILE, &in, sizeof in, data, length, &payload);
    if (r == 0) {
        struct fuse_write_out out;
        assert_int_equal(k->answer_bytes, sizeof out);
        memcpy(&out, payload, sizeof out);
        assert_int_equal(out.size, length);
    }
    return r;
}

static int do_read(struct kernel *k, uint64_t offset, uint32_t length, const void **ret_data)
{
    struct fuse_read_in in = {.fh = FUSE_FILE_HANDLE, .offset = offset, .size = length};
    return call(k, FUSE_READ, FUSE_NODE_FILE, &in, sizeof in, NULL, 0, ret_data);
}

static int do_fallocate(struct kernel *k, uint32_t mode, uint64_t offset, uint64_t length)
{
    struct fuse_fallocate_in in = {.fh = FUSE_FILE_HANDLE, .offset = offset, .length = length, .mode = mode};
    return call(k, FUSE_FALLOCATE, FUSE_NODE_FILE, &in, sizeof in, NULL, 0, NULL);
}

static int do_init(struct kernel *k, uint32_t major, uint32_t minor, uint64_t flags,
                   struct fuse_init_out *ret)
{
    struct fuse_init_in in = {.major = major,
                              .minor = minor,
                              .flags = (uint32_t)flags | FUSE_INIT_EXT,
                              .flags2 = (uint32_t)(flags >> 32)};
    const void *payload;
    int r = call(k, FUSE_INIT, 0, &in, sizeof in, NULL, 0, &payload);
    if (r == 0)
        memcpy(ret, payload, sizeof *ret);
    return r;
}

static void init_grants_what_both_know(void **state)
{
    (void)state;
    struct kernel *k = start(false);
    struct fuse_init_out out;
    assert_true(fuse_export_kernel_has_resend(k->export));
    assert_int_equal(do_init(k, 7, 45, FUSE_ABI_HAS_RESEND | FUSE_ASYNC_DIO | FUSE_POSIX_LOCKS, &out), 0);
    assert_int_equal(out.minor, FUSE_ABI_MINOR);
    assert_int_equal(out.flags, FUSE_ASYNC_DIO | FUSE_INIT_EXT);
    assert_int_equal(out.flags2, FUSE_ABI_HAS_RESEND >> 32);
    assert_int_equal(out.max_write, FUSE_EXPORT_MAX_IO_BYTES);
    assert_true(fuse_export_kernel_has_resend(k->export));
    assert_int_equal(do_init(k, 7, 38, FUSE_ASYNC_DIO, &out), 0);
    assert_int_equal(out.minor, 38);
    assert_false(fuse_export_kernel_has_resend(k->export));
    assert_int_equal(do_init(k, 8, 1, 0, &out), 0); /* asks again with 7 */
    assert_int_equal(out.major, 7);
    assert_int_equal(do_init(k, 7, 12, 0, &out), -EPROTO);
    end(k);
}

static void one_file_is_there(void **state)
{
    (void)state;
    struct kernel *k = start(false);
    const void *payload;
    struct fuse_entry_out entry;
    struct fuse_attr_out attr;
    struct fuse_open_out open_out;
    struct fuse_abi_statx_out statx_out;
    assert_int_equal(call(k, FUSE_LOOKUP, 1, "vol", 4, NULL, 0, &payload), 0);
    memcpy(&entry, payload, sizeof entry);
    assert_int_equal(entry.nodeid, FUSE_NODE_FILE);
    assert_int_equal(entry.attr.size, VOLUME_BYTES);
    assert_int_equal(call(k, FUSE_LOOKUP, 1, "volume", 7, NULL, 0, NULL), -ENOENT);
    assert_int_equal(call(k, FUSE_LOOKUP, 1, "vol", 3, NULL, 0, NULL), -ENOENT); /* not terminated */
    assert_int_equal(call(k, FUSE_LOOKUP, 2, "vol", 4, NULL, 0, NULL), -ENOENT);
    assert_int_equal(call(k, FUSE_GETATTR, 1, NULL, 0, NULL, 0, &payload), 0);
    memcpy(&attr, payload, sizeof attr);
    assert_true(S_ISDIR(attr.attr.mode));
    assert_int_equal(call(k, FUSE_OPEN, 2, NULL, 0, NULL, 0, &payload), 0);
    memcpy(&open_out, payload, sizeof open_out);
    assert_true(open_out.open_flags & FOPEN_DIRECT_IO);
    assert_int_equal(call(k, FUSE_ABI_STATX, 2, NULL, 0, NULL, 0, &payload), 0);
    assert_int_equal(k->answer_bytes, sizeof statx_out);
    memcpy(&statx_out, payload, sizeof statx_out);
    assert_int_equal(statx_out.stat.size, VOLUME_BYTES);
    struct fuse_setattr_in set = {.valid = FATTR_SIZE, .size = 0};
    assert_int_equal(call(k, FUSE_SETATTR, 2, &set, sizeof set, NULL, 0, NULL), -EPERM);
    set.size = VOLUME_BYTES;
    assert_int_equal(call(k, FUSE_SETATTR, 2, &set, sizeof set, NULL, 0, NULL), 0);
    struct fuse_read_in list = {.size = 4096};
    assert_int_equal(call(k, FUSE_READDIR, 1, &list, sizeof list, NULL, 0, &payload), 0);
    assert_int_equal(k->answer_bytes, FUSE_DIRENT_BYTES);
    list.offset = 3;
    assert_int_equal(call(k, FUSE_READDIR, 1, &list, sizeof list, NULL, 0, &payload), 0);
    assert_int_equal(k->answer_bytes, 0);
    assert_int_equal(call(k, FUSE_GETXATTR, 2, NULL, 0, NULL, 0, NULL), -ENOSYS);
    send_request(k, FUSE_FORGET, 2, NULL, 0, NULL, 0); /* without an answer: the next is of the next */
    assert_int_equal(call(k, FUSE_STATFS, 1, NULL, 0, NULL, 0, NULL), 0);
    end(k);
}

static void bad_ranges_are_refused(void **state)
{
    (void)state;
    struct kernel *k = start(false);
    static char data[8192];
    const void *got;
    assert_int_equal(do_read(k, VOLUME_BYTES, 4096, &got), 0); /* the end of the file */
    assert_int_equal(k->answer_bytes, 0);
    assert_int_equal(do_read(k, UINT64_MAX - 511, 4096, &got), 0);
    assert_int_equal(do_read(k, VOLUME_BYTES - 4096, 8192, &got), 0);
    assert_int_equal(k->answer_bytes, 4096);
    assert_int_equal(do_read(k, 100, 512, &got), -EINVAL);
    assert_int_equal(do_read(k, 0, 100, &got), -EINVAL);
    assert_int_equal(do_read(k, 0, FUSE_EXPORT_MAX_IO_BYTES + 512, &got), -EINVAL);
    assert_int_equal(do_write(k, 1, data, 512), -EINVAL);
    assert_int_equal(do_write(k, VOLUME_BYTES - 512, data, 1024), -EINVAL);
    assert_int_equal(do_write(k, VOLUME_BYTES, data, 512), -ENOSPC);
    assert_int_equal(do_fallocate(k, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, UINT64_MAX), -ENOSPC);
    assert_int_equal(do_fallocate(k, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 1, 512), -EINVAL);
    assert_int_equal(do_fallocate(k, FALLOC_FL_COLLAPSE_RANGE, 0, 4096), -EOPNOTSUPP);
    assert_int_equal(do_fallocate(k, 0, 0, VOLUME_BYTES), 0);
    assert_int_equal(do_fallocate(k, 0, 0, VOLUME_BYTES + 1), -ENOSPC);
    assert_int_equal(do_fallocate(k, FALLOC_FL_KEEP_SIZE, 0, 2 * VOLUME_BYTES), 0);
    struct fuse_write_in short_write = {.size = 4096}; /* says more than it brings */
    assert_int_equal(call(k, FUSE_WRITE, 2, &short_write, sizeof short_write, data, 512, NULL), -EINVAL);
    assert_int_equal(call(k, FUSE_WRITE, 2, data, 8, NULL, 0, NULL), -EINVAL);
    assert_int_equal(call(k, FUSE_READ, 1, data, sizeof(struct fuse_read_in), NULL, 0, NULL), -EISDIR);
    end(k);
}

static void random_operations_match_a_model(void **state)
{
    (void)state;
    struct kernel *k = start(false);
    uint64_t random = check_seed();
    char *model = calloc(1, VOLUME_BYTES), *data = malloc(IO_LIMIT_BYTES);
    assert_true(model && data);
    for (unsigned i = 0; i < ROUNDS; i++) {
        uint64_t offset = check_random(&random) % (VOLUME_BYTES / 512) * 512;
        uint32_t length = (uint32_t)(check_random(&random) % (IO_LIMIT_BYTES / 512) + 1) * 512;
        const void *got;
        if (length > VOLUME_BYTES - offset)
            length = (uint32_t)(VOLUME_BYTES - offset);
        switch (check_random(&random) % 5) {
        case 0:
        case 1:
            for (uint32_t j = 0; j < length; j += 8)
                memcpy(data + j, &(uint64_t){check_random(&random)}, 8);
            assert_int_equal(do_write(k, offset, data, length), 0);
            memcpy(model + offset, data, length);
            break;
        case 2:
            assert_int_equal(do_fallocate(k, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, length), 0);
            memset(model + offset, 0, length);
            break;
        case 3:
            assert_int_equal(do_fallocate(k, FALLOC_FL_ZERO_RANGE, offset, length), 0);
            memset(model + offset, 0, length);
            break;
        default:
            assert_int_equal(do_read(k, offset, length, &got), 0);
            assert_int_equal(k->answer_bytes, length);
            assert_memory_equal(got, model + offset, length);
        }
        if (i % 64 == 0)
            assert_int_equal(call(k, FUSE_FSYNC, 2, NULL, 0, NULL, 0, NULL), 0);
    }
    free(model);
    free(data);
    end(k);
}

/* Each of many answers that are there together is that of its request. */
static void many_at_once_get_their_own(void **state)
{
    (void)state;
    struct kernel *k = start(false);
    uint64_t random = check_seed(), blocks = VOLUME_BYTES / 4096, *model = calloc(blocks, sizeof *model);
    static char data[4096];
    assert_non_null(model);
    for (unsigned round = 0; round < ROUNDS / AT_ONCE; round++) {
        uint64_t first = check_random(&random) % (blocks - AT_ONCE), unique = k->unique + 1;
        uint32_t writes = (uint32_t)check_random(&random), answered = 0;
        for (unsigned i = 0; i < AT_ONCE; i++) { /* of different blocks: in no order among them */
            bool write = writes >> i & 1;
            struct fuse_write_in in = {.offset = (first + i) * 4096, .size = 4096}; /* struct fuse_read_in begins the same */
            memcpy(data, &(uint64_t){k->unique + 1}, 8);
            send_request(k, write ? FUSE_WRITE : FUSE_READ, FUSE_NODE_FILE, &in, write ? sizeof in : sizeof(struct fuse_read_in), data, write ? 4096 : 0);
        }
        for (unsigned i = 0; i < AT_ONCE; i++) {
            struct fuse_out_header h;
            ssize_t n = receive(k);
            memcpy(&h, k->answer, sizeof h);
            uint64_t which = h.unique - unique, got = 0;
            assert_true(which < AT_ONCE && !(answered >> which & 1));
            answered |= 1u << which;
            bool write = writes >> which & 1;
            assert_int_equal(h.error, 0);
            assert_int_equal(n, sizeof h + (write ? sizeof(struct fuse_write_out) : 4096));
            memcpy(&got, k->answer + sizeof h, sizeof got);
            assert_int_equal(got, write ? 4096 : model[first + which]);
        }
        for (unsigned i = 0; i < AT_ONCE; i++)
            if (writes >> i & 1)
                model[first + i] = unique + i;
    }
    free(model);
    end(k);
}

/* Requests of random bytes do no harm: each gets an answer or none, and the server goes on. */
static void random_requests_are_survived(void **state)
{
    (void)state;
    struct kernel *k = start(false);
    uint64_t random = check_seed();
    struct timeval patience = {.tv_sec = 5};
    assert_int_equal(setsockopt(k->ours, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience), 0);
    for (unsigned i = 0; i < ROUNDS; i++) {
        char arguments[256];
        size_t bytes = check_random(&random) % sizeof arguments;
        uint32_t opcode = (uint32_t)(check_random(&random) % 60);
        for (size_t j = 0; j < bytes; j++)
            arguments[j] = check_random(&random) % 4 ? 0 : (char)check_random(&random);
        if (opcode == FUSE_READ &&
            bytes >= sizeof(struct fuse_read_in)) { /* an answer larger than the socket's buffer */
            struct fuse_read_in *in = (void *)arguments;
            in->size %= IO_LIMIT_BYTES;
        }
        send_request(k, opcode, check_random(&random) % 4, arguments, bytes, NULL, 0);
        if (opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT)
            receive_answer(k, k->unique, NULL);
    }
    struct fuse_in_header wrong = {.len = 4096, .opcode = FUSE_GETATTR, .unique = 77, .nodeid = 1};
    assert_int_equal(send(k->ours, &wrong, sizeof wrong, 0), sizeof wrong);
    assert_int_equal(receive_answer(k, 77, NULL), -EINVAL);
    end(k);
}

/* F3, and bit 63 comes back. */
static void a_resumed_server_asks_for_the_rest(void **state)
{
    (void)state;
    struct kernel *k = start(true);
    struct fuse_out_header notify;
    assert_int_equal(recv(k->ours, &notify, sizeof notify, 0), sizeof notify);
    assert_int_equal(notify.error, FUSE_ABI_NOTIFY_RESEND);
    assert_int_equal(notify.unique, 0);
    assert_int_equal(notify.len, sizeof notify);
    k->unique = FUSE_ABI_UNIQUE_RESEND | 41;
    assert_int_equal(call(k, FUSE_FSYNC, 2, NULL, 0, NULL, 0, NULL), 0);
    end(k);
}

/* A block that fails with a code of the test's choice, or waits. */
struct failing_block {
    struct block base;
    int code;
    pthread_mutex_t gate;
};

static int failing_pread(struct block *b, void *data, size_t length, uint64_t offset, struct error *err)
{
    struct failing_block *f = (struct failing_block *)b;
    (void)offset;
    memset(data, 0, length);
    pthread_mutex_lock(&f->gate);
    pthread_mutex_unlock(&f->gate);
    return f->code ? error_errno(err, f->code, "test") : 0;
}
static int failing_pwrite(struct block *b, const void *data, size_t length, uint64_t offset, unsigned flags,
                          struct error *err)
{
    (void)data, (void)length, (void)offset, (void)flags;
    return error_errno(err, ((struct failing_block *)b)->code, "test");
}
static int failing_flush(struct block *b, struct error *err)
{
    return error_errno(err, ((struct failing_block *)b)->code, "test");
}
static int failing_range(struct block *b, uint64_t length, uint64_t offset, unsigned flags, struct error *err)
{
    (void)length, (void)offset, (void)flags;
    return error_errno(err, ((struct failing_block *)b)->code, "test");
}
/* A transfer that fails, so that a thread ends the request. */
static int failing_start(struct block *b, struct block_request *r)
{
    (void)b;
    block_queue_transfer(r, -1, r->data);
    return BLOCK_STEP_TRANSFERS;
}
static enum block_step failing_step(struct block *b, struct block_request *r)
{
    (void)b;
    if (r->transferred != -EBADF)
        abort();
    return BLOCK_STEP_BLOCKS;
}
static int failing_finish(struct block *b, struct block_request *r, struct error *err)
{
    if (r->op == BLOCK_OP_FLUSH)
        return failing_flush(b, err);
    return r->op == BLOCK_OP_WRITE ? failing_pwrite(b, r->data, r->length_bytes, r->offset_bytes, 0, err)
                                   : failing_pread(b, r->data, r->length_bytes, r->offset_bytes, err);
}
static const struct block_async_ops failing_async_ops = {.start = failing_start, .step = failing_step, .finish = failing_finish};
static struct block_ops failing_ops = {.pread = failing_pread,
                                             .pwrite = failing_pwrite,
                                             .flush = failing_flush,
                                             .discard = failing_range,
                                             .zero = failing_range};

static void errors_of_the_block_are_passed_on(void **state)
{
    (void)state;
    struct failing_block block = {.base = {&failing_ops, VOLUME_BYTES}, .gate = PTHREAD_MUTEX_INITIALIZER};
    static struct kernel k;
    static char data[4096];
    const struct {
        int from, to;
    } codes[] = {{-EIO, -EIO}, {-ENOSPC, -ENOSPC}, {-EDQUOT, -ENOSPC}, {-ETIMEDOUT, -EIO}, {-EROFS, -EIO}, {-EINTR, -EIO}};
    start_on(&k, &block.base, false, 2);
    for (size_t i = 0; i < sizeof codes / sizeof codes[0]; i++) {
        const void *got;
        block.code = codes[i].from;
        assert_int_equal(do_read(&k, 0, 4096, &got), codes[i].to);
        assert_int_equal(do_write(&k, 0, data, 4096), codes[i].to);
        assert_int_equal(do_fallocate(&k, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 4096), codes[i].to);
        assert_int_equal(do_fallocate(&k, FALLOC_FL_ZERO_RANGE, 0, 4096), codes[i].to);
        assert_int_equal(call(&k, FUSE_FSYNC, 2, NULL, 0, NULL, 0, NULL), codes[i].to);
    }
    fuse_export_free(k.export);
    close(k.ours);
    close(k.theirs);
}

static void *stop_it(void *context)
{
    fuse_export_stop(context);
    return NULL;
}

/* Stop waits for the request under way, answers it, and wakes the threads that wait for one. */
static void stop_answers_what_is_under_way(void **state)
{
    (void)state;
    struct failing_block block = {.base = {&failing_ops, VOLUME_BYTES}, .gate = PTHREAD_MUTEX_INITIALIZER};
    static struct kernel k;
    for (unsigned i = 0; i < 50; i++) {
        start_on(&k, &block.base, false, 4);
        pthread_mutex_lock(&block.gate);
        struct fuse_read_in in = {.size = 4096};
        send_request(&k, FUSE_READ, FUSE_NODE_FILE, &in, sizeof in, NULL, 0);
        usleep(2000); /* read by now, mostly; else it stays unread, which the flag below tolerates */
        pthread_t stopper;
        assert_int_equal(pthread_create(&stopper, NULL, stop_it, k.export), 0);
        usleep(1000);
        pthread_mutex_unlock(&block.gate);
        assert_int_equal(pthread_join(stopper, NULL), 0);
        struct fuse_out_header out;
        char left;
        if (recv(k.theirs, &left, 1, MSG_DONTWAIT | MSG_PEEK) < 0) {
            ssize_t n = recv(k.ours, k.answer, sizeof k.answer, MSG_DONTWAIT);
            assert_int_equal(n, sizeof out + 4096);
            memcpy(&out, k.answer, sizeof out);
            assert_int_equal(out.error, 0);
            assert_int_equal(out.unique, k.unique);
        }
        fuse_export_free(k.export);
        close(k.ours);
        close(k.theirs);
    }
}

static void options_are_checked(void **state)
{
    (void)state;
    struct error err = ERROR_INIT;
    struct block block = {&failing_ops, VOLUME_BYTES};
    struct fuse_export *export = NULL;
    struct fuse_export_options options = {.block = &block, .fd = -1, .nonblock_fd = -1, .name = "test"};
    check_error(fuse_export_start(&options, &export, &err), -EINVAL, "descriptor -1");
    options.fd = 0;
    options.threads = FUSE_EXPORT_MAX_THREADS + 1;
    check_error(fuse_export_start(&options, &export, &err), -EINVAL, "65 threads");
    assert_null(export);
    fuse_export_free(NULL);
}

static int with_threads(void **state)
{
    (void)state;
    by_loop = false;
    return 0;
}
static int with_the_loop(void **state)
{
    (void)state;
    by_loop = true;
    failing_ops.async = &failing_async_ops;
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(init_grants_what_both_know),
        cmocka_unit_test(one_file_is_there),
        cmocka_unit_test(bad_ranges_are_refused),
        cmocka_unit_test(random_operations_match_a_model),
        cmocka_unit_test(many_at_once_get_their_own),
        cmocka_unit_test(random_requests_are_survived),
        cmocka_unit_test(a_resumed_server_asks_for_the_rest),
        cmocka_unit_test(errors_of_the_block_are_passed_on),
        cmocka_unit_test(stop_answers_what_is_under_way),
        cmocka_unit_test(options_are_checked),
    };
    int failed = cmocka_run_group_tests_name("threads", tests, with_threads, NULL);
    return failed + cmocka_run_group_tests_name("loop", tests, with_the_loop, NULL);
}
