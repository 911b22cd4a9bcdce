/*
 * Zones of an emulated host-managed disk (zoned.h).
 *
 * The state file: a header of 64 bytes, then 16 bytes for each zone, then 32 bytes for each request that can
 * be in flight, little-endian. Its content is checked like any other file's before a number of it is used.
 * The process may die between any two stores to it: a zone's state and its count of resets are one store, and
 * of an empty zone the write pointer says nothing.
 */
#include "host/device/zoned.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "host/runtime/co_lock.h"

#define ZONES_MAX   (1u << 20)
#define STATE_MAGIC "ringside zones 1"

struct state_header {
    char magic[16];
    le64 capacity;
    le32 zone_sectors, conventional_zones, num_zones, reserved;
    le32 place_queues, place_size; /* how the places of appends are laid out */
    uint8_t padding[16];
};

struct state_zone {
    le64 wp;
    uint8_t state;
    uint8_t padding[3];
    le32 resets;
};

_Static_assert(sizeof(struct state_header) == 64 && sizeof(struct state_zone) == 16,
               "the state file's layout");

struct zone {
    uint64_t wp; /* with what has begun */
    uint8_t state;
    bool touched; /* something was done to it since the start */
};

struct zoned {
    struct spinlock guard;
    uint64_t capacity;
    uint32_t zone_sectors, conventional, num_zones, block_sectors;
    uint32_t max_open, max_active, max_append;
    uint32_t open, active; /* zones now; active: open or closed */
    struct zone *zones;
    struct state_zone *saved; /* in the mapping, or memory of our own without a file */
    struct zoned_places places;
    void *mapping;
    size_t mapping_bytes;
};

static uint64_t zone_start(const struct zoned *zoned, uint32_t index)
{
    return (uint64_t)index * zoned->zone_sectors;
}

/* Only the last zone may be smaller; all of a zone can be written. */
static uint64_t zone_end(const struct zoned *zoned, uint32_t index)
{
    uint64_t end = zone_start(zoned, index) + zoned->zone_sectors;

    return end < zoned->capacity ? end : zoned->capacity;
}

static bool conventional(const struct zoned *zoned, uint32_t index)
{
    return index < zoned->conventional;
}

static bool is_open(uint8_t state)
{
    return state == VIRTIO_BLK_ZS_IOPEN || state == VIRTIO_BLK_ZS_EOPEN;
}

static bool is_active(uint8_t state)
{
    return is_open(state) || state == VIRTIO_BLK_ZS_CLOSED;
}

/* In memory alone: the zone is full once the write that fills it has ended. */
static void set_state_for_now(struct zoned *zoned, uint32_t index, uint8_t state)
{
    struct zone *zone = &zoned->zones[index];

    zoned->open = zoned->open - is_open(zone->state) + is_open(state);
    zoned->active = zoned->active - is_active(zone->state) + is_active(state);
    zone->state = state;
}

/* Only the compiler's order matters: a dead process's stores all arrive. */
static void keep_order(void)
{
    __atomic_signal_fence(__ATOMIC_SEQ_CST);
}

static void save_state(struct zoned *zoned, uint32_t index, uint8_t state, uint32_t resets)
{
    union {
        struct {
            uint8_t state, padding[3];
            le32 resets;
        } fields;
        uint64_t word;
    } value = {.fields = {state, {0}, le32_put(resets)}};

    _Static_assert(offsetof(struct state_zone, state) == 8 && offsetof(struct state_zone, resets) == 12,
                   "one aligned word");
    keep_order();
    __atomic_store_n((uint64_t *)((uint8_t *)&zoned->saved[index] + 8), value.word, __ATOMIC_RELAXED);
    keep_order();
}

static void set_state(struct zoned *zoned, uint32_t index, uint8_t state)
{
    set_state_for_now(zoned, index, state);
    save_state(zoned, index, state, le32_get(zoned->saved[index].resets));
    zoned->zones[index].touched = true;
}

static void set_wp(struct zoned *zoned, uint32_t index, uint64_t wp)
{
    zoned->zones[index].wp = wp;
    zoned->saved[index].wp = le64_put(wp);
}

/* ---- the state file ---- */

static void start_empty(struct zoned *zoned)
{
    for (uint32_t i = 0; i < zoned->num_zones; i++) {
        set_state(zoned, i, conventional(zoned, i) ? VIRTIO_BLK_ZS_NOT_WP : VIRTIO_BLK_ZS_EMPTY);
        set_wp(zoned, i, zone_start(zoned, i));
    }
}

