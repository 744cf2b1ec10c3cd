/* XAPPLEPUSHSERVICE: the phone asks to be told of new mail; who asked is recorded for the xaps-watch daemon. */

#include "imap-common.h"
#include "array.h"
#include "imap-resp-code.h"
#include "imap-utf7.h"
#include "mail-user.h"
#include "module-dir.h"
#include "restrict-access.h"
#include "str.h"
#include "imap-xaps-plugin.h"
#include "xaps-mailboxes.h"
#include "xaps-offer.h"
#include "xaps-registry.h"
#include "xaps-request.h"
#include "xaps-settings.h"

#include <dlfcn.h>

#define COMMAND_NAME "XAPPLEPUSHSERVICE"

const char *imap_xaps_plugin_version = DOVECOT_ABI_VERSION;
/* The command is IMAP's; elsewhere the plugin could not be loaded. */
const char imap_xaps_plugin_binary_dependency[] = "imap";

static struct module *imap_xaps_module;
static imap_client_created_func_t *next_hook_client_created;

/* Names are in UTF-8 once the client has enabled UTF8=ACCEPT; before 2.4.3 they stay in modified UTF-7. */
static bool command_is_utf8(struct client_command_context *cmd ATTR_UNUSED)
{
#if DOVECOT_VERSION_MINOR > 4 || (DOVECOT_VERSION_MINOR == 4 && DOVECOT_VERSION_MICRO >= 3)
	return cmd->utf8;
#else
	return FALSE;
#endif
}

static void append_quoted(string_t *reply, const char *text)
{
	str_append_c(reply, '"');
	for (; *text != '\0'; text++) {
		if (*text == '"' || *text == '\\')
			str_append_c(reply, '\\');
		if (*text != '\r' && *text != '\n')
			str_append_c(reply, *text);
	}
	str_append_c(reply, '"');
}

static void send_mailbox(struct client_command_context *cmd, const char *name)
{
	string_t *reply = t_str_new(128);

	/* the name came from this encoding, so it fits */
	if (!command_is_utf8(cmd) && t_imap_utf8_to_utf7(name, &name) < 0)
		return;
	str_append(reply, "* "COMMAND_NAME" \"mailbox\" ");
	append_quoted(reply, name);
	client_send_line(cmd->client, str_c(reply));
}

static void
send_success(struct client_command_context *cmd, const struct xaps_request *request,
	     const ARRAY_TYPE(xaps_mailbox) *mailboxes, const char *topic)
{
	const struct xaps_mailbox *mailbox;
	string_t *reply = t_str_new(128);

	if (request->version >= 2) {
		array_foreach(mailboxes, mailbox) T_BEGIN {
			send_mailbox(cmd, mailbox->name);
		} T_END;
	}
	str_printfa(reply, "* "COMMAND_NAME" \"aps-version\" \"%u\" \"aps-topic\" ", request->version);
	append_quoted(reply, topic);
	client_send_line(cmd->client, str_c(reply));
	client_send_tagline(cmd, "OK "COMMAND_NAME" completed.");
}

static int get_settings(struct client *client, struct xaps_settings *set_r, const char **error_r)
{
	if (restrict_access_get_current_chroot() != NULL) {
		*error_r = "Users in a chroot can't be registered: neither the registry nor the daemon's paths are there";
		return -1;
	}
	return xaps_settings_get(client->user, pool_datastack_create(), set_r, error_r);
}

/* NULL if it can't be loaded. Once loaded it stays: it belongs to no session. */
static const struct xaps_registry_module *load_registry_module(const char **error_r)
{
	static const struct xaps_registry_module *loaded;
	const char *path = imap_xaps_module->path;
	const struct xaps_registry_module *found;
	void *handle;

	if (loaded != NULL)
		return loaded;
	path = t_strconcat(t_strdup_until(path, strrchr(path, '/') + 1), XAPS_REGISTRY_MODULE_FILE, NULL);
	if ((handle = dlopen(path, RTLD_NOW)) == NULL ||
	    (found = dlsym(handle, "xaps_registry_module")) == NULL)
		*error_r = t_strdup_printf("%s; make install again", dlerror());
	else if (strcmp(found->version, XAPS_REGISTRY_MODULE_VERSION) != 0)
		*error_r = t_strdup_printf("%s is of another release than this session", path);
	else
		loaded = found;
	return loaded;
}

