# Tests. A test is a program or a script that prints TAP; tests/run runs them and counts.
#
#   tests/unit/NAME_test.c     one cmocka program each; also built with sanitizers
#   tests/*/test-NAME.sh       scripts; RINGSIDE_BUILD says where the programs are, RINGSIDE_SIZE short or long
#   tests/fuzz/NAME_fuzz.c     libFuzzer targets (clang)

comma := ,
UNIT_SRC := $(wildcard tests/unit/*_test.c)
UNIT_HELPER_SRC := $(filter-out $(UNIT_SRC),$(wildcard tests/unit/*.c))
UNIT := $(patsubst tests/unit/%.c,$(BUILD)/tests/unit/%,$(UNIT_SRC))

$(BUILD)/tests/unit/%_test: $(BUILD)/obj/tests/unit/%_test.c.o $(call obj_of,$(UNIT_HELPER_SRC)) $(HOSTED_OBJ) $(HOSTED_DRIVER) $(HOST_LIB)
	$(call link,-Wl$(comma)--wrap=_cmocka_run_group_tests -lcmocka)
$(BUILD)/tests/unit/sandbox_test: $(call obj_of,host/cmd/blk_sandbox.c)
.SECONDARY:

# Programs that test scripts need besides the real ones: tests/DIR/tool_NAME.c, with the other sources in DIR
TOOL_SRC := $(wildcard tests/*/tool_*.c)
TOOLS := $(foreach t,$(TOOL_SRC),$(BUILD)/tests/$(basename $(notdir $(t))))
tool_helpers = $(if $(filter tests/harness/ tests/unit/ tests/fuzz/,$(dir $(1))),,$(filter-out $(dir $(1))tool_%,$(wildcard $(dir $(1))*.c)))
define tool_rule
$(BUILD)/tests/$(basename $(notdir $(1))): $(BUILD)/obj/$(1).o $(call obj_of,$(call tool_helpers,$(1))) $(HOSTED_OBJ) $(HOSTED_DRIVER) $(HOST_LIB)
	$$(call link)
endef
$(foreach t,$(TOOL_SRC),$(eval $(call tool_rule,$(t))))