static bool plausible(const struct zoned *zoned, uint32_t index, uint8_t state, uint64_t wp)
{
    uint64_t start = zone_start(zoned, index), end = zone_end(zoned, index);

    if (conventional(zoned, index))
        return state == VIRTIO_BLK_ZS_NOT_WP;
    switch (state) {
    case VIRTIO_BLK_ZS_EMPTY: /* its write pointer may not have followed */
    case VIRTIO_BLK_ZS_IOPEN:
    case VIRTIO_BLK_ZS_EOPEN:
    case VIRTIO_BLK_ZS_CLOSED:
        /* Up to the end: the write that filled it had ended, its state had not been saved. */
    case VIRTIO_BLK_ZS_FULL:
    case VIRTIO_BLK_ZS_RDONLY:
    case VIRTIO_BLK_ZS_OFFLINE:
        return wp >= start && wp <= end;
    default:
        return false;
    }
}

/* Is it the header of this disk's states? */
static int check_header(const struct zoned *zoned, const struct state_header *header, const char *path,
                        struct error *err)
{
    if (memcmp(header->magic, STATE_MAGIC, sizeof(header->magic)) != 0)
        return error_set(err, -EINVAL, "%s: not a file of zone states (name another, or a new one)", path);
    if (le64_get(header->capacity) != zoned->capacity ||
        le32_get(header->zone_sectors) != zoned->zone_sectors ||
        le32_get(header->conventional_zones) != zoned->conventional ||
        le32_get(header->num_zones) != zoned->num_zones)
        return error_set(err, -EINVAL,
                         "%s: zone states of another disk: %" PRIu64 " sectors, zones of %u, %u conventional "
                         "(serve that disk; with a new file all zones are empty)",
                         path, le64_get(header->capacity), le32_get(header->zone_sectors),
                         le32_get(header->conventional_zones));
    return 0;
}

static int load(struct zoned *zoned, const char *path, struct error *err)
{
    for (uint32_t i = 0; i < zoned->num_zones; i++) {
        uint8_t state = zoned->saved[i].state;
        uint64_t wp = le64_get(zoned->saved[i].wp);

        if (!plausible(zoned, i, state, wp))
            return error_set(err, -EINVAL, "%s: zone %u is in state %u with its write pointer at %" PRIu64,
                             path, i, state, wp);
        if (is_active(state) && wp == zone_end(zoned, i))
            state = VIRTIO_BLK_ZS_FULL;
        set_state(zoned, i, state);
        set_wp(zoned, i, state == VIRTIO_BLK_ZS_EMPTY ? zone_start(zoned, i) : wp);
        zoned->zones[i].touched = false;
    }
    return 0;
}

/* Does PLACE belong to its zone as it is now? Then the zone is at *INDEX. */
static bool place_holds(const struct zoned *zoned, const struct state_place *place, uint32_t *index)
{
    uint64_t sector = le64_get(place->sector), sectors = le32_get(place->sectors);
    uint8_t state;

    if (le64_get(place->counter_plus_1) == 0 || sectors == 0 || sector >= zoned->capacity)
        return false;
    *index = (uint32_t)(sector / zoned->zone_sectors);
    state = zoned->saved[*index].state;
    return !conventional(zoned, *index) && sectors <= zone_end(zoned, *index) - sector &&
           (is_active(state) || state == VIRTIO_BLK_ZS_FULL) &&
           le32_get(zoned->saved[*index].resets) == le32_get(place->resets);
}

/* The write pointers of zones that nothing was done to yet: behind what was written to an end, and behind the
 * places of writes that may be taken up again. */
static void settle_write_pointers(struct zoned *zoned)
{
    uint32_t index;

    for (uint32_t i = zoned->conventional; i < zoned->num_zones; i++) {
        struct zone *zone = &zoned->zones[i];

        if (zone->touched)
            continue;
        zone->wp = le64_get(zoned->saved[i].wp);
        set_state_for_now(zoned, i, zoned->saved[i].state);
    }
    for (size_t i = 0; i < (size_t)zoned->places.queues * zoned->places.size; i++) {
        const struct state_place *place = &zoned->places.table[i];
        uint64_t end = le64_get(place->sector) + le32_get(place->sectors);

        if (!place_holds(zoned, place, &index) || zoned->zones[index].touched)
            continue;
        if (end > zoned->zones[index].wp)
            zoned->zones[index].wp = end;
    }
    for (uint32_t i = zoned->conventional; i < zoned->num_zones; i++)
        if (is_active(zoned->zones[i].state) && zoned->zones[i].wp == zone_end(zoned, i))
            set_state_for_now(zoned, i, VIRTIO_BLK_ZS_FULL);
}

