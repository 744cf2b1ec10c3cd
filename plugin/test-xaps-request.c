/* What is made of the command's arguments, case by case. */

#include "lib.h"
#include "array.h"
#include "imap-arg.h"
#include "str.h"
#include "test-common.h"
#include "test-imap-args.h"
#include "xaps-request.h"

#define T32 "2918390218931890821908309283ABcd"
#define T256 T32 T32 T32 T32 T32 T32 T32 T32
#define TOKEN T32 T32
#define ACCOUNT "0715a26b-CA09-4730-A419-793000CA982E"
#define ACCOUNT64 "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA-AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
#define IDS "aps-account-id " ACCOUNT " aps-device-token " TOKEN

/* with its length, since literals may hold NULs */
#define LINE(line) (const unsigned char *)(line), sizeof(line) - 1

static const struct {
	const char *name;
	const unsigned char *line;
	size_t size;
	unsigned int version;
	const char *mailboxes; /* joined by commas */
	const char *subtopic;
} accepted[] = {
	{ "as iOS writes it", LINE("aps-version 2 " IDS " aps-subtopic com.apple.mobilemail mailboxes (INBOX \"My Folder\")"),
	  2, "INBOX,My Folder", "com.apple.mobilemail" },
	{ "another order", LINE("mailboxes (A) " IDS " aps-version 2"), 2, "A", "" },
	{ "keys in any case", LINE("APS-VERSION 2 " IDS " Mailboxes (A)"), 2, "A", "" },
	{ "quoted strings", LINE("\"aps-version\" \"2\" " IDS " \"mailboxes\" (\"a\\\"b\\\\c\")"), 2, "a\"b\\c", "" },
	{ "literals", LINE("{11}aps-version {1}2 " IDS " mailboxes ({3}A B {1}C)"), 2, "A B,C", "" },
	{ "unknown keys", LINE("sender x " IDS " aps-version 2 a (b (c)) mailboxes (A) d NIL"), 2, "A", "" },
	{ "the last of several", LINE(IDS " aps-version 1 aps-version 2 mailboxes (A B) mailboxes (C)"), 2, "C", "" },
	{ "mailboxes called NIL", LINE(IDS " aps-version 2 mailboxes (NIL nil)"), 2, "NIL,nil", "" },
	{ "names of no mailbox", LINE(IDS " aps-version 2 mailboxes (& {2}\r\n \"\")"), 2, "&,\r\n,", "" },
	{ "a name with a NUL", LINE(IDS " aps-version 2 mailboxes ({3}A\0B C)"), 2, ",C", "" },
	{ "no mailbox wanted", LINE(IDS " aps-version 2 mailboxes ()"), 2, "", "" },
	{ "mailboxes not told", LINE(IDS " aps-version 2"), 2, "INBOX", "" },
	{ "version 1", LINE(IDS " aps-version 1 mailboxes (A B)"), 1, "INBOX", "" },
	{ "version not told", LINE(IDS " mailboxes (A)"), 1, "INBOX", "" },
	{ "version 3", LINE(IDS " aps-version 3 mailboxes (A)"), 2, "A", "" },
	{ "version 002", LINE(IDS " aps-version 002 mailboxes (A)"), 2, "A", "" },
	{ "a huge version", LINE(IDS " aps-version 99999999999999999999999999 mailboxes (A)"), 2, "A", "" },
};

