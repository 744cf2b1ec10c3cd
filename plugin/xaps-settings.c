/* The plugin's settings, as each version of Dovecot has them.

   (DOVECOT_PREREQ would be the way to ask for the version, had it not got a third argument within 2.3.) */

#include "lib.h"
#include "mail-user.h"
#include "xaps-settings.h"

#define XAPS_REGISTRY_DEFAULT "/var/lib/xaps-watch/registry.sqlite3"
/* Transactions take milliseconds, and a phone waits for about a minute. */
#define XAPS_BUSY_TIMEOUT_DEFAULT 5000

#if DOVECOT_VERSION_MINOR >= 4

#include "settings.h"

#undef DEF
#define DEF(type, name) SETTING_DEFINE_STRUCT_##type(#name, name, struct xaps_settings)

static const struct setting_define xaps_setting_defines[] = {
	DEF(STR, xaps_registry),
	DEF(TIME_MSECS, xaps_busy_timeout),
	SETTING_DEFINE_LIST_END
};

static const struct xaps_settings xaps_default_settings = {
	.xaps_registry = XAPS_REGISTRY_DEFAULT,
	.xaps_busy_timeout = XAPS_BUSY_TIMEOUT_DEFAULT,
};

static const struct setting_parser_info xaps_setting_parser_info = {
	.name = "xaps",
	.defines = xaps_setting_defines,
	.defaults = &xaps_default_settings,
	.struct_size = sizeof(struct xaps_settings),
	.pool_offset1 = 1 + offsetof(struct xaps_settings, pool),
};

/* Found by name in libimap_xaps_settings.so, which the config process loads to know the keys. */
extern const char *imap_xaps_settings_version;
extern const struct setting_parser_info *imap_xaps_settings_set_infos[];

const char *imap_xaps_settings_version = DOVECOT_ABI_VERSION;
const struct setting_parser_info *imap_xaps_settings_set_infos[] = {
	&xaps_setting_parser_info,
	NULL
};

int xaps_settings_get(struct mail_user *user, pool_t pool,
		      struct xaps_settings *set_r, const char **error_r)
{
	const struct xaps_settings *set;

	if (settings_get(user->event, &xaps_setting_parser_info, 0, &set, error_r) < 0)
		return -1;
	*set_r = *set;
	set_r->pool = pool;
	set_r->xaps_registry = p_strdup(pool, set->xaps_registry);
	settings_free(set);
	return 0;
}

#else

#include "settings-parser.h"

int xaps_settings_get(struct mail_user *user, pool_t pool,
		      struct xaps_settings *set_r, const char **error_r)
{
	const char *value, *error;

	i_zero(set_r);
	set_r->pool = pool;
	value = mail_user_plugin_getenv(user, "xaps_registry");
	set_r->xaps_registry = value != NULL ? p_strdup(pool, value) : XAPS_REGISTRY_DEFAULT;
	value = mail_user_plugin_getenv(user, "xaps_busy_timeout");
	set_r->xaps_busy_timeout = XAPS_BUSY_TIMEOUT_DEFAULT;
	if (value != NULL && settings_get_time_msecs(value, &set_r->xaps_busy_timeout, &error) < 0) {
		*error_r = t_strdup_printf("xaps_busy_timeout: %s", error);
		return -1;
	}
	return 0;
}

#endif
