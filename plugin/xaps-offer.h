#ifndef XAPS_OFFER_H
#define XAPS_OFFER_H

/* Whether registrations are taken now: 1 if so, 0 if the daemon has no topic yet, -1 if the registry can't be used.
   It looks at the files alone, since to load SQLite and open the registry would make each login a fifth slower: some
   microseconds, and it waits for nobody. What only SQLite can see, such as a damaged page, it doesn't. */
int xaps_offer_check(const char *registry, const char **error_r);

#endif
