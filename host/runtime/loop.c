/*
 * The event loop's turn: descriptors, polling, sleeping; and the registry of loops.
 *
 * What always holds: the loop sleeps only after it said so in `asleep` and then looked once more at
 * everything that other threads can hand it; whoever hands it something looks at `asleep` afterwards. One of
 * the two sees the other, so no wake-up is lost, and a loop that is awake costs its wakers no system call.
 *
 * A loop's memory and eventfd outlive it and serve the next one: whoever woke it last may still be on the
 * way out of loop_notify when it is destroyed, and then at worst wakes its successor for nothing.
 *
 * A turn in which polling found work makes no system call of its own; every EPOLL_EVERY-th turn looks at
 * epoll all the same, for handlers that can't be polled.
 */
#include "host/runtime/loop.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "host/runtime/loop_internal.h"
#include "host/runtime/world.h"

#define EPOLL_EVERY 64
/* First step of a handler's polling budget. */
#define POLL_FIRST_NS 4000
/* Short waits that a long one outweighs, and how many are remembered. */
#define POLL_CREDIT_MISS 4
#define POLL_CREDIT_MAX  8
/* Rounds of ready coroutines and deferred work at the end of a turn, before descriptors are looked at again.
 */
#define TAIL_ROUNDS_MAX 16

__thread struct loop *loop_current_thread;

static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static struct loop *registry[LOOPS_MAX];

/* Written by the loop's own thread alone, read by any. */
static inline void stat_count(uint64_t *counter)
{
    __atomic_store_n(counter, *counter + 1, __ATOMIC_RELAXED);
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield" ::: "memory");
#endif
}

/* ---- creation ---- */

/* A slot of the registry, with its eventfd. 0 or a negative errno. */
static int slot_take(struct loop **taken)
{
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    struct loop *loop = NULL;
    unsigned i;
    int ret = -EMFILE;

    pthread_mutex_lock(&registry_lock);
    for (i = 0; i < LOOPS_MAX && registry[i] && registry[i]->alive; i++)
        ;
    if (i == LOOPS_MAX)
        goto out;
    loop = registry[i];
    if (!loop) {
        ret = -ENOMEM;
        loop = aligned_alloc(64, (sizeof(*loop) + 63) & ~(size_t)63);
        if (!loop)
            goto out;
        memset(loop, 0, sizeof(*loop));
        loop->index = i;
        loop->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
        if (loop->event_fd < 0) {
            ret = -errno;
            free(loop);
            goto out;
        }
        registry[i] = loop;
    }
    memset(loop, 0, offsetof(struct loop, remote));
    __atomic_store_n(&loop->kicked, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&loop->stopped, 0, __ATOMIC_RELAXED);
    __atomic_store_n(&loop->poll_max_ns, 0, __ATOMIC_RELAXED);
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    event.data.ptr = loop;
    if (loop->epoll_fd < 0) {
        ret = -errno;
    } else if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, loop->event_fd, &event) < 0) {
        ret = -errno;
        close(loop->epoll_fd);
    } else {
        loop->alive = true;
        *taken = loop;
        ret = 0;
    }
out:
    pthread_mutex_unlock(&registry_lock);
    return ret;
}

struct loop *loop_create(const char *name, struct error *err)
{
    struct loop *loop = NULL;
    int ret;

    assert(!loop_current_thread);
    ret = slot_take(&loop);
    if (ret < 0) {
        error_set(err, ret,
                  "cannot make an event loop: %s (%d at a time; is there a low limit on open files?)",
                  strerror(-ret), LOOPS_MAX);
        return NULL;
    }
    snprintf(loop->name, sizeof(loop->name), "%s", name);
    loop_current_thread = loop;
    return loop;
}

