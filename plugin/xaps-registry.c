/* A request → the registry. All SQL is here. */

#include "lib.h"
#include "array.h"
#include "time-util.h"
#include "xaps-registry.h"
#include "xaps-request.h"
#include "xaps-settings.h"

#include <sqlite3.h>

/* PRAGMA user_version of the schema.sql that this was written for. */
#define SCHEMA_VERSION 1

/* Phones that a user can have registered; the one that renewed longest ago makes room. Nobody has so many: it keeps a
   client that invents tokens from filling the disk. */
#define DEVICES_PER_USER_MAX "100"

struct registry {
	const char *path;
	sqlite3 *db;
	/* The first fault. After it no statement does anything, so that it's enough to look once, at the end. */
	const char *error;
};

/* Faults */

static const char *fault_mend(int code, int system_errno)
{
	switch (code) {
	case SQLITE_CANTOPEN:
		if (system_errno == ENOENT)
			return "start xaps-watch, which makes it";
		/* fall through */
	case SQLITE_READONLY:
	case SQLITE_PERM:
		return "name its group in mail_access_groups of protocol imap; "
			"the file needs mode 0660, its directory 2770";
	case SQLITE_BUSY:
		return "find with fuser which program holds it";
	case SQLITE_FULL:
	case SQLITE_IOERR:
		return "see whether the disk is full or failing";
	case SQLITE_CORRUPT:
	case SQLITE_NOTADB:
		return "move it away and restart xaps-watch, which makes a new one";
	default:
		return "install plugin and xaps-watch of one release";
	}
}

static void registry_fail(struct registry *registry)
{
	int system_errno = sqlite3_system_errno(registry->db);
	const char *reason = sqlite3_errmsg(registry->db);

	if (registry->error != NULL)
		return;
	if (sqlite3_errcode(registry->db) == SQLITE_CANTOPEN && system_errno != 0)
		reason = strerror(system_errno);
	registry->error = t_strdup_printf("%s: %s; %s", registry->path, reason,
					  fault_mend(sqlite3_errcode(registry->db), system_errno));
}

/* Statements */

static sqlite3_stmt *registry_prepare(struct registry *registry, const char *sql)
{
	sqlite3_stmt *stmt = NULL;

	if (registry->error == NULL && sqlite3_prepare_v2(registry->db, sql, -1, &stmt, NULL) != SQLITE_OK)
		registry_fail(registry);
	return stmt;
}

static void registry_bind(struct registry *registry, sqlite3_stmt *stmt, int column, const char *text)
{
	if (registry->error == NULL && sqlite3_bind_text(stmt, column, text, -1, SQLITE_STATIC) != SQLITE_OK)
		registry_fail(registry);
}

static void registry_bind_int(struct registry *registry, sqlite3_stmt *stmt, int column, int64_t number)
{
	if (registry->error == NULL && sqlite3_bind_int64(stmt, column, number) != SQLITE_OK)
		registry_fail(registry);
}

/* TRUE if there is a row. */
static bool registry_step(struct registry *registry, sqlite3_stmt *stmt)
{
	int ret;

	if (registry->error != NULL)
		return FALSE;
	ret = sqlite3_step(stmt);
	if (ret != SQLITE_ROW && ret != SQLITE_DONE)
		registry_fail(registry);
	return ret == SQLITE_ROW;
}

static void registry_run(struct registry *registry, const char *sql)
{
	sqlite3_stmt *stmt = registry_prepare(registry, sql);

	(void)registry_step(registry, stmt);
	sqlite3_finalize(stmt);
}

/* Opening and closing */

static void registry_open(struct registry *registry, const struct xaps_settings *set, unsigned int busy_timeout)
{
	sqlite3_stmt *stmt;
	int version;

	i_zero(registry);
	registry->path = set->xaps_registry;
	if (sqlite3_open_v2(registry->path, &registry->db,
			    SQLITE_OPEN_READWRITE | SQLITE_OPEN_NOMUTEX, NULL) != SQLITE_OK) {
		registry_fail(registry);
		return;
	}
	if (sqlite3_db_readonly(registry->db, "main") == 1) {
		registry->error = t_strdup_printf("%s: may not be written to; %s", registry->path,
						  fault_mend(SQLITE_READONLY, 0));
		return;
	}
	sqlite3_busy_timeout(registry->db, busy_timeout);
	/* The last one to close would otherwise take the file for itself for a moment, to tidy up as the daemon does. */
	sqlite3_db_config(registry->db, SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, 1, NULL);

	stmt = registry_prepare(registry, "PRAGMA user_version");
	version = registry_step(registry, stmt) ? sqlite3_column_int(stmt, 0) : -1;
	sqlite3_finalize(stmt);
	if (registry->error == NULL && version != SCHEMA_VERSION) {
		registry->error = t_strdup_printf(
			"%s: has schema version %d, this plugin knows %d; %s", registry->path, version,
			SCHEMA_VERSION, fault_mend(SQLITE_SCHEMA, 0));
	}
}

/* Returns as the functions of xaps-registry.h do. What was not committed is rolled back. */
static int registry_close(struct registry *registry, const char *topic, const char **error_r)
{
	(void)sqlite3_close(registry->db);
	*error_r = registry->error;
	return registry->error != NULL ? -1 : *topic != '\0';
}

