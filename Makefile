# POSIX make. The two that a newcomer needs: make demo, make check.

PREFIX = /usr/local
SBINDIR = $(PREFIX)/sbin
BINDIR = $(PREFIX)/bin
MANDIR = $(PREFIX)/share/man
RUNDIR = /var/run/lingerd
CARGO = cargo
APXS = apxs

all:
	$(CARGO) build --release --locked
	@if command -v $(APXS) >/dev/null; then cd apache-2.4 && $(APXS) -c mod_lingerd.c; \
	else echo "no $(APXS): mod_lingerd is left out (Debian has it in apache2-dev)"; fi

# Stock Apache against Apache with lingerd, on this machine, in under a minute.
demo:
	@sh ci/packages
	@$(CARGO) bench --quiet --locked --bench apache -- demo

# Every test, those with a real Apache too.
check:
	@sh ci/packages
	@sh ci/test

# What speed lingerd makes, as ratios measured side by side.
bench:
	@sh ci/packages
	@$(CARGO) bench --quiet --locked --bench apache

# Installs what 'make' has built, so that it needs no Rust and can run as root.
install:
	@test -x target/release/lingerd || { echo "nothing built yet: run 'make' first" >&2; exit 1; }
	mkdir -p $(DESTDIR)$(SBINDIR) $(DESTDIR)$(BINDIR) $(DESTDIR)$(MANDIR)/man1 $(DESTDIR)$(MANDIR)/man8
	cp target/release/lingerd $(DESTDIR)$(SBINDIR)/lingerd
	cp target/release/ablinger $(DESTDIR)$(BINDIR)/ablinger
	chmod 755 $(DESTDIR)$(SBINDIR)/lingerd $(DESTDIR)$(BINDIR)/ablinger
	cp man/ablinger.1 $(DESTDIR)$(MANDIR)/man1/ablinger.1
	cp man/lingerd.8 $(DESTDIR)$(MANDIR)/man8/lingerd.8
	chmod 644 $(DESTDIR)$(MANDIR)/man1/ablinger.1 $(DESTDIR)$(MANDIR)/man8/lingerd.8
	mkdir -p $(DESTDIR)$(RUNDIR)
	@if test -f apache-2.4/.libs/mod_lingerd.so; then \
	  modules=$(DESTDIR)`$(APXS) -q LIBEXECDIR` && set -x && mkdir -p "$$modules" && \
	  cp apache-2.4/.libs/mod_lingerd.so "$$modules/mod_lingerd.so" && \
	  chmod 644 "$$modules/mod_lingerd.so"; \
	else echo "mod_lingerd was not built and is not installed"; fi

uninstall:
	rm -f $(DESTDIR)$(SBINDIR)/lingerd $(DESTDIR)$(BINDIR)/ablinger
	rm -f $(DESTDIR)$(MANDIR)/man1/ablinger.1 $(DESTDIR)$(MANDIR)/man8/lingerd.8
	-rmdir $(DESTDIR)$(RUNDIR)
	@if command -v $(APXS) >/dev/null; then \
	  set -x && rm -f "$(DESTDIR)`$(APXS) -q LIBEXECDIR`/mod_lingerd.so"; fi

clean:
	$(CARGO) clean
	cd apache-2.4 && rm -rf .libs mod_lingerd.o mod_lingerd.lo mod_lingerd.slo mod_lingerd.la

.PHONY: all demo check bench install uninstall clean
