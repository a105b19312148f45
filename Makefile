# SPDX-License-Identifier: BSD-3-Clause
#
# POSIX make. The two that a newcomer needs: make demo, make check.

PREFIX = /usr/local
SBINDIR = $(PREFIX)/sbin
BINDIR = $(PREFIX)/bin
MANDIR = $(PREFIX)/share/man
BASHDIR = $(PREFIX)/share/bash-completion/completions
ZSHDIR = $(PREFIX)/share/zsh/site-functions
FISHDIR = $(PREFIX)/share/fish/vendor_completions.d
RUNDIR = /var/run/lingerd
BUILT = target/release
CFLAGS = -O2
CARGO = cargo
APXS = apxs

# The paths of this folder and of Cargo's are not in what is built, so that it is the same wherever that is.
BUILD = RUSTFLAGS="$(RUSTFLAGS) --remap-path-prefix=$$PWD=/lingerd --remap-path-prefix=$${CARGO_HOME:-$$HOME/.cargo}=/cargo" \
  $(CARGO) build --release --locked

all:
	$(BUILD) --target-dir target
	@if command -v $(APXS) >/dev/null; then cd apache-2.4 && \
	  $(APXS) -c -I../apache-1.3 mod_lingerd.c ../apache-1.3/ap_lingerd.c; \
	else echo "no $(APXS): mod_lingerd is left out (Debian has it in apache2-dev)"; fi

# liblingerd, for servers in C: lingerd(3).
library:
	@cd senders/c && $(MAKE) CC="$(CC)" CFLAGS="$(CFLAGS)" LDFLAGS="$(LDFLAGS)" PREFIX="$(PREFIX)"

# Stock Apache against Apache with lingerd, on this machine, in a minute.
demo:
	@sh ci/packages
	@$(BUILD) --quiet
	@$(CARGO) bench --quiet --locked -p comparisons --bench demo

# The same with gunicorn, for which no Apache is needed, in under a minute and a half.
demo-gunicorn:
	@sh ci/packages gunicorn
	@$(BUILD) --quiet
	@$(CARGO) bench --quiet --locked -p comparisons --bench gunicorn -- demo

# Every test, those with a real Apache too.
check:
	@sh ci/packages check
	@sh ci/test

# Whether a program does what lingerd-protocol(7) has a sender do: make check-sender CMD='python3 my_sender.py'
# What it has to do for that, and what CASES there are (all unless named), is in CONTRIBUTING.md.
check-sender:
	@test -n "$$CMD" || { echo "make check-sender CMD='...'" >&2; exit 2; }
	@LINGERD_CHECK_SENDER="cd '$$PWD'; $$CMD" LINGERD_CHECK_CASES="$$CASES" $(CARGO) test --quiet --locked \
	  --test conformance -- --exact the_sender_that_is_named_does_what_the_manual_says --nocapture

# The tests with musl, and on processors of 32 bits and big-endian, in an emulator.
check-arch:
	@sh ci/packages arch
	@sh ci/arch

# What reads bytes from outside, fed by cargo-fuzz: each target for a minute.
fuzz:
	@sh ci/fuzz

# What needs no kernel, in Miri, which sees undefined behaviour.
miri:
	@sh ci/miri

