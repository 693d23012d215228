#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# run.sh GUEST-SCRIPT: runs a script of this directory as root in a virtual machine (qemu-system-x86_64, software emulation
# unless TIDEMARK_VM_ACCEL=kvm) with the kernel of kernel.sh. The machine's file system is made of programs and libraries of
# this one and the binaries of TIDEMARK_BUILD, in memory; /dev/vda to vdf are empty disks of 4 GiB. What the script prints is printed; its
# exit status is ours. 77: skipped, with the reason.
set -euo pipefail
here=$(dirname "$(realpath "$0")")
script=$1
build=${TIDEMARK_BUILD:?the build directory}
memory_mib=${TIDEMARK_VM_MEMORY_MIB:-1536}
timeout_s=${TIDEMARK_VM_TIMEOUT:-3300}
programs=(bash cat chmod cmp cp cut date dd e2fsck fio findmnt flock grep head ln losetup ls mkdir mkfs.ext4 mke2fs mount resize2fs
    mv od readlink rm sed seq sha256sum sleep sort stat stdbuf sync tail tee timeout touch tr truncate umount wc blkid
    awk blockdev blkdiscard fstrim mountpoint nproc dmsetup nbd-client mkfs.xfs xfs_repair
    xfs_growfs)

skip() { echo "skipped: $*"; exit 77; }
[[ $(uname -m) == x86_64 ]] || skip "the kernel of the virtual machine is for x86_64"
for tool in qemu-system-x86_64 busybox dpkg-deb xz; do
    command -v "$tool" >/dev/null || skip "$tool is not installed"
done
kernel=$("$here/kernel.sh") || skip "no kernel for the virtual machine"
image=$(echo "$kernel"/boot/vmlinuz-*)
modules=$(echo "$kernel"/lib/modules/*)

work=$(mktemp -d /var/tmp/tidemark-vm.XXXXXX)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,dev,proc,sys,tmp,run,etc,lib64,tests,opt,modules,mnt,var}
ln -s bin "$root/sbin"
mkdir -p "$root/usr"
ln -s ../bin "$root/usr/bin"
ln -s ../bin "$root/usr/sbin"

libraries() { # of the programs given: copied to where they are here
    # shellcheck disable=SC2312
    ldd "$@" 2>/dev/null | sed -n 's/^[[:space:]]*\(.* => \)\?\(\/[^ ]*\) (0x.*/\2/p' | sort -u | while read -r library; do
        [[ -e $root$library ]] || install -D "$(realpath "$library")" "$root$library"
    done
}
busybox=$(command -v busybox)
cp "$busybox" "$root/bin/busybox"
for applet in $("$busybox" --list); do
    [[ $applet == busybox ]] || ln -sf busybox "$root/bin/$applet"
done
for program in "${programs[@]}"; do
    path=$(type -P "$program") || continue # the script that wants it says so
    rm -f "$root/bin/$program"
    cp -L "$path" "$root/bin/$program"
    libraries "$path"
done
ours=("$build/src/cli/tidemark" "$build/src/engine/tidemark-engine" "$build/src/export/tidemark-holder")
for program in "${ours[@]}" ${TIDEMARK_VM_PROGRAMS:-}; do
    cp "$program" "$root/opt/"
    libraries "$program"
done
cp "$here"/*.sh "$root/tests/"
cp /etc/mke2fs.conf "$root/etc/"
echo "root:x:0:0:root:/:/bin/bash" >"$root/etc/passwd"
for module in lib/libcrc32c virtio/virtio virtio/virtio_ring virtio/virtio_pci_legacy_dev virtio/virtio_pci_modern_dev virtio/virtio_pci \
    block/virtio_blk block/loop block/ublk_drv block/nbd dax/dax md/dm-mod md/dm-log-writes fs/xfs/xfs; do
    for file in "$modules"/kernel/{,drivers/}"$module".ko.xz; do
        [[ ! -e $file ]] || xz -dc "$file" >"$root/modules/$(basename "$file" .xz)"
    done
done
cp "$here/init" "$root/init"
(cd "$root" && find . | "$busybox" cpio -o -H newc 2>/dev/null) >"$work/initrd"
disks=()
for letter in a b c d e f; do
    truncate -s 4G "$work/vd$letter"
    disks+=(-drive "file=$work/vd$letter,format=raw,if=none,id=vd$letter,cache=unsafe,aio=threads,discard=unmap,detect-zeroes=unmap"
        -device "virtio-blk-pci,drive=vd$letter")
done
size_mib=$(($(stat -c %s "$work/initrd") >> 20))
echo "# kernel $(basename "$image"), initial file system $size_mib MiB, memory $memory_mib MiB"

status=0
# no_timer_check: on a busy machine an emulated timer may tick too late for the kernel's check of it.
timeout --kill-after=10 "$timeout_s" qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot \
    -machine q35 -accel "${TIDEMARK_VM_ACCEL:-tcg,thread=multi}" -cpu "${TIDEMARK_VM_CPU:-max,-cx16}" -smp "${TIDEMARK_VM_CPUS:-2}" -m "$memory_mib" \
    -kernel "$image" -initrd "$work/initrd" -append "console=ttyS0 quiet no_timer_check oops=panic panic=-1 rdinit=/init test=$script ${TIDEMARK_VM_PARAMETERS:-}" \
    "${disks[@]}" -serial "file:$work/console" </dev/null &
qemu=$!
tail --pid=$qemu -n +1 -F "$work/console" 2>/dev/null | stdbuf -oL tr -d '\r' | tee "$work/seen" &
viewer=$!
wait "$qemu" || status=$?
wait "$viewer" || true
((status == 0)) || { echo "the virtual machine ended with status $status (124: no end after $timeout_s s)"; exit 1; }
result=$(sed -n 's/.*vm-result: \([0-9]*\)$/\1/p' "$work/seen" | tail -n 1)
[[ -n $result ]] || { echo "the virtual machine ended without a result"; exit 1; }
exit "$result"
