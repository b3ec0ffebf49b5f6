# RunEnv: `make help` lists what there is.
#
# A fresh machine needs Go, make and a POSIX shell. What the tests need beyond
# that they build or install once: see scripts/need.sh and scripts/build-tool.sh.

.DEFAULT_GOAL := help
SHELL         := /bin/sh
MAKEFLAGS     += --no-print-directory

FUZZTIME  ?= 10s
BENCHTIME ?= 1s
BENCH     ?= .

# The race detector needs a C compiler; without one it is off, and `make test` says so.
RACE := $(shell command -v gcc >/dev/null 2>&1 || command -v clang >/dev/null 2>&1 && echo -race)

# A built tool is kept per checksum of its go.sum, so a new version is a new folder.
sum       = $(shell cksum <$(1) | tr -s ' ' '-' | cut -d- -f1-2)
TOOLS    := $(CURDIR)/.cache/tools
VAULT    := $(TOOLS)/vault-$(call sum,e2e/tools/vault/go.sum)/vault
MINIO    := $(TOOLS)/minio-$(call sum,e2e/tools/minio/go.sum)/minio
ACT      := $(TOOLS)/act-$(call sum,e2e/tools/act/go.sum)/act
NPM      := $(TOOLS)/npm-$(call sum,e2e/tools/npm/package-lock.json)
LINTERS  := $(TOOLS)/lint-$(call sum,tools/go.sum)

.PHONY: help build demo test check unit e2e windows lint fuzz bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

build: ## build bin/runenv and bin/runenv-broker (static, reproducible)
	CGO_ENABLED=0 go build -trimpath -ldflags='-s -w -buildid=' -o bin/ ./cmd/...

demo: build ## watch one command get a secret, use it and lose it; needs nothing else
	@PATH="$(CURDIR)/bin:$$PATH" sh scripts/demo.sh

test: check unit e2e ## everything: unit, script and end-to-end tests with a real Vault, MinIO, PostgreSQL, act and gitlab-ci-local

check:
	@test -n "$(RACE)" || echo 'make: no C compiler, so the race detector is off (Debian: apt-get install gcc)'
	@unformatted=$$(gofmt -l .); test -z "$$unformatted" || { echo "make: gofmt these files: $$unformatted"; exit 1; }
	go vet ./...
	cd e2e && go vet ./...

unit: ## only the unit and script tests; needs no network
	go test $(RACE) -timeout=5m ./...
	go test $(RACE) -tags=crashpoints -run=Crash ./broker/lease

e2e: build $(VAULT) $(MINIO) $(ACT) $(NPM)/node_modules ## only the end-to-end tests
	@pg=$$(sh scripts/need.sh postgres postgresql '/usr/lib/postgresql/*/bin') && \
	buildah=$$(sh scripts/need.sh buildah buildah) && \
	for tool in 'curl curl' 'docker docker.io' 'git git' 'keytool default-jre-headless' 'kubectl kubernetes-client' 'node nodejs' \
		'openssl openssl' 'python3 python3' 'rsync rsync' 'ssh-keygen openssh-client' 'strace strace'; do \
		sh scripts/need.sh $$tool >/dev/null || exit 1; \
	done && \
	cd e2e && RUNENV_E2E_VAULT='$(VAULT)' RUNENV_E2E_MINIO='$(MINIO)' RUNENV_E2E_POSTGRES="$${pg%/*}" RUNENV_E2E_BUILDAH="$$buildah" RUNENV_E2E_BIN='$(CURDIR)/bin' \
	RUNENV_E2E_ACT='$(ACT)' RUNENV_E2E_NPM='$(NPM)/node_modules' \
		go test $(RACE) -count=1 -parallel=8 -timeout=20m -v ./...

windows: ## only the unit tests of what differs on Windows, under Wine
	@sh scripts/test-windows.sh '$(TOOLS)/wine'

lint: $(LINTERS)/golangci-lint $(LINTERS)/actionlint ## gofmt, go vet, golangci-lint and actionlint
	@$(MAKE) check
	$(LINTERS)/golangci-lint run ./...
	cd e2e && $(LINTERS)/golangci-lint run ./...
	$(LINTERS)/actionlint
	@sh scripts/lint-examples.sh $(LINTERS)/actionlint

fuzz: ## run every fuzz test for FUZZTIME (default 10s) each
	@sh scripts/fuzz.sh '$(FUZZTIME)'

bench: build $(VAULT) ## print the benchmarks and a table of them (BENCH=regexp, BENCHTIME=1s)
	@sh scripts/need.sh rg ripgrep >/dev/null && pg=$$(sh scripts/need.sh postgres postgresql '/usr/lib/postgresql/*/bin') && \
	RUNENV_E2E_VAULT='$(VAULT)' RUNENV_E2E_POSTGRES="$${pg%/*}" RUNENV_E2E_BIN='$(CURDIR)/bin' \
		sh scripts/bench.sh '$(BENCH)' '$(BENCHTIME)'

clean: ## remove what make built, the cached tools too
	rm -rf bin dist .cache

$(VAULT):
	@sh scripts/build-tool.sh e2e/tools/vault github.com/hashicorp/vault '$@' 'Vault 1.13.1 (about 3 minutes, once)'

$(MINIO):
	@sh scripts/build-tool.sh e2e/tools/minio github.com/minio/minio '$@' 'MinIO, whose STS verifies web identities (about 3 minutes, once)'

$(ACT):
	@sh scripts/build-tool.sh e2e/tools/act github.com/nektos/act '$@' 'act 0.2.89 (about a minute, once)'

$(NPM)/node_modules:
	@sh scripts/npm-tools.sh e2e/tools/npm '$(NPM)'

$(LINTERS)/golangci-lint:
	@sh scripts/build-tool.sh tools github.com/golangci/golangci-lint/v2/cmd/golangci-lint '$@' 'golangci-lint (about a minute, once)'

$(LINTERS)/actionlint:
	@sh scripts/build-tool.sh tools github.com/rhysd/actionlint/cmd/actionlint '$@' 'actionlint (seconds, once)'
