# Berth. `make run` and `make test` work from nothing on a bare Debian 12 or 13 as root; see README.md.
#
#   make             the engine's programs and berth itself, into libexec/ and bin/
#   make run         build, start an XFCE session, print how to reach it
#   make test        all tests (root); TESTFLAGS and PKGS narrow it down
#   make bench       the numbers of docs/, both sides measured here
#   make lint        gofmt, go vet, staticcheck
#   make install     into $(DESTDIR)$(PREFIX), with systemd units
#   make deps        the Debian packages all of this needs, only if something is missing
#   make clean       what make has made (Go's caches stay)
#
# Go is found by tools/go, which says how; `make GO=/path/to/go` overrides it.

SHELL   := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := build

GO      ?= $(CURDIR)/tools/go
PREFIX  ?= /usr/local
DESTDIR ?=
PKGS    ?= ./...
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)

# Nothing of the caller's environment changes what is built, except where modules come from.
export GOFLAGS := -buildvcs=false
export GOWORK  := off

## The engine -------------------------------------------------------------------------------------------------------
# Upstream's programs, unmodified, at the versions tools/engine/go.mod pins. They are rebuilt when one is missing or when
# the pins or the way they are built (tools/engine/*) have changed in content, not in time: the stamp's name is a digest.

ENGINE := containerd containerd-shim-runc-v2 runc buildkitd ptp host-local
ENGINE_PINS  := $(shell cat tools/engine/go.mod tools/engine/go.sum tools/engine/build | sha256sum | cut -c1-16)
ENGINE_STAMP := libexec/.engine-$(ENGINE_PINS)
ifneq ($(words $(wildcard $(ENGINE:%=libexec/%))),$(words $(ENGINE)))
.PHONY: $(ENGINE_STAMP)
endif

.PHONY: engine
engine: $(ENGINE_STAMP)

$(ENGINE_STAMP): | build-deps
	GO="$(GO)" tools/engine/build libexec
	rm -f libexec/.engine-*
	touch $@

## The web page -----------------------------------------------------------------------------------------------------
# noVNC comes from npm at the version package-lock.json pins; the result is embedded in berth. Built anew when what it
# is made of has changed in content.

