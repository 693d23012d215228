# SPDX-License-Identifier: Apache-2.0
"""A rewind for which the disk has no room is refused before anything is changed, with what it needs; a dry run tells it; with room
it is done, and so is its undo."""
import os

import lib

CONTENT = 96 * lib.MIB

with lib.Test("rewind-full", "fio", "mkfs.ext4", "blkdiscard", "fallocate") as test:
    app = test.application({"data": 128 * lib.MIB}, start=False)
    image, disk = test.work + "/disk.img", app.directory + "/backing"
    lib.run("truncate", "-s", "300M", image)
    lib.run("mkfs.ext4", "-q", "-m", "0", "-O", "^has_journal", image)
    test.mount(image, disk, "-o", "loop")
    app.start()
    device = app.device("data")
    test.fio(device, rw="write", bs="1m", size="96m")
    app.sync()
    app.tag("full")
    expected = lib.digest(device)
    lib.run("blkdiscard", device)  # its blocks are given back to the disk
    app.sync()
    empty = lib.digest(device)
    room = os.statvfs(disk)
    filler = disk + "/filler"
    lib.run("fallocate", "-l", room.f_bavail * room.f_frsize - 32 * lib.MIB, filler)

    plan = app.call("POST", "/v1/rewind", {"point": "tag:full", "dry_run": True})
    print(plan["space"], plan["refusal"])
    space = next(s for s in plan["space"] if s["disk_of"] == "data")
    lib.check(CONTENT <= space["needed_bytes"] <= CONTENT + 8 * lib.MIB and space["free_bytes"] <= 32 * lib.MIB, plan)
    lib.check(plan["refusal"] and "disk of data" in plan["refusal"], plan)
    before = app.status()
    answer = app.call("POST", "/v1/rewind", {"point": "tag:full"}, status=507)
    lib.check(answer["error"]["code"] == "ENOSPC" and "Nothing was changed" in answer["error"]["message"], answer)
    after = app.status()
    lib.check(after["lsn"] == before["lsn"] and after["rewind"] is None and after["state"] == "protected", before, after)
    lib.check(lib.digest(device) == empty, "a rewind that was refused changed something")

    os.unlink(filler)
    plan = app.call("POST", "/v1/rewind", {"point": "tag:full", "dry_run": True})
    lib.check(plan["refusal"] is None, plan)
    app.detach()
    app.call("POST", "/v1/rewind", {"point": "tag:full"})
    lib.check(lib.digest(app.device("data")) == expected, "after the rewind")
    lib.wait_for("the rewind to be copied back", lambda: app.status()["rewind"] is None)
    app.detach()
    app.call("POST", "/v1/undo", {})
    lib.check(lib.digest(app.device("data")) == empty, "after its undo")
    lib.wait_for("the undo to be copied back", lambda: app.status()["rewind"] is None)
    app.check_latest()
    app.stop()
    test.unmount(disk)
