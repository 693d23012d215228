# SPDX-License-Identifier: Apache-2.0
"""Parts of bench/run.py: background work under load, recovery after a kill, opening at sizes that are synthesized, compression and encryption at rest.

Each has a function that measures (given the Bench), one for its targets and one for its section of docs/benchmarks.md.
"""
import datetime
import http.client
import json
import math
import mmap
import os
import signal
import socket
import statistics
import subprocess
import threading
import time

GIB = 1 << 30
MIB = 1 << 20


def row(what, target, value, good, short, spread=None):
    return {"what": what, "target": target, "value": value, "spread": spread,
            "result": "FAILED to run" if value is None else "PASS" if good else f"short of {short}"}


def table(head, rows):
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return lines + ["| " + " | ".join(str(c) for c in r) + " |" for r in rows] + [""]


# ---- background work under load ----

THIN_AFTER = 5
WORKS = {  # what goes on besides sealing and merging: seconds of a run, fields of engine.json
    "none": (45, {}),
    "thinning": (45, {"thinning": [{"after_ns": THIN_AFTER * 10**9, "keep_s": 5}]}),
    "compressing": (25, {"compress_after_ns": 10**9}),
    "dropping": (25, {"quota_bytes": GIB}),
}


def thin(b):
    """100 MB/s of random writes, with each kind of background work in turn and without: what it does to the application's
    latency, and whether thinning keeps up."""
    for number in range(1 if b.o.quick else min(b.o.rounds, 3)):
        for work in list(WORKS)[::1 if number % 2 else -1]:
            b.say(f"thin: round {number + 1}, {work}")
            b.guarded(f"thin, {work}, round {number + 1}", thin_one, b, number, work)


