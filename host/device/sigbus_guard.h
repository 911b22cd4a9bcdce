/*
 * Memory that a peer shares with us may be cut short under us (ftruncate on the file behind it): touching it
 * then raises SIGBUS. For mappings put down here the signal becomes a flag: zero pages take the mapping's
 * place, *BROKEN is set, and whoever touched it goes on, reading zeroes. The owner of the mapping looks at
 * the flag and breaks that connection; the process lives.
 *
 * A SIGBUS anywhere else kills the process as it would without this.
 */
#ifndef RINGSIDE_DEVICE_SIGBUS_GUARD_H
#define RINGSIDE_DEVICE_SIGBUS_GUARD_H

#include <stddef.h>
#include <stdint.h>

/* Catches SIGBUS in this process. Again is fine. Any thread. 0 or a negative errno. */
int sigbus_guard_install(void);

/* Guards the mapping [BASE, BASE+BYTES), whole pages as mmap returned them. *BROKEN becomes 1 (release) when
 * it was found cut short; it must live until _remove. Any thread. 0, or -ENOSPC: too many mappings. */
int sigbus_guard_add(void *base, size_t bytes, uint32_t *broken);

/* Before munmap, when nobody touches the mapping any more. Any thread. */
void sigbus_guard_remove(void *base);

#endif
