#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# Loss of power on a real kernel (invariants J3, J4). Journal and backing are on disks of their own, and dm-log-writes records
# what reaches each. Marks in both records are the moments at which the power fails. For some of them, and for prefixes of what
# each disk had not flushed then, independent of each other, both disks are made as they were and Tidemark is started on them as
# after a boot. Then every file that was acknowledged is there and whole, on ext4 and on xfs, the file systems are clean, the
# newest acknowledged tag can be opened, and the volumes hold what the journal says.
. /tests/guest_common.sh
read_parameter cuts 4
read_parameter seed "$(od -An -N2 -tu2 /dev/urandom | tr -d ' ')"
echo "# seed $seed, $cuts moments (TIDEMARK_VM_PARAMETERS=\"seed=$seed cuts=$cuts\")"
RANDOM=$seed
sectors=$((3 << 20)) # 1.5 GiB
files=12
# Of the machine's disks.
declare -A disk=([state]=/dev/vda [backing]=/dev/vdc) log=([state]=/dev/vdb [backing]=/dev/vdd) copy=([state]=/dev/vde [backing]=/dev/vdf)
backing=$state/apps/shop/backing

for module in dax dm-mod dm-log-writes ublk_drv xfs nbd; do
    [[ ! -e /modules/$module.ko ]] || insmod "/modules/$module.ko" || die "cannot load $module"
done
for program in mkfs.xfs xfs_repair dmsetup nbd-client; do
    command -v "$program" >/dev/null || { echo "skipped: $program is not installed"; exit 77; }
done

is_protected() { status_json shop | grep -q '"state":"protected"'; }
start_all() {
    start_up
    until_true 240 is_protected || die "$what: $(status_json shop)"
    mountpoint -q /srv/data && mountpoint -q /srv/files || die "$what: the volumes are not mounted"
}

# ---- both disks, recorded
what=recording
for name in state backing; do
    dmsetup create "$name" --noudevsync --table "0 $sectors log-writes ${disk[$name]} ${log[$name]}" >/tmp/dmsetup 2>&1 ||
        die "dm-log-writes: $(cat /tmp/dmsetup)"
    dmsetup mknodes "$name"
    mkfs.ext4 -q -F "/dev/mapper/$name" || die "no disk $name"
done
mkdir -p /back
# Else the host's file systems flush every 5 s, and little is open at the marks.
mount -o commit=300 /dev/mapper/state /mnt && mount -o commit=300 /dev/mapper/backing /back || die "cannot mount the disks"
mkdir -p "$state"
cat >/tmp/app.yaml <<'YAML'
apiVersion: tidemark.io/v1alpha1
kind: ProtectedApplication
metadata: {name: shop}
spec:
  export: ublk
  volumes:
  - {name: data, size: 64Mi, mountPath: /srv/data, fsType: ext4}
  - {name: files, size: 300Mi, mountPath: /srv/files, fsType: xfs}
  - {name: raw, size: 32Mi}
