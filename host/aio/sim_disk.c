/*
 * The simulated disk: files by name, handles on them, transfers with latency and faults.
 *
 * What always holds: a request touches what a file holds twice, when it begins and when it is complete, and
 * both are one step each. A handle that saw the power go answers everything with -EIO, after the usual time.
 */
#include "host/aio/sim_disk.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/aio/posix_file.h"
#include "host/aio/sim_disk_store.h"
#include "host/runtime/co_lock.h"

/* Locks are kept for the first bytes of a file, which is where everybody who agrees on locks has them. */
#define LOCK_BYTES 512

struct sim_inode {
    struct sim_inode *next;
    char *name;
    ino_t number;
    struct sim_store store;
    struct sim_file *handles;
};

struct sim_file {
    struct posix_file posix; /* fd: the handle's number */
    struct sim_disk *disk;
    struct sim_inode *inode;
    struct sim_file *next;
    bool dead;
    short locks[LOCK_BYTES]; /* F_UNLCK, F_RDLCK or F_WRLCK, plus one; 0: none */
};

struct sim_disk {
    struct sim *sim;
    struct sim_disk_options options;
    struct sim_disk_stats stats;
    struct sim_inode *inodes;
    ino_t inode_count;
    int handle_count;
};

static struct sim_disk *installed;

static struct sim_file *sim_file(struct host_file *file)
{
    return (struct sim_file *)file;
}

static struct sim_inode *find_inode(struct sim_disk *disk, const char *name)
{
    struct sim_inode *inode = disk->inodes;

    while (inode && strcmp(inode->name, name) != 0)
        inode = inode->next;
    return inode;
}

static struct sim_file *find_handle(int number)
{
    for (struct sim_inode *inode = installed ? installed->inodes : NULL; inode; inode = inode->next) {
        for (struct sim_file *file = inode->handles; file; file = file->next) {
            if (file->posix.fd == number)
                return file;
        }
    }
    return NULL;
}

/* ---- time and faults ---- */

static uint64_t between(struct sim_disk *disk, uint64_t min, uint64_t max)
{
    return min + (max > min ? sim_below(disk->sim, SIM_DISK, max - min + 1) : 0);
}

static void coroutine_fn take_time(struct sim_disk *disk, uint64_t min, uint64_t max)
{
    uint64_t ns = between(disk, min, max);

    if (sim_chance(disk->sim, SIM_FAULTS, disk->options.late_ppm))
        ns = disk->options.late_ns;
    disk->stats.in_flight++;
    co_sleep_ns(ns);
    disk->stats.in_flight--;
}

static void coroutine_fn transfer_time(struct sim_disk *disk)
{
    take_time(disk, disk->options.latency_min_ns, disk->options.latency_max_ns);
}

static bool fault(struct sim_disk *disk, uint32_t ppm)
{
    bool yes = sim_chance(disk->sim, SIM_FAULTS, ppm);

    disk->stats.faults += yes;
    return yes;
}

/* ---- transfers ---- */

static uint64_t iov_bytes(const struct iovec *iov, unsigned niov)
{
    uint64_t bytes = 0;

    for (unsigned i = 0; i < niov; i++)
        bytes += iov[i].iov_len;
    return bytes;
}

static void iov_copy(const struct iovec *iov, unsigned niov, uint8_t *buffer, uint64_t bytes, bool to_iov)
{
    for (unsigned i = 0; i < niov && bytes; i++) {
        uint64_t part = iov[i].iov_len < bytes ? iov[i].iov_len : bytes;

        if (to_iov)
            memcpy(iov[i].iov_base, buffer, part);
        else
            memcpy(buffer, iov[i].iov_base, part);
        buffer += part;
        bytes -= part;
    }
}

