/* A command line → arguments, for tests. */

#include "lib.h"
#include "array.h"
#include "imap-arg.h"
#include "test-imap-args.h"

#include <ctype.h>

#define LIST_DEPTH_MAX 64

struct reader {
	pool_t pool;
	const unsigned char *pos, *end;
	unsigned int depth;
};

static void arg_set_string(struct reader *reader, struct imap_arg *arg, const void *data, size_t size)
{
	char *str = p_malloc(reader->pool, size + 1);

	memcpy(str, data, size);
	arg->str_len = size;
	arg->_data.str = str;
}

static void read_quoted(struct reader *reader, struct imap_arg *arg)
{
	unsigned char *str = t_malloc0(reader->end - reader->pos + 1);
	size_t size = 0;

	while (reader->pos < reader->end && *reader->pos++ != '"') {
		if (reader->pos[-1] == '\\' && reader->pos < reader->end)
			reader->pos++;
		str[size++] = reader->pos[-1];
	}
	arg->type = IMAP_ARG_STRING;
	arg_set_string(reader, arg, str, strlen((const char *)str));
}

static void read_literal(struct reader *reader, struct imap_arg *arg)
{
	size_t size = 0;

	while (reader->pos < reader->end && i_isdigit(*reader->pos) && size < 1000000)
		size = size * 10 + (*reader->pos++ - '0');
	if (reader->pos < reader->end)
		reader->pos++;
	size = I_MIN(size, (size_t)(reader->end - reader->pos));
	arg->type = IMAP_ARG_STRING;
	arg_set_string(reader, arg, reader->pos, size);
	reader->pos += size;
}

static void read_atom(struct reader *reader, struct imap_arg *arg)
{
	const unsigned char *start = reader->pos++;
	size_t size;

	while (reader->pos < reader->end && strchr(" ()\"{", *reader->pos) == NULL)
		reader->pos++;
	size = reader->pos - start;
	arg->type = size == 3 && strncasecmp((const char *)start, "NIL", 3) == 0 ? IMAP_ARG_NIL : IMAP_ARG_ATOM;
	arg_set_string(reader, arg, start, size);
}

static struct imap_arg *read_args(struct reader *reader, unsigned int *count_r);

static void read_list(struct reader *reader, struct imap_arg *arg)
{
	unsigned int count;
	const struct imap_arg *args = read_args(reader, &count);
	buffer_t *buffer = p_new(reader->pool, buffer_t, 1);

	buffer_create_from_const_data(buffer, args, count * sizeof(*args));
	arg->type = IMAP_ARG_LIST;
	array_create_from_buffer(&arg->_data.list, buffer, sizeof(*args));
}

/* Up to the end of the list or line; count_r counts also the IMAP_ARG_EOL that comes last. */
static struct imap_arg *read_args(struct reader *reader, unsigned int *count_r)
{
	ARRAY_TYPE(imap_arg_list) args;
	struct imap_arg *arg, *result;

	t_array_init(&args, 16);
	reader->depth++;
	do {
		arg = array_append_space(&args);
		while (reader->pos < reader->end && *reader->pos == ' ')
			reader->pos++;
		if (reader->pos == reader->end) {
			arg->type = IMAP_ARG_EOL;
			break;
		}
		switch (*reader->pos) {
		case ')':
			reader->pos++;
			arg->type = IMAP_ARG_EOL;
			break;
		case '(':
			reader->pos++;
			if (reader->depth < LIST_DEPTH_MAX)
				read_list(reader, arg);
			break;
		case '"':
			reader->pos++;
			read_quoted(reader, arg);
			break;
		case '{':
			reader->pos++;
			read_literal(reader, arg);
			break;
		default:
			read_atom(reader, arg);
		}
		arg = array_back_modifiable(&args);
	} while (arg->type != IMAP_ARG_EOL);
	reader->depth--;

	*count_r = array_count(&args);
	result = p_new(reader->pool, struct imap_arg, *count_r);
	memcpy(result, array_front(&args), *count_r * sizeof(*result));
	return result;
}

const struct imap_arg *test_imap_args(pool_t pool, const unsigned char *line, size_t size)
{
	struct reader reader = { .pool = pool, .pos = line, .end = line + size };
	unsigned int count;

	return read_args(&reader, &count);
}