static size_t zones_bytes(const struct zoned *zoned)
{
    return sizeof(struct state_header) + (size_t)zoned->num_zones * sizeof(struct state_zone);
}

static size_t places_count(const struct zoned *zoned)
{
    return (size_t)zoned->places.queues * zoned->places.size;
}

#define PLACES_MAX ((size_t)VIRTIO_BLK_QUEUES_MAX * 32768u)

/* Places that were laid out for other queues: *OLD, *NUM of them, to be freed. The file is left without any.
 * A file whose layout is not as its header says (death while it was being made) has none. */
static int take_old_places(const struct zoned *zoned, const struct state_header *header, int fd,
                           uint64_t bytes, struct state_place **old, size_t *num)
{
    size_t there = (bytes - zones_bytes(zoned)) / sizeof(**old);
    uint64_t said = (uint64_t)le32_get(header->place_queues) * le32_get(header->place_size);

    if (said == there && le32_get(header->place_queues) == zoned->places.queues &&
        le32_get(header->place_size) == zoned->places.size)
        return 0;
    if (said == there && there > 0) {
        *old = malloc(there * sizeof(**old));
        if (!*old)
            return -ENOMEM;
        *num = there;
        if (pread(fd, *old, there * sizeof(**old), (off_t)zones_bytes(zoned)) !=
            (ssize_t)(there * sizeof(**old)))
            return -EIO;
    }
    return ftruncate(fd, (off_t)zones_bytes(zoned)) < 0 ? -errno : 0;
}

/* The file, empty or of this disk, brought to its size and mapped. */
static int map_bytes(struct zoned *zoned, int fd)
{
    int result = -posix_fallocate(fd, 0, (off_t)zoned->mapping_bytes);
    void *mapping;

    if (result != 0)
        return result;
    mapping = mmap(NULL, zoned->mapping_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapping == MAP_FAILED)
        return -errno;
    zoned->mapping = mapping;
    zoned->saved = (struct state_zone *)((struct state_header *)zoned->mapping + 1);
    zoned->places.table = (struct state_place *)(zoned->saved + zoned->num_zones);
    return 0;
}

static int load_state_file(struct zoned *zoned, int fd, uint64_t bytes, const char *path, struct error *err)
{
    struct state_header header;
    struct state_place *old = NULL;
    size_t num_old = 0;
    int result;

    if (bytes < zones_bytes(zoned) || bytes - zones_bytes(zoned) > PLACES_MAX * sizeof(struct state_place) ||
        pread(fd, &header, sizeof(header), 0) != sizeof(header))
        return error_set(err, -EINVAL,
                         "%s: not the states of this disk's zones, or cut short: %" PRIu64
                         " bytes, %zu are expected (name another, or a new one)",
                         path, bytes, zoned->mapping_bytes);
    result = check_header(zoned, &header, path, err);
    if (result < 0)
        return result;
    result = take_old_places(zoned, &header, fd, bytes, &old, &num_old);
    if (result == 0)
        result = map_bytes(zoned, fd);
    if (result != 0 || !zoned->saved) {
        free(old);
        return error_set(err, result, "%s: %s", path, strerror(-result));
    }
    for (size_t i = 0; i < num_old; i++)
        places_take_over(&zoned->places, &old[i]);
    free(old);
    return load(zoned, path, err);
}

