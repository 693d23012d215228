#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The kernel's own NBD client against our server.
. /tests/guest_common.sh
command -v nbd-client >/dev/null || { echo "skipped: nbd-client is not installed"; exit 77; }
make_disk
insmod /modules/nbd.ko nbds_max=2 max_part=0 || die "cannot load nbd"
cat >/tmp/app.yaml <<'YAML'
apiVersion: tidemark.io/v1alpha1
kind: ProtectedApplication
metadata: {name: shop}
spec:
  export: nbd
  volumes:
  - {name: data, size: 256Mi}
YAML
start_up
tidemark --state "$state" apply -f /tmp/app.yaml || die "apply"
connect() { nbd-client -unix "$1" -name data -connections 2 "$2" >/tmp/nbd-client 2>&1; }
connect "$state/apps/shop/nbd.sock" /dev/nbd0 || die "nbd-client: $(cat /tmp/nbd-client)"
[[ $(blockdev --getsize64 /dev/nbd0) == $((256 << 20)) ]] || die "size"
say "the kernel's client connects, twice"

fio --name=verify --filename=/dev/nbd0 --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bsrange=4k-256k --verify=crc32c \
    --do_verify=1 --verify_fatal=1 --io_size=32m --size=64m --randseed=7 --fsync=64 >/tmp/fio 2>&1 || die "fio: $(tail -n 20 /tmp/fio)"
say "fio verify"

mkfs.ext4 -q -F /dev/nbd0 && mkdir -p /mnt/nbd && mount /dev/nbd0 /mnt/nbd || die "ext4"
echo before >/mnt/nbd/file
sync -f /mnt/nbd/file
tidemark --state "$state" tag shop first || die "tag"
for i in $(seq 1 200); do head -c 20000 /dev/urandom >"/mnt/nbd/$i" || die "write $i"; done
echo after >/mnt/nbd/file
sync -f /mnt/nbd/file
fstrim /mnt/nbd || die "fstrim"
tidemark --state "$state" open shop@tag:first --nbd /run/view.sock || die "open"
connect /run/view.sock /dev/nbd1 || die "nbd-client of a view: $(cat /tmp/nbd-client)"
mkdir -p /tmp/view
mount /dev/nbd1 /tmp/view || die "mount the view"
[[ $(cat /tmp/view/file) == before && ! -e /tmp/view/1 && $(cat /mnt/nbd/file) == after ]] || die "the view"
umount /tmp/view
nbd-client -d /dev/nbd1 >/dev/null
umount /mnt/nbd
e2fsck -fn /dev/nbd0 >/tmp/fsck 2>&1 || die "e2fsck: $(cat /tmp/fsck)"
nbd-client -d /dev/nbd0 >/dev/null
say "ext4: made, used, a view of a point mounted, trimmed, checked"
! dmesg | grep -E "I/O error|EXT4-fs error|Buffer I/O" || die "the kernel saw an error"
stop_up
