#!/bin/bash
# Makes the release files from programs that are built: archives, .deb, .rpm, checksums. The same programs give the
# same bytes, wherever and whenever it runs. docs/packages.md describes the files.
#
# usage: package.sh [--programs FOLDER] [--static FOLDER] [--only LIST] [--output FOLDER] [--version VERSION] [--fast]
#
#   --programs  both programs, linked with the C library: the archive, the .deb and the .rpm
#   --static    both programs, linked statically: the archive -static
#   --only      some of "archive deb rpm"
#   --output    where the files go (dist)
#   --version   another version than that of Cargo.toml
#   --fast      compress little; for tests
set -euo pipefail

programs= static= only="archive deb rpm" output= version= fast=
while (($#)); do
    case $1 in
    --programs) programs=$2 && shift ;;
    --static) static=$2 && shift ;;
    --only) only=$2 && shift ;;
    --output) output=$2 && shift ;;
    --version) version=$2 && shift ;;
    --fast) fast=1 ;;
    *) echo "package: unknown argument: $1" >&2 && exit 2 ;;
    esac
    shift
done
# The arguments are relative to the caller's folder, everything else to the source tree.
here=$PWD
cd "$(dirname "$0")/.."
absolute() { (cd "$here" && realpath --canonicalize-missing "$1"); }
programs=${programs:+$(absolute "$programs")} static=${static:+$(absolute "$static")}
output=${output:+$(absolute "$output")} output=${output:-$PWD/dist}
test -n "$programs$static" || { echo "package: --programs or --static is needed" >&2 && exit 2; }
version=${version:-$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)}
maintainer=${SOCI_MAINTAINER:-soci-snapshotter maintainers <maintainers@soci-snapshotter.invalid>}
level=9 rpm_compression=zstd
if test -n "$fast"; then level=1 rpm_compression=gzip; fi
both=(soci soci-snapshotter-grpc)

# Nothing of the time or the place of packaging ends in a file.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || stat -c %Y Cargo.lock)}
export LC_ALL=C TZ=UTC
umask 022

wanted() { [[ " $only " == *" $1 "* ]]; }

tools=${CARGO_TARGET_DIR:-$PWD/target}/tools
if wanted deb; then scripts/install-package-tools.sh "$tools" cargo-deb; fi
if wanted rpm; then scripts/install-package-tools.sh "$tools" cargo-generate-rpm; fi

machine_of() {
    case $(LC_ALL=C readelf -h "$1" | sed -n 's/ *Machine: *//p') in
    *X86-64*) echo amd64 x86_64 ;;
    AArch64) echo arm64 aarch64 ;;
    *) echo "package: $1 is not a program for amd64 or arm64" >&2 && return 1 ;;
    esac
}

mkdir -p "$output"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# A checksum beside a file, as v0.15's releases have it.
sum() {
    (cd "$output" && sha256sum "$1" >"$1.sha256sum")
    echo "package: $1: $(stat -c %s "$output/$1") bytes"
}

# Copies of the programs without symbols.
strip_into() { # FROM TO
    mkdir -p "$2"
    for program in "${both[@]}"; do
        test -x "$1/$program" || { echo "package: $1/$program is missing: build it first" >&2 && return 1; }
        strip --strip-all -o "$2/$program" "$1/$program"
        chmod 755 "$2/$program"
    done
}

scripts/third-party-licenses.py >"$work/THIRD_PARTY_LICENSES"

