#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How often encryption is noticed, and how often something else is taken for it: randomised trials with real programs on ext4.

    TIDEMARK_ENGINE=build/src/engine/tidemark-engine TIDEMARK_HOLDER=build/src/export/tidemark-holder \\
    bench/ransomware.py --trials 10

As root. Each trial has a volume of its own with new documents, and a seed; `--volumes` of them run at a time in one engine.
An attack is noticed when the volume's alarm comes within 60 s of the first ciphertext that reaches the volume: Linux keeps new
files in memory for up to 30 s before. Times are told from the attack's start (after_s) and from that write (after_write_s).
A harmless scenario is watched until 60 s after its end."""
import argparse
import json
import os
import random
import sys
import threading
import time

sys.path[:0] = [os.path.join(os.path.dirname(os.path.abspath(__file__)), "../tests/integration/", d) for d in ("engine", "signal")]
import lib  # noqa: E402
import scenarios  # noqa: E402

SECONDS = 60
UNWRITTEN_SECONDS = 40  # after so long an attack has reached the volume
TRACE_BYTES = 64 << 10


def signal(app, volume):
    return next(v for v in app.status()["volumes"] if v["name"] == volume)["signal"]


class Trial:
    def __init__(self, scenario, seed, discard):
        self.scenario, self.seed, self.discard = scenario, seed, discard
        self.attack = scenario in scenarios.ATTACKS
        self.result = {"scenario": scenario.__name__, "seed": seed, "discard": discard, "alarm": False, "after_s": None,
                       "after_write_s": None, "error": None}

    def prepare(self, test, app, volume, library):
        self.app, self.volume, self.library, self.dice = app, volume, library, random.Random(self.seed)
        self.root = "%s/%s" % (test.work, volume)
        os.chmod(test.work, 0o755)  # PostgreSQL runs as somebody else
        lib.run("mkfs.ext4", "-q", app.device(volume))
        test.mount(app.device(volume), self.root, *(["-o", "discard"] if self.discard else []))
        scenarios.documents(self.root, self.dice, library, self.dice.randrange(30, 60))
        if "log" in self.scenario.__doc__.lower():
            scenarios.logs(self.root, self.dice, self.dice.randrange(40, 80))

    def act(self):
        try:
            self.scenario(self.root, self.dice, self.library)
        except Exception as e:  # told in the results: the trial does not count
            self.result["error"] = repr(e)

    def watch(self):
        """Until the alarm, or until it is too late for one."""
        worker = threading.Thread(target=self.act)
        high = signal(self.app, self.volume)["high_entropy_bytes"] + TRACE_BYTES
        begin, written = time.monotonic(), None
        worker.start()
        end = begin + UNWRITTEN_SECONDS + SECONDS if self.attack else None
        while True:
            now = signal(self.app, self.volume)
            if written is None and now["high_entropy_bytes"] >= high:
                written = time.monotonic()
                end = written + SECONDS if self.attack else None
            if now["suspicious"]:
                self.result.update(alarm=True, after_s=round(time.monotonic() - begin, 1),
                                   after_write_s=round(time.monotonic() - (written or begin), 1))
                break
            if end is None and not worker.is_alive():
                end = time.monotonic() + SECONDS
            if end is not None and time.monotonic() > end:
                break
            time.sleep(0.2)  # the interval between two looks
        self.result["signal"] = signal(self.app, self.volume)
        worker.join()
        self.result["acted_s"] = round(time.monotonic() - begin, 1)


def batch(number, trials, mib):
    with lib.Test("ransomware", "mkfs.ext4", "openssl", "gpg", "zstd", "xz") as test:
        app = test.application({"v%d" % i: mib * lib.MIB for i in range(len(trials))}, ack="flush", quota=1 << 30)
        library = scenarios.Library(test.work, random.Random(number))
        for i, trial in enumerate(trials):
            trial.prepare(test, app, "v%d" % i, library)
        lib.run("sync")
        now = signal(app, "v0")["seconds"]
        lib.wait_for("the bitmaps to be read", lambda: signal(app, "v0")["seconds"] > now + 3)
        threads = [threading.Thread(target=t.watch) for t in trials]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        for i in range(len(trials)):
            test.unmount("%s/v%d" % (test.work, i))
        app.stop()


def table(results):
    print("%-20s %-8s %7s %7s %10s %10s" % ("scenario", "discard", "trials", "alarms", "median s", "latest s"))
    for name in dict.fromkeys(r["scenario"] for r in results):
        for discard in (False, True):
            these = [r for r in results if r["scenario"] == name and r["discard"] == discard and not r["error"]]
            times = sorted(r["after_s"] for r in these if r["alarm"])
            if these:
                print("%-20s %-8s %7d %7d %10s %10s" % (name, "yes" if discard else "no", len(these), len(times),
                                                        times[len(times) // 2] if times else "-", times[-1] if times else "-"))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5, help="of each scenario, half of them with the mount option discard")
    parser.add_argument("--volumes", type=int, default=8)
    parser.add_argument("--mib", type=int, default=320, help="size of a volume")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="names of scenarios")
    parser.add_argument("--json", help="file for all results")
    options = parser.parse_args()
    chosen = [s for s in scenarios.ATTACKS + scenarios.HARMLESS if not options.only or s.__name__ in options.only]
    trials = [Trial(s, options.seed * 1000003 + 7919 * n + i, n % 2 == 1) for n in range(options.trials) for i, s in enumerate(chosen)]
    results = []
    for at in range(0, len(trials), options.volumes):
        these = trials[at:at + options.volumes]
        batch(at, these, options.mib)
        results += [t.result for t in these]
        for t in these:
            print(json.dumps(t.result), flush=True)
        if options.json:
            with open(options.json, "w") as f:
                json.dump(results, f, indent=1)
    table(results)
    for what, attack in (("detected", True), ("false alarms", False)):
        these = [r for r in results if not r["error"] and (r["scenario"] in [a.__name__ for a in scenarios.ATTACKS]) == attack]
        print("%s: %d of %d" % (what, sum(r["alarm"] for r in these), len(these)))
    print("errors: %d" % sum(bool(r["error"]) for r in results))


if __name__ == "__main__":
    main()
