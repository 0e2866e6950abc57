# `make help` lists the targets. Building needs Rust and protoc, testing needs root, FUSE, containerd and runc:
# `make deps` installs what is missing.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

export PATH := $(if $(CARGO_HOME),$(CARGO_HOME),$(HOME)/.cargo)/bin:$(PATH):/usr/sbin:/sbin

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
DATADIR ?= $(PREFIX)/share
SYSCONFDIR ?= /etc
UNITDIR ?= /etc/systemd/system
DESTDIR ?=
# The daemon's --root: `make uninstall` unmounts what is below it.
ROOTDIR ?= /var/lib/soci-snapshotter-grpc
# The folder that `make install` copies the programs from.
RELEASE_DIR ?= target/release

CARGO ?= cargo
# Tests that start a containerd each mostly wait, for starts, time-outs and slowed registries: four at once keep two
# cores busy, and more only slow each other down.
TEST_THREADS ?= 4
# Seconds for each fuzz target.
FUZZ_SECONDS ?= 60
FUZZ_JOBS ?= 1
# --allow-unchecked-advisories: `make lint` passes where the advisory database cannot be fetched.
ADVISORIES ?=
# Seconds of kills in `make soak`; kills without resending, and hand-overs, take a third of it each, pulls and
# removals of images half of it.
SOAK_SECONDS ?= 1800

BINARIES := soci-snapshotter-grpc soci
UNITS := soci-snapshotter.service soci-snapshotter.socket
BASH_COMPLETION := $(DATADIR)/bash-completion/completions/soci
ZSH_COMPLETION := $(DATADIR)/zsh/site-functions/_soci
FISH_COMPLETION := $(DATADIR)/fish/vendor_completions.d/soci.fish
MANDIR := $(DATADIR)/man
# Every page that begins with our names, those of earlier versions included.
MAN_PAGES := man1/soci.1 man1/soci-*.1 man5/soci-snapshotter-grpc.toml.5 man8/soci-snapshotter-grpc.8

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: deps
deps: ## Install the missing packages and Rust (Debian, root)
	@scripts/install-deps.sh

.PHONY: build
build: deps ## Build both programs for debugging
	$(CARGO) build --locked $(addprefix --package ,$(BINARIES))

.PHONY: release
release: deps ## Build both programs for use
	$(CARGO) build --locked --release $(addprefix --package ,$(BINARIES))

.PHONY: package
package: deps ## Build the release files into dist: archives, static archive, .deb, .rpm, SBOM, checksums
	scripts/release.sh

.PHONY: demo
demo: deps ## Index an image, run it lazily and with overlayfs, print both (IMAGE=… for one of yours)
	@test "$$(id -u)" = 0 || { echo "make demo needs root: it mounts file systems and starts containers" >&2; exit 1; }
	$(CARGO) build --locked --release $(addprefix --package ,$(BINARIES)) --package soci-benches
	target/release/demo

# Cargo builds all programs before the first test runs. SOCI_BIN_DIR has the end-to-end tests use those instead
# of building them again with other features. Documentation has no examples that rustdoc would have to look for.
.PHONY: test
test: deps previous package-tools ## Run every test (root)
	@test "$$(id -u)" = 0 || { echo "make test needs root: it mounts file systems and starts containers ('make check' does not)" >&2; exit 1; }
	SOCI_BIN_DIR=$${CARGO_TARGET_DIR:-$(CURDIR)/target}/debug RUST_TEST_THREADS=$(TEST_THREADS) \
		$(CARGO) test --locked --workspace --tests --no-fail-fast

# What tests make .deb and .rpm files with.
.PHONY: package-tools
package-tools: deps
	@scripts/install-package-tools.sh $${CARGO_TARGET_DIR:-target}/tools cargo-deb cargo-generate-rpm

# The daemon of the version before, which tests upgrade from.
.PHONY: previous
previous: deps
	@scripts/build-previous.sh

.PHONY: check
check: deps ## Run the tests that need neither root nor containers
	scripts/check.sh

.PHONY: check-concurrency
check-concurrency: deps ## Run the concurrency tests over many schedules, and unsafe code under Miri (nightly)
	scripts/check-concurrency.sh

