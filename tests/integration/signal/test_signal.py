# SPDX-License-Identifier: Apache-2.0
"""Encryption of the documents on an ext4 is noticed within 60 s of its first write, by openssl in place and by gpg beside; a pgbench
run, zstd of logs and a photo upload are not taken for it. What was found survives a crash of the engine; the last clean
point has the documents; a rewind to it ends the alarm, and its undo brings it back."""
import hashlib
import os
import random
import sys
import threading
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../engine"))
import lib  # noqa: E402
import scenarios  # noqa: E402

SEED = int(os.environ.get("TIDEMARK_SEED", random.SystemRandom().getrandbits(32)))
ATTACKS = {"openssl": scenarios.encrypt_overwrite, "gpg": scenarios.encrypt_gpg}
HARMLESS = {"zstd": scenarios.zstd_keep, "photos": scenarios.upload}
if scenarios.POSTGRES:
    HARMLESS["pgbench"] = scenarios.pgbench
VOLUMES = dict.fromkeys(list(ATTACKS) + list(HARMLESS), 256 * lib.MIB)
NOTICED_S = 60


def signal(app, volume):
    return next(v for v in app.status()["volumes"] if v["name"] == volume)["signal"]


def content(root):
    found = {}
    for path, _, names in os.walk(root + "/documents"):
        for name in names:
            with open(path + "/" + name, "rb") as f:
                found[os.path.relpath(path + "/" + name, root)] = hashlib.sha256(f.read()).hexdigest()
    return found


def prepare(test, app, library, roots):
    for number, volume in enumerate(VOLUMES):
        root = roots[volume] = "%s/%s" % (test.work, volume)
        lib.run("mkfs.ext4", "-q", app.device(volume))
        test.mount(app.device(volume), root)
        scenarios.documents(root, random.Random(SEED + number), library, 24)
        if volume == "zstd":
            scenarios.logs(root, random.Random(SEED), 48)
    lib.run("sync")
    now = signal(app, "gpg")["seconds"]
    lib.wait_for("the bitmaps to be read, and a pause", lambda: signal(app, "gpg")["seconds"] > now + 10)


def act(volume, scenario, root, library, failures):
    try:
        scenario(root, random.Random(SEED), library)
    except Exception as e:  # told by the main thread
        failures.append("%s: %r" % (volume, e))


def alarms(app):
    return [a for a in app.status()["alarms"] if "encrypted" in a]


def check_points(app, before_lsn):
    """Points of the attack are marked, those before are not; the last clean one lies between."""
    points = app.call("GET", "/v1/points?limit=10000")["points"]
    marked = [p["lsn"] for p in points if p.get("suspicious")]
    clean = app.call("GET", "/v1/last-clean")
    lib.check(marked and min(marked) > clean["lsn"], "marked", marked[-3:], "last clean", clean)
    lib.check(clean["lsn"] <= before_lsn, "the last clean point", clean, "is after the attack began at", before_lsn)
    return clean


def check_view(test, app, clean, documents):
    view = app.view("lsn:%d" % clean["lsn"])
    for volume, expected in documents.items():
        where = "%s/view-%s" % (test.work, volume)
        test.mount(view.device(volume), where)
        lib.check(content(where) == expected, volume, "differs at the last clean point")
        test.unmount(where)
    view.close()


with lib.Test("signal", "mkfs.ext4", "openssl", "gpg", "zstd") as test:
    print("TIDEMARK_SEED=%d" % SEED)
    os.chmod(test.work, 0o755)  # PostgreSQL runs as somebody else
    app = test.application(VOLUMES, ack="flush")
    library = scenarios.Library(test.work, random.Random(SEED))
    roots, failures, noticed = {}, [], {}
    prepare(test, app, library, roots)
    documents = {volume: content(roots[volume]) for volume in ATTACKS}
    lib.check(not alarms(app), "an alarm before anything happened", app.status()["alarms"])
    before_lsn = app.call("POST", "/v1/sync")["lsn"]
    threads = [threading.Thread(target=act, args=(v, s, roots[v], library, failures)) for v, s in {**ATTACKS, **HARMLESS}.items()]
    begin = time.monotonic()
    for thread in threads:
        thread.start()

    written = begin

    def all_noticed():
        global written
        if time.monotonic() - written > 5:  # what the kernel still keeps in memory was not written to the volume
            lib.run("sync", "-f", roots["gpg"])
            written = time.monotonic()
        for volume in ATTACKS:
            if volume not in noticed and signal(app, volume)["suspicious"]:
                noticed[volume] = time.monotonic() - begin
        return len(noticed) == len(ATTACKS) or time.monotonic() - begin > NOTICED_S

    lib.wait_for("the attacks to be noticed", all_noticed, NOTICED_S + 10)
    for thread in threads:
        thread.join()
    lib.check(not failures, *failures)
    print("noticed after", {v: round(s, 1) for v, s in noticed.items()})
    lib.check(len(noticed) == len(ATTACKS), "not noticed:", {v: signal(app, v) for v in ATTACKS if v not in noticed})
    seconds = signal(app, "zstd")["seconds"]
    lib.run("sync")
    lib.wait_for("the last writes to be judged", lambda: signal(app, "zstd")["seconds"] > seconds + 40, 90)
    lib.check(app.status()["suspicious_since"], "nothing is suspicious in the status")
    lib.check(len(alarms(app)) == len(ATTACKS), "alarms:", alarms(app))
    for volume in HARMLESS:
        lib.check(not any(a.startswith("volume %s " % volume) for a in alarms(app)), volume, "was taken for encryption:", alarms(app))
    clean = check_points(app, before_lsn)
    app.kill_engine()
    lib.check(len(alarms(app)) == len(ATTACKS), "after a crash:", alarms(app))
    lib.check(check_points(app, before_lsn)["lsn"] == clean["lsn"], "the last clean point moved")
    check_view(test, app, clean, documents)
    for root in list(roots.values()):
        test.unmount(root)
    app.call("POST", "/v1/rewind", {"point": "lsn:%d" % clean["lsn"]})
    lib.check(not alarms(app) and not app.status()["suspicious_since"], "after the rewind:", app.status()["alarms"])
    app.call("GET", "/v1/last-clean", status=404)
    for volume, expected in documents.items():
        test.mount(app.device(volume), roots[volume])
        lib.check(content(roots[volume]) == expected, volume, "differs after the rewind")
        test.unmount(roots[volume])
    app.call("POST", "/v1/undo", {})
    lib.check(len(alarms(app)) == len(ATTACKS), "after the undo:", alarms(app))
    app.stop()