static int64_t coroutine_fn do_read(struct sim_file *file, struct aio_request *request, uint64_t bytes)
{
    struct sim_disk *disk = file->disk;
    struct sim_store *store = &file->inode->store;
    uint64_t first = request->offset / SIM_SECTOR,
             end = (request->offset + bytes + SIM_SECTOR - 1) / SIM_SECTOR;
    uint64_t done = bytes;
    uint8_t *buffer;

    disk->stats.reads++;
    transfer_time(disk);
    if (file->dead || fault(disk, disk->options.read_error_ppm))
        return -EIO;
    if (bytes > SIM_SECTOR && sim_chance(disk->sim, SIM_FAULTS, disk->options.short_ppm)) {
        disk->stats.shorts++;
        done = (1 + sim_below(disk->sim, SIM_FAULTS, bytes / SIM_SECTOR)) * SIM_SECTOR;
        done = done < bytes ? done : bytes;
    }
    if (request->offset >= store->size)
        return 0;
    if (done > store->size - request->offset)
        done = store->size - request->offset;
    buffer = malloc((end - first) * SIM_SECTOR);
    if (!buffer)
        return -ENOMEM;
    sim_store_read(store, first * SIM_SECTOR, end - first, buffer);
    iov_copy(request->iov, request->niov, buffer + request->offset % SIM_SECTOR, done, true);
    free(buffer);
    return (int64_t)done;
}

/* Grows the file to BYTES if it is smaller. */
static int grow(struct sim_store *store, uint64_t bytes, bool durable)
{
    return bytes > store->size ? sim_store_set_size(store, bytes, durable) : 0;
}

/* A write of bytes that are not whole sectors: at once, when its time has come. */
static int64_t coroutine_fn do_small_write(struct sim_file *file, struct aio_request *request, uint64_t bytes)
{
    struct sim_store *store = &file->inode->store;
    uint64_t first = request->offset / SIM_SECTOR,
             end = (request->offset + bytes + SIM_SECTOR - 1) / SIM_SECTOR;
    uint8_t *buffer;
    uint64_t number;
    int ret;

    transfer_time(file->disk);
    if (file->dead || fault(file->disk, file->disk->options.write_error_ppm))
        return -EIO;
    buffer = malloc((end - first) * SIM_SECTOR);
    if (!buffer)
        return -ENOMEM;
    sim_store_read(store, first * SIM_SECTOR, end - first, buffer);
    iov_copy(request->iov, request->niov, buffer + request->offset % SIM_SECTOR, bytes, false);
    ret = sim_store_begin(store, first * SIM_SECTOR, end - first, buffer, false, &number);
    free(buffer);
    if (ret < 0)
        return ret;
    sim_store_complete(store, number, first * SIM_SECTOR, end - first, end - first, request->fua);
    ret = grow(store, request->offset + bytes, request->fua);
    return ret < 0 ? ret : (int64_t)bytes;
}

static int64_t coroutine_fn do_write(struct sim_file *file, struct aio_request *request, uint64_t bytes)
{
    struct sim_disk *disk = file->disk;
    struct sim_store *store = &file->inode->store;
    uint64_t sectors = bytes / SIM_SECTOR, done = sectors, number;
    uint8_t *buffer;
    int64_t result;
    int ret;

    disk->stats.writes++;
    if (request->offset + bytes > store->size && fault(disk, disk->options.no_space_ppm)) {
        transfer_time(disk);
        return file->dead ? -EIO : -ENOSPC;
    }
    if (request->offset % SIM_SECTOR || bytes % SIM_SECTOR || !sectors)
        return do_small_write(file, request, bytes);
    if (fault(disk, disk->options.write_error_ppm)) {
        done = sim_below(disk->sim, SIM_FAULTS, sectors + 1);
        result = -EIO;
    } else {
        if (sectors > 1 && sim_chance(disk->sim, SIM_FAULTS, disk->options.short_ppm)) {
            disk->stats.shorts++;
            done = 1 + sim_below(disk->sim, SIM_FAULTS, sectors - 1);
        }
        result = (int64_t)(done * SIM_SECTOR);
    }

    buffer = malloc(sectors * SIM_SECTOR);
    if (!buffer)
        return -ENOMEM;
    iov_copy(request->iov, request->niov, buffer, bytes, false);
    ret = file->dead ? -EIO : sim_store_begin(store, request->offset, sectors, buffer, false, &number);
    free(buffer);
    if (ret < 0)
        return ret;
    transfer_time(disk);
    if (file->dead) /* the power loss has decided about it */
        return -EIO;
    sim_store_complete(store, number, request->offset, sectors, done, request->fua && result > 0);
    if (done) {
        ret = grow(store, request->offset + done * SIM_SECTOR, request->fua && result > 0);
        if (ret < 0)
            return ret;
    }
    return result;
}

