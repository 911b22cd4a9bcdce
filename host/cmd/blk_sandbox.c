/*
 * The sandbox of ringside-blk (blk_sandbox.h): landlock by bare system calls (the C library has none for it),
 * seccomp by libseccomp.
 */
#include "host/cmd/blk_sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/landlock.h>
#include <seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Rights that later versions of landlock know and older headers don't */
#define FS_REFER     (1ull << 13) /* version 2 */
#define FS_TRUNCATE  (1ull << 14) /* version 3 */
#define FS_IOCTL_DEV (1ull << 15) /* version 5 */
#define FS_VERSION_1 ((1ull << 13) - 1)

static int landlock_allow(int ruleset, const char *path, struct error *err)
{
    int directory = open(path, O_PATH | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0 && errno == ENOENT)
        return 0; /* whoever needs it will say so */
    if (directory < 0)
        return error_set(err, -errno, "%s: can't be opened: %s", path, strerror(errno));
    struct landlock_path_beneath_attr rule = {.allowed_access = LANDLOCK_ACCESS_FS_MAKE_SOCK |
                                                                LANDLOCK_ACCESS_FS_REMOVE_FILE,
                                              .parent_fd = directory};
    long ret = syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0);
    int code = ret < 0 ? -errno : 0;
    close(directory);
    return code < 0 ? error_set(err, code, "%s: no landlock rule for it: %s", path, strerror(-code)) : 0;
}

int sandbox_files(const char *const *directories, struct error *err)
{
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
        return error_set(err, -errno, "new privileges can't be given up: %s (--sandbox=off goes on without)",
                         strerror(errno));
    long version = syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
    if (version < 1)
        return 0; /* this kernel has none */

    struct landlock_ruleset_attr attr = {.handled_access_fs = FS_VERSION_1 | (version >= 2 ? FS_REFER : 0) |
                                                              (version >= 3 ? FS_TRUNCATE : 0) |
                                                              (version >= 5 ? FS_IOCTL_DEV : 0)};
    int ruleset = (int)syscall(SYS_landlock_create_ruleset, &attr, sizeof attr.handled_access_fs, 0);
    if (ruleset < 0)
        return error_set(err, -errno, "no landlock rules: %s (--sandbox=off goes on without)",
                         strerror(errno));
    int ret = 0;
    for (; *directories && ret == 0; directories++)
        ret = landlock_allow(ruleset, *directories, err);
    if (ret == 0 && syscall(SYS_landlock_restrict_self, ruleset, 0) < 0)
        ret = error_set(err, -errno, "landlock can't be put in force: %s (--sandbox=off goes on without)",
                        strerror(errno));
    close(ruleset);
    return ret;
}

/* What serving a disk takes, by purpose. Anything else fails with EPERM; what only an intruder would try
 * kills. */
static const int calls_allowed[] = {
    /* the image */
    SCMP_SYS(read),
    SCMP_SYS(write),
    SCMP_SYS(readv),
    SCMP_SYS(writev),
    SCMP_SYS(pread64),
    SCMP_SYS(pwrite64),
    SCMP_SYS(preadv),
    SCMP_SYS(pwritev),
    SCMP_SYS(preadv2),
    SCMP_SYS(pwritev2),
    SCMP_SYS(fsync),
    SCMP_SYS(fdatasync),
    SCMP_SYS(sync_file_range),
    SCMP_SYS(fallocate),
    SCMP_SYS(ftruncate),
    SCMP_SYS(lseek),
    SCMP_SYS(fstat),
    SCMP_SYS(fstatfs),
    SCMP_SYS(fadvise64),
    SCMP_SYS(copy_file_range),
    SCMP_SYS(io_setup),
    SCMP_SYS(io_submit),
    SCMP_SYS(io_getevents),
    SCMP_SYS(io_pgetevents),
    SCMP_SYS(io_destroy),
    SCMP_SYS(io_cancel),
    /* loops */
    SCMP_SYS(epoll_create1),
    SCMP_SYS(epoll_ctl),
    SCMP_SYS(epoll_wait),
    SCMP_SYS(epoll_pwait),
    SCMP_SYS(epoll_pwait2),
    SCMP_SYS(eventfd2),
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(timerfd_create),
    SCMP_SYS(timerfd_settime),
    SCMP_SYS(signalfd4),
    SCMP_SYS(close),
    SCMP_SYS(dup),
    SCMP_SYS(dup3),
    SCMP_SYS(pipe2),
    /* sockets; no new connections to anywhere */
    SCMP_SYS(accept4),
    SCMP_SYS(recvmsg),
    SCMP_SYS(sendmsg),
    SCMP_SYS(recvfrom),
    SCMP_SYS(sendto),
    SCMP_SYS(shutdown),
    SCMP_SYS(getsockopt),
    SCMP_SYS(setsockopt),
    SCMP_SYS(getsockname),
    SCMP_SYS(unlink),
    SCMP_SYS(unlinkat),
    SCMP_SYS(lstat),
    /* memory */
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(brk),
    SCMP_SYS(memfd_create),
    SCMP_SYS(msync),
    SCMP_SYS(mincore),
    /* threads */
    SCMP_SYS(futex),
    SCMP_SYS(rseq),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(sched_setaffinity),
    SCMP_SYS(membarrier),
    SCMP_SYS(gettid),
    SCMP_SYS(getpid),
    SCMP_SYS(tgkill),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(getrusage),
    SCMP_SYS(getrandom),
    /* time */
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_getres),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(time),
};

