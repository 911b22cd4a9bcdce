/*
 * Encryption of guest data in a LUKS (version 1) container: the header lies in the image, the payload is the
 * image's data clusters, each sector of 512 bytes with an IV from its place in the file (checklist N). And
 * the AES encryption of old, which has no header, and IVs from the guest's sectors.
 *
 * What always holds: no offset or length from the header is used before it was bounded by the header's own
 * area; guests never see ciphertext and the file never sees plaintext: both ways go through a buffer of our
 * own; keys are wiped before their memory is given back. (Making a container: luks_create.c; the ciphers:
 * luks_cipher.c.)
 */
#include "host/qcow2/luks.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/aio/aio.h"

#define HANDLES        8u
#define BOUNCE_BYTES   (512u << 10)
#define ITERATIONS_MAX (1u << 26) /* a minute or so: more is a way to keep us busy */
#define SECRET_MAX     4096u
#define SECRET_WAIT_MS 60000 /* for whoever writes it into a pipe: a program that asks for it, for one */
#define AES_KEY_BYTES  16u

struct qcow2_crypto {
    struct luks_header header; /* as in the file; strings terminated */
    struct luks_cipher cipher;
    bool unlocked, guest_sectors; /* AES of old: the IV is the guest's sector */
    uint8_t key[LUKS_KEY_MAX];
    struct spinlock guard;
    struct luks_handle *handles[HANDLES];
    unsigned nb_handles;
};

/* ---- secrets ---- */

/* As read(2), but a pipe that somebody still holds the other end of is waited for. */
static ssize_t read_some(int fd, uint8_t *to, size_t bytes)
{
    struct pollfd wait = {.fd = fd, .events = POLLIN};
    ssize_t n;
    do {
        n = read(fd, to, bytes);
    } while (n < 0 && (errno == EINTR || (errno == EAGAIN && poll(&wait, 1, SECRET_WAIT_MS) == 1)));
    return n;
}

/* The passphrase that was read last. It is asked for again by the image below, by an image that was just
 * made, and when another process has had the image; but a pipe gives it once, and a process that has confined
 * itself opens no file any more. Kept until the process ends. */
static struct {
    pthread_mutex_t lock;
    char *path;
    bool once; /* came from where nothing is left to read */
    uint8_t secret[SECRET_MAX];
    size_t bytes;
} last = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void remember(const char *path, const uint8_t *secret, size_t bytes, bool once)
{
    free(last.path);
    last.path = strdup(path);
    last.once = once;
    memcpy(last.secret, secret, bytes);
    last.bytes = bytes;
}

/* BUF has SECRET_MAX + 1 bytes. Under the lock of what was read last. */
static int read_secret(const char *path, uint8_t *buf, size_t *bytes, struct error *err)
{
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    ssize_t n = fd >= 0 ? fstat(fd, &st) : -1;
    *bytes = 0;
    while (n >= 0 && *bytes <= SECRET_MAX && (n = read_some(fd, buf + *bytes, SECRET_MAX + 1 - *bytes)) > 0)
        *bytes += (size_t)n;
    int ret = 0;
    if (n < 0)
        ret = error_set(err, -errno, "secret file '%s': %s", path, strerror(errno));
    else if (*bytes > SECRET_MAX)
        ret = error_set(err, -EINVAL, "secret file '%s' has more than %u bytes", path, SECRET_MAX);
    else if (*bytes == 0)
        ret = error_set(err, -EINVAL, "secret file '%s' is empty", path);
    else
        remember(path, buf, *bytes, !S_ISREG(st.st_mode));
    if (fd >= 0)
        close(fd);
    return ret;
}

