#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A clone: a new application with the content of another at a point. All of it or nothing, whoever is killed, and the original as it
was. Needs root, /dev/fuse and loop devices (skipped without)."""
import os
import shutil
import signal
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import ApiError, Stand, alive, content, until, write  # noqa: E402

MIB = 1 << 20
HEAD = "apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {{name: {0}}}\nspec:\n  volumes:\n"


class Clone(unittest.TestCase):
    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)
        self.s.start()
        self.s.apply(HEAD.format("shop") + "".join(f"  - {{name: {v}, size: 64Mi}}\n" for v in ("data", "wal")))

    def device(self, name, volume):
        return next(v["device"] for v in self.s.status(name)["volumes"] if v["name"] == volume)

    def fails(self, code, words, call, *arguments):
        with self.assertRaises(ApiError) as caught:
            call(*arguments)
        self.assertEqual(caught.exception.code, code, caught.exception.message)
        for word in words:
            self.assertIn(word, caught.exception.message)

    def tag(self, name):
        return self.s.call("POST", "/v1/applications/shop/tag", {"name": name})

    def clone(self, name="copy", point="tag:then", **more):
        return self.s.operate("/v1/applications/shop/clone", {"name": name, "point": point, **more})

    def seeded(self, name):
        until(lambda: self.s.status(name)["state"] == "protected", "it is seeded")

    def prepare(self, mebibytes=4):
        """Bytes of a moment in both volumes, tagged; then others over them."""
        for i, volume in enumerate(("data", "wal")):
            write(self.device("shop", volume), 3 * MIB, bytes([i + 1]) * MIB * mebibytes)
            write(self.device("shop", volume), 60 * MIB, bytes([i + 11]) * 4096)
        self.tag("then")
        then = {v: content(self.device("shop", v)) for v in ("data", "wal")}
        for volume in ("data", "wal"):
            write(self.device("shop", volume), 3 * MIB + 4096, b"\xee" * MIB)
            write(self.device("shop", volume), 20 * MIB, b"\xdd" * MIB)
        return then

    def test_content_of_a_point_under_other_names(self):
        then = self.prepare()
        now = {v: content(self.device("shop", v)) for v in then}
        plan = self.s.call("POST", "/v1/applications/shop/clone", {
            "name": "copy", "point": "tag:then", "volumes": {"data": "d2", "wal": "w2"}, "dry_run": True})["plan"]
        self.assertEqual({v["from"]: v["name"] for v in plan["volumes"]}, {"data": "d2", "wal": "w2"})
        self.assertLess(plan["bytes"], 16 * MIB)  # not the volumes' size
        self.assertGreaterEqual(plan["bytes"], 8 * MIB)
        self.fails("ENOENT", ["copy"], self.s.status, "copy")
        result = self.clone(volumes={"data": "d2", "wal": "w2"})
        self.assertEqual(result["bytes"], plan["bytes"])
        for old, new in (("data", "d2"), ("wal", "w2")):
            self.assertEqual(content(self.device("copy", new)), then[old])
            self.assertLess(os.stat(f"{self.s.state}/apps/copy/backing/{new}.img").st_blocks * 512, 16 * MIB)
            self.assertEqual(content(self.device("shop", old)), now[old])
        self.assertEqual([v["from"] for v in self.s.status("copy")["volumes"]],
                         [f"shop/data@lsn:{result['lsn']}", f"shop/wal@lsn:{result['lsn']}"])
        # They go on apart, also after the original is gone.
        write(self.device("copy", "d2"), 0, b"\x77" * 4096)
        self.assertEqual(content(self.device("shop", "data"), 0, 4096), bytes(4096))
        self.s.call("DELETE", "/v1/applications/shop?purge=true")
        self.assertEqual(content(self.device("copy", "d2")), b"\x77" * 4096 + then["data"][4096:])

    def test_history_of_a_clone_begins_with_what_it_was_given(self):
        then = self.prepare()
        self.clone()
        self.seeded("copy")
        self.s.call("POST", "/v1/applications/copy/tag", {"name": "first"})
        write(self.device("copy", "data"), 3 * MIB, b"\x55" * MIB)
        self.assertNotEqual(content(self.device("copy", "data")), then["data"])
        self.s.operate("/v1/applications/copy/rewind", {"to": "tag:first"})
        self.assertEqual(content(self.device("copy", "data")), then["data"])
        # Applied again, grown, started again by another `up`: it stays what it is.
        text = HEAD.format("copy") + "  - {name: data, size: 96Mi}\n  - {name: wal, size: 64Mi}\n"
        self.assertEqual(self.s.apply(text)[0]["result"], "configured")
        self.assertEqual(self.s.stop(), 0)
        self.s.start()
        self.assertEqual(content(self.device("copy", "data")), then["data"] + bytes(32 * MIB))
        self.assertEqual(self.s.call("DELETE", "/v1/applications/copy?purge=true")["volumes"][0]["backing"], None)
        self.assertFalse(os.path.exists(f"{self.s.state}/apps/copy"))

    def test_deleted_and_applied_again(self):
        """With its data kept, by a description that does not say that it was a clone: it goes on with its history."""
        then = self.prepare()
        self.clone()
        self.seeded("copy")
        self.s.call("POST", "/v1/applications/copy/tag", {"name": "first"})
        write(self.device("copy", "data"), 3 * MIB, b"\x55" * MIB)
        now = content(self.device("copy", "data"))
        self.s.call("DELETE", "/v1/applications/copy")
        self.s.apply(HEAD.format("copy") + "".join(f"  - {{name: {v}, size: 64Mi}}\n" for v in then))
        self.assertTrue(all(v["from"].startswith("shop/") for v in self.s.status("copy")["volumes"]))
        self.assertEqual(content(self.device("copy", "data")), now)
        self.s.operate("/v1/applications/copy/rewind", {"to": "tag:first"})
        for volume, data in then.items():
            self.assertEqual(content(self.device("copy", volume)), data)

    def test_refused(self):
        self.prepare(1)
        for body, code, words in (
                ({"name": "shop", "point": "latest"}, "EEXIST", ["shop"]),
                ({"name": "A", "point": "latest"}, "EINVAL", ["name"]),
                ({"name": "copy"}, "EINVAL", ["point"]),
                ({"name": "copy", "point": "latest", "volumes": {}}, "EINVAL", ["volumes"])):
            self.fails(code, words, self.s.call, "POST", "/v1/applications/shop/clone", body)
        self.fails("ENOENT", ["none"], self.s.call, "POST", "/v1/applications/none/clone", {"name": "copy", "point": "latest"})
        for more, code, words in (({"point": "tag:none"}, "ENOENT", ["none"]), ({"volumes": {"nix": "a"}}, "ENOENT", ["nix"])):
            with self.assertRaises(ApiError) as caught:
                self.clone(**more)
            self.assertEqual(caught.exception.code, code, caught.exception.message)
            self.assertIn(words[0], caught.exception.message)
            self.assertFalse(os.path.exists(f"{self.s.state}/apps/copy"))
        self.fails("EINVAL", ["from"], self.s.apply, HEAD.format("new") + "  - {name: data, size: 64Mi, from: shop/data@lsn:1}\n")
        self.clone()
        with self.assertRaises(ApiError) as caught:
            self.clone()
        self.assertEqual(caught.exception.code, "EEXIST")

    def test_interrupted_clone_leaves_nothing_and_is_made_again(self):
        """`up` is killed while the copy runs: a program in the engine's place holds it there."""
        then = self.prepare(1)
        held = self.s.path("held")
        released = []

        def release():
            if os.path.exists(held) and not released:
                released.append(True)
                with open(held, encoding="ascii") as f:
                    os.kill(int(f.read()), signal.SIGKILL)
        self.addCleanup(release)
        hook = self.s.path("libexec")
        os.mkdir(hook)
        build = os.path.dirname(os.path.dirname(os.path.dirname(subprocess.check_output(
            ["readlink", "-f", f"/proc/{self.s.up.pid}/exe"], text=True).strip())))
        engine = os.path.join(build, "src", "engine", "tidemark-engine")
        with open(f"{hook}/tidemark-engine", "w", encoding="ascii") as f:
            f.write(f"#!/bin/sh\ncase \"$1:$3\" in copy:*/copy.json) if [ ! -e {held} ]; then echo $$ >{held}.new; mv {held}.new {held}; "
                    f"exec sleep 600; fi;; esac\nexec {engine} \"$@\"\n")
        os.chmod(f"{hook}/tidemark-engine", 0o755)
        shutil.copy(os.path.join(build, "src", "export", "tidemark-holder"), hook)
        self.assertEqual(self.s.stop(), 0)
        self.s.start(environment={"TIDEMARK_LIBEXEC": hook})
        operation = self.s.call("POST", "/v1/applications/shop/clone", {"name": "copy", "point": "tag:then"})["operation"]
        until(lambda: os.path.exists(held), "the copy has begun")
        again = self.s.call("POST", "/v1/applications/shop/clone", {"name": "copy", "point": "tag:then"})["operation"]
        self.assertEqual(again["id"], operation["id"])
        self.assertEqual(self.s.status("copy")["state"], "starting")
        self.fails("EBUSY", ["cloned", "copy"], self.s.call, "DELETE", "/v1/applications/shop?purge=true")
        self.fails("EBUSY", ["clone"], self.s.call, "DELETE", "/v1/applications/copy?purge=true")
        # The original goes on: also a rewind.
        self.s.operate("/v1/applications/shop/rewind", {"to": "tag:then"})
        self.assertTrue(os.path.exists(f"{self.s.state}/apps/copy/clone.json"))
        self.s.stop(signal.SIGKILL)
        with open(held, encoding="ascii") as f:
            pid = int(f.read())
        release()
        until(lambda: not alive(pid), "the copying process has ended")
        self.s.start(environment={"TIDEMARK_LIBEXEC": hook})
        self.fails("ENOENT", ["copy"], self.s.status, "copy")
        self.assertFalse(os.path.exists(f"{self.s.state}/apps/copy"))
        self.clone()
        self.assertEqual(content(self.device("copy", "data")), then["data"])
        self.assertFalse(os.path.exists(f"{self.s.state}/apps/copy/clone.json"))


if __name__ == "__main__":
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse") or not os.path.exists("/dev/loop-control"):
        print("needs root, /dev/fuse and loop devices")
        sys.exit(77)
    unittest.main(verbosity=2)
