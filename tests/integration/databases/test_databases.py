#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""J3, J4 and the order over volumes, as MariaDB on ext4, Redis on XFS and SQLite on btrfs see them (PostgreSQL: ../postgres).

Writers go from database to database: row n of a chain is written to the next database once the one before has acknowledged it, and to
the first one again once the last has. Meanwhile the engine is killed again and again. At random moments, opened and rewound to, each
database must start as after a power failure at worst and find itself sound, hold what it had acknowledged by then, nothing begun later,
and no row that the database before it lacks.

SECONDS_OF_LOAD (15), MOMENTS (6) and SEED may be set. Needs root, /dev/fuse, loop devices, mkfs.xfs, MariaDB's server and client, and
redis-tools. Status 77: skipped.
"""
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
import unittest

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.join(HERE, "..", "control"), os.path.join(HERE, "..", "..", "..", "demo")]
from databases import CHAINS, MariaDB, Redis, SQLite  # noqa: E402
from notes import to_time  # noqa: E402
from stand import Stand, until  # noqa: E402

SEED = int(os.environ.get("SEED", random.randrange(1 << 32)))
SECONDS = int(os.environ.get("SECONDS_OF_LOAD", 15))
MOMENTS = int(os.environ.get("MOMENTS", 6))
BTRFS = os.path.exists("/sys/fs/btrfs/features/temp_fsid") and shutil.which("mkfs.btrfs")
VOLUMES = {"maria": ("ext4", "384Mi"), "redis": ("xfs", "384Mi"), "sqlite": ("btrfs" if BTRFS else "ext4", "256Mi")}


class Chain(threading.Thread):
    """The writer of one chain; notes for each row and database when it was begun and when acknowledged."""

    def __init__(self, number, databases, enough):
        super().__init__()
        self.number, self.databases, self.enough, self.error = number, databases, enough, None
        self.notes = [[] for _ in databases]  # (begun, acknowledged or None), in ns since 1970

    def run(self):
        writers = [database.writer() for database in self.databases]
        row = 0
        try:
            while not self.enough.is_set():
                row += 1
                for (write, _), notes in zip(writers, self.notes):
                    begun = time.time_ns()
                    notes.append((begun, None))
                    write(self.number, row)
                    notes[-1] = (begun, time.time_ns())
        except Exception as error:  # pylint: disable=broad-except
            self.error = error
        for _, close in writers:
            close()

    def bounds(self, database, low, high):
        """How many rows the database has at a moment between the two times: at least, at most."""
        notes = self.notes[database]
        return sum(1 for _, end in notes if end and end <= low), sum(1 for begun, _ in notes if begun <= high)


class Databases(unittest.TestCase):
    def setUp(self):
        self.random = random.Random(SEED)
        self.s = Stand()
        self.addCleanup(self.s.destroy)
        self.addCleanup(lambda: [database.kill() for database in self.running])
        self.running = []
        self.s.start()
        lines = "".join(f"  - {{name: {name}, size: {size}, mountPath: {self.s.path('mnt', name)}, fsType: {fs_type}}}\n"
                        for name, (fs_type, size) in VOLUMES.items())
        self.s.apply("apiVersion: tidemark.io/v1alpha1\nkind: ProtectedApplication\nmetadata: {name: shop}\nspec:\n  volumes:\n" + lines)

    def databases(self, directories, run):
        found = [Redis(directories["redis"], self.s.path(run, "redis")), MariaDB(directories["maria"], self.s.path(run, "maria")),
                 SQLite(directories["sqlite"], "wal"), SQLite(directories["sqlite"], "delete")]
        self.running += found
        return found

    def kill(self, databases):
        for database in databases:
            database.kill()
            self.running.remove(database)

    def live(self):
        return self.databases({name: self.s.path("mnt", name) for name in VOLUMES}, "run")

    def kill_engine(self):
        killed = self.s.status()["engine_pid"]
        os.kill(killed, signal.SIGKILL)
        until(lambda: self.s.status()["engine_pid"] not in (None, killed), "the next engine")

    def wait_until(self, ns):
        until(lambda: time.time_ns() > ns or any(chain.error for chain in self.chains), "that time", SECONDS)

    def load(self, databases):
        """Chains for SECONDS, with three kills of the engine and two tags; when it began and ended, and the tags with their bounds."""
        enough, tags = threading.Event(), []
        self.chains = [Chain(number, databases, enough) for number in range(CHAINS)]
        begun = time.time_ns()
        for chain in self.chains:
            chain.start()
        try:
            for turn in range(5):
                self.wait_until(begun + (turn + 1) * SECONDS * 10**9 // 6)
                if turn % 2 == 0:
                    self.kill_engine()
                else:
                    low = time.time_ns()
                    self.s.call("POST", "/v1/applications/shop/tag", {"name": f"t-{turn}"})
                    tags.append((f"tag:t-{turn}", low, time.time_ns()))
            self.wait_until(begun + SECONDS * 10**9)
        finally:
            enough.set()
            for chain in self.chains:
                chain.join()
        self.assertEqual([chain.error for chain in self.chains], [None] * CHAINS)
        return begun, time.time_ns(), tags

    def check(self, databases, low, high, what):
        found = []
        for number, database in enumerate(databases):
            database.start()
            found.append(database.counts())
            for chain, count in zip(self.chains, found[-1]):
                least, most = chain.bounds(number, low, high)
                self.assertTrue(least <= count <= most, f"{what}: {database.NAME} has {count} rows of chain {chain.number}, not {least} to {most}")
        for chain in range(CHAINS):
            counts = [of_one[chain] for of_one in found]
            self.assertEqual(counts, sorted(counts, reverse=True), f"{what}: a later database has more of chain {chain}")
            self.assertLessEqual(counts[0] - counts[-1], 1, f"{what}: databases are more than a row apart in chain {chain}")
        print(f"{what}: rows {[sum(of_one) for of_one in found]}", flush=True)

    def check_view(self, number, point, low, high):
        view = self.s.operate("/v1/applications/shop/open", {"point": point})["view"]
        databases = self.databases({volume["name"]: volume["mount"] for volume in view["volumes"]}, f"run-{number}")
        self.check(databases, low, high, point)
        self.kill(databases)
        self.s.call("DELETE", "/v1/views/" + view["id"])

    def check_rewind(self, live, point, low, high):
        self.kill(live)
        self.s.operate("/v1/applications/shop/rewind", {"to": point})
        live = self.live()
        self.check(live, low, high, "rewound to " + point)
        return live

    def test_each_moment_is_what_a_power_failure_would_have_left(self):
        live = self.live()
        for database in live:
            database.create()
        begun, ended, tags = self.load(live)
        moments = sorted(self.random.randrange(begun, ended) for _ in range(MOMENTS))
        for number, moment in enumerate(moments):
            self.check_view(number, to_time(moment), moment, moment)
        for number, (point, low, high) in enumerate(tags):
            self.check_view(MOMENTS + number, point, low, high)
        moment = self.random.choice(moments)
        live = self.check_rewind(live, to_time(moment), moment, moment)
        self.kill(live)
        self.s.operate("/v1/applications/shop/undo", {})
        live = self.live()
        self.check(live, ended, ended, "the rewind undone")
        self.kill(live)
        for name, (fs_type, _) in VOLUMES.items():
            if fs_type == "btrfs":
                subprocess.run(["btrfs", "scrub", "start", "-B", self.s.path("mnt", name)], check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    for program in ("mkfs.xfs", MariaDB.PROGRAM, "mariadb", "mariadb-install-db", Redis.PROGRAM):
        if not shutil.which(program):
            print(f"SKIP: needs {program} (scripts/install-deps)")
            sys.exit(77)
    if os.getuid() != 0 or not os.path.exists("/dev/fuse"):
        print("SKIP: needs root and /dev/fuse")
        sys.exit(77)
    print(f"seed {SEED}", flush=True)
    unittest.main(verbosity=2)
