/* SPDX-License-Identifier: Apache-2.0 */
/* What FUSE requests mean for a file system of one file. Without state: the answer to a request is the same
 * after a restart of the server (node ids and the file handle are fixed). Allocates nothing. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "base/clock.h"
#include "base/io.h"
#include "export/fuse_internal.h"

static uint64_t coarse_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * NS_PER_SECOND + (uint64_t)now.tv_nsec;
}

/* The errno that the file system above understands, with a line in the log, but no flood of them. */
static int report(struct fuse_protocol *p, const char *what, uint64_t length, uint64_t offset,
                  const struct error *err)
{
    int code = err->code;
    if (io_is_no_room(code))
        code = -ENOSPC;
    else if (code != -EINVAL)
        code = -EIO;
    uint64_t now = coarse_ns(), last = atomic_load_explicit(&p->last_error_ns, memory_order_relaxed);
    if ((last && now - last < FUSE_ERROR_LOG_INTERVAL_NS) ||
        !atomic_compare_exchange_strong(&p->last_error_ns, &last, now)) {
        atomic_fetch_add(&p->unlogged_errors, 1);
        return code;
    }
    uint64_t more = atomic_exchange(&p->unlogged_errors, 0);
    log_error(p->log,
              "volume %s: %s of %" PRIu64 " bytes at %" PRIu64 " failed: %s (%" PRIu64
              " more since the last line)",
              p->name, what, length, offset, err->message, more);
    return code;
}

static void fill_attributes(const struct fuse_protocol *p, uint64_t node, struct fuse_attr *a)
{
    memset(a, 0, sizeof *a);
    a->ino = node;
    a->blksize = BLOCK_PAGE_BYTES;
    a->mode = node == FUSE_NODE_ROOT ? S_IFDIR | 0700 : S_IFREG | 0600;
    a->nlink = node == FUSE_NODE_ROOT ? 2 : 1;
    if (node == FUSE_NODE_FILE) {
        a->size = p->block->size_bytes;
        a->blocks = a->size / 512;
    }
}

static void answer_body(struct fuse_answer *answer, size_t length_bytes)
{
    answer->payload = &answer->body;
    answer->payload_bytes = length_bytes;
}

static int handle_init(struct fuse_protocol *p, const void *arguments, size_t length_bytes,
                       struct fuse_answer *answer)
{
    struct fuse_init_in in = {0};
    if (length_bytes < 16)
        return -EINVAL;
    memcpy(&in, arguments, length_bytes < sizeof in ? length_bytes : sizeof in);
    struct fuse_init_out *out = &answer->body.init;
    memset(out, 0, sizeof *out);
    out->major = FUSE_KERNEL_VERSION;
    out->minor = in.minor < FUSE_ABI_MINOR ? in.minor : FUSE_ABI_MINOR;
    if (in.major > FUSE_KERNEL_VERSION) { /* the kernel asks again with our major */
        answer_body(answer, sizeof *out);
        return 0;
    }
    if (in.major < FUSE_KERNEL_VERSION || in.minor < 28) {
        log_error(p->log, "volume %s: the kernel speaks FUSE %u.%u, 7.28 is needed (Linux 4.20)", p->name,
                  in.major, in.minor);
        return -EPROTO;
    }
    uint64_t offered = in.flags;
    if (in.flags & FUSE_INIT_EXT)
        offered |= (uint64_t)in.flags2 << 32;
    /* Without ASYNC_DIO a queue of reads falls from 93k to 34k a second. */
    uint64_t wanted = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO | FUSE_PARALLEL_DIROPS |
                      FUSE_NO_OPENDIR_SUPPORT | FUSE_MAX_PAGES | FUSE_HANDLE_KILLPRIV_V2 | FUSE_INIT_EXT |
                      FUSE_ABI_DIRECT_IO_ALLOW_MMAP | FUSE_ABI_HAS_RESEND;
    uint64_t granted = offered & wanted;
    out->flags = (uint32_t)granted;
    out->flags2 = (uint32_t)(granted >> 32);
    out->max_background = FUSE_MAX_BACKGROUND;
    out->congestion_threshold = FUSE_MAX_BACKGROUND * 3 / 4;
    out->max_write = FUSE_EXPORT_MAX_IO_BYTES;
    out->max_pages = FUSE_EXPORT_MAX_IO_BYTES / BLOCK_PAGE_BYTES;
    out->time_gran = 1;
    answer_body(answer, sizeof *out);
    if (!(granted & FUSE_ABI_HAS_RESEND)) {
        atomic_store(&p->no_resend, true);
        log_warning(
            p->log,
            "volume %s: this kernel (FUSE 7.%u) cannot send requests again after a crash of the server; I/O "
            "that is under way then hangs until the volume is unmounted. Linux 6.9 can",
            p->name, in.minor);
    }
    return 0;
}

