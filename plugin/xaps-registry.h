#ifndef XAPS_REGISTRY_H
#define XAPS_REGISTRY_H

#include "xaps-mailboxes.h"

struct xaps_request;
struct xaps_settings;

/* The registry is the SQLite file that the xaps-watch daemon made, and reads; see its schema.sql. */

/* PRAGMA user_version of the schema.sql that this was written for. */
#define XAPS_SCHEMA_VERSION 1

#define XAPS_MEND_DAMAGED "move it away and restart xaps-watch, which makes a new one"
#define XAPS_MEND_RELEASE "install plugin and xaps-watch of one release"

/* A module of its own, with the only code that needs SQLite: it is loaded when the first registration comes. */
struct xaps_registry_module {
	/* XAPS_REGISTRY_MODULE_VERSION, when it was built. */
	const char *version;

	/* Records the registration in place of an earlier one of that device. Returns 1 and the topic to tell the
	   phone, 0 if there is no topic yet, -1 if it could not be recorded; then nothing was changed. */
	int (*record)(const struct xaps_settings *set, const char *username, const struct xaps_request *request,
		      const ARRAY_TYPE(xaps_mailbox) *mailboxes, const char **topic_r, const char **error_r);
};

/* A session that began before an upgrade may find the module of after it. Raise the number whenever what passes
   between the two has changed. */
#define XAPS_REGISTRY_MODULE_VERSION "1 for "DOVECOT_ABI_VERSION
#define XAPS_REGISTRY_MODULE_FILE "libimap_xaps_registry.so"

extern const struct xaps_registry_module xaps_registry_module;

#endif
