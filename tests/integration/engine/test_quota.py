# SPDX-License-Identifier: Apache-2.0
"""J7: under long writes the journal stays within its quota and the engine within 96 MiB of memory; old points are refused
with the range that there is, newer ones are right, and an open view keeps its point."""
import lib

QUOTA = 8 * lib.SEGMENT_BYTES
ROOM = 4 * lib.SEGMENT_BYTES  # the active, the next, the one being sealed, the one being dropped
RSS_LIMIT_KIB = 96 * 1024


def memory_kib(pid):
    with open("/proc/%d/status" % pid) as f:
        return int(next(line for line in f if line.startswith("VmHWM")).split()[1])


def write(test, app, size):
    """Random writes; the journal is looked at all the time."""
    fio = test.fio(app.device("data"), wait=False, bsrange="4k-64k", size="192m", io_size="%dm" % size, iodepth=32,
                   randrepeat=0, norandommap=1)
    most = 0
    while fio.poll() is None:
        status = app.status()
        most = max(most, status["journal_bytes"])
        lib.check(status["journal_bytes"] <= QUOTA + ROOM, "journal_bytes", status["journal_bytes"])
        lib.check(status["state"] == "protected", status)
    test.fio_ended(fio)
    return most


with lib.Test("quota", "fio") as test:
    app = test.application({"data": 192 * lib.MIB}, quota=QUOTA)
    write(test, app, 64)
    app.sync()
    app.tag("old")
    write(test, app, 1024)
    lib.wait_for("the oldest history to be dropped", lambda: app.status()["oldest_lsn"] > 1)
    got, answer = lib.call(app.socket, "POST", "/v1/resolve", {"point": "lsn:2"})
    lib.check(got >= 400 and "history" in answer["error"]["message"], got, answer)
    lib.check(str(app.status()["oldest_lsn"]) in answer["error"]["message"], "no range in", answer)
    lib.check(lib.call(app.socket, "POST", "/v1/resolve", {"point": "tag:old"})[0] >= 400, "an old tag resolves")

    app.sync()
    app.tag("kept")
    expected = lib.digest(app.device("data"))
    write(test, app, 160)
    view = app.view("tag:kept")
    lib.check(lib.digest(view.device("data")) == expected, "a newer point is wrong")
    write(test, app, 320)  # the view keeps its point while history moves towards it
    lib.check(lib.digest(view.device("data")) == expected, "an open view changed")
    view.close()
    app.check_latest()
    used = memory_kib(app.pid())
    print("engine: at most %d KiB resident" % used)
    lib.check(used <= RSS_LIMIT_KIB, "the engine used", used, "KiB")
    app.stop()