# The crash explorer once more, over a qcow2 that writes its tables in the wrong order: it has to notice.
BROKEN_ORDER := $(BUILD)/obj/host/qcow2/writeback-broken.c.o
$(BROKEN_ORDER): host/qcow2/writeback.c
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) $(CFLAGS_HOST) -DRINGSIDE_BREAK_QCOW2_ORDER -MMD -MP -c -o $@ $<
$(BUILD)/tests/tool_crash_broken: $(call obj_of,tests/crash/tool_crash.c $(filter-out tests/crash/tool_%,$(wildcard tests/crash/*.c))) $(BROKEN_ORDER) $(HOSTED_OBJ) $(HOSTED_DRIVER) $(HOST_LIB)
	$(call link)
TOOLS += $(BUILD)/tests/tool_crash_broken

# Libraries for LD_PRELOAD before programs that are not ours, so without sanitizers
PRELOAD := $(patsubst tests/preload/%.c,$(BUILD)/tests/%.so,$(wildcard tests/preload/*.c))
$(BUILD)/tests/%.so: tests/preload/%.c
	$(call say,CC,$@)
	@mkdir -p $(@D)
	$(Q)$(CC) -std=gnu17 -D_GNU_SOURCE -O1 $(WARNINGS) -shared -fPIC -o $@ $<
TOOLS += $(PRELOAD)

# Fuzz targets: everything they link is built by clang for libFuzzer, ASan and UBSan, in a tree of its own. Archives,
# so that a target takes only what it calls: it may bring doubles of its own (tests/unit/device_rig.h).
FUZZ_SRC   := $(wildcard tests/fuzz/*_fuzz.c)
FUZZ       := $(patsubst tests/fuzz/%.c,$(BUILD)/fuzz/%,$(FUZZ_SRC))
FUZZ_SAN   := -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
FUZZ_FLAGS := -std=gnu17 -D_GNU_SOURCE -D_FILE_OFFSET_BITS=64 -O1 -g $(WARNINGS) -fno-common -pthread -I. \
              -fsanitize=fuzzer-no-link $(FUZZ_SAN)
fuzz_obj = $(patsubst %,$(BUILD)/fuzzobj/%.o,$(1))
FUZZ_LIB   := $(BUILD)/fuzzobj/libringside-host.a $(BUILD)/fuzzobj/libvblk.a

$(BUILD)/fuzzobj/%.c.o: %.c
	$(call say,CLANG,$@)
	@mkdir -p $(@D)
	$(Q)clang $(FUZZ_FLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/fuzzobj/%.S.o: %.S
	@mkdir -p $(@D)
	$(Q)clang $(FUZZ_FLAGS) -MMD -MP -c -o $@ $<
$(BUILD)/fuzzobj/libringside-host.a: $(call fuzz_obj,$(HOST_SRC))
	$(Q)rm -f $@ && $(AR) rcs $@ $^
$(BUILD)/fuzzobj/libvblk.a: $(call fuzz_obj,$(wildcard guest/driver/*.c) $(HOSTED_SRC))
	$(Q)rm -f $@ && $(AR) rcs $@ $^
$(BUILD)/fuzz/%_fuzz: $(BUILD)/fuzzobj/tests/fuzz/%_fuzz.c.o $(FUZZ_LIB)
	$(call say,LD,$@)
	@mkdir -p $(@D)
	$(Q)clang -fsanitize=fuzzer $(FUZZ_SAN) -pthread -o $@ $^ $(LIBS_HOST)
.PRECIOUS: $(BUILD)/fuzzobj/tests/fuzz/%.c.o

.PHONY: units tools fuzz check check-unit check-image check-harness check-qemu check-crash check-fuzz check-long
units: $(UNIT)
tools: $(TOOLS)
fuzz: $(FUZZ)

# Which units run again under which sanitizer. A unit of one thread has no races to find.
UNIT_NO_TSAN += qcow2_test qcow2_race_test qcow2_errors_test qcow2_bitmap_errors_test qcow2_bitmap_copy_test qcow2_power_test qcow2_large_test \
                virtio_blk_queue_test virtio_blk_config_test virtqueue_split_test virtqueue_packed_test multireq_test \
                ring_inflight_test virtio_blk_test virtio_blk_service_test virtio_blk_hostile_test virtio_blk_memory_test zoned_test zoned_restart_test audit_test
UNIT_NO_TSAN += running_test vblk_barrier_test vblk_answer_test vblk_io_test vblk_start_test vblk_ring_test vblk_hostile_test vblk_transport_test
UNIT_TSAN ?= $(filter-out $(UNIT_NO_TSAN),$(notdir $(UNIT)))

RUN := RINGSIDE_BUILD=$(abspath $(BUILD)) tests/run

# As many jobs as there are processors, unless the caller said otherwise
SUBMAKE := $(MAKE) --no-print-directory $(if $(findstring j,$(firstword -$(MAKEFLAGS))),,-j$(shell nproc))

.PHONY: build-all build-asan build-tsan build-ucontext build-fuzz
# Also with make -j: not before everything is installed
build-all build-asan build-tsan build-ucontext build-fuzz: packages
build-fuzz:
	@$(SUBMAKE) fuzz
build-all:
	@$(SUBMAKE) all units tools
build-asan:
	@$(SUBMAKE) BUILD=$(BUILD)/asan SAN=address,undefined host units tools
build-tsan:
	@$(SUBMAKE) BUILD=$(BUILD)/tsan SAN=thread host units tools
build-ucontext:
	@$(SUBMAKE) BUILD=$(BUILD)/ucontext CO=ucontext $(BUILD)/ucontext/tests/unit/coroutine_test

ROW_unit    = $(UNIT) $(patsubst %,$(BUILD)/asan/tests/unit/%,$(notdir $(UNIT))) \
              $(patsubst %,$(BUILD)/tsan/tests/unit/%,$(UNIT_TSAN)) $(wildcard tests/unit/test-*.sh) \
              $(if $(wildcard tests/unit/coroutine_test.c),$(BUILD)/ucontext/tests/unit/coroutine_test)
ROW_image   = $(wildcard tests/image/test-*.sh)
ROW_harness = $(wildcard tests/harness/test-*.sh)
ROW_qemu    = $(wildcard tests/qemu/test-*.sh)
ROW_crash   = $(wildcard tests/crash/test-*.sh)
ROW_fuzz    = $(wildcard tests/fuzz/test-*.sh)
ROW_lint    = tests/test-lint.sh

check-unit: packages build-all build-asan build-tsan build-ucontext
	@$(RUN) $(ROW_unit)
check-fuzz: build-fuzz
check-image check-crash check-fuzz check-harness check-qemu: check-%: packages build-all build-asan build-tsan
	@$(RUN) $(ROW_$*)
check: packages build-all build-asan build-tsan build-ucontext build-fuzz
	@$(RUN) $(ROW_lint) $(ROW_unit) $(ROW_image) $(ROW_harness) $(ROW_qemu) $(ROW_crash) $(ROW_fuzz)
check-long: packages build-all build-asan build-tsan build-ucontext build-fuzz
	@RINGSIDE_SIZE=long $(RUN) $(ROW_unit) $(ROW_image) $(ROW_harness) $(ROW_qemu) $(ROW_crash) $(ROW_fuzz)

SOURCES = $(shell git ls-files '*.c' '*.h' 2>/dev/null || find common guest host tests -name '*.[ch]')

lint: packages
	@tests/test-lint.sh
format:
	clang-format -i $(SOURCES)

bench: packages build-all
	@RINGSIDE_BUILD=$(abspath $(BUILD)) tests/bench/run
