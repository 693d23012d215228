#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The NBD shim: exports by name, data, holes, several connections, refusals.
. "$(dirname "$0")/common.sh"
for program in nbdkit nbdinfo qemu-img; do command -v $program >/dev/null || skip "needs $program"; done
start_nbdkit() { # VOLUME...
    printf '%s\n' "$@" >"$work/config"
    rm -f "$work/nbd.sock" "$work/nbdkit.pid"
    nbdkit --foreground --unix "$work/nbd.sock" --pidfile "$work/nbdkit.pid" "$NBDKIT_PLUGIN" "config=$work/config" role=view \
        2>>"$work/log" &
    holder_pid=$!
    wait_for 10 test -s "$work/nbdkit.pid" || fail "nbdkit did not start"
}
stop_nbdkit() {
    kill -TERM "$holder_pid"
    wait "$holder_pid" || fail "nbdkit ended with status $?"
    holder_pid=
}
uri() { echo "nbd+unix:///$1?socket=$work/nbd.sock"; }

nbdkit --dump-plugin "$NBDKIT_PLUGIN" | grep -q "^max_thread_model=parallel" || fail "thread model"
! nbdkit --foreground --unix "$work/nbd.sock" "$NBDKIT_PLUGIN" 2>"$work/message" || fail "started without configuration"
grep -q "config=FILE" "$work/message" || fail "message: $(cat "$work/message")"
! nbdkit --foreground --unix "$work/nbd.sock" "$NBDKIT_PLUGIN" "config=$work/missing" 2>"$work/message" || fail "started"
grep -q "cannot open" "$work/message" || fail "message: $(cat "$work/message")"

start_nbdkit "data 134217728 $work/data.img" "wal 67108864 memory"
nbdinfo --list "$(uri "")" >"$work/list"
grep -q 'export="data"' "$work/list" && grep -q 'export="wal"' "$work/list" || fail "list: $(cat "$work/list")"
nbdinfo "$(uri data)" >"$work/info"
for line in "export-size: 134217728" "can_multi_conn: true" "can_fua: true" "can_fast_zero: true" "can_trim: true" \
    "block_size_minimum: 512" "block_size_preferred: 4096" "block_size_maximum: 33554432"; do
    grep -q "$line" "$work/info" || fail "no '$line' in $(cat "$work/info")"
done
! nbdinfo "$(uri other)" 2>/dev/null || fail "a volume that is not there was opened"
! nbdinfo "$(uri "")" 2>/dev/null || fail "the empty name was opened with two volumes"

if fio --enghelp | grep -qw nbd; then
    for name in data wal; do
        run_fio verify --ioengine=nbd --uri="$(uri $name)" --rw=randwrite --bsrange=4k-128k --iodepth=32 --numjobs=2 \
            --size=16m --offset_increment=32m --verify=crc32c --verify_fatal=1 --group_reporting --fsync=32
    done
fi
dd if=/dev/urandom of="$work/image" bs=1M count=8 status=none
truncate -s 128M "$work/image"
qemu-img convert -n -f raw -O raw "$work/image" "$(uri data)"
qemu-img compare -f raw -F raw "$work/image" "$(uri data)" || fail "the image is not the same"
nbdinfo --map "$(uri data)" >"$work/map"
grep -q "hole,zero" "$work/map" || fail "no hole in $(cat "$work/map")"
if command -v nbdsh >/dev/null; then
    nbdsh --uri "$(uri data)" --command '
h.pwrite(b"x" * 65536, 0, nbd.CMD_FLAG_FUA)
h.zero(16384, 8192, nbd.CMD_FLAG_NO_HOLE | nbd.CMD_FLAG_FUA)
h.trim(16384, 32768)
h.flush()
data = bytes(h.pread(65536, 0))
assert data == b"x" * 8192 + bytes(16384) + b"x" * 8192 + bytes(16384) + b"x" * 16384
h.set_strict_mode(0)
for call in (lambda: h.pread(100, 0), lambda: h.pwrite(b"x" * 512, 134217728), lambda: h.trim(512, 100)):
    try:
        call()
    except nbd.Error as e:
        assert e.errno in ("EINVAL", "ENOSPC", "EIO"), e.errno
    else:
        raise AssertionError("a bad range was taken")
' || fail "nbdsh"
fi
stop_nbdkit
# What was written is in the backing file.
cmp -n 4096 -i 1048576 "$work/image" "$work/data.img" || fail "the data is not in the backing file"

start_nbdkit "only 67108864 memory"
nbdinfo "$(uri "")" | grep -q "export-size: 67108864" || fail "one volume is not the default"
# Killed by SIGTERM with a client connected: ends all the same.
qemu-io -f raw -c "write 0 1M" -c "read 0 1M" "$(uri only)" >/dev/null || fail "qemu-io"
stop_nbdkit
