# What one does with Tutti's sources. `make` explains the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help needs build demo test build-kube test-kube test-kube-storage test-acme test-registry e2e-kube e2e-kube-conformance e2e-kube-shop e2e-kube-operators e2e e2e-docker e2e-swarm e2e-docker-clients e2e-rollouts e2e-kills-node e2e-hosts e2e-compose e2e-marathon sim sim-planted sim-exact bench lint clean

# Containers are confined by seccomp profiles (seccomp); the program looks up names and users in
# Go, so that it can be linked statically (netgo, osusergo). One set of tags for building and
# testing lets both share what is compiled.
TAGS ?= seccomp,netgo,osusergo
export GOFLAGS := -tags=$(TAGS) -buildvcs=false $(filter-out -tags=% -buildvcs=%,$(shell go env GOFLAGS 2>/dev/null))

VERSION ?= $(shell scripts/version.sh)
BIN ?= bin/tutti
KUBE_BIN ?= bin/tutti-kube
# A program that needs nothing of the host; STATIC= links with the shared C library and libseccomp.
STATIC ?= yes
LDFLAGS := -s -w -X main.version=$(VERSION) $(if $(STATIC),-linkmode=external -extldflags=-static)

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
SEEDS ?= 200
SEED ?= 0
BRIEF ?=
# Where the numbers of tests are collected; empty prints them only.
TALLY ?=
summary = go run ./test/summary $(if $(TALLY),-tally $(TALLY))

help: ## this list
	@echo 'Targets:'
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile | expand -t 24
	@echo '  make bench-GROUP      one group of benchmarks: schedule, store, tables, million, sessions, net, start, replicas, standing, docker, marathon, kube'
	@echo
	@echo 'demo and e2e need root; so do the tests that run real containers, which are left out without it.'

needs:
	@scripts/needs.sh

# The small program that runs beside every task is built first, and carried within.
HELPER := internal/driver/helper/tutti-task

build: needs ## make bin/tutti, the whole program, linked statically
	go build -ldflags '$(LDFLAGS)' -o $(HELPER) ./cmd/tutti-task
	go build -tags $(TAGS),helper -ldflags '$(LDFLAGS)' -o $(BIN) ./cmd/tutti

