/*
 * What a first sector looks like: format probing, and the guard against a guest that would write a header
 * into a disk whose format was only guessed.
 *
 * What always holds: only 512 bytes are looked at, and nothing they say is followed.
 */
#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "host/block/node.h"

#define SECTOR 512

/* What the common image formats begin with. We open qcow2 alone and refuse the others by their names; a
 * host's other tools may take any of them. */
static const struct {
    const char *format;
    unsigned offset, bytes;
    const char *magic;
} magics[] = {
    {"qcow2", 0, 4, "QFI\xfb"}, /* qcow as well */
    {"qed", 0, 4, "QED\0"},
    {"vmdk", 0, 4, "KDMV"},
    {"vmdk", 0, 4, "COWD"},
    {"vmdk", 0, 21, "# Disk DescriptorFile"},
    {"vpc", 0, 8, "conectix"},
    {"vhdx", 0, 8, "vhdxfile"},
    {"vdi", 64, 4, "\x7f\x10\xda\xbe"},
    {"parallels", 0, 16, "WithoutFreeSpace"},
    {"parallels", 0, 16, "WithouFreSpacExt"},
    {"bochs", 0, 22, "Bochs Virtual HD Image"},
    {"luks", 0, 6, "LUKS\xba\xbe"},
    {"cow", 0, 4, "OOOM"},
    {"cloop", 0, 22, "#!/bin/sh\n#V2.0 Format"},
};

/* A VMDK's description is text: its first line that is neither empty nor a comment gives the version. */
static bool describes_vmdk(const char *text)
{
    const char *end = text + SECTOR;
    while (text < end && (*text == '#' || *text == ' ' || *text == '\r' || *text == '\n')) {
        const char *line_end = memchr(text, '\n', (size_t)(end - text));
        if (*text != '#') {
            text++;
            continue;
        }
        if (!line_end)
            return false;
        text = line_end + 1;
    }
    return end - text >= 9 && memcmp(text, "version=", 8) == 0 && text[8] >= '1' && text[8] <= '3';
}

const char *node_probe_magic(const void *buf)
{
    for (size_t i = 0; i < sizeof(magics) / sizeof(magics[0]); i++) {
        if (memcmp((const char *)buf + magics[i].offset, magics[i].magic, magics[i].bytes) == 0)
            return magics[i].format;
    }
    return describes_vmdk(buf) ? "vmdk" : NULL;
}

int coroutine_fn node_co_probe(struct node *protocol, const char **format)
{
    char sector[SECTOR] = {0};
    int ret = node_co_pread(protocol, 0, sector, sizeof(sector));
    if (ret < 0)
        return ret;
    const char *found = node_probe_magic(sector);
    *format = found ? found : "raw";
    return 0;
}