/* Only for an image that is read and written by them: what is asked for by way of the ring passes no filter.
 */
static const int calls_of_io_uring[] = {
    SCMP_SYS(io_uring_setup),
    SCMP_SYS(io_uring_enter),
    SCMP_SYS(io_uring_register),
};

static const int calls_that_kill[] = {
    SCMP_SYS(execve),
    SCMP_SYS(execveat),
    SCMP_SYS(fork),
    SCMP_SYS(vfork),
    SCMP_SYS(ptrace),
    SCMP_SYS(mount),
    SCMP_SYS(process_vm_readv),
    SCMP_SYS(bpf),
    SCMP_SYS(init_module),
    SCMP_SYS(finit_module),
    SCMP_SYS(keyctl),
    SCMP_SYS(process_vm_writev),
    SCMP_SYS(chroot),
    SCMP_SYS(unshare),
    SCMP_SYS(setns),
    SCMP_SYS(kexec_load),
    SCMP_SYS(userfaultfd),
    SCMP_SYS(perf_event_open),
    SCMP_SYS(pivot_root),
};

/* ioctl(2) on block devices: sizes, discard, zeroes; FIONREAD and the like are not needed. */
static const uint64_t ioctls_allowed[] = {
    0x1260 /* BLKGETSIZE */,       0x80081272 /* BLKGETSIZE64 */, 0x1268 /* BLKSSZGET */,
    0x127b /* BLKPBSZGET */,       0x1277 /* BLKDISCARD */,       0x127f /* BLKZEROOUT */,
    0x127c /* BLKDISCARDZEROES */, 0x1261 /* BLKFLSBUF */,
};

static int add_rules(scmp_filter_ctx filter, bool io_uring)
{
    int ret = 0;
    for (size_t i = 0; io_uring && i < sizeof calls_of_io_uring / sizeof calls_of_io_uring[0] && ret == 0;
         i++)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, calls_of_io_uring[i], 0);
    for (size_t i = 0; i < sizeof calls_allowed / sizeof calls_allowed[0] && ret == 0; i++)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, calls_allowed[i], 0);
    for (size_t i = 0; i < sizeof calls_that_kill / sizeof calls_that_kill[0] && ret == 0; i++)
        ret = seccomp_rule_add(filter, SCMP_ACT_KILL_PROCESS, calls_that_kill[i], 0);
    for (size_t i = 0; i < sizeof ioctls_allowed / sizeof ioctls_allowed[0] && ret == 0; i++)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(ioctl), 1,
                               SCMP_A1(SCMP_CMP_EQ, ioctls_allowed[i]));
    /* Memory that can be run is never made. */
    if (ret == 0)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
                               SCMP_A2(SCMP_CMP_MASKED_EQ, 4 /* PROT_EXEC */, 0));
    if (ret == 0)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
                               SCMP_A2(SCMP_CMP_MASKED_EQ, 4, 0));
    /* Threads, not processes. glibc asks for clone3 first and takes ENOSYS for "use clone". */
    if (ret == 0)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(clone), 1,
                               SCMP_A0(SCMP_CMP_MASKED_EQ, 0x00010000 /* CLONE_THREAD */, 0x00010000));
    if (ret == 0)
        ret = seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), SCMP_SYS(clone3), 0);
    /* Descriptors: status flags, locks, seals; a thread's name. */
    static const uint64_t fcntls[] = {1 /* GETFD */,        2 /* SETFD */,
                                      3 /* GETFL */,        4 /* SETFL */,
                                      5 /* GETLK */,        6 /* SETLK */,
                                      36 /* OFD_GETLK */,   37 /* OFD_SETLK */,
                                      38 /* OFD_SETLKW */,  1030 /* DUPFD_CLOEXEC */,
                                      1033 /* ADD_SEALS */, 1034 /* GET_SEALS */};
    for (size_t i = 0; i < sizeof fcntls / sizeof fcntls[0] && ret == 0; i++)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1, SCMP_A1(SCMP_CMP_EQ, fcntls[i]));
    if (ret == 0)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(prctl), 1, SCMP_A0(SCMP_CMP_EQ, PR_SET_NAME));
    /* newfstatat of a descriptor ("" and AT_EMPTY_PATH) is how fstat is made; by name it only looks. */
    if (ret == 0)
        ret = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(newfstatat), 0);
    return ret;
}

int sandbox_calls(bool io_uring, struct error *err)
{
    scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
    if (!filter)
        return error_set(err, -ENOMEM, "no memory for a filter of system calls");
    int ret = seccomp_attr_set(filter, SCMP_FLTATR_CTL_TSYNC, 1);
    if (ret == 0)
        ret = add_rules(filter, io_uring);
    if (ret == 0)
        ret = seccomp_load(filter);
    seccomp_release(filter);
    if (ret < 0)
        return error_set(err, ret, "system calls can't be filtered: %s (--sandbox=off goes on without)",
                         strerror(-ret));
    return 0;
}
