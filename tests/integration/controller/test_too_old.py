#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A cluster that is older than what is supported is refused at once, with the release that was found and the one that is needed."""
import os
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../kube"))
from test_mock import Server, status

BUILD = os.environ.get("TIDEMARK_BUILD", "build")
PROBE = f"{BUILD}/tests/integration/controller/controller_probe"
TIDEMARK = os.environ.get("TIDEMARK", f"{BUILD}/src/cli/tidemark")
NEEDED = "needs 1.28 or later"


def server(major, minor, text):
    def handler(method, path, headers, data):
        if path.startswith("/version"):
            return 200, {"major": major, "minor": minor, "gitVersion": text}, {}
        return 404, status(404, "NotFound", "the server could not find the requested resource"), {}
    return Server(handler).configure()


class TooOld(unittest.TestCase):
    def controller(self, s):
        with tempfile.TemporaryDirectory() as state:
            done = subprocess.run([PROBE, "run", state, "one"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60,
                                  env={**os.environ, "KUBECONFIG": s.kubeconfig})
        return done.returncode, done.stdout + done.stderr

    def plugin(self, s, *arguments):
        with tempfile.TemporaryDirectory() as directory:
            os.symlink(os.path.abspath(TIDEMARK), f"{directory}/kubectl-tidemark")
            done = subprocess.run([f"{directory}/kubectl-tidemark", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                  timeout=60, env={**os.environ, "KUBECONFIG": s.kubeconfig})
        return done.returncode, done.stdout + done.stderr

    def test_the_controller_ends_and_says_so(self):
        for major, minor, text in ("1", "20+", "v1.20.2-eks-1"), ("1", "27", "v1.27.16"):
            s = server(major, minor, text)
            code, said = self.controller(s)
            self.assertEqual(code, 1, said)
            self.assertIn(f"is Kubernetes {major}.{minor.rstrip('+')} ({text})", said)
            self.assertIn(NEEDED, said)
            self.assertFalse([r for r in s.requests if r[0] != "GET"], "nothing was changed")

    def test_the_plugin_says_so_where_something_lacks(self):
        code, said = self.plugin(server("1", "20", "v1.20.2"), "rewind", "shop/shop", "--to", "-5m", "--yes")
        self.assertNotEqual(code, 0)
        self.assertIn("Kubernetes 1.20 (v1.20.2)", said)
        self.assertIn(NEEDED, said)
        code, said = self.plugin(server("1", "28", "v1.28.15"), "rewind", "shop/shop", "--to", "-5m", "--yes")
        self.assertNotEqual(code, 0)
        self.assertNotIn(NEEDED, said)


if __name__ == "__main__":
    unittest.main(verbosity=2)
