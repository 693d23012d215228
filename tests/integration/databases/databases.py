# SPDX-License-Identifier: Apache-2.0
"""Databases with a durable commit, each in a directory of its own: to be filled, killed, and started on a copy of the directory.

What is written is a number of chains of rows; row `number` of `chain` has body(chain, number). A commit puts a row and what the chain's
last one is; write() returns when the database has acknowledged it.
"""
import hashlib
import os
import socket
import sqlite3
import subprocess
import threading

from stand import until

CHAINS = 3


def body(chain, number):
    """Up to 20 KB of text that is known from where it belongs."""
    seed = hashlib.sha256(b"%d %d" % (chain, number)).hexdigest()
    return seed * (1 + int(seed[:4], 16) % 320)


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()


def check_rows(rows, lasts):
    """rows: (chain, number, digest of the body); lasts: of each chain. Each chain is whole from 1 on; returns how many rows each has."""
    counts = [0] * CHAINS
    for chain, number, found in sorted(rows):
        counts[chain] += 1
        assert number == counts[chain], f"chain {chain} has row {number} and lacks row {counts[chain]}"
        assert found == digest(body(chain, number)), f"row {number} of chain {chain} has other contents"
    for chain, last in lasts:
        assert last == counts[chain], f"the last row of chain {chain} is said to be {last} and is {counts[chain]}"
    assert len(lasts) == sum(1 for count in counts if count), f"of the chains {counts} only {lasts} have a last row"
    return counts


