# SPDX-License-Identifier: Apache-2.0
"""J5 with the engine as it is run: old history keeps a point a second, is smaller for it, and its tags open with what was
there, also after a crash; status says what is kept."""
import lib

HOT = 1 * lib.MIB  # is written over again and again
RSS_LIMIT_KIB = 96 * 1024


def memory_kib(pid):
    with open("/proc/%d/status" % pid) as f:
        return int(next(line for line in f if line.startswith("VmHWM")).split()[1])


def thinned(app):
    return [span for span in app.status()["history"]["spans"] if span["granularity_seconds"] == 1]


with lib.Test("thin", "fio") as test:
    app = test.application({"data": 64 * lib.MIB}, thinning=[{"after_ns": 2_000_000_000, "keep_s": 1}])
    device = app.device("data")
    test.fio(device, size=HOT, io_size="48m", rate="16m", bs="4k", norandommap=1)
    app.sync()
    app.tag("then")
    expected = lib.digest(device)
    test.fio(device, size=HOT, io_size="400m", rate="20m", bs="4k", norandommap=1)  # some 20 s
    before = app.status()
    lib.check(before["history"]["limit_seconds"] is None, before["history"])
    lib.check(before["history"]["spans"][-1]["granularity_seconds"] == 0, before["history"])

    def is_thinned():
        """So much of it that the history is smaller for it, with two segments in reserve."""
        test.fio(device, size=HOT, io_size="1m", bs="4k")
        status = app.status()
        return status["journal_bytes"] < status["volumes"][0]["written_bytes"] and thinned(app)

    span = lib.wait_for("history to be thinned", is_thinned, 60)[0]
    after = app.status()
    written = after["volumes"][0]["written_bytes"]
    print("%d MiB were written; the journal has %d MiB, thinned from %s to %s" % (
        written // lib.MIB, after["journal_bytes"] // lib.MIB, span["from"], span["to"]))

    def check_then():
        view = app.view("tag:then")
        lib.check(lib.digest(view.device("data")) == expected, "a point kept is not what it was")
        view.close()

    used = memory_kib(app.pid())
    print("engine: at most %d KiB resident" % used)
    lib.check(used <= RSS_LIMIT_KIB, "the engine used", used, "KiB")  # J7
    check_then()
    got, answer = lib.call(app.socket, "POST", "/v1/resolve", {"point": "lsn:100"})
    lib.check(got >= 400 and "points kept next to it" in answer["error"]["message"], got, answer)
    listed = [p["lsn"] for p in app.call("GET", "/v1/points?since=lsn:100&limit=100000")["points"]]  # a list may begin there
    lib.check(listed and min(listed) >= 100, "since an LSN that was thinned away:", listed[-3:])
    by_time = app.call("POST", "/v1/resolve", {"point": span["to"]})
    lib.check(by_time["lsn"] > 100, by_time)
    live = lib.digest(device)
    app.kill_engine()
    check_then()
    app.check_latest()
    lib.check(lib.digest(device) == live, "the live volume changed")
    lib.check(thinned(app), app.status()["history"])
    app.stop()