static int handle_lookup(const struct fuse_protocol *p, uint64_t node, const char *name, size_t length_bytes,
                         struct fuse_answer *answer)
{
    static const char file[] = FUSE_EXPORT_FILE_NAME;
    if (node != FUSE_NODE_ROOT || length_bytes != sizeof file || memcmp(name, file, sizeof file) != 0)
        return -ENOENT;
    struct fuse_entry_out *out = &answer->body.entry;
    memset(out, 0, sizeof *out);
    out->nodeid = FUSE_NODE_FILE;
    out->generation = 1;
    out->entry_valid = out->attr_valid = FUSE_CACHE_SECONDS;
    fill_attributes(p, FUSE_NODE_FILE, &out->attr);
    answer_body(answer, sizeof *out);
    return 0;
}

static int handle_getattr(const struct fuse_protocol *p, uint64_t node, struct fuse_answer *answer)
{
    struct fuse_attr_out *out = &answer->body.attr;
    memset(out, 0, sizeof *out);
    out->attr_valid = FUSE_CACHE_SECONDS;
    fill_attributes(p, node, &out->attr);
    answer_body(answer, sizeof *out);
    return 0;
}

static int handle_setattr(const struct fuse_protocol *p, uint64_t node, const struct fuse_setattr_in *in,
                          struct fuse_answer *answer)
{
    if ((in->valid & FATTR_SIZE) && (node != FUSE_NODE_FILE || in->size != p->block->size_bytes))
        return -EPERM; /* a volume's size is set elsewhere */
    return handle_getattr(p, node, answer);
}

static int handle_statx(const struct fuse_protocol *p, uint64_t node, struct fuse_answer *answer)
{
    struct fuse_abi_statx_out *out = &answer->body.statx;
    struct fuse_attr attr;
    fill_attributes(p, node, &attr);
    memset(out, 0, sizeof *out);
    out->attr_valid = FUSE_CACHE_SECONDS;
    out->stat.mask = STATX_BASIC_STATS;
    out->stat.blksize = attr.blksize;
    out->stat.nlink = attr.nlink;
    out->stat.mode = (uint16_t)attr.mode;
    out->stat.ino = attr.ino;
    out->stat.size = attr.size;
    out->stat.blocks = attr.blocks;
    answer_body(answer, sizeof *out);
    return 0;
}

static int handle_open(uint64_t node, struct fuse_answer *answer)
{
    if (node != FUSE_NODE_FILE)
        return -ENOSYS; /* OPENDIR: the kernel goes on without */
    answer->body.open = (struct fuse_open_out){
        .fh = FUSE_FILE_HANDLE, .open_flags = FOPEN_DIRECT_IO | FUSE_ABI_OPEN_PARALLEL_DIRECT_WRITES};
    answer_body(answer, sizeof answer->body.open);
    return 0;
}

static int handle_readdir(uint64_t node, const struct fuse_read_in *in, struct fuse_answer *answer)
{
    static const struct {
        uint64_t node;
        uint32_t type;
        const char *name;
    } entries[] = {{FUSE_NODE_ROOT, S_IFDIR >> 12, "."},
                   {FUSE_NODE_ROOT, S_IFDIR >> 12, ".."},
                   {FUSE_NODE_FILE, S_IFREG >> 12, FUSE_EXPORT_FILE_NAME}};
    if (node != FUSE_NODE_ROOT)
        return -ENOTDIR;
    char *out = answer->body.directory;
    size_t used = 0;
    memset(out, 0, FUSE_DIRENT_BYTES);
    for (uint64_t i = in->offset; i < sizeof entries / sizeof entries[0]; i++) {
        struct fuse_dirent head = {.ino = entries[i].node,
                                   .off = i + 1,
                                   .namelen = (uint32_t)strlen(entries[i].name),
                                   .type = entries[i].type};
        size_t bytes = FUSE_DIRENT_ALIGN(FUSE_NAME_OFFSET + head.namelen);
        if (used + bytes > in->size || used + bytes > FUSE_DIRENT_BYTES)
            break;
        memcpy(out + used, &head, FUSE_NAME_OFFSET);
        memcpy(out + used + FUSE_NAME_OFFSET, entries[i].name, head.namelen);
        used += bytes;
    }
    answer_body(answer, used);
    return 0;
}

static int handle_statfs(const struct fuse_protocol *p, struct fuse_answer *answer)
{
    struct fuse_statfs_out *out = &answer->body.statfs;
    memset(out, 0, sizeof *out);
    out->st.bsize = out->st.frsize = BLOCK_PAGE_BYTES;
    out->st.blocks = p->block->size_bytes / BLOCK_PAGE_BYTES;
    out->st.namelen = 255;
    answer_body(answer, sizeof *out);
    return 0;
}

