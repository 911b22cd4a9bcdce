# The guest half: libvblk.a for each architecture, newlib, and the programs that boot.

GUEST_ARCHES := x86_64 aarch64 riscv64
GUEST_APPS   := selftest bench shell litmus endure

GUEST_CROSS_x86_64  := $(if $(filter x86_64,$(HOST_ARCH)),,x86_64-linux-gnu-)
GUEST_CROSS_aarch64 := $(if $(filter aarch64,$(HOST_ARCH)),,aarch64-linux-gnu-)
GUEST_CROSS_riscv64 := $(if $(filter riscv64,$(HOST_ARCH)),,riscv64-linux-gnu-)

GUEST_ARCH_FLAGS_x86_64  := -mno-red-zone -fcf-protection=none
GUEST_ARCH_FLAGS_aarch64 := -mno-outline-atomics -mstrict-align
GUEST_ARCH_FLAGS_riscv64 := -mcmodel=medany

# The machine's own code runs in traps, whose entry saves the general registers only.
GUEST_PLATFORM_FLAGS_x86_64  := -mgeneral-regs-only
GUEST_PLATFORM_FLAGS_aarch64 := -mgeneral-regs-only
GUEST_PLATFORM_FLAGS_riscv64 :=

GUEST_CFLAGS := -ffreestanding -fno-pic -fno-pie -fno-common -fno-stack-protector -ffunction-sections -fdata-sections \
                $(OPT) $(WARNINGS) -I.

# libvblk: nothing but guest/driver, C11, freestanding
define guest_libvblk
$(BUILD)/guest/$(1)/obj/guest/driver/%.o: guest/driver/%.c
	$$(call say,CC,$$@)
	@mkdir -p $$(@D)
	$$(Q)$(GUEST_CROSS_$(1))gcc -std=c11 $(GUEST_CFLAGS) $(GUEST_ARCH_FLAGS_$(1)) -MMD -MP -c -o $$@ $$<
