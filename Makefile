# Ringside: host programs, guest images, tests.
#
#   make            host programs into build/bin, guest images into build/guest/<arch>
#   make check      installs what is missing, builds everything, runs every test (about 15 minutes)
#   make check-unit | check-image | check-harness | check-qemu | check-crash | check-fuzz      one row of it
#   make check-long the same with the sizes turned up (hours)
#   make lint       format, include directions, static analysis
#   make bench      side by side with qemu-storage-daemon and fio
#   make format     lets clang-format rewrite the sources
#   make install    into PREFIX (/usr/local); DESTDIR for packagers, DATADIR, UNITDIR and VHOST_USER_DIR as below
#
# Variables: BUILD=dir  CC=gcc|clang  SAN=address,undefined|thread  CO=asm|ucontext  V=1 (show commands)

BUILD  ?= build
CC     := $(if $(filter default,$(origin CC)),gcc,$(CC))
SAN    ?=
CO     ?= asm
V      ?=
Q      := $(if $(V),,@)
say     = $(if $(V),,@echo "  $(1)	$(patsubst $(BUILD)/%,%,$(2))")

HOST_ARCH := $(shell uname -m)

WARNINGS := -Wall -Wextra -Werror -Wno-unused-parameter -Wno-missing-field-initializers -Wshadow -Wundef \
            -Wstrict-prototypes -Wmissing-prototypes -Wold-style-definition -Wpointer-arith -Wvla -Wwrite-strings
OPT      ?= -O2 -g
SAN_FLAGS := $(if $(SAN),-fsanitize=$(SAN) -fno-omit-frame-pointer -fno-sanitize-recover=all)
CFLAGS_HOST := -std=gnu17 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 $(OPT) $(WARNINGS) -fno-common -pthread -I. $(SAN_FLAGS) \
               $(if $(filter ucontext,$(CO)),-DRINGSIDE_CO_UCONTEXT) $(EXTRA_CFLAGS)
LDFLAGS_HOST := -pthread $(SAN_FLAGS) $(if $(SAN),,-no-pie) $(EXTRA_LDFLAGS)
ifeq ($(SAN),)
CFLAGS_HOST += -fno-pie
endif
LIBS_HOST := -laio -luring -lseccomp -ljansson -lzstd -lz -lgcrypt -lgpg-error -lnettle -lm

HOST_MODULES := runtime aio block qcow2 device vhost_user

.SUFFIXES:
.DELETE_ON_ERROR:
.PHONY: all host guest lint format bench clean packages install
all: host guest

# ---- host library: everything but main() ----

HOST_SRC := $(foreach m,$(HOST_MODULES),$(wildcard host/$(m)/*.c host/$(m)/*.S))
HOST_OBJ := $(patsubst %,$(BUILD)/obj/%.o,$(HOST_SRC))
HOST_LIB := $(BUILD)/libringside-host.a

$(BUILD)/obj/%.c.o: %.c
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS_HOST) -MMD -MP -c -o $@ $<

$(BUILD)/obj/%.S.o: %.S
	$(call say,AS,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS_HOST) -MMD -MP -c -o $@ $<

$(HOST_LIB): $(HOST_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $^

# ---- guest: newlib, libvblk, images ----

include guest/guest.mk

# The harness links the driver's very object code. With a sanitizer it needs a build of its own.
HOSTED_SRC := $(wildcard guest/platform/hosted/*.c)
HOSTED_OBJ := $(patsubst %,$(BUILD)/obj/%.o,$(HOSTED_SRC))
ifeq ($(SAN),)
HOSTED_DRIVER := $(BUILD)/guest/$(HOST_ARCH)/libvblk.a
else
HOSTED_DRIVER_OBJ := $(patsubst %,$(BUILD)/obj/%.o,$(wildcard guest/driver/*.c))
HOSTED_DRIVER := $(BUILD)/libvblk-hosted.a
$(HOSTED_DRIVER): $(HOSTED_DRIVER_OBJ)
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $^
endif

# ---- programs ----

CMD_SRC       := $(wildcard host/cmd/cmd_*.c)
BLK_SRC       := $(wildcard host/cmd/ringside-blk.c host/cmd/blk_*.c) $(CMD_SRC)
IMG_SRC       := $(wildcard host/cmd/ringside-img.c host/cmd/img_*.c) $(CMD_SRC)
HARNESS_SRC   := $(wildcard tests/harness/*.c) $(CMD_SRC)
PROGRAMS      := $(if $(wildcard host/cmd/ringside-blk.c),$(BUILD)/bin/ringside-blk) \
                 $(if $(wildcard host/cmd/ringside-img.c),$(BUILD)/bin/ringside-img) \
                 $(if $(wildcard tests/harness/*.c),$(BUILD)/bin/ringside)

obj_of = $(patsubst %,$(BUILD)/obj/%.o,$(1))
define link
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(LDFLAGS_HOST) -o $@ $(filter %.o,$^) $(filter %.a,$^) $(LIBS_HOST) $(1)
endef

$(BUILD)/bin/ringside-blk: $(call obj_of,$(BLK_SRC)) $(HOST_LIB)
	$(call link)
$(BUILD)/bin/ringside-img: $(call obj_of,$(IMG_SRC)) $(HOST_LIB)
	$(call link)
$(BUILD)/bin/ringside: $(call obj_of,$(HARNESS_SRC)) $(HOSTED_OBJ) $(HOSTED_DRIVER) $(HOST_LIB)
	$(call link)

host: $(HOST_LIB) $(PROGRAMS)

# ---- tests ----

include tests/tests.mk

clean:
	rm -rf $(BUILD)

packages:
	@.ci/packages build qemu check

# Programs, manual pages, the descriptor that management programs look for, units for systemd: nothing outside of
# PREFIX. libvirt and its like look for descriptors in /usr/share/qemu/vhost-user and /etc/qemu/vhost-user only: with
# another PREFIX than /usr, VHOST_USER_DIR=/etc/qemu/vhost-user puts it where they see it.
PREFIX  ?= /usr/local
DESTDIR ?=
DATADIR ?= $(PREFIX)/share
UNITDIR ?= $(PREFIX)/lib/systemd/system
VHOST_USER_DIR ?= $(DATADIR)/qemu/vhost-user
install: host
	install -d $(addprefix $(DESTDIR),$(PREFIX)/bin $(DATADIR)/man/man1 $(VHOST_USER_DIR) $(UNITDIR))
	install $(PROGRAMS) $(DESTDIR)$(PREFIX)/bin
	install -m 644 $(wildcard docs/*.1) $(DESTDIR)$(DATADIR)/man/man1
	sed 's|/usr/local/bin|$(PREFIX)/bin|' docs/50-ringside-blk.json >$(DESTDIR)$(VHOST_USER_DIR)/50-ringside-blk.json
	for u in service socket; do \
	    sed 's|/usr/local/bin|$(PREFIX)/bin|' docs/systemd/ringside-blk@.$$u >$(DESTDIR)$(UNITDIR)/ringside-blk@.$$u || exit 1; \
	done

-include $(shell find $(BUILD) -name '*.d' 2>/dev/null)