void loop_destroy(struct loop *loop)
{
    int key;

    assert(loop == loop_current_thread && !co_current);
    for (key = LOOP_ATTACH_COUNT - 1; key >= 0; key--) {
        if (loop->attached[key] && loop->attached_destroy[key])
            loop->attached_destroy[key](loop->attached[key]);
        loop->attached[key] = NULL;
    }
    /* A late kick may still be pending. */
    __atomic_store_n(&loop->kicked, 0, __ATOMIC_RELAXED);
    assert(!loop->handlers && !loop->timers && !loop->pool.alive);
    assert(!__atomic_load_n(&loop->remote, __ATOMIC_RELAXED) && !loop->bh_first &&
           !__atomic_load_n(&loop->bh_pushed, __ATOMIC_RELAXED) && !loop->ready_first &&
           !loop->deferred_first);
    co_pool_drain(loop);
    loop_current_thread = NULL;
    pthread_mutex_lock(&registry_lock);
    close(loop->epoll_fd);
    loop->alive = false;
    pthread_mutex_unlock(&registry_lock);
}

void loop_for_each(void (*fn)(struct loop *loop, void *opaque), void *opaque)
{
    pthread_mutex_lock(&registry_lock);
    for (unsigned i = 0; i < LOOPS_MAX; i++) {
        if (registry[i] && registry[i]->alive)
            fn(registry[i], opaque);
    }
    pthread_mutex_unlock(&registry_lock);
}

struct loop *loop_current(void)
{
    return loop_current_thread;
}

struct loop *loop_switch_current(struct loop *loop)
{
    struct loop *old = loop_current_thread;

    assert(!co_current);
    loop_current_thread = loop;
    return old;
}

unsigned loop_index(const struct loop *loop)
{
    return loop->index;
}

const char *loop_name(const struct loop *loop)
{
    return loop->name;
}

void loop_attach(struct loop *loop, enum loop_attachment key, void *state, void (*destroy)(void *state))
{
    assert(!loop->attached[key]);
    loop->attached[key] = state;
    loop->attached_destroy[key] = destroy;
}

void *loop_attached(const struct loop *loop, enum loop_attachment key)
{
    return loop->attached[key];
}

/* ---- waking ---- */

void loop_notify(struct loop *loop)
{
    uint64_t one = 1;
    ssize_t n;

    /* Comes after the sequentially consistent push of what the loop shall see. Pairs with the exchange in
     * sleep_once: either this load sees the sleeper, or the sleeper's look at the lists sees the push. */
    if (!__atomic_load_n(&loop->asleep, __ATOMIC_SEQ_CST))
        return;
    /* One write for all who wake it at the same time. */
    if (!__atomic_exchange_n(&loop->asleep, 0, __ATOMIC_SEQ_CST))
        return;
    n = write(loop->event_fd, &one, sizeof(one));
    (void)n; /* a full counter has woken it already */
}

void loop_kick(struct loop *loop)
{
    __atomic_store_n(&loop->kicked, 1, __ATOMIC_SEQ_CST);
    loop_notify(loop);
}

void loop_stop(struct loop *loop)
{
    __atomic_store_n(&loop->stopped, 1, __ATOMIC_SEQ_CST);
    loop_kick(loop);
}

