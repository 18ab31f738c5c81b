# DMCE: everything that a checkout can do. `make help` lists it.
#
# Each target does all that it needs, a fresh checkout included. Variables that are worth setting:
#   CARGO_TARGET_DIR                   where results go instead of ./target
#   PREFIX, LIBDIR, BINDIR, DESTDIR    where `install` puts what was built
#   CI=true                            no dependency may differ from Cargo.lock, all tests run to the end

# Cargo uses all processors by itself.
.NOTPARALLEL:
.DEFAULT_GOAL := build

# rustup's usual place, for shells that have not read its profile.
export PATH := $(PATH):$(HOME)/.cargo/bin

VERSION := $(shell sed -n 's/^version *= *"\(.*\)"/\1/p' Cargo.toml | head -n 1)
# The same as in ffi/build.rs.
SONAME := libdmce.so.0

TARGET_DIR := $(abspath $(or $(CARGO_TARGET_DIR),target))
RELEASE := $(TARGET_DIR)/release
I386_TARGET := i686-unknown-linux-gnu
I386_BUILT := $(TARGET_DIR)/i686/$(I386_TARGET)
I386_RELEASE := $(TARGET_DIR)/$(I386_TARGET)/release

CARGO_FLAGS := $(if $(CI),--locked)
TEST_FLAGS := $(CARGO_FLAGS) $(if $(CI),--no-fail-fast)

# The product alone: the tests switch on features of it that are not for users.
PRODUCT := -p dmce -p dmce-broker -p dmce-daemon -p dmce-ffi
# What runs inside a client, and the tests that start one.
CLIENT_SIDE := -p dmce-abi -p dmce-sys -p dmce-shm -p libdmce -p dmce-ffi -p dmce-tests -p dmce-fuzz

PREFIX ?= /usr/local
BINDIR ?= $(PREFIX)/bin
LIBDIR ?= $(PREFIX)/lib
LIBDIR32 ?= $(PREFIX)/lib/i386-linux-gnu
INCLUDEDIR ?= $(PREFIX)/include
MANDIR ?= $(PREFIX)/share/man
# What a program needs besides that links libdmce.a.
LIBS_PRIVATE := -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc

