# SPDX-License-Identifier: Apache-2.0
"""J7 and a real lack of memory, in a memory control group of version 1 or 2: an engine whose group has what it is said to need, and no
more, is not killed under load; when something else in the group takes the memory, the kernel kills the engine, it is started again, the
application sees no I/O error, what was in flight is read back, and how the engine ended is noted."""
import json
import os
import subprocess
import sys

import lib

ENGINE_BYTES = 96 * lib.MIB  # docs/volumes.md, "Memory"
REST_BYTES = 64 * lib.MIB    # the holder, what the kernel keeps for both, and page cache on its way to the disk

BALLOON = """
import mmap, os, sys
group, victim, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with open("/proc/%d/oom_score_adj" % victim, "w") as f:
    f.write("1000")  # a privileged holder's engine is out of the kernel's reach otherwise
with open(group + "/cgroup.procs", "w") as f:
    f.write(str(os.getpid()))
kept, taken = [], 0
print("ready", flush=True)
while os.path.exists("/proc/%d" % victim) and taken < 2 * limit:
    piece = mmap.mmap(-1, 1 << 20)
    for at in range(0, 1 << 20, 4096):
        piece[at] = 1
    kept.append(piece)
    taken += 1 << 20
print("gone" if not os.path.exists("/proc/%d" % victim) else "still there", flush=True)
os._exit(0)
"""


class Group:
    """A control group below this process's own."""

    def __init__(self, name):
        with open("/proc/self/cgroup") as f:
            own = {line.split(":", 2)[1]: line.rstrip("\n").split(":", 2)[2] for line in f}
        self.v1 = "memory" in own
        top = "/sys/fs/cgroup/memory" if self.v1 else "/sys/fs/cgroup"
        parents = [top + own["memory" if self.v1 else ""], top] if ("memory" if self.v1 else "") in own else []
        self.directory = None
        for parent in parents:
            directory = "%s/%s-%d" % (parent.rstrip("/"), name, os.getpid())
            try:
                os.mkdir(directory)
            except OSError:
                continue
            self.directory = directory
            if os.path.exists(self._file("memory.limit_in_bytes", "memory.max")):
                break
            self.remove()
        if not self.directory:
            lib.skip("needs a memory control group of its own")

    def _file(self, v1, v2):
        return "%s/%s" % (self.directory, v1 if self.v1 else v2)

    def limit(self, size):
        try:
            with open(self._file("memory.limit_in_bytes", "memory.max"), "w") as f:
                f.write(str(size))
            with open("%s/cgroup.procs" % self.directory, "r+"):
                pass
        except OSError as error:
            lib.skip("may not limit memory: %s" % error)
        if not self.v1 and os.path.exists(self.directory + "/memory.swap.max"):
            with open(self.directory + "/memory.swap.max", "w") as f:
                f.write("0")

    def enter(self):
        with open(self.directory + "/cgroup.procs", "w") as f:
            f.write(str(os.getpid()))

    def kills(self):
        with open(self._file("memory.oom_control", "memory.events")) as f:
            numbers = dict(line.split() for line in f)
        if "oom_kill" not in numbers:
            lib.skip("this kernel does not count what it kills for memory")
        return int(numbers["oom_kill"])

    def most(self):
        try:
            with open(self._file("memory.max_usage_in_bytes", "memory.peak")) as f:
                return int(f.read())
        except OSError:
            return 0

    def remove(self):
        if self.directory:
            lib.wait_for("the group to be empty", self._removed)
            self.directory = None

    def _removed(self):
        try:
            os.rmdir(self.directory)
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True


def start_in(app, group):
    """Holder and engine in the group; the test stays outside."""
    popen = lib.subprocess.Popen

    def inside(*arguments, **options):
        return popen(*arguments, preexec_fn=group.enter, **options)

    lib.subprocess.Popen = inside
    try:
        app.start()
    finally:
        lib.subprocess.Popen = popen


def on_memory(path):
    """tmpfs: what is written there counts as memory of the group."""
    kind = lib.run("stat", "-f", "-c", "%T", path).strip()
    return kind in ("tmpfs", "ramfs")


with lib.Test("oom", "fio") as test:
    if on_memory(test.work):
        lib.skip("files in %s are memory" % test.work)
    group = Group("tidemark-oom")
    try:
        group.limit(ENGINE_BYTES + REST_BYTES)
        group.kills()
        app = test.application({"data": 256 * lib.MIB}, start=False)
        start_in(app, group)
        device, first = app.device("data"), app.pid()

        # J7: with its budget and no more it is not killed.
        for options in ({"bs": "4k", "iodepth": 64}, {"bs": "128k", "iodepth": 32}, {"bs": "1m", "iodepth": 16}):
            test.fio(device, size="192m", verify="crc32c", verify_fatal=1, **options)
        print("at most %d MiB of %d used" % (group.most() >> 20, (ENGINE_BYTES + REST_BYTES) >> 20), flush=True)
        lib.check(group.kills() == 0 and app.pid() == first, "the kernel killed an engine that had its budget")

        # Something else takes the memory while the application writes.
        fio = test.fio(device, wait=False, bsrange="4k-64k", size="192m", verify="crc32c", verify_fatal=1, rate="30m", fdatasync=64)
        written = app.status()["volumes"][0]["written_bytes"]
        lib.wait_for("writes", lambda: fio.poll() is not None or app.status()["volumes"][0]["written_bytes"] > written + 8 * lib.MIB, 60)
        lib.check(fio.poll() is None, "fio ended before the kill")
        balloon = subprocess.Popen([sys.executable, "-c", BALLOON, group.directory, str(first), str(ENGINE_BYTES + REST_BYTES)],
                                   stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        test.processes.append(balloon)
        said, _ = balloon.communicate(timeout=180)
        if "ready" not in said:
            lib.skip("may not choose what the kernel kills: " + (said.splitlines() or ["it was killed itself"])[-1])
        lib.check("still there" not in said, "the kernel did not kill the engine:", said)
        # Without a last word the kernel has killed what took the memory, too: an engine's locked memory is only free once it has gone.
        lib.wait_for("the engine to come back", lambda: app.pid() not in (0, first))
        test.fio_ended(fio)
        lib.check(group.kills() >= 1, "the kernel has killed nothing")
        lib.check(app.holder.poll() is None, "the holder ended")
        with open(app.directory + "/holder.ends") as f:
            ends = json.loads(f.read())
        lib.check(ends["ends"] >= 1 and ends["signal"] == 9 and ends["oom_killed"] and ends["limit_bytes"] == ENGINE_BYTES + REST_BYTES, ends)
        app.check_latest()
        lib.check(app.status()["state"] == "protected", app.status())
        app.stop()
    finally:
        for served in test.served:
            if served.holder and served.holder.poll() is None:
                served.force()
        group.remove()
