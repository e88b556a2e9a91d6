# Conclave's desk. `make help` lists the targets.

SHELL      := /bin/bash
GOARCH     ?= $(shell go env GOARCH)
VERSION    ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS    := -s -w -X conclave/cli.version=$(VERSION)
# What is inlined in these is 1.9 MB of the binary, and on no hot path.
FLAT       := github.com/google/gnostic-models github.com/google/go-containerregistry github.com/aws github.com/fxamacker github.com/json-iterator \
	go.yaml.in google.golang.org/protobuf google.golang.org/genproto cel.dev/expr github.com/antlr4-go github.com/google/cel-go conclave/lab conclave/cli
# In these, every type has a small map of what its fields mean. The linker leaves out
# what nobody reads only of maps that are made by functions of their own, as large
# ones are anyway: 0.4 MB of the binary, and those maps of the heap.
DESCRIBED  := k8s.io/api k8s.io/apiextensions-apiserver k8s.io/apiserver k8s.io/client-go k8s.io/kube-openapi github.com/kubernetes-csi/external-snapshotter
GCFLAGS    := $(foreach m,$(FLAT),-gcflags='$(m)/...=-l') $(foreach m,$(DESCRIBED),-gcflags='$(m)/...=-l -d=wrapglobalmapctl=2') \
	-gcflags='k8s.io/apimachinery/...=-d=wrapglobalmapctl=2'
POD_TAGS   := seccomp netgo osusergo
POD        := runtime/embedded/$(GOARCH)/conclave-pod.gz
BIN        := bin/conclave
CC_arm64   := aarch64-linux-gnu-gcc
CC_amd64   := $(if $(filter amd64,$(shell go env GOHOSTARCH)),cc,x86_64-linux-gnu-gcc)
TRIPLET_arm64 := aarch64-linux-gnu
TRIPLET_amd64 := x86_64-linux-gnu
# Where the libraries of another architecture are unpacked: none is installed.
SYSROOT    := $(CURDIR)/bin/sysroot-$(GOARCH)
LIBSECCOMP := $(if $(filter $(GOARCH),$(shell go env GOHOSTARCH)),,$(SYSROOT)/usr/include/seccomp.h)
POD_ENV    := $(if $(LIBSECCOMP),PKG_CONFIG_LIBDIR=$(SYSROOT)/usr/lib/$(TRIPLET_$(GOARCH))/pkgconfig PKG_CONFIG_SYSROOT_DIR=$(SYSROOT))
SUDO       := $(if $(filter 0,$(shell id -u)),,sudo)
# Debian packages: what the build needs, and what the tests and the demo need besides.
APT_BUILD  := gcc libc6-dev libseccomp-dev pkg-config
APT_TEST   := busybox-static docker-registry nftables iproute2 e2fsprogs util-linux bsdutils apparmor
# The tests that need the machine for themselves run apart from the units.
HOSTS_PKG  := ./test/hosts/...
SEEDS      ?= 1000
FROM       ?= 1
RESULTS    := $(CURDIR)/bin/conformance
UNITS       = $(shell go list ./... | grep -v -e /test/hosts)

.DELETE_ON_ERROR:
.PHONY: help deps deps-test build pod kubectl s3 csi-sanity test units race sim hosts chaos bench lint demo release clean conformance

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

deps: ## install what the build needs, or name it
	@command -v go >/dev/null || { echo "Go 1.26 or newer is missing: install it from https://go.dev/dl"; exit 1; }
	@command -v cc >/dev/null && pkg-config --exists libseccomp 2>/dev/null || $(MAKE) --no-print-directory apt PACKAGES="$(APT_BUILD)"

deps-test: deps ## install what the tests and the demo need
	@missing=; for p in $(APT_TEST); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$p"; done; \
	  [ -z "$$missing" ] || $(MAKE) --no-print-directory apt PACKAGES="$$missing"

.PHONY: apt
apt:
	@command -v apt-get >/dev/null || { echo "install these by hand, this machine has no apt-get: $(PACKAGES)"; exit 1; }
	@echo "installing $(PACKAGES)"
	@$(SUDO) apt-get update -qq && DEBIAN_FRONTEND=noninteractive $(SUDO) apt-get install -y -qq --no-install-recommends $(PACKAGES) >/dev/null

build: deps $(BIN) ## build bin/conclave for this machine

# The small program that stays with each pod: static, the only cgo.
POD_SOURCES := $(shell find runtime/pod runtime/internal -name '*.go' 2>/dev/null) go.mod
pod: $(POD)
$(POD): $(POD_SOURCES) | $(LIBSECCOMP)
	@mkdir -p bin
	$(POD_ENV) CGO_ENABLED=1 GOARCH=$(GOARCH) CC=$(CC_$(GOARCH)) go build -tags "$(POD_TAGS)" -trimpath -ldflags "-s -w -extldflags -static" -o bin/conclave-pod-$(GOARCH) ./runtime/pod
	gzip -9nc bin/conclave-pod-$(GOARCH) > $@

