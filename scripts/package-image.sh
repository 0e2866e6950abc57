#!/bin/bash
# Builds a container image of the installer as an OCI layout, without a network and without a builder: one layer
# with the two programs, on nothing.
#
#   scripts/package-image.sh [--arch ARCH] PROGRAMS LAYOUT[:TAG]
#
# PROGRAMS is an archive (soci-snapshotter-*-static.tar.gz) or a folder with soci and soci-snapshotter-grpc.
# The same programs give the same bytes. Push it with
#   skopeo copy oci:LAYOUT:TAG docker://registry.example/soci-snapshotter:TAG
set -euo pipefail

fail() {
    echo "package-image: $*" >&2
    exit 1
}

arch=
if test "${1-}" = --arch; then
    arch=${2-}
    shift 2 || fail "--arch needs a value"
fi
test $# = 2 || fail "give PROGRAMS and LAYOUT[:TAG]: see the head of this script"
programs=$1 layout=${2%%:*} tag=latest
if test "$layout" != "$2"; then tag=${2#*:}; fi
[[ $tag =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$ ]] || fail "$tag is not a tag"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"
names=(soci soci-snapshotter-grpc)
if test -d "$programs"; then
    for name in "${names[@]}"; do
        cp "$programs/$name" "$work/root/$name" || fail "$programs has no $name"
    done
else
    test -f "$programs" || fail "there is neither a folder nor an archive $programs"
    tar -C "$work/root" -xf "$programs" "${names[@]}" || fail "$programs has no soci and soci-snapshotter-grpc at its top"
fi
chmod 0755 "$work/root"/*

# The processor that the programs are for (ELF header, e_machine).
case $(od -An -tx1 -j18 -N2 "$work/root/soci" | tr -d ' \n') in
3e00) machine=amd64 ;;
b700) machine=arm64 ;;
*) fail "$programs/soci is not a program for amd64 or arm64" ;;
esac
arch=${arch:-$machine}
test "$arch" = "$machine" || fail "the programs are for $machine, not for $arch"
# On an image without files, a program with an interpreter does not start.
if test -n "$(readelf --program-headers "$work/root/soci" 2>/dev/null | grep INTERP || true)"; then
    echo "package-image: warning: soci is linked dynamically; the image has no C library, use the static archive" >&2
fi

size() { stat -c %s "$1"; }
sum() { sha256sum "$1" | cut -d' ' -f1; }
mkdir -p "$layout/blobs/sha256"
# Moves a file into the layout and prints its descriptor.
add() {
    local file=$1 type=$2 digest length
    digest=$(sum "$file")
    length=$(size "$file")
    mv "$file" "$layout/blobs/sha256/$digest"
    printf '{"mediaType":"%s","digest":"sha256:%s","size":%s%s}' "$type" "$digest" "$length" "${3-}"
}

tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner --format=posix \
    --pax-option=delete=atime,delete=ctime -C "$work/root" -cf "$work/layer.tar" "${names[@]}"
diff_id=$(sum "$work/layer.tar")
gzip -n -9 "$work/layer.tar"
layer=$(add "$work/layer.tar.gz" application/vnd.oci.image.layer.v1.tar+gzip)
printf '{"architecture":"%s","os":"linux","config":{"Entrypoint":["/soci"],"Cmd":["node","install","--enter-host","--stay"],"User":"0"},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
    "$arch" "$diff_id" >"$work/config.json"
config=$(add "$work/config.json" application/vnd.oci.image.config.v1+json)
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":%s,"layers":[%s]}' \
    "$config" "$layer" >"$work/manifest.json"
manifest=$(add "$work/manifest.json" application/vnd.oci.image.manifest.v1+json \
    ",\"annotations\":{\"org.opencontainers.image.ref.name\":\"$tag\"},\"platform\":{\"architecture\":\"$arch\",\"os\":\"linux\"}")
printf '{"imageLayoutVersion":"1.0.0"}' >"$layout/oci-layout"
printf '{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[%s]}' \
    "$manifest" >"$layout/index.json"
echo "$layout:$tag $(sum "$layout/index.json")"