/* The same; what can't be opened any more is taken as it was. */
static int read_or_recall(const char *path, uint8_t *buf, size_t *bytes, struct error *err)
{
    struct error failure = {""};
    bool known = last.path && strcmp(last.path, path) == 0;
    int ret = known && last.once ? -ESPIPE : read_secret(path, buf, bytes, &failure);
    if (ret < 0 && ret != -EINVAL && known) {
        memcpy(buf, last.secret, last.bytes);
        *bytes = last.bytes;
        return 0;
    }
    return ret < 0 ? error_set(err, ret, "%s", failure.text) : 0;
}

int luks_read_secret(const char *path, uint8_t **secret, size_t *bytes, struct error *err)
{
    *secret = NULL;
    if (!path) {
        error_set(err, -EACCES,
                  "the image is encrypted: a file with the passphrase is needed (--secret-file)");
        return -EACCES;
    }
    uint8_t *buf = malloc(SECRET_MAX + 1);
    if (!buf) {
        error_set(err, -ENOMEM, "out of memory");
        return -ENOMEM;
    }
    pthread_mutex_lock(&last.lock);
    int ret = read_or_recall(path, buf, bytes, err);
    pthread_mutex_unlock(&last.lock);
    if (ret < 0) {
        explicit_bzero(buf, SECRET_MAX + 1);
        free(buf);
        return ret;
    }
    *secret = buf;
    return 0;
}

/* ---- opening ---- */

struct unlocking {
    struct qcow2_crypto *crypto;
    const uint8_t *area; /* the whole LUKS header with its key material */
    const uint8_t *secret;
    size_t secret_bytes;
};

/* Tries one key slot; 1: it does not fit. */
static int try_slot(struct unlocking *u, const struct luks_slot *slot)
{
    struct qcow2_crypto *crypto = u->crypto;
    const struct luks_cipher *c = &crypto->cipher;
    uint8_t slot_key[LUKS_KEY_MAX], digest[LUKS_DIGEST];
    size_t bytes = (size_t)c->key_bytes * LUKS_STRIPES, rounded = (bytes + 511) & ~(size_t)511;
    uint8_t *material = malloc(rounded);
    struct luks_handle *h = NULL;
    int ret = material ? luks_pbkdf2(c->hash, u->secret, u->secret_bytes, slot->salt,
                                     be32_get(slot->iterations), slot_key, c->key_bytes)
                       : -ENOMEM;
    if (ret == 0)
        h = luks_handle_new(c, slot_key);
    if (ret == 0 && !h)
        ret = -EIO;
    if (ret == 0) {
        memcpy(material, u->area + (size_t)be32_get(slot->material_sector) * 512, rounded);
        ret = luks_crypt(c, h, false, 0, material, rounded);
    }
    if (ret == 0) {
        luks_af_merge(c->hash, material, c->key_bytes, LUKS_STRIPES, crypto->key);
        ret = luks_pbkdf2(c->hash, crypto->key, c->key_bytes, crypto->header.digest_salt,
                          be32_get(crypto->header.digest_iterations), digest, sizeof(digest));
    }
    if (ret == 0)
        ret = memcmp(digest, crypto->header.digest, sizeof(digest)) != 0;
    luks_handle_free(h);
    if (material)
        explicit_bzero(material, rounded);
    free(material);
    explicit_bzero(slot_key, sizeof(slot_key));
    return ret;
}

static int unlock_job(void *opaque)
{
    struct unlocking *u = opaque;
    int ret = 1;
    for (unsigned i = 0; i < LUKS_SLOTS && ret == 1; i++) {
        if (be32_get(u->crypto->header.slots[i].active) == LUKS_SLOT_ACTIVE)
            ret = try_slot(u, &u->crypto->header.slots[i]);
    }
    return ret;
}