static int64_t coroutine_fn do_flush(struct sim_file *file)
{
    struct sim_disk *disk = file->disk;
    uint64_t order = file->inode->store.order;

    disk->stats.flushes++;
    take_time(disk, disk->options.flush_min_ns, disk->options.flush_max_ns);
    if (file->dead || fault(disk, disk->options.flush_error_ppm))
        return -EIO;
    if (!disk->options.flush_lies)
        sim_store_flush(&file->inode->store, order);
    return 0;
}

static int64_t coroutine_fn sim_co_submit(struct aio_request *request)
{
    struct sim_file *file = find_handle(request->fd);
    uint64_t bytes = iov_bytes(request->iov, request->niov);

    assert(file);
    if (request->offset > INT64_MAX - bytes || (!bytes && request->op != AIO_OP_FDATASYNC))
        return -EINVAL;
    switch (request->op) {
    case AIO_OP_READ:
        return do_read(file, request, bytes);
    case AIO_OP_WRITE:
        return do_write(file, request, bytes);
    default:
        return do_flush(file);
    }
}

/* ---- space ---- */

/* The whole sectors in [OFFSET, OFFSET + BYTES) by versions, what is left at the edges by a small write. */
static int coroutine_fn zero(struct sim_file *file, uint64_t offset, uint64_t bytes, bool hole)
{
    struct sim_store *store = &file->inode->store;
    uint64_t first = (offset + SIM_SECTOR - 1) / SIM_SECTOR, end = (offset + bytes) / SIM_SECTOR, number;
    static uint8_t zeroes[2 * SIM_SECTOR];
    int ret;

    for (unsigned edge = 0; edge < 2; edge++) {
        uint64_t from = edge ? end * SIM_SECTOR : offset;
        uint64_t to = edge ? offset + bytes : first * SIM_SECTOR;
        struct iovec iov = {zeroes, to > from ? to - from : 0};
        struct aio_request small = {.op = AIO_OP_WRITE, .iov = &iov, .niov = 1, .offset = from};

        if (first >= end) { /* no whole sector at all */
            if (edge)
                break;
            iov.iov_len = bytes;
        }
        /* A hole does not make the file grow. */
        if (hole && from + iov.iov_len > store->size)
            iov.iov_len = from < store->size ? store->size - from : 0;
        if (iov.iov_len && do_small_write(file, &small, iov.iov_len) < 0)
            return -EIO;
    }
    if (first < end) {
        ret = sim_store_begin(store, first * SIM_SECTOR, end - first, NULL, hole, &number);
        if (ret < 0)
            return ret;
        transfer_time(file->disk);
        if (file->dead)
            return -EIO;
        sim_store_complete(store, number, first * SIM_SECTOR, end - first, end - first, false);
    }
    return hole ? 0 : grow(store, offset + bytes, false);
}

static int coroutine_fn sim_co_write_zeroes(struct host_file *file, uint64_t offset, uint64_t bytes,
                                            bool may_unmap)
{
    struct sim_file *f = sim_file(file);

    f->disk->stats.zeroes++;
    if (fault(f->disk, f->disk->options.no_zeroes_ppm))
        return -ENOTSUP;
    if (f->dead || fault(f->disk, f->disk->options.write_error_ppm)) {
        transfer_time(f->disk);
        return -EIO;
    }
    return zero(f, offset, bytes, may_unmap);
}

static int coroutine_fn sim_co_discard(struct host_file *file, uint64_t offset, uint64_t bytes)
{
    struct sim_file *f = sim_file(file);

    f->disk->stats.discards++;
    if (fault(f->disk, f->disk->options.no_zeroes_ppm))
        return -ENOTSUP;
    if (f->dead || fault(f->disk, f->disk->options.write_error_ppm)) {
        transfer_time(f->disk);
        return -EIO;
    }
    return zero(f, offset, bytes, true);
}

