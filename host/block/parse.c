/*
 * Words on command lines (parse.h).
 */
#include "host/block/parse.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static int shift_of_suffix(char c)
{
    static const char suffixes[] = "bkmgtpe";
    const char *at = c ? strchr(suffixes, c | 0x20) : NULL;
    return at ? (int)(at - suffixes) * 10 : -1;
}

int parse_number(const char *text, uint64_t *number)
{
    char *end;
    if (text[0] < '0' || text[0] > '9')
        return -EINVAL;
    errno = 0;
    /* No leading zero means octal here: 010 is ten. */
    unsigned long long n = strtoull(text, &end, text[0] == '0' && (text[1] | 0x20) == 'x' ? 16 : 10);
    if (*end != '\0')
        return -EINVAL;
    if (errno == ERANGE)
        return -ERANGE;
    *number = n;
    return 0;
}

int parse_size(const char *text, uint64_t *bytes)
{
    if (text[0] == '0' && (text[1] | 0x20) == 'x') {
        int ret = parse_number(text, bytes);
        return ret == 0 && *bytes > INT64_MAX ? -ERANGE : ret;
    }
    char *end;
    if (text[0] < '0' || text[0] > '9')
        return -EINVAL;
    errno = 0;
    unsigned long long whole = strtoull(text, &end, 10);
    if (errno == ERANGE)
        return -ERANGE;
    const char *digits = NULL;
    size_t digit_count = 0;
    if (*end == '.') {
        digits = end + 1;
        digit_count = strspn(digits, "0123456789");
        if (digit_count == 0)
            return -EINVAL;
        end += 1 + digit_count;
    }
    int shift = 0;
    if (*end) {
        shift = shift_of_suffix(*end);
        if (shift < 0 || end[1] != '\0')
            return -EINVAL;
    }
    if (digits && shift == 0 && strspn(digits, "0") < digit_count) /* a unit was forgotten */
        return -EINVAL;
    if (whole > (uint64_t)INT64_MAX >> shift)
        return -ERANGE;
    /* A fraction of the unit, digit by digit; what is finer than a byte is cut off. */
    uint64_t n = whole << shift;
    __uint128_t unit = (__uint128_t)1 << shift, divisor = 1, fraction = 0;
    for (size_t i = 0; i < digit_count && i < 18; i++) {
        divisor *= 10;
        fraction = fraction * 10 + (unsigned)(digits[i] - '0');
    }
    n += (uint64_t)(fraction * unit / divisor);
    if (n > INT64_MAX)
        return -ERANGE;
    *bytes = n;
    return 0;
}

int parse_options(const char *list,
                  int (*set)(void *opaque, const char *key, const char *value, struct error *err),
                  void *opaque, struct error *err)
{
    const char *all = list;
    char *word = malloc(strlen(list) + 1);
    bool comma = false; /* another one has to follow */
    int ret = 0;
    if (!word)
        return error_set(err, -ENOMEM, "out of memory");
    while ((*list || comma) && ret == 0) {
        size_t n = 0;
        for (; *list && (*list != ',' || list[1] == ','); list++) {
            if (*list == ',')
                list++;
            word[n++] = *list;
        }
        word[n] = '\0';
        comma = *list == ',';
        list += comma;
        char *value = strchr(word, '=');
        if (value)
            *value++ = '\0';
        ret = word[0] ? set(opaque, word, value, err)
                      : error_set(err, -EINVAL, "'%s' has an option without a name", all);
    }
    free(word);
    return ret;
}
