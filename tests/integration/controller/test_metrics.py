#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The controller's metrics, against a real API server: what they name is what is there, and the text is what Prometheus takes."""
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import unittest
import urllib.request

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import test_controller as base
from test_controller import ControllerTest, claim, config_map, make_namespace
from apiserver import free_ports, until

TIDEMARK = os.path.abspath(os.environ.get("TIDEMARK", "build/src/cli/tidemark"))
SAMPLE = re.compile(r'([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (-?[0-9.e+-]+|NaN|\+Inf)')


class Controller(base.Controller):
    """The program as it is installed, with metrics."""

    def __init__(self, state, identity="one"):
        self.state, self.rings, self.port = state, set(), free_ports(1)
        self.log = open(f"{state}/{identity}.log", "a")
        self.child = subprocess.Popen([TIDEMARK, "controller", f"--csi-socket={state}/csi.sock", f"--state={state}/state", "--trust-requester",
                                       f"--kubeconfig={base.SERVER.kubeconfig}", f"--metrics=127.0.0.1:{self.port}"], stderr=self.log)

    def scrape(self):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=30) as answer:
                assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4"), answer.headers
                return answer.read().decode()
        except OSError:
            return ""


class Metrics(ControllerTest):
    def start(self, identity="one", state=None):
        base.SERVER.kubectl("-n", "tidemark-system", "delete", "lease", "tidemark-controller", "--ignore-not-found")
        self.controllers.append(Controller(self.state, identity))
        return self.controllers[-1]

    def test_they_name_what_is_there(self):
        base.SERVER.apply({"apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": "foreign"}, "provisioner": "foreign.example.com"})
        ns, bare = make_namespace("measured", **{"tidemark.io/policy": "gold"}), make_namespace("bare")
        base.SERVER.apply(claim("data", ns, "foreign"), claim("lost", bare), config_map("c", ns))
        controller = self.start()
        self.captured(ns)
        self.until_journaled(ns)  # makes Recoveries that are Planned
        wanted = (f'tidemark_unprotected_claim{{namespace="{ns}",claim="data",storageclass="foreign",reason="OtherDriver"}} 1',
                  f'tidemark_unprotected_claim{{namespace="{bare}",claim="lost",storageclass="",reason="NoApplication"}} 1',
                  "tidemark_controller_leader 1", f'tidemark_capture_failed{{namespace="{ns}",application="{ns}"}} 0',
                  f'tidemark_capture_pending_changes{{namespace="{ns}",application="{ns}"}} 0',
                  f'tidemark_application_condition{{namespace="{ns}",application="{ns}",condition="Protected",reason="VolumesNotCaptured"}} 0',
                  f'tidemark_application_condition{{namespace="{ns}",application="{ns}",condition="ObjectsCaptured",reason="Journaled"}} 1')
        until("all of it", lambda: (lambda t: all(line in t.splitlines() for line in wanted))(controller.scrape()))
        until("the plans", lambda: re.search(r'(?m)^tidemark_recoveries\{phase="Planned"\} [1-9]', controller.scrape()))
        self.promtool(controller.scrape())
        base.SERVER.kubectl("-n", bare, "delete", "pvc", "lost", "--wait=false")
        until("one less", lambda: (lambda t: t and 'claim="data"' in t and 'claim="lost"' not in t)(controller.scrape()))
        controller.child.send_signal(signal.SIGTERM)
        self.assertEqual(controller.child.wait(timeout=60), 0)
        controller.log.close()

    def promtool(self, text):
        """What `promtool check metrics` complains about."""
        helped, typed, seen, families, family = set(), {}, set(), [], None
        self.assertTrue(text.endswith("\n"))
        for line in text.splitlines():
            if line.startswith("# HELP "):
                name, words = line[7:].split(" ", 1)
                self.assertTrue(words.endswith("."), line)
                self.assertNotIn(name, helped, "help twice")
                helped.add(name)
            elif line.startswith("# TYPE "):
                name, kind = line[7:].split(" ")
                typed[name] = kind
                self.assertIn(kind, ("gauge", "counter"))
                self.assertEqual(name.endswith("_total"), kind == "counter", line)
            else:
                match = SAMPLE.fullmatch(line)
                self.assertTrue(match, line)
                name, labels, _ = match.groups()
                self.assertRegex(name, r"^tidemark_[a-z0-9_]+[a-z0-9]$")
                self.assertIn(name, helped, "no help")
                self.assertIn(name, typed, "no type")
                self.assertNotIn((name, labels), seen, "the same sample twice")
                seen.add((name, labels))
                if name != family:
                    self.assertNotIn(name, families, "not in one piece")
                    families.append(name)
                    family = name
                for word in ("milliseconds", "_ms", "kilobytes", "_gauge", "_counter", "_minutes", "_hours"):
                    self.assertNotIn(word, name, "base units, and no types in names")
                for label, _ in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels or ""):
                    self.assertRegex(label, r"^[a-z][a-z0-9_]*$")


if __name__ == "__main__":
    base.main("__main__")
