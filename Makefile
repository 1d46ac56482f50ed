# Two commands do all set-up on a fresh Debian machine with Rust: `make demo` and `make test`.
#
# What is missing of Debian's packages is installed when we may (root, or sudo without a password) and named when we may not.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
CARGO ?= cargo
CONFIG ?= cutover.toml
# Everything there is, for tests; a release has what its builder asks for.
FEATURES := cutover/otlp
ARGS ?=

# command:package, for building, and for the tests beside that
BUILD_TOOLS := gcc:gcc g++:g++ make:make cmake:cmake pkg-config:pkg-config
TEST_TOOLS := nginx:nginx-light haproxy:haproxy wrk:wrk python3:python3 curl:curl openssl:openssl h2load:nghttp2-client nghttp:nghttp2-client nghttpd:nghttp2-server prometheus:prometheus promtool:prometheus valgrind:valgrind
PEER_TOOLS := nginx:nginx-light haproxy:haproxy strace:strace

.PHONY: endure load scenario scenarios differential instructions instruction-limits help demo run test lint unit doc judge acceptance edge eyes bench peers release packages build-packages peer-packages clean

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: build-packages ## the main job on one machine: split, ramp, break, drop (ARGS="--headless --assert --json")
	$(CARGO) run --quiet --locked -p cutover -- demo $(ARGS)

run: build-packages ## the proxy, following CONFIG (cutover.toml)
	$(CARGO) run --release --locked -p cutover -- run -c $(CONFIG) $(ARGS)

test: packages lint unit doc ## everything: format, lints, tests, documents, demo, acceptance with nginx, Python and wrk, the edge with clients of others, dashboards and alerts with Prometheus, both engines against each other, a short comparison with nginx and HAProxy
	$(CARGO) build --workspace --bins --tests --features $(FEATURES) --locked
	target/debug/cutover demo --headless --assert
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target whole
	$(MAKE) --no-print-directory instruction-limits
	target/debug/cutover-loadtest peers --short --cutover target/debug/cutover --minipingora target/debug/minipingora >/dev/null
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny --offline check bans licenses sources; else echo "cargo-deny is not installed: licences and bans were not checked (cargo install cargo-deny)"; fi

# The built proxy as users have it. They wait more than they work and know nothing of each other: two at once, the longest first.
WHOLE := whole-acceptance whole-edge whole-eyes whole-scenarios whole-engines whole-edge-proxy
.PHONY: whole $(WHOLE)
whole: $(WHOLE)
whole-%: export CUTOVER = target/debug/cutover
whole-acceptance:
	$(MAKE) --no-print-directory acceptance ARGS="--edits 48 --runs 2 --rps 400"
whole-edge:
	$(MAKE) --no-print-directory edge ARGS="--short"
# Not beside whole-edge, which makes the Python environment of both.
whole-edge-proxy: whole-edge
	$(MAKE) --no-print-directory edge ARGS="--short --engine proxy --only bodies streaming changes dead"
whole-eyes:
	$(MAKE) --no-print-directory eyes ARGS="--short"
whole-scenarios:
	$(MAKE) --no-print-directory scenarios
whole-engines:
	target/debug/cutover-loadtest differential --cutover target/debug/cutover --cases 600

lint: build-packages ## format and lints
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets --features $(FEATURES) --locked -- -D warnings
	$(CARGO) clippy --workspace --locked -- -D warnings

# Most tests of the running proxy wait for its deadlines: more of them at once than there are cores.
unit: export RUST_TEST_THREADS ?= 6
unit: build-packages ## all tests of the workspace, those of the running proxy with both engines
	$(CARGO) test --workspace --features $(FEATURES) --locked
	CUTOVER_TEST_ENGINE=proxy $(CARGO) test --quiet --workspace --features $(FEATURES) --locked --test it

doc: build-packages ## documents of the code, links checked
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --quiet

release: build-packages ## the release binary: target/release/cutover
	$(CARGO) build --release --locked -p cutover

CUTOVER ?= target/release/cutover
acceptance: packages ## real input: nginx and Python's http.server as backends, wrk with 10,000 users, edits, breach, broken files
	@test -x $(CUTOVER) || $(CARGO) build --release --locked -p cutover
	python3 loadtest/acceptance/acceptance.py --cutover $(CUTOVER) $(ARGS)

edge: packages ## clients and servers of others: curl, nghttp2, openssl, grpcio, websockets, nginx (ARGS="--short", "--only grpc")
	@test -x $(CUTOVER) || $(CARGO) build --release --locked -p cutover
	python3 loadtest/acceptance/edge.py --cutover $(CUTOVER) $(ARGS)

eyes: packages ## dashboards, alerts and runbook against a real Prometheus and a breach (ARGS="--short", "--pictures docs/pictures")
	@test -x $(CUTOVER) -a -x $(CUTOVER)-loadtest || $(CARGO) build $(if $(findstring debug,$(CUTOVER)),,--release) --locked -p cutover -p cutover-loadtest
	python3 loadtest/acceptance/eyes.py --cutover $(CUTOVER) $(ARGS)

endure: packages ## an hour of numbered requests, none lost and none doubled, beside edits, rollbacks, upgrades and hostile clients; memory stays (ARGS="--minutes 5")
	@test -x $(CUTOVER) || $(CARGO) build --release --locked -p cutover
	python3 loadtest/acceptance/endure.py --cutover $(CUTOVER) $(ARGS)

