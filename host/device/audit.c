/*
 * The judge of the driver at the other end.
 */
#include "host/device/virtqueue_audit.h"

void audit_desc(struct virtqueue_audit *audit, bool in_table, uint16_t flags, uint32_t len,
                uint16_t next_or_id, uint32_t index)
{
}