static int check_slot(const struct qcow2_crypto *crypto, unsigned i, uint64_t area_bytes, struct error *err)
{
    const struct luks_slot *slot = &crypto->header.slots[i];
    uint32_t active = be32_get(slot->active), stripes = be32_get(slot->stripes);
    uint64_t start = be32_get(slot->material_sector) * 512ull;
    uint64_t bytes = ((uint64_t)crypto->cipher.key_bytes * LUKS_STRIPES + 511) & ~511ull;
    if (active != LUKS_SLOT_ACTIVE && active != LUKS_SLOT_DISABLED)
        return error_set(err, -EINVAL, "LUKS key slot %u: state is 0x%08x, neither active nor disabled", i,
                         active);
    if (active == LUKS_SLOT_DISABLED)
        return 0;
    if (stripes != LUKS_STRIPES)
        return error_set(err, -EINVAL, "LUKS key slot %u: stripes is %u, 4000 is possible", i, stripes);
    if (start < sizeof(struct luks_header) || start > area_bytes || bytes > area_bytes - start)
        return error_set(err, -EINVAL,
                         "LUKS key slot %u: key_material_offset is %llu: outside of the header's %llu bytes",
                         i, (unsigned long long)start, (unsigned long long)area_bytes);
    uint32_t iterations = be32_get(slot->iterations);
    if (iterations == 0 || iterations > ITERATIONS_MAX)
        return error_set(err, -EINVAL, "LUKS key slot %u: iterations is %u: 1 to %u are possible", i,
                         iterations, ITERATIONS_MAX);
    return 0;
}

static int check_header(struct qcow2_crypto *crypto, uint64_t area_bytes, struct error *err)
{
    struct luks_header *h = &crypto->header;
    static const uint8_t magic[6] = LUKS_MAGIC;
    if (memcmp(h->magic, magic, sizeof(magic)) != 0)
        return error_set(err, -EINVAL, "the encryption header has no LUKS magic");
    if (be16_get(h->version) != 1)
        return error_set(err, -ENOTSUP, "LUKS version is %u: only 1 is known", be16_get(h->version));
    h->cipher_name[31] = h->cipher_mode[31] = h->hash[31] = h->uuid[39] = '\0';
    uint32_t key_bytes = be32_get(h->key_bytes), iterations = be32_get(h->digest_iterations);
    if (key_bytes == 0 || key_bytes > LUKS_KEY_MAX)
        return error_set(err, -EINVAL, "LUKS key_bytes is %u: 1 to %u are possible", key_bytes, LUKS_KEY_MAX);
    if (luks_cipher_parse(h->cipher_name, h->cipher_mode, h->hash, key_bytes, &crypto->cipher) < 0)
        return error_set(err, -ENOTSUP, "LUKS cipher %s-%s with %u bytes of key and hash %s is not supported",
                         h->cipher_name, h->cipher_mode, key_bytes, h->hash);
    if (iterations == 0 || iterations > ITERATIONS_MAX)
        return error_set(err, -EINVAL, "LUKS mk_digest_iterations is %u: 1 to %u are possible", iterations,
                         ITERATIONS_MAX);
    if (be32_get(h->payload_sector) * 512ull < sizeof(*h))
        return error_set(err, -EINVAL, "LUKS payload_offset is %llu: it lies on the header",
                         be32_get(h->payload_sector) * 512ull);
    int ret = 0;
    for (unsigned i = 0; i < LUKS_SLOTS && ret == 0; i++)
        ret = check_slot(crypto, i, area_bytes, err);
    return ret;
}

/* AES of old: the passphrase is the key, cut or filled up to 16 bytes. */
static int open_aes(struct qcow2 *s, const struct open_options *options, struct error *err)
{
    uint8_t *secret = NULL;
    size_t bytes = 0;
    luks_init();
    struct qcow2_crypto *crypto = calloc(1, sizeof(*crypto));
    if (!crypto)
        return error_set(err, -ENOMEM, "out of memory");
    s->crypto = crypto;
    crypto->guest_sectors = true;
    int ret = luks_cipher_parse("aes", "cbc-plain64", "sha256", AES_KEY_BYTES, &crypto->cipher);
    if (ret < 0 || options->no_io || options->check_only)
        return ret;
    ret = luks_read_secret(options->secret_file, &secret, &bytes, err);
    if (ret < 0)
        return ret;
    memcpy(crypto->key, secret, min_u64(bytes, AES_KEY_BYTES));
    explicit_bzero(secret, bytes);
    free(secret);
    crypto->unlocked = true;
    return 0;
}

