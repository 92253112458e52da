/*
 * Preloaded into CRIU where root lacks CAP_SYS_RESOURCE (containers): prlimit(2) on another user's process is EPERM there, and CRIU,
 * which only wants to read the limits, gives up.  It calls through libc's syscall(); a refused query is answered from
 * /proc/PID/limits instead.  Everything else goes to the kernel unchanged.  x86-64 only.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>

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

long syscall(long nr, long a, long b, long c, long d, long e, long f)
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
