/*
 * ringside-img info: what an image is. One JSON object is made for each image, with the members that qemu-img
 * has; the text form is printed from the same object.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#include "host/cmd/img.h"
#include "host/qcow2/qcow2.h"

static void set(json_t *object, const char *key, json_t *value)
{
    json_object_set_new(object, key, value);
}

/* Text from an image may be anything: bytes that are not UTF-8 become question marks. */
static json_t *text(const char *string)
{
    json_t *value = json_string(string);
    if (value)
        return value;
    char *copy = strdup(string);
    for (char *c = copy; c && *c; c++) {
        if ((unsigned char)*c >= 0x80)
            *c = '?';
    }
    value = json_string(copy ? copy : "");
    free(copy);
    return value;
}

static json_t *luks_object(const struct qcow2_info *info)
{
    json_t *encrypt = json_object(), *slots = json_array();
    set(encrypt, "ivgen-alg", text(info->luks.ivgen));
    set(encrypt, "hash-alg", text(info->luks.hash));
    char cipher[64];
    snprintf(cipher, sizeof(cipher), "%s-%u", info->luks.cipher_name, info->luks.cipher_bits);
    set(encrypt, "cipher-alg", text(cipher));
    set(encrypt, "uuid", text(info->luks.uuid));
    set(encrypt, "format", json_string("luks"));
    set(encrypt, "cipher-mode", text(info->luks.cipher_mode));
    if (info->luks.ivgen_hash)
        set(encrypt, "ivgen-hash-alg", text(info->luks.ivgen_hash));
    for (unsigned i = 0; i < 8; i++) {
        const struct qcow2_luks_slot *slot = &info->luks.slots[i];
        json_t *one = json_object();
        set(one, "active", json_boolean(slot->active));
        if (slot->active) {
            set(one, "iters", json_integer(slot->iterations));
            set(one, "stripes", json_integer(slot->stripes));
        }
        set(one, "key-offset", json_integer((json_int_t)slot->key_offset));
        json_array_append_new(slots, one);
    }
    set(encrypt, "slots", slots);
    set(encrypt, "payload-offset", json_integer((json_int_t)info->luks.payload_offset));
    set(encrypt, "master-key-iters", json_integer(info->luks.master_key_iterations));
    return encrypt;
}

static json_t *coroutine_fn bitmaps_array(struct node *node)
{
    struct qcow2_bitmap_info *list;
    size_t count;
    if (qcow2_co_bitmaps(node, &list, &count, NULL) < 0)
        return NULL;
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++) {
        json_t *one = json_object(), *flags = json_array();
        if (list[i].in_use)
            json_array_append_new(flags, json_string("in-use"));
        if (list[i].auto_load)
            json_array_append_new(flags, json_string("auto"));
        set(one, "flags", flags);
        set(one, "name", text(list[i].name));
        set(one, "granularity", json_integer((json_int_t)list[i].granularity));
        json_array_append_new(array, one);
    }
    free(list);
    return array;
}

static json_t *coroutine_fn specific_object(struct node *node, const struct qcow2_info *info)
{
    json_t *data = json_object();
    set(data, "compat", json_string(info->version == 2 ? "0.10" : "1.1"));
    set(data, "compression-type", json_string(qcow2_compression_name(info->compression_type)));
    if (info->version >= 3)
        set(data, "lazy-refcounts", json_boolean(info->lazy_refcounts));
    json_t *bitmaps = info->nb_bitmaps ? bitmaps_array(node) : NULL;
    if (bitmaps)
        set(data, "bitmaps", bitmaps);
    set(data, "refcount-bits", json_integer(info->refcount_bits));
    if (info->version >= 3) {
        set(data, "corrupt", json_boolean(info->corrupt));
        set(data, "extended-l2", json_boolean(info->extended_l2));
        if (info->data_file) {
            set(data, "data-file", text(info->data_file));
            set(data, "data-file-raw", json_boolean(info->data_file_raw));
        }
    }
    if (info->encryption && strcmp(info->encryption, "luks") == 0) {
        set(data, "encrypt", luks_object(info));
    } else if (info->encryption) {
        json_t *encrypt = json_object();
        set(encrypt, "format", json_string(info->encryption));
        set(data, "encrypt", encrypt);
    }
    return data;
}

