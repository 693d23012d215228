# SPDX-License-Identifier: Apache-2.0
"""ext4 and xfs, made and used on volumes with tags along the way: each tagged point, opened as a view, mounts (its log is
replayed into the overlay), holds what it held, and is clean for fsck; so do points in the middle of the load."""
import hashlib
import os
import random
import shutil

import lib

SEED = int(os.environ.get("TIDEMARK_SEED", random.SystemRandom().getrandbits(32)))
VOLUMES = {"ext": 512 * lib.MIB, "xfs": 512 * lib.MIB}


def fsync(path):
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def change(root, dice, step):
    """Some files written, some overwritten in part, some deleted, a directory moved, an archive unpacked."""
    directory = "%s/step-%d" % (root, step)
    os.makedirs(directory)
    for i in range(30):
        with open("%s/file-%d" % (directory, i), "wb") as f:
            f.write(dice.randbytes(dice.randrange(200000)))
            if i % 5 == 0:
                f.flush()
                os.fsync(f.fileno())
    if step:
        before = "%s/step-%d" % (root, step - 1)
        for name in sorted(os.listdir(before))[::3]:
            os.unlink(before + "/" + name)
        for name in sorted(os.listdir(before))[::2]:
            with open(before + "/" + name, "r+b") as f:
                f.seek(dice.randrange(1000))
                f.write(dice.randbytes(5000))
        lib.run("tar", "cf", root + "/archive.tar", "-C", root, "step-%d" % (step - 1))
        os.makedirs("%s/unpacked-%d" % (root, step))
        lib.run("tar", "xf", root + "/archive.tar", "-C", "%s/unpacked-%d" % (root, step))
        if step > 2:
            shutil.rmtree("%s/unpacked-%d" % (root, step - 2))


def content(root):
    """Checksums of all files below."""
    found = {}
    for path, _, names in os.walk(root):
        for name in names:
            with open(path + "/" + name, "rb") as f:
                found[os.path.relpath(path + "/" + name, root)] = hashlib.sha256(f.read()).hexdigest()
    return found


def check_view(test, app, point, expected):
    view = app.view(point)
    for volume in VOLUMES:
        where, device = "%s/view-%s" % (test.work, volume), view.device(volume)
        test.mount(device, where, *(["-o", "nouuid"] if volume == "xfs" else []))
        if expected:
            got = content(where)
            lib.check(got == expected[volume], point, volume, "differs in",
                      sorted(k for k in set(got) | set(expected[volume]) if got.get(k) != expected[volume].get(k))[:10])
        with open(where + "/written-in-the-view", "w") as f:
            f.write(point)
        test.unmount(where)
        if volume == "xfs":
            lib.run("xfs_repair", "-n", device)
        else:
            lib.run("fsck.ext4", "-fn", device)
    view.close()


with lib.Test("filesystems", "mkfs.ext4", "mkfs.xfs", "xfs_repair", "fsck.ext4", "tar") as test:
    print("TIDEMARK_SEED=%d" % SEED)
    dice = random.Random(SEED)
    app = test.application(VOLUMES)
    tags, between = {}, []
    lib.run("mkfs.ext4", "-q", app.device("ext"))
    lib.run("mkfs.xfs", "-q", app.device("xfs"))
    roots = {volume: "%s/%s" % (test.work, volume) for volume in VOLUMES}
    for volume in VOLUMES:
        test.mount(app.device(volume), roots[volume])
    for step in range(4):
        first = app.call("POST", "/v1/sync")["lsn"]
        for volume in VOLUMES:
            change(roots[volume], dice, step)
        if step == 2:
            app.kill_engine()
        lib.run("sync", "-f", roots["ext"], roots["xfs"])
        tag = "step-%d" % step
        lsn = app.tag(tag)
        tags[tag] = {volume: content(roots[volume]) for volume in VOLUMES}
        between.append("lsn:%d" % dice.randrange(first + 1, lsn))
    for tag in tags:
        check_view(test, app, "tag:" + tag, tags[tag])
    for point in between:  # a crash at any moment: the log's replay makes it whole
        check_view(test, app, point, None)
    for volume in VOLUMES:
        lib.check(content(roots[volume]) == tags["step-3"][volume], "the live volume changed")
        test.unmount(roots[volume])
    app.check_latest()
    app.stop()
