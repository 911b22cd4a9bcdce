/* `ringside torture`: runs the cases and looks after each whether the device still serves; see torture.h. */
#include "tests/harness/torture.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "host/runtime/coroutine.h"
#include "tests/harness/commands.h"
#include "tests/harness/measure.h"
#include "tests/harness/rig.h"

static const char *const outcomes[] = {"answered", "refused", "asked for a reset", "ended the connection",
                                       "silence",  "skipped"};

#define OUTCOMES (sizeof(outcomes) / sizeof(outcomes[0]))

void torture_add(struct torture_list *list,
                 enum outcome (*run)(struct torture *, const struct torture_case *), uint64_t a, uint64_t b,
                 const char *format, ...)
{
    struct torture_case *c;
    va_list arguments;

    if (list->count == list->room) {
        unsigned room = list->room ? list->room * 2 : 256;
        struct torture_case *cases = realloc(list->cases, room * sizeof(*cases));

        if (!cases)
            return;
        list->cases = cases;
        list->room = room;
    }
    c = &list->cases[list->count++];
    *c = (struct torture_case){.run = run, .a = a, .b = b};
    va_start(arguments, format);
    vsnprintf(c->name, sizeof(c->name), format, arguments);
    va_end(arguments);
}

bool torture_open(struct torture *t, struct bed_options options)
{
    struct error err;

    bed_close(&t->bed);
    options.path = t->path;
    options.message_ms = options.message_ms ? options.message_ms : 2000;
    return bed_open(&t->bed, &options, &err) == 0;
}

enum outcome torture_look(struct torture *t)
{
    return bed_alive(&t->bed) ? OUTCOME_ANSWERED : OUTCOME_ENDED;
}

enum outcome torture_look_over(struct torture *t)
{
    struct vhost_user_header header;
    uint8_t reply[4200];

    if (vhost_user_front_send(&t->bed.front, VHOST_USER_GET_FEATURES, 0, NULL, 0, NULL, 0) < 0)
        return OUTCOME_ENDED;
    for (unsigned i = 0; i < 3; i++) {
        int fd = -1, code = vhost_user_front_receive(&t->bed.front, &header, reply, sizeof(reply), &fd);

        if (fd >= 0)
            close(fd);
        if (code == -ETIMEDOUT)
            return OUTCOME_SILENCE;
        if (code < 0)
            return OUTCOME_ENDED;
        if (header.request == VHOST_USER_GET_FEATURES)
            return OUTCOME_ANSWERED;
    }
    return OUTCOME_ANSWERED;
}

enum outcome torture_ring_look(struct torture *t, unsigned queue, const uint8_t *status)
{
    int code = bed_wait(&t->bed, queue, 40, NULL, NULL);

    if (code == -EPIPE)
        return OUTCOME_ENDED;
    if (code == -ENODATA || bed_needs_reset(&t->bed))
        return OUTCOME_RESET;
    if (code == 0)
        return bed_alive(&t->bed) ? OUTCOME_SILENCE : OUTCOME_ENDED;
    return status && __atomic_load_n(status, __ATOMIC_RELAXED) != VIRTIO_BLK_S_OK ? OUTCOME_REFUSED
                                                                                  : OUTCOME_ANSWERED;
}

/* Does it serve an ordinary front end? */
static bool healthy(struct torture *t, char *why, size_t bytes)
{
    struct bed_options options = {
        .path = t->path, .features = ~VIRTIO_BIT(VIRTIO_F_ACCESS_PLATFORM), .message_ms = BED_WAIT_MS};
    struct error err = {""};
    uint8_t data[4096];
    int code;

    bed_close(&t->bed);
    options.features &= ~(VIRTIO_BIT(VIRTIO_F_IN_ORDER) | VIRTIO_BIT(VIRTIO_F_EVENT_IDX));
    code = bed_open(&t->bed, &options, &err);
    if (code < 0) {
        snprintf(why, bytes, "no new connection: %.120s", err.text);
        bed_close(&t->bed);
        return false;
    }
    code = bed_request(&t->bed, 0, VIRTIO_BLK_T_IN, 0, data, sizeof(data), true, NULL);
    if (code != 0)
        snprintf(why, bytes, "a read on a new connection ended with %d", code);
    bed_close(&t->bed);
    return code == 0;
}

static FILE *open_of(pid_t pid, const char *what)
{
    char path[64];

    if (pid)
        snprintf(path, sizeof(path), "/proc/%d/%s", (int)pid, what);
    else
        snprintf(path, sizeof(path), "/proc/self/%s", what);
    return fopen(path, "r");
}

static void residue_count(struct residue *residue, pid_t pid, bool own)
{
    struct co_pool_stats coroutines = {0};
    char path[64], *line = NULL;
    size_t room = 0;
    FILE *maps = open_of(pid, "maps");
    DIR *dir;

    memset(residue, 0, sizeof(*residue));
    while (maps && getline(&line, &room, maps) > 0)
        residue->mappings += strstr(line, "memfd:") != NULL;
    free(line);
    if (maps)
        fclose(maps);
    snprintf(path, sizeof(path), pid ? "/proc/%d/fd" : "/proc/self/fd", (int)pid);
    dir = opendir(path);
    while (dir && readdir(dir))
        residue->descriptors++;
    if (dir)
        closedir(dir);
    if (own)
        co_pool_stats(&coroutines);
    residue->coroutines = coroutines.alive;
}

