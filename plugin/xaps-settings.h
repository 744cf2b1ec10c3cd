#ifndef XAPS_SETTINGS_H
#define XAPS_SETTINGS_H

struct mail_user;

struct xaps_settings {
	pool_t pool;
	/* The registry's file. */
	const char *xaps_registry;
	/* How long a registration may wait for other writers, in milliseconds. */
	unsigned int xaps_busy_timeout;
};

/* The user's settings, allocated from pool. Returns 0 if ok, -1 if they can't be read. */
int xaps_settings_get(struct mail_user *user, pool_t pool,
		      struct xaps_settings *set_r, const char **error_r);

#endif
