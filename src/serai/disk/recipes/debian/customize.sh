#!/bin/sh
# Run by mmdebstrap when all packages are installed: settle the system, then make its file system.
# ROOT_UUID, ESP_UUID, EPOCH, ROOT_SIZE (bytes), OUT (a folder, with reborn in it) and RECIPE come from build_debian.
set -eu
root=$1

cat > "$root/etc/fstab" <<EOF
UUID=$ROOT_UUID / ext4 errors=remount-ro 0 1
UUID=$ESP_UUID /boot/efi vfat umask=0077,nofail,x-systemd.device-timeout=300s 0 1
EOF
mkdir -p "$root/boot/efi" "$root/boot/grub"
sed "s/@ROOT_UUID@/$ROOT_UUID/g" "$RECIPE/grub.cfg" > "$root/boot/grub/grub.cfg"

# addresses by DHCP on every interface, unless cloud-init writes something better
cat > "$root/etc/systemd/network/90-dhcp.network" <<EOF
[Match]
Name=en* eth*
[Network]
DHCP=yes
[DHCPv4]
RouteMetric=100
UseDomains=yes
EOF
chroot "$root" systemctl -q enable systemd-networkd systemd-resolved serial-getty@ttyS0 ssh
chroot "$root" systemctl -q disable systemd-networkd-wait-online 2> /dev/null || true
cat > "$root/etc/cloud/cloud.cfg.d/90-serai.cfg" <<EOF
datasource_list: [NoCloud, ConfigDrive, None]
locale: false
# keys that are given at the launch let root in too, and one host key is made, not three
disable_root: false
ssh_genkeytypes: [ed25519]
# its name is known inside, also with its domain
manage_etc_hosts: localhost
# done by grow-root.service at each boot, and by nobody: the boot loader asks debconf nothing
growpart: {mode: "off"}
resize_rootfs: false
grub_dpkg: {enabled: false}
EOF
# without a seed there is nothing to configure: then cloud-init does not run at all
echo 'policy: search,found=all,maybe=none,notfound=disabled' > "$root/etc/cloud/ds-identify.cfg"

# what must be the machine's own: made at first boot
echo debian > "$root/etc/hostname"
echo uninitialized > "$root/etc/machine-id"
rm -f "$root"/etc/ssh/ssh_host_* "$root/var/lib/dbus/machine-id" "$root/var/lib/systemd/random-seed"
install -D -m 755 "$RECIPE/own-ssh-keys" "$root/usr/sbin/own-ssh-keys"
install -D -m 644 "$RECIPE/own-ssh-keys.conf" "$root/etc/systemd/system/ssh.service.d/own-ssh-keys.conf"
install -D -m 644 "$RECIPE/grow-root.service" "$root/etc/systemd/system/grow-root.service"
chroot "$root" systemctl -q enable grow-root

# what waits to tell a copy of it who it is
install -D -m 755 "$OUT/reborn" "$root/usr/sbin/reborn"
ln -s reborn "$root/usr/sbin/reseed"
install -D -m 644 "$RECIPE/reborn.service" "$root/etc/systemd/system/reborn.service"
chroot "$root" systemctl -q enable reborn

# what is only in the way
chroot "$root" apt-get clean
rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/ldconfig/* "$root"/var/cache/debconf/*-old \
    "$root"/var/log/* "$root"/tmp/* "$root"/var/tmp/* "$root"/var/lib/dpkg/*-old "$root"/run/*
ln -sf ../run/systemd/resolve/stub-resolv.conf "$root/etc/resolv.conf"

chroot "$root" dpkg-query -W -f '${Package} ${Version}\n' | LC_ALL=C sort > "$OUT/packages"

# seen through a bind mount, the tree has none of what is mounted into it at the moment
mkdir -p "$OUT/tree"
mount --bind "$root" "$OUT/tree"
trap 'umount "$OUT/tree"' EXIT
find "$OUT/tree" -xdev -newermt "@$EPOCH" -print0 | xargs -0r touch --no-dereference --date="@$EPOCH"
truncate -s "$ROOT_SIZE" "$OUT/root.ext4"
E2FSPROGS_FAKE_TIME=$EPOCH mke2fs -q -t ext4 -m 1 -L root -U "$ROOT_UUID" \
    -E "hash_seed=$ROOT_UUID,lazy_itable_init=1,nodiscard" -d "$OUT/tree" "$OUT/root.ext4"
