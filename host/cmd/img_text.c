/*
 * ringside-img: how sizes, objects and progress are printed, and how sizes are read.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/block/parse.h"
#include "host/cmd/img.h"

const char *img_size_text(uint64_t bytes, char text[32])
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double value = (double)bytes;
    unsigned unit = 0;
    /* Three digits are shown, so 1000 of a unit is already written in the next one. */
    while (value >= 1000.0 && unit < 6) {
        value /= 1024.0;
        unit++;
    }
    snprintf(text, 32, "%0.3g %s", value, units[unit]);
    return text;
}

void img_print_json(json_t *json)
{
    json_dumpf(json, stdout, JSON_INDENT(4) | JSON_ENCODE_ANY);
    putchar('\n');
    json_decref(json);
}

static void print_value(json_t *value, unsigned indent)
{
    size_t index;
    json_t *element;
    switch (json_typeof(value)) {
    case JSON_OBJECT:
        putchar('\n');
        img_print_object(value, indent + 4);
        break;
    case JSON_ARRAY:
        putchar('\n');
        json_array_foreach(value, index, element)
        {
            printf("%*s[%zu]:", (int)indent + 4, "", index);
            print_value(element, indent + 4);
        }
        break;
    case JSON_STRING:
        printf(" %s\n", json_string_value(value));
        break;
    case JSON_INTEGER:
        printf(" %" JSON_INTEGER_FORMAT "\n", json_integer_value(value));
        break;
    case JSON_TRUE:
        printf(" true\n");
        break;
    default:
        printf(" false\n");
    }
}

void img_print_object(json_t *object, unsigned indent)
{
    const char *key;
    json_t *value;
    json_object_foreach(object, key, value)
    {
        printf("%*s", (int)indent, "");
        for (const char *c = key; *c; c++)
            putchar(*c == '-' ? ' ' : *c);
        putchar(':');
        print_value(value, indent);
    }
}

void img_progress_begin(struct img_progress *progress, bool on)
{
    *progress = (struct img_progress){on, 0};
    img_progress(progress, 0, 1);
}

void img_progress(struct img_progress *progress, uint64_t done, uint64_t all)
{
    if (!progress->on)
        return;
    unsigned now = all ? (unsigned)((double)done / (double)all * 10000.0) : 10000;
    if (now == progress->last && now != 0)
        return;
    progress->last = now;
    printf("    (%u.%02u/100%%)\r", now / 100, now % 100);
    fflush(stdout);
}

void img_progress_end(struct img_progress *progress)
{
    if (progress->on)
        putchar('\n');
}

int img_parse_new_size(const char *text, uint64_t old, uint64_t *bytes, struct error *err)
{
    char sign = text[0] == '+' || text[0] == '-' ? text[0] : '\0';
    uint64_t n;
    if (parse_size(text + (sign != '\0'), &n) < 0)
        return error_set(err, -EINVAL, "'%s' is not a size (bytes, or a number with k, M, G, T, P or E)",
                         text);
    if (sign == '-' && n >= old)
        return error_set(err, -EINVAL, "'%s' would leave nothing of the image's %" PRIu64 " bytes", text,
                         old);
    *bytes = sign == '+' ? old + n : sign == '-' ? old - n : n;
    if (*bytes > INT64_MAX)
        return error_set(err, -EINVAL, "'%s' is more than an image can have", text);
    return 0;
}