static int map_state_file(struct zoned *zoned, const char *path, struct error *err)
{
    struct state_header *header;
    struct stat st;
    int result, fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);

    if (fd < 0)
        return error_set(err, -errno, "%s: cannot keep the zones' states: %s", path, strerror(errno));
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        close(fd);
        return error_set(err, -EINVAL, "%s: not a regular file", path);
    }
    zoned->mapping_bytes = zones_bytes(zoned) + places_count(zoned) * sizeof(struct state_place);
    if (st.st_size > 0) {
        result = load_state_file(zoned, fd, (uint64_t)st.st_size, path, err);
    } else {
        result = map_bytes(zoned, fd);
        if (result != 0)
            error_set(err, result, "%s: %s", path, strerror(-result));
    }
    close(fd);
    header = zoned->mapping;
    if (result != 0 || !header)
        return result;
    if (st.st_size == 0) {
        start_empty(zoned);
        header->capacity = le64_put(zoned->capacity);
        header->zone_sectors = le32_put(zoned->zone_sectors);
        header->conventional_zones = le32_put(zoned->conventional);
        header->num_zones = le32_put(zoned->num_zones);
    }
    header->place_queues = le32_put(zoned->places.queues);
    header->place_size = le32_put(zoned->places.size);
    memcpy(header->magic, STATE_MAGIC, sizeof(header->magic));
    settle_write_pointers(zoned);
    return 0;
}

struct zoned *zoned_create(const struct virtio_blk_zoned_options *options, uint64_t capacity,
                           uint32_t block_sectors, uint32_t num_queues, uint32_t queue_size,
                           struct error *err)
{
    struct zoned *zoned;
    uint64_t num_zones;

    if (options->zone_sectors % block_sectors != 0 || options->zone_sectors == 0) {
        error_set(err, -EINVAL, "zones of %u sectors are not possible (a multiple of %u is)",
                  options->zone_sectors, block_sectors);
        return NULL;
    }
    num_zones = capacity / options->zone_sectors + (capacity % options->zone_sectors != 0);
    if (num_zones == 0 || num_zones > ZONES_MAX || options->conventional_zones >= num_zones) {
        error_set(err, -EINVAL,
                  "%" PRIu64
                  " zones, %u of them conventional, are not possible (1 to %u, and one must be sequential)",
                  num_zones, options->conventional_zones, ZONES_MAX);
        return NULL;
    }
    if (options->max_active_zones != 0 && options->max_open_zones > options->max_active_zones) {
        error_set(err, -EINVAL, "%u open zones are more than the %u active ones", options->max_open_zones,
                  options->max_active_zones);
        return NULL;
    }
    zoned = calloc(1, sizeof(*zoned));
    if (!zoned)
        goto no_memory;
    zoned->capacity = capacity;
    zoned->zone_sectors = options->zone_sectors;
    zoned->conventional = options->conventional_zones;
    zoned->num_zones = (uint32_t)num_zones;
    zoned->block_sectors = block_sectors;
    zoned->max_open = options->max_open_zones;
    zoned->max_active = options->max_active_zones;
    zoned->max_append = options->max_append_sectors;
    zoned->places.queues = num_queues;
    zoned->places.size = queue_size;
    zoned->zones = calloc(num_zones, sizeof(*zoned->zones));
    if (!zoned->zones)
        goto no_memory;
    if (options->state_path) {
        if (map_state_file(zoned, options->state_path, err) < 0) {
            zoned_destroy(zoned);
            return NULL;
        }
        return zoned;
    }
    zoned->saved = calloc(num_zones, sizeof(*zoned->saved));
    zoned->places.table = calloc(places_count(zoned) + 1, sizeof(struct state_place));
    if (!zoned->saved || !zoned->places.table)
        goto no_memory;
    start_empty(zoned);
    return zoned;

no_memory:
    error_set(err, -ENOMEM, "no memory for %" PRIu64 " zones", num_zones);
    zoned_destroy(zoned);
    return NULL;
}

void zoned_destroy(struct zoned *zoned)
{
    if (!zoned)
        return;
    if (zoned->mapping) {
        munmap(zoned->mapping, zoned->mapping_bytes);
    } else {
        free(zoned->saved);
        free(zoned->places.table);
    }
    free(zoned->zones);
    free(zoned);
}

int zoned_sync(struct zoned *zoned)
{
    if (zoned->mapping && msync(zoned->mapping, zoned->mapping_bytes, MS_SYNC) < 0)
        return -errno;
    return 0;
}

/* ---- writing and reading ---- */