/* "" if the daemon has not published one. */
static const char *registry_topic(struct registry *registry)
{
	sqlite3_stmt *stmt = registry_prepare(registry, "SELECT value FROM setting WHERE name = 'topic'");
	const char *topic = "";

	if (registry_step(registry, stmt))
		topic = t_strdup((const char *)sqlite3_column_text(stmt, 0));
	sqlite3_finalize(stmt);
	return topic != NULL ? topic : "";
}

int xaps_registry_check(const struct xaps_settings *set, const char **error_r)
{
	struct registry registry;

	registry_open(&registry, set, 0);
	return registry_close(&registry, registry_topic(&registry), error_r);
}

/* Recording a registration */

/* Before the transaction begins, so that no other writer waits for it. */
static void registry_fill_asked(struct registry *registry, const ARRAY_TYPE(xaps_mailbox) *mailboxes)
{
	const struct xaps_mailbox *mailbox;
	sqlite3_stmt *stmt;

	registry_run(registry, "PRAGMA temp_store = MEMORY");
	registry_run(registry, "CREATE TEMP TABLE asked (name TEXT PRIMARY KEY, path TEXT NOT NULL) WITHOUT ROWID");
	stmt = registry_prepare(registry, "INSERT INTO asked VALUES (?1, ?2)");
	array_foreach(mailboxes, mailbox) {
		registry_bind(registry, stmt, 1, mailbox->name);
		registry_bind(registry, stmt, 2, mailbox->path);
		(void)registry_step(registry, stmt);
		(void)sqlite3_reset(stmt);
	}
	sqlite3_finalize(stmt);
}

static int64_t
registry_write_device(struct registry *registry, const char *username,
		      const struct xaps_request *request, const char *topic)
{
	struct timeval now;
	sqlite3_stmt *stmt;
	int64_t id;

	i_gettimeofday(&now);
	/* accepted_at and outcome are the daemon's */
	stmt = registry_prepare(registry,
		"INSERT INTO device (username, account_id, device_token, subtopic, topic, version, registered_at)"
		" VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)"
		" ON CONFLICT (username, account_id, device_token) DO UPDATE SET"
		" subtopic = excluded.subtopic, topic = excluded.topic, version = excluded.version,"
		" registered_at = excluded.registered_at, suspended = NULL");
	registry_bind(registry, stmt, 1, username);
	registry_bind(registry, stmt, 2, request->account_id);
	registry_bind(registry, stmt, 3, request->device_token);
	registry_bind(registry, stmt, 4, request->subtopic);
	registry_bind(registry, stmt, 5, topic);
	registry_bind_int(registry, stmt, 6, request->version);
	registry_bind_int(registry, stmt, 7, (int64_t)now.tv_sec * 1000 + now.tv_usec / 1000);
	(void)registry_step(registry, stmt);
	sqlite3_finalize(stmt);

	stmt = registry_prepare(registry,
		"SELECT id FROM device WHERE username = ?1 AND account_id = ?2 AND device_token = ?3");
	registry_bind(registry, stmt, 1, username);
	registry_bind(registry, stmt, 2, request->account_id);
	registry_bind(registry, stmt, 3, request->device_token);
	id = registry_step(registry, stmt) ? sqlite3_column_int64(stmt, 0) : 0;
	sqlite3_finalize(stmt);
	return id;
}

static void registry_forget_oldest(struct registry *registry, const char *username, int64_t newest_id)
{
	/* the clock may have been set back since the others were recorded */
	sqlite3_stmt *stmt = registry_prepare(registry,
		"DELETE FROM device WHERE username = ?1 AND id NOT IN (SELECT id FROM device WHERE username = ?1"
		" ORDER BY id = ?2 DESC, registered_at DESC LIMIT " DEVICES_PER_USER_MAX ")");

	registry_bind(registry, stmt, 1, username);
	registry_bind_int(registry, stmt, 2, newest_id);
	(void)registry_step(registry, stmt);
	sqlite3_finalize(stmt);
}

/* Touches only what is different: phones renew daily, mostly with the same mailboxes. */
static void registry_write_mailboxes(struct registry *registry, int64_t device_id)
{
	static const char *const statements[] = {
		"DELETE FROM mailbox WHERE device_id = ?1 AND name NOT IN (SELECT name FROM asked)",
		"INSERT INTO mailbox SELECT ?1, name, path FROM asked WHERE true"
		" ON CONFLICT DO UPDATE SET path = excluded.path WHERE path <> excluded.path",
	};

	for (unsigned int i = 0; i < N_ELEMENTS(statements); i++) {
		sqlite3_stmt *stmt = registry_prepare(registry, statements[i]);

		registry_bind_int(registry, stmt, 1, device_id);
		(void)registry_step(registry, stmt);
		sqlite3_finalize(stmt);
	}
}

int xaps_registry_register(const struct xaps_settings *set, const char *username, const struct xaps_request *request,
			   const ARRAY_TYPE(xaps_mailbox) *mailboxes, const char **topic_r, const char **error_r)
{
	struct registry registry;

	registry_open(&registry, set, set->xaps_busy_timeout);
	registry_run(&registry, "PRAGMA foreign_keys = ON");
	registry_fill_asked(&registry, mailboxes);
	registry_run(&registry, "BEGIN IMMEDIATE");
	*topic_r = registry_topic(&registry);
	if (**topic_r != '\0') {
		int64_t device_id = registry_write_device(&registry, username, request, *topic_r);

		registry_write_mailboxes(&registry, device_id);
		registry_forget_oldest(&registry, username, device_id);
		registry_run(&registry, "COMMIT");
	}
	return registry_close(&registry, *topic_r, error_r);
}