json_t *img_snapshots(struct node *node)
{
    struct qcow2_snapshot_info *list;
    size_t count;
    if (qcow2_snapshots(node, &list, &count) < 0)
        return NULL;
    if (count == 0) {
        free(list);
        return NULL;
    }
    json_t *array = json_array();
    for (size_t i = 0; i < count; i++) {
        const struct qcow2_snapshot_info *s = &list[i];
        json_t *one = json_object();
        if (s->icount != UINT64_MAX)
            set(one, "icount", json_integer((json_int_t)s->icount));
        set(one, "vm-clock-nsec", json_integer((json_int_t)(s->vm_clock_nsec % 1000000000)));
        set(one, "name", text(s->name));
        set(one, "date-sec", json_integer(s->date_sec));
        set(one, "date-nsec", json_integer(s->date_nsec));
        set(one, "vm-clock-sec", json_integer((json_int_t)(s->vm_clock_nsec / 1000000000)));
        set(one, "id", text(s->id));
        set(one, "vm-state-size", json_integer((json_int_t)s->vm_state_bytes));
        json_array_append_new(array, one);
    }
    free(list);
    return array;
}

/* Adds what only qcow2 has. *BACKING: the full name of the backing file, to be freed. */
static void coroutine_fn add_qcow2(json_t *object, struct node *node, char **backing, char **backing_format)
{
    struct qcow2_info info;
    if (qcow2_info(node, &info) < 0)
        return;
    json_t *snapshots = img_snapshots(node), *specific = json_object();
    if (snapshots)
        set(object, "snapshots", snapshots);
    set(object, "cluster-size", json_integer(info.cluster_bytes));
    if (info.encryption)
        set(object, "encrypted", json_true());
    set(specific, "type", json_string("qcow2"));
    set(specific, "data", specific_object(node, &info));
    set(object, "format-specific", specific);
    set(object, "dirty-flag", json_boolean(info.dirty));
    if (!info.backing_file || !info.backing_file[0])
        return;
    set(object, "backing-filename", text(info.backing_file));
    if (info.backing_format && info.backing_format[0]) {
        set(object, "backing-filename-format", text(info.backing_format));
        *backing_format = strdup(info.backing_format);
    }
    if (node_resolve_name(node->filename, info.backing_file, backing, NULL) == 0)
        set(object, "full-backing-filename", text(*backing));
}

static json_t *coroutine_fn info_object(struct node *node, char **backing, char **backing_format)
{
    json_t *object = json_object();
    struct stat st;
    set(object, "virtual-size", json_integer((json_int_t)node_length(node)));
    set(object, "filename", text(node->filename));
    set(object, "format", json_string(node->driver->format_name));
    if (stat(node->filename, &st) == 0)
        set(object, "actual-size", json_integer((json_int_t)st.st_blocks * 512));
    if (node->driver == &qcow2_driver)
        add_qcow2(object, node, backing, backing_format);
    else
        set(object, "dirty-flag", json_false());
    return object;
}

/* May the chain be followed from PATH to NEXT? Says why not. */
static bool may_follow(const struct img_options *options, const char *path, const char *next)
{
    struct open_options open;
    struct error err = {""};
    char *real = NULL, *name = NULL;
    int ret = img_open_options(options, 0, &open, &err);
    if (ret == 0 && !(name = realpath(next, NULL)))
        ret = error_set(&err, -errno, "backing file '%s' cannot be opened: %s", next, strerror(errno));
    if (ret == 0)
        ret = node_resolve_allowed(path, name, &open, &real, &err);
    if (ret < 0)
        img_failed(path, &err);
    free(real);
    free(name);
    return ret == 0;
}

/* ---- as text ---- */

