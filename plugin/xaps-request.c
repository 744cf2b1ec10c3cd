/* The arguments of the command → a request. Needs only lib and lib-imap, so that it can be tested and fuzzed apart. */

#include "lib.h"
#include "array.h"
#include "imap-arg.h"
#include "strnum.h"
#include "xaps-request.h"

#include <ctype.h>

/* Tokens have 64 digits today; Apple says not to count on it. */
#define DEVICE_TOKEN_LEN_MIN 64
#define DEVICE_TOKEN_LEN_MAX 512
/* A UUID today: 36 characters. */
#define ACCOUNT_ID_LEN_MAX 64
/* Apple allows 155 characters in a bundle id. */
#define SUBTOPIC_LEN_MAX 155
/* Each may cost the daemon an inotify watch; phones list only the folders whose push the user turned on. */
#define MAILBOXES_MAX 2000

/* FALSE also for a string with a NUL, which would be cut there in silence. */
static bool arg_get_text(const struct imap_arg *arg, const char **text_r)
{
	return imap_arg_get_astring(arg, text_r) && strlen(*text_r) == arg->str_len;
}

static bool is_identifier(const char *str, size_t max_len, const char *punctuation)
{
	size_t len = 0;

	for (; str[len] != '\0'; len++) {
		if (!i_isalnum(str[len]) && strchr(punctuation, str[len]) == NULL)
			return FALSE;
	}
	return len > 0 && len <= max_len;
}

static bool is_device_token(const char *str)
{
	size_t len = strspn(str, "0123456789abcdefABCDEF");

	return str[len] == '\0' && len % 2 == 0 &&
		len >= DEVICE_TOKEN_LEN_MIN && len <= DEVICE_TOKEN_LEN_MAX;
}

/* Version 1 knew only INBOX, 2 came with the list of mailboxes; whoever speaks a higher one is answered 2. */
static bool parse_version(const char *value, unsigned int *version_r)
{
	if (!str_is_numeric(value, '\0'))
		return FALSE;
	value += strspn(value, "0");
	*version_r = strcmp(value, "1") == 0 ? 1 : 2;
	return *value != '\0';
}

static bool parse_mailboxes(const struct imap_arg *value, struct xaps_request *request)
{
	const struct imap_arg *list;
	const char *name;
	unsigned int count;

	if (!imap_arg_get_list_full(value, &list, &count))
		return FALSE;
	array_clear(&request->mailboxes);
	for (unsigned int i = 0; i < I_MIN(count, MAILBOXES_MAX); i++) {
		if (list[i].type == IMAP_ARG_LIST)
			return FALSE;
		/* what can't be a name belongs to no mailbox, and neither does "" */
		if (!arg_get_text(&list[i], &name))
			name = "";
		array_push_back(&request->mailboxes, &name);
	}
	return TRUE;
}

static bool
parse_pair(pool_t pool, const char *key, const struct imap_arg *value,
	   struct xaps_request *request, bool *mailboxes_given)
{
	const char *text;

	if (strcasecmp(key, "mailboxes") == 0) {
		*mailboxes_given = TRUE;
		return parse_mailboxes(value, request);
	}
	if (strcasecmp(key, "aps-version") == 0)
		return arg_get_text(value, &text) && parse_version(text, &request->version);
	if (strcasecmp(key, "aps-account-id") == 0) {
		if (!arg_get_text(value, &text) || !is_identifier(text, ACCOUNT_ID_LEN_MAX, "-"))
			return FALSE;
		request->account_id = str_ucase(p_strdup(pool, text));
	} else if (strcasecmp(key, "aps-device-token") == 0) {
		if (!arg_get_text(value, &text) || !is_device_token(text))
			return FALSE;
		request->device_token = str_lcase(p_strdup(pool, text));
	} else if (strcasecmp(key, "aps-subtopic") == 0) {
		if (!arg_get_text(value, &text) || !is_identifier(text, SUBTOPIC_LEN_MAX, "-."))
			return FALSE;
		request->subtopic = text;
	}
	return TRUE;
}

int xaps_request_parse(pool_t pool, const struct imap_arg *args,
		       struct xaps_request *request_r, const char **error_r)
{
	static const char *inbox = "INBOX";
	const char *key;
	bool mailboxes_given = FALSE;

	i_zero(request_r);
	request_r->version = 1;
	request_r->subtopic = "";
	p_array_init(&request_r->mailboxes, pool, 8);

	for (; !IMAP_ARG_IS_EOL(args); args += 2) {
		if (!arg_get_text(args, &key) || IMAP_ARG_IS_EOL(&args[1])) {
			*error_r = "Arguments must be pairs of key and value.";
			return -1;
		}
		if (!parse_pair(pool, key, &args[1], request_r, &mailboxes_given)) {
			/* the key is one of ours, so it is fit to be sent */
			*error_r = t_strdup_printf("Invalid %s.", t_str_lcase(key));
			return -1;
		}
	}
	if (request_r->account_id == NULL || request_r->device_token == NULL) {
		*error_r = "aps-account-id and aps-device-token are needed.";
		return -1;
	}
	if (request_r->version == 1 || !mailboxes_given) {
		array_clear(&request_r->mailboxes);
		array_push_back(&request_r->mailboxes, &inbox);
	}
	return 0;
}
