/*
 * The ciphers, modes, IVs and hashes of LUKS containers, by their names in the header: all that QEMU 7.2 can
 * write, and no more.
 *
 * libgcrypt does the work, for its speed. It has no Twofish with a key of 192 bits: nettle does that one, in
 * XTS mode, which is the only one that QEMU can write with keys of 192 bits.
 *
 * What always holds: a handle is used by one at a time; what was derived from a key is wiped.
 */
#include <errno.h>
#include <gcrypt.h>
#include <nettle/nettle-meta.h>
#include <nettle/xts.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/luks.h"

static pthread_once_t once = PTHREAD_ONCE_INIT;

static void start_gcrypt(void)
{
    gcry_check_version(NULL);
    gcry_control(GCRYCTL_DISABLE_SECMEM, 0);
    gcry_control(GCRYCTL_INITIALIZATION_FINISHED, 0);
}

void luks_init(void)
{
    pthread_once(&once, start_gcrypt);
}

static const struct {
    const char *name;
    unsigned key_bytes, block_bytes; /* of one key */
    int algo;                        /* gcrypt's number, or 0: what it lacks */
    const struct nettle_cipher *nettle;
} ciphers[] = {
    {"aes", 16, 16, GCRY_CIPHER_AES128, NULL},         {"aes", 24, 16, GCRY_CIPHER_AES192, NULL},
    {"aes", 32, 16, GCRY_CIPHER_AES256, NULL},         {"serpent", 16, 16, GCRY_CIPHER_SERPENT128, NULL},
    {"serpent", 24, 16, GCRY_CIPHER_SERPENT192, NULL}, {"serpent", 32, 16, GCRY_CIPHER_SERPENT256, NULL},
    {"twofish", 16, 16, GCRY_CIPHER_TWOFISH128, NULL}, {"twofish", 24, 16, 0, &nettle_twofish192},
    {"twofish", 32, 16, GCRY_CIPHER_TWOFISH, NULL},    {"cast5", 16, 8, GCRY_CIPHER_CAST5, NULL},
};

static const struct luks_mode modes[] = {
    {"xts", GCRY_CIPHER_MODE_XTS, 2},
    {"cbc", GCRY_CIPHER_MODE_CBC, 1},
    {"ctr", GCRY_CIPHER_MODE_CTR, 1},
    {"ecb", GCRY_CIPHER_MODE_ECB, 1},
};

static const struct {
    const char *name;
    int algo;
} hashes[] = {{"md5", GCRY_MD_MD5},         {"sha1", GCRY_MD_SHA1},     {"sha224", GCRY_MD_SHA224},
              {"sha256", GCRY_MD_SHA256},   {"sha384", GCRY_MD_SHA384}, {"sha512", GCRY_MD_SHA512},
              {"ripemd160", GCRY_MD_RMD160}};

static int find_hash(const char *name)
{
    for (size_t i = 0; i < sizeof(hashes) / sizeof(hashes[0]); i++) {
        if (strcmp(hashes[i].name, name) == 0)
            return hashes[i].algo;
    }
    return 0;
}

/* What follows the mode: "plain", "plain64" or "essiv", and a hash, as in "essiv:sha256", which only essiv
 * makes use of. */
static int parse_iv(const char *iv, struct luks_cipher *c)
{
    static const char *const names[] = {
        [LUKS_IV_PLAIN64] = "plain64", [LUKS_IV_PLAIN] = "plain", [LUKS_IV_ESSIV] = "essiv"};
    size_t bytes = strcspn(iv, ":");
    unsigned i = 0;
    while (i < sizeof(names) / sizeof(names[0]) &&
           (strlen(names[i]) != bytes || strncmp(names[i], iv, bytes) != 0))
        i++;
    if (i == sizeof(names) / sizeof(names[0]))
        return -ENOTSUP;
    c->iv = (enum luks_iv)i;
    c->iv_hash = iv[bytes] ? find_hash(iv + bytes + 1) : 0;
    return (iv[bytes] || c->iv == LUKS_IV_ESSIV) && !c->iv_hash ? -ENOTSUP : 0;
}

int luks_cipher_parse(const char *name, const char *mode, const char *hash, unsigned key_bytes,
                      struct luks_cipher *c)
{
    memset(c, 0, sizeof(*c));
    size_t mode_bytes = strcspn(mode, "-");
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        if (strlen(modes[i].name) == mode_bytes && strncmp(modes[i].name, mode, mode_bytes) == 0)
            c->mode = &modes[i];
    }
    if (!c->mode || !mode[mode_bytes] || key_bytes % c->mode->keys || parse_iv(mode + mode_bytes + 1, c) < 0)
        return -ENOTSUP;
    c->key_bytes = key_bytes;
    c->hash = find_hash(hash);
    unsigned iv_key_bytes = c->iv == LUKS_IV_ESSIV ? gcry_md_get_algo_dlen(c->iv_hash) : 0;
    for (size_t i = 0; i < sizeof(ciphers) / sizeof(ciphers[0]); i++) {
        if (strcmp(ciphers[i].name, name) != 0)
            continue;
        if (ciphers[i].key_bytes == key_bytes / c->mode->keys) {
            c->algo = ciphers[i].algo;
            c->nettle = ciphers[i].nettle;
            c->block_bytes = ciphers[i].block_bytes;
        }
        if (ciphers[i].key_bytes == iv_key_bytes)
            c->iv_algo = ciphers[i].algo;
    }
    bool xts = c->mode->algo == GCRY_CIPHER_MODE_XTS;
    return (c->algo || (c->nettle && xts)) && (!xts || c->block_bytes == XTS_BLOCK_SIZE) && c->hash &&
                   (c->iv != LUKS_IV_ESSIV || c->iv_algo)
               ? 0
               : -ENOTSUP;
}

