/* SPDX-License-Identifier: Apache-2.0 */
#include "check.h"

#include <errno.h>
#include <string.h>

#include "export/fuse_abi.h"
#include "export/fuse_probe.h"

static struct error err;

static struct {
    struct fuse_in_header header;
    struct fuse_init_in init;
} request;

static void make(uint64_t flags)
{
    memset(&request, 0, sizeof request);
    request.header.len = sizeof request;
    request.header.opcode = FUSE_INIT;
    request.init.major = 7;
    request.init.minor = 40;
    request.init.flags = (uint32_t)flags;
    request.init.flags2 = (uint32_t)(flags >> 32);
}

static void flags(void **unused)
{
    bool resend = false;
    (void)unused;
    make(FUSE_INIT_EXT | FUSE_ABI_HAS_RESEND);
    check_ok(fuse_probe_parse(&request, sizeof request, &resend, &err));
    assert_true(resend);
    make(FUSE_INIT_EXT | FUSE_ABI_DIRECT_IO_ALLOW_MMAP); /* Linux 6.8 */
    check_ok(fuse_probe_parse(&request, sizeof request, &resend, &err));
    assert_false(resend);
    resend = true;
    make(FUSE_ABI_HAS_RESEND); /* flags2 count only with INIT_EXT */
    check_ok(fuse_probe_parse(&request, sizeof request, &resend, &err));
    assert_false(resend);
    resend = true;
    make(FUSE_INIT_EXT | FUSE_ABI_HAS_RESEND); /* of an old kernel, which has no flags2 */
    check_ok(fuse_probe_parse(&request, sizeof request.header + 16, &resend, &err));
    assert_false(resend);
}

static void nonsense(void **unused)
{
    bool resend = false;
    (void)unused;
    make(0);
    check_error(fuse_probe_parse(&request, 20, &resend, &err), -EPROTO, "20 bytes");
    request.header.opcode = FUSE_READ;
    check_error(fuse_probe_parse(&request, sizeof request, &resend, &err), -EPROTO, "request 15");
}

/* A real mount; whether the kernel has it, the log of a server tells too. */
static void of_this_kernel(void **unused)
{
    bool resend = false;
    char path[128];
    (void)unused;
    if (geteuid() != 0 || access("/dev/fuse", R_OK | W_OK) < 0)
        skip();
    char *directory = check_make_directory();
    snprintf(path, sizeof path, "%.100s/probe", directory);
    int r = fuse_probe_resend(path, &resend, &err);
    if (r == -EPERM)
        skip();
    check_ok(r);
    assert_int_equal(access(path, F_OK), -1);
    check_ok(fuse_probe_resend(path, &resend, &err)); /* nothing is left in its way */
    check_remove_directory(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(flags), cmocka_unit_test(nonsense), cmocka_unit_test(of_this_kernel)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
