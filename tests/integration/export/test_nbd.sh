#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# NBD: exports by name, data, holes, several connections, refusals.
. "$(dirname "$0")/common.sh"
for program in nbdinfo nbdcopy qemu-img qemu-io; do command -v $program >/dev/null || skip "needs $program"; done
start_nbd() { # VOLUME...
    printf '%s\n' "$@" >"$work/config"
    "$NBD_SERVER" "$work/config" "$work/nbd.sock" "$work/nbd.pid" 2>>"$work/log" &
    holder_pid=$!
    wait_for 10 test -s "$work/nbd.pid" || fail "it did not start"
}
stop_nbd() {
    kill -TERM "$holder_pid"
    wait "$holder_pid" || fail "it ended with status $?"
    holder_pid=
}
uri() { echo "nbd+unix:///$1?socket=$work/nbd.sock"; }

! "$NBD_SERVER" "$work/missing" "$work/nbd.sock" "$work/nbd.pid" 2>"$work/message" || fail "started without configuration"
grep -q "cannot open" "$work/message" || fail "message: $(cat "$work/message")"

start_nbd "data 134217728 $work/data.img" "wal 67108864 memory"
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
# Debian's Python has the module, another one that comes first in PATH does not.
if /usr/bin/python3 -c 'import nbd' 2>/dev/null; then
    PATH=/usr/bin:$PATH nbdsh --uri "$(uri data)" --command '
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
# Large requests, several connections, and a client that goes in the middle.
nbdcopy --connections=4 --request-size=4194304 "$work/image" "$(uri data)" || fail "nbdcopy"
nbdcopy --connections=2 "$(uri data)" - | cmp - "$work/image" || fail "nbdcopy back"
for i in 1 2 3; do
    nbdcopy "$work/image" "$(uri wal)" 2>/dev/null &
    client=$!
    kill -KILL $client
    wait $client 2>/dev/null || true
done
nbdinfo "$(uri wal)" >/dev/null || fail "a killed client ended the server"
if command -v nbdfuse >/dev/null && [[ -e /dev/fuse ]]; then
    mkdir "$work/nbdfuse"
    nbdfuse "$work/nbdfuse" "$(uri data)" &
    client=$!
    wait_for 10 test -e "$work/nbdfuse/nbd" || fail "nbdfuse"
    cmp "$work/nbdfuse/nbd" "$work/image" || fail "nbdfuse reads something else"
    umount "$work/nbdfuse"
    wait $client || fail "nbdfuse ended with status $?"
fi
! "$NBD_SERVER" "$work/config" "$work/nbd.sock" "$work/pid2" 2>"$work/message" || fail "a second one served the same socket"
grep -q "cannot listen" "$work/message" || fail "message: $(cat "$work/message")"
stop_nbd
[[ ! -e $work/nbd.sock && ! -e $work/nbd.pid ]] || fail "socket or pid file is left"
# What was written is in the backing file.
cmp -n 4096 -i 1048576 "$work/image" "$work/data.img" || fail "the data is not in the backing file"

start_nbd "only 67108864 memory"
kill -KILL "$holder_pid"
wait "$holder_pid" 2>/dev/null || true
rm "$work/nbd.pid"
start_nbd "only 67108864 memory" # over the socket that is left
nbdinfo "$(uri "")" | grep -q "export-size: 67108864" || fail "one volume is not the default"
# Killed by SIGTERM with a client connected: ends all the same.
qemu-io -f raw -c "write 0 1M" -c "read 0 1M" "$(uri only)" >/dev/null || fail "qemu-io"
stop_nbd
