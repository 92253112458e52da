/*
 * Preloaded into CRIU; x86-64 only.  Everything that is not named here goes to the kernel unchanged.
 *
 * 1. Where root lacks CAP_SYS_RESOURCE (containers) prlimit(2) on another user's process is EPERM, and CRIU, which only wants to read
 *    the limits, gives up.  It calls through libc's syscall(); a refused query is answered from /proc/PID/limits instead.
 *
 * 2. For a dump that leaves memory out: MIG_FAKE is the number of a directory descriptor.  Where CRIU opens /proc/PID/smaps (or pagemap,
 *    where the kernel has no PAGEMAP_SCAN) and that directory has sm.PID (pm.PID), it gets that file.  Where it asks by PAGEMAP_SCAN what
 *    to dump, the ranges in hd.PID hold nothing; guard pages, which are a matter of mappings, it finds there too.
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
#define PAGE_IS_GUARD (1UL << 8)

struct scan { /* struct pm_scan_arg */
	unsigned long size, flags, start, end, walk_end, vec, vec_len, max_pages;
	unsigned long category_inverted, category_mask, category_anyof_mask, return_mask;
};

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

/* the hidden ranges of one process, in order; kept for the next question, which is about the same process as a rule */
static struct { int pid; size_t n; unsigned long (*range)[2]; } hidden;

static int read_hidden(int pid)
{
	char name[32];

	if (hidden.pid == pid)
		return 1;
	snprintf(name, sizeof name, "hd.%d", pid);
	int fd = (int)raw_syscall(SYS_openat, atoi(getenv("MIG_FAKE")), (long)name, O_RDONLY | O_CLOEXEC, 0, 0, 0);
	if (fd < 0)
		return 0;
	off_t size = lseek(fd, 0, SEEK_END);
	free(hidden.range);
	hidden.range = malloc((size_t)size + 1);
	int good = hidden.range && pread(fd, hidden.range, (size_t)size, 0) == size;
	close(fd);
	hidden.n = good ? (size_t)size / sizeof *hidden.range : 0;
	hidden.pid = good ? pid : 0;
	return good;
}

/* PAGEMAP_SCAN, up to the next hidden range at most: CRIU asks again from walk_end on */
static int scan_around(int fd, struct scan *a)
{
	unsigned long start = a->start, end = a->end;

	for (size_t i = 0; i < hidden.n; i++) {
		unsigned long *r = hidden.range[i];
		if (r[1] <= a->start)
			continue;
		if (r[0] > a->start) {
			if (r[0] < a->end)
				a->end = r[0];
			break;
		}
		a->start = r[1];
	}
	int ret = 0;
	if (a->start >= end)
		a->walk_end = end;
	else
		ret = (int)shim_syscall(SYS_ioctl, fd, PAGEMAP_SCAN, (long)a, 0, 0, 0);
	a->start = start;
	a->end = end;
	return ret;
}

int ioctl(int fd, unsigned long request, ...)
{
	va_list ap;
	va_start(ap, request);
	long argument = va_arg(ap, long);
	va_end(ap);
	char path[256];
	int pid, end = 0;

	if (request == PAGEMAP_SCAN && getenv("MIG_FAKE") && ((struct scan *)argument)->category_mask != PAGE_IS_GUARD &&
	    path_of(fd, path, sizeof path) && sscanf(path, "/proc/%d/pagemap%n", &pid, &end) == 1 && end && !path[end] && read_hidden(pid))
		return scan_around(fd, (struct scan *)argument);
	return (int)shim_syscall(SYS_ioctl, fd, (long)request, argument, 0, 0, 0);
}