def thin_one(b, number, work):
    d = b.place("thin")
    size = min(b.o.size_bytes, GIB // 2)
    seconds, config = WORKS[work]
    seconds = 30 if b.o.quick and work == "thinning" else 5 if b.o.quick else seconds
    b.engine_config(d, "write", 1, size, more=config)
    engine = b.engine_nbd(d)
    command = ["fio", "--name=j", f"--size={size}", "--group_reporting", "--output-format=json", "--randrepeat=0", "--norandommap",
               "--rw=randwrite", "--bs=4k", "--iodepth=16", "--rate=100m", "--rate_process=poisson", "--buffer_compress_percentage=50",
               "--ioengine=nbd", f"--uri=nbd+unix:///data?socket={d}/s", f"--runtime={seconds}", "--time_based"]
    b.commands.setdefault("thin", " ".join(command).replace(b.dir, "$DIR"))
    b.quiet()
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    b.cleanup.push(b.kill, p)
    begun, steps = time.time(), []
    while time.time() - begun < seconds + 60 and p.poll() is None:
        time.sleep(0.25)
        if work == "thinning":
            steps.append((time.time(), thinned_to(d, begun)))
    out, err = p.communicate(timeout=60)
    if p.returncode:
        raise b.Failed(f"fio ended with {p.returncode}: {err[-300:]}")
    write = json.loads(out[out.index("{"):])["jobs"][0]["write"]
    percentile = write["clat_ns"]["percentile"]
    b.thinning.append({"round": number + 1, "work": work, "mib_s": write["bw_bytes"] / MIB, "p50_us": percentile["50.000000"] / 1e3,
                       "p99_us": percentile["99.000000"] / 1e3, "stretches": stretches(steps, begun), "cpu": thread_seconds(engine.pid),
                       "status": {k: v for k, v in status(d).items() if k in ("journal_bytes", "compressed_bytes", "oldest_lsn", "lsn")}})


def stretches(steps, begun):
    """Of each stretch that was thinned: the seconds of writes that it had, and those from when it was old enough until it was done."""
    found, before = [], begun
    for now, to in steps:
        if to > before:
            found.append({"seconds": to - before, "took": now - THIN_AFTER - to})
            before = to
    return found


def thread_seconds(pid):
    """CPU seconds so far by name of thread."""
    seconds = {}
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/stat") as f:
            name, rest = f.read().split("(", 1)[1].rsplit(")", 1)
        x = rest.split()
        seconds[name] = seconds.get(name, 0) + (int(x[11]) + int(x[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def status(d):
    return ask(d, "GET", "/v1/status")


def ask(d, method, target):
    class Connection(http.client.HTTPConnection):
        def connect(self):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(f"{d}/engine.sock")
    c = Connection("engine", timeout=30)
    c.request(method, target, "{}" if method == "POST" else None, {"Content-Type": "application/json"})
    answer = json.loads(c.getresponse().read())
    c.close()
    return answer


def thinned_to(d, begun):
    spans = status(d)["history"]["spans"]
    thinned = [s["to"] for s in spans if s["granularity_seconds"]]
    return datetime.datetime.fromisoformat(thinned[-1].replace("Z", "+00:00")[:26].rstrip("+") + "+00:00").timestamp() if thinned else begun


def thin_ratios(b, work):
    quiet = {s["round"]: s for s in b.thinning if s["work"] == "none"}
    return [s["p99_us"] / quiet[s["round"]]["p99_us"] for s in b.thinning if s["work"] == work and s["round"] in quiet]


def thin_targets(b):
    rows = []
    for work in list(WORKS)[1:]:
        each = thin_ratios(b, work)
        value = round(statistics.median(each), 2) if each else None
        rows.append(row(f"p99 of 100 MB/s 4K random writes, {work} / none", "<= 1.20", value, each and value <= 1.2, "1.20",
                        [round(min(each), 2), round(max(each), 2)] if each else None))
    each = [max(x["took"] / x["seconds"] for x in s["stretches"]) for s in b.thinning if s["stretches"]]
    missing = any(s["work"] == "thinning" and not s["stretches"] for s in b.thinning)
    value = None if missing or not each else round(statistics.median(each), 2)
    rows.append(row("thinning at 100 MB/s: time it takes / time in which that was written", "<= 1.00", value, value and value <= 1, "1.00",
                    [round(min(each), 2), round(max(each), 2)] if each else None))
    return rows


def thin_document(b):
    if not b.thinning:
        return []
    out = ["## Background work under load", "", "4K random writes at 100 MB/s by NBD over 512 MiB, which compress by half; beside it nothing but sealing and merging; thinning of "
           f"everything older than {THIN_AFTER} s to a point every 5 s; compressing of all that is sealed; dropping by a quota of 1 GiB. Thinning: seconds of writes in each stretch, and "
           "how long it took from when these were old enough. Janitor: CPU seconds a second of its thread, which does all of this.", ""]
    rows = []
    for s in b.thinning:
        took = ", ".join(f"{x['seconds']:.0f} in {x['took']:.1f}" for x in s["stretches"])
        rows.append([s["round"], s["work"], f"{s['mib_s']:.0f}", f"{s['p50_us']:.0f} / {s['p99_us']:.0f}", took,
                     f"{s['cpu'].get('journal-janitor', 0) / WORKS[s['work']][0]:.2f}"])
    return out + table(["round", "work", "MiB/s", "p50 / p99 us", "thinned, s", "janitor"], rows)


# ---- recovery ----

class Prober(threading.Thread):
    """Writes one block after the other to a device and keeps how long each took."""

    def __init__(self, device):
        super().__init__(daemon=True)
        self.fd = os.open(device, os.O_RDWR | os.O_DIRECT)
        self.data = mmap.mmap(-1, 4096)
        self.samples = []  # (begun, seconds)
        self.error = None
        self.stopping = False

    def run(self):
        try:
            while not self.stopping:
                begun = time.monotonic()
                os.pwrite(self.fd, self.data, 0)
                self.samples.append((begun, time.monotonic() - begun))
                time.sleep(0.001)
        except OSError as e:
            self.error = e

    def longest(self, begun, end):
        return max((s for b, s in self.samples if b + s >= begun and b <= end), default=0.0)

    def stop(self):
        self.stopping = True
        self.join(60)
        os.close(self.fd)


def recovery(b):
    """A journal of 10 GB; four volumes under load, and the engine is killed again and again."""
    o = b.o
    d = b.place("recovery")
    volume = 128 * MIB if o.quick else 512 * MIB
    writes = 60_000 if o.quick else 2_500_000
    common = ["--volumes", "4", "--volume-bytes", str(volume)]
    b.say(f"recovery: filling a journal with {writes} writes")
    fill = json.loads(b.run([f"{o.build}/bench/journal_fill", "--directory", d, *common, "--until", str(writes)], 3600))
    names = b.engine_config(d, "write", 4, volume)
    b.holder(d, names)
    device = b.loop(f"{d}/fuse/{names[0]}/vol")
    loaded = b.loop(f"{d}/fuse/{names[1]}/vol")
    kills = 2 if o.quick else 6
    command = ["fio", "--name=j", f"--filename={loaded}", "--direct=1", "--ioengine=io_uring", "--rw=randwrite", "--bs=4k", "--iodepth=32",
               "--time_based", f"--runtime={2 * kills * 7 + 20}", "--randrepeat=0", "--norandommap", "--output-format=json"]
    b.commands.setdefault("recovery", " ".join(command).replace(b.dir, "$DIR"))
    fio = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    b.cleanup.push(b.kill, fio)
    prober = Prober(device)
    prober.start()
    b.cleanup.push(prober.stop)
    time.sleep(2)
    b.recovering = {"fill": fill, "kills": kill_again(b, d, prober, fio, kills)}
    acknowledge(d, "flush")  # what is not written yet comes from the ring then
    b.say("recovery: in mode flush")
    time.sleep(2)
    b.recovering["flush_kills"] = kill_again(b, d, prober, fio, kills)
    b.say("recovery: a loss of power")
    d2 = b.place("power")
    out = b.run([f"{o.build}/bench/recovery_time", "--directory", d2, "--gib", "1" if o.quick else "2", "--recent-mib", "64"], 1200)
    b.recovering["cases"] = [json.loads(line) for line in out.splitlines() if line.startswith("{")]


def acknowledge(d, mode):
    """Changes the mode of acknowledgement while the engine runs."""
    with open(f"{d}/engine.json") as f:
        config = json.load(f)
    with open(f"{d}/engine.json", "w") as f:
        json.dump({**config, "ack": mode}, f)
    ask(d, "POST", "/v1/configure")
    if status(d)["ack"] != mode:
        raise RuntimeError(f"the engine does not acknowledge in mode {mode}")


def kill_again(b, d, prober, fio, kills):
    pauses = []
    for i in range(kills):
        with open(f"{d}/engine.sock.pid") as f:
            pid = int(f.read())
        begun = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        # The holder waits before it restarts what dies within 5 s; and the next kill meets a segment that is filled otherwise.
        time.sleep(5.3 + 0.17 * i)
        pauses.append({"pause_s": prober.longest(begun, begun + 5), "usual_s": prober.longest(begun - 1, begun - 0.01)})
        if prober.error or fio.poll() is not None:
            raise b.Failed(f"after kill {i + 1}: {prober.error or fio.stderr.read().decode()[-300:]}")
    return pauses


def recovery_targets(b):
    gib = b.recovering["fill"]["journal_bytes"] / GIB if b.recovering else 10
    rows = []
    for key, mode in (("kills", ""), ("flush_kills", ", ack flush")):
        pauses = [k["pause_s"] for k in b.recovering.get(key, [])] if b.recovering else []
        rows.append(row(f"I/O goes on after kill -9, journal of {gib:.0f} GiB, under load{mode}: longest pause, s", "<= 1.00",
                        round(max(pauses), 2) if pauses else None, pauses and max(pauses) <= 1, "1.00",
                        [round(min(pauses), 2), round(max(pauses), 2)] if pauses else None))
    return rows


def recovery_document(b):
    r = b.recovering
    if not r:
        return []
    out = ["## Recovery", "", f"A journal of {r['fill']['journal_bytes'] / GIB:.1f} GiB ({r['fill']['segments']} segments) of random 4K writes over four volumes; "
           "by FUSE and loop devices, fio writes 4K at QD32 to one volume and a prober one block after the other to another; the engine is killed by "
           "SIGKILL. Pause: the longest write of the prober around the kill; usual: in the second before.", ""]
    out += table(["ack", "kill", "pause", "usual"], [[mode, i + 1, f"{k['pause_s'] * 1e3:.0f} ms", f"{k['usual_s'] * 1e3:.0f} ms"]
                                                    for mode, key in (("write", "kills"), ("flush", "flush_kills")) for i, k in enumerate(r.get(key, []))])
    if r.get("cases"):
        out += ["In the process, without FUSE, the page cache dropped: `kill`; `power`, what the write-intent bitmap names is compared; `power-all`, everything is.", ""]
        out += table(["case", "first write after", "points served after", "compared"],
                     [[c["case"], f"{c['first_write_s'] * 1e3:.0f} ms", f"{c['protected_s'] * 1e3:.0f} ms", f"{c['compared_mib']} MiB"] for c in r["cases"]])
    return out


# ---- opening at 10^8 ----

def scale(b):
    """Sizes are measured in turn, so that a slow minute of the machine meets them all."""
    o = b.o
    sizes = [100_000, 300_000, 1_000_000] if o.quick else [100_000, 10_000_000, 100_000_000]
    volume = 512 * MIB
    directories = {}
    for writes in sizes:
        d = directories[writes] = b.place(f"scale-{writes}")
        b.say(f"scale: making a journal of {writes} writes")
        every = "1" if writes < 100_000_000 else "13"
        made = json.loads(b.run([f"{o.build}/bench/journal_synth", "--directory", d, "--writes", str(writes), "--volume-bytes", str(volume),
                                 "--every", every], 1800))
        made["index_bytes"] = sum(os.stat(os.path.join(d, "journal", n)).st_size for n in os.listdir(f"{d}/journal") if n.endswith(".idx"))
        b.scaling.append({"writes": writes, "made": made, "rounds": []})
    for number in range(1 if o.quick else 3):
        for at in b.scaling:
            b.say(f"scale: round {number + 1}, {at['writes']} writes")
            b.guarded(f"scale at {at['writes']}, round {number + 1}", scale_round, b, at, directories[at["writes"]], volume)


def scale_round(b, at, d, volume):
    program = [f"{b.o.build}/bench/open_latency", "--directory", d, "--volumes", "4", "--volume-bytes", str(volume), "--opens", "100",
               "--stretch", at["made"]["stretch"], "--seed", str(len(at["rounds"]) + 1)]
    b.commands.setdefault("scale", " ".join(program).replace(b.dir, "$DIR").replace(b.o.build, "$BUILD"))
    sample = {}
    b.quiet()
    sample["inside"] = json.loads(b.run(program + ["--tail", "1000"]))
    sample["cold"] = json.loads(b.run(program + ["--cold", "--opens", "30"]))
    b.engine_config(d, "write", 4, volume)
    b.quiet()
    depth = len(b.cleanup.steps)
    b.engine_nbd(d)
    sample["socket"] = json.loads(b.run(program + ["--socket", f"{d}/engine.sock"]))
    b.cleanup.unwind(depth)
    at["rounds"].append(sample)


def of_rounds(at, kind, step, part):
    values = [r[kind][f"{step}_us"][part] / 1e3 for r in at["rounds"] if kind in r]
    return statistics.median(values) if values else None


def scale_targets(b):
    rows = []
    for kind in ("inside", "cold", "socket"):
        for at in b.scaling[-1:] or [{"writes": 100_000_000, "rounds": []}]:
            value = of_rounds(at, kind, "total", "p99")
            rows.append(row(f"open, {kind}, {at['writes']:.0e} synthesized writes: p99 ms", "<= 100", value and round(value, 2), value and value <= 100, "100"))
    sized = [at for at in b.scaling if at["writes"] <= 10_000_000]
    if len(sized) >= 2 and sized[0]["rounds"] and sized[-1]["rounds"]:
        a, z = sized[0], sized[-1]
        limit = math.log(z["writes"]) / math.log(a["writes"])
        for kind in ("inside", "socket"):
            each = [y[kind]["total_us"]["p50"] / x[kind]["total_us"]["p50"] for x, y in zip(a["rounds"], z["rounds"])]
            value = round(statistics.median(each), 2)
            rows.append(row(f"open, {kind}: growth of p50 from {a['writes']:.0e} to {z['writes']:.0e} synthesized", f"<= {limit:.2f} (log n)", value,
                            value <= limit, f"{limit:.2f}", [round(min(each), 2), round(max(each), 2)]))
    return rows


def scale_document(b):
    if not b.scaling:
        return []
    out = ["## Opening among 10^8 writes", "", "As above, in journals whose manifest, indexes and runs are real and whole, but whose payload is zeroes in sparse files "
           "(`bench/journal_synth`): random 4K writes over four volumes of 512 MiB. The sizes take turns; medians of the rounds, ms.", ""]
    rows = []
    for at in b.scaling:
        for kind in ("inside", "cold", "socket"):
            if at["rounds"]:
                rows.append([f"{at['writes']:.0e}", kind] + [f"{of_rounds(at, kind, s, 'p50'):.2f} / {of_rounds(at, kind, s, 'p99'):.2f}"
                                                              for s in ("pin", "open", "read", "total")])
    out += table(["writes", "way", "pin p50 / p99", "open", "read", "total"], rows)
    return out + table(["writes", "segments", "runs", "indexes GiB", "s to make"],
                       [[f"{at['writes']:.0e}", at["made"]["segments"], at["made"]["runs"], f"{at['made']['index_bytes'] / GIB:.2f}",
                         f"{at['made']['indexes_s'] + at['made']['merging_s']:.0f}"] for at in b.scaling])


# ---- compression and encryption ----

def postgres_pages(b):
    """The files of a database that pgbench has filled and changed, one after the other."""
    d = b.place("pg")
    programs = sorted(p for p in (os.path.join("/usr/lib/postgresql", v, "bin") for v in os.listdir("/usr/lib/postgresql")) if os.path.exists(f"{p}/pgbench")) \
        if os.path.isdir("/usr/lib/postgresql") else []
    if not programs:
        raise b.Failed("PostgreSQL is not installed; run make deps")
    as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"]
    b.run(["chown", "postgres", d])
    for parent in (b.dir, d):
        os.chmod(parent, 0o755)
    data = f"{d}/data"
    b.run(as_user + [f"{programs[-1]}/initdb", "-D", data, "-U", "postgres", "--auth=trust", "-N"])
    p = b.daemon(as_user + [f"{programs[-1]}/postgres", "-D", data, "-k", d, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "max_wal_size=256MB"], f"{d}/log")
    client = as_user + ["env", f"PGHOST={d}", "PGUSER=postgres"]
    b.wait_for(lambda: subprocess.run(client + [f"{programs[-1]}/pg_isready", "-q"]).returncode == 0, "PostgreSQL", p, f"{d}/log")
    b.run(client + [f"{programs[-1]}/pgbench", "-q", "-i", "-s", "2" if b.o.quick else "20", "postgres"])
    b.run(client + [f"{programs[-1]}/pgbench", "-c", "4", "-T", "2" if b.o.quick else "8", "postgres"])
    b.run(client + [f"{programs[-1]}/psql", "-qc", "CHECKPOINT", "postgres"])
    b.kill(p)
    content = f"{d}/content"
    with open(content, "wb") as out:
        for base, _, names in sorted(os.walk(data)):
            for n in sorted(names):
                with open(os.path.join(base, n), "rb") as f:
                    pages = f.read()
                out.write(pages[:len(pages) // 8192 * 8192])
    return content


def compress(b):
    o = b.o
    content = postgres_pages(b)
    mib = 128 if o.quick else 512
    for name, extra in (("pgbench", ["--content", content]), ("random", [])):
        for encrypted in (False, True):
            b.say(f"compress: {name}{', encrypted' if encrypted else ''}")
            b.guarded(f"compress {name}", compress_one, b, name, extra, encrypted, mib)


def compress_one(b, name, extra, encrypted, mib):
    d = b.place("compress")
    command = [f"{b.o.build}/bench/compress_cost", "--directory", d, "--mib", str(mib), *extra]
    if encrypted:
        b.run([f"{b.o.build}/src/cli/tidemark", "key", "generate", "-q", f"{d}/key"])
        command += ["--key-file", f"{d}/key"]
    b.commands.setdefault(f"compress {name}", " ".join(command).replace(b.dir, "$DIR").replace(b.o.build, "$BUILD"))
    b.quiet()
    b.compressing.append({"content": name, "encrypted": encrypted, **json.loads(b.run(command))})


def compress_targets(b):
    return []  # the issue gives none


def compress_document(b):
    if not b.compressing:
        return []
    out = ["## Compression and encryption at rest", "", "Requests of 8 KiB at random places: pages of a database that pgbench filled and changed, or random bytes (which are looked at and "
           "left as they are). CPU seconds are of the whole process, a GiB of what was written or compressed. View: random 4K reads of a view just opened, from the disk (direct I/O), before and after "
           "compressing.", ""]
    rows = []
    for c in b.compressing:
        ratio = f"{c['cold_plain_bytes'] / c['cold_bytes']:.2f}" if c["cold_bytes"] else "not compressed"
        gib = c["plain_bytes"] / GIB
        rows.append([c["content"], "yes" if c["encrypted"] else "no", f"{c['fill_cpu_s'] / gib:.2f}", ratio, f"{c['compress_cpu_s'] / gib:.2f}",
                     f"{gib * 1024 / max(c['compress_s'], 1e-3):.0f}", f"{c['before']['p50_us']:.0f} / {c['before']['p99_us']:.0f}",
                     f"{c['after']['p50_us']:.0f} / {c['after']['p99_us']:.0f}"])
    return out + table(["content", "encrypted", "write: CPU s/GiB", "ratio", "compress: CPU s/GiB", "MiB/s", "view p50 / p99 us before", "after"], rows)


PARTS = {"thin": (thin, thin_targets, thin_document, "thinning"), "recovery": (recovery, recovery_targets, recovery_document, "recovering"), "scale": (scale, scale_targets, scale_document, "scaling"),
         "compress": (compress, compress_targets, compress_document, "compressing")}
