/*
 * Listening Unix sockets at paths (socket_path.h).
 */
#include "host/vhost_user/socket_path.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

/* Is PATH free to bind? A socket without a listener is removed: its process is gone. */
static int path_make_free(const char *path, const struct sockaddr_un *addr, struct error *err)
{
    struct stat st;
    if (lstat(path, &st) < 0) {
        if (errno == ENOENT)
            return 0;
        return error_set(err, -errno, "%s: %s", path, strerror(errno));
    }
    if (!S_ISSOCK(st.st_mode))
        return error_set(err, -EEXIST, "%s: exists and is not a socket (choose another path for the socket)",
                         path);
    int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0)
        return error_set(err, -errno, "cannot make a socket: %s", strerror(errno));
    int ret = connect(probe, (const struct sockaddr *)addr, sizeof *addr) < 0 ? -errno : 0;
    close(probe);
    if (ret == 0 || ret == -EAGAIN)
        return error_set(err, -EADDRINUSE,
                         "%s: the socket is taken by a running program (stop it, or choose another path)",
                         path);
    if (ret != -ECONNREFUSED)
        return error_set(err, ret, "%s: %s", path, strerror(-ret));
    if (unlink(path) < 0 && errno != ENOENT)
        return error_set(err, -errno, "%s: cannot remove the socket that was left over: %s", path,
                         strerror(errno));
    return 0;
}

int socket_path_listen(struct socket_path *s, const char *path, struct error *err)
{
    struct sockaddr_un addr = {.sun_family = AF_UNIX};
    struct stat st;
    int ret;

    memset(s, 0, sizeof *s);
    s->fd = -1;
    if (strlen(path) >= sizeof addr.sun_path)
        return error_set(err, -ENAMETOOLONG, "%s: a socket's path has at most %zu characters", path,
                         sizeof addr.sun_path - 1);
    strcpy(addr.sun_path, path);
    ret = path_make_free(path, &addr, err);
    if (ret < 0)
        return ret;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&addr, sizeof addr) < 0) {
        ret = error_set(err, -errno, "%s: cannot make the socket: %s", path, strerror(errno));
        goto fail;
    }
    if (listen(fd, 8) < 0 || lstat(path, &st) < 0) {
        ret = error_set(err, -errno, "%s: cannot listen: %s", path, strerror(errno));
        unlink(path);
        goto fail;
    }
    s->fd = fd;
    strcpy(s->path, path);
    s->device = st.st_dev;
    s->inode = st.st_ino;
    return 0;
fail:
    if (fd >= 0)
        close(fd);
    return ret;
}

void socket_path_close(struct socket_path *s)
{
    struct stat st;
    if (s->fd < 0)
        return;
    /* Only what we made: somebody may have put another socket there. */
    if (lstat(s->path, &st) == 0 && st.st_dev == s->device && st.st_ino == s->inode)
        unlink(s->path);
    close(s->fd);
    s->fd = -1;
}
