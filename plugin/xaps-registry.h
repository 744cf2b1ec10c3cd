#ifndef XAPS_REGISTRY_H
#define XAPS_REGISTRY_H

#include "xaps-mailboxes.h"

struct xaps_request;
struct xaps_settings;

/* The registry is the SQLite file that the xaps-watch daemon made, and reads; see its schema.sql. */

/* Whether a registration could be recorded now: 1 if so, 0 if the daemon has no topic yet, -1 if the registry can't be
   used. Costs a fraction of a millisecond and waits for nobody. */
int xaps_registry_check(const struct xaps_settings *set, const char **error_r);

/* Records the registration in place of an earlier one of that device. Returns 1 and the topic to tell the phone, 0 if
   there is no topic yet, -1 if it could not be recorded; then nothing was changed. */
int xaps_registry_register(const struct xaps_settings *set, const char *username, const struct xaps_request *request,
			   const ARRAY_TYPE(xaps_mailbox) *mailboxes, const char **topic_r, const char **error_r);

#endif