# What speed lingerd makes and what it costs, as ratios measured side by side: lingerd beside the least that can be done, and on
# poll(2); each wait of a worker with what people put in its place; thousands of slow readers, of kept connections, and of slow heads of
# requests, in single runs; and gunicorn's: an hour on a machine that does nothing else. Each run by itself is in target/*.json then,
# and pictures of the first three parts are in target/*.svg. (What a million take: make million.)
# make bench PAGES='300000 3000000': pages of other sizes for slow readers, here ten minutes more.
PAGES = 300000
bench:
	@sh ci/packages torture
	@sh ci/packages gunicorn
	@$(BUILD) --quiet
	@RUSTFLAGS='--cfg lingerd_backend="poll"' $(CARGO) build --quiet --release --locked --target-dir "$${CARGO_TARGET_DIR:-target}/poll"
	@$(CARGO) bench --quiet --locked -p comparisons --bench receiver
	@$(CARGO) bench --quiet --locked -p comparisons --bench backends
	@$(CARGO) bench --quiet --locked -p comparisons --bench waits
	@$(CARGO) bench --quiet --locked -p comparisons --bench slow -- $(PAGES)
	@$(CARGO) bench --quiet --locked -p comparisons --bench keep
	@$(CARGO) bench --quiet --locked -p comparisons --bench heads
	@$(CARGO) bench --quiet --locked -p comparisons --bench gunicorn

# Whose responses survive cruel clients, and balancers that keep connections: Apache's, nginx's, and Apache's with
# lingerd; and gunicorn's. Seven minutes.
# make torture TLS=10000: so many slow readers over TLS.
TLS = 200
torture:
	@sh ci/packages torture
	@$(BUILD) --quiet
	@$(CARGO) bench --quiet --locked -p comparisons --bench torture -- tls=$(TLS)
	@sh ci/packages gunicorn
	@$(CARGO) bench --quiet --locked -p comparisons --bench gunicorn -- torture

# Whether each of two million lingers, or of as many as N says, is accounted for, whatever befalls lingerd
# and its senders meanwhile: make soak N=20000000. Five minutes a million, or less.
N = 2000000
soak:
	@sh ci/packages
	@LINGERD_SOAK_LINGERS=$(N) $(CARGO) test --quiet --release --locked --test soak -- --nocapture --test-threads=1

# A million connections in one lingerd, or as many as MOST says, and what they cost on the way there: make million
# MOST=100000; it fails where they cost more than they may. Where the machine's limits are too low they are in a kernel that
# runs as a process. Half an hour to an hour, 12 GB of memory, and 14 GB of room in /dev/shm or TMPDIR; after an hour and a half it gives up.
MOST = 1000000
million:
	@sh ci/packages million
	@$(BUILD) --quiet
	@$(CARGO) bench --quiet --locked -p comparisons --bench million -- $(MOST)

# The manuals, as HTML, in target/html.
html:
	@sh man/html target/html
	@echo target/html/index.html

# The source as it is released, in target/dist, and with it that of every crate.
dist:
	@sh ci/dist

# The same, and that it can be built without a network, twice the same.
check-dist:
	@sh ci/dist check

# Whether the crates' licences, sources and versions are what deny.toml allows: cargo-deny.
deny:
	$(CARGO) deny --locked check

# The packages for Debian and Ubuntu, in target/deb.
deb:
	@sh ci/packages deb
	@sh ci/deb

# These on a Debian that systemd has booted, from 'apt install' to 'apt purge'. As root.
check-systemd: deb
	@sh ci/packages systemd
	@sh ci/systemd

# Installs what 'make' has built, so that it needs no Rust and can run as root. Each file is put in
# place by a rename: a program that runs keeps its old one, where a copy would write into it.
install:
	@test -x $(BUILT)/lingerd || { echo "nothing built yet: run 'make' first" >&2; exit 1; }
	umask 022 && mkdir -p $(DESTDIR)$(SBINDIR) $(DESTDIR)$(BINDIR) $(DESTDIR)$(RUNDIR) \
	  $(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(MANDIR)/man7 $(DESTDIR)$(MANDIR)/man8 \
	  $(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR) $(DESTDIR)$(FISHDIR)
	@umask 022; put() { \
	  echo "$$2 -> $$3" && cp "$$2" "$$3.new" && chmod "$$1" "$$3.new" && mv -f "$$3.new" "$$3"; \
	}; set -e; module=apache-2.4/.libs/mod_lingerd.so; \
	if test -f $$module; then modules=`$(APXS) -q LIBEXECDIR`; fi; \
	put 755 $(BUILT)/lingerd $(DESTDIR)$(SBINDIR)/lingerd; \
	put 755 $(BUILT)/ablinger $(DESTDIR)$(BINDIR)/ablinger; \
	for page in man/*.[178]; do \
	  put 644 $$page $(DESTDIR)$(MANDIR)/man$${page##*.}/$${page##*/}; \
	done; \
	for program in lingerd ablinger; do \
	  put 644 platform/completions/$$program.bash $(DESTDIR)$(BASHDIR)/$$program; \
	  put 644 platform/completions/_$$program $(DESTDIR)$(ZSHDIR)/_$$program; \
	  put 644 platform/completions/$$program.fish $(DESTDIR)$(FISHDIR)/$$program.fish; \
	done; \
	if test -f $$module; then \
	  mkdir -p "$(DESTDIR)$$modules"; \
	  put 644 $$module "$(DESTDIR)$$modules/mod_lingerd.so"; \
	else echo "mod_lingerd was not built and is not installed"; fi

