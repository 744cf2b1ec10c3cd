/* Whether registrations are taken. */

#include "lib.h"
#include "byteorder.h"
#include "xaps-offer.h"
#include "xaps-registry.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

/* In the first bytes of the file: https://www.sqlite.org/fileformat2.html#the_database_header */
#define SQLITE_MAGIC "SQLite format 3" /* and a NUL */
#define SQLITE_USER_VERSION_OFFSET 60

#define MEND_ACCESS "protocol imap needs mail_access_groups with its group, the file mode 0660, its directory 2770"
#define MEND_START "start xaps-watch of the plugin's release, which makes it"

/* The daemon writes its topic there, for those who need not open the registry to see that there is one. */
#define TOPIC_SUFFIX "-topic"

static int fail(const char **error_r, const char *path)
{
	*error_r = t_strdup_printf("%s: %m; %s", path, errno == ENOENT ? MEND_START : MEND_ACCESS);
	return -1;
}

static int check_header(const char *registry, int fd, const char **error_r)
{
	unsigned char header[SQLITE_USER_VERSION_OFFSET + 4];
	uint32_t version;

	if (pread(fd, header, sizeof(header), 0) != sizeof(header) ||
	    memcmp(header, SQLITE_MAGIC, sizeof(SQLITE_MAGIC)) != 0) {
		*error_r = t_strdup_printf("%s: is not a database; "XAPS_MEND_DAMAGED, registry);
		return -1;
	}
	version = be32_to_cpu_unaligned(header + SQLITE_USER_VERSION_OFFSET);
	if (version != XAPS_SCHEMA_VERSION) {
		*error_r = t_strdup_printf("%s: has schema version %u, this plugin knows %u; "XAPS_MEND_RELEASE,
					   registry, version, XAPS_SCHEMA_VERSION);
		return -1;
	}
	return 0;
}

/* SQLite writes to the file and to two more beside it, which it makes where they aren't there. */
static int check_access(const char *registry, const char **error_r)
{
	static const char *const suffixes[] = { "-wal", "-shm" };
	const char *directory = t_strdup_until(registry, strrchr(registry, '/') + 1);

	if (access(directory, W_OK | X_OK) < 0)
		return fail(error_r, directory);
	for (unsigned int i = 0; i < N_ELEMENTS(suffixes); i++) {
		const char *path = t_strconcat(registry, suffixes[i], NULL);

		if (access(path, R_OK | W_OK) < 0 && errno != ENOENT)
			return fail(error_r, path);
	}
	return 0;
}

int xaps_offer_check(const char *registry, const char **error_r)
{
	const char *topic = t_strconcat(registry, TOPIC_SUFFIX, NULL);
	struct stat st;
	int fd, ret;

	if (*registry != '/') {
		*error_r = t_strdup_printf("xaps_registry: %s is not an absolute path", registry);
		return -1;
	}
	if ((fd = open(registry, O_RDWR)) < 0)
		return fail(error_r, registry);
	ret = check_header(registry, fd, error_r);
	/* It drops whatever locks the process has on the file: none, since no connection outlives its registration. */
	i_close_fd(&fd);
	if (ret < 0 || check_access(registry, error_r) < 0)
		return -1;
	if (stat(topic, &st) < 0)
		return fail(error_r, topic);
	return st.st_size > 0 ? 1 : 0;
}
