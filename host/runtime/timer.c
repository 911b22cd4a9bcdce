/*
 * The loop's timers: a pairing heap through the timers themselves, so that arming one needs no memory.
 *
 * What always holds: the root has the earliest deadline, and among equal ones the earliest arming. `previous`
 * is the left sibling, or the parent of a first child; NULL for the root.
 */
#include <assert.h>

#include "host/runtime/loop_internal.h"
#include "host/runtime/world.h"

static bool earlier(const struct loop_timer *a, const struct loop_timer *b)
{
    return a->deadline_ns != b->deadline_ns ? a->deadline_ns < b->deadline_ns : a->sequence < b->sequence;
}

/* Makes one heap of two roots; either may be NULL. */
static struct loop_timer *meld(struct loop_timer *a, struct loop_timer *b)
{
    struct loop_timer *swap;

    if (!a || !b)
        return a ? a : b;
    if (earlier(b, a)) {
        swap = a;
        a = b;
        b = swap;
    }
    b->previous = a;
    b->sibling = a->child;
    if (a->child)
        a->child->previous = b;
    a->child = b;
    return a;
}

/* Makes one heap of a list of siblings: pairs from left to right, then all of the pairs from right to left.
 */
static struct loop_timer *meld_siblings(struct loop_timer *list)
{
    struct loop_timer *pairs = NULL, *root = NULL;

    while (list) {
        struct loop_timer *a = list, *b = a->sibling;

        list = b ? b->sibling : NULL;
        a->sibling = a->previous = NULL;
        if (b)
            b->sibling = b->previous = NULL;
        a = meld(a, b);
        a->sibling = pairs;
        pairs = a;
    }
    while (pairs) {
        struct loop_timer *next = pairs->sibling;

        pairs->sibling = NULL;
        root = meld(root, pairs);
        pairs = next;
    }
    if (root)
        root->previous = NULL;
    return root;
}

static void take_out(struct loop *loop, struct loop_timer *timer)
{
    struct loop_timer *children = meld_siblings(timer->child);

    if (timer == loop->timers) {
        loop->timers = children;
    } else {
        if (timer->previous->child == timer)
            timer->previous->child = timer->sibling;
        else
            timer->previous->sibling = timer->sibling;
        if (timer->sibling)
            timer->sibling->previous = timer->previous;
        loop->timers = meld(loop->timers, children);
    }
    timer->child = timer->sibling = timer->previous = NULL;
    timer->armed = false;
}

void loop_timer_arm(struct loop *loop, struct loop_timer *timer, uint64_t deadline_ns)
{
    assert(loop == loop_current_thread);
    loop_timer_cancel(timer);
    timer->loop = loop;
    timer->deadline_ns = deadline_ns;
    timer->sequence = ++loop->timer_sequence;
    timer->child = timer->sibling = timer->previous = NULL;
    timer->armed = true;
    loop->timers = meld(loop->timers, timer);
}

void loop_timer_cancel(struct loop_timer *timer)
{
    if (timer->armed)
        take_out(timer->loop, timer);
}

uint64_t loop_next_deadline(const struct loop *loop)
{
    return loop->timers ? loop->timers->deadline_ns : UINT64_MAX;
}

/* Fires what is due. A timer that is armed meanwhile has the next turn. */
bool loop_timers_run(struct loop *loop)
{
    uint64_t now, newest = loop->timer_sequence;
    struct loop_timer *timer;
    bool progress = false;

    if (!loop->timers)
        return false;
    now = world_now_ns();
    while ((timer = loop->timers) && timer->deadline_ns <= now && timer->sequence <= newest) {
        take_out(loop, timer);
        timer->fire(timer->opaque);
        progress = true;
    }
    return progress;
}
