#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The server is killed 20 times under fio's verification: no I/O error, and all data is right.
. "$(dirname "$0")/common.sh"
needs_fuse
needs_resend
kills=${TIDEMARK_KILLS:-20}
start_holder "data 536870912 $work/data.img"
attach data
# Passes of writing and reading back, as many as the kills take.
passes() {
    trap - EXIT
    until [ -e "$work/enough" ]; do
        fio --name=crash --output="$work/fio" --filename="$device" --direct=1 --ioengine=io_uring --rw=randwrite \
            --bsrange=4k-128k --iodepth=32 --numjobs=2 --size=96m --offset_increment=256m --verify=crc32c \
            --verify_fatal=1 --do_verify=1 --fdatasync=64 --randrepeat=0 --group_reporting || return 1
        ! grep -qE "err= *[1-9]" "$work/fio" || return 1
    done
}
passes &
fio_pid=$!
background=$fio_pid
killed=0
while [ $killed -lt "$kills" ] && kill -0 $fio_pid 2>/dev/null; do
    sleep "0.$((RANDOM % 9))"
    server=$(server_pid)
    [ -n "$server" ] || continue
    kill -KILL "$server" 2>/dev/null && killed=$((killed + 1))
    # Not while it dies: that would be counted twice.
    wait_for 10 test ! -e "/proc/$server" || fail "the killed server is still there"
    wait_for 10 has_server || fail "no new server"
done
touch "$work/enough"
wait $fio_pid || { cat "$work/fio" >&2; fail "fio after $killed kills"; }
background=
[ "$killed" = "$kills" ] || fail "only $killed kills"
echo "$killed kills, $(grep -c 'taken over' "$work/log") times taken over"
# A last time: a whole pass of writes, with kills, read back afterwards by another server.
run_fio after --filename="$device" --direct=1 --ioengine=io_uring --rw=randwrite --bs=4k --iodepth=32 --size=64m \
    --verify=crc32c --verify_fatal=1 --do_verify=0 --verify_state_save=0
kill -KILL "$(server_pid)"
run_fio after --filename="$device" --direct=1 --ioengine=io_uring --rw=randwrite --bs=4k --iodepth=32 --size=64m \
    --verify=crc32c --verify_fatal=1 --verify_only=1
detach_all
stop_holder