static int coroutine_fn sim_co_truncate(struct host_file *file, uint64_t bytes, bool allocate)
{
    struct sim_file *f = sim_file(file);

    if (bytes > INT64_MAX)
        return -EFBIG;
    transfer_time(f->disk);
    if (f->dead)
        return -EIO;
    if (bytes > f->inode->store.size && fault(f->disk, f->disk->options.no_space_ppm))
        return -ENOSPC;
    return sim_store_set_size(&f->inode->store, bytes, false);
}

static int64_t sim_size(struct host_file *file)
{
    return (int64_t)sim_file(file)->inode->store.size;
}

static int coroutine_fn sim_co_extent(struct host_file *file, uint64_t offset, uint64_t *bytes, bool *data)
{
    struct sim_file *f = sim_file(file);
    struct sim_store *store = &f->inode->store;
    uint64_t end;

    transfer_time(f->disk);
    *bytes = 0;
    *data = false;
    if (f->dead)
        return -EIO;
    if (offset >= store->size)
        return 0;
    *data = sim_store_is_data(store, offset / SIM_SECTOR);
    end = sim_store_next_change(store, offset / SIM_SECTOR, (store->size + SIM_SECTOR - 1) / SIM_SECTOR) *
          SIM_SECTOR;
    *bytes = (end < store->size ? end : store->size) - offset;
    return 0;
}

/* ---- locks ---- */

static int sim_lock_test(struct host_file *file, short type, uint64_t start, uint64_t len)
{
    struct sim_file *f = sim_file(file);
    uint64_t end = !len || start + len > LOCK_BYTES ? LOCK_BYTES : start + len;

    for (struct sim_file *other = f->inode->handles; other; other = other->next) {
        for (uint64_t i = start; other != f && !other->dead && i < end; i++) {
            if (other->locks[i] == F_WRLCK + 1 || (other->locks[i] == F_RDLCK + 1 && type == F_WRLCK))
                return -EAGAIN;
        }
    }
    return 0;
}

static int sim_lock(struct host_file *file, short type, uint64_t start, uint64_t len)
{
    struct sim_file *f = sim_file(file);
    uint64_t end = !len || start + len > LOCK_BYTES ? LOCK_BYTES : start + len;
    int ret = type == F_UNLCK ? 0 : sim_lock_test(file, type, start, len);

    for (uint64_t i = start; ret == 0 && i < end; i++)
        f->locks[i] = (short)(type == F_UNLCK ? 0 : type + 1);
    return ret;
}

/* ---- opening and closing ---- */

static void sim_close(struct host_file *file)
{
    struct sim_file *f = sim_file(file), **link = &f->inode->handles;

    while (*link != f)
        link = &(*link)->next;
    *link = f->next;
    free(file->path);
    free(f);
}

static struct host_file_ops sim_ops = {
    .co_write_zeroes = sim_co_write_zeroes,
    .co_discard = sim_co_discard,
    .co_truncate = sim_co_truncate,
    .size = sim_size,
    .co_extent = sim_co_extent,
    .lock = sim_lock,
    .lock_test = sim_lock_test,
    .close = sim_close,
};

static struct sim_inode *make_inode(struct sim_disk *disk, const char *name)
{
    struct sim_inode *inode = calloc(1, sizeof(*inode));

    if (inode)
        inode->name = strdup(name);
    if (!inode || !inode->name) {
        free(inode);
        return NULL;
    }
    inode->number = ++disk->inode_count;
    inode->next = disk->inodes;
    disk->inodes = inode;
    return inode;
}

static int sim_open(const char *path, unsigned flags, enum aio_kind aio, struct host_file **file,
                    struct error *err)
{
    struct sim_disk *disk = installed;
    struct sim_inode *inode = find_inode(disk, path);
    struct sim_file *f;
    struct host_file *h;

