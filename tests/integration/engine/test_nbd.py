# SPDX-License-Identifier: Apache-2.0
"""NBD by the engine: fio verify, qemu-img and nbdinfo; then kills of the engine under writers that remember
what was acknowledged (J3); the live volume is image(latest) afterwards (J4). Views by FUSE."""
import os

import lib

KILLS = 4
BYTES_BETWEEN = 16 * lib.MIB


def check_latest(test, app):
    app.call("POST", "/v1/sync")
    view = app.view("latest")
    for volume in app.volumes:
        raw = "%s/%s.raw" % (test.work, volume)
        lib.run("nbdcopy", app.uri(volume), raw)
        lib.run("cmp", raw, view.device(volume))
        os.unlink(raw)
    view.close()


def plain(test):
    app = test.application({"data": 128 * lib.MIB, "wal": 64 * lib.MIB}, start=False, name="plain")
    app.start_nbd()
    uri = app.uri("data")
    for mode in ("randwrite", "write"):
        test.fio(uri, rw=mode, bsrange="4k-128k", size="64m", verify="crc32c", verify_fatal=1, fsync=64)
    info = lib.run("nbdinfo", uri)
    for line in ("export-size: %d" % (128 * lib.MIB), "can_flush: true", "can_fua: true", "can_trim: true", "can_zero: true",
                 "can_multi_conn: true"):
        lib.check(line in info, "no", line, "in", info)
    lib.check('export="wal"' in lib.run("nbdinfo", "--list", uri.replace("/data?", "/?")), "wal is not listed")
    image, back = test.work + "/image", test.work + "/back"
    lib.run("sh", "-c", 'dd if=/dev/urandom of="$0" bs=1M count=24 status=none && truncate -s 64M "$0"', image)
    wal = app.uri("wal")
    lib.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, wal)
    lib.check("identical" in lib.run("qemu-img", "compare", "-f", "raw", "-F", "raw", image, wal), "qemu-img compare")
    lib.run("qemu-img", "convert", "-f", "raw", "-O", "raw", wal, back)
    lib.run("cmp", image, back)
    check_latest(test, app)
    app.stop_nbd()


def crash(test, ack):
    app = test.application({"data": 64 * lib.MIB}, start=False, ack=ack, name="crash-" + ack)
    app.start_nbd()
    writer = test.process(os.environ["NBD_WRITER"], app.uri("data"), KILLS)
    print(writer.stdout.readline(), end="")
    for _ in range(KILLS):
        lib.wait_for("writes", lambda: writer.poll() is not None or app.status()["volumes"][0]["written_bytes"] > BYTES_BETWEEN, 60)
        lib.check(writer.poll() is None, "the writer ended")
        app.kill_nbd()
        line = writer.stdout.readline()
        lib.check(line == "reconnected\n", ack, "after a kill:", line)
    output, _ = writer.communicate(timeout=120)
    lib.check(writer.returncode == 0 and "all is there" in output, ack, output)
    check_latest(test, app)
    app.stop_nbd()


with lib.Test("nbd", "fio", "nbdinfo", "nbdcopy", "qemu-img") as test:
    plain(test)
    crash(test, "write")
    crash(test, "flush")
