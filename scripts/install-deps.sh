#!/bin/bash
# Installs what building and testing need on Debian 12 (or newer, or Ubuntu) and is not there yet.
# Changes nothing, and needs neither root nor a network, when all is there.
set -euo pipefail

# What is looked for (a command, or a file when it starts with /), and the package that has it.
needs='
git                                         git
curl                                        curl
cc                                          build-essential
python3                                     python3
protoc                                      protobuf-compiler
/usr/include/google/protobuf/timestamp.proto  libprotobuf-dev
/etc/ssl/certs/ca-certificates.crt          ca-certificates
containerd                                  containerd
ctr                                         containerd
runc                                        runc
docker-registry                             docker-registry
skopeo                                      skopeo
busybox                                     busybox-static
mmdebstrap                                  mmdebstrap
mandoc                                      mandoc
openssl                                     openssl
nginx                                       nginx-light
getfattr                                    attr
/usr/share/keyrings/debian-archive-keyring.gpg  debian-archive-keyring
dpkg-deb                                    dpkg
dpkg-shlibdeps                              dpkg-dev
rpm                                         rpm
setpriv                                     util-linux
mount                                       mount
/usr/sbin/mkfs.ext4                         e2fsprogs
systemd-analyze                             systemd
unshare                                     util-linux
systemd-socket-activate                     systemd
faketime                                    faketime
'
oldest_rust=1.90

is_here() {
    case $1 in
    /*) test -e "$1" ;;
    *) command -v "$1" >/dev/null ;;
    esac
}

# Services that come with packages must not start: the tests start their own, privately.
policy=/usr/sbin/policy-rc.d
policy_is_ours=
keep_services_down() {
    if ! test -e $policy; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod 755 $policy
        policy_is_ours=1
    fi
}
let_services_up() {
    if test -n "$policy_is_ours"; then rm -f $policy; fi
}

install_packages() {
    if ! command -v apt-get >/dev/null; then
        echo "install-deps: this is not a Debian: install the equivalents of: $*" >&2
        exit 1
    fi
    if test "$(id -u)" != 0; then
        echo "install-deps: not root: run as root: apt-get install $*" >&2
        exit 1
    fi
    echo "install-deps: installing $*"
    export DEBIAN_FRONTEND=noninteractive
    trap let_services_up EXIT
    keep_services_down
    apt-get -q update
    apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "$@"
    # Nor at the next boot: they were not installed as services.
    if command -v systemctl >/dev/null; then
        for package in "$@"; do
            case $package in
            containerd | docker-registry) systemctl disable "$package.service" 2>/dev/null || true ;;
            esac
        done
    fi
}

rust_is_here() {
    local have
    command -v cargo >/dev/null && command -v rustc >/dev/null || return 1
    have=$(rustc --version | cut -d' ' -f2)
    test "$(printf '%s\n' "$oldest_rust" "$have" | sort -V | head -n1)" = "$oldest_rust"
}

# Debian 12 has Rust 1.63, which is too old, and no package of rustup: the official installer it is, of a
# version whose checksums are known (https://static.rust-lang.org/rustup/archive/VERSION/TARGET/rustup-init.sha256).
rustup=1.28.2
rustup_sums='
x86_64  20a06e644b0d9bd2fbdbfd52d42540bdde820ea7df86e92e533c073da0cdd43c
aarch64 e3853c5a252fca15252d07cb23a1bdd9377a8c6f3efa01531109281ae47f841c
'
install_rust() {
    local machine sum folder
    machine=$(uname -m)
    sum=$(awk -v machine="$machine" '$1 == machine { print $2 }' <<<"$rustup_sums")
    echo "install-deps: installing Rust with rustup $rustup (https://rustup.rs)"
    folder=$(mktemp -d)
    if test -z "$sum" ||
        ! curl --proto '=https' --tlsv1.2 -sSf -o "$folder/rustup-init" \
            "https://static.rust-lang.org/rustup/archive/$rustup/$machine-unknown-linux-gnu/rustup-init" ||
        ! sha256sum --check --quiet <<<"$sum  $folder/rustup-init" ||
        ! chmod 755 "$folder/rustup-init" ||
        ! "$folder/rustup-init" -y --no-modify-path --profile minimal --component clippy --component rustfmt; then
        rm -r "$folder"
        echo "install-deps: could not install Rust: get $oldest_rust or newer from https://rustup.rs" >&2
        exit 1
    fi
    rm -r "$folder"
}

export PATH="${CARGO_HOME:-${HOME:-/root}/.cargo}/bin:$PATH:/usr/sbin:/sbin"

missing=()
while read -r what package; do
    if test -n "$what" && ! is_here "$what" && [[ " ${missing[*]-} " != *" $package "* ]]; then
        missing+=("$package")
    fi
done <<<"$needs"
if ((${#missing[@]})); then install_packages "${missing[@]}"; fi

if ! rust_is_here; then install_rust; fi

if ! test -e /dev/fuse && ! modprobe fuse 2>/dev/null; then
    echo "install-deps: there is no /dev/fuse: load the module (modprobe fuse), or pass the device into this container" >&2
    exit 1
fi
