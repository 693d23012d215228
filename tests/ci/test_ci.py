#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""scripts/ci with parts that do nothing but end: what it sums up, what it leaves out, what it makes fail, and that nothing of it stays.

Invariants: C1 a test that fails makes the run fail, whatever else happens. C2 what the machine cannot run, or the time cannot hold, is named
with the reason, and is no failure. C3 the run ends in its time. C4 no process of it stays."""
import os
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import types
import unittest

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "../.."))
PASSES = 'echo "3 passed, 0 failed"'
BURNS = """python3 -c "import time\nwhile time.process_time() < 1: pass" """
FILES = {
    "scripts/check": PASSES,
    "scripts/check-cluster": PASSES,
    "demo/demo.sh": "echo demo",
    "packaging/image/build.sh": "echo image",
    "tests/cluster/cluster.sh": '[ "$1" = status ] && exit 3; exit 0',
}
# The machine this test runs on need not have what a cluster needs; $USUAL says what the parts usually take; and the file `jump` says by how many
# seconds the clock is ahead.
CHANGES = {
    "END_CLUSTER = ": "USUAL_CPU.update(eval(os.environ.get('USUAL', '{}')))\nEND_CLUSTER = ",
    "def why_no_cluster():": "def why_no_cluster():\n    return os.environ.get('WHY', '')",
    "return time.monotonic() - self.started": "return time.monotonic() - self.started + (float(open('jump').read()) if os.path.exists('jump') else 0)",
}


class Ci(unittest.TestCase):
    def setUp(self):
        self.root = tempfile.mkdtemp(prefix="tidemark-ci-test-")
        self.addCleanup(shutil.rmtree, self.root)
        for name in ("scripts/ci", "scripts/in-background"):
            with open(os.path.join(ROOT, name)) as f:
                text = f.read()
            for what, instead in CHANGES.items() if name == "scripts/ci" else ():
                self.assertEqual(text.count(what), 1, what)
                text = text.replace(what, instead)
            self.put(name, text)
        for name, text in FILES.items():
            self.put(name, f"#!/bin/sh\n{text}\n")

    def put(self, name, text):
        path = os.path.join(self.root, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w") as f:
            f.write(text)
        os.chmod(path, 0o755)

    def script(self, name, text):
        self.put(name, f"#!/bin/sh\n{text}\n")

    @staticmethod
    def jump(minutes, before=""):
        """Of a script: so late is it once that runs."""
        return f"{before}echo {minutes * 60} >jump.new; mv jump.new jump; "

    def is_gone(self):
        with open(f"{self.root}/pid") as f:
            path = f"/proc/{f.read().strip()}/stat"
        while os.path.exists(path):  # it has ended: whoever inherited it has yet to take note
            try:
                with open(path) as f:
                    self.assertIn(f.read().rsplit(")", 1)[1].split()[0], "ZX")
            except (FileNotFoundError, ProcessLookupError):
                pass
            time.sleep(0.1)

    def start(self, **environment):
        # Not of the run that this test may be part of.
        outside = {name: value for name, value in os.environ.items() if not name.startswith("CI_")}
        return subprocess.Popen([sys.executable, "-B", "scripts/ci"], cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env={**outside, "TIDEMARK_CLUSTER_CACHE": self.root, **environment})

    def run_ci(self, **environment):
        child = self.start(**environment)
        out = child.communicate(timeout=600)[0]
        return child.returncode, out, out.splitlines()[-1]

    def test_all_parts_are_summed_up(self):
        code, out, last = self.run_ci()
        self.assertEqual((code, last), (0, "25 passed, 0 failed"), out)  # build, live, models, clang, asan, tsan, two of the cluster; the demo
        self.assertNotIn("left out", out)

    def test_c1_a_failure_of_any_part_is_one(self):
        for name in ("scripts/check", "scripts/check-cluster", "demo/demo.sh"):
            self.script(name, 'echo "1 passed, 2 failed"; exit 1')
            code, out, last = self.run_ci()
            self.assertEqual(code, 1, out)
            self.assertRegex(last, r"passed, [1-9]\d* failed", out)
            self.script(name, FILES[name])

    def test_c1_a_part_that_ends_badly_without_a_sum_is_a_failure(self):
        self.script("scripts/check-cluster", "exit 3")
        code, _, last = self.run_ci()
        self.assertEqual((code, last), (1, "19 passed, 2 failed"))

    def test_c1_a_part_whose_sum_and_status_disagree_is_a_failure(self):
        self.script("scripts/check", 'echo "3 passed, 0 failed"; exit 1')
        code, _, last = self.run_ci()
        self.assertEqual((code, last), (1, "25 passed, 6 failed"))
        self.script("scripts/check", 'echo "3 passed, 1 failed"')
        self.assertEqual(self.run_ci()[0], 1)

    def test_c2_without_a_cluster_the_rest_is_tested(self):
        code, out, last = self.run_ci(WHY="there is none")
        self.assertEqual((code, last), (0, "19 passed, 0 failed"), out)
        self.assertIn("left out: cluster, because there is none\n", out)
        self.assertIn("left out: cluster-suite, because there is none\n", out)

    def test_c2_programs_that_cannot_be_built_are_said(self):
        self.script("tests/cluster/cluster.sh", '[ "$1" = status ] && exit 3; echo "[cluster] ERROR: building etcd failed: no proxy" >&2; exit 1')
        code, out, last = self.run_ci()
        self.assertEqual((code, last), (0, "19 passed, 0 failed"), out)
        self.assertIn("left out: cluster, because its programs could not be made here: building etcd failed: no proxy\n", out)

    def test_c1_programs_of_ours_that_do_not_compile_are_a_failure(self):
        self.put("log/csi-shared.log", "csi-shared/main.go:7:2: undefined: x\n")
        self.script("tests/cluster/cluster.sh", '[ "$1" = status ] && exit 3; echo "[cluster] ERROR: building csi-shared failed: see x" >&2; exit 1')
        self.assertEqual(self.run_ci()[0], 1)

    def test_c1_what_failed_is_said_once_more_at_the_end(self):
        self.script("scripts/check-cluster", 'echo "== y"; echo "NOT OK: no row 7"; echo "y: FAILED with status 1 after 2 s"; seq 1000; echo "3 passed, 1 failed"; exit 1')
        out = self.run_ci()[1]
        end = out[out.index("time line"):]
        self.assertIn("what failed in cluster:\n    == y\n    NOT OK: no row 7\n    y: FAILED with status 1 after 2 s\n", end)
        self.assertNotIn("    1000\n", end)

    def test_c2_a_machine_that_is_too_slow_for_the_hour_says_so(self):
        self.script("scripts/check", f'[ "$1" != live ] || {BURNS}; ' + PASSES)
        code, out, last = self.run_ci(USUAL="{'build': 0.01, 'live': 0.01, 'cluster': 100}")
        self.assertEqual((code, last), (0, "19 passed, 0 failed"), out)
        self.assertRegex(out, "left out: cluster, because the rest of the tests needs about")

    def test_c2_what_ran_beside_is_not_counted_as_still_to_do(self):
        ci = types.SimpleNamespace(**runpy.run_path(os.path.join(ROOT, "scripts/ci")))
        part = ci.Part("models", ["sh", "-c", f"({BURNS}); echo; read end"])
        self.assertEqual(ci.Run.still_takes(part, 50), 50)
        with subprocess.Popen(part.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as part.process:
            part.process.stdout.readline()  # the child that took it has ended
            self.assertAlmostEqual(ci.Run.still_takes(part, 50), 49, delta=0.5)
            self.assertEqual(ci.Run.still_takes(part, 0.5), 0)
            part.process.stdin.close()
        part.status = "passed"
        self.assertEqual(ci.Run.still_takes(part, 50), 0)

    def test_c2_what_a_part_left_out_is_said_once_more_at_the_end(self):
        self.script("scripts/check-cluster", 'echo "left out: x, because y"; ' + PASSES)
        code, out, _ = self.run_ci()
        self.assertEqual(code, 0)
        self.assertEqual(out[out.index("time line"):].count("left out: x, because y\n"), 1, out)

    def test_c2_c3_a_cluster_test_that_does_not_end_in_time_is_ended(self):
        self.script("scripts/check-cluster", self.jump(57.5) + "sleep 1000")
        code, out, last = self.run_ci()
        self.assertEqual((code, last), (0, "19 passed, 0 failed"), out)
        self.assertIn("left out: cluster, because the time was over\n", out)

    def test_c1_what_failed_before_the_time_was_over_has_failed(self):
        self.script("scripts/check-cluster", self.jump(57.5, '[ "$1" = e2e ] || exec sleep 1000; echo "x: FAILED with status 1 after 2 s"; ') + "sleep 1000")
        code, out, last = self.run_ci()
        self.assertEqual((code, last), (1, "19 passed, 1 failed"), out)

    def test_c1_c3_a_check_that_does_not_end_in_time_is_a_failure(self):
        self.script("demo/demo.sh", self.jump(84.5) + "sleep 1000")
        code, out, last = self.run_ci()
        self.assertEqual(code, 1)
        self.assertRegex(last, r"passed, [1-9]\d* failed")
        self.assertIn("ENDED: the 84 minutes are over", out)

    def test_c1_a_check_that_takes_longer_than_the_hour_is_waited_for_and_that_is_said(self):
        self.script("demo/demo.sh", self.jump(70) + PASSES)
        code, out, _ = self.run_ci()
        self.assertEqual(code, 0, out)
        self.assertIn("\nthis took longer than the 60 minutes that it should\n", out)

    def test_c4_what_a_part_leaves_running_is_ended_and_said(self):
        self.script("scripts/check", f"setsid sleep 4321 >/dev/null 2>&1 & echo $! >{self.root}/pid; " + PASSES)
        code, out, _ = self.run_ci()
        self.assertEqual(code, 0)
        self.assertIn("left behind, and ended now:", out)
        self.is_gone()

    def test_c4_a_signal_ends_all_of_it(self):
        self.script("demo/demo.sh", f"echo $$ >{self.root}/pid; exec sleep 1000")
        child = self.start()
        while not os.path.exists(f"{self.root}/pid") or os.path.getsize(f"{self.root}/pid") == 0:
            time.sleep(0.05)
        child.send_signal(signal.SIGTERM)
        out = child.communicate(timeout=300)[0]
        self.assertEqual(child.returncode, 1)
        self.assertIn("ENDED: a signal came (SIGTERM)", out)
        self.is_gone()


if __name__ == "__main__":
    unittest.main()