int coroutine_fn qcow2_crypto_co_open(struct qcow2 *s, const struct open_options *options, struct error *err)
{
    if (s->crypt_method == QCOW2_CRYPT_AES)
        return open_aes(s, options, err);
    const struct qcow2_ext *ext = qcow2_find_ext(s, QCOW2_EXT_CRYPTO);
    struct qcow2_crypto_extension place;
    if (!ext || ext->length != sizeof(place))
        return error_set(err, -EINVAL, "header extension full disk encryption has length %u: 16 is right",
                         ext ? ext->length : 0);
    memcpy(&place, ext->data, sizeof(place));
    uint64_t offset = be64_get(place.offset), bytes = be64_get(place.length);
    if ((offset & (s->cluster_bytes - 1)) || offset < s->cluster_bytes || offset > s->file_bytes)
        return error_set(err, -EINVAL,
                         "header extension full disk encryption: offset is %llu, which is not possible",
                         (unsigned long long)offset);
    if (bytes < sizeof(struct luks_header) || bytes > LUKS_AREA_MAX || bytes > s->file_bytes - offset)
        return error_set(err, -EINVAL,
                         "header extension full disk encryption: length is %llu, which is not possible",
                         (unsigned long long)bytes);
    luks_init();
    struct qcow2_crypto *crypto = calloc(1, sizeof(*crypto));
    uint8_t *area = node_buffer(s->node->file, (bytes + 511) & ~511ull);
    struct unlocking unlocking = {.crypto = crypto, .area = area};
    uint8_t *secret = NULL;
    s->crypto = crypto; /* freed with the rest */
    int ret = crypto && area ? node_co_pread(s->node->file, offset, area, bytes) : -ENOMEM;
    if (ret < 0) {
        error_set(err, ret, "reading the encryption header: %s", strerror(-ret));
        goto out;
    }
    memcpy(&crypto->header, area, sizeof(crypto->header));
    ret = check_header(crypto, bytes, err);
    if (ret < 0 || options->no_io || options->check_only)
        goto out;
    ret = luks_read_secret(options->secret_file, &secret, &unlocking.secret_bytes, err);
    if (ret < 0)
        goto out;
    unlocking.secret = secret;
    ret = threads_co_call(unlock_job, &unlocking);
    if (ret == 1)
        ret = error_set(err, -EACCES, "the passphrase opens none of the image's key slots");
    else if (ret < 0)
        error_set(err, ret, "unlocking: %s", strerror(-ret));
    crypto->unlocked = ret == 0;
out:
    if (secret)
        explicit_bzero(secret, unlocking.secret_bytes);
    free(secret);
    free(area);
    return ret;
}

void qcow2_crypto_close(struct qcow2 *s)
{
    struct qcow2_crypto *crypto = s->crypto;
    if (!crypto)
        return;
    for (unsigned i = 0; i < crypto->nb_handles; i++)
        luks_handle_free(crypto->handles[i]);
    explicit_bzero(crypto, sizeof(*crypto));
    free(crypto);
    s->crypto = NULL;
}

