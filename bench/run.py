#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Measures Tidemark beside its peers in one interleaved run; writes bench/results.json and docs/benchmarks.md.

With --only the results of the other parts stay as they are in both files.

Root. Each round runs every candidate once, in rotating order, each on a new file or journal that was written once from
end to end (so no block is unallocated), with caches dropped. What fails is in the tables as failed, with the reason.
"""
import argparse
import datetime
import json
import math
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time

import endurance

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PARTS = ["nbd", "fuse", "flush", "open", "rss", "thin", "recovery", "scale", "compress", "cluster"]
GIB = 1 << 30
DISK_LIMIT = 60 * GIB  # this program never takes more
CLUSTER = 64 << 10     # of QEMU's copy-before-write

# name: (fio options, target length or information)
JOBS = {
    "write4k_qd1": (["--rw=randwrite", "--bs=4k", "--iodepth=1"], "target"),
    "write4k_qd32": (["--rw=randwrite", "--bs=4k", "--iodepth=32"], "target"),
    "write128k_qd4": (["--rw=randwrite", "--bs=128k", "--iodepth=4"], "info"),
    "fsync4k_qd1": (["--rw=randwrite", "--bs=4k", "--iodepth=1", "--fdatasync=1"], "flush"),
    "fsync4k_qd32": (["--rw=randwrite", "--bs=4k", "--iodepth=32", "--fdatasync=1"], "flush"),
    "read4k_qd1": (["--rw=randread", "--bs=4k", "--iodepth=1"], "info"),
    "read4k_qd32": (["--rw=randread", "--bs=4k", "--iodepth=32"], "info"),
}
JOB_TITLES = {
    "write4k_qd1": "4K write QD1", "write4k_qd32": "4K write QD32", "write128k_qd4": "128K write QD4",
    "fsync4k_qd1": "4K write+fdatasync QD1", "fsync4k_qd32": "4K write+fdatasync QD32",
    "read4k_qd1": "4K read QD1", "read4k_qd32": "4K read QD32",
}
# part, candidate, peer, job, at least, text
TARGETS = [
    ("nbd", "tidemark-write", "qemu", "write4k_qd1", 0.70), ("nbd", "tidemark-write", "qemu", "write4k_qd32", 0.70),
    ("nbd", "tidemark-flush", "qemu", "write4k_qd1", 0.90), ("nbd", "tidemark-flush", "qemu", "write4k_qd32", 0.90),
    ("nbd", "tidemark-write", "qemu-cbw", "write4k_qd1", 2.0), ("nbd", "tidemark-write", "qemu-cbw", "write4k_qd32", 2.0),
    ("fuse", "tidemark-write", "loop-file", "write4k_qd1", 0.60), ("fuse", "tidemark-write", "loop-file", "write4k_qd32", 0.65),
    ("fuse", "tidemark-write", "nbdfuse", "write4k_qd1", 1.2), ("fuse", "tidemark-write", "nbdfuse", "write4k_qd32", 1.2),
]


SECTIONS = {"open": "opening", "rss": "rss", **{part: x[3] for part, x in endurance.PARTS.items()}}


class Failed(Exception):
    pass


def say(text):
    print(f"bench: {text}", file=sys.stderr, flush=True)


def tail_of(path, count=300):
    try:
        with open(path, errors="replace") as f:
            return f.read()[-count:].strip().replace("\n", " | ")
    except OSError:
        return ""


class Cleanup:
    """What is undone, last first, on every way out."""

    def __init__(self):
        self.steps = []

    def push(self, step, *args):
        self.steps.append((step, args))

    def unwind(self, depth=0):
        while len(self.steps) > depth:
            step, args = self.steps.pop()
            try:
                step(*args)
            except Exception as e:  # the other steps still have to run
                say(f"cleaning up: {step.__name__} {args}: {e}")


class Bench:
    Failed = Failed
    say = staticmethod(say)

    def __init__(self, options):
        self.o = options
        self.cleanup = Cleanup()
        self.dir = None
        self.commands = {}
        self.samples = {}   # part -> candidate -> job -> [sample]
        self.failures = []
        self.opening = []
        self.rss = None
        self.thinning = []
        self.recovering = None
        self.scaling = []
        self.compressing = []
        self.measured = {}  # part -> when and how
        self.part = None    # that is being measured
        self.notes = []
        self.old_commands = {}
        self.counter = 0

    # ---- what was measured before ----
    def take_over(self):
        """The results that the file has of parts, or jobs, that are not measured now."""
        try:
            with open(self.o.results) as f:
                old = json.load(f)
        except FileNotFoundError:
            return
        except ValueError as e:
            raise SystemExit(f"bench: {self.o.results} is damaged ({e}): remove it, or name another by --results")
        now = set(self.o.asked)
        self.measured = {part: how for part, how in measured_of(old).items() if part not in now}
        for part, candidates in old["samples"].items():
            for candidate, jobs in candidates.items():
                kept = {job: s for job, s in jobs.items() if part not in self.o.only or not self.runs(job)}
                if kept:
                    self.samples.setdefault(part, {})[candidate] = kept
        for part, name in SECTIONS.items():
            if part not in now:
                setattr(self, name, old.get(name) or getattr(self, name))
        if "open" not in now:
            self.notes = old.get("own_notes", [])
        self.failures = [f for f in old["failures"] if f.get("part") in self.measured]
        self.old_commands = old["commands"]

    def runs(self, job):
        """Whether this run measures the job."""
        return "flush" in self.o.only if JOBS[job][1] == "flush" else self.o.jobs

    # ---- processes ----
    def run(self, command, timeout=600):
        p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
        depth = len(self.cleanup.steps)
        self.cleanup.push(self.kill, p)
        try:
            out, err = p.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            raise Failed(f"{command[0]} did not end within {timeout} s")
        finally:
            self.cleanup.unwind(depth)
        if p.returncode != 0:
            lines = [l for l in (err + out).splitlines() if l.startswith("fio:")] if command[0] == "fio" else []
            text = " | ".join(lines)[:400] or (err.strip() or out.strip())[-400:].replace("\n", " | ")
            raise Failed(f"{os.path.basename(command[0])} ended with {p.returncode}: {text}")
        return out

    @staticmethod
    def kill(p):
        """Stops a process of ours, with those that it started."""
        if p.poll() is None:
            p.terminate()
            try:
                p.wait(20)
            except subprocess.TimeoutExpired:
                pass
        if p.poll() is None:
            os.killpg(p.pid, signal.SIGKILL)
            p.wait(20)

    def daemon(self, command, log, **kwargs):
        with open(log, "ab") as f:
            p = subprocess.Popen(command, stdout=f, stderr=f, stdin=subprocess.DEVNULL, start_new_session=True, **kwargs)
        self.cleanup.push(self.kill, p)
        return p

    def wait_for(self, test, what, process=None, log=None, timeout=30):
        end = time.monotonic() + timeout
        while not test():
            if process is not None and process.poll() is not None:
                raise Failed(f"{what}: the program ended with {process.returncode}: {tail_of(log)}")
            if time.monotonic() > end:
                raise Failed(f"{what}: not there after {timeout} s: {tail_of(log) if log else ''}")
            time.sleep(0.02)

    # ---- files and devices ----
    def place(self, name):
        self.counter += 1
        path = os.path.join(self.dir, f"{self.counter}-{name}")
        os.mkdir(path)
        self.cleanup.push(shutil.rmtree, path, True)
        return path

    def loop(self, path):
        device = self.run(["losetup", "-f", "--show", "--direct-io=on", "--sector-size", "4096", path]).strip()
        self.cleanup.push(self.detach, device)
        dio = open(f"/sys/block/{os.path.basename(device)}/loop/dio").read().strip()
        if dio != "1":
            raise Failed(f"{device} has no direct I/O on {os.path.basename(path)}")
        return device

    @staticmethod
    def detach(device):
        subprocess.run(["losetup", "-d", device], check=True, timeout=60)
        end = time.monotonic() + 10
        while os.path.exists(f"/sys/block/{os.path.basename(device)}/loop") and time.monotonic() < end:
            time.sleep(0.02)

    def unmount(self, path):
        if os.path.ismount(path):
            if subprocess.run(["umount", path], capture_output=True, timeout=60).returncode != 0:
                subprocess.run(["umount", "-l", path], check=True, timeout=60)

    def precondition(self, target):
        self.fio(target, ["--rw=write", "--bs=1m", "--iodepth=4", "--end_fsync=1"], None)
        subprocess.run(["sync"], check=True)
        time.sleep(0 if self.o.quick else 1)  # what goes on behind it comes to an end

    def new_file(self, path, size=None, write=True):
        with open(path, "wb") as f:
            f.truncate(size or self.o.size_bytes)
        if write:
            self.precondition(("file", path))
        return path

    def quiet(self):
        subprocess.run(["sync"], check=True)
        with open("/proc/sys/vm/drop_caches", "w") as f:
            f.write("3\n")
        time.sleep(0.3)

    # ---- fio ----
    def fio(self, target, arguments, runtime, remember=None):
        kind, where = target
        command = ["fio", "--name=j", f"--size={self.o.size_bytes}", "--group_reporting", "--output-format=json",
                   "--randrepeat=0", "--norandommap"] + arguments
        if kind == "nbd":
            # fio's nbd engine refuses fdatasync; both are NBD's one FLUSH.
            command = [a.replace("--fdatasync=", "--fsync=") for a in command] + ["--ioengine=nbd", f"--uri={where}"]
        else:
            command += ["--ioengine=io_uring", "--direct=1", f"--filename={where}"]
        if runtime:
            command += [f"--runtime={runtime:g}", "--time_based"]
        if remember:
            self.commands.setdefault(remember, " ".join(command).replace(self.dir, "$DIR"))
        cpu = cpu_seconds()
        out = self.run(command, timeout=600)
        cpu = cpu_seconds() - cpu
        job = json.loads(out[out.index("{"):])["jobs"][0]
        if job["error"]:
            raise Failed(f"fio: error {job['error']}")
        side = job["read"] if job["read"]["total_ios"] else job["write"]
        if not side["total_ios"]:
            raise Failed("fio: no I/O was done")
        percentile = side["clat_ns"].get("percentile", {})
        return {"iops": side["iops"], "mib_s": side["bw_bytes"] / 2**20, "ios": side["total_ios"],
                "p50_us": percentile.get("50.000000", 0) / 1e3, "p99_us": percentile.get("99.000000", 0) / 1e3,
                "cpu_us_per_io": cpu / side["total_ios"] * 1e6}

    def jobs_for(self, role, number):
        """Jobs of a candidate in a round: `full`, or `info` (short, every job); information only in every second round."""
        for name, (arguments, kind) in JOBS.items():
            if not self.runs(name) or (kind != "target" and number % 2):
                continue
            long = kind == "target" and role == "full"
            yield name, arguments, (self.o.runtime if long else max(1, self.o.runtime / 5))

    def measure(self, part, candidate, role, target, number):
        for name, arguments, runtime in self.jobs_for(role, number):
            self.guarded(f"{part}/{candidate} {JOB_TITLES[name]}, round {number + 1}", self.measure_one,
                         part, candidate, name, arguments, runtime, target, number)

    def measure_one(self, part, candidate, name, arguments, runtime, target, number):
        self.quiet()
        self.add(part, candidate, name, self.fio(target, arguments, runtime, f"{part}/{candidate} {JOB_TITLES[name]}"), number)

    def add(self, part, candidate, job, sample, number):
        sample["round"] = number + 1
        self.samples.setdefault(part, {}).setdefault(candidate, {}).setdefault(job, []).append(sample)

    # ---- candidates ----
    def qemu(self, path, socket, extra, node, log):
        command = ["qemu-storage-daemon",
                   "--blockdev", f"driver=file,node-name=f,filename={path},cache.direct=on,aio=io_uring"] + extra + [
                   "--nbd-server", f"addr.type=unix,addr.path={socket}",
                   "--export", f"type=nbd,id=e,node-name={node},name=x,writable=on"]
        self.commands.setdefault(f"server {'qemu' if node == 'f' else 'qemu-cbw'}", " ".join(command).replace(self.dir, "$DIR"))
        p = self.daemon(command, log)
        self.wait_for(lambda: os.path.exists(socket), "qemu-storage-daemon", p, log)
        time.sleep(0.1)
        return ("nbd", f"nbd+unix:///x?socket={socket}")

    def nbd_qemu(self, number):
        d = self.place("qemu")
        path = self.new_file(f"{d}/f.raw")
        self.measure("nbd", "qemu", "full", self.qemu(path, f"{d}/s", [], "f", f"{d}/log"), number)

    def nbd_qemu_cbw(self, number):
        """First touch: a new target and a quarter as many writes as there are clusters, so about 88 % of them are first."""
        if not self.o.jobs:
            return
        d = self.place("cbw")
        path = self.new_file(f"{d}/f.raw")
        for name in ("write4k_qd1", "write4k_qd32"):
            depth = len(self.cleanup.steps)
            self.new_file(f"{d}/t-{name}.raw", write=False)
            extra = ["--blockdev", f"driver=file,node-name=t,filename={d}/t-{name}.raw,cache.direct=on,aio=io_uring",
                     "--blockdev", "driver=copy-before-write,node-name=c,file=f,target=t"]
            target = self.qemu(path, f"{d}/s-{name}", extra, "c", f"{d}/log")
            self.quiet()
            count = max(256, self.o.size_bytes // CLUSTER // 4)
            sample = self.fio(target, JOBS[name][0] + [f"--number_ios={count}"], None,
                              f"nbd/qemu-cbw {JOB_TITLES[name]}")
            self.add("nbd", "qemu-cbw", name, sample, number)
            self.cleanup.unwind(depth)

    def nbd_file(self, number):
        d = self.place("nbdkit")
        path = self.new_file(f"{d}/f.raw")
        command = ["nbdkit", "-f", "-U", f"{d}/s", "-P", f"{d}/pid", "file", path]
        p = self.daemon(command, f"{d}/log")
        self.wait_for(lambda: os.path.exists(f"{d}/pid"), "nbdkit file", p, f"{d}/log")
        self.commands.setdefault("server nbdkit-file", " ".join(command).replace(self.dir, "$DIR"))
        self.measure("nbd", "nbdkit-file", "info", ("nbd", f"nbd+unix:///?socket={d}/s"), number)

    def engine_config(self, d, ack, volumes, size, quota=0, names="data", encrypted=False, more=None):
        names = [names] if volumes == 1 else [f"v{i}" for i in range(volumes)]
        os.makedirs(f"{d}/backing", exist_ok=True)
        config = {"application": "bench", "journal": f"{d}/journal", "socket": f"{d}/engine.sock", "ack": ack,
                  "volumes": [{"name": n, "size_bytes": size, "backing": f"{d}/backing/{n}.img"} for n in names]}
        if quota:
            config["quota_bytes"] = quota
        config.update(more or {})
        if encrypted:
            config["key_file"] = f"{d}/key"
            subprocess.run([f"{self.o.build}/src/cli/tidemark", "key", "generate", "-q", f"{d}/key"], check=True, stdout=subprocess.DEVNULL)
        with open(f"{d}/engine.json", "w") as f:
            json.dump(config, f)
        return names

    def engine_nbd(self, d):
        self.clear_sockets(d)
        command = [f"{self.o.build}/src/engine/tidemark-engine", "serve", "--config", f"{d}/engine.json", "--nbd", f"{d}/s",
                   "--pid-file", f"{d}/pid"]
        p = self.daemon(command, f"{d}/log")
        self.wait_for(lambda: os.path.exists(f"{d}/pid") and os.path.exists(f"{d}/engine.sock"), "tidemark-engine", p,
                      f"{d}/log", 120)
        shown = " ".join(command).replace(self.dir, "$DIR").replace(self.o.build, "$BUILD")
        self.commands.setdefault("server tidemark (nbd)", shown)
        return p

    def nbd_tidemark(self, number, ack, candidate, role="full", quota=0, encrypted=False):
        d = self.place(candidate)
        self.engine_config(d, ack, 1, self.o.size_bytes, quota, encrypted=encrypted)
        self.engine_nbd(d)
        target = ("nbd", f"nbd+unix:///data?socket={d}/s")
        self.precondition(target)
        self.measure("nbd", candidate, role, target, number)

    def nbd_tidemark_quota(self, number):
        if self.o.jobs and number < 2:
            self.nbd_tidemark(number, "write", "tidemark-quota", "info", max(GIB // 2, self.o.size_bytes))

    def fuse_tidemark(self, number, ack, role):
        d = self.place(f"fuse-{ack}")
        self.engine_config(d, ack, 1, self.o.size_bytes)
        self.holder(d, ["data"])
        target = ("file", self.loop(f"{d}/fuse/data/vol"))
        self.precondition(target)
        self.measure("fuse", f"tidemark-{ack}", role, target, number)

    def holder(self, d, names):
        for n in names:
            os.makedirs(f"{d}/fuse/{n}", exist_ok=True)
            self.cleanup.push(self.unmount, f"{d}/fuse/{n}")
        with open(f"{d}/holder.json", "w") as f:
            json.dump({"name": "bench", "mounts": [{"volume": n, "directory": f"{d}/fuse/{n}"} for n in names],
                       "program": [f"{self.o.build}/src/engine/tidemark-engine", "serve", "--config", f"{d}/engine.json"],
                       "restart": True, "pid_file": f"{d}/holder.pid"}, f)
        p = self.daemon([f"{self.o.build}/src/export/tidemark-holder", "--config", f"{d}/holder.json"], f"{d}/log")
        self.commands.setdefault("server tidemark (fuse)", "$BUILD/src/export/tidemark-holder --config holder.json; "
                                 "losetup -f --show --direct-io=on --sector-size 4096 fuse/data/vol")
        self.wait_for(lambda: os.path.exists(f"{d}/engine.sock.pid") and
                      all(os.path.exists(f"{d}/fuse/{n}/vol") for n in names), "tidemark-holder", p, f"{d}/log", 120)

    def fuse_loop(self, number):
        d = self.place("loop")
        path = self.new_file(f"{d}/f.raw")
        self.measure("fuse", "loop-file", "full", ("file", self.loop(path)), number)

    def fuse_raw(self, number):
        d = self.place("raw")
        self.measure("fuse", "raw-file", "info", ("file", self.new_file(f"{d}/f.raw")), number)

    def fuse_nbdfuse(self, number):
        d = self.place("nbdfuse")
        path = self.new_file(f"{d}/f.raw")
        p = self.daemon(["nbdkit", "-f", "-U", f"{d}/s", "-P", f"{d}/pid", "file", path], f"{d}/log")
        self.wait_for(lambda: os.path.exists(f"{d}/pid"), "nbdkit file", p, f"{d}/log")
        os.mkdir(f"{d}/mnt")
        self.cleanup.push(self.unmount, f"{d}/mnt")
        command = ["nbdfuse", f"{d}/mnt", f"nbd+unix:///?socket={d}/s"]
        p = self.daemon(command, f"{d}/log")
        self.commands.setdefault("server nbdfuse", " ".join(command).replace(self.dir, "$DIR") +
                                 "; losetup -f --show --direct-io=on --sector-size 4096 $DIR/…/mnt/nbd")
        self.wait_for(lambda: os.path.exists(f"{d}/mnt/nbd"), "nbdfuse", p, f"{d}/log")
        self.measure("fuse", "nbdfuse", "full", ("file", self.loop(f"{d}/mnt/nbd")), number)

    def rounds(self):
        candidates = []
        if "nbd" in self.o.only:
            candidates += [("nbd", "qemu", self.nbd_qemu), ("nbd", "tidemark-write", lambda n: self.nbd_tidemark(n, "write", "tidemark-write")),
                           ("nbd", "qemu-cbw", self.nbd_qemu_cbw),
                           ("nbd", "tidemark-flush", lambda n: self.nbd_tidemark(n, "flush", "tidemark-flush")),
                           ("nbd", "tidemark-encrypted", lambda n: self.nbd_tidemark(n, "write", "tidemark-encrypted", encrypted=True)),
                           ("nbd", "nbdkit-file", self.nbd_file), ("nbd", "tidemark-quota", self.nbd_tidemark_quota)]
        if "fuse" in self.o.only:
            candidates += [("fuse", "loop-file", self.fuse_loop), ("fuse", "tidemark-write", lambda n: self.fuse_tidemark(n, "write", "full")),
                           ("fuse", "nbdfuse", self.fuse_nbdfuse),
                           ("fuse", "tidemark-flush", lambda n: self.fuse_tidemark(n, "flush", "info")),
                           ("fuse", "raw-file", self.fuse_raw)]
        for number in range(self.o.rounds):
            for i in range(len(candidates)):
                part, name, measure = candidates[(i + number) % len(candidates)]
                say(f"round {number + 1}/{self.o.rounds}: {part} {name}")
                self.part = part
                self.guarded(f"{part}/{name}, round {number + 1}", measure, number)

    def guarded(self, what, function, *args):
        depth = len(self.cleanup.steps)
        try:
            function(*args)
        except (Failed, OSError, ValueError, KeyError, subprocess.SubprocessError) as e:
            say(f"FAILED {what}: {e}")
            self.failures.append({"part": self.part, "what": what, "why": str(e).replace(self.dir, "$DIR")})
        finally:
            self.cleanup.unwind(depth)

    # ---- opening and memory ----
    def history(self):
        d = self.place("history")
        volume = max(64 << 20, self.o.size_bytes // 4 >> 20 << 20)
        common = ["--directory", d, "--volumes", "4", "--volume-bytes", str(volume)]
        counts = self.o.open_writes if "open" in self.o.only else self.o.open_writes[-1:]
        for i, count in enumerate(counts):
            room = min(shutil.disk_usage(self.dir).free + used(d), DISK_LIMIT)
            fits = int((room - 4 * volume - 6 * GIB) / 4650)  # payload, its share of frame headers, index and runs
            if count > fits:
                smaller = max([m * 10**e for e in range(4, 8) for m in (1, 2, 3, 4, 5, 6, 7, 8, 9) if m * 10**e <= fits], default=0)
                self.notes.append(f"{count:.0e} writes do not fit on the disk (room for about {fits:.2g}): "
                                  f"{smaller:.0e} were made instead.")
                count = smaller
                if i and count <= counts[i - 1]:
                    continue
            if not count:
                raise Failed("the disk has no room for a journal")
            say(f"opening: filling up to {count} writes")
            fill = json.loads(self.run([f"{self.o.build}/bench/journal_fill", *common, "--until", str(count)], 3600))
            if "open" in self.o.only:
                self.open_at(d, common, count, volume, fill)
        if "rss" in self.o.only:
            self.memory(d, count, volume)

    def open_at(self, d, common, count, volume, fill):
        program = [f"{self.o.build}/bench/open_latency", *common]
        row = {"writes": count, "fill": fill}
        self.opening.append(row)
        for name, extra in (("inside", ["--tail", "3000"]), ("cold", ["--cold"])):
            self.quiet()
            self.guarded(f"open/{name} at {count}", lambda: row.update({name: json.loads(self.run(program + extra))}))
        self.guarded(f"open/socket at {count}", self.open_by_socket, d, program, row, volume)

    def open_by_socket(self, d, program, row, volume):
        self.engine_config(d, "write", 4, volume)
        self.quiet()
        self.engine_nbd(d)
        row["socket"] = json.loads(self.run(program + ["--socket", f"{d}/engine.sock"]))

    @staticmethod
    def clear_sockets(d):
        """What a killed engine leaves behind."""
        for leftover in ("engine.sock", "engine.sock.pid", "pid", "s"):
            if os.path.exists(f"{d}/{leftover}"):
                os.unlink(f"{d}/{leftover}")

    def memory(self, d, count, volume):
        say(f"memory: four volumes under load at {count} writes")
        self.clear_sockets(d)
        # The load adds to the journal; its quota keeps that from filling the disk.
        load = min(20 * GIB, max(GIB, shutil.disk_usage(self.dir).free - 4 * GIB))
        names = self.engine_config(d, "write", 4, volume, quota=used(f"{d}/journal") + load)
        self.holder(d, names)
        devices = [self.loop(f"{d}/fuse/{n}/vol") for n in names]
        with open(f"{d}/engine.sock.pid") as f:
            pid = int(f.read())
        before = status_kib(pid)
        fio = []
        for device in devices:
            command = ["fio", "--name=j", f"--filename={device}", "--direct=1", "--ioengine=io_uring", "--rw=randrw",
                       "--rwmixread=30", "--bs=4k", "--iodepth=32", "--time_based", f"--runtime={self.o.runtime:g}",
                       "--randrepeat=0", "--norandommap", "--output-format=json"]
            p = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
            self.cleanup.push(self.kill, p)
            fio.append(p)
        peak = 0
        while any(p.poll() is None for p in fio):
            peak = max(peak, status_kib(pid)["VmRSS"])
            time.sleep(0.1)
        for p in fio:
            if p.returncode:
                raise Failed(f"fio ended with {p.returncode}: {p.stderr.read().decode()[-300:]}")
        after = status_kib(pid)
        self.rss = {"writes": count, "idle_mib": before["VmRSS"] / 1024, "load_mib": peak / 1024,
                    "peak_mib": after["VmHWM"] / 1024, "locked_mib": after["VmLck"] / 1024, "limit_mib": 96}


def cpu_seconds():
    with open("/proc/stat") as f:
        x = [int(v) for v in f.readline().split()[1:9]]
    return (sum(x) - x[3] - x[4] - x[7]) / os.sysconf("SC_CLK_TCK")  # without idle, iowait and steal


def status_kib(pid):
    with open(f"/proc/{pid}/status") as f:
        return {k: int(v.split()[0]) for k, v in (l.split(":", 1) for l in f) if k in ("VmRSS", "VmHWM", "VmLck")}


def used(directory):
    total = 0
    for base, _, names in os.walk(directory):
        for n in names:
            try:
                total += os.lstat(os.path.join(base, n)).st_blocks * 512
            except FileNotFoundError:
                pass
    return total


def machine(directory):
    def first(command):
        try:
            return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.splitlines()[0].strip()
        except (OSError, IndexError, subprocess.SubprocessError):
            return "not installed"
    cpu = "unknown"
    with open("/proc/cpuinfo") as f:
        for line in f:
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    with open("/proc/meminfo") as f:
        memory = int(f.readline().split()[1]) / 2**20
    return {"cpu": cpu, "cpus": os.cpu_count(), "memory_gib": round(memory, 1), "kernel": platform.release(),
            "filesystem": first(["findmnt", "-n", "-o", "FSTYPE", "-T", directory]), "fio": first(["fio", "--version"]),
            "qemu": first(["qemu-storage-daemon", "--version"]), "nbdkit": first(["nbdkit", "--version"]),
            "nbdfuse": first(["nbdfuse", "--version"])}


def median(samples, key):
    return statistics.median(s[key] for s in samples) if samples else None


def measured_of(old):
    """Of results from before there was such a table, too."""
    if "measured" in old:
        return old["measured"]
    how = {"date": old["date"], "arguments": old["arguments"], "rounds": old["rounds"], "runtime_s": old["runtime_s"],
           "size_bytes": old["size_bytes"], "interrupted": old["interrupted"], "machine": old["machine"]}
    return {part: how for part in old["arguments"].split("--only ")[-1].split()[0].split(",") if part != "cluster"}


def targets(b):
    rows = []
    for part, candidate, peer, job, least in TARGETS:
        if part not in b.measured:
            continue
        ours = b.samples.get(part, {}).get(candidate, {}).get(job, [])
        theirs = b.samples.get(part, {}).get(peer, {}).get(job, [])
        row = {"what": f"{part}: {candidate} / {peer}, {JOB_TITLES[job]}", "target": f">= {least:.2f}"}
        if ours and theirs:
            peers = {s["round"]: s["iops"] for s in theirs}
            each = [s["iops"] / peers[s["round"]] for s in ours if s["round"] in peers]
            row["value"] = round(median(ours, "iops") / median(theirs, "iops"), 3)
            row["spread"] = [round(min(each), 2), round(max(each), 2)] if each else None
            row["result"] = "PASS" if row["value"] >= least else f"short of {least:.2f}"
        else:
            row.update(value=None, spread=None, result="FAILED to run")
        rows.append(row)
    if "open" in b.measured:
        rows += open_targets(b)
    for part, (_, part_targets, _, _) in endurance.PARTS.items():
        if part in b.measured:
            rows += part_targets(b)
    if "rss" in b.measured:
        row = {"what": "engine VmHWM, four volumes under load", "target": "<= 96 MiB", "spread": None}
        if b.rss:
            row["what"] += f", {b.rss['writes']:.0e} writes"
            row["value"] = round(b.rss["peak_mib"], 1)
            row["result"] = "PASS" if b.rss["peak_mib"] <= 96 else "short of 96"
        else:
            row.update(value=None, result="FAILED to run")
        rows.append(row)
    return rows


def open_targets(b):
    rows = []
    for kind in ("inside", "socket"):
        for writes in b.o.open_writes if not b.opening else [r["writes"] for r in b.opening]:
            at = next((r for r in b.opening if r["writes"] == writes), {}).get(kind)
            row = {"what": f"open, {kind}, {writes:.0e} writes: p99 ms", "target": "<= 50", "spread": None,
                   "value": round(at["total_us"]["p99"] / 1e3, 2) if at else None}
            row["result"] = "FAILED to run" if not at else "PASS" if row["value"] <= 50 else "short of 50"
            rows.append(row)
        good = [r for r in b.opening if kind in r]
        if len(good) >= 2:
            a, z = good[0], good[-1]
            growth = z[kind]["total_us"]["p50"] / a[kind]["total_us"]["p50"]
            limit = math.log(z["writes"]) / math.log(a["writes"])
            rows.append({"what": f"open, {kind}: growth of p50 from {a['writes']:.0e} to {z['writes']:.0e}",
                         "target": f"<= {limit:.2f} (log n)", "value": round(growth, 2), "spread": None,
                         "result": "PASS" if growth <= limit else f"short of {limit:.2f}"})
    return rows


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(str(c) for c in r) + " |" for r in rows] + [""]


def document(b, result):
    m = result["machine"]
    out = ["# Benchmarks", "", "Generated by `make bench` (`bench/run.py`); do not edit. The samples are in `bench/results.json`.", "",
           f"{m['cpus']} CPUs ({m['cpu']}), {m['memory_gib']} GiB of memory, "
           f"kernel {m['kernel']}, {m['filesystem']}; {m['fio']}, {m['qemu']}, {m['nbdkit']}, {m['nbdfuse']}.", ""]
    runs = {}
    for part, how in b.measured.items():
        runs.setdefault((how["date"], how["arguments"], how["rounds"], how["size_bytes"], how["runtime_s"], how["interrupted"]), []).append(part)
    out += table(["parts", "measured", "by", "rounds", "volume", "a job"],
                 [[", ".join(parts) + (" (**interrupted**: what is missing was not measured)" if cut else ""), date, f"`bench/run.py {arguments}`", rounds,
                   f"{size / GIB:g} GiB", f"{runtime:g} s"] for (date, arguments, rounds, size, runtime, cut), parts in runs.items()])
    if any("--quick" in how["arguments"] for how in b.measured.values()):
        out += ["**A quick run: short and once, good for finding mistakes, not for judging.**", ""]
    out += ["## Targets", "", "Ratios are of the medians; the spread is of the ratios within a round.", ""]
    out += table(["what", "target", "measured", "spread", "result"],
                 [[r["what"], r["target"], "-" if r["value"] is None else r["value"],
                   f"{r['spread'][0]}-{r['spread'][1]}" if r["spread"] else "", "**" + r["result"] + "**"] for r in result["targets"]])
    for part, title in (("nbd", "NBD (fio's nbd engine, one connection)"), ("fuse", "Loop device, direct I/O, io_uring")):
        if part in b.samples:
            out += [f"## {title}", "", "kIOPS, p50 / p99 us, CPU us an I/O (whole machine, fio included); medians.", ""]
            for job in JOBS:
                rows = [[c, f"{median(s[job], 'iops') / 1e3:.1f}", f"{median(s[job], 'p50_us'):.0f} / {median(s[job], 'p99_us'):.0f}",
                         f"{median(s[job], 'cpu_us_per_io'):.0f}", f"{min(x['iops'] for x in s[job]) / 1e3:.1f}-"
                         f"{max(x['iops'] for x in s[job]) / 1e3:.1f}", len(s[job])]
                        for c, s in b.samples[part].items() if job in s]
                if rows:
                    out += table([JOB_TITLES[job], "kIOPS", "p50 / p99", "CPU", "range", "samples"], rows)
    if b.opening:
        out += ["## Opening a point", "", "From asking to the first 4 KiB, at 200 random LSNs; ms. `inside`: in the process that has the "
                "journal, with a tail that is not sealed; `cold`: the page cache dropped before each; `socket`: by `POST /v1/pin`.", ""]
        rows = []
        for r in b.opening:
            for kind in ("inside", "cold", "socket"):
                x = r.get(kind)
                steps = [f"{x[s]['p50'] / 1e3:.2f} / {x[s]['p99'] / 1e3:.2f}" for s in ("pin_us", "open_us", "read_us", "total_us")] \
                    if x else ["FAILED"] * 4
                rows.append([f"{r['writes']:.0e}", kind, *steps])
        out += table(["writes", "way", "pin p50 / p99", "open", "read", "total"], rows)
        out += table(["writes in the journal", "journal GiB", "segments", "runs", "kIOPS of the fill"],
                     [[f"{r['writes']:.0e}", f"{r['fill']['journal_bytes'] / GIB:.1f}", r["fill"]["segments"], r["fill"]["runs"],
                       f"{r['fill']['writes'] / max(r['fill']['seconds'], 1e-3) / 1e3:.0f}"] for r in b.opening])
    for part, (_, _, section, _) in endurance.PARTS.items():
        out += section(b)
    if b.rss:
        out += ["## Memory of the engine", ""]
        out += table(["writes", "VmRSS idle", "VmRSS under load, highest sample", "VmHWM", "VmLck"],
                     [[f"{b.rss['writes']:.0e}"] + [f"{b.rss[k]:.1f} MiB" for k in ("idle_mib", "load_mib", "peak_mib", "locked_mib")]])
    out += ["## What to know when reading this", ""]
    out += [f"- {n}" for n in b.notes + NOTES]
    if b.failures:
        out += ["", "## Failed", ""] + [f"- {f['what']}: {f['why']}" for f in b.failures]
    out += ["", "## Commands", "", "`$DIR` is a new directory, `$BUILD` the build directory.", "", "```"]
    out += [f"# {k}\n{v}" for k, v in result["commands"].items()] + ["```", ""]
    return "\n".join(out)


NOTES = [
    "Every candidate is written once from end to end before it is measured, then `sync`, caches dropped, before each job. The journal is "
    "new each round, so its segments are preallocated but not yet recycled, and nothing is dropped by a quota, except in `tidemark-quota`, "
    "where the quota is the volume's size, so that dropping old history goes on all the time.",
    "`qemu-cbw` is copy-before-write on first touch: a new sparse raw target and a quarter as many random 4K writes as there are 64 KiB "
    "clusters, so about 88 % of them copy. It is a short run; over a longer one the touched clusters make it faster.",
    "`nbdkit-file` and so `nbdfuse` write to the page cache: what they acknowledge is not on the disk. `qemu`, `loop-file` and "
    "Tidemark's backing use direct I/O. Compare them in the tables with fdatasync.",
    "fio's nbd engine has no fdatasync: over NBD it is `--fsync=1`, which is the same FLUSH. Latencies are those of the write alone; the "
    "I/Os a second include the waiting for the flush.",
    "The growth of the opening compares medians (the p99 of 200 samples is its third highest), with log n.",
    "In mode `flush` an acknowledged write is on the backing; its journal frame may follow until the next flush.",
    "Jobs that are information only, `nbdkit-file`, `raw-file` and `tidemark-flush` over FUSE run for a fifth of the time; "
    "reads, 128K and fdatasync in every second round.",
]


def parse():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, help="default: 5")
    p.add_argument("--runtime", type=float, help="seconds a job, default: 10")
    p.add_argument("--size", help="of a volume, default: 4g")
    p.add_argument("--dir", help="where the files go; default: a new directory below the build directory")
    p.add_argument("--build", default=os.environ.get("BUILD", "build"), help="build directory")
    p.add_argument("--only", default=",".join(PARTS), help="of " + ",".join(PARTS))
    p.add_argument("--open-writes", help="default: 100000,1000000,10000000")
    p.add_argument("--results", help="default: bench/results.json, for --quick in the build directory")
    p.add_argument("--document", help="default: docs/benchmarks.md, for --quick in the build directory")
    p.add_argument("--quick", action="store_true", help="one round, 2 s, 512m, up to 3e5 writes: does everything run?")
    o = p.parse_args()
    o.build = os.path.join(ROOT, o.build)
    defaults = {"rounds": 1, "runtime": 2, "size": "512m", "open_writes": "30000,100000,300000",
                "results": f"{o.build}/bench-quick.json", "document": f"{o.build}/bench-quick.md"} if o.quick else {
                "rounds": 5, "runtime": 10, "size": "4g", "open_writes": "100000,1000000,10000000",
                "results": os.path.join(ROOT, "bench/results.json"), "document": os.path.join(ROOT, "docs/benchmarks.md")}
    for name, value in defaults.items():
        if getattr(o, name) is None:
            setattr(o, name, value)
    o.only = o.only.split(",")
    if not set(o.only) <= set(PARTS):
        p.error(f"--only: expected some of {','.join(PARTS)}")
    o.asked = list(o.only)
    o.jobs = "nbd" in o.only or "fuse" in o.only
    if "flush" in o.only and not o.jobs:
        o.only += ["nbd", "fuse"]
    units = {"k": 1 << 10, "m": 1 << 20, "g": GIB}
    try:
        o.size_bytes = int(o.size[:-1]) * units[o.size[-1].lower()] if o.size[-1].lower() in units else int(o.size)
        o.open_writes = sorted(int(n) for n in o.open_writes.split(","))
    except ValueError as e:
        p.error(str(e))
    if o.size_bytes < 64 << 20 or o.size_bytes % (1 << 20) or o.rounds < 1 or o.runtime < 1:
        p.error("--size at least 64m and whole MiB, --rounds and --runtime at least 1")
    return o


def check(o):
    if os.geteuid() != 0:
        sys.exit("bench: needs root (loop devices, FUSE, dropping caches): sudo make bench")
    missing = [c for c in ("fio", "nbdkit", "losetup", "ninja") if not shutil.which(c)]
    if missing:
        sys.exit(f"bench: not installed: {', '.join(missing)}; run make deps")
    for c, package in (("qemu-storage-daemon", "qemu-system-common or qemu-utils"), ("nbdfuse", "libnbd-bin (and fuse3)")):
        if not shutil.which(c):
            say(f"{c} is not installed ({package}): its rows will say FAILED")
    if not os.path.exists(f"{o.build}/build.ninja"):
        sys.exit(f"bench: {o.build} is not built: run make first, or give --build")
    subprocess.run(["ninja", "-C", o.build, "src/engine/tidemark-engine",
                    "src/export/tidemark-holder", "src/cli/tidemark", "bench/journal_fill", "bench/open_latency", "bench/recovery_time",
                    "bench/journal_synth", "bench/compress_cost"], check=True, stdout=subprocess.DEVNULL)


def write_results(b, start, interrupted):
    arguments = f"--rounds {b.o.rounds} --runtime {b.o.runtime:g} --size {b.o.size} --only {','.join(b.o.asked)}" + " --quick" * b.o.quick
    how = {"date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d"), "arguments": arguments, "rounds": b.o.rounds,
           "runtime_s": b.o.runtime, "size_bytes": b.o.size_bytes, "interrupted": interrupted, "machine": machine(b.dir)}
    b.measured.update({part: how for part in b.o.asked if part != "cluster"})
    b.measured = {part: b.measured[part] for part in PARTS if part in b.measured}
    result = {**how, "seconds": round(time.monotonic() - start), "measured": b.measured, "targets": targets(b), "samples": b.samples,
              **{name: getattr(b, name) for name in SECTIONS.values()}, "failures": b.failures, "own_notes": b.notes, "notes": b.notes + NOTES,
              "commands": {**b.old_commands, **b.commands}}
    with open(b.o.results, "w") as f:
        json.dump(result, f, indent=1)
        f.write("\n")
    with open(b.o.document, "w") as f:
        f.write(document(b, result))
    for r in result["targets"]:
        print(f"{r['what']:68} {r['target']:>18} {'-' if r['value'] is None else r['value']:>8}  {r['result']}")
    for f in b.failures:
        print(f"FAILED {f['what']}: {f['why']}")


def stop(number, frame):
    raise KeyboardInterrupt


def cluster(o):
    """The controller with many objects: a program, results and a page of its own."""
    command = [sys.executable, "-B", os.path.join(ROOT, "bench/controller.py"), "--build", o.build] + ["--quick"] * o.quick
    return subprocess.run(command).returncode


def main():
    o = parse()
    if o.only == ["cluster"]:
        return cluster(o)
    check(o)
    for s in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(s, stop)
    b = Bench(o)
    b.take_over()
    start, interrupted = time.monotonic(), False
    b.dir = tempfile.mkdtemp(prefix="tidemark-bench-", dir=o.dir or o.build)
    b.cleanup.push(shutil.rmtree, b.dir, True)
    try:
        try:
            if o.jobs or "flush" in o.only:
                b.rounds()
            if "open" in o.only or "rss" in o.only:
                b.part = "open"
                b.guarded("opening and memory", b.history)
            for part, (measure, _, _, _) in endurance.PARTS.items():
                b.part = part
                if part in o.only:
                    b.guarded(part, measure, b)
            if "cluster" in o.only and cluster(o):
                b.failures.append({"what": "the controller", "why": "bench/controller.py did not end well"})
        except KeyboardInterrupt:
            interrupted = True
            say("interrupted: cleaning up")
        write_results(b, start, interrupted)
    finally:
        for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(s, signal.SIG_IGN)
        b.cleanup.unwind()
    say(f"{time.monotonic() - start:.0f} s; {os.path.relpath(o.document)} and {os.path.relpath(o.results)} are written")
    return 130 if interrupted else 1 if b.failures else 0


if __name__ == "__main__":
    sys.exit(main())