    if (!inode && !(flags & HOST_FILE_CREATE))
        return error_set(err, -ENOENT, "%s: cannot be opened: %s", path, strerror(ENOENT));
    if (!inode)
        inode = make_inode(disk, path);
    f = inode ? calloc(1, sizeof(*f)) : NULL;
    if (f)
        f->posix.file.path = strdup(path);
    if (!f || !f->posix.file.path) {
        free(f);
        return error_set(err, -ENOMEM, "%s: no memory", path);
    }
    h = &f->posix.file;
    f->posix.fd = disk->handle_count++;
    f->posix.co_submit = sim_co_submit;
    f->disk = disk;
    f->inode = inode;
    h->ops = &sim_ops;
    h->device = 0x51a;
    h->inode = inode->number;
    h->mode = S_IFREG | 0644;
    h->read_only = flags & HOST_FILE_READ_ONLY;
    h->direct = flags & HOST_FILE_DIRECT;
    h->aio = aio == AIO_DEFAULT ? AIO_NATIVE : aio;
    h->request_alignment = h->memory_alignment = 1;
    if (h->direct)
        h->request_alignment = h->memory_alignment =
            disk->options.request_alignment ? disk->options.request_alignment : SIM_SECTOR;
    h->max_iov = 1024;
    h->max_transfer = 1u << 30;
    f->next = inode->handles;
    inode->handles = f;
    if ((flags & HOST_FILE_CREATE) && inode->store.size) {
        int ret = sim_lock_test(h, F_WRLCK, 0, 0);

        if (ret == 0)
            ret = sim_store_set_size(&inode->store, 0, true);
        else
            error_set(err, -EBUSY, "%s: is in use by another process (which holds a lock on it)", path);
        if (ret < 0) {
            sim_close(h);
            return ret == -EAGAIN ? -EBUSY : ret;
        }
    }
    *file = h;
    return 0;
}

/* ---- the disk ---- */

struct sim_disk *sim_disk_create(struct sim *sim, const struct sim_disk_options *options)
{
    static const struct sim_disk_options usual = {
        .latency_min_ns = 20000, .latency_max_ns = 200000, .flush_min_ns = 100000, .flush_max_ns = 1000000};
    struct sim_disk *disk = calloc(1, sizeof(*disk));

    if (!disk)
        return NULL;
    disk->sim = sim;
    disk->options = options ? *options : usual;
    disk->handle_count = 1;
    sim_ops.co_preadv = posix_file_ops.co_preadv;
    sim_ops.co_pwritev = posix_file_ops.co_pwritev;
    sim_ops.co_fdatasync = posix_file_ops.co_fdatasync;
    return disk;
}

void sim_disk_destroy(struct sim_disk *disk)
{
    while (disk->inodes) {
        struct sim_inode *inode = disk->inodes;

        assert(!inode->handles);
        disk->inodes = inode->next;
        sim_store_clear(&inode->store);
        free(inode->name);
        free(inode);
    }
    if (installed == disk)
        sim_disk_install(NULL);
    free(disk);
}

void sim_disk_install(struct sim_disk *disk)
{
    installed = disk;
    host_file_set_opener(disk ? sim_open : NULL);
}

struct sim_disk_options *sim_disk_options(struct sim_disk *disk)
{
    return &disk->options;
}

void sim_disk_power_loss(struct sim_disk *disk)
{
    enum sim_loss how = (enum sim_loss)sim_below(disk->sim, SIM_FAULTS, SIM_LOSSES);

    disk->stats.power_losses++;
    for (struct sim_inode *inode = disk->inodes; inode; inode = inode->next) {
        for (struct sim_file *file = inode->handles; file; file = file->next)
            file->dead = true;
        /* Short of memory, something beyond the end of a file may show up in it: no simulation gets there. */
        if (sim_store_lose(&inode->store, disk->sim, how) < 0)
            abort();
    }
}

int sim_disk_write_file(struct sim_disk *disk, const char *name, const void *data, uint64_t bytes)
{
    struct sim_inode *inode = find_inode(disk, name);
    uint64_t sectors = (bytes + SIM_SECTOR - 1) / SIM_SECTOR, number;
    uint8_t *whole;
    int ret;

    if (!inode)
        inode = make_inode(disk, name);
    whole = inode ? calloc(sectors ? sectors : 1, SIM_SECTOR) : NULL;
    if (!whole)
        return -ENOMEM;
    if (bytes)
        memcpy(whole, data, bytes);
    sim_store_clear(&inode->store);
    ret = sim_store_begin(&inode->store, 0, sectors, whole, false, &number);
    free(whole);
    if (ret < 0)
        return ret;
    sim_store_complete(&inode->store, number, 0, sectors, sectors, true);
    return sim_store_set_size(&inode->store, bytes, true);
}

