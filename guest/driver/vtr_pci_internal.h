/* What the PCI transports share among themselves. Private to guest/driver. */
#ifndef RINGSIDE_VTR_PCI_INTERNAL_H
#define RINGSIDE_VTR_PCI_INTERNAL_H

#include "guest/driver/vtr_pci.h"

/* Reads the capabilities through CONFIG_SPACE and sets PCI up to reach the structures through ACCESS. */
int vtr_pci_discover(struct vtr_pci *pci, const struct vtr_pci_access *config_space,
                     const struct vtr_pci_access *access, unsigned msix_vectors);

#endif
