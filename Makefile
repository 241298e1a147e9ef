# What is installed, built and tested. "make demo" and "make test" set up all they need
# on a fresh Debian 12 with Go, as root.

SHELL = /bin/bash
.SHELLFLAGS = -eu -o pipefail -c

GO      ?= go
CC      ?= cc
VERSION ?= $(shell packaging/version)
REVISION = $(shell git rev-parse HEAD 2>/dev/null)
LDFLAGS_GO = -s -w -X main.version=$(VERSION) -X main.revision=$(REVISION)

# A short run of every fuzz target; "make fuzz FUZZTIME=10m" searches for longer.
FUZZTIME ?= 3s

# valgrind watches the plugin in its test; redis-server is the store that hosts share; the status pages are tested in chromium; prometheus
# tries the figures, the rules and the dashboard.
DEBS = postfix libsasl2-dev libsasl2-modules gcc libc6-dev ca-certificates valgrind redis-server chromium prometheus nginx-light
# What looks at the packages in their tests.
DEBS += lintian rpm shellcheck systemd
# What builds them for both architectures, and the throw-away Debians in which they are tried.
PACKAGE_DEBS = gcc libc6-dev libsasl2-dev gcc-aarch64-linux-gnu libc6-dev-arm64-cross debootstrap systemd-container iproute2
# The baseline of the milter's benchmark.
BENCH_DEBS = libmilter-dev

.PHONY: all build demo test bench bench-pacing shapes storm soak fuzz lint deps package package-test mta-test clean

all: build

build: build/sendas build/exosim build/libsendas-xoauth2.so

GOFILES := $(shell find . -name '*.go' -not -path './build/*') go.mod go.sum packaging/sendas.yaml $(wildcard cmd/internal/status/page/*)

build/sendas: $(GOFILES)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS_GO)' -o $@ ./cmd/sendas

build/exosim: $(GOFILES)
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '-s -w' -o $@ ./contrib/exosim/cmd/exosim

# The flags stand in a file of their own, because the plugin's test builds with them too.
build/libsendas-xoauth2.so: token/sasl/xoauth2.c token/sasl/cc.flags
	mkdir -p build
	$(CC) @token/sasl/cc.flags $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) -o $@ token/sasl/xoauth2.c

# Debian starts no daemon here: the tests and the demo run a private Postfix of their own.
deps:
	@echo "== installing from Debian, where missing: $(DEBS)"
	@./packaging/deps $(DEBS)
	@$(GO) mod download
	@$(GO) mod download -modfile=packaging/nfpm.mod

# Packages for Debian and RPM, amd64 and arm64, in build/packages: the same bytes from the same commit.
package:
	@./packaging/deps $(PACKAGE_DEBS)
	OUT=build/packages VERSION='$(VERSION)' ./packaging/build

# The life of a package beside Postfix in throw-away Debians that are booted: install, send, kill, upgrade while mail flows, remove,
# purge; who gets a token; and an upgrade of Debian itself. Ten minutes, and a mirror of Debian.
package-test:
	@./packaging/deps $(PACKAGE_DEBS)
	$(GO) test -count=1 -v -tags packagetest -timeout 40m ./packaging/proof

# Other mail servers, Exim and Sendmail, unpacked from Debian's packages: root, a mirror.
mta-test: deps
	$(GO) test -count=1 -v -tags mta -timeout 20m -run '^(TestExim|TestSendmail)$$' ./contrib/lab

demo: deps build
	$(GO) run ./contrib/lab/cmd/demo

# Tests with a real Postfix mostly wait: more of them go at once than there are cores, and the longest begin first. lint has called vet.
test: deps lint build
	$(GO) test -race -p 3 -parallel 6 -vet=off -timeout 12m ./contrib/lab ./cmd/sendas ./...
	$(MAKE) fuzz

lint:
	@echo "== gofmt, vet, staticcheck"
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -d $$(git ls-files '*.go'); exit 1; }
	$(GO) vet ./...
	$(GO) vet -tags packagetest ./packaging/proof
	$(GO) vet -tags storm ./contrib/lab
	$(GO) tool staticcheck ./...

# Each target with one worker, two targets at a time: what a target takes is mostly building and starting. The engine fails now and
# then when its time is over in the middle of an input ("context deadline exceeded"). A find does not go away: it is among the seeds
# when the target runs once more.
fuzz:
	@echo "== fuzzing each target for $(FUZZTIME)"
	@for f in $$(grep -l '^func Fuzz' $$(git ls-files '*_test.go')); do \
	  for t in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' $$f); do echo "./$$(dirname $$f) $$t"; done; done | \
	xargs -P 2 -L 1 $(SHELL) -c 'run="$(GO) test -run ^$$1$$ -fuzz ^$$1$$ -fuzztime $(FUZZTIME) -fuzzminimizetime 1x -parallel 1 $$0"; \
	  out=$$($$run 2>&1) || out=$$($$run 2>&1) || { echo "$$0 $$1"; echo "$$out"; exit 1; }; echo "$$1: $$(tail -n 1 <<< "$$out")"'

bench: deps
	@./packaging/deps $(BENCH_DEBS)
	$(GO) test -run '^$$' -bench . -benchmem ./policy/... ./milter/... ./token/... ./cmd/...

# Seven minutes of real time: how much of Microsoft's 30 messages a minute sendas uses, and what Postfix can do alone.
bench-pacing: deps build
	$(GO) run ./contrib/lab/cmd/pacing

# "make test" has a dozen of them.
shapes: deps
	$(GO) test -race -count 1 -timeout 20m -parallel 6 -run '^TestShapes' -v ./contrib/lab -shapes

# 10,000 messages through three relays, and every trouble that we know, for a quarter of an hour and more, as root: it makes network
# namespaces and small disks of its own. "make storm MESSAGES=1000" for less. "make test" has small storms.
MESSAGES ?= 10000
storm: deps
	@./packaging/deps iproute2
	$(GO) test -race -count 1 -timeout 60m -tags storm -run '^TestStorm' -v ./contrib/lab -messages $(MESSAGES)

# A day of a thousand mailboxes in a minute or two; "make test" has one with fewer messages.
soak:
	$(GO) test -count 1 -timeout 10m -run '^TestDayOfAThousandMailboxes$$' -v ./token/lease -soak

clean:
	rm -rf build