/* One more open zone: an implicitly open one makes room if it must. */
static uint8_t room_to_open(struct zoned *zoned, uint8_t from)
{
    /* A zone that needs both is told about the active ones first. */
    if (from == VIRTIO_BLK_ZS_EMPTY && zoned->max_active != 0 && zoned->active >= zoned->max_active)
        return VIRTIO_BLK_S_ZONE_ACTIVE_RESOURCE;
    if (zoned->max_open == 0 || zoned->open < zoned->max_open)
        return VIRTIO_BLK_S_OK;
    for (uint32_t i = zoned->conventional; i < zoned->num_zones; i++)
        if (zoned->zones[i].state == VIRTIO_BLK_ZS_IOPEN) {
            set_state(zoned, i, VIRTIO_BLK_ZS_CLOSED);
            return VIRTIO_BLK_S_OK;
        }
    return VIRTIO_BLK_S_ZONE_OPEN_RESOURCE;
}

static uint8_t begin_locked(struct zoned *zoned, uint32_t index, uint64_t sector, uint64_t sectors)
{
    struct zone *zone = &zoned->zones[index];
    uint64_t end = zone_end(zoned, index);
    uint8_t status;

    if (zone->state == VIRTIO_BLK_ZS_FULL || sectors > end - zone->wp)
        return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    if (sector != zone->wp || sectors % zoned->block_sectors != 0)
        return VIRTIO_BLK_S_ZONE_UNALIGNED_WP;
    if (!is_open(zone->state)) {
        status = room_to_open(zoned, zone->state);
        if (status != VIRTIO_BLK_S_OK)
            return status;
        set_state(zoned, index, VIRTIO_BLK_ZS_IOPEN);
    }
    zone->touched = true;
    zone->wp += sectors;
    if (zone->wp == end)
        set_state_for_now(zoned, index, VIRTIO_BLK_ZS_FULL);
    return VIRTIO_BLK_S_OK;
}

/* Does the range end in the zone that it begins in? (Ranges inside the disk only.) */
static bool in_one_zone(const struct zoned *zoned, uint64_t sector, uint64_t sectors)
{
    return sectors <= zone_end(zoned, (uint32_t)(sector / zoned->zone_sectors)) - sector;
}

/* Conventional zones may be crossed as one likes, sequential ones not at all. */
static bool all_conventional(const struct zoned *zoned, uint64_t sector, uint64_t sectors)
{
    return sector + sectors <= zone_start(zoned, zoned->conventional);
}

static bool unusable(const struct zoned *zoned, uint32_t index)
{
    return zoned->zones[index].state == VIRTIO_BLK_ZS_RDONLY ||
           zoned->zones[index].state == VIRTIO_BLK_ZS_OFFLINE;
}

/* The place in zone INDEX that a write of SECTORS has had since before a restart, or NULL: it had not begun.
 */
static const struct state_place *place_of_before(struct zoned *zoned, uint32_t index, uint64_t sectors,
                                                 const struct zoned_ticket *ticket)
{
    const struct state_place *place = ticket->again ? places_find(&zoned->places, ticket) : NULL;
    uint32_t its_zone;

    if (!place || !place_holds(zoned, place, &its_zone) || its_zone != index ||
        le32_get(place->sectors) != sectors || le64_get(place->sector) + sectors > zoned->zones[index].wp)
        return NULL;
    zoned->zones[index].touched = true;
    return place;
}

static uint8_t begin_and_note_locked(struct zoned *zoned, uint32_t index, uint64_t sector, uint64_t sectors,
                                     const struct zoned_ticket *ticket)
{
    uint8_t status = begin_locked(zoned, index, sector, sectors);

    if (status == VIRTIO_BLK_S_OK)
        places_note(&zoned->places, ticket, sector, (uint32_t)sectors, le32_get(zoned->saved[index].resets));
    return status;
}

uint8_t zoned_write_begin(struct zoned *zoned, uint64_t sector, uint64_t sectors,
                          const struct zoned_ticket *ticket)
{
    uint32_t index = (uint32_t)(sector / zoned->zone_sectors);
    uint8_t status = VIRTIO_BLK_S_ZONE_INVALID_CMD;

    if (all_conventional(zoned, sector, sectors))
        return VIRTIO_BLK_S_OK;
    if (!in_one_zone(zoned, sector, sectors))
        return status;
    spin_lock(&zoned->guard);
    if (!unusable(zoned, index)) {
        const struct state_place *place = place_of_before(zoned, index, sectors, ticket);

        if (place && le64_get(place->sector) == sector)
            status = VIRTIO_BLK_S_OK;
        else
            status = begin_and_note_locked(zoned, index, sector, sectors, ticket);
    }
    spin_unlock(&zoned->guard);
    return status;
}

