/*
 * Inside guest/platform/common only.
 */
#ifndef RINGSIDE_PLATFORM_COMMON_H
#define RINGSIDE_PLATFORM_COMMON_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "guest/driver/vtr_pci.h"
#include "guest/platform/arch.h"
#include "guest/platform/machine.h"

/* A function found on the PCI buses, with its addresses in place and decoding on. `access` is for the driver.
 */
struct pci_function {
    struct vtr_pci_access access;
    unsigned bdf;
    uint16_t vendor, device;
    struct {
        uint64_t addr, bytes; /* bus address */
        bool io;
        void *mapped;
    } bar[6];
};

/* Walks all buses and calls FOUND, once, for each function whose identifiers MATCH wants (PCI_FUNCTIONS_MAX
 * of them at most); the structure stays. */
#define PCI_FUNCTIONS_MAX 16
void pci_scan(bool (*match)(uint16_t vendor, uint16_t device), void (*found)(struct pci_function *function));
/* Fills the MSI-X table with messages, at most MAX, and enables it: entry 0 to CPU 0, entry n to CPU n - 1
 * and so on round. Returns how many; 0 if the function or the machine has none. */
unsigned pci_enable_msix(struct pci_function *function, unsigned max);

/* Memory for driver and device: pages out of a part of the RAM set aside. */
void dma_pool_init(uint64_t start, uint64_t end);
void *dma_pool_alloc(size_t bytes);
void dma_pool_free(void *mem, size_t bytes);

void disks_init(void);

#endif