LOADTEST = $(if $(findstring debug,$(CUTOVER)),target/debug,target/release)/cutover-loadtest
load: build-packages ## load with stable users on TARGET (ARGS="--rps 2000 --html load.html"): see loadtest/README.md
	$(CARGO) run --release --quiet --locked -p cutover-loadtest -- run --target $(or $(TARGET),http://127.0.0.1:8080) $(ARGS)

scenario: build-packages ## one scenario against the release binary: NAME=breach (ARGS="--runs 20 --html breach.html"); without NAME a list of them
	@test -z "$(NAME)" -o -x $(CUTOVER) || $(CARGO) build --release --locked -p cutover
	$(CARGO) run --release --quiet --locked -p cutover-loadtest -- scenario $(NAME) --cutover $(CUTOVER) $(ARGS)

scenarios: build-packages ## every scenario in a short form with --assert; no numbers are judged (CUTOVER=target/debug/cutover)
	@test -x $(CUTOVER) -a -x $(LOADTEST) || $(CARGO) build $(if $(findstring debug,$(CUTOVER)),,--release) --locked -p cutover -p cutover-loadtest
	python3 loadtest/acceptance/load.py --cutover $(CUTOVER) --loadtest $(LOADTEST) $(ARGS)

differential: build-packages ## the same made-up messages through two engines of the proxy; nothing may differ but by a listed rule (ARGS="--cases 10000000", "--seed 7 --case 123")
	@test -x $(CUTOVER) || $(CARGO) build --release --locked -p cutover
	$(CARGO) run --release --quiet --locked -p cutover-loadtest -- differential --cutover $(CUTOVER) $(ARGS)

bench: build-packages ## decision, recorder, tick and gate (criterion)
	$(CARGO) bench --locked -p cutover-benches $(ARGS)

judge: build-packages ## the sequential judge on virtual time: its delays beside the design's table, and two healthy backends for DAYS (100) days
	$(CARGO) build --release --locked -p cutover-benches --bin judge
	target/release/judge delays --assert $(ARGS)
	target/release/judge aa --days $(or $(DAYS),100) --assert

# Its version has to be that of the library.
RUNNER := target/tools/bin/gungraun-runner
RUNNER_VERSION := $(shell sed -n 's/^gungraun = "=\(.*\)"/\1/p' Cargo.toml)
$(RUNNER): Cargo.toml
	@$(RUNNER) --version 2>/dev/null | grep -qF " $(RUNNER_VERSION)" || CARGO_PROFILE_DEV_DEBUG=false $(CARGO) install --quiet --debug --locked --root target/tools gungraun-runner --version $(RUNNER_VERSION)
	@touch $(RUNNER)

instructions: packages $(RUNNER) ## instructions of each piece of a request, and of one through the whole proxy beside a do-nothing one, counted by valgrind
	GUNGRAUN_RUNNER=$(CURDIR)/$(RUNNER) $(CARGO) bench --locked --profile counted -p cutover-benches --bench instructions
	$(CARGO) build --release --locked -p cutover -p cutover-loadtest -p cutover-benches --bin cutover --bin cutover-loadtest --bin minipingora
	python3 benches/instructions.py

instruction-limits: packages $(RUNNER) ## no piece of a request needs more instructions than its limit, in a development build
	GUNGRAUN_RUNNER=$(CURDIR)/$(RUNNER) $(CARGO) bench --quiet --locked --workspace --features $(FEATURES) --profile dev --bench instructions -- --nocapture=no >target/instructions.log || { grep -A8 -i regress target/instructions.log; exit 1; }

peers: peer-packages ## what nginx, HAProxy, a do-nothing pingora proxy and cutover cost for the same split (ARGS="--short", "--only cutover,haproxy", "--phases memory")
	$(CARGO) build --release --locked -p cutover -p cutover-loadtest -p cutover-benches --bin cutover --bin cutover-loadtest --bin minipingora
	target/release/cutover-loadtest peers $(ARGS)

build-packages: TOOLS := $(BUILD_TOOLS)
packages: TOOLS := $(BUILD_TOOLS) $(TEST_TOOLS)
peer-packages: TOOLS := $(BUILD_TOOLS) $(PEER_TOOLS)
packages: ## the Debian packages that building and testing need
build-packages packages peer-packages:
	@missing=""; \
	for pair in $(TOOLS); do \
	  command -v "$${pair%%:*}" >/dev/null || test -x "/usr/sbin/$${pair%%:*}" || missing="$$missing $${pair##*:}"; \
	done; \
	case "$(TOOLS)" in *python3:*) python3 -c "import ensurepip" 2>/dev/null || missing="$$missing python3-venv";; esac; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" = 0 ]; then run=""; elif sudo -n true 2>/dev/null; then run="sudo"; else echo "missing packages, please install them: apt-get install$$missing" >&2; exit 1; fi; \
	  command -v apt-get >/dev/null || { echo "missing tools, please install what provides:$$missing" >&2; exit 1; }; \
	  echo "installing$$missing"; \
	  $$run apt-get update -qq; $$run env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends $$missing >/dev/null; \
	fi

clean: ## remove what was built
	$(CARGO) clean
