#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What the recorder's notes say, and small helpers for the shell.

    notes.py await NOTES COUNT SECONDS     waits until the notes have COUNT rows
    notes.py await-ns NS                   waits until the clock shows that time
    notes.py compare NOTES LOW HIGH        rows in stdin (one number a line) against the notes, as of a moment that lies
                                           between LOW and HIGH (ns): prints "before=N present=N lost=N leaked=N";
                                           status 1 if a row acknowledged before LOW is missing, one begun after HIGH
                                           is there, or a row is there without those before it
    notes.py get PATH                      a field of the JSON in stdin, such as volumes.0.name
    notes.py ns TIME                       an RFC 3339 time in ns
    notes.py time NS                       ns as an RFC 3339 time with fraction
    notes.py median NUMBER...              the middle one, with one digit after the point
    notes.py moments NOTES COUNT SEED      random moments (ns) between the first and the last row, ascending
"""
import datetime
import json
import random
import statistics
import sys
import time


def read_notes(path):
    rows = []
    with open(path, encoding="ascii") as f:
        for line in f:
            if not line.endswith("\n"):
                break
            number, begun, acked = line.split()
            rows.append((int(number), int(begun), None if acked == "-" else int(acked)))
    return rows


def compare(path, low, high):
    low, high = int(low), int(high)
    notes = read_notes(path)
    present = [int(line) for line in sys.stdin if line.strip()]
    found = set(present)
    before = [n for n, _, acked in notes if acked is not None and acked < low]
    allowed = {n for n, begun, _ in notes if begun <= high}
    lost = [n for n in before if n not in found]
    leaked = [n for n in present if n not in allowed]
    # A row that was begun may be there or not; but never without those before it, and never twice.
    broken = sorted(present) != list(range(1, len(present) + 1))
    print(f"before={len(before)} present={len(present)} lost={len(lost)} leaked={len(leaked)}")
    for what, rows in (("lost", lost), ("leaked", leaked)):
        if rows:
            print(f"{what}: {rows[:10]}", file=sys.stderr)
            for n, begun, acked in notes:
                if n in rows[:10]:
                    print(f"  row {n}: begun {begun - high} ns after the moment, acknowledged "
                          f"{'never' if acked is None else acked - low}", file=sys.stderr)
    if broken:
        print(f"the {len(present)} rows are no prefix of what was written", file=sys.stderr)
    return 1 if lost or leaked or broken else 0


def await_rows(path, count, seconds):
    end = time.monotonic() + float(seconds)
    while time.monotonic() < end:
        try:
            with open(path, "rb") as f:
                if f.read().count(b"\n") >= int(count):
                    return 0
        except FileNotFoundError:
            pass
        time.sleep(0.02)  # the interval between two looks
    print(f"{path}: still less than {count} rows after {seconds} s", file=sys.stderr)
    return 1


def await_ns(ns):
    while (left := int(ns) - time.time_ns()) > 0:
        time.sleep(left / 1e9)
    return 0


def get(path):
    value = json.load(sys.stdin)
    for key in path.split("."):
        value = value[int(key)] if isinstance(value, list) else value.get(key)
        if value is None:
            break
    print("null" if value is None else value if isinstance(value, str) else json.dumps(value))
    return 0


def to_ns(text):
    seconds, _, rest = text.partition(".")
    fraction = rest.rstrip("Z") if rest else ""
    moment = datetime.datetime.fromisoformat(seconds.rstrip("Z") + "+00:00")
    return int(moment.timestamp()) * 10**9 + int(fraction.ljust(9, "0")[:9] or 0)


def to_time(ns):
    seconds, fraction = divmod(int(ns), 10**9)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{fraction:09d}Z"


def moments(path, count, seed):
    notes = [row for row in read_notes(path) if row[2] is not None]
    source = random.Random(int(seed))
    for ns in sorted(source.randrange(notes[0][2], notes[-1][2]) for _ in range(int(count))):
        print(ns)
    return 0


def main():
    command, words = sys.argv[1], sys.argv[2:]
    if command == "compare":
        return compare(*words)
    if command == "await":
        return await_rows(*words)
    if command == "await-ns":
        return await_ns(*words)
    if command == "get":
        return get(*words)
    if command == "ns":
        print(to_ns(words[0]))
    elif command == "time":
        print(to_time(words[0]))
    elif command == "median":
        print(f"{statistics.median_high(float(w) for w in words):.1f}")
    elif command == "moments":
        return moments(*words)
    else:
        print(__doc__, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
