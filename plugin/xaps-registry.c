/* A request → the registry. All SQL is here; it needs SQLite 3.24. */

#include "lib.h"
#include "array.h"
#include "time-util.h"
#include "xaps-registry.h"
#include "xaps-request.h"
#include "xaps-settings.h"

#include <sqlite3.h>
#include <stdarg.h>

/* Phones that a user can have registered; the one that renewed longest ago makes room. Nobody has so many: it keeps a
   client that invents tokens from filling the disk. */
#define DEVICES_PER_USER_MAX 100

struct registry {
	const char *path;
	sqlite3 *db;
	/* The first fault. After it nothing is done any more, so that it's enough to look once, at the end. */
	const char *error;
};

static const char *fault_mend(int code)
{
	switch (code) {
	case SQLITE_BUSY:
		return "find with fuser which program holds it";
	case SQLITE_FULL:
	case SQLITE_IOERR:
		return "see whether the disk is full or failing";
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return XAPS_MEND_DAMAGED;
	case SQLITE_ERROR:
	case SQLITE_SCHEMA:
		return XAPS_MEND_RELEASE;
	default:
		return "see what xaps-watch check says";
	}
}

static void registry_fail(struct registry *registry, int code, const char *reason)
{
	if (registry->error == NULL)
		registry->error = t_strdup_printf("%s: %s; %s", registry->path, reason, fault_mend(code));
}

/* The parameters are strings, with NULL after the last; SQLite makes numbers of them where a column has numbers.
   Returns the first column of the first row, "" if there is none. */
static const char *ATTR_SENTINEL registry_run(struct registry *registry, const char *sql, ...)
{
	const char *value, *result = "";
	sqlite3_stmt *stmt;
	va_list args;
	int ret;

	if (registry->error != NULL)
		return result;
	if ((ret = sqlite3_prepare_v2(registry->db, sql, -1, &stmt, NULL)) == SQLITE_OK) {
		va_start(args, sql);
		for (int i = 1; (value = va_arg(args, const char *)) != NULL; i++)
			(void)sqlite3_bind_text(stmt, i, value, -1, SQLITE_STATIC);
		va_end(args);
		if (sqlite3_step(stmt) == SQLITE_ROW &&
		    (value = (const char *)sqlite3_column_text(stmt, 0)) != NULL)
			result = t_strdup(value);
		ret = sqlite3_finalize(stmt); /* what was wrong with the step */
	}
	if (ret != SQLITE_OK)
		registry_fail(registry, ret, sqlite3_errmsg(registry->db));
	return result;
}

static void registry_open(struct registry *registry, const struct xaps_settings *set)
{
	int ret;

	i_zero(registry);
	registry->path = set->xaps_registry;
	ret = sqlite3_open_v2(registry->path, &registry->db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL);
	if (ret != SQLITE_OK) {
		registry_fail(registry, ret, sqlite3_errmsg(registry->db));
		return;
	}
	sqlite3_busy_timeout(registry->db, set->xaps_busy_timeout);
	/* The last one to close would otherwise lock all others out, to tidy up: that is for the daemon. */
	sqlite3_db_config(registry->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
	registry_run(registry, "PRAGMA foreign_keys = ON", NULL);
}

static void registry_fill_asked(struct registry *registry, const ARRAY_TYPE(xaps_mailbox) *mailboxes)
{
	const struct xaps_mailbox *mailbox;

	registry_run(registry, "PRAGMA temp_store = MEMORY", NULL);
	registry_run(registry,
		"CREATE TEMP TABLE asked (name TEXT PRIMARY KEY, path TEXT NOT NULL) WITHOUT ROWID", NULL);
	array_foreach(mailboxes, mailbox)
		registry_run(registry, "INSERT INTO asked VALUES (?1, ?2)", mailbox->name, mailbox->path, NULL);
}

static void registry_check_version(struct registry *registry)
{
	const char *version = registry_run(registry, "PRAGMA user_version", NULL);

	if (strcmp(version, dec2str(XAPS_SCHEMA_VERSION)) != 0)
		registry_fail(registry, SQLITE_SCHEMA, t_strdup_printf("has schema version %s", version));
}

/* Returns its id. What the daemon notes in accepted_at and outcome stays. */
static const char *
registry_write_device(struct registry *registry, const char *username,
		      const struct xaps_request *request, const char *topic)
{
	struct timeval now;

	i_gettimeofday(&now);
	registry_run(registry,
		"INSERT INTO device (username, account_id, device_token, subtopic, topic, version, registered_at)"
		" VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (username, account_id, device_token)"
		" DO UPDATE SET subtopic = excluded.subtopic, topic = excluded.topic, version = excluded.version,"
		" registered_at = excluded.registered_at, suspended = NULL",
		username, request->account_id, request->device_token, request->subtopic, topic,
		dec2str(request->version), dec2str((int64_t)now.tv_sec * 1000 + now.tv_usec / 1000), NULL);
	return registry_run(registry,
		"SELECT id FROM device WHERE username = ?1 AND account_id = ?2 AND device_token = ?3",
		username, request->account_id, request->device_token, NULL);
}

/* Touches only what has changed: phones renew daily, nearly always with the same mailboxes. */
static void registry_write_mailboxes(struct registry *registry, const char *device_id)
{
	registry_run(registry,
		"DELETE FROM mailbox WHERE device_id = ?1 AND name NOT IN (SELECT name FROM asked)", device_id, NULL);
	registry_run(registry,
		"INSERT INTO mailbox SELECT ?1, name, path FROM asked WHERE true ON CONFLICT (device_id, name)"
		" DO UPDATE SET path = excluded.path WHERE path <> excluded.path", device_id, NULL);
}

/* The newest one stays, even if the clock was set back since the others were recorded. */
static void registry_forget_oldest(struct registry *registry, const char *username, const char *newest_id)
{
	registry_run(registry,
		"DELETE FROM device WHERE username = ?1 AND id NOT IN (SELECT id FROM device WHERE username = ?1"
		" ORDER BY id = ?2 DESC, registered_at DESC, id DESC LIMIT ?3)",
		username, newest_id, dec2str(DEVICES_PER_USER_MAX), NULL);
}

static int record(const struct xaps_settings *set, const char *username, const struct xaps_request *request,
		  const ARRAY_TYPE(xaps_mailbox) *mailboxes, const char **topic_r, const char **error_r)
{
	struct registry registry;
	const char *device_id;

	registry_open(&registry, set);
	/* before the transaction, so that no other writer waits for it */
	registry_fill_asked(&registry, mailboxes);
	registry_run(&registry, "BEGIN IMMEDIATE", NULL);
	registry_check_version(&registry);
	*topic_r = registry_run(&registry, "SELECT value FROM setting WHERE name = 'topic'", NULL);
	if (**topic_r != '\0') {
		device_id = registry_write_device(&registry, username, request, *topic_r);
		registry_write_mailboxes(&registry, device_id);
		registry_forget_oldest(&registry, username, device_id);
		registry_run(&registry, "COMMIT", NULL);
	}
	sqlite3_close(registry.db); /* what was not committed is rolled back */
	if (registry.error != NULL) {
		*error_r = registry.error;
		return -1;
	}
	return **topic_r != '\0' ? 1 : 0;
}

const struct xaps_registry_module xaps_registry_module = {
	.version = XAPS_REGISTRY_MODULE_VERSION,
	.record = record,
};
