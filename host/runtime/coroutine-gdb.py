"""
Sleeping coroutines in gdb, live or from a core file (x86_64, aarch64).

    (gdb) source host/runtime/coroutine-gdb.py
    (gdb) coroutine list            every coroutine that is alive, and where it sleeps
    (gdb) coroutine bt ADDRESS      its stack, and behind it whoever made it, as one backtrace
    (gdb) coroutine bt all

A coroutine's own frames end at co_main. Behind them come those of the coroutine that made it, if that one still
sleeps; and where the program ran with `set var co_record_creators = 1`, the calls that led to co_create,
recorded at that time. What co_switch.S saves, and in which order, is repeated in SAVED below.
"""

import gdb
import gdb.unwinder

# Offsets in words from the saved stack pointer, and the stack pointer's own value after the switch.
SAVED = {
    "i386:x86-64": (
        {"r15": 0, "r14": 1, "r13": 2, "r12": 3, "rbx": 4, "rbp": 5, "rip": 6},
        "rsp",
        7 * 8,
    ),
    "aarch64": (
        dict([("x29", 0), ("pc", 1)] + [("x%d" % (19 + i), 2 + i) for i in range(10)]),
        "sp",
        160,
    ),
}

# enum co_state
POOLED, FRESH, RUNNING, SLEEPING, ENDED = range(5)
STATES = ["pooled", "fresh", "running", "sleeping", "ended"]


class FrameId:
    def __init__(self, sp, pc):
        self.sp = sp
        self.pc = pc


class SwitchUnwinder(gdb.unwinder.Unwinder):
    """Makes the frame below the newest one that of a sleeping coroutine, while one is set."""

    def __init__(self):
        super().__init__("ringside coroutine")
        self.saved_sp = None
        self.newest_sp = None

    def __call__(self, pending):
        if self.saved_sp is None:
            return None
        registers, sp_name, sp_bytes = SAVED[pending.architecture().name()]
        if int(pending.read_register(sp_name)) != self.newest_sp:
            return None
        word = gdb.lookup_type("unsigned long")
        # An address below all of the coroutine's: gdb stops where a stack seems to go backwards.
        info = pending.create_unwind_info(
            FrameId(gdb.Value(self.saved_sp - 16).cast(word), pending.read_register("pc"))
        )
        for name, offset in registers.items():
            value = read_word(self.saved_sp + 8 * offset)
            kind = pending.read_register(name).type
            info.add_saved_register(name, gdb.Value(value).cast(word).cast(kind))
        sp_type = pending.read_register(sp_name).type
        info.add_saved_register(sp_name, gdb.Value(self.saved_sp + sp_bytes).cast(word).cast(sp_type))
        return info


unwinder = SwitchUnwinder()
gdb.unwinder.register_unwinder(None, unwinder, True)


def read_word(address):
    memory = gdb.selected_inferior().read_memory(address, 8)
    return int.from_bytes(bytes(memory), "little")


def coroutines():
    co = gdb.parse_and_eval("all_first")
    while int(co) != 0:
        yield co
        co = co["all_next"]


def where(address):
    """A code address as gdb would print it in a backtrace."""
    block = gdb.block_for_pc(address)
    while block is not None and block.function is None:
        block = block.superblock
    name = block.function.name if block is not None else "??"
    line = gdb.find_pc_line(address)
    if line.symtab is None:
        return name + " ()"
    return "%s () at %s:%d" % (name, line.symtab.filename, line.line)


def frames_of(co):
    """The frames of a sleeping coroutine, newest first, as gdb prints them."""
    thread = gdb.selected_thread()
    newest = gdb.newest_frame()
    architecture = newest.architecture().name()
    if architecture not in SAVED:
        raise gdb.GdbError("not on " + architecture)
    selected = gdb.selected_frame().level()
    lines = []
    unwinder.newest_sp = int(newest.read_register(SAVED[architecture][1]))
    try:
        context = co["context"]
        unwinder.saved_sp = int(context["sp"])
        gdb.invalidate_cached_frames()
        frame = gdb.newest_frame().older()
        while frame is not None and frame.is_valid():
            name = frame.name()
            if name == "ringside_co_start":
                break
            frame.select()
            text = gdb.execute("frame", to_string=True).splitlines()[0]
            lines.append(text.split(None, 1)[1])
            if name == "co_main":
                break
            frame = frame.older()
    except gdb.error as e:
        if "sp" in str(e):
            raise gdb.GdbError("built with ucontext: only the assembly switch is known here")
        raise
    finally:
        unwinder.saved_sp = None
        gdb.invalidate_cached_frames()
        thread.switch()
        gdb.execute("frame %d" % selected, to_string=True)
    return lines


def print_backtrace(co):
    number = 0
    seen = set()
    while int(co) not in seen:
        seen.add(int(co))
        state = int(co["state"])
        if state != SLEEPING:
            print("     <coroutine %#x: %s>" % (int(co), STATES[state]))
            break
        for line in frames_of(co):
            print("#%-3d %s" % (number, line))
            number += 1
        for i in range(int(co["creator_count"])):
            text = where(int(co["creator"][i]) - 1)
            if text.startswith(("record_creators ", "co_create ")):
                continue
            if text.startswith(("ringside_co_start ", "co_main ")):
                break
            print("#%-3d %s" % (number, text))
            number += 1
        if int(co["creator_count"]) == 0:
            print("     <made by %s>" % where(int(co["created_at"]) - 1))
        parent = co["parent"]
        if int(parent) == 0 or not any(int(other) == int(parent) for other in coroutines()):
            break
        if int(parent["serial"]) != int(co["parent_serial"]) or int(parent["state"]) in (POOLED, ENDED):
            print("     <in a coroutine that has ended>")
            break
        print("     <in coroutine %#x>" % int(parent))
        co = parent


class CoroutineCommand(gdb.Command):
    """Look at coroutines: `coroutine list`, `coroutine bt ADDRESS|all`."""

    def __init__(self):
        super().__init__("coroutine", gdb.COMMAND_STACK)

    def invoke(self, argument, from_tty):
        words = gdb.string_to_argv(argument)
        if words == ["list"]:
            self.list()
        elif len(words) == 2 and words[0] == "bt":
            self.backtrace(words[1])
        else:
            raise gdb.GdbError("coroutine list | coroutine bt ADDRESS|all")

    def list(self):
        for co in coroutines():
            state = int(co["state"])
            if state == POOLED:
                continue
            place = ""
            if state == SLEEPING:
                for line in frames_of(co):
                    place = line.split(" in ", 1)[-1]
                    if not place.startswith(("ringside_co_switch", "co_context_switch", "leave", "co_yield")):
                        break
            print(
                "%#x %-8s loop %s, request %d, %s"
                % (int(co), STATES[state], co["loop"]["name"].string(), int(co["trace_id"]), place)
            )

    def backtrace(self, which):
        if which == "all":
            for co in coroutines():
                if int(co["state"]) == SLEEPING:
                    print("coroutine %#x" % int(co))
                    print_backtrace(co)
                    print("")
            return
        address = int(gdb.parse_and_eval(which))
        for co in coroutines():
            if int(co) == address:
                print_backtrace(co)
                return
        raise gdb.GdbError("no coroutine at %#x" % address)


CoroutineCommand()
