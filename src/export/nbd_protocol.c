/* SPDX-License-Identifier: Apache-2.0 */
#include "export/nbd_protocol.h"

#include <errno.h>
#include <string.h>

#include "block/block.h"

static const char allocation_name[] = "base:allocation";

/* ---- answers to options ---- */

static void put(struct nbd_handshake *h, const void *data, size_t length_bytes)
{
    if (length_bytes > sizeof h->out - h->out_bytes) { /* the caller sends before each message: cannot be */
        h->state = NBD_CLOSED;
        return;
    }
    if (length_bytes)
        memcpy(h->out + h->out_bytes, data, length_bytes);
    h->out_bytes += length_bytes;
}

static void put_reply(struct nbd_handshake *h, enum nbd_option_reply type, size_t length_bytes)
{
    struct nbd_option_reply_header header = {.magic = be64_of(NBD_OPTION_REPLY_MAGIC),
                                             .option = be32_of(h->option),
                                             .type = be32_of((uint32_t)type),
                                             .length_bytes = be32_of((uint32_t)length_bytes)};
    put(h, &header, sizeof header);
}

static void put_error(struct nbd_handshake *h, enum nbd_option_reply type, const char *message)
{
    put_reply(h, type, strlen(message));
    put(h, message, strlen(message));
}

static uint16_t transmission_flags(const struct nbd_handshake *h)
{
    return (uint16_t)(NBD_FLAG_HAS_FLAGS | NBD_FLAG_SEND_FLUSH | NBD_FLAG_SEND_FUA | NBD_FLAG_SEND_TRIM |
                      NBD_FLAG_SEND_WRITE_ZEROES | NBD_FLAG_CAN_MULTI_CONN | NBD_FLAG_SEND_CACHE |
                      NBD_FLAG_SEND_FAST_ZERO | (h->structured ? NBD_FLAG_SEND_DF : 0));
}

/* ---- options ---- */

/* With one volume the empty name means it; with several a client has to choose. */
static bool find_export(const struct nbd_handshake *h, const char *name, size_t length_bytes, size_t *ret)
{
    for (size_t i = 0; i < h->export_count; i++) {
        const char *have = h->exports[i].name;
        if ((length_bytes == 0 && h->export_count == 1) ||
            (strlen(have) == length_bytes && memcmp(have, name, length_bytes) == 0)) {
            *ret = i;
            return true;
        }
    }
    return false;
}

static void export_name(struct nbd_handshake *h)
{
    struct nbd_export_name_reply reply = {0};
    if (!find_export(h, h->in, h->in_bytes, &h->export)) {
        h->state = NBD_CLOSED; /* the only answer that this option has */
        return;
    }
    reply.size_bytes = be64_of(h->exports[h->export].size_bytes);
    reply.flags = be16_of(transmission_flags(h));
    h->state = NBD_TRANSMISSION;
    put(h, &reply, h->no_zeroes ? offsetof(struct nbd_export_name_reply, zeroes) : sizeof reply);
}

static void list(struct nbd_handshake *h)
{
    if (h->in_bytes) {
        put_error(h, NBD_REP_ERR_INVALID, "NBD_OPT_LIST has no data");
        return;
    }
    for (size_t i = 0; i < h->export_count; i++) {
        size_t length = strlen(h->exports[i].name);
        struct be32 length_be = be32_of((uint32_t)length);
        put_reply(h, NBD_REP_SERVER, sizeof length_be + length);
        put(h, &length_be, sizeof length_be);
        put(h, h->exports[i].name, length);
    }
    put_reply(h, NBD_REP_ACK, 0);
}

/* A cursor over an option's data. */
struct reader {
    const char *at;
    size_t left_bytes;
};

static bool take(struct reader *r, size_t length_bytes, const char **ret)
{
    if (length_bytes > r->left_bytes)
        return false;
    *ret = r->at;
    r->at += length_bytes;
    r->left_bytes -= length_bytes;
    return true;
}

static bool take_u32(struct reader *r, uint32_t *ret)
{
    const char *at;
    struct be32 value;
    if (!take(r, sizeof value, &at))
        return false;
    memcpy(&value, at, sizeof value);
    *ret = be32_get(value);
    return true;
}

static bool take_string(struct reader *r, const char **ret, size_t *ret_length_bytes)
{
    uint32_t length;
    if (!take_u32(r, &length) || length > NBD_NAME_MAX_BYTES || !take(r, length, ret))
        return false;
    *ret_length_bytes = length;
    return true;
}

