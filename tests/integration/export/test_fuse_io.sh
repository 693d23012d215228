#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Data is right over FUSE and a loop device, two volumes at a time; and without I/O nothing uses the CPU.
. "$(dirname "$0")/common.sh"
needs_fuse
start_holder "data 268435456 $work/data.img" "wal 67108864 memory"
[ "$(ls "$work/fuse/data")" = vol ] || fail "the directory does not show the file"
[ "$(stat -c %s "$work/fuse/data/vol")" = 268435456 ] || fail "the size is wrong"
attach data
data=$device
attach wal
wal=$device
[ "$("$BLOCK_SERVER" find "$work/fuse/data/vol")" = "$data" ] || fail "the loop device is not found"
[ "$(blockdev --getss "$data")" = 4096 ] || fail "the block size is not 4096"
[ "$(losetup --list --noheadings --output DIO "$data" | tr -d ' ')" = 1 ] || fail "no direct I/O"

for device in "$data" "$wal"; do
    run_fio verify --filename="$device" --direct=1 --ioengine=io_uring --rw=randwrite --bsrange=4k-128k --iodepth=32 \
        --numjobs=2 --size=32m --offset_increment=32m --verify=crc32c --verify_fatal=1 --do_verify=1 --group_reporting
done
run_fio flushes --filename="$data" --direct=1 --ioengine=io_uring --rw=randwrite --bs=4k --iodepth=8 --size=8m \
    --fdatasync=4 --verify=crc32c --verify_fatal=1
run_fio large --filename="$data" --direct=1 --ioengine=io_uring --rw=write --bs=4m --iodepth=4 --size=64m \
    --verify=crc32c --verify_fatal=1

# Discards and zeroes read as zeroes, and reach the backing file as holes.
blkdiscard "$data"
cmp -n 268435456 "$data" /dev/zero || fail "discarded blocks are not zero"
[ "$(du -k "$work/data.img" | cut -f 1)" -lt 1024 ] || fail "discarded blocks still take room"
dd if=/dev/urandom of="$data" bs=1M count=8 oflag=direct status=none
blkdiscard --zeroout --offset 1048576 --length 4194304 "$data"
cmp -n 4194304 -i 1048576:0 "$data" /dev/zero || fail "zeroed blocks are not zero"
! cmp -s -n 1048576 "$data" /dev/zero || fail "zeroing hit other blocks"

# The file itself: reads past the end, misaligned reads, no change of size.
[ "$(dd if="$work/fuse/data/vol" bs=1M skip=255 count=5 iflag=direct status=none | wc -c)" = 1048576 ] || fail "end of file"
! dd if="$work/fuse/data/vol" bs=100 count=1 status=none of=/dev/null 2>/dev/null || fail "a misaligned read succeeded"
! truncate -s 1M "$work/fuse/data/vol" 2>/dev/null || fail "the size could be changed"
! touch "$work/fuse/data/other" 2>/dev/null || fail "a file could be made"

# A read-only device.
detach_all
attached=$("$BLOCK_SERVER" attach "$work/fuse/wal/vol" ro)
devices=("$attached")
! dd if=/dev/zero of="$attached" bs=4k count=1 oflag=direct status=none 2>/dev/null || fail "read-only was written"
detach_all
! "$BLOCK_SERVER" find "$work/fuse/wal/vol" 2>/dev/null || fail "a detached device is found"

# Idle: user and system time of the server over two seconds, in ticks of 10 ms.
attach data
run_fio warm --filename="$device" --direct=1 --rw=randread --bs=4k --size=1m
sleep 0.5
ticks() { awk '{print $14 + $15}' "/proc/$(server_pid)/stat"; }
before=$(ticks)
sleep 2
used=$(($(ticks) - before))
[ $used -le 1 ] || fail "the idle server used $used ticks in 2 s"

# A device in use is not detached, says so, and stays when its last user goes.
exec 9<"$device"
! "$BLOCK_SERVER" detach "$device" 100 2>"$work/message" || fail "a used device was detached"
grep -q "still in use" "$work/message" || fail "no word of the use: $(cat "$work/message")"
exec 9<&-
[ "$("$BLOCK_SERVER" find "$work/fuse/data/vol")" = "$device" ] || fail "it has gone with its last user"
detach_all
stop_holder