void loop_push_remote(struct loop *loop, struct coroutine *co)
{
    struct coroutine *head = __atomic_load_n(&loop->remote, __ATOMIC_RELAXED);

    do {
        __atomic_store_n(&co->next, head, __ATOMIC_RELAXED);
        /* Pairs with the exchange in run_remote: what the waker wrote is visible to the coroutine. */
    } while (
        !__atomic_compare_exchange_n(&loop->remote, &head, co, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    loop_notify(loop);
}

static bool run_remote(struct loop *loop)
{
    struct coroutine *co, *next, *first = NULL;

    if (!__atomic_load_n(&loop->remote, __ATOMIC_RELAXED))
        return false;
    co = __atomic_exchange_n(&loop->remote, NULL, __ATOMIC_ACQUIRE);
    for (; co; co = next) { /* newest first becomes oldest first */
        next = co->next;
        co->next = first;
        first = co;
        stat_count(&loop->stats.wakeups_remote);
    }
    for (co = first; co; co = next) {
        next = co->next;
        co_resume(co);
    }
    return true;
}

/* ---- bottom halves ---- */

void loop_bh_schedule(struct loop_bh *bh)
{
    struct loop *loop = bh->loop;
    struct loop_bh *head;

    /* Releases the caller's writes to the exchange in run_bhs, also if it is on the list already. */
    if (__atomic_exchange_n(&bh->scheduled, 1, __ATOMIC_ACQ_REL))
        return;
    head = __atomic_load_n(&loop->bh_pushed, __ATOMIC_RELAXED);
    do {
        __atomic_store_n(&bh->next, head, __ATOMIC_RELAXED);
        /* Pairs with the exchange in take_bhs. */
    } while (
        !__atomic_compare_exchange_n(&loop->bh_pushed, &head, bh, true, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED));
    loop_notify(loop);
}

/* Moves what was pushed, in order, behind what the loop has already. */
static void take_bhs(struct loop *loop)
{
    struct loop_bh *bh, *next, *first = NULL, *last;

    if (!__atomic_load_n(&loop->bh_pushed, __ATOMIC_RELAXED))
        return;
    last = bh = __atomic_exchange_n(&loop->bh_pushed, NULL, __ATOMIC_ACQUIRE);
    for (; bh; bh = next) {
        next = bh->next;
        bh->next = first;
        first = bh;
    }
    if (loop->bh_last)
        loop->bh_last->next = first;
    else
        loop->bh_first = first;
    loop->bh_last = last;
}

void loop_bh_cancel(struct loop_bh *bh)
{
    struct loop *loop = bh->loop;
    struct loop_bh **link, *previous = NULL;

    if (!loop || !__atomic_load_n(&bh->scheduled, __ATOMIC_ACQUIRE))
        return;
    take_bhs(loop);
    for (link = &loop->bh_first; *link && *link != bh; link = &(*link)->next)
        previous = *link;
    if (*link) {
        *link = bh->next;
        if (loop->bh_last == bh)
            loop->bh_last = previous;
        __atomic_store_n(&bh->scheduled, 0, __ATOMIC_RELEASE);
    }
}

/* Runs what was scheduled when this began; what is scheduled meanwhile has the next turn. */
static bool run_bhs(struct loop *loop)
{
    struct loop_bh *bh, *last;

    take_bhs(loop);
    if (!loop->bh_first)
        return false;
    /* A cancel may take `last` away, or append more: then the first of the later ones runs early, no more. */
    last = loop->bh_last;
    while ((bh = loop->bh_first)) {
        loop->bh_first = bh->next;
        if (!loop->bh_first)
            loop->bh_last = NULL;
        __atomic_exchange_n(&bh->scheduled, 0, __ATOMIC_ACQ_REL);
        bh->fn(bh->opaque);
        if (bh == last)
            break;
    }
    return true;
}

/* ---- the end of a turn ---- */

void loop_defer(struct loop *loop, struct loop_deferred *deferred)
{
    if (deferred->queued)
        return;
    deferred->queued = true;
    deferred->next = NULL;
    if (loop->deferred_last)
        loop->deferred_last->next = deferred;
    else
        loop->deferred_first = deferred;
    loop->deferred_last = deferred;
}

static bool run_tail(struct loop *loop)
{
    unsigned rounds;

    if (!loop->ready_first && !loop->deferred_first)
        return false;
    for (rounds = 0; rounds < TAIL_ROUNDS_MAX; rounds++) {
        struct loop_deferred *deferred;
        struct coroutine *co, *last = loop->ready_last;

        /* Those that were ready when the round began; two that wake each other for ever do not hold the loop.
         */
        while (last && (co = loop->ready_first)) {
            loop->ready_first = co->next;
            if (!loop->ready_first)
                loop->ready_last = NULL;
            co_resume(co);
            if (co == last)
                break;
        }
        if (loop->ready_first)
            continue;
        deferred = loop->deferred_first;
        if (!deferred)
            break;
        loop->deferred_first = loop->deferred_last = NULL;
        while (deferred) {
            struct loop_deferred *next = deferred->next;

            deferred->queued = false;
            deferred->fn(deferred->opaque);
            deferred = next;
        }
    }
    return true;
}

/* ---- descriptors ---- */

static uint32_t wanted_events(const struct loop_fd *handler)
{
    uint32_t events = (handler->on_readable ? EPOLLIN : 0) | (handler->on_writable ? EPOLLOUT : 0);

    return events && handler->edge ? events | EPOLLET : events;
}

static int set_events(struct loop_fd *handler, uint32_t events)
{
    struct epoll_event event = {.events = events, .data.ptr = handler};
    int op = !handler->events ? EPOLL_CTL_ADD : events ? EPOLL_CTL_MOD : EPOLL_CTL_DEL;

    if (handler->fd < 0 || events == handler->events)
        return 0;
    if (epoll_ctl(handler->loop->epoll_fd, op, handler->fd, &event) < 0)
        return -errno;
    handler->events = events;
    return 0;
}

int loop_fd_add(struct loop *loop, struct loop_fd *handler)
{
    int ret;

    assert(loop == loop_current_thread && !handler->added);
    handler->loop = loop;
    handler->events = 0;
    handler->poll_budget_ns = 0;
    handler->poll_credit = 0;
    handler->polling = handler->fired = false;
    ret = set_events(handler, wanted_events(handler));
    if (ret < 0)
        return ret;
    if (handler->poll) {
        handler->prev_polled = NULL;
        handler->next_polled = loop->polled;
        if (loop->polled)
            loop->polled->prev_polled = handler;
        loop->polled = handler;
        loop->polling = false; /* not all of them are: the next turn sees to it */
    }
    handler->added = true;
    loop->handlers++;
    return 0;
}

void loop_fd_remove(struct loop_fd *handler)
{
    struct loop *loop = handler->loop;
    int i;

    if (!handler->added)
        return;
    assert(loop == loop_current_thread);
    set_events(handler, 0);
    for (i = loop->event_index; i < loop->event_count; i++) {
        if (loop->events[i].data.ptr == handler)
            loop->events[i].data.ptr = NULL;
    }
    if (handler->poll) {
        if (loop->polled_cursor == handler)
            loop->polled_cursor = handler->next_polled;
        if (handler->prev_polled)
            handler->prev_polled->next_polled = handler->next_polled;
        else
            loop->polled = handler->next_polled;
        if (handler->next_polled)
            handler->next_polled->prev_polled = handler->prev_polled;
    }
    handler->added = handler->polling = false;
    loop->handlers--;
}

void loop_fd_update(struct loop_fd *handler)
{
    int ret;

    assert(handler->added);
    ret = set_events(handler, wanted_events(handler));
    /* The descriptor was taken when it was added; only memory for the kernel's entry can be short. */
    (void)ret;
}

/* Looks at the descriptors, sleeping for up to TIMEOUT_NS, and dispatches. */
static bool run_descriptors(struct loop *loop, int64_t timeout_ns)
{
    bool progress = false;
    int n;

    loop->turns_without_epoll = 0;
    n = world->wait(world, loop, loop->epoll_fd, loop->events, LOOP_EVENTS_MAX, timeout_ns);
    __atomic_store_n(&loop->asleep, 0, __ATOMIC_RELAXED);
    loop->event_count = n > 0 ? n : 0;
    for (loop->event_index = 0; loop->event_index < loop->event_count; loop->event_index++) {
        struct epoll_event *event = &loop->events[loop->event_index];
        struct loop_fd *handler = event->data.ptr;
        uint32_t ready = event->events;

        if (!handler || event->data.ptr == loop)
            continue;
        progress = true;
        handler->fired = true;
        if (ready & (EPOLLERR | EPOLLHUP))
            ready |= handler->on_readable ? EPOLLIN : EPOLLOUT;
        if ((ready & EPOLLIN) && handler->on_readable)
            handler->on_readable(handler->opaque);
        /* The first callback may have removed the handler: then the event is gone too. */
        if ((ready & EPOLLOUT) && event->data.ptr && handler->on_writable)
            handler->on_writable(handler->opaque);
    }
    loop->event_index = loop->event_count = 0;
    return progress;
}

/* ---- polling ---- */

void loop_set_poll_max_ns(struct loop *loop, uint64_t ns)
{
    __atomic_store_n(&loop->poll_max_ns, ns, __ATOMIC_RELAXED);
}

/* One look at each handler that can be polled; those with work do it. No system call. */
static bool poll_once(struct loop *loop)
{
    struct loop_fd *handler = loop->polled;
    bool progress = false;

    while (handler) {
        loop->polled_cursor = handler->next_polled;
        if (handler->poll(handler->opaque)) {
            handler->fired = true;
            progress = true;
            handler->poll_ready(handler->opaque);
        }
        handler = loop->polled_cursor;
    }
    return progress;
}

/* poll_begin or poll_end for all that have not had it. */
static void set_polling(struct loop *loop, bool on)
{
    struct loop_fd *handler = loop->polled;

    while (handler) {
        loop->polled_cursor = handler->next_polled;
        if (handler->polling != on) {
            handler->polling = on;
            if (on && handler->poll_begin)
                handler->poll_begin(handler->opaque);
            if (!on && handler->poll_end)
                handler->poll_end(handler->opaque);
        }
        handler = loop->polled_cursor;
    }
    loop->polling = on;
}

/* What the handlers learn from a wait of WAITED_NS. Shorter than the ceiling: those that fired would have
 * been found by spinning a bit longer. Longer: nobody gained from spinning, whoever it was that ended the
 * wait, and the budget goes at once. A missed spin costs more than a hit saves, so a handler has to earn its
 * budget by several short waits for each long one; else, where the other side shares our processors and
 * pauses often, spinning would eat a third of the time. */
static void adjust_budgets(struct loop *loop, uint64_t waited_ns, uint64_t poll_max_ns)
{
    struct loop_fd *handler;

    for (handler = loop->polled; handler; handler = handler->next_polled) {
        uint64_t budget = handler->poll_budget_ns;

        if (waited_ns > poll_max_ns) {
            handler->poll_credit -=
                handler->poll_credit < POLL_CREDIT_MISS ? handler->poll_credit : POLL_CREDIT_MISS;
            budget = 0;
        } else if (handler->fired) {
            if (handler->poll_credit < POLL_CREDIT_MAX)
                handler->poll_credit++;
            if (waited_ns > budget && handler->poll_credit >= POLL_CREDIT_MISS)
                budget = budget ? budget * 2 : POLL_FIRST_NS;
        }
        handler->poll_budget_ns = budget < poll_max_ns ? budget : poll_max_ns;
        handler->fired = false;
    }
}

static uint64_t loop_budget(const struct loop *loop)
{
    const struct loop_fd *handler;
    uint64_t budget = 0;

    for (handler = loop->polled; handler; handler = handler->next_polled) {
        if (handler->poll_budget_ns > budget)
            budget = handler->poll_budget_ns;
    }
    return budget;
}

static int64_t timeout_until(uint64_t deadline_ns, uint64_t now_ns)
{
    if (deadline_ns == UINT64_MAX)
        return -1;
    if (deadline_ns <= now_ns)
        return 0;
    return deadline_ns - now_ns > INT64_MAX ? INT64_MAX : (int64_t)(deadline_ns - now_ns);
}

bool loop_pending(const struct loop *loop)
{
    return __atomic_load_n(&loop->remote, __ATOMIC_SEQ_CST) ||
           __atomic_load_n(&loop->bh_pushed, __ATOMIC_SEQ_CST) ||
           __atomic_load_n(&loop->kicked, __ATOMIC_SEQ_CST) || loop->bh_first || loop->ready_first ||
           loop->deferred_first;
}

/* Sleeps until something is there, unless something is there already. */
static bool sleep_once(struct loop *loop, uint64_t deadline_ns)
{
    int64_t timeout_ns = timeout_until(deadline_ns, deadline_ns == UINT64_MAX ? 0 : world_now_ns());

    if (loop->polled) {
        set_polling(loop, false);
        if (poll_once(loop))
            return true;
        if (loop->ready_first || loop->deferred_first)
            return true;
    }
    /* Pairs with the load in loop_notify: see there. */
    __atomic_exchange_n(&loop->asleep, 1, __ATOMIC_SEQ_CST);
    if (loop_pending(loop))
        timeout_ns = 0;
    if (timeout_ns)
        stat_count(&loop->stats.sleeps);
    return run_descriptors(loop, timeout_ns);
}

/* Nothing is ready: spins for as long as it may pay, then sleeps. */
static bool wait_for_work(struct loop *loop)
{
    uint64_t poll_max = __atomic_load_n(&loop->poll_max_ns, __ATOMIC_RELAXED);
    uint64_t deadline = loop_next_deadline(loop);
    uint64_t start, now, budget;
    bool progress = false;

    if (!poll_max || !loop->polled)
        return sleep_once(loop, deadline);

    start = world_now_ns();
    budget = loop_budget(loop);
    if (budget > poll_max)
        budget = poll_max;
    if (deadline <= start)
        budget = 0;
    else if (deadline - start < budget)
        budget = deadline - start;
    if (budget) {
        set_polling(loop, true);
        do {
            progress = poll_once(loop);
            now = world_now_ns();
            if (progress || loop_pending(loop)) {
                stat_count(&loop->stats.polls_hit);
                if (progress)
                    adjust_budgets(loop, now - start, poll_max);
                return true;
            }
            cpu_relax();
        } while (now - start < budget);
        stat_count(&loop->stats.polls_missed);
    }
    progress = sleep_once(loop, deadline);
    adjust_budgets(loop, world_now_ns() - start, poll_max);
    return progress;
}

/* ---- the turn ---- */

bool loop_turn(struct loop *loop, bool may_block)
{
    bool progress, due;
    uint64_t deadline;

    assert(loop == loop_current_thread && !co_current);
    stat_count(&loop->stats.turns);
    /* While it is awake the loop looks by itself: nobody need notify it until it is about to sleep. */
    if (!loop->polling && loop->polled && __atomic_load_n(&loop->poll_max_ns, __ATOMIC_RELAXED))
        set_polling(loop, true);
    progress = run_tail(loop); /* what came up outside of a turn */
    progress |= poll_once(loop);

    deadline = loop_next_deadline(loop);
    due = deadline != UINT64_MAX && deadline <= world_now_ns();
    if (progress || due || loop_pending(loop)) {
        if (++loop->turns_without_epoll >= EPOLL_EVERY)
            progress |= run_descriptors(loop, 0);
    } else if (may_block) {
        progress |= wait_for_work(loop);
    } else {
        progress |= run_descriptors(loop, 0);
    }

    if (__atomic_load_n(&loop->kicked, __ATOMIC_RELAXED))
        __atomic_exchange_n(&loop->kicked, 0, __ATOMIC_ACQ_REL);
    progress |= run_remote(loop);
    progress |= run_bhs(loop);
    progress |= loop_timers_run(loop);
    progress |= run_tail(loop);
    return progress;
}

void loop_run(struct loop *loop)
{
    while (!__atomic_load_n(&loop->stopped, __ATOMIC_ACQUIRE))
        loop_turn(loop, true);
    __atomic_store_n(&loop->stopped, 0, __ATOMIC_RELAXED);
}

struct main_coroutine {
    void (*entry)(void *arg);
    void *arg;
    bool ended;
};

static void main_coroutine(void *opaque)
{
    struct main_coroutine *m = opaque;

    m->entry(m->arg);
    m->ended = true;
}

int loop_run_coroutine(struct loop *loop, void (*entry)(void *), void *arg)
{
    struct main_coroutine m = {.entry = entry, .arg = arg};
    struct coroutine *co;

    assert(loop == loop_current_thread && !co_current);
    co = co_create(main_coroutine, &m);
    if (!co)
        return -ENOMEM;
    co_enter(co);
    while (!m.ended)
        loop_turn(loop, true);
    return 0;
}

void loop_stats(const struct loop *loop, struct loop_stats *stats)
{
    stats->turns = __atomic_load_n(&loop->stats.turns, __ATOMIC_RELAXED);
    stats->sleeps = __atomic_load_n(&loop->stats.sleeps, __ATOMIC_RELAXED);
    stats->polls_hit = __atomic_load_n(&loop->stats.polls_hit, __ATOMIC_RELAXED);
    stats->polls_missed = __atomic_load_n(&loop->stats.polls_missed, __ATOMIC_RELAXED);
    stats->wakeups_remote = __atomic_load_n(&loop->stats.wakeups_remote, __ATOMIC_RELAXED);
}
