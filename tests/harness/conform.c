/* `ringside conform`: runs the rules and prints a row for each; see conform.h. */
#include "tests/harness/conform.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "tests/harness/commands.h"
#include "tests/harness/rig.h"

static const struct conform_rule *const chapters[] = {conform_general_rules, conform_ring_rules,
                                                      conform_request_rules, conform_zoned_rules,
                                                      conform_vhost_rules};

#define CHAPTERS (sizeof(chapters) / sizeof(chapters[0]))

static const char *const verdicts[] = {"pass", "FAIL", "n.a."};

enum verdict conform_fail(struct conform *c, const char *format, ...)
{
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(c->why, sizeof(c->why), format, arguments);
    va_end(arguments);
    return VERDICT_FAIL;
}

enum verdict conform_na(struct conform *c, const char *why)
{
    snprintf(c->why, sizeof(c->why), "%s", why);
    return VERDICT_NA;
}

const char *conform_status(int code)
{
    static char text[64];
    static const char *const names[] = {"OK", "IOERR", "UNSUPP"};

    if (code == -ETIMEDOUT || code == 0xee)
        snprintf(text, sizeof(text), code == 0xee ? "no status byte" : "no answer");
    else if (code == -ENODATA)
        snprintf(text, sizeof(text), "a call for a reset");
    else if (code < 0)
        snprintf(text, sizeof(text), "the end of the connection");
    else
        snprintf(text, sizeof(text), "status %d%s%s%s", code, code < 3 ? " (" : "",
                 code < 3 ? names[code] : "", code < 3 ? ")" : "");
    return text;
}

bool conform_open_options(struct conform *c, struct bed_options options)
{
    struct error err = {""};

    bed_close(&c->bed);
    options.path = c->path;
    options.packed = c->packed;
    if (bed_open(&c->bed, &options, &err) < 0) {
        snprintf(c->why, sizeof(c->why), "cannot set up a connection: %.200s", err.text);
        return false;
    }
    return true;
}

bool conform_open(struct conform *c, uint64_t features)
{
    return conform_open_options(c, (struct bed_options){.features = features});
}

/* Of a disk that every rule has room on */
#define LEAST_SECTORS 2048u

static bool learn(struct conform *c)
{
    if (!conform_open(c, 0))
        return false;
    if (c->bed.capacity < LEAST_SECTORS) {
        snprintf(c->why, sizeof(c->why),
                 "its disk has %" PRIu64 " sectors, too few to judge it by (%u will do)", c->bed.capacity,
                 LEAST_SECTORS);
        return false;
    }
    c->offered = c->bed.offered;
    c->read_only = c->offered & VIRTIO_BIT(VIRTIO_BLK_F_RO);
    bed_close(&c->bed);
    return true;
}

struct tally {
    unsigned count[3];
    json_t *rows;
    bool quiet;
};

static void judge(struct conform *c, const struct conform_rule *rule, bool packed, struct tally *tally)
{
    const char *ring = !(rule->flags & (RULE_RING | RULE_SPLIT | RULE_PACKED)) ? ""
                       : packed                                                ? "packed"
                                                                               : "split";
    enum verdict verdict;

    c->packed = packed;
    c->why[0] = '\0';
    if (packed && !(c->offered & VIRTIO_BIT(VIRTIO_F_RING_PACKED)))
        verdict = conform_na(c, "the device offers no packed ring");
    else if ((rule->flags & RULE_WRITES) && c->read_only)
        verdict = conform_na(c, "the disk is read-only");
    else
        verdict = rule->judge(c);
    bed_close(&c->bed);
    tally->count[verdict]++;
    if (!tally->quiet) {
        printf("%s  %-12s %-8s %-6s %s\n", verdicts[verdict], rule->section, rule->numbers, ring, rule->text);
        if (verdict != VERDICT_PASS && c->why[0])
            printf("      %27s %s%s\n", "", verdict == VERDICT_NA ? "" : "seen: ", c->why);
        fflush(stdout);
    }
    json_array_append_new(tally->rows,
                          json_pack("{s:s, s:s, s:s, s:s, s:s, s:s}", "verdict", verdicts[verdict], "section",
                                    rule->section, "numbers", rule->numbers, "ring", ring, "rule", rule->text,
                                    "why", c->why));
}

static void list_rules(void)
{
    for (size_t i = 0; i < CHAPTERS; i++)
        for (const struct conform_rule *rule = chapters[i]; rule->text; rule++)
            printf("%-12s %-8s %s\n", rule->section, rule->numbers, rule->text);
}

int command_conform(const struct settings *settings)
{
    struct error err = {""};
    struct rig rig;
    struct conform c = {.path = NULL};
    struct settings with_image = *settings;
    struct tally tally = {.rows = json_array(), .quiet = settings->json};
    unsigned ran;

    if (settings->list) {
        list_rules();
        json_decref(tally.rows);
        return 0;
    }
    with_image.scratch_image = true;
    with_image.queues = 2;
    if (rig_open_device(&rig, &with_image, &err) < 0) {
        log_message("%s", err.text);
        json_decref(tally.rows);
        return 1;
    }
    c.path = rig.path;
    if (!learn(&c)) {
        log_message("%s: %s", c.path, c.why);
        bed_close(&c.bed);
        rig_close(&rig);
        json_decref(tally.rows);
        return 1;
    }
    for (size_t i = 0; i < CHAPTERS; i++)
        for (const struct conform_rule *rule = chapters[i]; rule->text; rule++) {
            if (settings->only && !strstr(rule->text, settings->only) &&
                strcmp(rule->section, settings->only) != 0)
                continue;
            if (!(rule->flags & RULE_PACKED))
                judge(&c, rule, false, &tally);
            if ((rule->flags & RULE_PACKED) ||
                ((rule->flags & RULE_RING) && (c.offered & VIRTIO_BIT(VIRTIO_F_RING_PACKED))))
                judge(&c, rule, true, &tally);
        }
    if (settings->json) {
        json_t *all = json_pack("{s:s, s:i, s:i, s:i, s:O}", "device", rig.own ? "own" : rig.path, "pass",
                                (int)tally.count[VERDICT_PASS], "fail", (int)tally.count[VERDICT_FAIL],
                                "not_applicable", (int)tally.count[VERDICT_NA], "rules", tally.rows);

        json_dumpf(all, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(all);
    } else {
        printf("%u pass, %u fail, %u not applicable\n", tally.count[VERDICT_PASS], tally.count[VERDICT_FAIL],
               tally.count[VERDICT_NA]);
    }
    ran = tally.count[VERDICT_PASS] + tally.count[VERDICT_FAIL] + tally.count[VERDICT_NA];
    if (!ran)
        log_message("--only=%s: no such rule (--list names them)", settings->only ? settings->only : "");
    json_decref(tally.rows);
    rig_close(&rig);
    return tally.count[VERDICT_FAIL] || !ran ? 1 : 0;
}
