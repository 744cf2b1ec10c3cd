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

/* Faults */

static const char *fault_mend(int code)
{
	switch (code) {
	case SQLITE_BUSY:
		return "find with fuser which program holds it";
	case SQLITE_FULL:
	case SQLITE_IOERR:
	case SQLITE_CANTOPEN:
		return "see whether the disk is full or failing";
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return XAPS_MEND_DAMAGED;
	default:
		return XAPS_MEND_RELEASE;
	}
}

static void registry_fail(struct registry *registry, int code, const char *reason)
{
	if (registry->error == NULL)
		registry->error = t_strdup_printf("%s: %s; %s", registry->path, reason, fault_mend(code));
}

static void registry_fail_last(struct registry *registry)
{
	registry_fail(registry, sqlite3_errcode(registry->db), sqlite3_errmsg(registry->db));
}

/* Statements */

static sqlite3_stmt *registry_prepare(struct registry *registry, const char *sql)
{
	sqlite3_stmt *stmt = NULL;

	if (registry->error == NULL && sqlite3_prepare_v2(registry->db, sql, -1, &stmt, NULL) != SQLITE_OK)
		registry_fail_last(registry);
	return stmt;
}

/* TRUE if there is a row. */
static bool registry_step(struct registry *registry, sqlite3_stmt *stmt)
{
	int ret = registry->error != NULL ? SQLITE_DONE : sqlite3_step(stmt);

	if (ret != SQLITE_ROW && ret != SQLITE_DONE)
		registry_fail_last(registry);
	return ret == SQLITE_ROW;
}

/* For each parameter there is an 's' (const char *) or an 'i' (int64_t) in types. Returns the number in the first
   column of the first row, 0 if there is none. */
static int64_t registry_run(struct registry *registry, const char *sql, const char *types, ...)
{
	sqlite3_stmt *stmt = registry_prepare(registry, sql);
	int64_t number;
	va_list args;

	va_start(args, types);
	for (int i = 1; types[i - 1] != '\0'; i++) {
		if (types[i - 1] == 's')
			(void)sqlite3_bind_text(stmt, i, va_arg(args, const char *), -1, SQLITE_STATIC);
		else
			(void)sqlite3_bind_int64(stmt, i, va_arg(args, int64_t));
	}
	va_end(args);
	number = registry_step(registry, stmt) ? sqlite3_column_int64(stmt, 0) : 0;
	sqlite3_finalize(stmt);
	return number;
}

/* Opening and closing */

