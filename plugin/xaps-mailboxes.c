/* The names that a phone asks for → mailboxes and their directories. */

#include "lib.h"
#include "array.h"
#include "hash.h"
#include "imap-utf7.h"
#include "mail-namespace.h"
#include "mail-storage-private.h"
#include "mail-user.h"
#include "str.h"
#include "unichar.h"
#include "xaps-mailboxes.h"

static bool has_control_char(const char *str)
{
	for (; *str != '\0'; str++) {
		if ((unsigned char)*str < 0x20 || *str == 0x7f)
			return TRUE;
	}
	return FALSE;
}

static struct mailbox *mailbox_alloc_by_name(struct mail_user *user, const char *name, bool utf8)
{
	struct mail_namespace *ns;

	if (!utf8) {
		string_t *utf8_name = t_str_new(64);

		if (imap_utf7_to_utf8(name, utf8_name) < 0)
			return NULL;
		name = str_c(utf8_name);
	} else if (!uni_utf8_str_is_valid(name)) {
		return NULL;
	}

	ns = mail_namespace_find(user->namespaces, name);
	/* found only since it takes everything: there is no such namespace */
	if ((ns->flags & NAMESPACE_FLAG_AUTOCREATED) != 0 && ns->prefix_len == 0)
		return NULL;
	return mailbox_alloc(ns->list, name, MAILBOX_FLAG_READONLY);
}

static bool mailbox_is_readable_maildir(struct mailbox *box)
{
	enum mailbox_existence existence;

	if (mailbox_exists(box, TRUE, &existence) < 0 || existence != MAILBOX_EXISTENCE_SELECT)
		return FALSE;
	if (strcmp(mailbox_get_storage(box)->name, "maildir") != 0)
		return FALSE;
	/* A mailbox of someone else's may exist for those who may only look it up or insert; opening asks for the
	   right to read. The user's own need not be opened, which would cost more than all the rest. */
	return mailbox_get_namespace(box)->type == MAIL_NAMESPACE_TYPE_PRIVATE || mailbox_open(box) == 0;
}

static bool mailbox_find(struct mailbox *box, pool_t pool, struct xaps_mailbox *mailbox_r)
{
	const char *path;

	if (!mailbox_is_readable_maildir(box) ||
	    mailbox_get_path_to(box, MAILBOX_LIST_PATH_TYPE_MAILBOX, &path) <= 0)
		return FALSE;
	/* what is recorded ends up in logs and on terminals */
	if (has_control_char(mailbox_get_vname(box)) || has_control_char(path) || *path != '/')
		return FALSE;
	mailbox_r->name = p_strdup(pool, mailbox_get_vname(box));
	mailbox_r->path = p_strdup(pool, path);
	return TRUE;
}

void xaps_mailboxes_find(struct mail_user *user, pool_t pool, const ARRAY_TYPE(const_string) *names, bool utf8,
			 ARRAY_TYPE(xaps_mailbox) *mailboxes_r)
{
	HASH_TABLE(const char *, const char *) found;
	const char *const *namep;

	p_array_init(mailboxes_r, pool, array_count(names));
	hash_table_create(&found, default_pool, 0, str_hash, strcmp);
	array_foreach(names, namep) T_BEGIN {
		struct mailbox *box = mailbox_alloc_by_name(user, *namep, utf8);
		struct xaps_mailbox mailbox;

		if (box != NULL) {
			if (mailbox_find(box, pool, &mailbox) && hash_table_lookup(found, mailbox.name) == NULL) {
				hash_table_insert(found, mailbox.name, mailbox.path);
				array_push_back(mailboxes_r, &mailbox);
			}
			mailbox_free(&box);
		}
	} T_END;
	hash_table_destroy(&found);
}
