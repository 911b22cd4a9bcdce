/*
 * Damages qcow2 images on purpose: tool_poke FILE PLACE=VALUE...
 *
 *   FIELD            of the header, by its name in the specification: cluster_bits, l1_table_offset, ...
 *   l1:N             entry of the active L1 table         ref:N       entry of the refcount table
 *   l2:GUEST         first word of the L2 entry for a guest offset    l2b:GUEST   its second word
 *   rc:N             refcount of cluster N (16 bits)
 *   ext:TYPE:AT:SIZE bytes in a header extension's data; AT -4 is its length
 *   snap:AT:SIZE  bitmap:AT:SIZE  luks:AT:SIZE   bytes in the snapshot table, bitmap directory, LUKS header
 *   table:N          entry of the first bitmap's table
 *   @OFFSET:SIZE     bytes of the file
 *   data:GUEST:AT:SIZE   bytes of the data (or compressed stream) that GUEST is mapped to
 *   addext:TYPE=LENGTH   a further extension at the end, LENGTH bytes of 'x'
 *   size             truncates the file: truncate=BYTES
 *
 * VALUE is a number, or +N, -N, |N, &N on what is there. All integers are big-endian.
 */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/qcow2/qcow2_format.h"

static int fd;
static struct qcow2_header header;

static uint64_t get(uint64_t offset, unsigned size)
{
    uint8_t bytes[8] = {0};
    uint64_t value = 0;
    if (pread(fd, bytes, size, (off_t)offset) < 0)
        perror("read");
    for (unsigned i = 0; i < size; i++)
        value = value << 8 | bytes[i];
    return value;
}

static void put(uint64_t offset, unsigned size, uint64_t value)
{
    uint8_t bytes[8];
    for (unsigned i = 0; i < size; i++)
        bytes[i] = (uint8_t)(value >> (8 * (size - 1 - i)));
    if (pwrite(fd, bytes, size, (off_t)offset) != (ssize_t)size)
        perror("write");
}

#define FIELD(name)                                                                          \
    {                                                                                        \
#name, offsetof(struct qcow2_header, name), sizeof(((struct qcow2_header *)0)->name) \
    }

static const struct {
    const char *name;
    size_t at, size;
} fields[] = {
    FIELD(magic),
    FIELD(version),
    FIELD(backing_file_offset),
    FIELD(backing_file_size),
    FIELD(cluster_bits),
    FIELD(size),
    FIELD(crypt_method),
    FIELD(l1_size),
    FIELD(l1_table_offset),
    FIELD(refcount_table_offset),
    FIELD(refcount_table_clusters),
    FIELD(nb_snapshots),
    FIELD(snapshots_offset),
    FIELD(incompatible_features),
    FIELD(compatible_features),
    FIELD(autoclear_features),
    FIELD(refcount_order),
    FIELD(header_length),
    FIELD(compression_type),
};

static unsigned cluster_bits(void)
{
    return be32_get(header.cluster_bits);
}

static uint64_t l2_entry_at(uint64_t guest)
{
    unsigned entry_bits = be64_get(header.incompatible_features) & QCOW2_INCOMPAT_EXTL2 ? 4 : 3;
    unsigned l2_bits = cluster_bits() - entry_bits;
    uint64_t l1 = be64_get(header.l1_table_offset) + (guest >> (cluster_bits() + l2_bits)) * 8;
    uint64_t table = get(l1, 8) & QCOW2_L1_OFFSET_MASK;
    return table + (((guest >> cluster_bits()) & ((1ull << l2_bits) - 1)) << entry_bits);
}

/* Where the data of an extension is; 0: there is none. */
static uint64_t extension_at(uint64_t type)
{
    uint64_t at = be32_get(header.version) == 2 ? 72 : be32_get(header.header_length);
    for (unsigned i = 0; i < 100; i++) {
        uint64_t found = get(at, 4), length = get(at + 4, 4);
        if (found == type)
            return at + 8;
        if (found == 0)
            break;
        at += 8 + ((length + 7) & ~7ull);
    }
    return 0;
}

static void add_extension(uint64_t type, uint64_t length)
{
    uint64_t at = be32_get(header.version) == 2 ? 72 : be32_get(header.header_length);
    while (get(at, 4))
        at += 8 + ((get(at + 4, 4) + 7) & ~7ull);
    put(at, 4, type);
    put(at + 4, 4, length);
    for (uint64_t i = 0; i < length; i++)
        put(at + 8 + i, 1, 'x');
    put(at + 8 + ((length + 7) & ~7ull), 8, 0);
}

