/*
 * ringside-img check: looks for errors in a qcow2 image, and repairs them when asked.
 */
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "host/cmd/img.h"
#include "host/qcow2/qcow2.h"

static void report(void *opaque, const char *line)
{
    const struct img_options *options = opaque;
    if (!options->quiet)
        log_message("%s", line);
}

static void set_unless_zero(json_t *object, const char *key, uint64_t value)
{
    if (value)
        json_object_set_new(object, key, json_integer((json_int_t)value));
}

static void print_json(const char *path, const struct qcow2_check *check)
{
    json_t *object = json_object();
    json_object_set_new(object, "filename", json_string(path));
    json_object_set_new(object, "format", json_string("qcow2"));
    json_object_set_new(object, "check-errors", json_integer((json_int_t)check->check_errors));
    set_unless_zero(object, "image-end-offset", check->image_end_offset);
    set_unless_zero(object, "corruptions", check->corruptions);
    set_unless_zero(object, "leaks", check->leaks);
    set_unless_zero(object, "corruptions-fixed", check->corruptions_fixed);
    set_unless_zero(object, "leaks-fixed", check->leaks_fixed);
    set_unless_zero(object, "total-clusters", check->total_clusters);
    set_unless_zero(object, "allocated-clusters", check->allocated_clusters);
    set_unless_zero(object, "fragmented-clusters", check->fragmented_clusters);
    set_unless_zero(object, "compressed-clusters", check->compressed_clusters);
    img_print_json(object);
}

/* FIX: what was to be repaired; what is still wrong then is no work for another such repair. */
static void print_text(const struct qcow2_check *check, unsigned fix)
{
    if (check->leaks_fixed || check->corruptions_fixed)
        printf("Repaired: %" PRIu64 " leaked clusters, %" PRIu64 " corruptions.\n", check->leaks_fixed,
               check->corruptions_fixed);
    if (!check->corruptions && !check->leaks && !check->check_errors)
        printf("No errors were found on the image.\n");
    if (check->corruptions)
        printf("%" PRIu64 " errors were found: data may be lost, and writing may lose more%s.\n",
               check->corruptions, fix & QCOW2_FIX_ERRORS ? "" : " (check -r all repairs)");
    if (check->leaks)
        printf("%" PRIu64 " leaked clusters were found: space is wasted, nothing is lost%s.\n", check->leaks,
               fix & QCOW2_FIX_LEAKS ? "" : " (check -r leaks repairs)");
    if (check->check_errors)
        printf("%" PRIu64 " things could not be looked at.\n", check->check_errors);
    if (check->total_clusters)
        printf("%" PRIu64 "/%" PRIu64
               " = %0.2f%% allocated, %0.2f%% fragmented, %0.2f%% compressed clusters\n",
               check->allocated_clusters, check->total_clusters,
               100.0 * (double)check->allocated_clusters / (double)check->total_clusters,
               check->allocated_clusters
                   ? 100.0 * (double)check->fragmented_clusters / (double)check->allocated_clusters
                   : 0.0,
               check->allocated_clusters
                   ? 100.0 * (double)check->compressed_clusters / (double)check->allocated_clusters
                   : 0.0);
    if (check->image_end_offset)
        printf("Image end offset: %" PRIu64 "\n", check->image_end_offset);
}

int coroutine_fn img_co_check(const struct img_options *options)
{
    const char *path = options->names[0];
    struct error err = {""};
    struct qcow2_check check = {0};
    struct node *node;
    unsigned fix = 0;
    bool json;
    if (img_output(options, &json))
        return CMD_EXIT_FAILED; /* not CMD_EXIT_USAGE, which is that of a corrupt image */
    if (options->repair) {
        if (strcmp(options->repair, "leaks") == 0) {
            fix = QCOW2_FIX_LEAKS;
        } else if (strcmp(options->repair, "all") == 0) {
            fix = QCOW2_FIX_LEAKS | QCOW2_FIX_ERRORS;
        } else {
            log_message("-r %s: what is to be repaired is 'leaks' or 'all'", options->repair);
            return CMD_EXIT_FAILED;
        }
    }
    if (fix && options->force_share) {
        log_message("-U leaves the image to others, and -r changes it (leave one of the two out)");
        return CMD_EXIT_FAILED;
    }
    unsigned flags = IMG_CHECK | IMG_NO_BACKING | (fix ? IMG_WRITE : 0);
    if (options->source_cache)
        flags |= IMG_SOURCE;
    if (img_co_open(options, path, options->format, flags, &node) < 0)
        return CMD_EXIT_FAILED;
    if (node->driver != &qcow2_driver) {
        log_message("%s: images of format %s have nothing to check", path, node->driver->format_name);
        img_co_close(node);
        return IMG_EXIT_UNSUPPORTED;
    }
    int ret = qcow2_co_check(node, fix, &check, report, (void *)(uintptr_t)options, &err);
    int closed = img_co_close(node);
    if (ret < 0)
        return img_failed(path, &err);
    if (json && !options->quiet)
        print_json(path, &check);
    else if (!options->quiet)
        print_text(&check, fix);
    if (check.check_errors || closed < 0) /* not completed comes before what was found so far */
        return CMD_EXIT_FAILED;
    if (check.corruptions)
        return IMG_EXIT_CORRUPT;
    return check.leaks ? IMG_EXIT_LEAKS : CMD_EXIT_OK;
}
