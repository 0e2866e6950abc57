#!/bin/bash
# Runs every test that needs neither root nor containers. As root, the tests run as an unprivileged user without
# capabilities, which proves it; `make test` runs the others too.
#
# Cargo starts each test program through this script: `check.sh --run PROGRAM [ARGUMENTS]`.
set -euo pipefail

# The test programs and tests that need root, by package: "-" is the whole program tests/it (or tests/service),
# "+NAME" only those whose name contains it, "NAME" all but those (of the "+NAME" ones, if there are any).
needs_root() {
    case $1 in
    # mount file systems
    soci-fetch) echo although_the_disk_is_full a_store_that_becomes_read_only ;;
    soci-fuse) echo +codec:: ;;                   # the others mount
    soci-holder) echo - ;;                        # a holder accepts root only
    soci-index-builder) echo disk:: ;;            # mounts a small file system
    soci-layerfs) echo kinds:: ;;                 # mounts, makes devices
    soci-lazy) echo +implied:: lazy_layers_look_like ;; # the others mount
    # The others change owners or mount.
    soci-snapshotter) echo +conformance_names:: +eager_prepare:: +a_root_that_cannot_be_used_is_a_clear_error ;;
    # The daemon refuses to start without root.
    soci-snapshotter-grpc) echo +commands:: +startup::a_bad_ +socket_is_refused +sockets_are_refused +the_units_are_valid ;;
    # The others need containerd or mount.
    soci) echo +convert:: +command_line:: +wrong_values_are_refused_in_its_words +a_service_in_the_network_needs_a_secret ;;
    soci-store) echo a_full_disk ;;               # mounts a small file system
    soci-testkit) echo +proxy:: +image:: the_python_image ;; # the others start containerd, or install a Debian
    soci-unpack) echo +bombs_of_gzip_and_zstd +seventeen_thousand_parts ;; # the others change owners
    esac
}

if test "${1:-}" = --run; then
    program=$2
    shift 2
    name=$(basename "$program")
    arguments=()
    case ${name%-*} in
    it | service | client)
        for rule in $(needs_root "$CARGO_PKG_NAME"); do
            case $rule in
            -)
                echo "check: $CARGO_PKG_NAME ${name%-*}: needs root, left to make test"
                exit 0
                ;;
            +*) arguments+=("${rule#+}") ;;
            *) arguments+=(--skip "$rule") ;;
            esac
        done
        ;;
    esac
    echo "check: $CARGO_PKG_NAME ${name%-*} ${arguments[*]-}"
    if test "$(id -u)" = 0; then
        export HOME=/nonexistent
        exec setpriv --reuid=65534 --regid=65534 --clear-groups --inh-caps=-all --no-new-privs \
            "$program" "$@" "${arguments[@]}"
    fi
    exec "$program" "$@" "${arguments[@]}"
fi

cd "$(dirname "$0")/.."
host=$(rustc -vV | sed -n 's/^host: //p')
runner=CARGO_TARGET_$(tr a-z- A-Z_ <<<"$host")_RUNNER
export "$runner=$PWD/scripts/check.sh --run"
# Snapshots are compared, never written.
export INSTA_WORKSPACE_ROOT=$PWD INSTA_UPDATE=no
SOCI_TEST_CACHE=$(mktemp -d)
export SOCI_TEST_CACHE
trap 'rm -rf "$SOCI_TEST_CACHE"' EXIT
chmod 1777 "$SOCI_TEST_CACHE"
"${CARGO:-cargo}" test --locked --workspace --no-fail-fast --lib --bins --test it --test client --test service "$@"