class Server:
    """A database that is a process; `directory` is its data, `run` is for its socket and log."""

    def __init__(self, directory, run):
        self.directory, self.run, self.process = directory, run, None
        os.makedirs(run, exist_ok=True)
        self.socket, self.log = os.path.join(run, "socket"), os.path.join(run, "log")

    def start(self):
        if os.path.exists(self.socket):
            os.unlink(self.socket)
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(self.command(), executable=self.PROGRAM, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        until(self.answers, f"{self.NAME} answers")

    def answers(self):
        assert self.process.poll() is None, f"{self.NAME} ended with status {self.process.returncode}: {self.log_text()[-3000:]}"
        return self.is_ready()

    def log_text(self):
        with open(self.log, encoding="utf-8", errors="replace") as f:
            return f.read()

    def kill(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def check_log(self):
        for line in self.log_text().splitlines():
            for word in self.COMPLAINTS:
                assert word not in line.lower(), f"{self.NAME} complains: {line}"


class MariaDB(Server):
    """InnoDB beside the binary log: a commit is in both or, after recovery, in neither."""
    NAME, PROGRAM = "MariaDB", "/usr/sbin/mariadbd"
    COMPLAINTS = ("corrupt", "[error]", "checksum", "assertion", "signal ")

    def create(self):
        subprocess.run(["mariadb-install-db", "--no-defaults", "--user=root", "--datadir=" + self.data(), "--auth-root-authentication-method=normal",
                        "--skip-test-db"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.start()
        self.ask("CREATE DATABASE d", "CREATE TABLE d.notes (chain INT, number INT, body MEDIUMTEXT, PRIMARY KEY (chain, number), KEY (body(40)))",
                 "CREATE TABLE d.lasts (chain INT PRIMARY KEY, number INT)")

    def data(self):
        return os.path.join(self.directory, "data")

    def command(self):
        return ["mariadbd", "--no-defaults", "--user=root", "--datadir=" + self.data(), "--socket=" + self.socket, "--skip-networking",
                "--innodb-flush-log-at-trx-commit=1", "--log-bin=binlog", "--sync-binlog=1", "--innodb-buffer-pool-size=16M", "--innodb-log-file-size=8M",
                "--performance-schema=OFF"]

    def client(self):
        return ["mariadb", "--no-defaults", "--socket=" + self.socket, "--user=root", "--batch", "--skip-column-names", "--unbuffered"]

    def is_ready(self):
        return subprocess.run([*self.client(), "-e", "SELECT 1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0

    def ask(self, *statements):
        done = subprocess.run(self.client(), input=";\n".join(statements) + ";\n", stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 0, done.stderr
        return [line.split("\t") for line in done.stdout.splitlines()]

    def writer(self):
        process = subprocess.Popen(self.client(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

        def write(chain, number):
            process.stdin.write(f"BEGIN; INSERT INTO d.notes VALUES ({chain}, {number}, '{body(chain, number)}'); "
                                f"REPLACE INTO d.lasts VALUES ({chain}, {number}); COMMIT; SELECT {number};\n")
            process.stdin.flush()
            answer = process.stdout.readline().strip()
            assert answer == str(number), f"MariaDB answered '{answer}' to row {number}"

        def close():
            process.stdin.close()
            process.wait()
            process.stdout.close()
        return write, close

    def counts(self):
        for row in self.ask("CHECK TABLE d.notes, d.lasts EXTENDED"):
            assert row[2:] == ["status", "OK"], row
        self.check_log()
        rows = [(int(c), int(n), found) for c, n, found in self.ask("SELECT chain, number, SHA2(body, 256) FROM d.notes")]
        return check_rows(rows, [(int(c), int(n)) for c, n in self.ask("SELECT chain, number FROM d.lasts")])


class Redis(Server):
    """The append-only file, synced at each command, and written anew again and again."""
    NAME, PROGRAM = "Redis", "/usr/bin/redis-check-rdb"  # the same file, by whose name it is called; Debian's redis-server starts one by itself
    COMPLAINTS = ("corrupt", "bad file format", "checksum", "fatal", "crash")

    def create(self):
        self.start()

    def command(self):
        return ["redis-server", "--dir", self.directory, "--port", "0", "--unixsocket", self.socket, "--save", "", "--appendonly", "yes",
                "--appendfsync", "always", "--auto-aof-rewrite-min-size", "1mb", "--auto-aof-rewrite-percentage", "50"]

    def connect(self):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(120)
        try:
            connection.connect(self.socket)
        except OSError:
            connection.close()
            raise
        return connection, connection.makefile("rb")

    @staticmethod
    def answer(stream):
        line = stream.readline()
        kind, rest = line[:1], line[1:-2]
        if kind == b"*":
            return [Redis.answer(stream) for _ in range(int(rest))]
        if kind == b"$":
            return stream.read(int(rest) + 2)[:-2] if rest != b"-1" else None
        assert kind in (b"+", b":"), f"Redis answered {line!r}"
        return rest

    @staticmethod
    def ask(connection, *words):
        to, stream = connection
        parts = [str(word).encode() for word in words]
        to.sendall(b"*%d\r\n" % len(parts) + b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts))
        return Redis.answer(stream)

    def is_ready(self):
        try:
            connection = self.connect()
        except OSError:
            return False
        try:
            return self.ask(connection, "PING") == b"PONG"
        except AssertionError as error:
            if "LOADING" in str(error):
                return False
            raise
        finally:
            self.close(connection)

    @staticmethod
    def close(connection):
        connection[1].close()
        connection[0].close()

    def writer(self):
        connection = self.connect()

        def write(chain, number):
            for words in (("MULTI",), ("SET", f"note:{chain}:{number}", body(chain, number)), ("SET", f"last:{chain}", number)):
                self.ask(connection, *words)
            assert self.ask(connection, "EXEC") == [b"OK", b"OK"]
        return write, lambda: self.close(connection)

    def counts(self):
        self.check_log()
        connection = self.connect()
        rows, lasts = [], []
        for key in self.ask(connection, "KEYS", "*"):
            kind, *numbers = key.decode().split(":")
            value = self.ask(connection, "GET", key.decode()).decode()
            if kind == "note":
                rows.append((int(numbers[0]), int(numbers[1]), digest(value)))
            else:
                lasts.append((int(numbers[0]), int(value)))
        self.close(connection)
        return check_rows(rows, lasts)


class SQLite:
    """In this process. `mode` is the journal's: wal, or delete, where a commit is the removal of a file."""

    def __init__(self, directory, mode):
        self.file, self.mode, self.NAME = os.path.join(directory, mode + ".db"), mode, "SQLite, " + mode
        self.order = threading.Lock()  # as an application would: who waits for SQLite's own lock polls it

    def create(self):
        database = self.connect()
        database.execute("CREATE TABLE notes (chain INT, number INT, body TEXT, PRIMARY KEY (chain, number))")
        database.execute("CREATE INDEX bodies ON notes (body)")
        database.execute("CREATE TABLE lasts (chain INT PRIMARY KEY, number INT)")
        database.close()

    def start(self):
        pass

    def kill(self):
        pass

    def connect(self):
        database = sqlite3.connect(self.file, timeout=120, isolation_level=None, check_same_thread=False)
        database.execute("PRAGMA journal_mode = " + self.mode)
        database.execute("PRAGMA synchronous = EXTRA")
        database.execute("PRAGMA wal_autocheckpoint = 100")
        return database

    def writer(self):
        database = self.connect()

        def write(chain, number):
            with self.order:
                database.execute("BEGIN IMMEDIATE")
                database.execute("INSERT INTO notes VALUES (?, ?, ?)", (chain, number, body(chain, number)))
                database.execute("INSERT OR REPLACE INTO lasts VALUES (?, ?)", (chain, number))
                database.execute("COMMIT")
        return write, database.close

    def counts(self):
        database = self.connect()
        said = database.execute("PRAGMA integrity_check").fetchall()
        assert said == [("ok",)], said
        rows = [(chain, number, digest(text)) for chain, number, text in database.execute("SELECT * FROM notes")]
        lasts = database.execute("SELECT * FROM lasts").fetchall()
        database.close()
        return check_rows(rows, lasts)
