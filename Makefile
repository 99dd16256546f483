# Run make on its own to see what it can do. Everything needs only Go; -race needs a C compiler too and is left out without one.

# Linting for the first time is a quarter garbage collection; 3 GiB of memory instead of 2 save most of that.
LINT := GOGC=200 go run github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
OURS := auth core plugins runtime sdk examples

# make check vets everything, as one of the linters; go test would do a part of that again. Nobody debugs these binaries, and without what a debugger needs they link in half
# the time.
GOTEST := go test -vet=off -ldflags=-w

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
FUZZTIME ?= 30s
BENCHTIME ?= 1s
CHAOSTIME ?= 60s
CLUSTERTIME ?= 10s
CHAOSKILLS ?= 100
CHAOSRUNS ?= 50000
CHAOSKEYS ?= 10000
CHAOSMODULES ?= 200
CHAOSLIMIT ?= 120m
CHECKS ?= 500

# cgo is off everywhere, so that what is tested is what is shipped; the race detector alone cannot do without it. It looks at our code and at the libraries
# that run beside it, but not into the database engine, the compiler of nodes and the password hash: they share no memory with us but under their own locks,
# and watched they take four times as long. The packages of wazero that bring a copy of the code of sync.Map stay watched: the linker may take one copy for
# everybody's, and a detector that does not see what a map orders reports races where there are none (TestMapIsWatched).
export CGO_ENABLED := 0
# The binary that is shipped knows nothing of the machine it was built on; what is tested is compiled in the same way, and so only once.
# Nobody sends us MessagePack, whose library in gin is a tenth of the binary, and of the time it takes to compile.
export GOFLAGS := $(strip $(GOFLAGS) -trimpath -tags=nomsgpack)
UNWATCHED := modernc.org github.com/tetratelabs/wazero golang.org/x/crypto
WATCHED := github.com/tetratelabs/wazero $(addprefix github.com/tetratelabs/wazero/,imports/wasi_snapshot_preview1 internal/wasm internal/engine/interpreter internal/engine/wazevo internal/engine/wazevo/wazevoapi)
RACE := $(if $(shell command -v gcc || command -v clang),-race $(UNWATCHED:%=-gcflags=%/...=-race=false) $(WATCHED:%=-gcflags=%=))

MODULES := $(patsubst examples/nodes/%/main.go,%,$(filter-out examples/nodes/internal/%,$(wildcard examples/nodes/*/*/main.go)))

# The packages of this module with a test function whose name begins with $(1).
having = $(shell grep -rlE '^func $(1)[A-Z]' --include '*_test.go' auth core plugins runtime sdk/authplugin sdk/client | xargs -n1 dirname | sort -u | sed 's,^,./,')

.DEFAULT_GOAL := help
.PHONY: help build plugins run engine examples test check linter bench fuzz race chaos chaos-servers chaos-store chaos-keys chaos-nodes cluster newest fmt clean

help: ## Show this help
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## Build bin/keyfire, one static binary
	go build -ldflags '-s -w -X main.version=$(VERSION)' -o bin/keyfire ./core/cmd/keyfire

plugins: ## Build the auth plugins into bin/, one static binary each
	@for name in ldap introspection hmac forwardauth; do \
		go build -ldflags '-s -w' -o "bin/keyfire-auth-$$name" "./plugins/$$name" || exit 1; \
	done

run: build examples ## Start a server with the examples, and print a key and a curl for each
	@./examples/run.sh

engine: build ## Install the engine of JavaScript nodes into ./data, or where KEYFIRE_DATA says
	@cd bin && npm pack --silent quickjs-wasi@3.6.2 >/dev/null
	@KEYFIRE_DATA="$${KEYFIRE_DATA:-data}" bin/keyfire engine install bin/quickjs-wasi-3.6.2.tgz

examples: ## Compile the example nodes to WebAssembly
	@for module in $(MODULES); do \
		workflow=$${module%/*}; node=$${module#*/}; mode=; \
		if grep -q keyfire/sdk/node "examples/nodes/$$module/main.go"; then mode=-buildmode=c-shared; fi; \
		(cd examples/nodes && GOOS=wasip1 GOARCH=wasm go build $$mode -buildvcs=false -ldflags '-s -w' \
			-o "../workflows/$$workflow/nodes/$$node.wasm" "./$$module") || exit 1; \
	done

# The tests of cli drive whole server processes, which compile modules: under the race detector that takes several times as long for code whose own
# packages are tested with it anyway. They run as the program is shipped here, and with the detector by `make race`.
CLI := github.com/keyfire/keyfire/core/internal/cli

test: examples ## Run every test, with the race detector where there is a C compiler
	@$(if $(RACE),,echo "make test: no C compiler found, so the race detector is off")
	$(if $(RACE),CGO_ENABLED=1) $(GOTEST) $(RACE) -timeout 20m $$(go list ./... | grep -vx $(CLI))
	$(GOTEST) -timeout 20m $(CLI)
	cd examples/nodes && $(GOTEST) ./...
	cd examples/nodes/gallery/go && $(GOTEST) ./...
	cd sdk/node && $(GOTEST) ./...

race: examples ## Run the tests of whole servers with the race detector too
	CGO_ENABLED=1 $(GOTEST) $(RACE) -timeout 60m $(CLI)

