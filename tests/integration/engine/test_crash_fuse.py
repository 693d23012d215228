# SPDX-License-Identifier: Apache-2.0
"""J3, J4: SIGKILL of the engine under fio --verify over FUSE and a loop device: no I/O error, the data is right, and the
live volume is image(latest) block for block; in both acknowledgement modes."""
import lib

KILLS = 4
BYTES_BETWEEN = 24 * lib.MIB  # written by one engine before it is killed


def crash(test, ack):
    app = test.application({"data": 256 * lib.MIB, "wal": 64 * lib.MIB}, ack=ack, name="crash-" + ack)
    enough = app.directory + "/enough"
    fio = test.fio_until(enough, app.device("data"), bsrange="4k-64k", size="48m", verify="crc32c", verify_fatal=1, rate="40m", fdatasync=64)
    wal = test.fio(app.device("wal"), wait=False, bs="4k", iodepth=1, size="32m", rate="4m", verify="crc32c", verify_fatal=1,
                   fsync=8)
    for _ in range(KILLS):
        lib.wait_for("writes", lambda: fio.poll() is not None or app.status()["volumes"][0]["written_bytes"] > BYTES_BETWEEN, 60)
        if fio.poll() is not None:
            test.fio_ended(fio)
        app.kill_engine()
    open(enough, "w").close()
    test.fio_ended(fio)
    test.fio_ended(wal)
    app.check_latest()
    status = app.status()
    lib.check(status["state"] == "protected" and not status["alarms"], status)
    app.stop()
    app.start()  # and an orderly end loses nothing either
    app.check_latest()
    app.stop()


with lib.Test("crash-fuse", "fio") as test:
    crash(test, "write")
    crash(test, "flush")