uint8_t zoned_append_begin(struct zoned *zoned, uint64_t sector, uint64_t sectors,
                           const struct zoned_ticket *ticket, uint64_t *at)
{
    uint32_t index = (uint32_t)(sector / zoned->zone_sectors);
    uint8_t status = VIRTIO_BLK_S_ZONE_INVALID_CMD;

    if (zoned->max_append == 0)
        return VIRTIO_BLK_S_UNSUPP;
    if (sectors > zoned->max_append || conventional(zoned, index) || sector != zone_start(zoned, index))
        return status;
    spin_lock(&zoned->guard);
    if (!unusable(zoned, index)) {
        const struct state_place *place = place_of_before(zoned, index, sectors, ticket);

        *at = place ? le64_get(place->sector) : zoned->zones[index].wp;
        status = place ? VIRTIO_BLK_S_OK : begin_and_note_locked(zoned, index, *at, sectors, ticket);
    }
    spin_unlock(&zoned->guard);
    return status;
}

/* What lies before END counts as written. */
static void written_locked(struct zoned *zoned, uint32_t index, uint64_t end)
{
    /* (A zone that was reset meanwhile has its write pointer before it.) */
    if (zoned->zones[index].wp < end || le64_get(zoned->saved[index].wp) >= end)
        return;
    zoned->saved[index].wp = le64_put(end);
    if (end == zone_end(zoned, index))
        save_state(zoned, index, VIRTIO_BLK_ZS_FULL, le32_get(zoned->saved[index].resets));
}

void zoned_write_end(struct zoned *zoned, uint64_t sector, uint64_t sectors,
                     const struct zoned_ticket *ticket, bool ok)
{
    uint32_t index = (uint32_t)(sector / zoned->zone_sectors);
    struct zone *zone = &zoned->zones[index];

    if (conventional(zoned, index))
        return;
    spin_lock(&zoned->guard);
    if (ok) {
        written_locked(zoned, index, sector + sectors);
    } else {
        /* The last one that began gives its place back; the place of another stays a hole of zeroes or old
         * data. */
        if (zone->wp == sector + sectors && is_active(zone->state))
            zone->wp = sector;
        places_forget(&zoned->places, ticket);
    }
    spin_unlock(&zoned->guard);
}

/* Nobody takes it up any more. In a zone that others have gone on with it stays a hole. */
static void place_forgotten(void *opaque, const struct state_place *place)
{
    struct zoned *zoned = opaque;
    uint32_t index;

    if (place_holds(zoned, place, &index) && zoned->zones[index].touched)
        written_locked(zoned, index, le64_get(place->sector) + le32_get(place->sectors));
}

void zoned_queue_starts(struct zoned *zoned, uint32_t queue, const struct inflight_request *requests,
                        unsigned num)
{
    spin_lock(&zoned->guard);
    if (places_keep(&zoned->places, queue, requests, num, place_forgotten, zoned))
        settle_write_pointers(zoned);
    spin_unlock(&zoned->guard);
}

uint8_t zoned_read(struct zoned *zoned, uint64_t sector, uint64_t sectors, uint64_t *written)
{
    uint32_t index = (uint32_t)(sector / zoned->zone_sectors);
    const struct zone *zone = &zoned->zones[index];
    uint8_t status = VIRTIO_BLK_S_OK;

    *written = sectors;
    if (all_conventional(zoned, sector, sectors))
        return status;
    if (!in_one_zone(zoned, sector, sectors))
        return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    spin_lock(&zoned->guard);
    if (zone->state == VIRTIO_BLK_ZS_OFFLINE)
        status = VIRTIO_BLK_S_ZONE_INVALID_CMD;
    else if (zone->wp <= sector)
        *written = 0;
    else if (zone->wp - sector < sectors)
        *written = zone->wp - sector;
    spin_unlock(&zoned->guard);
    return status;
}

/* ---- management ---- */

static uint8_t open_locked(struct zoned *zoned, uint32_t index)
{
    uint8_t state = zoned->zones[index].state, status;

    if (state == VIRTIO_BLK_ZS_FULL)
        return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    if (!is_open(state)) {
        status = room_to_open(zoned, state);
        if (status != VIRTIO_BLK_S_OK)
            return status;
    }
    set_state(zoned, index, VIRTIO_BLK_ZS_EOPEN);
    return VIRTIO_BLK_S_OK;
}

