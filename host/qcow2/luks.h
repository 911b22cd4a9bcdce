/*
 * LUKS version 1, as it lies in the file, and what luks.c (opening, data), luks_create.c (making one) and
 * luks_cipher.c share. Private to host/qcow2. Functions without co_ are for any thread.
 *
 * Specification: LUKS On-Disk Format Specification, version 1.2.3.
 */
#ifndef RINGSIDE_QCOW2_LUKS_H
#define RINGSIDE_QCOW2_LUKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "common/endian.h"
#include "host/qcow2/crypto.h"

#define LUKS_MAGIC                     \
    {                                  \
        'L', 'U', 'K', 'S', 0xba, 0xbe \
    }
#define LUKS_SLOTS         8u
#define LUKS_SALT          32u
#define LUKS_DIGEST        20u
#define LUKS_STRIPES       4000u
#define LUKS_KEY_MAX       64u
#define LUKS_AREA_MAX      (16u << 20)
#define LUKS_SLOT_ACTIVE   0x00ac71f3u
#define LUKS_SLOT_DISABLED 0x0000deadu

struct luks_slot {
    be32 active;
    be32 iterations;
    uint8_t salt[LUKS_SALT];
    be32 material_sector;
    be32 stripes;
};

struct luks_header {
    uint8_t magic[6];
    be16 version;
    char cipher_name[32], cipher_mode[32], hash[32];
    be32 payload_sector;
    be32 key_bytes;
    uint8_t digest[LUKS_DIGEST], digest_salt[LUKS_SALT];
    be32 digest_iterations;
    char uuid[40];
    struct luks_slot slots[LUKS_SLOTS];
};
_Static_assert(sizeof(struct luks_header) == 592, "LUKS header");

enum luks_iv { LUKS_IV_PLAIN64, LUKS_IV_PLAIN, LUKS_IV_ESSIV };

struct luks_mode {
    const char *name;
    int algo;      /* gcrypt's number */
    unsigned keys; /* that the key is made of */
};

struct luks_cipher {
    const struct luks_mode *mode;
    const struct nettle_cipher *nettle; /* in place of algo, or NULL */
    int algo, hash;                     /* gcrypt's numbers */
    int iv_hash, iv_algo;               /* for essiv */
    enum luks_iv iv;
    unsigned key_bytes, block_bytes;
};

/* A cipher with its key set; one user at a time. */
struct luks_handle {
    struct gcry_cipher_handle *data, *essiv;
    uint8_t *nettle; /* keys, if nettle does it */
    size_t nettle_bytes;
};

void luks_init(void);
/* MODE as in the header: "xts-plain64", "cbc-essiv:sha256". -ENOTSUP. */
int luks_cipher_parse(const char *name, const char *mode, const char *hash, unsigned key_bytes,
                      struct luks_cipher *c);
struct luks_handle *luks_handle_new(const struct luks_cipher *c, const uint8_t *key);
void luks_handle_free(struct luks_handle *h);
/* Whole sectors in place; SECTOR is the number of the first. */
int luks_crypt(const struct luks_cipher *c, struct luks_handle *h, bool encrypt, uint64_t sector,
               uint8_t *data, uint64_t bytes);
void luks_diffuse(int hash, uint8_t *block, unsigned bytes);
void luks_af_merge(int hash, const uint8_t *material, unsigned key_bytes, unsigned stripes, uint8_t *key);
int luks_pbkdf2(int hash, const void *secret, size_t secret_bytes, const uint8_t salt[LUKS_SALT],
                uint32_t iterations, void *key, size_t key_bytes);
/* The passphrase, all of the file; *SECRET is to be wiped and freed. */
int luks_read_secret(const char *path, uint8_t **secret, size_t *bytes, struct error *err);

#endif
