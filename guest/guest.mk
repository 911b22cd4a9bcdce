# The guest half: libvblk.a for each architecture, newlib, and the programs that boot.

GUEST_ARCHES := x86_64 aarch64 riscv64

GUEST_CROSS_x86_64  := $(if $(filter x86_64,$(HOST_ARCH)),,x86_64-linux-gnu-)
GUEST_CROSS_aarch64 := aarch64-linux-gnu-
GUEST_CROSS_riscv64 := riscv64-linux-gnu-

GUEST_ARCH_FLAGS_x86_64  := -mno-red-zone -fcf-protection=none
GUEST_ARCH_FLAGS_aarch64 := -mno-outline-atomics -mstrict-align
GUEST_ARCH_FLAGS_riscv64 := -mcmodel=medany

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

guest:
