# Targets for development. "make" alone lists them.

GO       ?= go
FUZZTIME ?= 60s
# Where "make pgo" puts its profile. The Go tool uses it for every build when it stands there.
PGO      ?= $(CURDIR)/cmd/rota/default.pgo
# Overridable: make test TESTFLAGS='-run Conformance'
TESTFLAGS ?=
# The packages that take longest come first, so that the others run beside them; but for registry/etcd, whose time is etcd's.
PACKAGES  = ./cmd/rota ./balancer/internal/proxy ./balancer ./...
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help build test race bench bench-discovery bench-smoke pgo soak chaos fuzz lint deb dashboard dev licenses clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: ## Build bin/rota, static
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/rota ./cmd/rota

# Every test of connections runs on both engines by itself. The race detector changes timing and allocation: the tests that need
# their own speed skip themselves, or do less, under it, so both targets count. "make lint" vets.
test: bin/etcdutl ## Run all tests
	$(GO) test -vet=off $(TESTFLAGS) $(PACKAGES)

race: bin/etcdutl ## Run all tests with the race detector
	$(GO) test -race -vet=off $(TESTFLAGS) $(PACKAGES)

bench: ## Measure beside nginx, HAProxy and a byte copier (needs nginx, haproxy, wrk, strace, a C compiler)
	$(GO) run ./bench
	$(GO) run ./bench -apart -parts cpu,latency
	$(GO) run ./bench -logs -parts cpu,pairs
	for c in h1-1k-512 h1-5000 h1-64k h1-1m post-16k close-1k tls-1k tls-64k tls-handshake tls-resume; do \
		$(GO) run ./bench -case $$c -parts cpu -duration 3s || exit 1; \
	done

bench-discovery: ## Measure how soon and at what price changes in etcd are followed
	$(GO) run ./bench/discovery

bench-smoke: ## Run both benchmarks for seconds, only to see that they work
	$(GO) run ./bench -smoke
	$(GO) run ./bench -smoke -apart -parts cpu
	for c in h1-1m post-16k tls-1k tls-resume; do $(GO) run ./bench -case $$c -smoke -parts cpu,idle || exit 1; done
	$(GO) run ./bench/discovery -smoke

# The profile is of the first half minute, so the load has to be longer.
pgo: ## Make the profile that builds are optimised with, from a benchmark run
	$(GO) build -tags profile -pgo=off -o bin/rota-profile ./cmd/rota
	ROTA_CPUPROFILE=$(PGO) $(GO) run ./bench -rota bin/rota-profile -contestants rota -parts cpu -rounds 1 -duration 35s

soak: ## Restart, hand over, break and attack for ten minutes: nothing may fail or leak (needs testssl.sh)
	ROTA_TEST_RESTARTS=2500 $(GO) test -count=1 -timeout 15m -v -run '^TestRollingRestarts$$/^loops$$' ./balancer
	ROTA_TEST_RESTARTS=100 $(GO) test -count=1 -timeout 15m -v -run '^Test(Handovers|Restarts)$$/^loops$$' ./cmd/rota
	ROTA_TEST_VICTIMS=500000 $(GO) test -count=1 -timeout 15m -v -run '^TestVictimsBesideAttackers$$' ./balancer/internal/proxy
	ROTA_TEST_BODY=1g $(GO) test -count=1 -timeout 15m -v -run '^TestLong(Bodies|Tunnel)$$' ./balancer/internal/proxy
	ROTA_TEST_FAULTS=100 $(GO) test -count=1 -timeout 15m -v -run '^TestFaults$$' ./registry/etcd
	ROTA_TEST_TESTSSL=1 $(GO) test -count=1 -timeout 15m -v -run '^TestTestssl$$' ./cmd/rota
	ROTA_TEST_HARM=full $(GO) test -count=1 -timeout 30m -v -run '^TestHarm$$' ./cmd/rota

chaos: ## Break etcd, daemons and instances under load for twenty-five minutes: nothing may fail
	ROTA_TEST_CHAOS=5m $(GO) test -count=1 -timeout 15m -v -run '^TestChaos$$' ./cmd/rota
	ROTA_TEST_RESTARTS=20 $(GO) test -count=1 -timeout 15m -v -run '^TestDeploy$$' ./cmd/rota
	ROTA_TEST_KILLS=100 $(GO) test -count=1 -timeout 15m -v -run '^TestKilledInstance$$' ./cmd/rota
	ROTA_TEST_OUTAGE=10m $(GO) test -count=1 -timeout 20m -v -run '^Test(Outage|StoreReplaced)$$' ./cmd/rota

# Go's fuzzing now and then takes the end of its time for a failure (context deadline exceeded): then, and only then, once more.
fuzz: ## Run every fuzz target for FUZZTIME (60s)
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	grep -rl '^func Fuzz' --include='*_test.go' . | xargs -n1 dirname | sort -u | while read -r dir; do \
		for target in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$$dir"/*_test.go); do \
			echo "== $$dir $$target"; \
			for try in 1 2; do \
				{ $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 0s "$$dir" && echo passed; } 2>&1 | tee "$$log"; \
				tail -n1 "$$log" | grep -q '^passed$$' && break; \
				[ $$try = 1 ] && grep -q 'context deadline exceeded' "$$log" || exit 1; \
			done; \
		done; \
	done

lint: bin/staticcheck ## Check format, vet for three systems, staticcheck, go.mod
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; }
	$(GO) vet ./...
	GOOS=darwin $(GO) vet ./...
	GOOS=windows $(GO) vet ./...
	bin/staticcheck ./...
	$(GO) mod tidy -diff

bin/staticcheck: tools/go.mod tools/go.sum
	cd tools && $(GO) build -o ../bin/staticcheck honnef.co/go/tools/cmd/staticcheck

# What the documentation restores backups with.
bin/etcdutl: tools/go.mod tools/go.sum
	cd tools && CGO_ENABLED=0 $(GO) build -o ../bin/etcdutl go.etcd.io/etcd/etcdutl/v3

deb: build ## Build a package for Debian and Ubuntu
	deploy/debian/build $(VERSION)

dashboard: ## Build the dashboard from its sources (needs Node.js)
	cd balancer/internal/admin/dashboard && npm ci --silent && npm run --silent check && npm run --silent build

dev: ## Run the balancer with etcd inside and three sample instances
	$(GO) run ./cmd/rota dev

licenses: ## List the licence file of every module that bin/rota links
	@$(GO) list -deps -f '{{with .Module}}{{if not .Main}}{{.Path}} {{.Version}} {{.Dir}}{{end}}{{end}}' ./cmd/rota | sort -u | \
		while read -r name version dir; do \
			file=$$(cd "$$dir" && ls -d LICENSE* LICENCE* COPYING* 2>/dev/null | head -n1); \
			echo "$$name $$version $${file:-MISSING}: $$(grep -m1 -o -E 'Apache License|MIT License|Mozilla Public License|Permission is hereby granted|Redistribution and use' "$$dir/$$file" 2>/dev/null)"; \
		done

clean: ## Remove what was built
	rm -rf bin rota-data