BINARIES := dmce dmce-broker dmce-daemon
HEADERS := include/libdmce.h include/libdmce.hpp
# What libdmce.hpp consists of.
HEADER_PARTS := $(wildcard include/dmce/*.hpp)
MAN_PAGES := $(wildcard */man/*.[1-8])

# $(call link_soname,DIR): a program that was linked with DIR/libdmce.so asks for the soname when it
# starts, so both names have to be there.
link_soname = ln -sfn libdmce.so "$(1)/$(SONAME)"

# $(call test_env,OTHER): the servers are 64-bit ones in both runs of the tests; OTHER is where the
# client of the other width was built, for tests in which both widths share memory.
test_env = DMCE_TEST_PROGRAMS="$(TARGET_DIR)/debug" \
	DMCE_TEST_OTHER_CLIENT="$(1)/debug/dmce-test-client" \
	DMCE_TEST_SQLITE32="$$(scripts/sqlite-i386.sh "$(TARGET_DIR)/sqlite-i386")"

## build         the command, both servers and the C library, in target/release
.PHONY: build
build:
	scripts/requirements.sh build
	cargo build --release $(CARGO_FLAGS) $(PRODUCT)
	$(call link_soname,$(RELEASE))

## demo          a 32-bit program holds more memory than it can address, on real files
.PHONY: demo
demo: build
	scripts/requirements.sh demo
	scripts/demo.sh

## demo-sqlite   the stock 32-bit sqlite3 shell fills a database that is larger than it can address
.PHONY: demo-sqlite
demo-sqlite: build i386
	scripts/requirements.sh sqlite
	scripts/demo-sqlite.sh

## demo-sort     a 32-bit C++ program sorts more bytes of real files than it can address
.PHONY: demo-sort
demo-sort: build i386
	scripts/requirements.sh sort
	scripts/demo-sort.sh

## i386          the C library for 32-bit programs, in target/i686-unknown-linux-gnu/release
.PHONY: i386
i386:
	scripts/requirements.sh build
	scripts/i386-cargo.sh build --release $(CARGO_FLAGS) -p dmce-ffi
	mkdir -p "$(I386_RELEASE)"
	ln -sfrn "$(I386_BUILT)/release/libdmce.so" "$(I386_RELEASE)/libdmce.so"
	ln -sfrn "$(I386_BUILT)/release/libdmce.a" "$(I386_RELEASE)/libdmce.a"
	$(call link_soname,$(I386_RELEASE))

## test          all that CI runs: 64 bits, 32 bits, all interleavings of the lock words, the header
.PHONY: test
test: test-requirements test-native test-i386 test-loom test-header

.PHONY: test-requirements
test-requirements:
	scripts/requirements.sh test
	scripts/i386-toolchain.sh
	scripts/sqlite-i386.sh "$(TARGET_DIR)/sqlite-i386" >/dev/null

## test-native   the tests of the whole workspace as 64-bit programs
.PHONY: test-native
test-native: build-debug build-debug-i386
	$(call test_env,$(I386_BUILT)) cargo test --workspace $(TEST_FLAGS)

## test-i386     the client as 32-bit programs, with 64-bit servers
.PHONY: test-i386
test-i386: build-debug build-debug-i386
	$(call test_env,$(TARGET_DIR)) scripts/i386-cargo.sh test $(TEST_FLAGS) $(CLIENT_SIDE)

## test-loom     the shared words, and those of the allocator, under every order of events that loom finds
.PHONY: test-loom
test-loom:
	CARGO_TARGET_DIR="$(TARGET_DIR)/loom" RUSTFLAGS="--cfg loom" \
		cargo test $(TEST_FLAGS) -p dmce-shm -p libdmce --release --lib

## torture       clients write while all are killed and stopped at random, for SECONDS (60) from a SEED (1); COPIES
.PHONY: torture
torture: test-requirements build-debug build-debug-i386
	$(call test_env,$(I386_BUILT)) DMCE_TORTURE_SECONDS=$(or $(SECONDS),60) \
		$(if $(COPIES),DMCE_TORTURE_COPIES=$(COPIES)) DMCE_TEST_SEED=$(or $(SEED),1) \
		cargo test -p dmce-tests --test crash torture -- --nocapture

## fuzz          new inputs for what reads messages and shared memory, for SECONDS (60) a TARGET (all)
.PHONY: fuzz
fuzz:
	scripts/requirements.sh fuzz
	scripts/fuzz.sh "$(TARGET_DIR)/fuzz" $(or $(SECONDS),60) $(TARGET)

## sim           the broker in SEEDS (5000) histories of a whole instance, FROM (0) a seed
.PHONY: sim
sim:
	DMCE_SIM_SEEDS=$(or $(SEEDS),5000) DMCE_SIM_FROM=$(or $(FROM),0) \
		cargo test -p dmce-tests --release --test sim -- --nocapture

## test-header   include/libdmce.h and ffi/symbols.txt are up to date, and compilers take them
.PHONY: test-header
test-header: build-debug
	scripts/i386-toolchain.sh
	scripts/header.sh check "$(TARGET_DIR)/debug/libdmce.so"

# Cargo does not build a program for the tests of another package, so all are built first.
.PHONY: build-debug
build-debug:
	cargo build --workspace $(CARGO_FLAGS)
	$(call link_soname,$(TARGET_DIR)/debug)

.PHONY: build-debug-i386
build-debug-i386:
	scripts/i386-cargo.sh build $(CARGO_FLAGS) -p dmce-ffi -p dmce-tests -p dmce-examples
	$(call link_soname,$(I386_BUILT)/debug)

## bench-sqlite  SQLite on DMCE against SQLite on the shared memory file system
.PHONY: bench-sqlite
bench-sqlite: build
	scripts/requirements.sh sqlite
	scripts/bench-sqlite.sh $(BENCH_ARGS)

## bench         a table of ratios, kept in docs/benchmarks.md; BENCH_ARGS chooses rows, or --quick
.PHONY: bench
bench: build
	scripts/requirements.sh bench
	$(CXX) -O2 -std=c++17 -pthread -o "$(RELEASE)/dmce-bench-interprocess" benches/peers/interprocess.cpp -lrt
	$(CXX) -O2 -std=c++17 -pthread -o "$(RELEASE)/dmce-bench-jemalloc" benches/peers/malloc.cpp \
		-Wl,--no-as-needed -l:libjemalloc.so.2
	$(CXX) -O2 -std=c++17 -o "$(RELEASE)/dmce-bench-pmemobj" benches/peers/pmemobj.cpp -lpmemobj
	$(CXX) -O2 -std=c++17 -Iinclude -o "$(RELEASE)/dmce-bench-vector" benches/peers/vector.cpp \
		-L"$(RELEASE)" -ldmce '-Wl,-rpath,$$ORIGIN'
	scripts/i386-cargo.sh build --release $(CARGO_FLAGS) -p dmce-benches --bin dmce-bench-worker
	cargo build --release $(CARGO_FLAGS) -p dmce-benches
	DMCE_TEST_PROGRAMS="$(RELEASE)" "$(RELEASE)/dmce-bench" \
		--i386-worker "$(I386_BUILT)/release/dmce-bench-worker" \
		--write docs/benchmarks.md $(BENCH_ARGS)

## check         what a change has to pass: format, lints, and all of test
.PHONY: check
check: fmt-check clippy test

.PHONY: fmt-check
fmt-check:
	cargo fmt --all --check

.PHONY: clippy
clippy:
	cargo clippy --workspace --all-targets $(CARGO_FLAGS) -- -D warnings

## header        makes include/libdmce.h and ffi/symbols.txt anew from the source
.PHONY: header
header: build-debug
	scripts/header.sh write "$(TARGET_DIR)/debug/libdmce.so"

# $(call install_library,FROM,LIBDIR)
define install_library
	install -d "$(DESTDIR)$(2)/pkgconfig"
	install -m 755 "$(1)/libdmce.so" "$(DESTDIR)$(2)/libdmce.so.$(VERSION)"
	ln -sfn libdmce.so.$(VERSION) "$(DESTDIR)$(2)/$(SONAME)"
	ln -sfn $(SONAME) "$(DESTDIR)$(2)/libdmce.so"
	install -m 644 "$(1)/libdmce.a" "$(DESTDIR)$(2)/libdmce.a"
	sed -e 's|@PREFIX@|$(PREFIX)|' -e 's|@LIBDIR@|$(2)|' -e 's|@INCLUDEDIR@|$(INCLUDEDIR)|' \
		-e 's|@VERSION@|$(VERSION)|' -e 's|@LIBS_PRIVATE@|$(LIBS_PRIVATE)|' \
		packaging/libdmce.pc.in >"$(DESTDIR)$(2)/pkgconfig/libdmce.pc"
	chmod 644 "$(DESTDIR)$(2)/pkgconfig/libdmce.pc"
endef

# $(call built,FILE,TARGET): `install` often runs as another user than the one who has a toolchain,
# so it builds only what is not there at all.
built = @test -e "$(1)" || $(MAKE) $(2)

## install       what `build` made, below PREFIX (/usr/local) and DESTDIR
.PHONY: install
install:
	$(call built,$(RELEASE)/libdmce.so,build)
	install -d "$(DESTDIR)$(BINDIR)" "$(DESTDIR)$(INCLUDEDIR)/dmce"
	install -m 755 $(BINARIES:%="$(RELEASE)/%") "$(DESTDIR)$(BINDIR)"
	install -m 644 $(HEADERS) "$(DESTDIR)$(INCLUDEDIR)"
	install -m 644 $(HEADER_PARTS) "$(DESTDIR)$(INCLUDEDIR)/dmce"
	$(call install_library,$(RELEASE),$(LIBDIR))
	$(foreach page,$(MAN_PAGES),install -D -m 644 $(page) \
		"$(DESTDIR)$(MANDIR)/man$(subst .,,$(suffix $(page)))/$(notdir $(page))" &&) true
	@test -n "$(DESTDIR)" || echo "run 'ldconfig' as root if $(LIBDIR) is new to the loader"

## install-i386  the library that `i386` made, in LIBDIR32
.PHONY: install-i386
install-i386:
	$(call built,$(I386_RELEASE)/libdmce.so,i386)
	$(call install_library,$(I386_RELEASE),$(LIBDIR32))

## uninstall     removes what `install` and `install-i386` of the same version made
.PHONY: uninstall
uninstall:
	rm -f $(BINARIES:%="$(DESTDIR)$(BINDIR)/%")
	rm -f "$(DESTDIR)$(INCLUDEDIR)/libdmce.h" "$(DESTDIR)$(INCLUDEDIR)/libdmce.hpp"
	rm -f $(HEADER_PARTS:include/%="$(DESTDIR)$(INCLUDEDIR)/%")
	rmdir "$(DESTDIR)$(INCLUDEDIR)/dmce" 2>/dev/null || true
	for dir in "$(DESTDIR)$(LIBDIR)" "$(DESTDIR)$(LIBDIR32)"; do \
		rm -f "$$dir/libdmce.so" "$$dir/$(SONAME)" "$$dir/libdmce.so.$(VERSION)" \
			"$$dir/libdmce.a" "$$dir/pkgconfig/libdmce.pc"; \
	done
	rm -f $(foreach page,$(MAN_PAGES),\
		"$(DESTDIR)$(MANDIR)/man$(subst .,,$(suffix $(page)))/$(notdir $(page))")

## clean         removes target and all in it
.PHONY: clean
clean:
	cargo clean

## help          this list
.PHONY: help
help:
	@sed -n 's/^## //p' Makefile
