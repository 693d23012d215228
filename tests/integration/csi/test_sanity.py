#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""csi-sanity (github.com/kubernetes-csi/csi-test, by Go module) against the three processes: everything passes, and what is
skipped is what the driver does not claim. CSI_SANITY, or one that the test cluster built, is used when it is there."""
import os
import re
import shutil
import subprocess
import sys

MODULE = "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity@v5.6.0"
CACHE = os.path.join(os.environ.get("XDG_CACHE_HOME", os.path.expanduser("~/.cache")), "tidemark")
# Suites and capabilities that the driver does not claim, as csi-sanity names them.
UNCLAIMED = re.compile(r"[Ss]napshot|GroupController|VolumeGroup|GetCapacity|Modify|ControllerGetVolume|ListVolumes not supported|"
                       r"[Cc]lon|MaxVolumesPerNode|attach limit|READONLY|incompatible|source volume|volume attribute class|"
                       r"[Hh]ealth|VOLUME_CONDITION|GET_VOLUME|[Mm]utable", re.S)


def find_sanity():
    for path in (os.environ.get("CSI_SANITY"), "/var/cache/tidemark-cluster/bin/csi-sanity", os.path.join(CACHE, "csi-sanity")):
        if path and os.access(path, os.X_OK):
            return path
    if not shutil.which("go"):
        return None
    os.makedirs(CACHE, exist_ok=True)
    result = subprocess.run(["go", "install", MODULE], env={**os.environ, "GOBIN": CACHE}, check=False, stderr=subprocess.PIPE)
    if result.returncode:
        print(result.stderr.decode(errors="replace")[-2000:])
        return None
    return os.path.join(CACHE, "csi-sanity")


def main():
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        print("needs root and /dev/fuse")
        return 77
    sanity = find_sanity()
    if not sanity:
        print("csi-sanity is not there and cannot be built (Go and its module proxy)")
        return 77
    from stand import MIB, Stand
    stand = Stand()
    try:
        stand.start()
        result = subprocess.run(
            [sanity, "-csi.endpoint", "unix://" + stand.path("node.sock"), "-csi.controllerendpoint",
             "unix://" + stand.path("controller.sock"), "-csi.mountdir", stand.path("mnt"), "-csi.stagingdir", stand.path("stage"),
             "-csi.testvolumesize", str(64 * MIB), "-csi.testvolumeexpandsize", str(128 * MIB), "-ginkgo.no-color", "-ginkgo.v"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=400)
        text = result.stdout.decode(errors="replace")
        summary = re.search(r"Ran (\d+) of (\d+) Specs.*\n.*?(\d+) Passed \| (\d+) Failed \| (\d+) Pending \| (\d+) Skipped", text)
        if result.returncode or not summary:
            print(text[-8000:], stand.log("node")[-4000:], sep="\n")
            return 1
        print(summary.group(0))
        if int(summary.group(3)) < 50:
            print("fewer than 50 specs ran")
            return 1
        return check_skipped(text)
    finally:
        stand.destroy()


def check_skipped(text):
    """Every spec that was skipped names something unclaimed."""
    bad = []
    for block in text.split("------------------------------"):
        if "[SKIPPED]" in block and not UNCLAIMED.search(block):
            bad.append(block.strip())
    for block in bad:
        print("skipped although claimed:", block)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
