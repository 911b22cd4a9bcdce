/*
 * The filter that injects errors; the language of its rules is in inject.h.
 *
 * What always holds: rules are matched, counted and changed under one spin section, so "the third write
 * fails" means one write on one loop.
 */
#include "host/block/inject.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "host/block/parse.h"
#include "host/runtime/world.h"

enum inject_op { OP_READ, OP_WRITE, OP_ZERO, OP_DISCARD, OP_FLUSH, OP_TRUNCATE, OP_ANY, OP_COUNT };
enum inject_mode { MODE_NONE, MODE_FAIL, MODE_SHORT, MODE_LATE };

static const char *const op_names[OP_COUNT] = {"read",  "write",    "zero", "discard",
                                               "flush", "truncate", "any"};

struct rule {
    enum inject_op op;
    enum inject_mode mode;
    bool ranged, half;
    uint64_t at, len;
    uint64_t skip, times;
    int error; /* negative errno */
    uint64_t short_bytes;
    uint64_t late_ns, late_most_ns; /* as long as the one, or any time up to the other */
};

#define RULES_MAX 64

struct inject {
    struct spinlock guard;
    unsigned count;
    uint64_t hits;
    struct rule rules[RULES_MAX];
};

/* ---- the language ---- */

static int set_mode(struct rule *rule, const char *value)
{
    static const char *const names[] = {"", "fail", "short", "late"};
    for (enum inject_mode m = MODE_FAIL; m <= MODE_LATE; m++) {
        if (strcmp(value, names[m]) == 0) {
            rule->mode = m;
            return 0;
        }
    }
    return -EINVAL;
}

static int set_at(struct rule *rule, const char *value)
{
    char start[64];
    size_t n = strcspn(value, "+");
    if (n >= sizeof(start))
        return -EINVAL;
    memcpy(start, value, n);
    start[n] = '\0';
    rule->ranged = true;
    rule->len = 1;
    if (parse_size(start, &rule->at) < 0)
        return -EINVAL;
    return value[n] ? parse_size(value + n + 1, &rule->len) : 0;
}

static int set_skip(struct rule *rule, const char *value)
{
    return parse_number(value, &rule->skip);
}

static int set_times(struct rule *rule, const char *value)
{
    if (strcmp(value, "always") == 0) {
        rule->times = UINT64_MAX;
        return 0;
    }
    return parse_number(value, &rule->times);
}

static int set_error(struct rule *rule, const char *value)
{
    uint64_t number = 0;
    if (parse_number(value, &number) < 0) {
        for (int e = 1; e < 134 && number == 0; e++) {
            const char *name = strerrorname_np(e);
            if (name && strcmp(name, value) == 0)
                number = (uint64_t)e;
        }
    }
    if (number == 0 || number > 133)
        return -EINVAL;
    rule->error = -(int)number;
    return 0;
}

static int set_bytes(struct rule *rule, const char *value)
{
    rule->half = false;
    return parse_size(value, &rule->short_bytes);
}

static int set_ms(struct rule *rule, const char *value)
{
    uint64_t ms, most;
    char from[32];
    const char *to = strchr(value, '-');
    snprintf(from, sizeof from, "%.*s", to ? (int)(to - value) : (int)strlen(value), value);
    if (parse_number(from, &ms) < 0 || parse_number(to ? to + 1 : from, &most) < 0 || most < ms ||
        most > 3600000)
        return -EINVAL;
    rule->late_ns = ms * 1000000;
    rule->late_most_ns = most * 1000000;
    return 0;
}

static const struct {
    const char *key;
    int (*set)(struct rule *rule, const char *value);
} keys[] = {
    {"mode", set_mode},   {"at", set_at},       {"skip", set_skip}, {"times", set_times},
    {"error", set_error}, {"bytes", set_bytes}, {"ms", set_ms},
};

