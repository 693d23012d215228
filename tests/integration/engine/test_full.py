# SPDX-License-Identifier: Apache-2.0
"""The journal's disk is full and there is no quota: writes never fail, the oldest history is dropped, it is told, and what
history there is is right."""
import os

import lib

with lib.Test("full", "fio", "mkfs.ext4") as test:
    disk, image = test.work + "/disk", test.work + "/disk.img"
    lib.run("truncate", "-s", "700M", image)
    lib.run("mkfs.ext4", "-q", "-m", "0", image)
    test.mount(image, disk, "-o", "loop")
    app = test.application({"data": 128 * lib.MIB}, journal=disk + "/journal")
    told, size = False, 0
    fio = test.fio(app.device("data"), wait=False, bs="64k", size="128m", io_size="1400m", randrepeat=0, norandommap=1)
    while fio.poll() is None:
        status = app.status()
        told |= bool(status["alarms"]) or status["oldest_lsn"] > 1
    test.fio_ended(fio)
    status = app.status()
    print({k: status[k] for k in ("state", "oldest_lsn", "lsn", "journal_bytes", "base_bytes", "alarms")})
    lib.check(told, "nothing tells of the full disk:", status)
    lib.check(status["oldest_lsn"] > 1, "no history was dropped:", status)
    lib.check(status["state"] == "protected", "history stopped though there was some to drop:", status)
    test.fio(app.device("data"), bs="4k", size="32m", verify="crc32c", verify_fatal=1)
    app.check_latest()
    app.kill_engine()
    app.check_latest()
    app.stop()
    test.unmount(disk)
