/*
 * A new LUKS container: AES-256 in XTS mode with plain64 IVs and SHA-256, one key slot, which is what QEMU
 * makes by default.
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

#define KEY_BYTES      64u /* two keys of 256 bits */
#define ITERATIONS_MIN 1000u
#define HEADER_BYTES   4096u
/* Key material is aligned to 4096 bytes, as everywhere. */
#define MATERIAL_BYTES ((KEY_BYTES * LUKS_STRIPES + 4095u) & ~4095u)

/* Iterations that take MS milliseconds on this machine. */
static uint32_t calibrate(int hash, unsigned ms)
{
    uint8_t salt[LUKS_SALT] = {0}, key[KEY_BYTES];
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

static void af_split(int hash, const uint8_t *key, uint8_t *material)
{
    uint8_t block[KEY_BYTES] = {0};
    gcry_randomize(material, (size_t)KEY_BYTES * (LUKS_STRIPES - 1), GCRY_STRONG_RANDOM);
    for (unsigned i = 0; i < LUKS_STRIPES - 1; i++) {
        for (unsigned k = 0; k < KEY_BYTES; k++)
            block[k] ^= material[i * KEY_BYTES + k];
        luks_diffuse(hash, block, KEY_BYTES);
    }
    for (unsigned k = 0; k < KEY_BYTES; k++)
        material[(LUKS_STRIPES - 1) * KEY_BYTES + k] = block[k] ^ key[k];
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
    uint8_t slot_key[KEY_BYTES];
    struct luks_slot *slot = &h->slots[0];
    slot->active = be32_put(LUKS_SLOT_ACTIVE);
    gcry_randomize(slot->salt, LUKS_SALT, GCRY_STRONG_RANDOM);
    int ret = luks_pbkdf2(c->hash, secret, secret_bytes, slot->salt, be32_get(slot->iterations), slot_key,
                          KEY_BYTES);
    struct luks_handle *handle = ret == 0 ? luks_handle_new(c, slot_key) : NULL;
    if (handle) {
        af_split(c->hash, key, material);
        ret = luks_crypt(c, handle, true, 0, material, (uint64_t)KEY_BYTES * LUKS_STRIPES);
        luks_handle_free(handle);
    } else if (ret == 0) {
        ret = -EIO;
    }
    explicit_bzero(slot_key, sizeof(slot_key));
    return ret;
}

int qcow2_luks_create(const char *secret_file, unsigned iter_time_ms, struct qcow2_luks_creation *luks,
                      struct error *err)
{
    struct luks_cipher c;
    uint8_t key[KEY_BYTES], *secret;
    size_t secret_bytes;
    luks_init();
    int ret = luks_read_secret(secret_file, &secret, &secret_bytes, err);
    if (ret < 0)
        return ret;
    luks->bytes = HEADER_BYTES + (uint64_t)LUKS_SLOTS * MATERIAL_BYTES;
    luks->header = calloc(1, luks->bytes);
    ret = luks->header ? luks_cipher_parse("aes", "xts-plain64", "sha256", KEY_BYTES, &c) : -ENOMEM;
    if (ret == 0) {
        struct luks_header h = {.magic = LUKS_MAGIC,
                                .version = be16_put(1),
                                .cipher_name = "aes",
                                .cipher_mode = "xts-plain64",
                                .hash = "sha256",
                                .payload_sector = be32_put((uint32_t)(luks->bytes / 512)),
                                .key_bytes = be32_put(KEY_BYTES)};
        uint32_t iterations = calibrate(c.hash, iter_time_ms ? iter_time_ms : 2000);
        uint32_t digest_iterations = (uint32_t)max_u64(iterations / 8, ITERATIONS_MIN);
        for (unsigned i = 0; i < LUKS_SLOTS; i++) {
            h.slots[i] =
                (struct luks_slot){.active = be32_put(LUKS_SLOT_DISABLED),
                                   .iterations = be32_put(i ? 0 : iterations),
                                   .material_sector = be32_put((HEADER_BYTES + i * MATERIAL_BYTES) / 512),
                                   .stripes = be32_put(LUKS_STRIPES)};
        }
        make_uuid(h.uuid);
        gcry_randomize(key, sizeof(key), GCRY_VERY_STRONG_RANDOM);
        gcry_randomize(h.digest_salt, LUKS_SALT, GCRY_STRONG_RANDOM);
        h.digest_iterations = be32_put(digest_iterations);
        ret = luks_pbkdf2(c.hash, key, KEY_BYTES, h.digest_salt, digest_iterations, h.digest, LUKS_DIGEST);
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
