#ifndef XAPS_REQUEST_H
#define XAPS_REQUEST_H

#include "array.h"

struct imap_arg;

/* What a phone asks for, checked and normalised. */
struct xaps_request {
	/* The one to answer: the lower of the phone's and ours. */
	unsigned int version;
	/* Upper case. */
	const char *account_id;
	/* Hex, lower case. A secret. */
	const char *device_token;
	/* The app on the phone, such as com.apple.mobilemail; "" where it isn't told. */
	const char *subtopic;
	/* As the phone wrote them: modified UTF-7, or UTF-8 after UTF8=ACCEPT. */
	ARRAY_TYPE(const_string) mailboxes;
};

/* Reads pairs of key and value: any order, unknown keys ignored, the last of several wins. What request_r points to
   belongs to pool or to args. Returns -1 if the arguments make no sense; error_r is then fit for the client. */
int xaps_request_parse(pool_t pool, const struct imap_arg *args,
		       struct xaps_request *request_r, const char **error_r);

#endif