static void put_info(struct nbd_handshake *h, size_t export, uint16_t type)
{
    const struct nbd_export *x = &h->exports[export];
    struct be16 type_be = be16_of(type);
    struct nbd_info_block_size sizes = {.type = type_be,
                                        .minimum = be32_of(BLOCK_SECTOR_BYTES),
                                        .preferred = be32_of(BLOCK_PAGE_BYTES),
                                        .maximum = be32_of(NBD_MAX_REQUEST_BYTES)};
    if (type == NBD_INFO_NAME) {
        put_reply(h, NBD_REP_INFO, sizeof type_be + strlen(x->name));
        put(h, &type_be, sizeof type_be);
        put(h, x->name, strlen(x->name));
    } else if (type == NBD_INFO_BLOCK_SIZE) {
        put_reply(h, NBD_REP_INFO, sizeof sizes);
        put(h, &sizes, sizeof sizes);
    }
}

static void info_or_go(struct nbd_handshake *h)
{
    struct reader r = {h->in, h->in_bytes};
    const char *name, *types;
    size_t length, export;
    struct be16 count;
    bool ok = take_string(&r, &name, &length) && take(&r, sizeof count, &types);
    if (ok)
        memcpy(&count, types, sizeof count);
    ok = ok && take(&r, be16_get(count) * sizeof(struct be16), &types) && r.left_bytes == 0;
    if (!ok) {
        put_error(h, NBD_REP_ERR_INVALID, "the option's data have another length than its fields say");
        return;
    }
    if (!find_export(h, name, length, &export)) {
        put_error(h, NBD_REP_ERR_UNKNOWN,
                  "there is no such volume; nbdinfo --list shows those that there are");
        return;
    }
    bool told[NBD_INFO_BLOCK_SIZE + 1] = {false};
    struct nbd_info_export info = {.type = be16_of(NBD_INFO_EXPORT),
                                   .size_bytes = be64_of(h->exports[export].size_bytes),
                                   .flags = be16_of(transmission_flags(h))};
    put_reply(h, NBD_REP_INFO, sizeof info);
    put(h, &info, sizeof info);
    for (size_t i = 0; i < be16_get(count); i++) {
        struct be16 type;
        memcpy(&type, types + i * sizeof type, sizeof type);
        if (be16_get(type) > NBD_INFO_BLOCK_SIZE || told[be16_get(type)])
            continue;
        told[be16_get(type)] = true; /* once, however often it is asked for */
        put_info(h, export, be16_get(type));
    }
    put_reply(h, NBD_REP_ACK, 0);
    if (h->option != NBD_OPT_GO || h->state == NBD_CLOSED)
        return;
    h->export = export;
    h->allocation = h->allocation && h->allocation_export == export;
    h->state = NBD_TRANSMISSION;
}

static void put_context(struct nbd_handshake *h)
{
    struct be32 id = be32_of(h->option == NBD_OPT_SET_META_CONTEXT ? NBD_CONTEXT_ALLOCATION : 0);
    put_reply(h, NBD_REP_META_CONTEXT, sizeof id + strlen(allocation_name));
    put(h, &id, sizeof id);
    put(h, allocation_name, strlen(allocation_name));
}

static void meta_context(struct nbd_handshake *h)
{
    struct reader r = {h->in, h->in_bytes};
    bool set = h->option == NBD_OPT_SET_META_CONTEXT, ok, wanted = false;
    const char *name, *query;
    size_t length, query_length, export;
    uint32_t count;
    if (set)
        h->allocation = false;
    ok = (h->structured || !set) && take_string(&r, &name, &length) && take_u32(&r, &count);
    if (ok)
        wanted = !set && count == 0;
    for (uint32_t i = 0; ok && i < count; i++) {
        ok = take_string(&r, &query, &query_length);
        wanted |= ok && query_length == strlen(allocation_name) &&
                  memcmp(query, allocation_name, query_length) == 0;
        wanted |= ok && !set && query_length == strlen("base:") && memcmp(query, "base:", query_length) == 0;
    }
    if (!ok || r.left_bytes) {
        put_error(h, NBD_REP_ERR_INVALID,
                  "structured replies come first, and the data have to be as long as their fields say");
        return;
    }
    if (!find_export(h, name, length, &export)) {
        put_error(h, NBD_REP_ERR_UNKNOWN,
                  "there is no such volume; nbdinfo --list shows those that there are");
        return;
    }
    wanted = wanted && h->exports[export].extents;
    if (wanted)
        put_context(h);
    if (set && wanted) {
        h->allocation = true;
        h->allocation_export = export;
    }
    put_reply(h, NBD_REP_ACK, 0);
}