static const struct {
	const char *name;
	const unsigned char *line;
	size_t size;
	const char *error;
} refused[] = {
	{ "no arguments", LINE(""), "aps-account-id and aps-device-token are needed." },
	{ "no token", LINE("aps-account-id a"), "aps-account-id and aps-device-token are needed." },
	{ "no account", LINE("aps-device-token " TOKEN), "aps-account-id and aps-device-token are needed." },
	{ "no value", LINE(IDS " aps-version"), "Arguments must be pairs of key and value." },
	{ "no value of an unknown key", LINE(IDS " sender"), "Arguments must be pairs of key and value." },
	{ "a list as key", LINE(IDS " (a) b"), "Arguments must be pairs of key and value." },
	{ "a key with a NUL", LINE(IDS " {3}a\0b c"), "Arguments must be pairs of key and value." },
	{ "version 0", LINE(IDS " aps-version 0"), "Invalid aps-version." },
	{ "version -1", LINE(IDS " aps-version -1"), "Invalid aps-version." },
	{ "version two", LINE(IDS " aps-version two"), "Invalid aps-version." },
	{ "version 2x", LINE(IDS " aps-version 2x"), "Invalid aps-version." },
	{ "an empty version", LINE(IDS " aps-version \"\""), "Invalid aps-version." },
	{ "a version with a NUL", LINE(IDS " aps-version {3}2\0x"), "Invalid aps-version." },
	{ "a list as version", LINE(IDS " aps-version (2)"), "Invalid aps-version." },
	{ "an empty account", LINE(IDS " aps-account-id \"\""), "Invalid aps-account-id." },
	{ "an account with a blank", LINE(IDS " aps-account-id \"a b\""), "Invalid aps-account-id." },
	{ "an account with CR LF", LINE(IDS " aps-account-id {4}a\r\nb"), "Invalid aps-account-id." },
	{ "an account with a NUL", LINE(IDS " aps-account-id {3}a\0b"), "Invalid aps-account-id." },
	{ "an account in UTF-8", LINE(IDS " aps-account-id {2}\xc3\xa4"), "Invalid aps-account-id." },
	{ "an account of 65", LINE(IDS " aps-account-id " ACCOUNT64 "A"), "Invalid aps-account-id." },
	{ "a list as account", LINE(IDS " aps-account-id (a)"), "Invalid aps-account-id." },
	{ "an empty token", LINE(IDS " aps-device-token \"\""), "Invalid aps-device-token." },
	{ "a token of 62", LINE(IDS " aps-device-token " T32 "012345678901234567890123456789"),
	  "Invalid aps-device-token." },
	{ "a token of 65", LINE(IDS " aps-device-token " TOKEN "0"), "Invalid aps-device-token." },
	{ "a token of 514", LINE(IDS " aps-device-token " T256 T256 "00"), "Invalid aps-device-token." },
	{ "a token with a g", LINE(IDS " aps-device-token " TOKEN "0g"), "Invalid aps-device-token." },
	{ "a token with a NUL", LINE(IDS " aps-device-token {67}" TOKEN "\0" "00"), "Invalid aps-device-token." },
	{ "an empty subtopic", LINE(IDS " aps-subtopic \"\""), "Invalid aps-subtopic." },
	{ "a subtopic with a slash", LINE(IDS " aps-subtopic a/b"), "Invalid aps-subtopic." },
	{ "mailboxes is no list", LINE(IDS " mailboxes INBOX"), "Invalid mailboxes." },
	{ "mailboxes is NIL", LINE(IDS " mailboxes NIL"), "Invalid mailboxes." },
	{ "a list among mailboxes", LINE(IDS " mailboxes (A (B) C)"), "Invalid mailboxes." },
};

static int parse(pool_t pool, const unsigned char *line, size_t size,
		 struct xaps_request *request_r, const char **error_r)
{
	return xaps_request_parse(pool, test_imap_args(pool, line, size), request_r, error_r);
}

static void test_accepted(void)
{
	struct xaps_request request;
	const char *error;

	for (unsigned int i = 0; i < N_ELEMENTS(accepted); i++) {
		pool_t pool = pool_allocfree_create("test");

		test_begin(t_strdup_printf("accepted: %s", accepted[i].name));
		if (parse(pool, accepted[i].line, accepted[i].size, &request, &error) < 0) {
			test_assert_strcmp(error, NULL);
		} else {
			test_assert(request.version == accepted[i].version);
			test_assert_strcmp(request.account_id, "0715A26B-CA09-4730-A419-793000CA982E");
			test_assert_strcmp(request.device_token, t_str_lcase(TOKEN));
			test_assert_strcmp(request.subtopic, accepted[i].subtopic);
			test_assert_strcmp(p_array_const_string_join(pool, &request.mailboxes, ","),
					   accepted[i].mailboxes);
		}
		pool_unref(&pool);
		test_end();
	}
}

static void test_refused(void)
{
	struct xaps_request request;
	const char *error;

	for (unsigned int i = 0; i < N_ELEMENTS(refused); i++) {
		pool_t pool = pool_allocfree_create("test");

		test_begin(t_strdup_printf("refused: %s", refused[i].name));
		error = "accepted";
		test_assert(parse(pool, refused[i].line, refused[i].size, &request, &error) == -1);
		test_assert_strcmp(error, refused[i].error);
		pool_unref(&pool);
		test_end();
	}
}

static void test_limits(void)
{
	pool_t pool = pool_allocfree_create("test");
	string_t *line = t_str_new(65536);
	struct xaps_request request;
	const char *error;

	test_begin("limits");
	str_append(line, IDS " aps-version 2 mailboxes (");
	for (unsigned int i = 0; i < 3000; i++)
		str_printfa(line, "%u ", i);
	str_append_c(line, ')');
	test_assert(parse(pool, str_data(line), str_len(line), &request, &error) == 0);
	test_assert(array_count(&request.mailboxes) == 2000);
	test_assert(parse(pool, LINE("aps-account-id " ACCOUNT64 " aps-device-token " T256 T256), &request, &error) == 0);
	test_assert_strcmp(request.account_id, ACCOUNT64);
	pool_unref(&pool);
	test_end();
}

int main(void)
{
	static void (*const tests[])(void) = {
		test_accepted,
		test_refused,
		test_limits,
		NULL
	};
	return test_run(tests);
}
