#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""An application with an encrypted journal: nothing readable in it (control: in a plain one there is), views, rewind, verify, a kill
of the engine, another key file, the wrong one and none. Needs root, /dev/fuse and loop devices."""
import os
import re
import signal
import stat
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import ApiError, Stand, TIDEMARK, until  # noqa: E402

WORDS = [b"recognisable content", b"secret-tag", b"secret-manifest", b"very-secret"]


class Encryption(unittest.TestCase):
    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)

    def tidemark(self, *arguments, status=0):
        done = subprocess.run([TIDEMARK, "--state", self.s.state, *arguments], capture_output=True, text=True, check=False)
        self.assertEqual(done.returncode, status, done.stdout + done.stderr)
        return done.stdout + done.stderr

    def found(self, name="shop"):
        """Which words stand in any file of the journal."""
        found = set()
        for directory, _, names in os.walk(self.s.path("s", "apps", name, "journal")):
            for file in names:
                with open(os.path.join(directory, file), "rb") as f:
                    data = f.read()
                found |= {word for word in WORDS if word in data}
        return found

    def use(self, name):
        s = self.s
        s.write(f"mnt/{name}/data/file", "recognisable content\n" * 1000)
        os.sync()
        s.call("POST", f"/v1/applications/{name}/tag", {"name": "secret-tag", "labels": {"k": "very-secret"}})
        s.write(f"mnt/{name}/data/file", "something else\n" * 1000)
        os.sync()
        view = s.operate(f"/v1/applications/{name}/open", {"point": "tag:secret-tag", "mount": s.path("view-" + name)})["view"]
        with open(os.path.join(view["volumes"][0]["mount"], "file"), encoding="utf-8") as f:
            self.assertEqual(f.read(), "recognisable content\n" * 1000)
        s.call("DELETE", f"/v1/views/{view['id']}")
        s.operate(f"/v1/applications/{name}/rewind", {"to": "tag:secret-tag"})
        self.assertEqual(s.read(f"mnt/{name}/data/file"), "recognisable content\n" * 1000)
        self.assertEqual(s.operate(f"/v1/applications/{name}/verify", {})["damages"], 0)

    def test_all(self):
        s = self.s.start()
        old, new = s.path("old.key"), s.path("new.key")
        said = self.tidemark("key", "generate", old)
        old_id = re.search(r"key ([0-9a-f]{16})", said).group(1)
        self.assertEqual(stat.S_IMODE(os.stat(old).st_mode), 0o600)
        self.assertIn("never written over", self.tidemark("key", "generate", old, status=4))
        encryption = "  journal: {encryption: {keyFile: ./old.key}}\n  manifests: ./manifests\n"
        s.write("manifests/secret-manifest.yaml", "a: very-secret\n")

        with self.assertRaises(ApiError) as caught:
            s.apply(s.yaml(volumes=("data",), extra=encryption.replace("old", "none")))
        self.assertIn("spec.journal.encryption.keyFile", caught.exception.message)
        self.assertFalse(os.path.exists(s.path("s/apps/shop")))
        s.apply(s.yaml(volumes=("data",), extra=encryption))
        s.apply(s.yaml(name="plain", volumes=("data",)))
        self.use("shop")
        self.use("plain")
        self.assertEqual(self.found(), set())
        self.assertTrue({WORDS[0], WORDS[1]} <= self.found("plain"))
        self.assertEqual(s.status()["encryption"], {"key_file": old, "key_id": old_id})
        self.assertIsNone(s.status("plain")["encryption"])
        self.assertIn(f"encrypted with key {old_id}", self.tidemark("status", "shop"))
        with self.assertRaises(ApiError) as caught:
            s.apply(s.yaml(volumes=("data",), extra="  manifests: ./manifests\n"))
        self.assertIn("tidemark key rotate shop", caught.exception.message)

        os.kill(s.status()["engine_pid"], signal.SIGKILL)
        until(lambda: s.status()["state"] == "protected", "the engine is back")

        self.tidemark("key", "generate", new)
        said = self.tidemark("key", "rotate", "shop", new)
        self.assertIn("does not any more", said)
        self.tidemark("key", "rotate", "plain", new, status=1)
        with open(old, encoding="utf-8") as f:
            content = f.read()
        os.unlink(old)
        os.kill(s.status()["engine_pid"], signal.SIGKILL)  # it starts again with the new one
        until(lambda: s.status()["state"] == "protected", "the engine is back with the new key")
        self.assertEqual(s.stop(), 0)
        s.start()
        self.assertEqual(s.status()["encryption"]["key_file"], new)
        self.assertNotEqual(s.status()["encryption"]["key_id"], old_id)
        self.assertEqual(s.read("mnt/shop/data/file"), "recognisable content\n" * 1000)
        self.assertEqual(s.stop(), 0)

        with open(new, encoding="utf-8") as f:
            right = f.read()
        with open(new, "w", encoding="utf-8") as f:
            f.write(content)  # the old key
        s.start()
        self.assertEqual(s.status()["state"], "failed")
        self.assertIn(old_id, s.status()["message"])
        with open(new, "w", encoding="utf-8") as f:
            f.write(right)
        s.apply(s.yaml(volumes=("data",), extra=encryption.replace("old", "new")))
        self.assertEqual(s.status()["state"], "protected")
        for file in (new, s.log, s.path("s/apps/shop/engine.json"), s.path("s/apps/shop/application.yaml")):
            with open(file, encoding="utf-8", errors="replace") as f:
                self.assertEqual(right.split("tidemark-key-1:")[1].strip() in f.read(), file == new)


if __name__ == "__main__":
    if os.geteuid() or not os.path.exists("/dev/fuse"):
        print("skipped: needs root and /dev/fuse")
        sys.exit(77)
    unittest.main(verbosity=2)
