# SPDX-License-Identifier: Apache-2.0
# Sourced by what works on Debian trees of other releases (packaging/build-deb, tests/vm/make-image).
# shellcheck shell=bash

chroot_say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

# Where this host's own apt gets Debian from, unless MVPS_DEBIAN_MIRROR says otherwise.
chroot_mirror() {
    if [[ -n ${MVPS_DEBIAN_MIRROR:-} ]]; then
        printf '%s\n' "$MVPS_DEBIAN_MIRROR"
        return
    fi
    local origin label uri
    while read -r origin label uri; do
        [[ $origin == Debian && $label == Debian ]] && { printf '%s\n' "$uri"; return; }
    done < <(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages')
    chroot_say "apt of this host knows no Debian mirror: set MVPS_DEBIAN_MIRROR"
    return 4
}

# chroot_need COMMAND PACKAGE: ends with advice when a tool is missing.
chroot_need() {
    command -v "$1" >/dev/null || { chroot_say "$1 is missing: apt-get install $2"; exit 4; }
}

# chroot_make RELEASE FOLDER PACKAGE...: a Debian tree with these packages, made once. Asked for other packages, or cut
# off halfway, it is made anew.
chroot_make() {
    local release=$1 folder=$2
    shift 2
    local stamp=$folder.packages wanted="$release $*"
    [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && return
    [[ $(id -u) == 0 ]] || { chroot_say "debootstrap needs root"; exit 4; }
    chroot_need debootstrap debootstrap
    local mirror
    mirror=$(chroot_mirror)
    chroot_remove "$folder"
    mkdir -p "$folder"
    chroot_say "making $folder (some minutes, once)"
    if ! debootstrap --variant=minbase "$release" "$folder" "$mirror" >"$folder.log" 2>&1; then
        tail -n 20 "$folder.log" >&2
        return 1
    fi
    # What the mirror's names and certificates take here; the copies leave the tree with chroot_close.
    chroot_open "$folder"
    printf 'Acquire::Languages "none";\nAcquire::Check-Valid-Until "false";\n' >"$folder/etc/apt/apt.conf.d/90-mvps-build"
    local done=0
    chroot_run "$folder" sh -ec 'apt-get update -qq
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@"
        apt-get clean
        rm -rf /var/lib/apt/lists/*' sh "$@" >>"$folder.log" 2>&1 || done=$?
    rm -f "$folder/etc/apt/apt.conf.d/90-mvps-build"
    chroot_close "$folder"
    if ((done)); then
        tail -n 20 "$folder.log" >&2
        return 1
    fi
    printf '%s\n' "$wanted" >"$stamp"
}

# chroot_lock FOLDER: this script works on it alone until it ends; another one waits.
chroot_lock() {
    mkdir -p "${1%/*}"
    exec {chroot_locked}>"$1.lock"
    flock "$chroot_locked"
}

# chroot_open FOLDER, chroot_close FOLDER: what programs inside need to see of this host. The order matters.
chroot_open() {
    mountpoint -q "$1/proc" || mount -t proc proc "$1/proc"
    cp --dereference /etc/resolv.conf "$1/etc/resolv.conf"
    # No package's daemon is started on this host.
    printf '#!/bin/sh\nexit 101\n' >"$1/usr/sbin/policy-rc.d"
    chmod 755 "$1/usr/sbin/policy-rc.d"
}

chroot_close() {
    rm -f "$1/usr/sbin/policy-rc.d" "$1/etc/resolv.conf"
    if mountpoint -q "$1/proc"; then umount "$1/proc"; fi
}

# chroot_run FOLDER COMMAND...: with a clean environment.
chroot_run() {
    local folder=$1
    shift
    env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TZ=UTC \
        ${SOURCE_DATE_EPOCH:+SOURCE_DATE_EPOCH="$SOURCE_DATE_EPOCH"} chroot "$folder" "$@"
}

# chroot_remove FOLDER: never across a mount.
chroot_remove() {
    [[ -d $1 ]] || return 0
    if mountpoint -q "$1/proc"; then umount "$1/proc"; fi
    rm -rf --one-file-system "$1" "$1.packages" "$1.log"
}
