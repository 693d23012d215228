#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Export ublk on a real kernel.
. /tests/guest_common.sh
make_disk

# ---- without the module: refused, with what to do
cat >/tmp/app.yaml <<'YAML'
apiVersion: tidemark.io/v1alpha1
kind: ProtectedApplication
metadata: {name: shop}
spec:
  export: ublk
  volumes:
  - {name: data, size: 256Mi, mountPath: /srv/data, fsType: ext4}
  - {name: raw, size: 128Mi}
YAML
start_up
if tidemark --state "$state" apply -f /tmp/app.yaml >/tmp/refused 2>&1; then die "applied without ublk"; fi
grep -q "modprobe ublk_drv" /tmp/refused || die "no remedy: $(cat /tmp/refused)"
say "without ublk_drv the export is refused, and the module named"

# ---- walking
insmod /modules/ublk_drv.ko || die "cannot load ublk_drv"
tidemark --state "$state" apply -f /tmp/app.yaml || die "apply"
raw=$(device_of shop raw) data=$(device_of shop data)
[[ $raw == /dev/ublkb* && -b $raw && $data == /dev/ublkb* && -b $data ]] || die "devices: $raw $data"
[[ $(blockdev --getsize64 "$raw") == $((128 << 20)) ]] || die "size of $raw"
[[ $(blockdev --getss "$raw") == 512 && $(blockdev --getpbsz "$raw") == 4096 ]] || die "block sizes of $raw"
queues=$(ls -d "/sys/block/${raw#/dev/}"/mq/* | wc -l)
((queues == $(nproc))) || die "$queues queues, $(nproc) processors"
head -c 4096 /dev/urandom >/tmp/block
dd if=/tmp/block of="$raw" bs=4096 seek=7 oflag=direct conv=fsync status=none || die "write"
dd if="$raw" bs=4096 skip=7 count=1 iflag=direct status=none | cmp - /tmp/block || die "read back"
say "a block is written and read, the device has $queues queues"

# ---- a file system: used, a point of it opened, checked
mountpoint -q /srv/data || die "no file system at /srv/data"
echo before >/srv/data/file
sync -f /srv/data/file
tidemark --state "$state" tag shop first || die "tag"
echo after >/srv/data/file
sync -f /srv/data/file
mkdir -p /tmp/view
tidemark --state "$state" open shop@tag:first --volume data --mount /tmp/view || die "open a view"
[[ $(cat /tmp/view/file) == before && $(cat /srv/data/file) == after ]] || die "the view shows $(cat /tmp/view/file)"
source=$(findmnt -n -o SOURCE /tmp/view)
[[ $source == /dev/ublkb* ]] || die "the view is on $source"
echo mine >/tmp/view/file
[[ $(cat /srv/data/file) == after ]] || die "a view's write is seen in the volume"
view=$(tidemark --state "$state" views -o json | tr -d ' \n' | sed 's/.*"id":"\(v-[0-9a-f]*\)".*/\1/')
tidemark --state "$state" close "$view" || die "close $view"
[[ ! -e $source ]] || die "the view's device $source is still there"
say "a view of an earlier point is a ublk device of its own, and goes when it is closed"

# ---- discard, write-zeroes
head -c 1M /dev/urandom >/tmp/mib
dd if=/tmp/mib of="$raw" bs=1M seek=8 oflag=direct conv=fsync status=none || die "write 1 MiB"
head -c 1M /dev/zero >/tmp/zeroes
blkdiscard -o 8M -l 512K "$raw" || die "discard"
dd if="$raw" bs=512K skip=16 count=1 iflag=direct status=none | cmp -n 524288 - /tmp/zeroes || die "discarded, not zero"
dd if="$raw" bs=512K skip=17 count=1 iflag=direct status=none >/tmp/kept
tail -c 512K /tmp/mib | cmp - /tmp/kept || die "the discard hit its neighbour"
blkdiscard -z -o 8704K -l 512K "$raw" || die "write zeroes"
dd if="$raw" bs=512K skip=17 count=1 iflag=direct status=none | cmp -n 524288 - /tmp/zeroes || die "zeroed, not zero"
fstrim /srv/data || die "fstrim"
say "discard and write-zeroes"

# ---- fio's own checksums, several jobs on several queues
fio --name=verify --filename="$raw" --direct=1 --ioengine=libaio --iodepth=16 --rw=randwrite --bsrange=512-256k \
    --verify=crc32c --do_verify=1 --verify_fatal=1 --io_size=48m --randseed=7 --fsync=64 --offset=16m --size=64m \
    >/tmp/fio 2>&1 || die "fio verify: $(tail -n 20 /tmp/fio)"
say "fio verify"

# ---- kill -9 under load: a pause, no error
grow_log() { for i in $(seq 1 400); do echo "$i" >>/srv/data/log && sync -f /srv/data/log || return 1; done; }
grow_log & writer=$!
fio --name=kill --filename="$raw" --direct=1 --ioengine=libaio --iodepth=8 --rw=randwrite --bs=4k --verify=crc32c --do_verify=1 \
    --verify_fatal=1 --io_size=12m --size=64m --randseed=11 >/tmp/fio 2>&1 & load=$!
kills=0
while kill -0 $load 2>/dev/null && ((kills < 5)); do
    kill_engine shop || die "no new engine after a kill"
    dd if="$raw" of=/dev/null bs=4096 count=1 iflag=direct status=none || die "an error after kill $kills"
    kills=$((kills + 1))
done
wait $load || die "fio noticed a kill: $(tail -n 20 /tmp/fio)"
wait $writer || die "the file system noticed a kill"
[[ $(tail -n 1 /srv/data/log) == 400 && $(wc -l </srv/data/log) == 400 ]] || die "lines are missing"
((kills > 0)) || die "no kill happened"
! dmesg | grep -E "I/O error|EXT4-fs error|Buffer I/O" || die "the kernel saw an error"
say "$kills kills of the engine under load, no I/O error"

# ---- upgrade-engine; growing: the volume at once, its device when it is made anew
old=$(engine_pid shop)
tidemark --state "$state" upgrade-engine shop || die "upgrade-engine"
[[ $(engine_pid shop) != "$old" ]] || die "the engine was not replaced"
sed 's/size: 128Mi/size: 160Mi/' /tmp/app.yaml >/tmp/larger.yaml
tidemark --state "$state" apply -f /tmp/larger.yaml || die "apply a larger volume"
grep -q "$raw keeps its size until it is made anew" "$state/up.log" || die "nothing is said of the device's size"
[[ $(blockdev --getsize64 "$raw") == $((128 << 20)) ]] || die "the size of $raw has changed"
dd if="$raw" of=/dev/null bs=4096 count=1 iflag=direct status=none || die "read after growing"
say "upgrade-engine, and a volume that grows"

# ---- `up` ends and comes back; the holder is told to end, the device goes
stop_up
mountpoint -q /srv/data && die "still mounted"
! compgen -G "/dev/ublkb*" || die "a device was left"
start_up
until_true 120 mountpoint -q /srv/data || die "not mounted again"
[[ $(cat /srv/data/file) == after && $(wc -l </srv/data/log) == 400 ]] || die "not what was there"
raw=$(device_of shop raw)
[[ $(blockdev --getsize64 "$raw") == $((160 << 20)) ]] || die "$raw has not grown"
say "volumes come back"

# ---- kill -9 of \`up\`, of the holder: nothing happens; of holder and engine: all is made anew
kill -KILL "$up_pid"
wait "$up_pid" 2>/dev/null
echo alone >>/srv/data/log || die "writing without tidemark up"
start_up
[[ $(device_of shop raw) == "$raw" ]] || die "the device has changed with tidemark up"
say "tidemark up is killed and started again, the device stays"
kill -KILL "$(cat "$state/apps/shop/holder.pid")"
is_orphaned() { grep -q "its holder was ended; its engine goes on" "$state/up.log"; }
until_true 120 is_orphaned || die "tidemark up does not notice the end of the holder"
echo orphaned >>/srv/data/log && sync -f /srv/data/log || die "writing without the holder"
dd if="$raw" of=/dev/null bs=4096 count=1 iflag=direct status=none || die "reading without the holder"
say "the holder is killed, the engine goes on"
kill -KILL "$(engine_pid shop)"
remounted() { [[ $(device_of shop data) == /dev/ublkb* ]] && mountpoint -q /srv/data && echo again 2>/dev/null >>/srv/data/log; }
until_true 120 remounted || die "not made anew"
say "the engine is killed too: the volumes are made anew"

# ---- rewind: not below a file system that is in use, and nothing of before is read from a cache
raw=$(device_of shop raw)
dd if=/tmp/block of="$raw" bs=4096 seek=7 conv=notrunc,fsync status=none || die "write $raw"
tidemark --state "$state" tag shop second || die "tag"
head -c 4096 /dev/urandom >/tmp/newer
dd if=/tmp/newer of="$raw" bs=4096 seek=7 conv=notrunc,fsync status=none || die "write $raw"
block_is() { dd if="$raw" bs=4096 skip=7 count=1 status=none | cmp - "$1"; } # through the cache
content_is() { [[ $(cat /srv/data/file) == "$1" ]] || die "$2: $(od -c /srv/data/file | head)"; }
block_is /tmp/newer || die "the block was not written"
exec 9</srv/data/file
if tidemark --state "$state" rewind shop --to tag:first >/tmp/refused 2>&1; then die "rewound below a file system in use"; fi
grep -q "cannot unmount /srv/data" /tmp/refused || die "not the reason: $(cat /tmp/refused)"
exec 9<&-
content_is after "after a rewind that was refused"
tidemark --state "$state" rewind shop --to tag:second || die "rewind"
block_is /tmp/block || die "the block is not the tag's"
content_is after "after a rewind to the second tag"
tidemark --state "$state" rewind shop --to tag:first || die "rewind"
content_is before "after the rewind"
[[ ! -e /srv/data/log ]] || die "the log is of after the first tag"
tidemark --state "$state" undo shop || die "undo"
content_is after "after the undo"
[[ $(head -n 400 /srv/data/log | tail -n 1) == 400 ]] || die "the undo has not brought the log back"
tidemark --state "$state" rewind shop --to tag:first || die "rewind"
content_is before "after the second rewind"
say "rewinds and an undo; none below a file system in use"
data=$(device_of shop data)
umount /srv/data
e2fsck -fn "$data" >/tmp/fsck 2>&1 || die "e2fsck: $(cat /tmp/fsck)"
say "e2fsck finds nothing"
tidemark --state "$state" delete shop || die "delete"
stop_up
! compgen -G "/dev/ublkb*" || die "a device was left"
until_true 20 rmmod ublk_drv || die "ublk_drv is still used"
say "nothing is left"
