# SPDX-License-Identifier: Apache-2.0
"""Damage to what an engine needs to start, by NBD: one copy of the manifest is enough, and status tells; without both the volumes hold
what they held, the history is set aside, and a new one has what they hold; in the failure mode `protection` it is refused with what to do.
Files beside the history that are damaged keep nothing from starting."""
import glob
import json
import os

import lib

SIZE = 32 * lib.MIB


def write_over(path, how):
    data = open(path, "rb").read()
    if how == "missing":
        os.unlink(path)
        return
    with open(path, "r+b") as f:
        if how == "cut":
            f.truncate(len(data) // 2)
        elif how == "emptied":
            f.truncate(0)
        elif how == "zeroed":
            f.write(bytes(len(data)))
        elif data:
            f.seek(len(data) // 3)
            f.write(bytes([data[len(data) // 3] ^ 4]))


def content(app):
    target = app.directory + "/content"
    lib.run("nbdcopy", app.uri("data"), target)
    with open(target, "rb") as f:
        data = f.read()
    os.unlink(target)
    return data


def fill(app, number):
    source = app.directory + "/source"
    with open(source, "wb") as f:
        f.write(os.urandom(SIZE // 2) + bytes([number]) * (SIZE // 2))
    lib.run("nbdcopy", "--flush", source, app.uri("data"))
    os.unlink(source)


def alarms(app):
    return " ".join(app.status()["alarms"])


with lib.Test("lost", "nbdcopy") as test:
    app = test.application({"data": SIZE}, start=False)
    app.start_nbd()
    fill(app, 1)
    app.tag("one")
    held = content(app)
    app.stop_nbd()

    for how in ("missing", "cut", "emptied", "zeroed", "flipped"):
        write_over(app.journal + "/manifest", how)
        app.start_nbd()
        lib.check(content(app) == held, "a manifest that is", how, "changes the volume")
        lib.check("manifest" in alarms(app) and "nothing is lost" in alarms(app), "nobody tells that the manifest is", how, alarms(app))
        lib.check(app.call("POST", "/v1/resolve", {"point": "tag:one"})["lsn"] > 0, "the tag is gone")
        app.stop_nbd()
        app.start_nbd()
        lib.check(not app.status()["alarms"], "it was not mended:", alarms(app))
        app.stop_nbd()

    # Everything beside the manifest, segments and indexes: it starts, and the volume is what it was.
    beside = [p for p in glob.glob(app.journal + "/**", recursive=True) if os.path.isfile(p) and
              not os.path.basename(p).startswith(("segment-", "l0-", "run-", "manifest", "free-"))]
    lib.check(any("/signal/" in p for p in beside) and any("/base/" in p for p in beside) and any("intent-" in p for p in beside), beside)
    for path in beside:
        for how in ("missing", "emptied", "zeroed", "flipped"):
            if not os.path.exists(path):
                continue
            with open(path, "rb") as f:
                was = f.read()
            write_over(path, how)
            app.start_nbd()
            lib.check(content(app) == held, path, how, "changes the volume")
            app.stop_nbd()
            with open(path, "wb") as f:
                f.write(was)

    for name in ("manifest", "manifest.copy"):
        write_over(app.journal + "/" + name, "flipped")
    with open(app.config) as f:
        config = json.load(f)
    with open(app.config, "w") as f:
        json.dump({**config, "failure_mode": "protection"}, f)
    said = lib.run(lib.ENGINE, "serve", "--config", app.config, "--nbd", app.nbd_socket, status=78)
    for words in ("manifest", "damaged", "put back a copy", "move " + app.journal + " away"):
        lib.check(words in said, "the refusal does not say", words, ":", said)
    with open(app.config, "w") as f:
        json.dump(config, f)

    app.start_nbd()
    kept = app.journal + ".damaged-1"
    lib.check(content(app) == held, "without its history the volume is another one")
    lib.check(os.path.exists(kept + "/manifest") and kept in alarms(app), "the history is not told to be set aside:", alarms(app))
    lib.wait_for("what the volume held to be in the history", lambda: app.status()["state"] == "protected")
    point = app.call("POST", "/v1/sync")["lsn"]
    fill(app, 2)
    app.kill_nbd()
    lib.check(content(app)[-1] == 2, "what was written after it is gone")
    pin, lock, _ = app.pin("lsn:%d" % point)
    copy = {"journal": app.journal, "pin": pin, "volumes": [{"name": "data", "id": 1, "size_bytes": SIZE, "target": app.directory + "/copy"}]}
    with open(app.directory + "/copy.json", "w") as f:
        json.dump(copy, f)
    lib.run(lib.ENGINE, "copy", "--config", app.directory + "/copy.json")
    with open(app.directory + "/copy", "rb") as f:
        lib.check(f.read() == held, "the first point of the new history is not what the volume held")
    lock.close()
    lib.run("rm", "-r", kept)
    lib.check(kept not in alarms(app), "the alarm stays:", alarms(app))
    app.stop_nbd()
    app.start_nbd()  # nobody asked for adopting it: it is known as that all the same
    lib.check(content(app)[-1] == 2, "after another start")
    app.stop_nbd()
