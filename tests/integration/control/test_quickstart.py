#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The README's quick start, command by command as it stands there; only the places and sizes are others. Needs root, /dev/fuse and loop
devices."""
import os
import re
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import TIDEMARK, Stand  # noqa: E402

README = os.path.join(os.path.dirname(__file__), "..", "..", "..", "README.md")


def blocks():
    """[(language, text)] of the section."""
    with open(README, encoding="utf-8") as f:
        section = f.read().split("\n## Quick start\n")[1].split("\n## ")[0]
    return re.findall(r"(?ms)^```(\w*)\n(.*?)^```", section)


class QuickStart(unittest.TestCase):
    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)
        os.mkdir(self.s.path("bin"))
        os.symlink(TIDEMARK, self.s.path("bin/tidemark"))
        # The program finds its engine beside its real path.
        self.environment = dict(os.environ, PATH=self.s.path("bin") + ":" + os.environ["PATH"])

    def small(self, text):
        return text.replace("/srv/shop", self.s.path("srv/shop")).replace("8Gi", "64Mi").replace("2Gi", "32Mi")

    def test_each_command(self):
        s = self.s.start()
        (_, first), (_, commands), (_, more) = blocks()
        s.write("shop.yaml", self.small(first))
        lines = commands.splitlines()
        self.assertGreaterEqual(len(lines), 6)
        for line in lines:
            if line.startswith("tidemark rewind") and "--dry-run" not in line:
                s.write("srv/shop/data/after", "the tag")
            command = line.split("#")[0].strip()
            done = subprocess.run(["sh", "-c", command + f" --state {s.state}"], capture_output=True, text=True, cwd=s.root, env=self.environment,
                                  timeout=180, check=False)
            self.assertEqual(done.returncode, 0, (line, done.stderr))
            if command.startswith("tidemark rewind") and "--dry-run" not in command:
                self.assertFalse(os.path.exists(s.path("srv/shop/data/after")))
        self.assertEqual(s.read("srv/shop/data/after"), "the tag", "undo")
        s.write("more.yaml", self.small(first + more))
        done = subprocess.run(["sh", "-c", f"tidemark apply -f more.yaml --dry-run --state {s.state}"], capture_output=True, text=True, cwd=s.root,
                              env=self.environment, timeout=180, check=False)
        self.assertEqual((done.returncode, done.stdout), (0, "ProtectedApplication/shop configured (dry run)\n"), done.stderr)


if __name__ == "__main__":
    if os.geteuid() or not os.path.exists("/dev/fuse"):
        print("skipped: needs root and /dev/fuse")
        sys.exit(77)
    unittest.main(verbosity=2)
