# tailway. `make demo` shows it, `make test` proves it; both need Rust, Go and a C compiler only.

CARGO ?= cargo
GO ?= go
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
TOOLS := $(CURDIR)/.tools
LIBTAILSCALE := vendor/libtailscale
GO_BUILD := -trimpath -buildvcs=false -tags netgo,osusergo
export TAILWAY_LOCALTAILNET := $(TARGET)/localtailnet

IMAGE ?= tailway/tailway:dev
PROFILE ?= release
# Docker without its daemon or without BuildKit is none.
BUILDER ?= $(shell docker buildx inspect >/dev/null 2>&1 && echo docker || command -v podman || command -v buildah)
LAB := tests/cluster/lab
ENVOY_LAB := tests/envoy/lab
HOOKS := benches/hooks

.PHONY: build cluster demo envoy helm image image-archive image-built lab-build test test-go test-rust lint gen bench bench-hooks bench-index bench-traffic localtailnet release

build: ## tailway for development
	$(CARGO) build

release: ## tailway for production: $(TARGET)/release/tailway
	$(CARGO) build --release

image: ## IMAGE by docker, podman or buildah, and where there is none, as an archive
	$(MAKE) $(if $(BUILDER),image-built,image-archive)

image-built:
	$(BUILDER) build --file manifests/image/Dockerfile --tag $(IMAGE) .

image-archive: ## IMAGE as $(TARGET)/image/tailway.tar, of this machine's binary and libraries; PROFILE=debug is quicker
	$(CARGO) build $(if $(filter release,$(PROFILE)),--release)
	manifests/image/tailway.sh $(TARGET)/$(PROFILE)/tailway $(TARGET)/image/tailway.tar $(IMAGE)

demo: build localtailnet ## a Gateway on a local tailnet, from YAML to https
	TAILWAY=$(TARGET)/debug/tailway manifests/samples/demo.sh

localtailnet: ## control server, DERP, STUN and ACME on loopback, in one program
	cd $(LIBTAILSCALE) && $(GO) build $(GO_BUILD) -o $(TARGET)/localtailnet ./cmd/localtailnet

test: test-rust test-go ## everything that needs nothing but this machine

test-rust: localtailnet
	$(CARGO) test --workspace

test-go:
	cd $(LIBTAILSCALE) && $(GO) test $(GO_BUILD) ./...

cluster: localtailnet lab-build ## on a real Kubernetes, in namespaces of its own; as root; TESTS names some
	$(LAB)/require.sh run
	$(CARGO) test --test tests -- --ignored --test-threads=1 $(or $(TESTS),cluster::)

lab-build: ## etcd, Kubernetes, cluster DNS and Envoy Gateway for `make cluster`; twenty minutes once
	$(LAB)/build.sh
	$(ENVOY_LAB)/build.sh

envoy: ## with real Envoy Gateway and real Envoy, in namespaces of its own; as root; TESTS names some; a quarter of an hour once
	$(ENVOY_LAB)/require.sh run
	lab=$$($(ENVOY_LAB)/build.sh) && TAILWAY_ENVOY=$$lab/envoy \
		$(CARGO) test --test tests -- --ignored --test-threads=1 --skip cluster:: $(or $(TESTS),envoy:: extension::golden)

lint: $(TOOLS)/bin/cargo-deny
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(TOOLS)/bin/cargo-deny --log-level error check bans licenses sources
	test -z "$$(gofmt -l $(LIBTAILSCALE) $(LAB) $(HOOKS))"
	cd $(LIBTAILSCALE) && $(GO) vet -tags netgo,osusergo ./...
	cd $(HOOKS) && $(GO) vet ./...

# Without optimisation, which takes longer than it saves.
$(TOOLS)/bin/cargo-deny:
	$(CARGO) install --locked --debug --root $(TOOLS) cargo-deny

helm: $(TOOLS)/bin/helm ## with it, tests try the chart, too

$(TOOLS)/bin/helm:
	GOBIN=$(TOOLS)/bin GOFLAGS=-mod=mod $(GO) install -trimpath helm.sh/helm/v4/cmd/helm@v4.3.1

gen: helm ## bindings of tailscale.h, types of the Gateway API, CRDs, install.yaml; the result is checked in
	$(LIBTAILSCALE)/sys/gen.sh
	src/api/gen.sh
	UPDATE_GOLDEN=1 $(CARGO) test --test tests manifests::the_crds
	manifests/gen.sh

bench: bench-index bench-hooks bench-traffic ## what tailway costs: its index at scale, its answers to Envoy Gateway, and its traffic

bench-index: ## a thousand Gateways: what one change costs, beside working out all anew
	$(CARGO) bench --bench index

bench-hooks: release ## calls of Envoy Gateway at 1,000 routes, beside a minimal extension server in Go
	cd $(HOOKS) && $(GO) build -trimpath -buildvcs=false -o $(TARGET)/hooks .
	$(TARGET)/hooks -tailway $(TARGET)/release/tailway $(BENCH_HOOKS)

bench-traffic: release localtailnet ## tailway against Go peers on the same machine, as ratios
	cd $(LIBTAILSCALE) && $(GO) build $(GO_BUILD) -o $(TARGET)/bench ./cmd/bench
	$(TARGET)/bench -tailway $(TARGET)/release/tailway -localtailnet $(TARGET)/localtailnet $(BENCH)