# The archive of v0.15's releases: both programs at the top, where guides extract them by name.
archive() { # FOLDER-OF-STRIPPED-PROGRAMS NAME LICENCES
    local tree=$work/$2
    mkdir -p "$tree"
    cp "$1"/soci "$1"/soci-snapshotter-grpc LICENSE "$tree"
    cp "$3" "$tree/THIRD_PARTY_LICENSES"
    make --silent install DESTDIR="$tree/tree" PREFIX=/usr/local RELEASE_DIR="$1" >/dev/null
    mkdir -p "$tree/completions"
    cp -r "$tree/tree/etc/systemd/system" "$tree/systemd"
    cp "$tree/tree/usr/local/share/bash-completion/completions/soci" "$tree/completions/soci.bash"
    cp "$tree/tree/usr/local/share/zsh/site-functions/_soci" "$tree/completions/_soci"
    cp "$tree/tree/usr/local/share/fish/vendor_completions.d/soci.fish" "$tree/completions/soci.fish"
    cp -r "$tree/tree/usr/local/share/man" "$tree/man"
    cp -r "$tree/tree/etc/soci-snapshotter-grpc" "$tree/config"
    rm -r "$tree/tree"
    # The programs come first: extracting them by name reads no further than needed.
    (
        cd "$tree"
        { printf '%s\n' soci soci-snapshotter-grpc && find . -mindepth 1 -printf '%P\n' | sort |
            grep -vx -e soci -e soci-snapshotter-grpc; } |
            tar --create --no-recursion --files-from=- --format=ustar --owner=0 --group=0 --numeric-owner \
                --mode=u=rwX,go=rX --mtime="@$SOURCE_DATE_EPOCH" |
            gzip --no-name "-$level" >"$output/$2.tar.gz"
    )
    sum "$2.tar.gz"
}

# The folder that packaging/Cargo.toml.in describes, and from it the .deb and the .rpm.
packages() { # FOLDER-OF-STRIPPED-PROGRAMS DEBIAN-ARCHITECTURE RPM-ARCHITECTURE
    local tree=$work/packages
    mkdir -p "$tree/root/usr/libexec/soci-snapshotter"
    cp -r packaging/deb packaging/rpm LICENSE "$tree"
    sed -e "s/@VERSION@/$version/" -e "s/@MAINTAINER@/$maintainer/" packaging/Cargo.toml.in >"$tree/Cargo.toml"
    : >"$tree/empty.rs"
    make --silent install DESTDIR="$tree/root" PREFIX=/usr UNITDIR=/usr/lib/systemd/system RELEASE_DIR="$1" >/dev/null
    cp packaging/after-install packaging/before-remove "$tree/root/usr/libexec/soci-snapshotter/"
    gzip --no-name -9 "$tree"/root/usr/share/man/man*/*
    gzip --no-name -9 <"$work/THIRD_PARTY_LICENSES" >"$tree/THIRD_PARTY_LICENSES.gz"
    find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
    (
        cd "$tree"
        # Each distribution has its own form of names.
        deb=soci-snapshotter_$version-1_$2.deb rpm=soci-snapshotter-$version-1.$3.rpm
        if wanted deb; then
            CARGO_TARGET_DIR=$work/target "$tools/bin/cargo-deb" --manifest-path "$tree/Cargo.toml" --no-build \
                --no-strip --offline --quiet --compress-system ${fast:+--fast --compress-type gz} --deb-version "$version-1" \
                --output "$output/$deb" >/dev/null
            sum "$deb"
        fi
        if wanted rpm; then
            "$tools/bin/cargo-generate-rpm" --arch "$3" --auto-req builtin --output "$output/$rpm" \
                --payload-compress "$rpm_compression"
            sum "$rpm"
        fi
    )
}

if test -n "$programs"; then
    read -r debian rpm <<<"$(machine_of "$programs/soci")"
    strip_into "$programs" "$work/dynamic"
    if wanted archive; then
        archive "$work/dynamic" "soci-snapshotter-$version-linux-$debian" "$work/THIRD_PARTY_LICENSES"
    fi
    if wanted deb || wanted rpm; then packages "$work/dynamic" "$debian" "$rpm"; fi
fi
if test -n "$static"; then
    read -r debian rpm <<<"$(machine_of "$static/soci")"
    strip_into "$static" "$work/static"
    # The C library is part of these.
    scripts/third-party-licenses.py --static >"$work/THIRD_PARTY_LICENSES.static"
    archive "$work/static" "soci-snapshotter-$version-linux-$debian-static" "$work/THIRD_PARTY_LICENSES.static"
fi