/* ---- data ---- */

/* Of nettle's: the contexts of both keys, one behind the other. */
static uint8_t *nettle_keys(const struct nettle_cipher *cipher, const uint8_t *key)
{
    uint8_t *contexts = calloc(2, cipher->context_size);
    if (contexts) {
        cipher->set_encrypt_key(contexts, key);
        cipher->set_encrypt_key(contexts + cipher->context_size, key + cipher->key_size);
    }
    return contexts;
}

struct luks_handle *luks_handle_new(const struct luks_cipher *c, const uint8_t *key)
{
    struct luks_handle *h = calloc(1, sizeof(*h));
    if (!h)
        return NULL;
    h->nettle_bytes = c->nettle ? 2 * c->nettle->context_size : 0;
    h->nettle = c->nettle ? nettle_keys(c->nettle, key) : NULL;
    if (c->nettle ? !h->nettle
                  : gcry_cipher_open(&h->data, c->algo, c->mode->algo, 0) ||
                        gcry_cipher_setkey(h->data, key, c->key_bytes))
        goto fail;
    if (c->iv == LUKS_IV_ESSIV) {
        uint8_t salt[64];
        gcry_md_hash_buffer(c->iv_hash, salt, key, c->key_bytes);
        bool bad = gcry_cipher_open(&h->essiv, c->iv_algo, GCRY_CIPHER_MODE_ECB, 0) ||
                   gcry_cipher_setkey(h->essiv, salt, gcry_md_get_algo_dlen(c->iv_hash));
        explicit_bzero(salt, sizeof(salt));
        if (bad)
            goto fail;
    }
    return h;
fail:
    luks_handle_free(h);
    return NULL;
}

void luks_handle_free(struct luks_handle *h)
{
    if (!h)
        return;
    gcry_cipher_close(h->data);
    gcry_cipher_close(h->essiv);
    if (h->nettle)
        explicit_bzero(h->nettle, h->nettle_bytes);
    free(h->nettle);
    free(h);
}

static int gcrypt_sector(const struct luks_cipher *c, struct luks_handle *h, bool encrypt, const uint8_t *iv,
                         uint8_t *data)
{
    bool bad = c->mode->algo == GCRY_CIPHER_MODE_CTR   ? gcry_cipher_setctr(h->data, iv, c->block_bytes)
               : c->mode->algo == GCRY_CIPHER_MODE_ECB ? false
                                                       : gcry_cipher_setiv(h->data, iv, c->block_bytes);
    bad = bad || (encrypt ? gcry_cipher_encrypt(h->data, data, 512, NULL, 0)
                          : gcry_cipher_decrypt(h->data, data, 512, NULL, 0));
    return bad ? -EIO : 0;
}

int luks_crypt(const struct luks_cipher *c, struct luks_handle *h, bool encrypt, uint64_t sector,
               uint8_t *data, uint64_t bytes)
{
    int ret = 0;
    for (; bytes && ret == 0; bytes -= 512, data += 512, sector++) {
        uint8_t iv[16] = {0};
        for (unsigned i = 0; i < (c->iv == LUKS_IV_PLAIN ? 4u : 8u); i++)
            iv[i] = (uint8_t)(sector >> (8 * i));
        if (c->iv == LUKS_IV_ESSIV && gcry_cipher_encrypt(h->essiv, iv, c->block_bytes, NULL, 0))
            return -EIO;
        const struct nettle_cipher *n = c->nettle;
        if (!n)
            ret = gcrypt_sector(c, h, encrypt, iv, data);
        else if (encrypt)
            xts_encrypt_message(h->nettle, h->nettle + n->context_size, n->encrypt, iv, 512, data, data);
        else
            xts_decrypt_message(h->nettle, h->nettle + n->context_size, n->decrypt, n->encrypt, iv, 512, data,
                                data);
    }
    return ret;
}

/* ---- anti-forensic split, key derivation ---- */

/* Hashes BLOCK in pieces of the digest's length, each with its number. */
void luks_diffuse(int hash, uint8_t *block, unsigned bytes)
{
    unsigned digest_bytes = gcry_md_get_algo_dlen(hash);
    for (unsigned at = 0, i = 0; at < bytes; at += digest_bytes, i++) {
        unsigned n = bytes - at < digest_bytes ? bytes - at : digest_bytes;
        uint8_t in[4 + 64], digest[64];
        be32 number = be32_put(i);
        memcpy(in, &number, 4);
        memcpy(in + 4, block + at, n);
        gcry_md_hash_buffer(hash, digest, in, 4 + n);
        memcpy(block + at, digest, n);
    }
}

void luks_af_merge(int hash, const uint8_t *material, unsigned key_bytes, unsigned stripes, uint8_t *key)
{
    memset(key, 0, key_bytes);
    for (unsigned i = 0; i < stripes; i++) {
        for (unsigned k = 0; k < key_bytes; k++)
            key[k] ^= material[(size_t)i * key_bytes + k];
        if (i + 1 < stripes)
            luks_diffuse(hash, key, key_bytes);
    }
}

int luks_pbkdf2(int hash, const void *secret, size_t secret_bytes, const uint8_t salt[LUKS_SALT],
                uint32_t iterations, void *key, size_t key_bytes)
{
    return gcry_kdf_derive(secret, secret_bytes, GCRY_KDF_PBKDF2, hash, salt, LUKS_SALT, iterations,
                           key_bytes, key)
               ? -EIO
               : 0;
}
