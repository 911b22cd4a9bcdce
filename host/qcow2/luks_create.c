/*
 * A new LUKS container with one key slot: AES-256 in XTS mode with plain64 IVs and SHA-256, as QEMU makes it
 * by default, or with another of the ciphers that there are (luks_cipher.c).
 *
 * What always holds: key, salts and stripes come from the library's strong generator; what was secret is
 * wiped.
 */
#include <errno.h>
#include <gcrypt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/qcow2/luks.h"
#include "host/runtime/world.h"

#define ITERATIONS_MIN 1000u
#define HEADER_BYTES   4096u

/* Of a key slot; aligned to 4096 bytes, as everywhere. */
static uint32_t material_bytes(const struct luks_cipher *c)
{
    return (c->key_bytes * LUKS_STRIPES + 4095u) & ~4095u;
}

/* Iterations that take MS milliseconds on this machine. */
static uint32_t calibrate(int hash, unsigned ms)
{
    uint8_t salt[LUKS_SALT] = {0}, key[LUKS_KEY_MAX];
    uint64_t iterations = 4096, took = 0;
    while (iterations < 1u << 24) {
        uint64_t start = world_now_ns();
        if (luks_pbkdf2(hash, "calibration", 11, salt, (uint32_t)iterations, key, sizeof(key)) < 0)
            return ITERATIONS_MIN;
        took = world_now_ns() - start;
        if (took > 5000000)
            break;
        iterations *= 2;
    }
    uint64_t per = took / iterations;
    uint64_t wanted = per ? (uint64_t)ms * 1000000 / per : ITERATIONS_MIN;
    return (uint32_t)max_u64(ITERATIONS_MIN, min_u64(wanted, 1u << 25));
}

static void af_split(const struct luks_cipher *c, const uint8_t *key, uint8_t *material)
{
    uint8_t block[LUKS_KEY_MAX] = {0};
    size_t bytes = c->key_bytes;
    gcry_randomize(material, bytes * (LUKS_STRIPES - 1), GCRY_STRONG_RANDOM);
    for (size_t i = 0; i < LUKS_STRIPES - 1; i++) {
        for (size_t k = 0; k < bytes; k++)
            block[k] ^= material[i * bytes + k];
        luks_diffuse(c->hash, block, c->key_bytes);
    }
    for (size_t k = 0; k < bytes; k++)
        material[(LUKS_STRIPES - 1) * bytes + k] = block[k] ^ key[k];
    explicit_bzero(block, sizeof(block));
}

static void make_uuid(char uuid[40])
{
    uint8_t b[16];
    gcry_create_nonce(b, sizeof(b));
    b[6] = (uint8_t)((b[6] & 0x0f) | 0x40);
    b[8] = (uint8_t)((b[8] & 0x3f) | 0x80);
    snprintf(uuid, 40, "%02x%02x%02x%02x-%02x%02x-%02x%02x-%02x%02x-%02x%02x%02x%02x%02x%02x", b[0], b[1],
             b[2], b[3], b[4], b[5], b[6], b[7], b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]);
}

/* Slot 0: the key, split, encrypted with what the passphrase gives. */
static int fill_slot(const struct luks_cipher *c, struct luks_header *h, uint8_t *material,
                     const uint8_t *key, const uint8_t *secret, size_t secret_bytes)
{
    uint8_t slot_key[LUKS_KEY_MAX];
    struct luks_slot *slot = &h->slots[0];
    slot->active = be32_put(LUKS_SLOT_ACTIVE);
    gcry_randomize(slot->salt, LUKS_SALT, GCRY_STRONG_RANDOM);
    int ret = luks_pbkdf2(c->hash, secret, secret_bytes, slot->salt, be32_get(slot->iterations), slot_key,
                          c->key_bytes);
    struct luks_handle *handle = ret == 0 ? luks_handle_new(c, slot_key) : NULL;
    if (handle) {
        af_split(c, key, material);
        ret = luks_crypt(c, handle, true, 0, material, (uint64_t)c->key_bytes * LUKS_STRIPES);
        luks_handle_free(handle);
    } else if (ret == 0) {
        ret = -EIO;
    }
    explicit_bzero(slot_key, sizeof(slot_key));
    return ret;
}

