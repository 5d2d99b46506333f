# Turns a minimal Debian or Ubuntu root file system into the sandbox's image: a fresh VPS as a provider hands it over.
# Nothing that the deploy must install by itself belongs here.
export DEBIAN_FRONTEND=noninteractive

# Container images forbid services to start on installation and throw apt's cache away; a VPS does neither.
rm -f /etc/apt/apt.conf.d/docker-* /etc/dpkg/dpkg.cfg.d/excludes

# Services must not start while the image is made; removed again below.
printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
chmod 0755 /usr/sbin/policy-rc.d

apt-get update -q
apt-get install -q -y --no-install-recommends \
    systemd systemd-sysv dbus libpam-systemd openssh-server sudo \
    iproute2 iputils-ping netbase ca-certificates python3 cron logrotate procps kmod less

rm -f /usr/sbin/policy-rc.d

# The user a provider creates: a key, no password, sudo without one. The key arrives when a container starts.
useradd --create-home --shell /bin/bash deployer
echo 'deployer ALL=(ALL) NOPASSWD:ALL' > /etc/sudoers.d/deployer
chmod 0440 /etc/sudoers.d/deployer
install -d -o deployer -g deployer -m 0700 /home/deployer/.ssh

cat > /etc/ssh/sshd_config.d/10-vps.conf <<'EOF'
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin no
EOF

# Each container makes host keys of its own at its first boot.
rm -f /etc/ssh/ssh_host_*
cat > /etc/systemd/system/ssh-host-keys.service <<'EOF'
[Unit]
Description=Make this machine's SSH host keys
ConditionPathExists=!/etc/ssh/ssh_host_ed25519_key
Before=ssh.service

[Service]
Type=oneshot
ExecStart=/usr/bin/ssh-keygen -A

[Install]
WantedBy=ssh.service
EOF
systemctl enable ssh-host-keys.service

# As providers' images set it; PAM complains about its absence at each login.
echo 'LANG=C.UTF-8' > /etc/default/locale

# No console, no hardware, no kernel of its own.
systemctl mask getty.target console-getty.service systemd-udevd.service systemd-udev-trigger.service \
    systemd-modules-load.service systemd-remount-fs.service systemd-firstboot.service \
    sys-kernel-config.mount sys-kernel-debug.mount sys-kernel-tracing.mount \
    proc-sys-fs-binfmt_misc.automount dev-hugepages.mount
# Their turn comes at random times of the day, and apt's hold its lock: a test would sometimes wait for minutes.
systemctl mask apt-daily.timer apt-daily-upgrade.timer man-db.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer
systemctl set-default multi-user.target

# Each container gets a machine id of its own at its first boot.
: > /etc/machine-id
rm -f /var/lib/dbus/machine-id

apt-get clean
rm -rf /var/lib/apt/lists/*
