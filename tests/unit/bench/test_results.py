#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""bench/run.py: a run of some parts leaves the results of the others as they were; measuring itself is not done here."""
import copy
import json
import os
import sys
import tempfile
import types
import unittest

sys.dont_write_bytecode = True
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../../bench"))
import endurance  # noqa: E402
import run  # noqa: E402


def sample(number):
    return {"iops": number, "mib_s": 1.0, "ios": 10, "p50_us": 1.0, "p99_us": 2.0, "cpu_us_per_io": 1.0, "round": 1}


class Results(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.results = os.path.join(self.directory.name, "results.json")

    def bench(self, *only):
        o = types.SimpleNamespace(results=self.results, document=os.path.join(self.directory.name, "page.md"), only=list(only), asked=list(only),
                                  jobs="nbd" in only or "fuse" in only, rounds=3, runtime=1.0, size="1g", size_bytes=1 << 30, quick=False, open_writes=[10])
        b = run.Bench(o)
        b.dir = self.directory.name
        b.take_over()
        return b

    def write(self, b):
        stdout, sys.stdout = sys.stdout, open(os.devnull, "w")
        try:
            run.write_results(b, 0, False)
        finally:
            sys.stdout.close()
            sys.stdout = stdout
        with open(self.results) as f:
            return json.load(f)

    def first(self):
        """Both exports, and a part with a section of its own."""
        b = self.bench("nbd", "fuse", "flush", "recovery")
        for part in ("nbd", "fuse"):
            for candidate in ("tidemark-write", "qemu" if part == "nbd" else "loop-file"):
                for job in ("write4k_qd1", "fsync4k_qd1"):
                    b.add(part, candidate, job, sample(100), 0)
        b.recovering = {"fill": {"journal_bytes": 10 << 30, "segments": 160}, "kills": [{"pause_s": 0.2, "usual_s": 0.001}], "cases": []}
        b.commands["old"] = "an old command"
        b.failures = [{"part": "fuse", "what": "fuse/x", "why": "broke"}, {"part": "nbd", "what": "nbd/x", "why": "broke"}]
        return self.write(b)

    def test_the_other_parts_stay(self):
        before = self.first()
        b = self.bench("compress")
        b.compressing = [{"content": "random", "encrypted": False, "plain_bytes": 1 << 30, "cold_bytes": 0, "cold_plain_bytes": 0, "fill_cpu_s": 1.0,
                          "compress_cpu_s": 1.0, "compress_s": 1.0, "before": {"p50_us": 1.0, "p99_us": 2.0}, "after": {"p50_us": 1.0, "p99_us": 2.0}}]
        after = self.write(b)
        self.assertEqual(after["samples"], before["samples"])
        self.assertEqual(after["recovering"], before["recovering"])
        self.assertEqual(after["targets"], before["targets"])
        self.assertEqual(after["failures"], before["failures"])
        self.assertIn("old", after["commands"])
        self.assertEqual(list(after["measured"]), ["nbd", "fuse", "flush", "recovery", "compress"])
        with open(b.o.document) as f:
            page = f.read()
        for text in ("## NBD", "## Loop device", "## Recovery", "## Compression", "an old command"):
            self.assertIn(text, page)

    def test_what_is_measured_again_is_replaced(self):
        before = self.first()
        b = self.bench("nbd")  # without flush: the jobs with fdatasync stay
        self.assertNotIn("write4k_qd1", b.samples["nbd"]["qemu"])
        b.add("nbd", "qemu", "write4k_qd1", sample(7), 0)
        after = self.write(b)
        self.assertEqual([s["iops"] for s in after["samples"]["nbd"]["qemu"]["write4k_qd1"]], [7])
        self.assertEqual(after["samples"]["nbd"]["qemu"]["fsync4k_qd1"], before["samples"]["nbd"]["qemu"]["fsync4k_qd1"])
        self.assertEqual(after["samples"]["fuse"], before["samples"]["fuse"])
        self.assertEqual([f["part"] for f in after["failures"]], ["fuse"])

    def test_results_without_a_table_of_parts(self):
        before = self.first()
        old = copy.deepcopy(before)
        for name in ("measured", "own_notes", "recovering", "scaling", "compressing"):
            del old[name]
        old["arguments"] = "--rounds 3 --only nbd,fuse,flush,cluster"
        with open(self.results, "w") as f:
            json.dump(old, f)
        b = self.bench("compress")
        self.assertEqual(list(b.measured), ["nbd", "fuse", "flush"])
        self.assertEqual(b.samples, before["samples"])

    def test_no_results_yet(self):
        self.assertEqual(self.bench("compress").measured, {})

    def test_stretches_that_were_thinned(self):
        after = endurance.THIN_AFTER
        steps = [(110, 100), (125.5, 120), (130, 120), (148, 140)]
        self.assertEqual(endurance.stretches(steps, 100), [{"seconds": 20, "took": 5.5 - after}, {"seconds": 20, "took": 8 - after}])


if __name__ == "__main__":
    unittest.main()