# libseccomp is linked statically, so that of the other architecture is needed
# for a release: Debian's, asked of the same mirrors as this machine's packages.
$(SYSROOT)/usr/include/seccomp.h:
	@command -v apt-get >/dev/null || { echo "unpack libseccomp's files for $(GOARCH) into $(SYSROOT) by hand, this machine has no apt-get"; exit 1; }
	@echo "fetching libseccomp-dev for $(GOARCH)"
	@mkdir -p $(SYSROOT)/apt/lists/partial && cd $(SYSROOT)/apt && \
	  for step in update "download libseccomp-dev"; do \
	    apt-get -qq -o APT::Architecture=$(GOARCH) -o APT::Architectures::=$(GOARCH) -o Dir::State::Lists=$(SYSROOT)/apt/lists -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache= -o APT::Sandbox::User=root $$step || exit 1; \
	  done && dpkg-deb -x libseccomp-dev_*_$(GOARCH).deb $(SYSROOT) && rm -rf $(SYSROOT)/apt && touch $@

.PHONY: $(BIN)
$(BIN): $(POD)
	CGO_ENABLED=0 go build -trimpath $(GCFLAGS) -ldflags "$(LDFLAGS)" -o $@ .

# Kubernetes' own programs are built with the flags and the versions of modules with
# which vet and the tests are, so that most of their packages are in Go's cache.
kubectl: bin/kubectl ## build kubectl of the version that Conclave serves
bin/kubectl: tools/kubectl/main.go tools/kubectl/go.mod
	cd tools/kubectl && go build -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v1.37.2 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=37" -o ../../bin/kubectl .

s3: bin/s3 ## build a real S3 server for the tests of snapshots
bin/s3: tools/s3/go.mod
	cd tools/s3 && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o ../../bin/s3 github.com/versity/versitygw/cmd/versitygw

bin/csi-sanity: tools/csi-sanity/go.mod
	cd tools/csi-sanity && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o ../../bin/csi-sanity github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity

# Kubernetes' example of an API server behind another. ld's warnings are of looking
# up names and users, which it has no need of.
bin/sample-apiserver: tools/sample-apiserver/go.mod
	cd tools/sample-apiserver && go build -ldflags "-s -w -linkmode external -extldflags -static" -o ../../bin/sample-apiserver k8s.io/sample-apiserver

csi-sanity: bin/csi-sanity ## the community's checks of CSI drivers, against the one in examples/ (root)
	cd examples/csi-hostpath && CGO_ENABLED=0 go build -trimpath -ldflags "-s -w" -o ../../bin/csi-hostpath .
	@dir=$$(mktemp -d) && mkdir $$dir/state && { bin/csi-hostpath -endpoint $$dir/csi.sock -node here -state $$dir/state & driver=$$!; } && \
	  until [ -S $$dir/csi.sock ]; do sleep 0.1; done && \
	  result=0; for type in mount block; do \
	    bin/csi-sanity --csi.endpoint $$dir/csi.sock --csi.mountdir $$dir/target --csi.stagingdir $$dir/staging --csi.testvolumeaccesstype $$type || result=1; \
	  done; \
	  kill $$driver; rm -rf --one-file-system $$dir; exit $$result

test: deps-test build kubectl s3 units hosts ## all tests: units, nodes in one process, hosts

# Most of the time of these tests is waiting: four packages at once, on any machine.
units: deps pod ## tests that need no built binary
	go vet $(UNITS)
	go test -p 4 -timeout 10m $(UNITS)

race: deps pod ## the units under the race detector
	go test -race -short -p 4 -timeout 15m $(UNITS)

sim: deps pod ## many histories of whole clusters in virtual time: make sim SEEDS=10000 FROM=1
	go test -count=1 -timeout 0 ./test/sim -run TestSeeds -v -seeds $(SEEDS) -from $(FROM) | grep -v -e '^=== ' -e '^ *--- PASS' -e ' begins$$'; exit $${PIPESTATUS[0]}

hosts: deps-test build kubectl bin/sample-apiserver ## tests on hosts made of namespaces, with the built binary (root)
	@mkdir -p $(RESULTS)
	CONCLAVE_CONFORMANCE_DIR=$(RESULTS) go test -count=1 -timeout 20m $(HOSTS_PKG)

chaos: deps-test build ## two minutes of faults against seven hosts, checked for lies; bin/chaos.html tells
	$(BIN) lab chaos --lab chaos --nodes 7 --duration 2m --report bin/chaos.html $(if $(SEED),--seed $(SEED))

bench: deps-test build kubectl ## measure the rows of the targets, each beside its target
	@command -v runc >/dev/null || $(MAKE) --no-print-directory apt PACKAGES=runc
	go run ./test/bench

lint: deps ## gofmt, vet, and the rules of the house
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet ./...
	go test ./cli -run 'TestDependencies|TestPackageComments'

demo: deps-test build ## three hosts, one application, a dead leader, a dead host, one table of times
	go run ./test/demo

conformance: ## write docs/conformance.md from the results of the last `make hosts`
	CONCLAVE_CONFORMANCE_DIR=$(RESULTS) go run ./test/ledger

release: deps ## static binaries for linux/amd64 and linux/arm64 in bin/release
	@command -v $(CC_arm64) >/dev/null || $(MAKE) --no-print-directory apt PACKAGES="gcc-aarch64-linux-gnu libc6-dev-arm64-cross"
	@mkdir -p bin/release
	@for arch in amd64 arm64; do \
	  $(MAKE) --no-print-directory pod GOARCH=$$arch && \
	  CGO_ENABLED=0 GOARCH=$$arch go build -trimpath $(GCFLAGS) -ldflags "$(LDFLAGS)" -o bin/release/conclave-linux-$$arch . || exit 1; \
	done; ls -l bin/release

clean: ## remove what was built
	rm -rf bin runtime/embedded/*/conclave-pod.gz