static void registry_open(struct registry *registry, const struct xaps_settings *set)
{
	i_zero(registry);
	registry->path = set->xaps_registry;
	if (sqlite3_open_v2(registry->path, &registry->db,
			    SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK) {
		registry_fail_last(registry);
		return;
	}
	sqlite3_busy_timeout(registry->db, set->xaps_busy_timeout);
	/* The last one to close would otherwise lock all others out, to tidy up: that is for the daemon. */
	sqlite3_db_config(registry->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);
	registry_run(registry, "PRAGMA foreign_keys = ON", "");
}

/* What was not committed is rolled back. */
static int registry_close(struct registry *registry, const char *topic, const char **error_r)
{
	sqlite3_close(registry->db);
	if (registry->error != NULL) {
		*error_r = registry->error;
		return -1;
	}
	return *topic != '\0' ? 1 : 0;
}

static void registry_check_version(struct registry *registry)
{
	int64_t version = registry_run(registry, "PRAGMA user_version", "");

	if (version != XAPS_SCHEMA_VERSION)
		registry_fail(registry, SQLITE_SCHEMA, t_strdup_printf("has schema version %d", (int)version));
}

/* "" while the daemon has none. */
static const char *registry_topic(struct registry *registry)
{
	sqlite3_stmt *stmt = registry_prepare(registry, "SELECT value FROM setting WHERE name = 'topic'");
	const char *topic = NULL;

	if (registry_step(registry, stmt))
		topic = t_strdup((const char *)sqlite3_column_text(stmt, 0));
	sqlite3_finalize(stmt);
	return topic != NULL ? topic : "";
}

/* Recording a registration */

static void registry_fill_asked(struct registry *registry, const ARRAY_TYPE(xaps_mailbox) *mailboxes)
{
	const struct xaps_mailbox *mailbox;
	sqlite3_stmt *stmt;

	registry_run(registry, "PRAGMA temp_store = MEMORY", "");
	registry_run(registry, "CREATE TEMP TABLE asked (name TEXT PRIMARY KEY, path TEXT NOT NULL) WITHOUT ROWID", "");
	stmt = registry_prepare(registry, "INSERT INTO asked VALUES (?1, ?2)");
	array_foreach(mailboxes, mailbox) {
		(void)sqlite3_bind_text(stmt, 1, mailbox->name, -1, SQLITE_STATIC);
		(void)sqlite3_bind_text(stmt, 2, mailbox->path, -1, SQLITE_STATIC);
		(void)registry_step(registry, stmt);
		(void)sqlite3_reset(stmt);
	}
	sqlite3_finalize(stmt);
}

/* Returns its id. What the daemon notes in accepted_at and outcome stays. */
static int64_t
registry_write_device(struct registry *registry, const char *username,
		      const struct xaps_request *request, const char *topic)
{
	struct timeval now;

	i_gettimeofday(&now);
	registry_run(registry,
		"INSERT INTO device (username, account_id, device_token, subtopic, topic, version, registered_at)"
		" VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7) ON CONFLICT (username, account_id, device_token)"
		" DO UPDATE SET subtopic = excluded.subtopic, topic = excluded.topic, version = excluded.version,"
		" registered_at = excluded.registered_at, suspended = NULL", "sssssii",
		username, request->account_id, request->device_token, request->subtopic, topic,
		(int64_t)request->version, (int64_t)now.tv_sec * 1000 + now.tv_usec / 1000);
	return registry_run(registry,
		"SELECT id FROM device WHERE username = ?1 AND account_id = ?2 AND device_token = ?3", "sss",
		username, request->account_id, request->device_token);
}

/* Touches only what has changed: phones renew daily, nearly always with the same mailboxes. */
static void registry_write_mailboxes(struct registry *registry, int64_t device_id)
{
	registry_run(registry,
		"DELETE FROM mailbox WHERE device_id = ?1 AND name NOT IN (SELECT name FROM asked)", "i", device_id);
	registry_run(registry,
		"INSERT INTO mailbox SELECT ?1, name, path FROM asked WHERE true ON CONFLICT (device_id, name)"
		" DO UPDATE SET path = excluded.path WHERE path <> excluded.path", "i", device_id);
}

/* The newest one stays, even if the clock was set back since the others were recorded. */
static void registry_forget_oldest(struct registry *registry, const char *username, int64_t newest_id)
{
	registry_run(registry,
		"DELETE FROM device WHERE username = ?1 AND id NOT IN (SELECT id FROM device WHERE username = ?1"
		" ORDER BY id = ?2 DESC, registered_at DESC, id DESC LIMIT ?3)", "sii",
		username, newest_id, (int64_t)DEVICES_PER_USER_MAX);
}

static int record(const struct xaps_settings *set, const char *username, const struct xaps_request *request,
		  const ARRAY_TYPE(xaps_mailbox) *mailboxes, const char **topic_r, const char **error_r)
{
	struct registry registry;
	int64_t device_id;

	registry_open(&registry, set);
	/* before the transaction, so that no other writer waits for it */
	registry_fill_asked(&registry, mailboxes);
	registry_run(&registry, "BEGIN IMMEDIATE", "");
	registry_check_version(&registry);
	*topic_r = registry_topic(&registry);
	if (**topic_r != '\0') {
		device_id = registry_write_device(&registry, username, request, *topic_r);
		registry_write_mailboxes(&registry, device_id);
		registry_forget_oldest(&registry, username, device_id);
		registry_run(&registry, "COMMIT", "");
	}
	return registry_close(&registry, *topic_r, error_r);
}

const struct xaps_registry_module xaps_registry_module = {
	.version = XAPS_REGISTRY_MODULE_VERSION,
	.record = record,
};