int sim_disk_peek(struct sim_disk *disk, const char *name, uint64_t offset, void *data, uint64_t bytes)
{
    struct sim_inode *inode = find_inode(disk, name);
    uint8_t *p = data, sector[SIM_SECTOR];

    if (!inode)
        return -ENOENT;
    while (bytes) {
        uint64_t in = offset % SIM_SECTOR, part = SIM_SECTOR - in < bytes ? SIM_SECTOR - in : bytes;

        if (offset < inode->store.size)
            sim_store_read(&inode->store, offset - in, 1, sector);
        else
            memset(sector, 0, sizeof(sector));
        memcpy(p, sector + in, part);
        p += part;
        offset += part;
        bytes -= part;
    }
    return 0;
}

int64_t sim_disk_file_size(struct sim_disk *disk, const char *name)
{
    struct sim_inode *inode = find_inode(disk, name);

    return inode ? (int64_t)inode->store.size : -ENOENT;
}

int sim_disk_load(struct sim_disk *disk, const char *name, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC), ret = 0;
    uint8_t buffer[SIM_CHUNK_BYTES];
    struct sim_inode *inode;
    struct stat st;
    off_t at = 0;

    if (fd < 0)
        return -errno;
    if (fstat(fd, &st) < 0) {
        ret = -errno;
        goto out;
    }
    ret = sim_disk_write_file(disk, name, NULL, 0);
    inode = find_inode(disk, name);
    while (ret == 0 && at < st.st_size) {
        uint64_t sectors, number;
        ssize_t n;

        at = lseek(fd, at, SEEK_DATA);
        if (at < 0)
            break; /* a hole up to the end */
        at -= at % (off_t)sizeof(buffer);
        n = pread(fd, buffer, sizeof(buffer), at);
        if (n <= 0) {
            ret = n < 0 ? -errno : 0;
            break;
        }
        sectors = ((uint64_t)n + SIM_SECTOR - 1) / SIM_SECTOR;
        memset(buffer + n, 0, sizeof(buffer) - (size_t)n);
        ret = sim_store_begin(&inode->store, (uint64_t)at, sectors, buffer, false, &number);
        if (ret == 0)
            sim_store_complete(&inode->store, number, (uint64_t)at, sectors, sectors, true);
        at += (off_t)sizeof(buffer);
    }
    if (ret == 0)
        ret = sim_store_set_size(&inode->store, (uint64_t)st.st_size, true);
out:
    close(fd);
    return ret;
}

int sim_disk_save(struct sim_disk *disk, const char *name, const char *path)
{
    struct sim_inode *inode = find_inode(disk, name);
    uint8_t buffer[SIM_CHUNK_BYTES];
    int fd, ret = 0;

    if (!inode)
        return -ENOENT;
    fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (fd < 0)
        return -errno;
    if (ftruncate(fd, (off_t)inode->store.size) < 0)
        ret = -errno;
    for (uint64_t at = 0; ret == 0 && at < inode->store.size; at += sizeof(buffer)) {
        uint64_t bytes = inode->store.size - at < sizeof(buffer) ? inode->store.size - at : sizeof(buffer);
        uint64_t first = at / SIM_SECTOR, end = first + SIM_CHUNK_SECTORS;

        if (!sim_store_is_data(&inode->store, first) &&
            sim_store_next_change(&inode->store, first, end) == end)
            continue;
        sim_store_read(&inode->store, at, SIM_CHUNK_SECTORS, buffer);
        if (pwrite(fd, buffer, bytes, (off_t)at) != (ssize_t)bytes)
            ret = -EIO;
    }
    if (close(fd) < 0 && ret == 0)
        ret = -errno;
    return ret;
}

void sim_disk_stats(const struct sim_disk *disk, struct sim_disk_stats *stats)
{
    *stats = disk->stats;
    for (const struct sim_inode *inode = disk->inodes; inode; inode = inode->next)
        stats->volatile_sectors += inode->store.versions;
}