static const char *string_of(json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static json_int_t integer_of(json_t *object, const char *key)
{
    return json_integer_value(json_object_get(object, key));
}

void img_print_snapshots(json_t *snapshots)
{
    size_t i;
    json_t *s;
    printf("Snapshot list:\n%-9s %-16s %8s %19s %12s %10s\n", "ID", "TAG", "VM SIZE", "DATE", "VM CLOCK",
           "ICOUNT");
    json_array_foreach(snapshots, i, s)
    {
        char size[32], date[32] = "", clock[32], icount[24] = "";
        time_t when = (time_t)integer_of(s, "date-sec");
        struct tm tm;
        if (localtime_r(&when, &tm))
            strftime(date, sizeof(date), "%Y-%m-%d %H:%M:%S", &tm);
        uint64_t seconds = (uint64_t)integer_of(s, "vm-clock-sec");
        snprintf(clock, sizeof(clock), "%02" PRIu64 ":%02u:%02u.%03u", seconds / 3600,
                 (unsigned)(seconds / 60 % 60), (unsigned)(seconds % 60),
                 (unsigned)(integer_of(s, "vm-clock-nsec") / 1000000));
        if (json_object_get(s, "icount"))
            snprintf(icount, sizeof(icount), "%" JSON_INTEGER_FORMAT, integer_of(s, "icount"));
        printf("%-9s %-16s %8s %19s %12s %10s\n", string_of(s, "id"), string_of(s, "name"),
               img_size_text((uint64_t)integer_of(s, "vm-state-size"), size), date, clock, icount);
    }
}

static void print_info(json_t *object)
{
    char size[32];
    json_t *value;
    printf("image: %s\nfile format: %s\nvirtual size: %s (%" JSON_INTEGER_FORMAT " bytes)\n",
           string_of(object, "filename"), string_of(object, "format"),
           img_size_text((uint64_t)integer_of(object, "virtual-size"), size),
           integer_of(object, "virtual-size"));
    if (json_object_get(object, "actual-size"))
        printf("disk size: %s\n", img_size_text((uint64_t)integer_of(object, "actual-size"), size));
    if (json_is_true(json_object_get(object, "encrypted")))
        printf("encrypted: yes\n");
    if (json_object_get(object, "cluster-size"))
        printf("cluster_size: %" JSON_INTEGER_FORMAT "\n", integer_of(object, "cluster-size"));
    if (json_is_true(json_object_get(object, "dirty-flag")))
        printf("cleanly shut down: no\n");
    if (json_object_get(object, "backing-filename")) {
        const char *name = string_of(object, "backing-filename"),
                   *full = string_of(object, "full-backing-filename");
        printf("backing file: %s", name);
        if (full && strcmp(full, name) != 0)
            printf(" (actual path: %s)", full);
        putchar('\n');
        if (json_object_get(object, "backing-filename-format"))
            printf("backing file format: %s\n", string_of(object, "backing-filename-format"));
    }
    if ((value = json_object_get(object, "snapshots")))
        img_print_snapshots(value);
    if ((value = json_object_get(object, "format-specific"))) {
        printf("Format specific information:\n");
        img_print_object(json_object_get(value, "data"), 4);
    }
}

int coroutine_fn img_co_info(const struct img_options *options)
{
    bool json;
    int status = img_output(options, &json);
    if (status)
        return status;
    json_t *all = json_array();
    char *path = strdup(options->names[0]), *format = options->format ? strdup(options->format) : NULL;
    for (unsigned depth = 0; path && status == 0; depth++) {
        struct node *node;
        char *next = NULL, *next_format = NULL;
        if (depth > NODE_DEPTH_MAX) {
            log_message("%s: more than %u backing files below each other", options->names[0], NODE_DEPTH_MAX);
            status = CMD_EXIT_FAILED;
            break;
        }
        if (img_co_open(options, path, format, IMG_NO_BACKING | IMG_NO_IO, &node) < 0) {
            status = CMD_EXIT_FAILED;
            break;
        }
        json_t *object = info_object(node, &next, &next_format);
        img_co_close(node);
        if (!json) {
            if (depth > 0)
                putchar('\n');
            print_info(object);
        }
        json_array_append_new(all, object);
        if (options->backing_chain && next && !may_follow(options, path, next))
            status = CMD_EXIT_FAILED;
        free(path);
        free(format);
        path = options->backing_chain ? next : NULL;
        format = options->backing_chain ? next_format : NULL;
        if (!options->backing_chain) {
            free(next);
            free(next_format);
        }
    }
    free(path);
    free(format);
    if (json && status == 0)
        img_print_json(options->backing_chain ? json_incref(all) : json_incref(json_array_get(all, 0)));
    json_decref(all);
    return status;
}
