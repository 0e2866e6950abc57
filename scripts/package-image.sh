#!/bin/bash
# Builds a container image of the installer and the index builder as an OCI layout, without a network and without a
# builder: one layer with the two programs and certificate authorities, on nothing.
#
#   scripts/package-image.sh [--arch ARCH] [--certificates FILE] PROGRAMS LAYOUT[:TAG]
#
# PROGRAMS is an archive (soci-snapshotter-*-static.tar.gz) or a folder with soci and soci-snapshotter-grpc.
# FILE has the authorities that the index builder trusts, PEM. Without it, those of this machine (Debian's package
# ca-certificates, or /etc/pki) are taken.
# The same programs and authorities give the same bytes. Push it with
#   skopeo copy oci:LAYOUT:TAG docker://registry.example/soci-snapshotter:TAG
set -euo pipefail

fail() {
    echo "package-image: $*" >&2
    exit 1
}

arch= certificates=
while [[ ${1-} == --* ]]; do
    test $# -ge 2 || fail "$1 needs a value"
    case $1 in
    --arch) arch=$2 ;;
    --certificates) certificates=$2 ;;
    *) fail "unknown argument: $1" ;;
    esac
    shift 2
done
test $# = 2 || fail "give PROGRAMS and LAYOUT[:TAG]: see the head of this script"
programs=$1 layout=${2%%:*} tag=latest
if test "$layout" != "$2"; then tag=${2#*:}; fi
[[ $tag =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$ ]] || fail "$tag is not a tag"

if test -z "$certificates"; then
    for certificates in /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
        if test -f "$certificates"; then break; fi
    done
    test -f "$certificates" || fail "this machine has no certificate authorities: give --certificates FILE"
fi
grep -q -e '-----BEGIN CERTIFICATE-----' "$certificates" || fail "$certificates has no certificates in PEM"
# A file that a server reads has its key beside its certificate.
! grep -q 'PRIVATE KEY-----' "$certificates" || fail "$certificates has a private key, which an image must not have"

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
mkdir -p "$work/root/etc/ssl/certs"
cp "$certificates" "$work/root/etc/ssl/certs/ca-certificates.crt"
chmod -R u=rwX,go=rX "$work/root"
for name in "${names[@]}"; do chmod 0755 "$work/root/$name"; done

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
    --pax-option=delete=atime,delete=ctime -C "$work/root" -cf "$work/layer.tar" "${names[@]}" etc
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