build-kube: needs ## make bin/tutti-kube, which answers Kubernetes' API beside a server
	cd kube && version=$$(go list -m -f '{{.Version}}' k8s.io/kubernetes) && minor=$${version#v*.} && \
		go build -ldflags "$(LDFLAGS) -X k8s.io/component-base/version.gitVersion=$$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$${minor%%.*}" -o ../$(KUBE_BIN) .

demo: ## three virtual hosts and an online shop on them, at http://127.0.0.1:8080
	@scripts/demo.sh

test: needs ## unit tests of Tutti and of the example
	@scripts/needs.sh runc crun systemd-run:systemd
	@$(summary) -dir . -dir examples/shop -- ./...

test-kube: needs ## look at kube/ and test it: an API server with its controllers on a cluster's key space
	cd kube && go vet ./...
	@$(summary) -dir kube -- ./...

test-acme: needs ## certificates by ACME, issued by Pebble over the ingress
	@$(summary) -dir test/acme -- -count=1 ./...

test-registry: needs ## the OCI distribution specification's conformance suite, on the cluster's registry
	GOFLAGS= GOBIN=$(CURDIR)/bin go install github.com/opencontainers/distribution-spec/conformance@v0.0.0-20260831232431-97274622c111
	TUTTI_OCI_CONFORMANCE=$(CURDIR)/bin/conformance go test -tags=$(TAGS),conformance -count=1 -run Conformance -v ./internal/api/registry

test-kube-storage: needs ## Kubernetes' own tests of storages, on Tutti's key space
	scripts/test-kube-storage.sh

e2e: build ## end-to-end tests: real containers on virtual hosts that lose power and network
	@$(summary) -- -tags $(TAGS),e2e -count=1 -timeout 30m -v ./test/e2e/...

e2e-rollouts: build ## updates of every kind, lost hosts, scaling, gangs and the like on five virtual hosts under load, as a table
	@E2E_HOSTS=5 $(summary) -- -tags $(TAGS),e2e,rollouts -count=1 -timeout 15m -v -run TestRollouts ./test/e2e

e2e-kills-node: build ## nodes' processes and supervisors killed at random for E2E_KILLS=10m while containers talk and exit; a newer program under running ones
	@E2E_KILLS=$${E2E_KILLS:-10m} $(summary) -- -tags $(TAGS),e2e -count=1 -timeout 40m -v -run 'TestKillsOf|TestANewer' ./test/e2e

e2e-net: build ## networks on five virtual hosts: who reaches whom, a hundred networks, policies, and faults under load, as a table
	@E2E_HOSTS=5 $(summary) -- -tags $(TAGS),e2e,netfaults -count=1 -timeout 15m -v -run 'TestEveryInstance|TestNamesOfEveryScheme|TestAHundredNetworks|TestPolicies|TestNetworkFaults' ./test/e2e

e2e-hosts: build ## virtual hosts come when work finds no place, and go when they are empty
	@scripts/e2e-hosts.sh

e2e-compose: build ## Docker Compose and docker stack deploy bring up the shop on three virtual hosts
	@scripts/e2e-compose.sh

e2e-docker: build ## a session of the docker command line against Tutti and a Docker Engine, compared
	@scripts/e2e-docker.sh

e2e-swarm: build ## the docker command line makes a swarm of three waiting hosts, and takes it apart
	@scripts/e2e-swarm.sh

e2e-docker-clients: build ## clients of the Docker API that others wrote, through every call that they have
	@scripts/e2e-docker-clients.sh

e2e-marathon: build ## public clients of Marathon, a host that dies, and the shop as a Marathon group, on three virtual hosts
	@scripts/e2e-marathon.sh

e2e-kube: build build-kube ## a session of kubectl on three virtual hosts; HOSTS=0: on this host
	@scripts/e2e-kube.sh

e2e-kube-shop: build build-kube ## the shop as manifests of Kubernetes on three virtual hosts, which lose power and network
	@scripts/e2e-kube-shop.sh

e2e-kube-operators: build build-kube ## Helm and an operator, built from their Go modules; HOSTS=0: on this host
	@scripts/e2e-kube-operators.sh

e2e-kube-conformance: build build-kube ## Kubernetes' own conformance suite on three virtual hosts; HOSTS=0: on this host; PARTS='sig-apps …': some of it
	cd test/kubeconformance && version=$$(go list -m -f '{{.Version}}' k8s.io/kubernetes) && minor=$${version#v*.} && \
		go test -c -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=$$version -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=$${minor%%.*}" -o ../../.cache/conformance/e2e.test k8s.io/kubernetes/test/e2e && \
		go build -o ../../.cache/conformance/ginkgo github.com/onsi/ginkgo/v2/ginkgo
	@scripts/e2e-kube-conformance.sh $(PARTS)

sim: needs ## simulate whole clusters, SEEDS=200 different courses
	@$(summary) -- ./test/sim -run TestSim -count=1 -timeout 60m -v -args -seeds=$(SEEDS)

sim-planted: needs ## build the simulation with each planted bug; it must find each
	@scripts/sim-planted.sh $(TAGS)

sim-exact: needs ## simulate the course of SEED=0 twice, exactly alike, and tell all of it
	@scripts/sim-exact.sh $(TAGS) $(SEED)

bench: bench-all ## all benchmarks, each against a peer in the same run; BRIEF=yes for a quick look

bench-all bench-kube: build-kube
bench-%: build
	@bench/needs.sh $*
	cd bench && go run -tags $(TAGS),helper . $* $(if $(BRIEF),-brief)

lint: needs ## formatting, go vet, staticcheck and, where it is installed, shellcheck
	@scripts/lint.sh $(TAGS) $(STATICCHECK)

clean: ## remove what was built; images and compiled packages stay cached
	rm -rf bin $(HELPER)