static int set_option(void *opaque, const char *key, const char *value, struct error *err)
{
    struct rule *rule = opaque;
    if (rule->op == OP_COUNT) { /* the first word is the operation */
        for (enum inject_op op = 0; op < OP_COUNT && !value; op++) {
            if (strcmp(key, op_names[op]) == 0) {
                rule->op = op;
                return 0;
            }
        }
        return error_set(
            err, -EINVAL,
            "inject: a rule begins with read, write, zero, discard, flush, truncate or any, not '%s'", key);
    }
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        if (strcmp(key, keys[i].key) != 0)
            continue;
        if (!value || keys[i].set(rule, value) < 0)
            return error_set(err, -EINVAL, "inject: '%s' is not a value for %s", value ? value : "", key);
        return 0;
    }
    return error_set(err, -EINVAL,
                     "inject: unknown key '%s' (mode, at, skip, times, error, bytes and ms are known)", key);
}

static int parse_rule(const char *text, struct rule *rule, struct error *err)
{
    *rule = (struct rule){.op = OP_COUNT,
                          .mode = MODE_FAIL,
                          .half = true,
                          .times = 1,
                          .error = -EIO,
                          .late_ns = 10 * 1000000,
                          .late_most_ns = 10 * 1000000};
    int ret = parse_options(text, set_option, rule, err);
    if (ret == 0 && rule->op == OP_COUNT)
        ret = error_set(err, -EINVAL, "inject: an empty rule");
    return ret;
}

static int add_rules(struct inject *inject, const char *spec, struct error *err)
{
    char *copy = strdup(spec), *save = NULL;
    int ret = copy ? 0 : -ENOMEM;
    for (char *text = copy ? strtok_r(copy, ";", &save) : NULL; text && ret == 0;
         text = strtok_r(NULL, ";", &save)) {
        struct rule rule;
        ret = parse_rule(text + strspn(text, " "), &rule, err);
        if (ret < 0)
            break;
        spin_lock(&inject->guard);
        if (inject->count < RULES_MAX)
            inject->rules[inject->count++] = rule;
        else
            ret = -ENOSPC;
        spin_unlock(&inject->guard);
        if (ret < 0)
            error_set(err, ret, "inject: more than %u rules", RULES_MAX);
    }
    free(copy);
    return ret;
}

/* ---- what happens to a request ---- */

static bool rule_matches(const struct rule *rule, enum inject_op op, uint64_t offset, uint64_t bytes)
{
    if (rule->op != OP_ANY && rule->op != op)
        return false;
    return !rule->ranged || (offset < rule->at + rule->len && rule->at < offset + bytes);
}

/* The rule that acts on a request, as a copy; mode MODE_NONE if none does. Sleeps out a late one. */
static struct rule coroutine_fn inject_decide(struct node *node, enum inject_op op, uint64_t offset,
                                              uint64_t bytes)
{
    struct inject *inject = node->opaque;
    struct rule decision = {.mode = MODE_NONE};
    spin_lock(&inject->guard);
    for (unsigned i = 0; i < inject->count && decision.mode == MODE_NONE; i++) {
        struct rule *rule = &inject->rules[i];
        if (rule->times == 0 || !rule_matches(rule, op, offset, bytes))
            continue;
        if (rule->skip > 0) {
            rule->skip--;
            continue;
        }
        if (rule->times != UINT64_MAX)
            rule->times--;
        inject->hits++;
        decision = *rule;
    }
    spin_unlock(&inject->guard);
    if (decision.mode == MODE_LATE) {
        uint64_t chance = 0, more = decision.late_most_ns - decision.late_ns;
        if (more > 0)
            world->random(world, &chance, sizeof chance);
        co_sleep_ns(decision.late_ns + (more > 0 ? chance % (more + 1) : 0));
        decision.mode = MODE_NONE;
    }
    return decision;
}

static uint64_t short_bytes(const struct rule *rule, uint64_t bytes)
{
    uint64_t n = rule->half ? bytes / 2 : rule->short_bytes;
    return n < bytes ? n : bytes;
}

static int coroutine_fn inject_co_preadv(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                         unsigned flags)
{
    struct rule rule = inject_decide(node, OP_READ, offset, bytes);
    if (rule.mode == MODE_SHORT)
        node_co_preadv(node->file, offset, short_bytes(&rule, bytes), sg, flags);
    if (rule.mode != MODE_NONE)
        return rule.error;
    return node_co_preadv(node->file, offset, bytes, sg, flags);
}

