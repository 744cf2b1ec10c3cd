/* Whatever a client sends, what comes out of xaps_request_parse() is fit to be recorded, or to be answered. */

#include "lib.h"
#include "array.h"
#include "imap-arg.h"
#include "test-imap-args.h"
#include "xaps-request.h"

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define UPPER_OR_DIGIT "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
#define LOWER "abcdefghijklmnopqrstuvwxyz"

static uintmax_t accepted, refused;

static bool consists_of(const char *str, const char *characters, size_t min_len, size_t max_len)
{
	size_t len = strspn(str, characters);

	return str[len] == '\0' && len >= min_len && len <= max_len;
}

static void check_request(const struct xaps_request *request)
{
	const char *const *names;
	unsigned int count;

	i_assert(request->version == 1 || request->version == 2);
	i_assert(consists_of(request->account_id, UPPER_OR_DIGIT "-", 1, 64));
	i_assert(consists_of(request->device_token, "0123456789abcdef", 64, 512));
	i_assert(strlen(request->device_token) % 2 == 0);
	i_assert(consists_of(request->subtopic, UPPER_OR_DIGIT LOWER "-.", 0, 155));
	names = array_get(&request->mailboxes, &count);
	i_assert(count <= 2000);
	i_assert(request->version == 2 || (count == 1 && strcmp(names[0], "INBOX") == 0));
	for (unsigned int i = 0; i < count; i++)
		i_assert(strlen(names[i]) < SSIZE_T_MAX);
}

static void print_counts(void)
{
	fprintf(stderr, "%ju accepted, %ju refused\n", accepted, refused);
}

int LLVMFuzzerInitialize(int *argc ATTR_UNUSED, char ***argv ATTR_UNUSED)
{
	lib_init();
	atexit(print_counts);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	T_BEGIN {
		pool_t pool = pool_allocfree_create("fuzz");
		const struct imap_arg *args = test_imap_args(pool, data, size);
		struct xaps_request request;
		const char *error = NULL;

		if (xaps_request_parse(pool, args, &request, &error) == 0) {
			check_request(&request);
			accepted++;
		} else {
			i_assert(consists_of(error, UPPER_OR_DIGIT LOWER " -.", 1, 60));
			refused++;
		}
		pool_unref(&pool);
	} T_END;
	return 0;
}
