#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# ext4 and xfs on an exported volume: made, used, trimmed, checked.
. "$(dirname "$0")/common.sh"
needs_fuse
source_tree=$(dirname "$BLOCK_SERVER")
start_holder "data 536870912 $work/data.img"
for kind in ext4 xfs; do
    if ! command -v "mkfs.$kind" >/dev/null || ! { grep -qw "$kind" /proc/filesystems || modprobe "$kind" 2>/dev/null; }; then
        echo "no $kind here"
        continue
    fi
    attach data
    case $kind in
    ext4) mkfs.ext4 -q -F "$device" ;;
    xfs) mkfs.xfs -q -f "$device" ;;
    esac
    mkdir -p "$work/mnt"
    mount "$device" "$work/mnt"
    mounts=("$work/mnt")
    cp -r "$source_tree" "$work/mnt/tree"
    run_fio files --directory="$work/mnt" --rw=randwrite --bs=8k --size=16m --numjobs=2 --fsync=16 --verify=crc32c \
        --verify_fatal=1 --ioengine=psync
    sync -f "$work/mnt"
    rm "$work/mnt"/files.*
    fstrim "$work/mnt"
    umount "$work/mnt"
    mount "$device" "$work/mnt"
    diff -r "$source_tree" "$work/mnt/tree" || fail "files changed on $kind"
    umount "$work/mnt"
    mounts=()
    case $kind in
    ext4) e2fsck -fn "$device" >"$work/fsck" 2>&1 ;;
    xfs) xfs_repair -n "$device" >"$work/fsck" 2>&1 ;;
    esac || { cat "$work/fsck"; fail "$kind is damaged"; }
    detach_all
done
stop_holder