.PHONY: soak
soak: deps ## Kill and replace the server, then pull and remove images, for SOAK_SECONDS each
	@test "$$(id -u)" = 0 || { echo "make soak needs root: it mounts file systems and starts containers" >&2; exit 1; }
	$(CARGO) build --locked $(addprefix --package ,$(BINARIES))
	SOAK_SECONDS=$(SOAK_SECONDS) $(CARGO) test --locked --workspace --test e2e -- survival:: soak:: --test-threads 1 --nocapture

.PHONY: bench
bench: deps ## Print the benchmarks, overlayfs beside them
	@test "$$(id -u)" = 0 || { echo "make bench needs root: it mounts file systems and starts containers" >&2; exit 1; }
	$(CARGO) build --locked --release $(addprefix --package ,$(BINARIES)) --package soci-benches
	target/release/bench

.PHONY: bench-start
bench-start: deps ## Print what cold starts of the demo image cost, overlayfs beside them (PREVIOUS=…, REFERENCE=…)
	@test "$$(id -u)" = 0 || { echo "make bench-start needs root: it mounts file systems and starts containers" >&2; exit 1; }
	$(CARGO) build --locked --release $(addprefix --package ,$(BINARIES)) --package soci-benches
	target/release/bench-start --again

.PHONY: bench-keep
bench-keep: deps ## Print what filling and keeping images costs (PREVIOUS=… measures another build instead)
	@test "$$(id -u)" = 0 || { echo "make bench-keep needs root: it mounts file systems and starts containers" >&2; exit 1; }
	$(CARGO) build --locked --release $(addprefix --package ,$(BINARIES)) --package soci-benches
	target/release/bench-keep

.PHONY: bench-keep-torch
bench-keep-torch: deps ## The same for an image with PyTorch: 4 GB, built from PyPI on first use
	@test "$$(id -u)" = 0 || { echo "make bench-keep-torch needs root: it mounts file systems and starts containers" >&2; exit 1; }
	$(CARGO) build --locked --release $(addprefix --package ,$(BINARIES)) --package soci-benches
	target/release/bench-keep --torch

.PHONY: bench-eager
bench-eager: deps ## Print what whole pulls cost, overlayfs beside them (EAGER="layers files large torch", REFERENCE=…)
	@test "$$(id -u)" = 0 || { echo "make bench-eager needs root: it mounts file systems" >&2; exit 1; }
	$(CARGO) build --locked --release $(addprefix --package ,$(BINARIES)) --package soci-benches
	target/release/bench-eager $(EAGER)

.PHONY: bench-index-builder
bench-index-builder: deps ## Print what the index builder needs for a burst of pushes, `soci convert` of each beside it
	$(CARGO) build --locked --release --package soci --package soci-benches
	target/release/bench-index-builder

.PHONY: bench-nodes
bench-nodes: deps ## Print what mirrors that end connections, and programs that list attributes, cost
	@test "$$(id -u)" = 0 || { echo "make bench-nodes needs root: it mounts file systems and starts containers" >&2; exit 1; }
	$(CARGO) build --locked --release $(addprefix --package ,$(BINARIES)) --package soci-benches
	target/release/bench-nodes

.PHONY: bench-start-torch
bench-start-torch: deps ## The same for an image with PyTorch: 4 GB, built from PyPI on first use
	@test "$$(id -u)" = 0 || { echo "make bench-start-torch needs root: it mounts file systems and starts containers" >&2; exit 1; }
	$(CARGO) build --locked --release $(addprefix --package ,$(BINARIES)) --package soci-benches
	target/release/bench-start --torch --again --overlayfs-runs 1

.PHONY: fuzz
fuzz: ## Fuzz each target (TARGETS=… for some) for FUZZ_SECONDS, FUZZ_JOBS at a time
	fuzz/run -s $(FUZZ_SECONDS) -j $(FUZZ_JOBS) $(TARGETS)

.PHONY: lint
lint: ## Check format, clippy, documentation, promises, architecture, oldest Rust, licences and advisories
	scripts/check-specification.sh
	scripts/check-architecture.sh
	scripts/check-modules.py
	scripts/check-language.sh
	scripts/check-messages.py
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --locked --workspace --no-deps
	scripts/check-msrv.sh
	scripts/check-dependencies.sh $(ADVISORIES)

