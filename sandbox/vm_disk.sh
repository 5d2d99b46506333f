# Turns a container of the sandbox's Debian image into the disk of a virtual machine, in /out: disk.img, vmlinuz, initrd.img
# and host_keys. $1: size, $2: owner of what is written, $3: public key of the user and of root.
# Nothing that the deploy must install by itself belongs here.
export DEBIAN_FRONTEND=noninteractive

printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod 0755 /usr/sbin/policy-rc.d
apt-get update -q
apt-get install -q -y --no-install-recommends \
    udev systemd-timesyncd apparmor unattended-upgrades e2fsprogs initramfs-tools zstd linux-image-cloud-amd64
apt-get clean
rm -f /usr/sbin/policy-rc.d

# provision.sh masked what needs a console, hardware or a kernel of its own.
systemctl unmask getty.target console-getty.service systemd-udevd.service systemd-udev-trigger.service \
    systemd-modules-load.service systemd-remount-fs.service \
    sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    proc-sys-fs-binfmt_misc.automount dev-hugepages.mount
systemctl enable systemd-networkd serial-getty@ttyS0
printf '[Match]\nType=ether\nKind=!*\n[Network]\nDHCP=yes\n' > /etc/systemd/network/10-lan.network
printf '/dev/vda / ext4 errors=remount-ro 0 1\n' > /etc/fstab

# root's way in is the tests' own: it looks at the machine past the user that the deploy logs in as.
echo 'PermitRootLogin prohibit-password' > /etc/ssh/sshd_config.d/05-tests.conf
install -d -m 0700 /root/.ssh
echo "$3" > /root/.ssh/authorized_keys
install -m 0600 -o deployer -g deployer /root/.ssh/authorized_keys /home/deployer/.ssh/authorized_keys
ssh-keygen -A
cat /etc/ssh/ssh_host_*_key.pub > /out/host_keys

# What the engine mounts over stays behind: names of hosts, and the mark by which systemd knows a container.
cp -ax / /out/root
rm -f /out/root/.dockerenv
echo vm > /out/root/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 vm\n::1 localhost ip6-localhost ip6-loopback\n' > /out/root/etc/hosts
# QEMU's user network answers names there.
echo 'nameserver 10.0.2.3' > /out/root/etc/resolv.conf
cp /boot/vmlinuz-* /out/vmlinuz
cp /boot/initrd.img-* /out/initrd.img
truncate -s "$1" /out/disk.img
mkfs.ext4 -q -F -L root -d /out/root /out/disk.img
rm -rf /out/root
chown "$2" /out/*
