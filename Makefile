# SPDX-License-Identifier: Apache-2.0
# A thin front for Meson and the scripts; everything it does can be done by hand.
PREFIX ?= /usr/local
DESTDIR ?=
BUILD ?= build
UNIT_DIR ?= $(PREFIX)/lib/systemd/system

.PHONY: all deps check check-cluster check-vm image demo demo-cluster bench soak fuzz format tidy install uninstall clean

all: $(BUILD)/build.ninja
	meson compile -C $(BUILD)

$(BUILD)/build.ninja:
	meson setup $(BUILD) -Dlibdir=lib -Dlibexecdir=libexec

# Installs the packages that are needed (Debian, Ubuntu).
deps:
	scripts/install-deps

# Builds and tests with gcc, clang and the sanitizers; the last line is "N passed, N failed".
check: deps
	scripts/check

# The tests in a real Kubernetes of two nodes, which is built (the first time about a quarter of an hour) and started for
# them; or in the cluster of KUBECONFIG. Needs root and Go. Ends with "N passed, N failed".
check-cluster: deps image
	scripts/check-cluster

# The tests on Linux 6.12 in a virtual machine: what this machine's kernel may not have (ublk, nbd). Its kernel is fetched once.
check-vm:
	scripts/check-vm

# The container image of all roles, $(BUILD)/tidemark-image.tar.
image: all
	packaging/image/build.sh -b $(BUILD)

# A database that is rewound while you watch. Needs root.
demo: deps
	$(MAKE) --no-print-directory all
	demo/demo.sh

# An application in a cluster is rewound, cloned and restored while you watch; in a cluster that is made for it, or in that of
# KUBECONFIG. Needs root and Go, or a cluster.
demo-cluster: deps image
	python3 demo/cluster.py

# Measures against peers; writes docs/benchmarks.md and bench/results.json. Takes about three quarters of an hour; parts of it with
# BENCH_OPTIONS="--only thin,recovery". Needs root.
bench: deps
	$(MAKE) --no-print-directory all
	python3 bench/run.py $(BENCH_OPTIONS)

# PostgreSQL under load while processes are killed and the application is rewound, for SOAK_SECONDS; then every fault of the
# journal's disk; then random histories against a model (plain, thinned, of adopted volumes), for SOAK_SECONDS each; then each safeguard
# taken out in turn. Needs root.
SOAK_SECONDS ?= 600
soak: deps
	$(MAKE) --no-print-directory all
	SOAK_SECONDS=$(SOAK_SECONDS) tests/soak/soak.sh
	TIDEMARK_FAULT=all $(BUILD)/tests/sim/test_fault
	for kind in "" --thin --adopt; do $(BUILD)/tests/sim/test_history $$kind --seconds $(SOAK_SECONDS) || exit 1; done
	tests/mutations/run.sh

# FUZZ=yaml SECONDS=60: one target with libFuzzer, starting from its corpus.
FUZZ ?= yaml
SECONDS ?= 60
fuzz:
	[ -f build-fuzz/build.ninja ] || CC=clang meson setup build-fuzz -Dfuzz=true -Db_sanitize=address,undefined \
		-Db_lundef=false -Dc_args=-fsanitize=fuzzer-no-link -Dwerror=false
	meson compile -C build-fuzz fuzz_$(FUZZ)
	mkdir -p build-fuzz/corpus/$(FUZZ)
	build-fuzz/tests/fuzz/fuzz_$(FUZZ) -max_total_time=$(SECONDS) build-fuzz/corpus/$(FUZZ) tests/fuzz/corpus/$(FUZZ)

format:
	git ls-files 'src/*.[ch]' 'tests/*.[ch]' | xargs clang-format -i

tidy:
	[ -f build-clang/build.ninja ] || CC=clang meson setup build-clang -Dlibdir=lib -Dlibexecdir=libexec
	meson compile -C build-clang
	git ls-files 'src/*.c' | xargs -P 2 -n 4 clang-tidy --quiet -p build-clang

install: all
	meson configure $(BUILD) -Dprefix=$(PREFIX)
	meson install -C $(BUILD) $(if $(DESTDIR),--destdir $(abspath $(DESTDIR)))
	mkdir -p $(DESTDIR)$(UNIT_DIR)
	sed 's|@PREFIX@|$(PREFIX)|g' packaging/tidemark.service > $(DESTDIR)$(UNIT_DIR)/tidemark.service

uninstall:
	ninja -C $(BUILD) uninstall
	rm -f $(DESTDIR)$(UNIT_DIR)/tidemark.service
	[ ! -d $(DESTDIR)$(UNIT_DIR) ] || rmdir --ignore-fail-on-non-empty $(DESTDIR)$(UNIT_DIR) $(dir $(DESTDIR)$(UNIT_DIR))

clean:
	rm -rf $(BUILD) build-clang build-asan build-tsan build-fuzz