YAML
start_up
tidemark --state "$state" apply -f /tmp/app.yaml || die "apply"
stop_up
cp --sparse=always "$backing"/*.img /back/ && rm "$backing"/*.img && mount --bind /back "$backing" || die "cannot move the backing"
start_all
raw=$(device_of shop raw)

# ---- files, acknowledged one after the other; marks all the time
mark() { dmsetup message "$1" 0 mark "$2" || die "mark $2"; }
write_files() { # I
    head -c $(($1 * 9970)) /dev/urandom >"/tmp/file$1"
    for where in data files; do
        cp "/tmp/file$1" "/srv/$where/unsynced$1" && rm -f "/srv/$where/unsynced$(($1 - 1))" || die "unsynced $1"
        cp "/tmp/file$1" "/srv/$where/file$1" && sync "/srv/$where/file$1" || die "file $1 of $where"
    done
    printf '%-512s' "number $1" | dd of="$raw" bs=512 seek=0 conv=notrunc,fsync oflag=direct status=none || die "number $1"
    (($1 % 4)) || tidemark --state "$state" tag shop "t$1" >/dev/null || die "tag t$1"
    mark state "m$1"
}
write_unflushed() { # I: acknowledged, with no flush after them
    for block in 0 1 2 3 4; do
        dd if=/dev/urandom of="$raw" bs=4096 count=2 seek=$((16 + $1 * 16 + block * 3)) oflag=direct conv=notrunc status=none || die "raw $1"
    done
}
for i in $(seq 1 "$files"); do
    if ((i == files / 2)); then # an interval in which every moment counts
        rm -f /tmp/enough
        replay_log mark state backing /tmp/enough & # a moment of both, if nothing is between t<n> and u<n> of the state's disk
        marker=$!
        write_files "$i"
        touch /tmp/enough
        wait "$marker" || die "marks"
    else
        write_files "$i"
    fi
    write_unflushed "$i"
    mark state "q$i"
    mark backing "q$i"
    sync /dev/mapper/state /dev/mapper/backing # ends what is open at q$i
done
stop_up
umount "$backing" && umount /back && umount /mnt || die "umount"
dmsetup remove state --noudevsync && dmsetup remove backing --noudevsync || die "dmsetup remove"
for name in state backing; do replay_log list "${log[$name]}" >"/tmp/marks.$name" || die "the record of $name"; done
say "$files files were written to each file system and acknowledged"

# ---- moments
open_at() { awk -v m="$2" '$1 == m {print $3}' "/tmp/marks.$1"; }
newest_before() { # the newest m<i> in the state's record before the mark $1
    awk -v m="$1" '$1 == m {exit} /^m[0-9]/ {last = substr($1, 2)} END {print last + 0}' /tmp/marks.state
}
# Marks at which nothing came to the state's disk while both disks were marked.
awk '/^t[0-9]/ {at[substr($1, 2)] = $2} /^u[0-9]/ {n = substr($1, 2); if ($2 == at[n] + 1) print "t" n}' /tmp/marks.state >/tmp/moments
echo "# $(wc -l </tmp/moments) moments within the writing of a file, $(open_at state q1) and $(open_at backing q1) open writes at q1"
open_writes=0
for i in $(seq 1 "$files"); do open_writes=$((open_writes + $(open_at state "q$i") + $(open_at backing "q$i"))); done
((open_writes > 0)) || die "no write was open at any mark"

boot() { # as after a boot: nothing in memory, another boot id
    rm -f /dev/shm/tidemark-*
    cat /proc/sys/kernel/random/uuid >/tmp/boot_id
    umount /proc/sys/kernel/random/boot_id 2>/dev/null
    mount --bind /tmp/boot_id /proc/sys/kernel/random/boot_id || die "boot id"
}
newest_view() { tidemark --state "$state" views -o json | tr -d ' \n' | sed 's/.*"id":"\(v-[0-9a-f]*\)".*/\1/'; }
close_view() { tidemark --state "$state" close "$(newest_view)" >/dev/null || die "$what: close"; }
volume_is_the_journal() { # NAME: J4. By NBD, since a view that is a device is mounted, and a mount writes.
    tidemark --state "$state" open shop@latest --volume "$1" --nbd /run/view.sock >/tmp/view 2>&1 || die "$what: open $1: $(cat /tmp/view)"
    nbd-client -unix /run/view.sock -name "$1" /dev/nbd0 >/tmp/view 2>&1 || die "$what: nbd-client: $(cat /tmp/view)"
    cmp "$(device_of shop "$1")" /dev/nbd0 || die "$what: volume $1 is not what the journal says"
    nbd-client -d /dev/nbd0 >/dev/null
    close_view
}
files_are_there() { # DIRECTORY UPTO
    for i in $(seq 1 "$2"); do cmp "/tmp/file$i" "$1/file$i" || die "$what: file $i was acknowledged, and is not in $1"; done
}
tag_is_whole() { # UPTO
    local tag=$(($1 / 4 * 4))
    ((tag > 0)) || return 0
    mkdir -p /tmp/view.mnt
    tidemark --state "$state" open "shop@tag:t$tag" --volume data --mount /tmp/view.mnt >/tmp/view 2>&1 ||
        die "$what: the tag t$tag was acknowledged: $(cat /tmp/view)"
    files_are_there /tmp/view.mnt "$tag"
    close_view
}
check_moment() { # MARK MORE-OF-STATE MORE-OF-BACKING
    local last number began=$SECONDS
    what="$1+$2+$3"
    last=$(newest_before "$1")
    for name in state backing; do
        blkdiscard -f "${copy[$name]}" 2>/dev/null && cmp -n 1048576 /dev/zero "${copy[$name]}" || die "cannot clear ${copy[$name]}"
    done
    replay_log replay "${log[state]}" "${copy[state]}" "$1" "$2" >/tmp/replay && replay_log replay "${log[backing]}" "${copy[backing]}" "$1" "$3" >>/tmp/replay ||
        die "$what: replay"
    local replayed=$SECONDS
    boot
    mount "${copy[state]}" /mnt && mount "${copy[backing]}" /back && mount --bind /back "$backing" || die "$what: the disks cannot be mounted"
    start_all
    files_are_there /srv/data "$last"
    files_are_there /srv/files "$last"
    number=$(dd if="$(device_of shop raw)" bs=512 count=1 status=none | sed 's/number \([0-9]*\) .*/\1/')
    ((number >= last && number <= last + 1)) || die "$what: number $number, not $last"
    tag_is_whole "$last"
    umount /srv/data && umount /srv/files || die "$what: umount"
    e2fsck -fn "$(device_of shop data)" >/tmp/fsck 2>&1 || die "$what: e2fsck: $(cat /tmp/fsck)"
    xfs_repair -n "$(device_of shop files)" >/tmp/fsck 2>&1 || die "$what: xfs_repair: $(cat /tmp/fsck)"
    for volume in data files raw; do volume_is_the_journal "$volume"; done
    stop_up
    umount "$backing" && umount /back && umount /mnt || die "$what: umount"
    say "power fails at $1, of the open writes $2 and $3 arrived: $last files are there, number $number ($((replayed - began)) s to make the disks, $((SECONDS - replayed)) s for Tidemark)"
}
pick() { echo $((RANDOM % ($1 + 1))); }
for cut in $(seq 1 "$cuts"); do
    if ((cut % 3)) || [[ ! -s /tmp/moments ]]; then
        q=q$((RANDOM % files + 1))
        of_state=$(open_at state "$q") of_backing=$(open_at backing "$q")
        # First all of one and none of the other, which are furthest from each other.
        case $cut in
        1) check_moment "$q" "$of_state" 0 ;;
        2) check_moment "$q" 0 "$of_backing" ;;
        *) check_moment "$q" "$(pick "$of_state")" "$(pick "$of_backing")" ;;
        esac
    else
        check_moment "$(sed -n "$((RANDOM % $(wc -l </tmp/moments) + 1))p" /tmp/moments)" 0 0
    fi
done