$(BUILD)/guest/$(1)/libvblk.a: $(patsubst %.c,$(BUILD)/guest/$(1)/obj/%.o,$(wildcard guest/driver/*.c))
	$$(call say,AR,$$@)
	@mkdir -p $$(@D)
	$$(Q)rm -f $$@ && $(GUEST_CROSS_$(1))ar rcs $$@ $$^
endef
$(foreach a,$(GUEST_ARCHES),$(eval $(call guest_libvblk,$(a))))

# newlib: built once, by a script that leaves all of it or nothing
define guest_newlib
$(BUILD)/guest/$(1)/newlib/lib/libc.a: guest/libc/build-newlib.sh
	$$(call say,NEWLIB,$(BUILD)/guest/$(1)/newlib)
	$$(Q)guest/libc/build-newlib.sh $(1)-elf "$(GUEST_CROSS_$(1))" $(BUILD)/guest/$(1)/newlib $(GUEST_ARCH_FLAGS_$(1))
endef
$(foreach a,$(GUEST_ARCHES),$(eval $(call guest_newlib,$(a))))

# The images. An architecture has them when it has a linker script.
GUEST_IMAGE_ARCHES := $(patsubst linker/%.ld,%,$(wildcard linker/*.ld))
guest_includes = -nostdinc -isystem $(BUILD)/guest/$(1)/newlib/include \
                 -isystem $(shell $(GUEST_CROSS_$(1))gcc -print-file-name=include)
guest_objects = $(patsubst %,$(BUILD)/guest/$(1)/obj/%.o,$(2))
guest_system_src = $(wildcard guest/platform/common/*.c guest/platform/$(1)/*.c guest/platform/$(1)/*.S guest/libc/*.c)
guest_app_src = $(wildcard guest/apps/$(1).c guest/apps/$(1)_*.c guest/apps/common_*.c)
GUEST_LIBC_FLAGS := -std=gnu11 -D_POSIX_TIMERS=1 -D_POSIX_MONOTONIC_CLOCK=200112L

define guest_image
$(BUILD)/guest/$(1)/$(2).elf: $(call guest_objects,$(1),$(call guest_system_src,$(1)) $(call guest_app_src,$(2))) \
		$(BUILD)/guest/$(1)/libvblk.a linker/$(1).ld
	$$(call say,LD,$$@)
	$$(Q)$(GUEST_CROSS_$(1))gcc -nostdlib -static -no-pie -Wl,--build-id=none,-z,noexecstack,--gc-sections,-z,max-page-size=4096 \
		-Wl,--no-warn-rwx-segments -T linker/$(1).ld -o $$@ $$(filter %.o,$$^) \
		$$(filter %.a,$$^) -L$(BUILD)/guest/$(1)/newlib/lib -Wl,--start-group -lc -lgcc -Wl,--end-group
endef

define guest_arch
$(BUILD)/guest/$(1)/obj/guest/platform/%.c.o: guest/platform/%.c $(BUILD)/guest/$(1)/newlib/lib/libc.a
	$$(call say,CC,$$@)
	@mkdir -p $$(@D)
	$$(Q)$(GUEST_CROSS_$(1))gcc $(GUEST_LIBC_FLAGS) $(GUEST_CFLAGS) $(GUEST_ARCH_FLAGS_$(1)) $(GUEST_PLATFORM_FLAGS_$(1)) \
		$$(call guest_includes,$(1)) -MMD -MP -c -o $$@ $$<
$(BUILD)/guest/$(1)/obj/guest/platform/%.S.o: guest/platform/%.S
	$$(call say,AS,$$@)
	@mkdir -p $$(@D)
	$$(Q)$(GUEST_CROSS_$(1))gcc $(GUEST_ARCH_FLAGS_$(1)) -g -I. -MMD -MP -c -o $$@ $$<
$(BUILD)/guest/$(1)/obj/guest/%.c.o: guest/%.c $(BUILD)/guest/$(1)/newlib/lib/libc.a
	$$(call say,CC,$$@)
	@mkdir -p $$(@D)
	$$(Q)$(GUEST_CROSS_$(1))gcc $(GUEST_LIBC_FLAGS) $(GUEST_CFLAGS) $(GUEST_ARCH_FLAGS_$(1)) \
		$$(call guest_includes,$(1)) -MMD -MP -c -o $$@ $$<
$(foreach p,$(GUEST_APPS),$(eval $(call guest_image,$(1),$(p))))
.PHONY: guest-$(1)
guest-$(1): $(foreach p,$(GUEST_APPS),$(BUILD)/guest/$(1)/$(p).elf)
guest: guest-$(1)
endef
$(foreach a,$(GUEST_IMAGE_ARCHES),$(eval $(call guest_arch,$(a))))

guest: $(foreach a,$(GUEST_ARCHES),$(BUILD)/guest/$(a)/libvblk.a)

# For other people's kernels: the library, its headers under their own paths, a pkg-config file an architecture.
PREFIX ?= /usr/local
.PHONY: install-libvblk
install: install-libvblk
install-libvblk: $(foreach a,$(GUEST_ARCHES),$(BUILD)/guest/$(a)/libvblk.a)
	$(Q)install -d $(DESTDIR)$(PREFIX)/lib/pkgconfig $(DESTDIR)$(PREFIX)/include/libvblk/common \
		$(DESTDIR)$(PREFIX)/include/libvblk/guest/driver
	$(Q)install -m 644 common/endian.h common/virtio.h common/virtio_blk.h common/virtio_ring.h \
		$(DESTDIR)$(PREFIX)/include/libvblk/common
	$(Q)install -m 644 guest/driver/vblk.h guest/driver/vblk_platform.h guest/driver/vblk_transport.h \
		guest/driver/vtr_pci.h guest/driver/vtr_mmio.h $(DESTDIR)$(PREFIX)/include/libvblk/guest/driver
	$(Q)for arch in $(GUEST_ARCHES); do \
		install -d $(DESTDIR)$(PREFIX)/lib/libvblk/$$arch && \
		install -m 644 $(BUILD)/guest/$$arch/libvblk.a $(DESTDIR)$(PREFIX)/lib/libvblk/$$arch && \
		printf '%s\n' 'prefix=$(PREFIX)' 'Name: libvblk' "Description: virtio block driver for kernels, $$arch" \
			'Version: 1' 'Cflags: -I$${prefix}/include/libvblk' "Libs: -L\$${prefix}/lib/libvblk/$$arch -lvblk" \
			>$(DESTDIR)$(PREFIX)/lib/pkgconfig/libvblk-$$arch.pc || exit 1; \
	done
