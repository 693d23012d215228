# SPDX-License-Identifier: Apache-2.0
"""J7: whatever NBD clients ask for, the engine stays within 96 MiB: four volumes at once under requests of 64 KiB at queue depth 64,
then from several connections, then requests of 32 MiB; what was written is read back. By FUSE each volume beyond the fourth may
take 8 MiB more, which docs/volumes.md says and status warns by (CONTROL_VOLUME_MEMORY_MIB)."""
import os

import lib

RSS_LIMIT_KIB = 96 * 1024
SIZE = 128 * lib.MIB
VOLUMES = {"v%d" % i: SIZE for i in range(4)}


def memory_kib(pid):
    with open("/proc/%d/status" % pid) as f:
        return int(next(line for line in f if line.startswith("VmHWM")).split()[1])


with lib.Test("memory", "fio", "nbdcopy") as test:
    app = test.application(VOLUMES, start=False)
    app.start_nbd()

    def check_memory(what):
        used = memory_kib(app.pid())
        print("%s: at most %d KiB resident" % (what, used), flush=True)
        lib.check(used <= RSS_LIMIT_KIB, "after", what, "the engine had used", used, "KiB")

    check_memory("its start")
    for what, options in {"64 KiB at queue depth 64": {"bs": "64k", "iodepth": 64},
                          "1 MiB from four connections": {"bs": "1m", "iodepth": 16, "numjobs": 4, "thread": 1}}.items():
        for mode in ("randwrite", "randread"):
            jobs = [test.fio(app.uri(v), wait=False, rw=mode, size="64m", **options) for v in VOLUMES]
            for job in jobs:
                test.fio_ended(job)
        check_memory(what)
    image, back = test.work + "/image", test.work + "/back"
    lib.run("sh", "-c", 'dd if=/dev/urandom of="$0" bs=1M count=%d status=none' % (SIZE // lib.MIB), image)
    large = ["nbdcopy", "--request-size=%d" % (32 * lib.MIB), "--requests=4", "--flush"]
    copies = [test.process(*large, image, app.uri(v)) for v in VOLUMES]
    for copy in copies:
        output, _ = copy.communicate(timeout=240)
        lib.check(copy.returncode == 0, "nbdcopy:", output)
    for v in VOLUMES:
        lib.run(*large, app.uri(v), back)
        lib.run("cmp", image, back)
        os.unlink(back)
    check_memory("requests of 32 MiB")
    app.stop_nbd()

with lib.Test("memory-fuse") as test:
    many = {"v%d" % i: 16 * lib.MIB for i in range(12)}
    app = test.application(many)
    used = memory_kib(app.pid())  # the buffers are there, and locked, from the start
    print("twelve volumes by FUSE: at most %d KiB resident" % used, flush=True)
    lib.check(used <= RSS_LIMIT_KIB + 8 * 8 * 1024, "with twelve volumes by FUSE the engine had used", used, "KiB")
    app.stop()
