#ifndef TEST_IMAP_ARGS_H
#define TEST_IMAP_ARGS_H

struct imap_arg;

/* The arguments of a command line as imap-parser gives them: atoms, "quoted strings", {3}literals whose bytes follow at
   once, (lists), NIL. Arguments come out whatever the line holds. With a pool of pool_allocfree_create() each string
   and list is a block of its own, so that AddressSanitizer sees any step past its end. */
const struct imap_arg *test_imap_args(pool_t pool, const unsigned char *line, size_t size);

#endif
