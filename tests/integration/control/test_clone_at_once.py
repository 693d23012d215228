#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Clones that are used before they are copied: right from the first read on, whoever is killed; they end in order, and leave nothing at
their source. Needs root, /dev/fuse and loop devices (skipped without)."""
import os
import random
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import ApiError, Stand, alive, content, until, write  # noqa: E402

MIB = 1 << 20
POLICY = "apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {{name: default}}\nspec: {{journal: {{quota: 1Gi{0}}}}}\n"
HEAD = "apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {{name: {0}}}\nspec:\n  volumes:\n"
SEED = int(os.environ.get("TIDEMARK_SEED") or random.SystemRandom().getrandbits(32))


def run(*words):
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}"
    return done.stdout


class AtOnce(unittest.TestCase):
    def setUp(self):
        self.random = random.Random(SEED)
        self.s = Stand()
        self.addCleanup(self.s.destroy)
        self.s.start()

    def rate(self, rate):
        """Of copying: as slow as it can be told to, or as fast as it goes by itself."""
        self.s.apply(POLICY.format(f", seedRate: {rate}" if rate else ""))

    def make(self, extra="", volumes=("data", "wal")):
        self.s.apply(HEAD.format("shop") + "".join(f"  - {{name: {v}, size: 64Mi{extra}}}\n" for v in volumes))

    def device(self, name, volume):
        return next(v["device"] for v in self.s.status(name)["volumes"] if v["name"] == volume)

    def fails(self, code, words, call, *arguments):
        with self.assertRaises(ApiError) as caught:
            call(*arguments)
        self.assertEqual(caught.exception.code, code, caught.exception.message)
        for word in words:
            self.assertIn(word, caught.exception.message)

    def clone(self, name="copy", point="tag:then", **more):
        return self.s.operate("/v1/applications/shop/clone", {"name": name, "point": point, "at_once": True, **more})

    def pins(self):
        return [n for n in os.listdir(f"{self.s.state}/apps/shop/journal/pins") if n.startswith("copy-")]

    def maps(self, name="copy"):
        return [n for n in os.listdir(f"{self.s.state}/apps/{name}/backing") if n.endswith(".unfilled")]

    def copied(self, name="copy"):
        until(lambda: self.s.status(name)["filling"] is None, "it is copied")
        until(lambda: not os.path.exists(f"{self.s.state}/apps/{name}/filling.json"), "the source is let go")
        self.assertEqual(self.maps(name), [])

    def scribble(self, device, times):
        for _ in range(times):
            length = 512 * self.random.randint(1, 400)
            write(device, 512 * self.random.randrange(0, (64 * MIB - length) // 512), self.random.randbytes(length))

    def prepare(self):
        """Bytes of a moment in both volumes, tagged; then others over them."""
        self.make()
        for volume in ("data", "wal"):
            write(self.device("shop", volume), 3 * MIB, self.random.randbytes(44 * MIB))
            self.scribble(self.device("shop", volume), 20)
        self.s.call("POST", "/v1/applications/shop/tag", {"name": "then"})
        then = {v: content(self.device("shop", v)) for v in ("data", "wal")}
        for volume in ("data", "wal"):
            write(self.device("shop", volume), 4 * MIB + 512, self.random.randbytes(MIB))
            self.scribble(self.device("shop", volume), 5)
        return then

    def test_used_at_once_and_copied_behind(self):
        self.rate("1Mi")
        then = self.prepare()
        result = self.clone(volumes={"data": "d2", "wal": "w2"})
        self.assertTrue(result["at_once"])
        for old, new in (("data", "d2"), ("wal", "w2")):
            self.assertEqual(content(self.device("copy", new)), then[old])
        status = self.s.status("copy")
        self.assertEqual(status["state"], "seeding")
        self.assertLess(status["filling"]["done_bytes"], status["filling"]["total_bytes"])
        self.assertEqual(len({p.split(".")[0] for p in self.pins()}), 1)
        # What it reads stays, and it stays whole.
        delete, copy = "/v1/applications/shop?purge=true", "/v1/applications/copy"
        self.fails("EBUSY", ["copied", "copy"], self.s.call, "DELETE", delete)
        self.fails("EBUSY", ["copied", "copy"], self.s.call, "POST", "/v1/applications/shop/detach", {})
        self.fails("EBUSY", ["copied", "shop"], self.s.call, "POST", copy + "/detach", {})
        self.fails("EBUSY", ["copied", "shop"], self.s.call, "DELETE", copy)
        self.fails("EBUSY", ["w2", "copied"], self.s.apply, HEAD.format("copy") + "  - {name: d2, size: 64Mi}\n")
        # The original goes on: a rewind, and writes over all of it.
        self.s.operate("/v1/applications/shop/rewind", {"to": "tag:then"})
        write(self.device("shop", "data"), 0, b"\x11" * (64 * MIB))
        write(self.device("copy", "d2"), 3 * MIB + 512, b"\x77" * 1000000)
        now = {"d2": then["data"][:3 * MIB + 512] + b"\x77" * 1000000 + then["data"][3 * MIB + 512 + 1000000:], "w2": then["wal"]}
        for volume, data in now.items():
            self.assertEqual(content(self.device("copy", volume)), data)
        self.rate(None)
        self.copied()
        self.assertEqual(self.pins(), [])
        self.s.call("DELETE", delete)
        for volume, data in now.items():
            self.assertEqual(content(self.device("copy", volume)), data)
        # Its history is whole: from the first point on.
        until(lambda: self.s.status("copy")["state"] == "protected", "it is seeded")
        self.s.operate("/v1/applications/copy/rewind", {"to": "latest"})
        for volume, data in now.items():
            self.assertEqual(content(self.device("copy", volume)), data)

    def kill_engine(self, name):
        pid = self.s.status(name)["engine_pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda: self.s.status(name)["engine_pid"] not in (None, pid), "its engine is back")

    def test_killed_again_and_again(self):
        """Engines of both and `up`, at random, while both are written; every read of the clone is what the model says."""
        print(f"TIDEMARK_SEED={SEED}")
        self.rate("1Mi")
        then = self.prepare()
        self.clone()
        model = {v: bytearray(then[v]) for v in then}
        for round_ in range(24):
            for _ in range(self.random.randint(1, 6)):
                volume = self.random.choice(("data", "wal"))
                length = 512 * self.random.randint(1, 500)
                at = 512 * self.random.randrange(0, (64 * MIB - length) // 512)
                data = self.random.randbytes(length)
                write(self.device("copy", volume), at, data)
                model[volume][at:at + length] = data
            self.scribble(self.device("shop", self.random.choice(("data", "wal"))), 2)
            what = self.random.choice(("copy", "shop", "both", "up", "none"))
            if what in ("copy", "both"):
                self.kill_engine("copy")
            if what in ("shop", "both"):
                self.kill_engine("shop")
            if what == "up":
                self.s.stop(signal.SIGKILL)
                self.s.start()
            for volume in model:
                self.assertTrue(content(self.device("copy", volume)) == model[volume], f"round {round_}, {what}: {volume} (seed {SEED})")
        self.assertTrue(self.pins())
        # Stopped in order, with engines and all; and gone on with.
        self.assertEqual(self.s.stop(), 0)
        self.s.start()
        for volume in model:
            self.assertTrue(content(self.device("copy", volume)) == model[volume], volume)
        self.rate(None)
        self.copied()
        self.assertEqual(self.pins(), [])
        for volume in model:
            self.assertTrue(content(self.device("copy", volume)) == model[volume], volume)

    def test_deleted_in_the_middle(self):
        self.rate("1Mi")
        self.prepare()
        self.clone()
        self.assertTrue(self.pins())
        self.s.call("DELETE", "/v1/applications/copy?purge=true")
        until(lambda: not self.pins(), "the pin is gone")
        self.assertFalse(os.path.exists(f"{self.s.state}/apps/copy"))
        self.s.call("DELETE", "/v1/applications/shop?purge=true")

    def test_interrupted_while_it_is_made(self):
        """`up` is killed once the point is pinned: nothing is left, not even the pin."""
        self.rate("1Mi")
        then = self.prepare()
        held, hook = self.s.path("held"), self.s.path("libexec")
        os.mkdir(hook)
        build = os.path.dirname(os.path.dirname(os.path.dirname(run("readlink", "-f", f"/proc/{self.s.up.pid}/exe").strip())))
        engine = os.path.join(build, "src", "engine", "tidemark-engine")
        with open(f"{hook}/tidemark-engine", "w", encoding="ascii") as f:
            f.write(f"#!/bin/sh\ncase \"$1:$3\" in copy:*/copy.json) if [ ! -e {held} ]; then echo $$ >{held}.new; mv {held}.new {held}; "
                    f"exec sleep 600; fi;; esac\nexec {engine} \"$@\"\n")
        os.chmod(f"{hook}/tidemark-engine", 0o755)
        run("cp", os.path.join(build, "src", "export", "tidemark-holder"), hook)
        self.assertEqual(self.s.stop(), 0)
        self.s.start(environment={"TIDEMARK_LIBEXEC": hook})
        self.s.call("POST", "/v1/applications/shop/clone", {"name": "copy", "point": "tag:then", "at_once": True})
        until(lambda: os.path.exists(held), "the copy has begun")
        self.assertTrue(self.pins())
        self.s.stop(signal.SIGKILL)
        with open(held, encoding="ascii") as f:
            pid = int(f.read())
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), "the copying process has ended")
        self.s.start(environment={"TIDEMARK_LIBEXEC": hook})
        self.fails("ENOENT", ["copy"], self.s.status, "copy")
        until(lambda: not self.pins(), "the remainder is found")
        self.clone()
        self.assertEqual(content(self.device("copy", "data")), then["data"])

    def test_a_file_system(self):
        """ext4 of a moment, mounted and used at once; its engine killed under it; whole in the end."""
        self.rate("1Mi")
        where = self.s.path("mnt", "data")
        self.s.apply(HEAD.format("shop") + f"  - {{name: data, size: 192Mi, mountPath: {where}}}\n")
        files = {f"f{i}": self.random.randbytes(self.random.randint(MIB, 3 * MIB)) for i in range(24)}
        for name, data in files.items():
            with open(os.path.join(where, name), "wb") as f:
                f.write(data)
        os.sync()
        self.s.call("POST", "/v1/applications/shop/tag", {"name": "then"})
        for name in files:
            os.unlink(os.path.join(where, name))
        with open(os.path.join(where, "later"), "wb") as f:
            f.write(b"later" * MIB)
        os.sync()
        self.clone()
        mount = self.s.path("copied")
        os.mkdir(mount)
        run("mount", self.device("copy", "data"), mount)
        self.addCleanup(lambda: subprocess.run(["umount", mount], check=False, stderr=subprocess.DEVNULL))
        self.assertEqual(set(os.listdir(mount)) - {"lost+found"}, set(files))
        for i, name in enumerate(files):
            if i == len(files) // 2:
                self.kill_engine("copy")
            with open(os.path.join(mount, name), "rb") as f:
                self.assertEqual(f.read(), files[name], name)
            with open(os.path.join(mount, name), "r+b") as f:
                f.write(b"mine")
            with open(os.path.join(mount, f"new{i}"), "wb") as f:
                f.write(files[name][::-1])
        run("sync", "-f", mount)
        self.assertIsNotNone(self.s.status("copy")["filling"])
        self.kill_engine("copy")
        self.rate(None)
        self.copied()
        run("umount", mount)
        run("e2fsck", "-f", "-n", self.device("copy", "data"))
        run("mount", self.device("copy", "data"), mount)
        for i, name in enumerate(files):
            with open(os.path.join(mount, name), "rb") as f:
                self.assertEqual(f.read(), (b"mine" + files[name][4:]) if len(files[name]) > 4 else b"mine", name)
            with open(os.path.join(mount, f"new{i}"), "rb") as f:
                self.assertEqual(f.read(), files[name][::-1], name)
        run("umount", mount)


if __name__ == "__main__":
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        print("needs root, /dev/fuse and loop devices")
        sys.exit(77)
    unittest.main(verbosity=2)
