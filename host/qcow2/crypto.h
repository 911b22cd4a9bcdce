/*
 * Encryption of guest data, LUKS and AES of old: what reading and writing need of it. Metadata is in clear.
 * The IV comes from the host sector (checklist N2), with AES of old from the guest's (N3). Coroutines of any
 * loop; GUEST, HOST and BYTES are multiples of 512.
 */
#ifndef RINGSIDE_QCOW2_CRYPTO_H
#define RINGSIDE_QCOW2_CRYPTO_H

#include "host/qcow2/qcow2_state.h"

/* Reads the encryption header and unlocks it with OPTIONS->secret_file; AES of old has no header, and nothing
 * that could tell a wrong passphrase. */
int coroutine_fn qcow2_crypto_co_open(struct qcow2 *s, const struct open_options *options, struct error *err);
void qcow2_crypto_close(struct qcow2 *s);
void qcow2_crypto_info(const struct qcow2 *s, struct qcow2_info *info);

/* A new LUKS header with its key material, to lie in the image; HEADER is to be freed. */
struct qcow2_luks_creation {
    uint8_t *header;
    uint64_t bytes;
};
int qcow2_luks_create(const struct qcow2_luks_options *options, struct qcow2_luks_creation *luks,
                      struct error *err);

int coroutine_fn qcow2_crypto_co_read(struct qcow2 *s, uint64_t guest, uint64_t host, uint64_t bytes,
                                      struct sg sg);
int coroutine_fn qcow2_crypto_co_write(struct qcow2 *s, uint64_t guest, uint64_t host, uint64_t bytes,
                                       struct sg sg);

#endif
