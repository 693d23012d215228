#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A dry run of a policy says what it would do to the history that is there, and changes nothing. Needs root, /dev/fuse and loop
devices."""
import os
import subprocess
import sys
import unittest

sys.path.insert(0, os.path.dirname(__file__))
from stand import Stand, TIDEMARK, until  # noqa: E402

POLICY = "apiVersion: tidemark.io/v1alpha1\nkind: ProtectionPolicy\nmetadata: {{name: {0}}}\nspec: {{journal: {1}}}\n"


class Forecast(unittest.TestCase):
    def setUp(self):
        self.s = Stand()
        self.addCleanup(self.s.destroy)

    def test_policy(self):
        s = self.s.start()
        s.apply(POLICY.format("gold", "{quota: 1Gi, thinning: []}"))
        s.apply(s.yaml(volumes=("data",), size="256Mi").replace("spec:\n", "spec:\n  policyRef: {name: gold}\n"))
        s.apply(s.yaml(name="other", volumes=("data",)))
        with open(s.path("mnt/shop/data/f"), "wb") as f:
            for _ in range(3):  # six segments of 64 MiB
                f.seek(0)
                for _ in range(130):
                    f.write(os.urandom(1 << 20))
                    f.flush()
                    os.fdatasync(f.fileno())
        before = s.status()
        result = s.apply(POLICY.format("gold", "{quota: 256Mi, thinning: []}"), "&dry_run=true")[0]
        self.assertEqual([e["application"] for e in result["effects"]], ["shop"])
        effect = result["effects"][0]
        self.assertGreater(effect["dropped_bytes"], 60 << 20)
        self.assertGreater(effect["oldest_lsn_after"], effect["oldest_lsn"])
        self.assertGreater(effect["oldest_time_after"], effect["oldest_time"])
        self.assertEqual(effect["thinned"], [])
        after = s.status()
        self.assertEqual((after["oldest_lsn"], after["quota_bytes"]), (before["oldest_lsn"], before["quota_bytes"]))

        more = s.apply(POLICY.format("gold", "{quota: 2Gi, thinning: [{after: 60s, keep: 1s}]}"), "&dry_run=true")[0]["effects"][0]
        self.assertEqual((more["dropped_bytes"], more["oldest_lsn_after"]), (0, more["oldest_lsn"]))
        self.assertNotIn("effects", s.apply(POLICY.format("gold", "{quota: 1Gi, thinning: []}"), "&dry_run=true")[0])  # unchanged
        s.write("gold.yaml", POLICY.format("gold", "{quota: 256Mi, thinning: []}"))
        said = subprocess.run([TIDEMARK, "--state", s.state, "apply", "--dry-run", "-f", s.path("gold.yaml")], check=True,
                              capture_output=True, text=True).stdout
        self.assertIn("shop: the history begins at", said)
        self.assertIn("are freed", said)

        s.apply(POLICY.format("gold", "{quota: 256Mi, thinning: []}"))  # and so it comes
        after = until(lambda: (status := s.status())["journal_bytes"] <= 256 << 20 and status, "the oldest history to be dropped")
        self.assertEqual((after["oldest_lsn"], after["oldest_time"]), (effect["oldest_lsn_after"], effect["oldest_time_after"]))


if __name__ == "__main__":
    if os.geteuid() or not os.path.exists("/dev/fuse"):
        print("skipped: needs root and /dev/fuse")
        sys.exit(77)
    unittest.main(verbosity=2)
