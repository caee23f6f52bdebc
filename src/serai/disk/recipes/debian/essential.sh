#!/bin/sh
# Run by mmdebstrap before the kernel is installed: which drivers its initramfs gets.
set -eu
root=$1
mkdir -p "$root/etc/initramfs-tools/conf.d"
printf 'MODULES=list\nCOMPRESS=zstd\nRESUME=none\n' > "$root/etc/initramfs-tools/conf.d/serai"
printf '%s\n' virtio_pci virtio_blk virtio_scsi virtio_net virtio_console sd_mod sr_mod ahci ext4 \
    > "$root/etc/initramfs-tools/modules"
printf 'do_symlinks = yes\nlink_in_boot = no\n' > "$root/etc/kernel-img.conf"