static void structured_reply(struct nbd_handshake *h)
{
    if (h->in_bytes) {
        put_error(h, NBD_REP_ERR_INVALID, "NBD_OPT_STRUCTURED_REPLY has no data");
        return;
    }
    h->structured = true;
    put_reply(h, NBD_REP_ACK, 0);
}

static void take_option(struct nbd_handshake *h)
{
    h->state = NBD_OPTION_HEADER;
    switch (h->option) {
    case NBD_OPT_EXPORT_NAME:
        export_name(h);
        break;
    case NBD_OPT_ABORT:
        put_reply(h, NBD_REP_ACK, 0);
        h->state = NBD_CLOSED;
        break;
    case NBD_OPT_LIST:
        list(h);
        break;
    case NBD_OPT_INFO:
    case NBD_OPT_GO:
        info_or_go(h);
        break;
    case NBD_OPT_STRUCTURED_REPLY:
        structured_reply(h);
        break;
    case NBD_OPT_LIST_META_CONTEXT:
    case NBD_OPT_SET_META_CONTEXT:
        meta_context(h);
        break;
    default:
        put_error(h, NBD_REP_ERR_UNSUP, "not served here");
    }
}

/* ---- the handshake ---- */

void nbd_handshake_init(struct nbd_handshake *h, const struct nbd_export *exports, size_t export_count)
{
    struct nbd_greeting greeting = {.magic = be64_of(NBD_MAGIC),
                                    .option_magic = be64_of(NBD_OPTION_MAGIC),
                                    .flags = be16_of(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES)};
    memset(h, 0, offsetof(struct nbd_handshake, in));
    h->exports = exports;
    h->export_count = export_count;
    h->want_bytes = sizeof(struct be32);
    put(h, &greeting, sizeof greeting);
}

static void take_client_flags(struct nbd_handshake *h)
{
    struct be32 flags_be;
    memcpy(&flags_be, h->in, sizeof flags_be);
    uint32_t flags = be32_get(flags_be);
    h->no_zeroes = flags & NBD_NO_ZEROES;
    h->state = flags & ~(uint32_t)(NBD_FIXED_NEWSTYLE | NBD_NO_ZEROES) ? NBD_CLOSED : NBD_OPTION_HEADER;
}

static void take_option_header(struct nbd_handshake *h, size_t *ret_data_bytes)
{
    struct nbd_option_header header;
    memcpy(&header, h->in, sizeof header);
    h->option = be32_get(header.option);
    *ret_data_bytes = be32_get(header.length_bytes);
    bool ok = be64_get(header.magic) == NBD_OPTION_MAGIC && *ret_data_bytes <= NBD_OPTION_MAX_BYTES &&
              h->option_count++ < NBD_OPTIONS_MAX;
    h->state = ok ? NBD_OPTION_DATA : NBD_CLOSED;
}

void nbd_handshake_advance(struct nbd_handshake *h)
{
    size_t data_bytes = 0;
    assert(h->in_bytes == h->want_bytes);
    if (h->state == NBD_CLIENT_FLAGS)
        take_client_flags(h);
    else if (h->state == NBD_OPTION_HEADER)
        take_option_header(h, &data_bytes);
    else if (h->state == NBD_OPTION_DATA)
        take_option(h);
    h->in_bytes = 0;
    h->want_bytes = h->state == NBD_OPTION_HEADER ? sizeof(struct nbd_option_header) : data_bytes;
    if (h->state == NBD_OPTION_DATA && data_bytes == 0)
        nbd_handshake_advance(h);
}

/* ---- requests ---- */

bool nbd_request_parse(const struct nbd_request_header *header, struct nbd_request *ret)
{
    *ret = (struct nbd_request){.flags = be16_get(header->flags),
                                .command = be16_get(header->command),
                                .cookie = be64_get(header->cookie),
                                .offset_bytes = be64_get(header->offset_bytes),
                                .length_bytes = be32_get(header->length_bytes)};
    return be32_get(header->magic) == NBD_REQUEST_MAGIC;
}

uint32_t nbd_request_payload_bytes(const struct nbd_request *r)
{
    return r->command == NBD_CMD_WRITE ? r->length_bytes : 0;
}

static uint16_t allowed_flags(uint16_t command)
{
    switch (command) {
    case NBD_CMD_READ:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_DF;
    case NBD_CMD_BLOCK_STATUS:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_REQ_ONE;
    case NBD_CMD_WRITE_ZEROES:
        return NBD_CMD_FLAG_FUA | NBD_CMD_FLAG_NO_HOLE | NBD_CMD_FLAG_FAST_ZERO;
    default:
        return NBD_CMD_FLAG_FUA; /* may come with any command, and means nothing with some */
    }
}