/* The names of the header, and what they mean. H has nothing else yet. */
static int choose_cipher(const struct qcow2_luks_options *o, struct luks_header *h, struct luks_cipher *c,
                         struct error *err)
{
    const char *cipher = o->cipher_alg ? o->cipher_alg : "aes-256";
    const char *mode = o->cipher_mode ? o->cipher_mode : "xts";
    const char *iv = o->ivgen_alg ? o->ivgen_alg : "plain64";
    const char *iv_hash = o->ivgen_hash_alg ? o->ivgen_hash_alg : strcmp(iv, "essiv") == 0 ? "sha256" : "";
    const char *hash = o->hash_alg ? o->hash_alg : "sha256", *colon = *iv_hash ? ":" : "";
    unsigned bits = 0;
    char end;
    int parsed = sscanf(cipher, "%31[a-z0-9]-%3u%c", h->cipher_name, &bits, &end);
    int n = snprintf(h->cipher_mode, sizeof(h->cipher_mode), "%s-%s%s%s", mode, iv, colon, iv_hash);
    int m = snprintf(h->hash, sizeof(h->hash), "%s", hash);
    unsigned keys = strcmp(mode, "xts") == 0 ? 2 : 1;
    if (parsed != 2 || bits % 8 || n >= (int)sizeof(h->cipher_mode) || m >= (int)sizeof(h->hash) ||
        luks_cipher_parse(h->cipher_name, h->cipher_mode, h->hash, bits / 8 * keys, c) < 0)
        return error_set(err, -ENOTSUP, "LUKS with cipher %s, mode %s-%s%s%s and hash %s is not supported",
                         cipher, mode, iv, colon, iv_hash, hash);
    /* The key material would end within a sector, and QEMU dies of such an image. */
    if ((uint64_t)c->key_bytes * LUKS_STRIPES % 512)
        return error_set(err, -ENOTSUP, "LUKS with a key of %u bits goes with mode xts only, not with %s",
                         bits, mode);
    return 0;
}

int qcow2_luks_create(const struct qcow2_luks_options *options, struct qcow2_luks_creation *luks,
                      struct error *err)
{
    struct luks_header h = {.magic = LUKS_MAGIC, .version = be16_put(1)};
    struct luks_cipher c = {0};
    uint8_t key[LUKS_KEY_MAX], *secret = NULL;
    size_t secret_bytes = 0;
    luks_init();
    int ret = choose_cipher(options, &h, &c, err);
    if (ret < 0)
        return ret;
    ret = luks_read_secret(options->secret_file, &secret, &secret_bytes, err);
    if (ret < 0)
        return ret;
    luks->bytes = HEADER_BYTES + (uint64_t)LUKS_SLOTS * material_bytes(&c);
    luks->header = calloc(1, luks->bytes);
    ret = luks->header ? 0 : -ENOMEM;
    if (ret == 0) {
        h.payload_sector = be32_put((uint32_t)(luks->bytes / 512));
        h.key_bytes = be32_put(c.key_bytes);
        uint32_t iterations = calibrate(c.hash, options->iter_time_ms ? options->iter_time_ms : 2000);
        uint32_t digest_iterations = (uint32_t)max_u64(iterations / 8, ITERATIONS_MIN);
        for (unsigned i = 0; i < LUKS_SLOTS; i++) {
            h.slots[i] =
                (struct luks_slot){.active = be32_put(LUKS_SLOT_DISABLED),
                                   .iterations = be32_put(i ? 0 : iterations),
                                   .material_sector = be32_put((HEADER_BYTES + i * material_bytes(&c)) / 512),
                                   .stripes = be32_put(LUKS_STRIPES)};
        }
        make_uuid(h.uuid);
        gcry_randomize(key, c.key_bytes, GCRY_VERY_STRONG_RANDOM);
        gcry_randomize(h.digest_salt, LUKS_SALT, GCRY_STRONG_RANDOM);
        h.digest_iterations = be32_put(digest_iterations);
        ret = luks_pbkdf2(c.hash, key, c.key_bytes, h.digest_salt, digest_iterations, h.digest, LUKS_DIGEST);
        if (ret == 0)
            ret = fill_slot(&c, &h, luks->header + HEADER_BYTES, key, secret, secret_bytes);
        memcpy(luks->header, &h, sizeof(h));
    }
    explicit_bzero(key, sizeof(key));
    explicit_bzero(secret, secret_bytes);
    free(secret);
    if (ret < 0) {
        free(luks->header);
        luks->header = NULL;
        return error_set(err, ret, "making the encryption header: %s", strerror(-ret));
    }
    return 0;
}