ifneq ($(wildcard assets/web/package.json),)
WEB_SOURCES := assets/web/package.json assets/web/package-lock.json assets/web/build.mjs $(sort $(wildcard assets/web/src/*))
WEB_STAMP   := build/web-$(shell cat $(WEB_SOURCES) | sha256sum | cut -c1-16)
ifeq ($(wildcard assets/web/dist/index.html),)
.PHONY: $(WEB_STAMP)
endif
endif

.PHONY: web
web: $(WEB_STAMP)

$(WEB_STAMP): | build-deps
	cd assets/web && npm ci --no-audit --no-fund --loglevel=error && npm run --silent build
	mkdir -p $(@D)
	rm -f build/web-*
	touch $@

## Berth ------------------------------------------------------------------------------------------------------------
# Go's own cache decides what is to be done here, so both are phony. TOOLS are mounted into every container, whatever its
# image, and therefore static.

TOOLS := berth-launch berth-systembus

.PHONY: build berth
build: engine berth

berth: web | build-deps
	$(GO) build -trimpath -ldflags "-s -w -X berth/internal/cli.Version=$(VERSION)" -o bin/berth ./cmd/berth
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o libexec/berth-anchor ./cmd/berth-anchor
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w" -o libexec/tools/ $(TOOLS:%=./cmd/%)

.PHONY: deps build-deps
deps:
	tools/deps build run test
	$(GO) version

build-deps:
	@tools/deps build

## Use --------------------------------------------------------------------------------------------------------------

.PHONY: run test bench lint
run: build
	tools/deps run
	bin/berth up xfce $(UPFLAGS)

# The tests with real sessions share one root; it stays, as a cache for the next run, until make clean. gotestsum
# (tools/test/go.mod) counts at the end what passed, failed and was skipped, with the reason.
TEST_ROOT ?= /var/tmp/berth-test-2

test: build
	tools/deps run test
	$(GO) build -C tools/test -o ../../build/gotestsum gotest.tools/gotestsum
	BERTH_TEST_ROOT=$(TEST_ROOT) BERTH_LIBEXEC=$(CURDIR)/libexec \
		PATH="$$(dirname "$$(tools/go --path)"):$$PATH" tools/runtests $(PKGS) -- $(TESTFLAGS)

bench: build
	tools/deps run
	BERTH_TEST_ROOT=$(TEST_ROOT) BERTH_LIBEXEC=$(CURDIR)/libexec $(GO) run ./bench $(BENCHFLAGS)

# staticcheck is pinned by tools/lint/go.mod.
lint: | build-deps
	files=$$(git ls-files '*.go' | xargs -r "$$(dirname "$$(tools/go --path)")/gofmt" -l); \
		[ -z "$$files" ] || { echo "gofmt: $$files" >&2; exit 1; }
	$(GO) vet $(PKGS)
	$(GO) build -C tools/lint -o ../../build/staticcheck honnef.co/go/tools/cmd/staticcheck
	PATH="$$(dirname "$$(tools/go --path)"):$$PATH" build/staticcheck $(PKGS)

# Without DESTDIR it is this host that Berth is installed on: it gets the group, and systemd is told.
.PHONY: install uninstall clean
install: build
	install -d $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(PREFIX)/libexec/berth \
		$(DESTDIR)$(PREFIX)/lib/systemd/system $(DESTDIR)$(PREFIX)/lib/sysusers.d $(DESTDIR)$(PREFIX)/share/doc/berth
	install -m 0755 bin/berth $(DESTDIR)$(PREFIX)/bin/berth
	for p in $(ENGINE) berth-anchor; do \
		install -m 0755 libexec/$$p $(DESTDIR)$(PREFIX)/libexec/berth/$$p; done
	install -d $(DESTDIR)$(PREFIX)/libexec/berth/tools
	for p in $(TOOLS); do \
		install -m 0755 libexec/tools/$$p $(DESTDIR)$(PREFIX)/libexec/berth/tools/$$p; done
	sed 's,@PREFIX@,$(PREFIX),g' assets/systemd/berth.service >$(DESTDIR)$(PREFIX)/lib/systemd/system/berth.service
	chmod 0644 $(DESTDIR)$(PREFIX)/lib/systemd/system/berth.service
	install -m 0644 assets/systemd/berth.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/berth.conf
	install -m 0644 assets/config.toml README.md $(DESTDIR)$(PREFIX)/share/doc/berth/
	if [ -n "$(DESTDIR)" ] || [ "$$(id -u)" != 0 ]; then exit; fi; \
	if [ -d /run/systemd/system ]; then \
		systemd-sysusers $(PREFIX)/lib/sysusers.d/berth.conf; \
		systemctl daemon-reload; \
	else \
		groupadd -rf berth; \
	fi

uninstall:
	if [ -n "$(DESTDIR)" ] || [ "$$(id -u)" != 0 ]; then exit; fi; \
	if [ -d /run/systemd/system ] && systemctl cat berth >/dev/null 2>&1; then systemctl disable --now berth; fi; \
	if $(PREFIX)/bin/berth ls >/dev/null 2>&1; then $(PREFIX)/bin/berth daemon stop; fi
	rm -f $(DESTDIR)$(PREFIX)/bin/berth $(DESTDIR)$(PREFIX)/lib/systemd/system/berth.service \
		$(DESTDIR)$(PREFIX)/lib/sysusers.d/berth.conf
	rm -rf $(DESTDIR)$(PREFIX)/libexec/berth $(DESTDIR)$(PREFIX)/share/doc/berth
	if [ -n "$(DESTDIR)" ] || [ "$$(id -u)" != 0 ]; then exit; fi; \
	if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi; \
	echo "/var/lib/berth (images, homes), /etc/berth, group berth and sessions that run stay"

clean:
	tools/end-root --sessions $(TEST_ROOT)
	rm -rf --one-file-system $(TEST_ROOT)
	rm -rf bin libexec build assets/web/node_modules
	find assets/web/dist -mindepth 1 ! -name .placeholder -delete