uint32_t nbd_request_check(const struct nbd_request *r, const struct nbd_export *export, bool allocation)
{
    if (r->command > NBD_CMD_BLOCK_STATUS || r->command == NBD_CMD_DISC ||
        r->flags & ~allowed_flags(r->command))
        return NBD_EINVAL;
    if (r->command == NBD_CMD_FLUSH)
        return r->offset_bytes || r->length_bytes ? NBD_EINVAL : 0;
    if (r->command == NBD_CMD_BLOCK_STATUS && (!allocation || r->length_bytes == 0))
        return NBD_EINVAL;
    bool writes = r->command == NBD_CMD_WRITE || r->command == NBD_CMD_WRITE_ZEROES;
    if (r->offset_bytes > export->size_bytes || r->length_bytes > export->size_bytes - r->offset_bytes)
        return writes ? NBD_ENOSPC : NBD_EINVAL;
    if ((r->command == NBD_CMD_READ || r->command == NBD_CMD_WRITE) &&
        r->length_bytes > NBD_MAX_REQUEST_BYTES)
        return NBD_EINVAL;
    if (r->command == NBD_CMD_READ && r->flags & NBD_CMD_FLAG_DF &&
        r->length_bytes > NBD_UNFRAGMENTED_BYTES_MAX)
        return NBD_EOVERFLOW; /* it would be answered in parts */
    bool any = r->command == NBD_CMD_BLOCK_STATUS || r->command == NBD_CMD_CACHE;
    return !any && (r->offset_bytes | r->length_bytes) % BLOCK_SECTOR_BYTES ? NBD_EINVAL : 0;
}

uint32_t nbd_error_of(int code)
{
    switch (-code) {
    case 0:
        return 0;
    case EPERM:
        return NBD_EPERM;
    case ENOMEM:
        return NBD_ENOMEM;
    case EINVAL:
        return NBD_EINVAL;
    case ENOSPC:
    case EDQUOT:
        return NBD_ENOSPC;
    case ESHUTDOWN:
        return NBD_ESHUTDOWN;
    default:
        return NBD_EIO;
    }
}

static size_t chunk(const struct nbd_request *r, enum nbd_chunk_type type, const void *fields,
                    size_t field_bytes, uint32_t data_bytes, char head[NBD_REPLY_HEAD_BYTES])
{
    struct nbd_chunk_header header = {.magic = be32_of(NBD_CHUNK_MAGIC),
                                      .flags = be16_of(NBD_REPLY_DONE),
                                      .type = be16_of((uint16_t)type),
                                      .cookie = be64_of(r->cookie),
                                      .length_bytes = be32_of((uint32_t)field_bytes + data_bytes)};
    memcpy(head, &header, sizeof header);
    if (field_bytes)
        memcpy(head + sizeof header, fields, field_bytes);
    return sizeof header + field_bytes;
}

size_t nbd_reply_head(const struct nbd_request *r, bool structured, uint32_t error, uint32_t data_bytes,
                      char head[NBD_REPLY_HEAD_BYTES])
{
    bool reads = r->command == NBD_CMD_READ || r->command == NBD_CMD_BLOCK_STATUS;
    if (structured && reads && error) {
        struct nbd_chunk_error fields = {.error = be32_of(error)};
        return chunk(r, NBD_REPLY_ERROR, &fields, sizeof fields, 0, head);
    }
    if (structured && r->command == NBD_CMD_BLOCK_STATUS) {
        struct be32 id = be32_of(NBD_CONTEXT_ALLOCATION);
        return chunk(r, NBD_REPLY_BLOCK_STATUS, &id, sizeof id, data_bytes, head);
    }
    if (structured && reads && data_bytes) {
        struct be64 offset = be64_of(r->offset_bytes);
        return chunk(r, NBD_REPLY_OFFSET_DATA, &offset, sizeof offset, data_bytes, head);
    }
    if (structured && reads)
        return chunk(r, NBD_REPLY_NONE, NULL, 0, 0, head);
    struct nbd_simple_reply reply = {
        .magic = be32_of(NBD_SIMPLE_REPLY_MAGIC), .error = be32_of(error), .cookie = be64_of(r->cookie)};
    memcpy(head, &reply, sizeof reply);
    return sizeof reply;
}

void nbd_reply_goes_on(char head[NBD_REPLY_HEAD_BYTES])
{
    struct nbd_chunk_header *header = (struct nbd_chunk_header *)(void *)head;
    header->flags = be16_of(0);
}