static uint8_t close_locked(struct zoned *zoned, uint32_t index)
{
    const struct zone *zone = &zoned->zones[index];
    bool unwritten = zone->state == VIRTIO_BLK_ZS_EOPEN && zone->wp == zone_start(zoned, index);

    if (!is_active(zone->state))
        return VIRTIO_BLK_S_ZONE_INVALID_CMD;
    set_state(zoned, index, unwritten ? VIRTIO_BLK_ZS_EMPTY : VIRTIO_BLK_ZS_CLOSED);
    return VIRTIO_BLK_S_OK;
}

static uint8_t finish_locked(struct zoned *zoned, uint32_t index)
{
    set_state(zoned, index, VIRTIO_BLK_ZS_FULL);
    return VIRTIO_BLK_S_OK;
}

static uint8_t reset_locked(struct zoned *zoned, uint32_t index)
{
    /* With the count: a place in what is being emptied must not be one in the zone's next life. */
    set_state_for_now(zoned, index, VIRTIO_BLK_ZS_EMPTY);
    save_state(zoned, index, VIRTIO_BLK_ZS_EMPTY, le32_get(zoned->saved[index].resets) + 1);
    set_wp(zoned, index, zone_start(zoned, index));
    zoned->zones[index].touched = true;
    return VIRTIO_BLK_S_OK;
}

static uint8_t reset_all_locked(struct zoned *zoned)
{
    for (uint32_t i = zoned->conventional; i < zoned->num_zones; i++)
        if (is_active(zoned->zones[i].state) || zoned->zones[i].state == VIRTIO_BLK_ZS_FULL)
            reset_locked(zoned, i);
    return VIRTIO_BLK_S_OK;
}

uint8_t zoned_manage(struct zoned *zoned, uint32_t type, uint64_t sector, const struct zoned_ticket *ticket)
{
    static uint8_t (*const commands[])(struct zoned * zoned, uint32_t index) = {
        [VIRTIO_BLK_T_ZONE_OPEN] = open_locked,
        [VIRTIO_BLK_T_ZONE_CLOSE] = close_locked,
        [VIRTIO_BLK_T_ZONE_FINISH] = finish_locked,
        [VIRTIO_BLK_T_ZONE_RESET] = reset_locked,
    };
    uint32_t index = (uint32_t)(sector / zoned->zone_sectors);
    bool all = type == VIRTIO_BLK_T_ZONE_RESET_ALL;
    uint8_t status = VIRTIO_BLK_S_ZONE_INVALID_CMD;
    const struct state_place *done;

    if (!all &&
        (sector >= zoned->capacity || conventional(zoned, index) || sector != zone_start(zoned, index)))
        return status;
    spin_lock(&zoned->guard);
    done = ticket->again ? places_find(&zoned->places, ticket) : NULL;
    if (done && le32_get(done->sectors) == 0) {
        status = VIRTIO_BLK_S_OK;
    } else if (all || !unusable(zoned, index)) {
        status = all ? reset_all_locked(zoned) : commands[type](zoned, index);
        /* Under the same guard: death in between leaves a command that nobody has seen the effect of. */
        if (status == VIRTIO_BLK_S_OK)
            places_note(&zoned->places, ticket, 0, 0, 0);
    }
    spin_unlock(&zoned->guard);
    return status;
}

unsigned zoned_report(struct zoned *zoned, uint64_t sector, struct virtio_blk_zone_descriptor *out,
                      unsigned max)
{
    unsigned n = 0;

    spin_lock(&zoned->guard);
    for (uint64_t i = sector / zoned->zone_sectors; i < zoned->num_zones && n < max; i++, n++) {
        const struct zone *zone = &zoned->zones[i];
        bool has_wp = zone->state == VIRTIO_BLK_ZS_EMPTY || is_active(zone->state);

        out[n] = (struct virtio_blk_zone_descriptor){
            .z_cap = le64_put(zone_end(zoned, (uint32_t)i) - zone_start(zoned, (uint32_t)i)),
            .z_start = le64_put(zone_start(zoned, (uint32_t)i)),
            .z_wp = le64_put(has_wp ? zone->wp : zone_end(zoned, (uint32_t)i)),
            .z_type = conventional(zoned, (uint32_t)i) ? VIRTIO_BLK_ZT_CONV : VIRTIO_BLK_ZT_SWR,
            .z_state = zone->state,
        };
    }
    spin_unlock(&zoned->guard);
    return n;
}