# What 'make library' has built, for who compiles servers. A DESTDIR is relative to here, not to there.
install-library:
	@case "$(DESTDIR)" in ''|/*) to="$(DESTDIR)" ;; *) to="$$PWD/$(DESTDIR)" ;; esac; \
	cd senders/c && $(MAKE) install DESTDIR="$$to" PREFIX="$(PREFIX)" MANDIR="$(MANDIR)"

# The SMF service of illumos and Solaris; 'svcadm restart manifest-import' imports it.
install-smf:
	umask 022 && mkdir -p $(DESTDIR)/lib/svc/manifest/network $(DESTDIR)/lib/svc/method
	cp platform/illumos/lingerd.xml $(DESTDIR)/lib/svc/manifest/network/lingerd.xml
	cp platform/illumos/svc-lingerd $(DESTDIR)/lib/svc/method/svc-lingerd
	chmod 444 $(DESTDIR)/lib/svc/manifest/network/lingerd.xml
	chmod 555 $(DESTDIR)/lib/svc/method/svc-lingerd

# IPS packages of what 'make' has built, in a repository below target/ips. On illumos and Solaris only.
ips:
	@APXS=$(APXS) sh platform/illumos/ips

uninstall:
	rm -f $(DESTDIR)$(SBINDIR)/lingerd $(DESTDIR)$(BINDIR)/ablinger
	@case "$(DESTDIR)" in ''|/*) to="$(DESTDIR)" ;; *) to="$$PWD/$(DESTDIR)" ;; esac; \
	cd senders/c && $(MAKE) uninstall DESTDIR="$$to" PREFIX="$(PREFIX)" MANDIR="$(MANDIR)"
	for page in man/*.[178]; do rm -f $(DESTDIR)$(MANDIR)/man$${page##*.}/$${page##*/}; done
	for program in lingerd ablinger; do \
	  rm -f $(DESTDIR)$(BASHDIR)/$$program $(DESTDIR)$(ZSHDIR)/_$$program $(DESTDIR)$(FISHDIR)/$$program.fish; \
	done
	@rmdir $(DESTDIR)$(RUNDIR) 2>/dev/null || echo "$(DESTDIR)$(RUNDIR) is left: it is not empty"
	@if command -v $(APXS) >/dev/null; then \
	  set -x && rm -f "$(DESTDIR)`$(APXS) -q LIBEXECDIR`/mod_lingerd.so"; fi

clean:
	$(CARGO) clean
	cd apache-2.4 && rm -rf .libs mod_lingerd.o mod_lingerd.lo mod_lingerd.slo mod_lingerd.la
	cd apache-1.3 && rm -rf .libs ap_lingerd.o ap_lingerd.lo ap_lingerd.slo

.PHONY: all library demo demo-gunicorn check check-sender check-arch check-systemd fuzz miri bench torture soak million html dist \
  check-dist deny deb install install-library install-smf ips uninstall clean
