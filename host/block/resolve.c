/*
 * Names in images (resolve.h).
 *
 * What always holds: what is allowed is decided on the real path, after every symbolic link, and that real
 * path is what gets opened.
 */
#include "host/block/resolve.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* Does NAME begin with a protocol ("nbd:", "json:", "https:")? A colon after a slash is part of a file name.
 */
static bool has_protocol(const char *name)
{
    size_t n = strcspn(name, ":/");
    return name[n] == ':';
}

int node_resolve_name(const char *filename, const char *name, char **path, struct error *err)
{
    *path = NULL;
    if (strncmp(name, "file:", 5) == 0)
        name += 5;
    else if (has_protocol(name))
        return error_set(err, -EINVAL, "%s: is not a file name (only files can be used here)", name);
    if (name[0] == '\0')
        return error_set(err, -EINVAL, "the name is empty");
    const char *slash = strrchr(filename, '/');
    size_t dir = name[0] == '/' || !slash ? 0 : (size_t)(slash - filename) + 1;
    size_t len = strlen(name);
    if (dir + len >= PATH_MAX)
        return error_set(err, -ENAMETOOLONG, "the name is too long");
    char *joined = malloc(dir + len + 1);
    if (!joined)
        return error_set(err, -ENOMEM, "out of memory");
    memcpy(joined, filename, dir);
    memcpy(joined + dir, name, len + 1);
    *path = joined;
    return 0;
}

/* The real path of the directory that FILENAME lies in. To be freed; NULL with errno. */
static char *real_directory(const char *filename)
{
    const char *slash = strrchr(filename, '/');
    if (!slash)
        return host_file_real_path(".");
    char *dir = strndup(filename, slash == filename ? 1 : (size_t)(slash - filename));
    char *real = dir ? host_file_real_path(dir) : NULL;
    free(dir);
    return real;
}

/* Is PATH (a real path) in DIR (likewise): itself in it, or DEEP below it? */
static bool path_is_in(const char *path, const char *dir, bool deep)
{
    size_t n = strlen(dir);
    if (n == 1)
        n = 0; /* the root: its slash is the one looked for below */
    if (strncmp(path, dir, n) != 0 || path[n] != '/')
        return false;
    return deep || strchr(path + n + 1, '/') == NULL;
}

int node_resolve_allowed(const char *filename, const char *name, const struct open_options *options,
                         char **path, struct error *err)
{
    char *joined = NULL, *real = NULL, *allowed = NULL;
    int ret = node_resolve_name(filename, name, &joined, err);
    *path = NULL;
    if (ret < 0)
        return ret;
    if (options->backing == BACKING_DENY) {
        ret = error_set(err, -EPERM, "the image names '%s', and --backing=deny allows no other file", name);
        goto out;
    }
    real = host_file_real_path(joined);
    if (!real) {
        ret = error_set(err, -errno, "%s: cannot be opened: %s", joined, strerror(errno));
        goto out;
    }
    allowed = options->backing == BACKING_DIR ? host_file_real_path(options->backing_dir)
                                              : real_directory(filename);
    if (!allowed) {
        ret = error_set(err, -errno, "directory of allowed files '%s': %s",
                        options->backing == BACKING_DIR ? options->backing_dir : filename, strerror(errno));
        goto out;
    }
    if (!path_is_in(real, allowed, options->backing == BACKING_DIR)) {
        ret = error_set(err, -EPERM,
                        "the image names '%s', which is not in '%s' (--backing=DIR allows another directory)",
                        real, allowed);
        goto out;
    }
    *path = real;
    real = NULL;
    ret = 0;
out:
    free(joined);
    free(real);
    free(allowed);
    return ret;
}
