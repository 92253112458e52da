/*
 * Preloaded into CRIU; x86-64 only.  Everything that is not named here goes to the kernel unchanged.
 *
 * 1. Where root lacks CAP_SYS_RESOURCE (containers) prlimit(2) on another user's process is EPERM, and CRIU, which only wants to read
 *    the limits, gives up.  It calls through libc's syscall(); a refused query is answered from /proc/PID/limits instead.
 *
 * 2. For a dump that leaves memory out: MIG_FAKE is the number of a directory descriptor.  Where CRIU opens /proc/PID/pagemap or
 *    /proc/PID/smaps and that directory has pm.PID or sm.PID, it gets that file.  CRIU asks the page map for guard pages too, by an
 *    ioctl that only the real one answers: that goes to the real one.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

/* which source this was compiled from: mig.criu.layout compares, because an older shim hides nothing and says nothing */
#ifndef MIG_SOURCE
#define MIG_SOURCE "unknown"
#endif
__attribute__((used)) static const char source[] = "mig-shim-source:" MIG_SOURCE;

#define PAGEMAP_SCAN 0xC0606610UL

/* the rows of /proc/PID/limits, in the order of the RLIMIT_ numbers */
static const char *const row_name[] = {
	"cpu time", "file size", "data size", "stack size", "core file size", "resident set", "processes", "open files",
	"locked memory", "address space", "file locks", "pending signals", "msgqueue size", "nice priority",
	"realtime priority", "realtime timeout",
};
#define ROWS (sizeof row_name / sizeof *row_name)

static long raw_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	long ret;
	register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
	__asm__ volatile("syscall" : "=a"(ret) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return ret;
}

static unsigned long limit_value(const char *text)
{
	return strcmp(text, "unlimited") ? strtoul(text, NULL, 10) : ~0UL;
}

/* "Max open files            1024                 1048576              files": the values begin in column 26 */
static long limits_from_proc(long pid, unsigned long resource, unsigned long out[2])
{
	char path[64], line[256], soft[32], hard[32];
	long ret = -EPERM;

	if (resource >= ROWS)
		return ret;
	snprintf(path, sizeof path, "/proc/%ld/limits", pid);
	FILE *f = fopen(path, "re");
	if (!f)
		return ret;
	size_t n = strlen(row_name[resource]);
	while (fgets(line, sizeof line, f)) {
		if (strlen(line) < 27 || strncmp(line + 4, row_name[resource], n) || line[4 + n] != ' ')
			continue;
		if (sscanf(line + 26, "%31s %31s", soft, hard) == 2) {
			out[0] = limit_value(soft);
			out[1] = limit_value(hard);
			ret = 0;
		}
		break;
	}
	fclose(f);
	return ret;
}

/* variadic in the headers, so it has a name of its own here */
long shim_syscall(long nr, long a, long b, long c, long d, long e, long f) __asm__("syscall");
long shim_syscall(long nr, long a, long b, long c, long d, long e, long f)
{
	long ret = raw_syscall(nr, a, b, c, d, e, f);

	if (nr == SYS_prlimit64 && ret == -EPERM && !c && d)
		ret = limits_from_proc(a, (unsigned long)b, (unsigned long *)d);
	if (ret < 0 && ret > -4096) {
		errno = (int)-ret;
		return -1;
	}
	return ret;
}

/* the path that a descriptor leads to; false when it has none that fits */
static int path_of(int fd, char *path, size_t size)
{
	char link[32];

	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t n = readlink(link, path, size - 1);
	if (n <= 0 || (size_t)n >= size - 1)
		return 0;
	path[n] = 0;
	return 1;
}

/* a fake of /proc/PID/<name>, where dirfd is /proc/PID; -1 when there is none */
static int open_fake(int dirfd, const char *name)
{
	const char *fakes = getenv("MIG_FAKE"), *kind = !strcmp(name, "pagemap") ? "pm" : !strcmp(name, "smaps") ? "sm" : NULL;
	char path[256], fake[32];
	int pid, end = 0;

	if (!fakes || !kind || !path_of(dirfd, path, sizeof path) || sscanf(path, "/proc/%d%n", &pid, &end) != 1 || path[end])
		return -1;
	snprintf(fake, sizeof fake, "%s.%d", kind, pid);
	return (int)raw_syscall(SYS_openat, atoi(fakes), (long)fake, O_RDONLY | O_CLOEXEC, 0, 0, 0);
}

int openat64(int dirfd, const char *name, int flags, ...)
{
	va_list ap;
	va_start(ap, flags);
	int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(ap, int) : 0;
	va_end(ap);
	int saved = errno;
	int fake = open_fake(dirfd, name);
	errno = saved;
	if (fake >= 0)
		return fake;
	return (int)shim_syscall(SYS_openat, dirfd, (long)name, flags | 0100000 /* O_LARGEFILE */, mode, 0, 0);
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	va_start(ap, request);
	long argument = va_arg(ap, long);
	va_end(ap);
	char path[4096], real[64], *base;
	int pid;

	if (request == PAGEMAP_SCAN && getenv("MIG_FAKE") && path_of(fd, path, sizeof path) && (base = strrchr(path, '/')) &&
	    sscanf(base, "/pm.%d", &pid) == 1) {
		snprintf(real, sizeof real, "/proc/%d/pagemap", pid);
		long found = shim_syscall(SYS_openat, AT_FDCWD, (long)real, O_RDONLY | O_CLOEXEC, 0, 0, 0);
		if (found < 0)
			return -1;
		long ret = shim_syscall(SYS_ioctl, found, (long)request, argument, 0, 0, 0);
		int saved = errno;
		close((int)found);
		errno = saved;
		return (int)ret;
	}
	return (int)shim_syscall(SYS_ioctl, fd, (long)request, argument, 0, 0, 0);
}