.PHONY: check-kubernetes
check-kubernetes: ## Render the Helm chart and validate it (fetches helm and schemas on first use)
	scripts/check-kubernetes.sh

.PHONY: check-status-page
check-status-page: deps ## Look at the index builder's status page in Chromium (installs it on Debian, root)
	@command -v chromium >/dev/null || { echo "check-status-page: installing chromium" && apt-get -q update && \
		apt-get -q -y install --no-install-recommends chromium; }
	$(CARGO) test --locked --package soci-index-builder --features browser --test browser

.PHONY: install
install: ## Install programs, units, completions, manual pages and default configuration (DESTDIR, PREFIX)
	@for b in $(BINARIES); do test -x $(RELEASE_DIR)/$$b || { echo "$(RELEASE_DIR)/$$b is missing: make release first" >&2; exit 1; }; done
	install -D -m 0755 -t $(DESTDIR)$(BINDIR) $(addprefix $(RELEASE_DIR)/,$(BINARIES))
	install -d $(DESTDIR)$(UNITDIR)
	sed 's|/usr/local/bin/|$(BINDIR)/|' systemd/soci-snapshotter.service | install -m 0644 /dev/stdin $(DESTDIR)$(UNITDIR)/soci-snapshotter.service
	install -m 0644 systemd/soci-snapshotter.socket $(DESTDIR)$(UNITDIR)/soci-snapshotter.socket
	install -d $(dir $(addprefix $(DESTDIR),$(BASH_COMPLETION) $(ZSH_COMPLETION) $(FISH_COMPLETION)))
	$(RELEASE_DIR)/soci completion bash | install -m 0644 /dev/stdin $(DESTDIR)$(BASH_COMPLETION)
	$(RELEASE_DIR)/soci completion zsh | install -m 0644 /dev/stdin $(DESTDIR)$(ZSH_COMPLETION)
	$(RELEASE_DIR)/soci completion fish | install -m 0644 /dev/stdin $(DESTDIR)$(FISH_COMPLETION)
	@pages=$$(mktemp -d) && trap 'rm -r "$$pages"' EXIT && \
		$(RELEASE_DIR)/soci man "$$pages" && $(RELEASE_DIR)/soci-snapshotter-grpc man "$$pages" && \
		for chapter in 1 5 8; do install -D -m 0644 -t $(DESTDIR)$(MANDIR)/man$$chapter "$$pages"/*.$$chapter || exit 1; done
	@# An operator's configuration is never overwritten.
	@if test -e $(DESTDIR)$(SYSCONFDIR)/soci-snapshotter-grpc/config.toml; then \
		echo "kept $(DESTDIR)$(SYSCONFDIR)/soci-snapshotter-grpc/config.toml"; \
	else \
		install -D -m 0644 config/config.toml $(DESTDIR)$(SYSCONFDIR)/soci-snapshotter-grpc/config.toml; \
	fi
	@if test -z "$(DESTDIR)" && test -d /run/systemd/system; then systemctl daemon-reload; fi

# With DESTDIR only files are removed. Without it, the daemon is stopped and its mounts are unmounted first by
# the installed program: it refuses while a daemon serves, and then nothing is removed.
.PHONY: uninstall
uninstall: ## Stop the daemon, unmount its layers, remove what install installed, except the configuration
	@if test -z "$(DESTDIR)" && test -d /run/systemd/system; then \
		for unit in $(UNITS); do ! test -e $(UNITDIR)/$$unit || systemctl disable --now $$unit || exit 1; done; \
	fi
	@if test -z "$(DESTDIR)" && test -d $(ROOTDIR) && test -x $(BINDIR)/soci; then \
		$(BINDIR)/soci --root $(ROOTDIR) abort-mounts --unmount; \
	fi
	rm -f $(addprefix $(DESTDIR)$(BINDIR)/,$(BINARIES)) $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS))
	rm -f $(addprefix $(DESTDIR),$(BASH_COMPLETION) $(ZSH_COMPLETION) $(FISH_COMPLETION))
	rm -f $(addprefix $(DESTDIR)$(MANDIR)/,$(MAN_PAGES))
	@if test -z "$(DESTDIR)" && test -d /run/systemd/system; then systemctl daemon-reload; fi

.PHONY: clean
clean: ## Remove what was built
	$(CARGO) clean