static int coroutine_fn inject_co_pwritev(struct node *node, uint64_t offset, uint64_t bytes, struct sg sg,
                                          unsigned flags)
{
    struct rule rule = inject_decide(node, OP_WRITE, offset, bytes);
    if (rule.mode == MODE_SHORT)
        node_co_pwritev(node->file, offset, short_bytes(&rule, bytes), sg, flags);
    int ret = rule.mode != MODE_NONE ? rule.error : node_co_pwritev(node->file, offset, bytes, sg, flags);
    node_grow_length(node, node_length(node->file));
    return ret;
}

static int coroutine_fn inject_co_pwrite_zeroes(struct node *node, uint64_t offset, uint64_t bytes,
                                                unsigned flags)
{
    struct rule rule = inject_decide(node, OP_ZERO, offset, bytes);
    if (rule.mode != MODE_NONE)
        return rule.error;
    int ret = node_co_pwrite_zeroes(node->file, offset, bytes, flags);
    node_grow_length(node, node_length(node->file));
    return ret;
}

static int coroutine_fn inject_co_pdiscard(struct node *node, uint64_t offset, uint64_t bytes)
{
    struct rule rule = inject_decide(node, OP_DISCARD, offset, bytes);
    return rule.mode != MODE_NONE ? rule.error : node_co_pdiscard(node->file, offset, bytes);
}

static int coroutine_fn inject_co_flush(struct node *node)
{
    struct rule rule = inject_decide(node, OP_FLUSH, 0, UINT64_MAX / 2);
    return rule.mode != MODE_NONE ? rule.error : node_co_flush(node->file);
}

static int coroutine_fn inject_co_truncate(struct node *node, uint64_t bytes, bool exact, struct error *err)
{
    struct rule rule = inject_decide(node, OP_TRUNCATE, bytes, 1);
    if (rule.mode != MODE_NONE)
        return error_set(err, rule.error, "%s: cannot be resized: %s (injected)", node->filename,
                         strerror(-rule.error));
    int ret = node_co_truncate(node->file, bytes, exact, err);
    node_set_length(node, node_length(node->file));
    return ret;
}

static int coroutine_fn inject_co_block_status(struct node *node, uint64_t offset, uint64_t bytes,
                                               uint64_t *pnum, unsigned *flags, uint64_t *host_offset)
{
    return node_co_block_status(node->file, offset, bytes, pnum, flags, host_offset);
}

static int setup(struct node *node, void *opaque, struct error *err)
{
    return add_rules(node->opaque, opaque, err);
}

const struct node_driver inject_driver = {
    .format_name = "inject",
    .instance_bytes = sizeof(struct inject),
    .is_filter = true,
    .co_preadv = inject_co_preadv,
    .co_pwritev = inject_co_pwritev,
    .co_pwrite_zeroes = inject_co_pwrite_zeroes,
    .co_pdiscard = inject_co_pdiscard,
    .co_flush = inject_co_flush,
    .co_truncate = inject_co_truncate,
    .co_block_status = inject_co_block_status,
    .supports_fua = true,
};

int coroutine_fn inject_co_open(struct node *below, const char *spec, struct node **node, struct error *err)
{
    return node_co_open_filter(&inject_driver, below, setup, (void *)(uintptr_t)spec, node, err);
}

static struct inject *find(struct node *node)
{
    while (node && node->driver != &inject_driver)
        node = node->file;
    return node ? node->opaque : NULL;
}

int inject_add(struct node *node, const char *spec, struct error *err)
{
    struct inject *inject = find(node);
    if (!inject)
        return error_set(err, -ENOENT, "there is no inject filter here (open the image with --inject)");
    return add_rules(inject, spec, err);
}

void inject_clear(struct node *node)
{
    struct inject *inject = find(node);
    if (!inject)
        return;
    spin_lock(&inject->guard);
    inject->count = 0;
    spin_unlock(&inject->guard);
}

uint64_t inject_hits(struct node *node)
{
    struct inject *inject = find(node);
    if (!inject)
        return 0;
    spin_lock(&inject->guard);
    uint64_t hits = inject->hits;
    spin_unlock(&inject->guard);
    return hits;
}
