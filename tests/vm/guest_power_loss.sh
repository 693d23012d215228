#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Loss of power on a real kernel (invariants J3, J4). dm-log-writes records what reaches the disk that holds journal and
# backing; after each write that was acknowledged with an fsync there is a mark. For some of the marks, the disk is made as it was
# at the least then, and Tidemark started on it as after a boot: every file that was acknowledged is there and whole, the file system is
# clean, and what the volumes hold is what the journal says.
. /tests/guest_common.sh
sectors=$((1 << 21)) # 1 GiB
files=20
checked=(m1 m8 m20)

for module in dax dm-mod dm-log-writes ublk_drv; do
    [[ ! -e /modules/$module.ko ]] || insmod "/modules/$module.ko" || die "cannot load $module"
done
dmsetup create log --noudevsync --table "0 $sectors log-writes /dev/vda /dev/vdb" >/tmp/dmsetup 2>&1 || die "dm-log-writes: $(cat /tmp/dmsetup)"
until_true 10 test -b /dev/mapper/log || ln -sf ../dm-0 /dev/mapper/log
mkfs.ext4 -q -F /dev/mapper/log || die "no disk"
mount /dev/mapper/log /mnt || die "cannot mount the disk"
mkdir -p "$state"
cat >/tmp/app.yaml <<'YAML'
apiVersion: tidemark.io/v1alpha1
kind: ProtectedApplication
metadata: {name: shop}
spec:
  export: ublk
  volumes:
  - {name: data, size: 64Mi, mountPath: /srv/data, fsType: ext4}
  - {name: raw, size: 32Mi}
YAML
start_up
tidemark --state "$state" apply -f /tmp/app.yaml || die "apply"
raw=$(device_of shop raw)
for i in $(seq 1 "$files"); do
    head -c $((i * 997)) /dev/urandom >"/tmp/file$i"
    cp "/tmp/file$i" "/srv/data/file$i" && sync -f "/srv/data/file$i" || die "file $i"
    # Also what no flush covers, and a number that one does.
    dd if="/tmp/file$i" of="$raw" bs=4096 seek=$((i * 10)) conv=notrunc status=none || die "raw $i"
    printf '%-512s' "number $i" | dd of="$raw" bs=512 seek=0 conv=notrunc,fsync status=none || die "number $i"
    dmsetup message log 0 mark "m$i" || die "mark $i"
done
stop_up
umount /mnt || die "umount"
dmsetup remove log --noudevsync || die "dmsetup remove"
say "$files files were written, acknowledged and marked"

boot() { # as after a boot: nothing in memory, another boot id
    rm -f /dev/shm/tidemark-*
    cat /proc/sys/kernel/random/uuid >/tmp/boot_id
    umount /proc/sys/kernel/random/boot_id 2>/dev/null
    mount --bind /tmp/boot_id /proc/sys/kernel/random/boot_id || die "boot id"
}
is_protected() { status_json shop | grep -q '"state":"protected"'; }
volume_is_the_journal() { # NAME: J4
    local view device
    tidemark --state "$state" open shop@latest --volume "$1" >/tmp/view 2>&1 || die "open $1: $(cat /tmp/view)"
    view=$(tidemark --state "$state" views -o json | tr -d ' \n')
    device=$(sed 's/.*"device":"\([^"]*\)".*/\1/' <<<"$view")
    # Not mounted: a mount writes.
    cmp "$(device_of shop "$1")" "$device" || die "volume $1 is not what the journal says"
    tidemark --state "$state" close "$(sed 's/.*"id":"\(v-[0-9a-f]*\)".*/\1/' <<<"$view")" >/dev/null || die "close"
}

for mark in "${checked[@]}"; do
    blkdiscard -f -z -l $((sectors * 512)) /dev/vdc || die "cannot clear /dev/vdc"
    replay_log /dev/vdb /dev/vdc "$mark" || die "replay up to $mark"
    boot
    mount /dev/vdc /mnt || die "$mark: the disk cannot be mounted"
    start_up
    until_true 120 mountpoint -q /srv/data || die "$mark: the volume is not mounted"
    until_true 120 is_protected || die "$mark: $(status_json shop)"
    last=${mark#m}
    for i in $(seq 1 "$last"); do
        cmp "/tmp/file$i" "/srv/data/file$i" || die "$mark: file $i was acknowledged"
    done
    number=$(dd if="$(device_of shop raw)" bs=512 count=1 status=none | sed 's/number \([0-9]*\) .*/\1/')
    ((number >= last && number <= last + 1)) || die "$mark: number $number, not $last"
    volume_is_the_journal raw
    umount /srv/data || die "$mark: umount"
    e2fsck -fn "$(device_of shop data)" >/tmp/fsck 2>&1 || die "$mark: e2fsck: $(cat /tmp/fsck)"
    stop_up
    umount /mnt || die "$mark: umount /mnt"
    say "power fails at $mark: $last files are there, number $number, the volume is what the journal says"
done