static int handle_read(struct fuse_protocol *p, const struct fuse_read_in *in, char *data,
                       struct fuse_answer *answer)
{
    struct error err = ERROR_INIT;
    uint64_t length = in->size, offset = in->offset;
    if (length > FUSE_EXPORT_MAX_IO_BYTES)
        return -EINVAL;
    answer->payload = data;
    if (offset >= p->block->size_bytes)
        return 0; /* the end of the file */
    if (length > p->block->size_bytes - offset)
        length = p->block->size_bytes - offset;
    if (block_check_range(p->block, length, offset, &err) < 0)
        return -EINVAL;
    if (block_pread(p->block, data, length, offset, &err) < 0)
        return report(p, "read", length, offset, &err);
    answer->payload_bytes = length;
    return 0;
}

static int handle_write(struct fuse_protocol *p, const struct fuse_write_in *in, const char *data,
                        size_t data_bytes, struct fuse_answer *answer)
{
    struct error err = ERROR_INIT;
    uint64_t length = in->size, offset = in->offset;
    if (length > FUSE_EXPORT_MAX_IO_BYTES || length != data_bytes)
        return -EINVAL;
    if (offset >= p->block->size_bytes)
        return -ENOSPC;
    if (block_check_range(p->block, length, offset, &err) < 0)
        return -EINVAL;
    if (length && block_pwrite(p->block, data, length, offset, 0, &err) < 0)
        return report(p, "write", length, offset, &err);
    answer->body.write = (struct fuse_write_out){.size = (uint32_t)length};
    answer_body(answer, sizeof answer->body.write);
    return 0;
}

static int handle_flush(struct fuse_protocol *p)
{
    struct error err = ERROR_INIT;
    if (block_flush(p->block, &err) < 0)
        return report(p, "flush", 0, 0, &err);
    return 0;
}

static int handle_fallocate(struct fuse_protocol *p, const struct fuse_fallocate_in *in)
{
    struct error err = ERROR_INIT;
    uint64_t length = in->length, offset = in->offset, size = p->block->size_bytes;
    uint32_t mode = in->mode & ~(uint32_t)FALLOC_FL_KEEP_SIZE;
    if (mode && mode != FALLOC_FL_PUNCH_HOLE && mode != FALLOC_FL_ZERO_RANGE)
        return -EOPNOTSUPP;
    if (offset > size || length > size - offset)
        return mode || !(in->mode & FALLOC_FL_KEEP_SIZE) ? -ENOSPC : 0;
    if (!mode)
        return 0; /* there is room for the whole size, always */
    if (block_check_range(p->block, length, offset, &err) < 0)
        return -EINVAL;
    if (mode == FALLOC_FL_PUNCH_HOLE) {
        if (block_discard(p->block, length, offset, 0, &err) < 0)
            return report(p, "discard", length, offset, &err);
    } else if (block_zero(p->block, length, offset, 0, &err) < 0) {
        return report(p, "write of zeroes", length, offset, &err);
    }
    return 0;
}

/* The least length of the arguments after the header; what is not listed needs none. */
static size_t argument_bytes(uint32_t opcode)
{
    switch (opcode) {
    case FUSE_READ:
    case FUSE_READDIR:
        return sizeof(struct fuse_read_in);
    case FUSE_WRITE:
        return sizeof(struct fuse_write_in);
    case FUSE_FALLOCATE:
        return sizeof(struct fuse_fallocate_in);
    case FUSE_SETATTR:
        return sizeof(struct fuse_setattr_in);
    default:
        return 0;
    }
}