/* The device may still be about to let go: looks again for BED_WAIT_MS. False with a sentence. */
static bool nothing_left(struct torture *t, char *why, size_t bytes)
{
    uint64_t end = bed_now_ms() + BED_WAIT_MS;
    struct residue now;

    for (;;) {
        residue_count(&now, t->pid, t->own);
        if (now.descriptors <= t->before.descriptors && now.mappings <= t->before.mappings &&
            now.coroutines <= t->before.coroutines)
            return true;
        if (bed_now_ms() >= end)
            break;
        bed_sleep_ms(10);
    }
    snprintf(why, bytes, "left over: %d descriptors, %d mappings, %d coroutines",
             (int)(now.descriptors - t->before.descriptors), (int)(now.mappings - t->before.mappings),
             (int)(now.coroutines - t->before.coroutines));
    t->before = now; /* the next case is not to blame for it */
    return false;
}

static bool learn(struct torture *t)
{
    struct error err = {""};
    struct bed_options options = {.path = t->path};
    bool fine = bed_open(&t->bed, &options, &err) == 0;

    if (!fine)
        log_message("%s", err.text);
    t->offered = t->bed.offered;
    t->protocol = t->bed.protocol_offered;
    if (fine)
        t->pid = t->own ? 0 : measure_peer_pid(t->bed.front.fd);
    bed_close(&t->bed);
    return fine;
}

struct tally {
    unsigned count[OUTCOMES], failed, left_over;
    json_t *rows;
};

/* False: the device is beyond hope. */
static bool run_case(struct torture *t, const struct torture_case *c, const struct settings *settings,
                     struct tally *tally)
{
    char why[160] = "";
    enum outcome outcome = c->run(t, c);
    bool fine = healthy(t, why, sizeof(why)), clean = nothing_left(t, why, sizeof(why));

    fine &= clean;
    tally->left_over += !clean;
    tally->count[outcome]++;
    if (!fine)
        tally->failed++;
    if (!settings->json && (settings->verbose || !fine))
        printf("%-6s %-70s %s%s%s\n", fine ? "lives" : "FAILED", c->name, outcomes[outcome], *why ? "; " : "",
               why);
    json_array_append_new(tally->rows, json_pack("{s:s, s:s, s:b, s:s}", "case", c->name, "outcome",
                                                 outcomes[outcome], "lives", fine, "why", why));
    return fine || strncmp(why, "no new", 6) != 0;
}

static void report(const struct tally *tally, const struct settings *settings, unsigned not_run)
{
    unsigned all = 0;

    for (unsigned i = 0; i < OUTCOMES; i++)
        all += tally->count[i];
    if (settings->json) {
        json_t *result =
            json_pack("{s:i, s:i, s:i, s:i, s:O}", "cases", (int)all, "failed", (int)tally->failed, "not_run",
                      (int)not_run, "left_over", (int)tally->left_over, "rows", tally->rows);

        json_dumpf(result, stdout, JSON_INDENT(2));
        putchar('\n');
        json_decref(result);
        return;
    }
    for (unsigned i = 0; i < OUTCOMES; i++)
        if (tally->count[i])
            printf("%5u %s\n", tally->count[i], outcomes[i]);
    if (tally->left_over)
        printf("%5u left something over\n", tally->left_over);
    printf("%u cases: the device lived through %u%s\n", all, all - tally->failed,
           not_run ? "; it did not come back, the rest was not run" : "");
}

int command_torture(const struct settings *settings)
{
    struct settings with_image = *settings;
    struct torture_list list = {0};
    struct tally tally = {.rows = json_array()};
    struct torture t = {.chance.state = settings->seed};
    struct error err = {""};
    struct rig rig;
    unsigned at, ran = 0;
    char why[160];

    torture_messages(&list);
    torture_memory(&list);
    torture_rings(&list);
    for (unsigned i = 0; i < settings->rounds; i++)
        torture_add(&list, torture_random, settings->seed + i, 0, "random round, seed %" PRIu64,
                    settings->seed + i);
    if (settings->list) {
        for (unsigned i = 0; i < list.count; i++)
            printf("%s\n", list.cases[i].name);
        free(list.cases);
        json_decref(tally.rows);
        return 0;
    }
    with_image.scratch_image = true;
    with_image.queues = 2;
    if (rig_open_device(&rig, &with_image, &err) < 0) {
        log_message("%s", err.text);
        free(list.cases);
        json_decref(tally.rows);
        return 1;
    }
    t.path = rig.path;
    t.own = rig.own;
    if (!learn(&t)) {
        rig_close(&rig);
        free(list.cases);
        json_decref(tally.rows);
        return 1;
    }
    healthy(&t, why, sizeof(why)); /* what is opened once and kept is open from now on */
    bed_sleep_ms(50);
    residue_count(&t.before, t.pid, t.own);
    for (at = 0; at < list.count; at++) {
        if (settings->only && !strstr(list.cases[at].name, settings->only))
            continue;
        ran++;
        if (!run_case(&t, &list.cases[at], settings, &tally))
            break;
    }
    report(&tally, settings, at < list.count ? list.count - at - 1 : 0);
    if (!ran)
        log_message("--only=%s: no such case (--list names them)", settings->only ? settings->only : "");
    free(list.cases);
    json_decref(tally.rows);
    rig_close(&rig);
    return tally.failed || !ran ? 1 : 0;
}