/* "cbc-essiv:sha256" is told in three parts. */
void qcow2_crypto_info(const struct qcow2 *s, struct qcow2_info *info)
{
    const struct qcow2_crypto *crypto = s->crypto;
    if (!crypto || crypto->guest_sectors)
        return;
    const struct luks_header *h = &crypto->header;
    static const char *const ivs[] = {"plain64", "plain", "essiv"};
    info->luks.cipher_name = h->cipher_name;
    info->luks.cipher_mode = crypto->cipher.mode->name;
    info->luks.cipher_bits = crypto->cipher.key_bytes * 8 / crypto->cipher.mode->keys;
    info->luks.hash = h->hash;
    info->luks.ivgen = ivs[crypto->cipher.iv];
    info->luks.ivgen_hash = crypto->cipher.iv == LUKS_IV_ESSIV ? strchr(h->cipher_mode, ':') + 1 : NULL;
    info->luks.uuid = h->uuid;
    info->luks.payload_offset = be32_get(h->payload_sector) * 512ull;
    info->luks.master_key_iterations = be32_get(h->digest_iterations);
    for (unsigned i = 0; i < LUKS_SLOTS; i++) {
        info->luks.slots[i] =
            (struct qcow2_luks_slot){.active = be32_get(h->slots[i].active) == LUKS_SLOT_ACTIVE,
                                     .iterations = be32_get(h->slots[i].iterations),
                                     .stripes = be32_get(h->slots[i].stripes),
                                     .key_offset = be32_get(h->slots[i].material_sector) * 512ull};
    }
}

/* ---- data ---- */

static struct luks_handle *get_handle(struct qcow2_crypto *crypto)
{
    struct luks_handle *h = NULL;
    spin_lock(&crypto->guard);
    if (crypto->nb_handles)
        h = crypto->handles[--crypto->nb_handles];
    spin_unlock(&crypto->guard);
    return h ? h : luks_handle_new(&crypto->cipher, crypto->key);
}

static void put_handle(struct qcow2_crypto *crypto, struct luks_handle *h)
{
    spin_lock(&crypto->guard);
    bool keep = h && crypto->nb_handles < HANDLES;
    if (keep)
        crypto->handles[crypto->nb_handles++] = h;
    spin_unlock(&crypto->guard);
    if (!keep)
        luks_handle_free(h);
}

static int crypt_buffer(struct qcow2_crypto *crypto, bool encrypt, uint64_t guest, uint64_t host,
                        uint8_t *buf, uint64_t bytes)
{
    uint64_t sector = (crypto->guest_sectors ? guest : host) / 512;
    struct luks_handle *h = get_handle(crypto);
    int ret = h ? luks_crypt(&crypto->cipher, h, encrypt, sector, buf, bytes) : -ENOMEM;
    put_handle(crypto, h);
    return ret;
}

int coroutine_fn qcow2_crypto_co_read(struct qcow2 *s, uint64_t guest, uint64_t host, uint64_t bytes,
                                      struct sg sg)
{
    if (!s->crypto->unlocked)
        return -EACCES;
    uint64_t most = min_u64(bytes, BOUNCE_BYTES);
    uint8_t *buf = node_buffer(s->data, most);
    int ret = buf ? 0 : -ENOMEM;
    while (bytes && ret == 0) {
        uint64_t n = min_u64(bytes, most);
        ret = node_co_pread(s->data, host, buf, n);
        if (ret == 0)
            ret = crypt_buffer(s->crypto, false, guest, host, buf, n);
        if (ret == 0)
            sg_copy_in(sg, buf, n);
        guest += n;
        host += n;
        bytes -= n;
        sg = sg_advance(sg, n);
    }
    free(buf);
    return ret;
}

int coroutine_fn qcow2_crypto_co_write(struct qcow2 *s, uint64_t guest, uint64_t host, uint64_t bytes,
                                       struct sg sg)
{
    if (!s->crypto->unlocked)
        return -EACCES;
    uint64_t most = min_u64(bytes, BOUNCE_BYTES);
    uint8_t *buf = node_buffer(s->data, most);
    int ret = buf ? 0 : -ENOMEM;
    while (bytes && ret == 0) {
        uint64_t n = min_u64(bytes, most);
        sg_copy_out(sg, buf, n);
        ret = crypt_buffer(s->crypto, true, guest, host, buf, n);
        if (ret == 0)
            ret = node_co_pwrite(s->data, host, buf, n, 0);
        guest += n;
        host += n;
        bytes -= n;
        sg = sg_advance(sg, n);
    }
    free(buf);
    return ret;
}