static uint64_t data_at(uint64_t guest)
{
    uint64_t entry = get(l2_entry_at(guest), 8);
    if (entry & QCOW2_L2_COMPRESSED)
        return entry & ((1ull << (62 - (cluster_bits() - 8))) - 1);
    return (entry & QCOW2_L2_OFFSET_MASK) + (guest & ((1ull << cluster_bits()) - 1));
}

/* Offset and size of PLACE. */
static int find(const char *place, uint64_t *at, unsigned *size)
{
    uint64_t a = 0, c = 0;
    int64_t b = 0;
    *size = 8;
    for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
        if (strcmp(fields[i].name, place) == 0) {
            *at = fields[i].at;
            *size = (unsigned)fields[i].size;
            return 0;
        }
    }
    const char *colon = strchr(place, ':');
    if (!colon)
        return -1;
    const char *arguments = colon + 1;
    char *end;
    a = strtoull(arguments, &end, 0);
    if (*end == ':')
        b = strtoll(end + 1, &end, 0);
    if (*end == ':')
        c = strtoull(end + 1, &end, 0);
    if (strncmp(place, "l1:", 3) == 0)
        *at = be64_get(header.l1_table_offset) + a * 8;
    else if (strncmp(place, "ref:", 4) == 0)
        *at = be64_get(header.refcount_table_offset) + a * 8;
    else if (strncmp(place, "l2:", 3) == 0)
        *at = l2_entry_at(a);
    else if (strncmp(place, "l2b:", 4) == 0)
        *at = l2_entry_at(a) + 8;
    else if (strncmp(place, "rc:", 3) == 0) {
        uint64_t per = (1ull << cluster_bits()) / 2;
        *at = get(be64_get(header.refcount_table_offset) + a / per * 8, 8) + a % per * 2;
        *size = 2;
    } else if (strncmp(place, "ext:", 4) == 0) {
        *at = extension_at(a);
        if (!*at)
            return -1;
        *at += (uint64_t)b;
        *size = (unsigned)c;
    } else if (strncmp(place, "snap:", 5) == 0) {
        *at = be64_get(header.snapshots_offset) + a;
        *size = (unsigned)b;
    } else if (strncmp(place, "bitmap:", 7) == 0) {
        *at = get(extension_at(QCOW2_EXT_BITMAPS) + 16, 8) + a;
        *size = (unsigned)b;
    } else if (strncmp(place, "table:", 6) == 0) {
        *at = get(get(extension_at(QCOW2_EXT_BITMAPS) + 16, 8), 8) + a * 8;
    } else if (strncmp(place, "luks:", 5) == 0) {
        *at = get(extension_at(QCOW2_EXT_CRYPTO), 8) + a;
        *size = (unsigned)b;
    } else if (strncmp(place, "data:", 5) == 0) {
        *at = data_at(a) + (uint64_t)b;
        *size = (unsigned)c;
    } else if (place[0] == '@') {
        *at = strtoull(place + 1, NULL, 0);
        *size = (unsigned)a;
    } else {
        return -1;
    }
    return *size >= 1 && *size <= 8 ? 0 : -1;
}

static int poke(const char *word)
{
    char place[100];
    const char *equals = strchr(word, '=');
    uint64_t at;
    unsigned size;
    if (!equals || (size_t)(equals - word) >= sizeof(place))
        return -1;
    memcpy(place, word, (size_t)(equals - word));
    place[equals - word] = '\0';
    const char *value = equals + 1;
    char how = *value;
    if (strchr("+-|&", how))
        value++;
    else
        how = '=';
    uint64_t number = strtoull(value, NULL, 0);
    if (strcmp(place, "truncate") == 0)
        return ftruncate(fd, (off_t)number);
    if (strncmp(place, "addext:", 7) == 0) {
        add_extension(strtoull(place + 7, NULL, 0), number);
        return 0;
    }
    if (find(place, &at, &size) < 0)
        return -1;
    uint64_t old = get(at, size);
    put(at, size,
        how == '+'   ? old + number
        : how == '-' ? old - number
        : how == '|' ? old | number
        : how == '&' ? old & number
                     : number);
    return 0;
}

int main(int argc, char **argv)
{
    fd = argc > 1 ? open(argv[1], O_RDWR) : -1;
    if (fd < 0 || pread(fd, &header, sizeof(header), 0) != (ssize_t)sizeof(header)) {
        perror(argc > 1 ? argv[1] : "usage: tool_poke FILE PLACE=VALUE...");
        return 1;
    }
    for (int i = 2; i < argc; i++) {
        if (poke(argv[i]) < 0) {
            fprintf(stderr, "%s: no such place\n", argv[i]);
            return 1;
        }
    }
    return 0;
}