static int dispatch(struct fuse_protocol *p, const struct fuse_in_header *header, char *buffer,
                    size_t length_bytes, struct fuse_answer *answer)
{
    const void *arguments = header + 1;
    size_t bytes = length_bytes - sizeof *header;
    if (bytes < argument_bytes(header->opcode))
        return -EINVAL;
    switch (header->opcode) { /* the first four are the I/O path */
    case FUSE_READ:
        return header->nodeid == FUSE_NODE_FILE ? handle_read(p, arguments, buffer + BLOCK_PAGE_BYTES, answer)
                                                : -EISDIR;
    case FUSE_WRITE:
        return header->nodeid == FUSE_NODE_FILE ? handle_write(p, arguments, buffer + BLOCK_PAGE_BYTES,
                                                               bytes - sizeof(struct fuse_write_in), answer)
                                                : -EISDIR;
    case FUSE_FSYNC:
    case FUSE_SYNCFS:
        return handle_flush(p);
    case FUSE_FALLOCATE:
        return header->nodeid == FUSE_NODE_FILE ? handle_fallocate(p, arguments) : -EISDIR;
    case FUSE_INIT:
        return handle_init(p, arguments, bytes, answer);
    case FUSE_LOOKUP:
        return handle_lookup(p, header->nodeid, arguments, bytes, answer);
    case FUSE_GETATTR:
        return handle_getattr(p, header->nodeid, answer);
    case FUSE_SETATTR:
        return handle_setattr(p, header->nodeid, arguments, answer);
    case FUSE_ABI_STATX:
        return handle_statx(p, header->nodeid, answer);
    case FUSE_OPEN:
        return handle_open(header->nodeid, answer);
    case FUSE_READDIR:
        return handle_readdir(header->nodeid, arguments, answer);
    case FUSE_STATFS:
        return handle_statfs(p, answer);
    case FUSE_RELEASE:
    case FUSE_RELEASEDIR:
    case FUSE_DESTROY:
        return 0;
    case FUSE_FORGET:
    case FUSE_BATCH_FORGET:
    case FUSE_INTERRUPT:
        answer->wanted = false;
        return 0;
    default: /* the kernel remembers it and asks no more */
        return -ENOSYS;
    }
}

bool fuse_protocol_transfer(const struct fuse_protocol *p, char *buffer, size_t length_bytes, struct block_request *r)
{
    struct error ignored = ERROR_INIT;
    const struct fuse_in_header *header = (const void *)(buffer + FUSE_REQUEST_OFFSET);
    bool write = header->opcode == FUSE_WRITE;
    if (header->len == length_bytes && (header->opcode == FUSE_FSYNC || header->opcode == FUSE_SYNCFS) &&
        length_bytes >= sizeof *header + argument_bytes(header->opcode)) {
        *r = (struct block_request){.op = BLOCK_OP_FLUSH};
        return true;
    }
    if ((!write && header->opcode != FUSE_READ) || header->nodeid != FUSE_NODE_FILE || header->len != length_bytes ||
        length_bytes < sizeof *header + argument_bytes(header->opcode))
        return false;
    const struct fuse_write_in *in = (const void *)(header + 1); /* struct fuse_read_in begins the same */
    if (in->size == 0 || in->size > FUSE_EXPORT_MAX_IO_BYTES ||
        (write && in->size != length_bytes - FUSE_WRITE_HEAD_BYTES) ||
        block_check_range(p->block, in->size, in->offset, &ignored) < 0)
        return false; /* fuse_protocol_handle says what is wrong */
    *r = (struct block_request){.op = write ? BLOCK_OP_WRITE : BLOCK_OP_READ,
                                .data = buffer + BLOCK_PAGE_BYTES,
                                .length_bytes = in->size,
                                .offset_bytes = in->offset};
    return true;
}

void fuse_protocol_transferred(struct fuse_protocol *p, const struct block_request *r, int code, const struct error *err,
                               struct fuse_answer *answer)
{
    static const char *const words[] = {[BLOCK_OP_READ] = "read", [BLOCK_OP_WRITE] = "write", [BLOCK_OP_FLUSH] = "flush"};
    answer->wanted = true;
    answer->code = code < 0 ? report(p, words[r->op], r->length_bytes, r->offset_bytes, err) : 0;
    answer->payload = r->data;
    answer->payload_bytes = r->length_bytes; /* of a flush: none */
    if (r->op == BLOCK_OP_WRITE) {
        answer->body.write = (struct fuse_write_out){.size = (uint32_t)r->length_bytes};
        answer_body(answer, sizeof answer->body.write);
    }
    if (code < 0)
        answer->payload_bytes = 0;
}

bool fuse_protocol_blocks(const char *buffer)
{
    switch (((const struct fuse_in_header *)(const void *)(buffer + FUSE_REQUEST_OFFSET))->opcode) {
    case FUSE_READ:
    case FUSE_WRITE:
    case FUSE_FSYNC:
    case FUSE_SYNCFS:
    case FUSE_FALLOCATE:
        return true;
    default:
        return false;
    }
}

void fuse_protocol_handle(struct fuse_protocol *protocol, char *buffer, size_t length_bytes,
                          struct fuse_answer *answer)
{
    const struct fuse_in_header *header = (const void *)(buffer + FUSE_REQUEST_OFFSET);
    answer->wanted = true;
    answer->payload = NULL;
    answer->payload_bytes = 0;
    if (header->len != length_bytes)
        answer->code = -EINVAL;
    else
        answer->code = dispatch(protocol, header, buffer, length_bytes, answer);
    if (answer->code < 0)
        answer->payload_bytes = 0;
}
