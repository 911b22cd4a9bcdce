/*
 * LUKS: refused by name so far.
 */
#include <errno.h>
#include <stdlib.h>

#include "host/qcow2/crypto.h"

int coroutine_fn qcow2_crypto_co_open(struct qcow2 *s, const struct open_options *options, struct error *err)
{
    return error_set(err, -ENOTSUP, "header field crypt_method is %u: LUKS encryption is not supported",
                     s->crypt_method);
}
void qcow2_crypto_close(struct qcow2 *s)
{
}
void qcow2_crypto_info(const struct qcow2 *s, struct qcow2_info *info)
{
}
int qcow2_luks_create(const char *secret_file, unsigned iter_time_ms, struct qcow2_luks_creation *luks,
                      struct error *err)
{
    return error_set(err, -ENOTSUP, "LUKS encryption is not supported");
}
int coroutine_fn qcow2_crypto_co_read(struct qcow2 *s, uint64_t host, uint64_t bytes, struct sg sg)
{
    return -EIO;
}
int coroutine_fn qcow2_crypto_co_write(struct qcow2 *s, uint64_t host, uint64_t bytes, struct sg sg)
{
    return -EIO;
}
