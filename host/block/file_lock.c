/*
 * Image locks (file_lock.h).
 *
 * A permission is a number; each has two bytes of the file, far behind any header that matters, as lock
 * bytes. Who uses permission P holds a shared lock on byte 100+P. Who will not let others use P holds a
 * shared lock on byte 200+P. Nobody keeps an exclusive lock; one asks whether an exclusive lock on the
 * opposite byte could be had, which says whether anybody else is on it: to use P, nobody may hold 200+P; to
 * forbid P, nobody may hold 100+P. Both sides lock first and look afterwards, so of two that come at once at
 * least one sees the other.
 */
#include "host/block/file_lock.h"

#include <errno.h>
#include <fcntl.h>

enum permission { CONSISTENT_READ, WRITE, WRITE_UNCHANGED, RESIZE, PERMISSION_COUNT };

#define USED_BASE      100u
#define FORBIDDEN_BASE 200u

static const char *const permission_name[PERMISSION_COUNT] = {"consistent read", "write", "write unchanged",
                                                              "resize"};

static int refused(struct host_file *host, enum permission p, bool to_use, bool read_only, struct error *err)
{
    if (read_only)
        return error_set(
            err, -EAGAIN,
            "%s: is in use by another process that may %s it (stop that process, or read all the same "
            "with ringside-img --force-share or ringside-blk --lock=off)",
            host->path, permission_name[p]);
    return error_set(err, -EAGAIN,
                     "%s: is in use by another process: the '%s' lock cannot be had%s (stop that process)",
                     host->path, permission_name[p], to_use ? "" : " for us alone");
}

int file_lock(struct host_file *host, bool read_only, bool force_share, struct error *err)
{
    bool uses[PERMISSION_COUNT] = {[CONSISTENT_READ] = true, [WRITE] = !read_only, [RESIZE] = !read_only};
    bool forbids[PERMISSION_COUNT] = {[WRITE] = !force_share, [RESIZE] = !force_share};
    if (force_share && !read_only)
        return error_set(err, -EINVAL, "%s: --force-share is for reading only", host->path);
    for (unsigned p = 0; p < PERMISSION_COUNT; p++) {
        int ret = 0;
        if (uses[p])
            ret = host->ops->lock(host, F_RDLCK, USED_BASE + p, 1);
        if (ret == 0 && forbids[p])
            ret = host->ops->lock(host, F_RDLCK, FORBIDDEN_BASE + p, 1);
        if (ret == -EAGAIN || ret == -EACCES)
            return refused(host, p, true, read_only, err);
        if (ret < 0)
            return 0; /* no locks on this file system: as good as it gets */
    }
    for (unsigned p = 0; p < PERMISSION_COUNT; p++) {
        if (uses[p] && host->ops->lock_test(host, F_WRLCK, FORBIDDEN_BASE + p, 1) == -EAGAIN)
            return refused(host, p, true, read_only, err);
        if (forbids[p] && host->ops->lock_test(host, F_WRLCK, USED_BASE + p, 1) == -EAGAIN)
            return refused(host, p, false, read_only, err);
    }
    return 0;
}

void file_unlock(struct host_file *host)
{
    host->ops->lock(host, F_UNLCK, USED_BASE, PERMISSION_COUNT);
    host->ops->lock(host, F_UNLCK, FORBIDDEN_BASE, PERMISSION_COUNT);
}
