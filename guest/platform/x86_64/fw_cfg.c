/*
 * What QEMU's firmware configuration port says of the machine.
 */
#include "guest/platform/x86_64/x86.h"

#define FW_CFG_SELECT    0x510
#define FW_CFG_DATA      0x511
#define FW_CFG_SIGNATURE 0
#define FW_CFG_NUM_CPUS  5

/* A machine without the port has one CPU as far as we are concerned. */
unsigned arch_num_cpus(void)
{
    static unsigned count;
    if (count)
        return count;
    static const char signature[4] = {'Q', 'E', 'M', 'U'};
    count = 1;
    arch_io_write(FW_CFG_SELECT, 2, FW_CFG_SIGNATURE);
    for (unsigned i = 0; i < sizeof signature; i++) {
        if (inb(FW_CFG_DATA) != (uint8_t)signature[i])
            return count;
    }
    arch_io_write(FW_CFG_SELECT, 2, FW_CFG_NUM_CPUS);
    unsigned cpus = inb(FW_CFG_DATA);
    count = cpus < 1 ? 1 : cpus < ARCH_CPUS_MAX ? cpus : ARCH_CPUS_MAX;
    return count;
}
