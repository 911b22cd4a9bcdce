/*
 * The filter that makes chosen requests fail, be short or be late: a node below the image, on top of the
 * protocol (--inject=SPEC).
 *
 *   SPEC  = RULE [; RULE]...
 *   RULE  = OP [, KEY=VALUE]...
 *   OP    = read | write | zero | discard | flush | truncate | any
 *
 *   mode=fail    (default) the request does not reach the file and ends with the error
 *   mode=short   the first `bytes` of it are done, then it ends with the error (reads and writes;
 *                else as fail)
 *   mode=late    it is done `ms` milliseconds later
 *   at=N[+LEN]   only requests that touch [N, N+LEN) of the file; LEN is 1 if left out
 *   skip=N       the first N that match are let through (default 0)
 *   times=N      so often, then the rule is spent; `times=always` for ever (default 1)
 *   error=NAME   EIO (default), ENOSPC, EAGAIN, ENOMEM, ... or a number
 *   bytes=N      for mode=short; default: half of the request
 *   ms=N[-MOST]  for mode=late; default 10. With MOST, each by chance between the two
 *
 * No rule at all is a SPEC too: the filter stands there for inject_add. The requests that open the image
 * pass the filter as well.
 *
 * Of several rules that match, the first that is not spent acts. Sizes may have suffixes (64k).
 * Example: "write,at=64k+64k,skip=2;flush,error=EIO,times=always"
 */
#ifndef RINGSIDE_BLOCK_INJECT_H
#define RINGSIDE_BLOCK_INJECT_H

#include "host/block/node.h"

/* Puts the filter on BELOW (reference taken over, also on error) with the rules of SPEC. */
int coroutine_fn inject_co_open(struct node *below, const char *spec, struct node **node, struct error *err);

/* Adds rules to those of the inject filter at or below NODE. Any thread. -EINVAL with ERR if the text is not
 * a rule, -ENOENT if there is no such filter, -ENOSPC if there are too many rules. */
int inject_add(struct node *node, const char *spec, struct error *err);
/* Takes all rules away. */
void inject_clear(struct node *node);
/* How many requests the rules have hit so far. */
uint64_t inject_hits(struct node *node);

#endif