check: ## Format, vet, lint, layers, tidiness: everything that is not a test
	@$(LINT) fmt --diff $(OURS) || { echo "make check: not formatted; make fmt does it"; exit 1; }
	$(LINT) run ./...
	cd examples/nodes && go vet ./...
	cd examples/nodes/gallery/go && go vet ./...
	cd sdk/node && go vet ./... && GOOS=wasip1 GOARCH=wasm go build ./...
	KEYFIRE_PLATFORMS="linux/arm64 darwin/arm64" $(GOTEST) -count=1 -run 'TestLayers|TestPlatforms|TestNoTestLibraryInTheBinary|TestNoForeignType' $(CLI)
	go mod tidy -diff
	cd examples/nodes && go mod tidy -diff
	cd examples/nodes/gallery/go && go mod tidy -diff
	cd sdk/node && go mod tidy -diff

# Compiles the linter, which takes longer than linting.
linter:
	@$(LINT) version

bench: ## Run the benchmarks (BENCHTIME=1s)
	$(GOTEST) -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) $(if $(filter 1x,$(BENCHTIME)),-short) $(call having,Benchmark)

# One build of a package serves all its targets. What they find stays where go test -fuzz keeps it too. A number of inputs, such as
# FUZZTIME=2000x, is too few to be guided by, and saves the instrumentation of everything below a package, which takes minutes.
fuzz: ## Run each fuzz target for a while (FUZZTIME=30s)
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	for pkg in $(call having,Fuzz); do \
		$(GOTEST) -c $(if $(filter-out %x,$(FUZZTIME)),-fuzz .) -o "$$tmp/fuzz.test" "$$pkg" || exit 1; \
		for target in $$("$$tmp/fuzz.test" -test.list '^Fuzz'); do \
			echo "fuzz $$pkg $$target"; \
			(cd "$$pkg" && "$$tmp/fuzz.test" -test.run '^$$' -test.fuzz "^$$target\$$" -test.fuzztime $(FUZZTIME) \
				-test.fuzzcachedir "$$(go env GOCACHE)/fuzz/$$(go list .)") >"$$tmp/out" 2>&1 || { cat "$$tmp/out"; exit 1; }; \
		done; \
	done

chaos: chaos-servers chaos-store chaos-keys chaos-nodes ## Kill, starve and attack for a while, and count (CHAOSTIME=60s CHAOSKILLS=100 CHAOSRUNS=50000 CHAOSKEYS=10000 CHAOSMODULES=200)

# What scales down to seconds, so that CI can run it too. The tests below it have a short form of their own in make test.
chaos-servers:
	KEYFIRE_CHAOS=$(CHAOSTIME) KEYFIRE_CHAOS_KILLS=$(CHAOSKILLS) KEYFIRE_CHAOS_RUNS=$(CHAOSRUNS) KEYFIRE_CHAOS_KEYS=$(CHAOSKEYS) KEYFIRE_CHAOS_MODULES=$(CHAOSMODULES) \
		$(GOTEST) -count=1 -v -timeout $(CHAOSLIMIT) -run '^TestChaos' -skip '^TestChaosPlugins$$' ./core/internal/cli
	KEYFIRE_CHAOS=$(CHAOSTIME) $(GOTEST) -count=1 -v -timeout 30m -run 'KillQ1|KillMigration' ./core/internal/store

chaos-store:
	$(GOTEST) -count=1 -timeout 30m -run '/Model$$' ./core/internal/store -rapid.checks=$(CHECKS)
	KEYFIRE_CHAOS=$(CHAOSTIME) $(GOTEST) -count=1 -v -timeout 60m -run 'Damage|Flipped|RatesQ2' ./core/internal/store

# Measures time, so it is not for a machine that does anything else meanwhile.
chaos-keys:
	KEYFIRE_CHAOS=$(CHAOSTIME) $(GOTEST) -count=1 -v -timeout 30m -run 'K3$$|Q2$$|K4$$|^TestA3Timing$$' ./core/internal/server
	KEYFIRE_BENCH_KEYS=1000000 $(GOTEST) -timeout 30m -run XXX -bench Keys -benchtime 1x ./core/internal/store

chaos-nodes:
	KEYFIRE_CHAOS=$(CHAOSTIME) $(GOTEST) -count=1 -v -timeout 120m -run '^TestChaosPlugins$$|^TestD1' ./core/internal/cli
	KEYFIRE_CHAOS=$(CHAOSTIME) $(GOTEST) -count=1 -v -timeout 120m -run '^TestChaos' ./plugins
	KEYFIRE_CHAOS=$(CHAOSTIME) $(GOTEST) -count=1 -v -timeout 60m -run '^TestChaos|^TestIsolationProbes|^TestDifferential|^TestEgressNamespace' ./runtime/wasm

cluster: ## Run three servers on PostgreSQL and NATS, put a load on them, and print a table (CLUSTERTIME=10s)
	@KEYFIRE_CLUSTER=$(CLUSTERTIME) $(GOTEST) -count=1 -v -timeout 30m -run '^TestClusterLoad$$' ./core/internal/cli

# Not a part of CI, which would then fail for what others publish. The engine's experimental parts may change in any version (runtime/RATIONALE.md).
newest: ## Test the runtime with the newest version of its WebAssembly engine
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; cp go.mod "$$tmp/go.mod"; cp go.sum "$$tmp/go.sum"; \
	go get -modfile="$$tmp/go.mod" github.com/tetratelabs/wazero@latest && \
	go list -modfile="$$tmp/go.mod" -m github.com/tetratelabs/wazero && \
	$(GOTEST) -modfile="$$tmp/go.mod" -timeout 30m ./runtime/...

fmt: ## Format the source
	$(LINT) fmt $(OURS)

clean: ## Remove what make built
	rm -rf bin examples/workflows/*/nodes