static int
register_device(struct client_command_context *cmd, const struct xaps_request *request,
		const ARRAY_TYPE(xaps_mailbox) *mailboxes, const char **topic_r)
{
	const struct xaps_registry_module *registry;
	const char *error = "There is no topic yet: xaps-watch needs Apple's certificate, see xaps-watch check";
	struct xaps_settings set;
	int ret;

	if (get_settings(cmd->client, &set, &error) < 0 || (registry = load_registry_module(&error)) == NULL)
		ret = -1;
	else if ((ret = xaps_offer_check(set.xaps_registry, &error)) > 0)
		ret = registry->record(&set, cmd->client->user->username, request, mailboxes, topic_r, &error);
	if (ret <= 0)
		e_error(cmd->client->event, "imap-xaps: Registration was not recorded: %s", error);
	return ret;
}

static bool cmd_xapplepushservice(struct client_command_context *cmd)
{
	const struct imap_arg *args;
	struct xaps_request request;
	ARRAY_TYPE(xaps_mailbox) mailboxes;
	const char *topic, *error;

	if (!client_read_args(cmd, 0, 0, &args))
		return FALSE;

	/* the process may have served others before, who have the plugin */
	if (!mail_user_is_plugin_loaded(cmd->client->user, imap_xaps_module)) {
		client_send_command_error(cmd, "Unknown command.");
		return TRUE;
	}
	if (xaps_request_parse(cmd->pool, args, &request, &error) < 0) {
		client_send_command_error(cmd, error);
		return TRUE;
	}
	xaps_mailboxes_find(cmd->client->user, cmd->pool, &request.mailboxes, command_is_utf8(cmd), &mailboxes);
	if (array_count(&mailboxes) == 0 && array_count(&request.mailboxes) > 0) {
		client_send_tagline(cmd, "NO ["IMAP_RESP_CODE_CANNOT"] None of these is a Maildir that you may read.");
		return TRUE;
	}
	if (register_device(cmd, &request, &mailboxes, &topic) <= 0) {
		client_send_tagline(cmd, "NO ["IMAP_RESP_CODE_UNAVAILABLE"] Push is not available now.");
		return TRUE;
	}
	send_success(cmd, &request, &mailboxes, topic);
	return TRUE;
}

/* A registration that fails costs the phone a day of pushes: better that it doesn't try. */
static bool can_register(struct client *client)
{
	struct xaps_settings set;
	const char *error;
	int ret;

	if ((ret = get_settings(client, &set, &error)) == 0)
		ret = xaps_offer_check(set.xaps_registry, &error);
	if (ret < 0)
		e_error(client->event, "imap-xaps: Not offered to this client: %s", error);
	return ret > 0;
}

static void imap_xaps_client_created(struct client **client)
{
	T_BEGIN {
		if (mail_user_is_plugin_loaded((*client)->user, imap_xaps_module) && can_register(*client))
			client_add_capability(*client, COMMAND_NAME);
	} T_END;

	if (next_hook_client_created != NULL)
		next_hook_client_created(client);
}

void imap_xaps_plugin_init(struct module *module)
{
	command_register(COMMAND_NAME, cmd_xapplepushservice, 0);

	imap_xaps_module = module;
	next_hook_client_created = imap_client_created_hook_set(imap_xaps_client_created);
}

void imap_xaps_plugin_deinit(void)
{
	command_unregister(COMMAND_NAME);

	imap_client_created_hook_set(next_hook_client_created);
}
