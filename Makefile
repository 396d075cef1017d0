# Everything that is done with this repository. Needs Go; everything else is fetched as a Go module.
# make help lists the targets.

GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X main.version=$(VERSION)
MAX_SIZE := 60000000

# The race detector needs a C compiler. Without one the tests run without it.
RACE := $(shell [ "$$($(GO) env CGO_ENABLED)" = 1 ] && command -v "$$($(GO) env CC)" >/dev/null 2>&1 && echo -race)

# Tools, pinned. The protobuf plugins are those of go.mod.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.7.0
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@v1.9.0
BUF_VERSION := 1.57.2

SEEDS     ?= 2000
FUZZTIME  ?= 40000x
SIM       ?= 2m
SIM_WORKERS ?= $(shell nproc 2>/dev/null || echo 1)
MUTANT    ?= 90s
HOURS     ?= 1000
FLIPS     ?= 3
CHAOS     ?= 2m
SDKS      ?= all
BENCHFLAGS ?=
TESTFLAGS ?=
RUNFLAGS  ?=

.PHONY: help run build test jitter format lint vuln bench generate generate-check sim mutants sim-long seeds e2e-sdks chaos disk fuzz

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

run: build ## start a node and the example services, register and invoke them, until Ctrl-C
	@$(GO) build -o bin/example ./integration/example
	@$(GO) build -o bin/demo ./integration/demo
	@exec bin/demo $(RUNFLAGS)

build: ## the release binary, static, in bin/perdure
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/perdure ./cmd/perdure
	@size=$$(wc -c < bin/perdure) && echo "bin/perdure $(VERSION): $$size bytes" && \
	 if [ $$size -gt $(MAX_SIZE) ]; then echo "bin/perdure is larger than $(MAX_SIZE) bytes: find out which import did that" >&2; exit 1; fi

test: format ## gofmt, vet and all tests, with the race detector where there is a C compiler
	$(GO) vet ./...
	$(GO) test $(RACE) -timeout 15m $(TESTFLAGS) ./...
	@echo "make test: all packages passed$(if $(RACE),, (without the race detector: there is no C compiler))"

jitter: ## tests with a scheduler that makes goroutines race: make jitter TESTFLAGS='-run Lost -count 500' PKGS=./invokers/h2
	$(GO) run ./integration/jitter $(TESTFLAGS) $(PKGS)

format: ## fail if a file is not as gofmt writes it
	@unformatted=$$(git ls-files --cached --others --exclude-standard '*.go' | xargs gofmt -l) && \
	 if [ -n "$$unformatted" ]; then echo "not formatted, run gofmt -w on:"; echo "$$unformatted"; exit 1; fi

lint: format ## staticcheck, and govulncheck where its database can be reached
	$(GO) vet ./...
	$(GO) run $(STATICCHECK) ./...
	@$(MAKE) --no-print-directory vuln

vuln: ## known vulnerabilities in what is called; skipped, and said so, without the database
	@out=$$($(GO) run $(GOVULNCHECK) ./... 2>&1); code=$$?; \
	 if [ $$code -ne 0 ] && echo "$$out" | grep -q 'fetching vulnerabilities'; then \
	   echo "govulncheck: skipped, its database cannot be reached (set GOVULNDB to a copy)"; exit 0; fi; \
	 echo "$$out"; exit $$code

bench: ## benchmarks of the packages, then of the whole server
	$(GO) test -run '^$$' -bench . -benchmem $(TESTFLAGS) ./control/... ./invokers/... ./nodes/...
	$(GO) run ./integration/bench/cmd/bench $(BENCHFLAGS)

generate: ## regenerate the protobuf code
	GO='$(GO)' BUF_VERSION=$(BUF_VERSION) .ci/generate

generate-check: ## fail if the committed generated code is stale
	GO='$(GO)' BUF_VERSION=$(BUF_VERSION) .ci/generate --check

sim: ## the simulator over all worlds, its track record, and all mutants: make sim SIM=10m
	$(GO) build -o bin/sim ./integration/sim/cmd/sim
	bin/sim -track
	bin/sim -for $(SIM) -workers $(SIM_WORKERS)
	@$(MAKE) --no-print-directory mutants

mutants: ## fail if the simulator misses one of the deliberate bugs of control/mutant, with two bases of seeds
	$(GO) build -tags mutants -o bin/sim-mutants ./integration/sim/cmd/sim
	bin/sim-mutants -mutants -for $(MUTANT) -workers $(SIM_WORKERS)

sim-long: ## a thousand simulated hours
	$(GO) build -o bin/sim ./integration/sim/cmd/sim
	bin/sim -hours $(HOURS) -workers $(SIM_WORKERS)

seeds: ## many seeds through the random tests of the packages: make seeds SEEDS=10000
	PERDURE_SEEDS=$(SEEDS) $(GO) test -count=1 -timeout 60m -run Simulation $(TESTFLAGS) ./control/... ./invokers/... ./nodes/...

e2e-sdks: ## services written with the Python, Rust and Java SDKs, as far as their tools are here: make e2e-sdks SDKS=rust
	PERDURE_SDKS=$(SDKS) $(GO) test -count=1 -timeout 60m -v $(TESTFLAGS) ./integration/e2e/sdks

chaos: ## kill -9 under load: make chaos CHAOS=10m
	$(GO) test -count=1 -timeout 15m -v $(TESTFLAGS) ./integration/chaos -chaos.for=$(CHAOS)

disk: ## kills, pauses, power cuts and bit flips in every kind of file of the real server: make disk FLIPS=5
	$(GO) test -count=1 -timeout 30m -v $(TESTFLAGS) ./integration/disk -disk.for=20s -disk.kinds=0 -disk.flips=$(FLIPS)

fuzz: ## each fuzz target 40,000 times: make fuzz FUZZTIME=5m
	GO='$(GO)' FUZZTIME=$(FUZZTIME) .ci/fuzz
