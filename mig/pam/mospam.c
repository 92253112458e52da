/* mospam: what pam_exec runs when a session of a person opens or closes.  It notes it down and rings omdiscd's bell.
 *
 *     session  optional  pam_exec.so  quiet seteuid  /…/mospam
 *
 * A login must never wait for us: nothing here can block (files of a tmpfs, datagrams that are dropped rather than queued without end),
 * and after 50 ms a timer ends us whatever we do.  It must never fail for us either: called by PAM we always end with 0.
 *
 * The note is the truth, the bell only saves omdiscd from looking every second.  The note names the process that called us (sshd's
 * monitor, login, su: it lives exactly as long as its session), so that a close which never comes heals by that process's end, and an
 * omdiscd that was dead or hung finds all notes when it looks.  The layout is read in mig/adaptive/notes.py.
 *
 * Static: the environment comes from PAM, and in part from the user's files; no LD_ variable of it shall mean anything to us. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { LIMIT_MS = 50, LONGEST = 200 };
enum { NOT_PERMITTED = 6, BAD_INPUT = 2 };

static const char USAGE[] =
	"usage: mospam [--run DIR]    (started by pam_exec when a session opens or closes; see mospam(8))\n";

static void put(int fd, const char *text, size_t n)
{
	if (write(fd, text, n) < 0)
		return; /* nobody reads: there is nobody else to tell */
}

/* One line to the system's log and to stderr, which pam_exec shows or drops.  Neither may hold us up. */
static void tell(const char *format, ...)
{
	char line[1024], message[1100];
	va_list arguments;
	va_start(arguments, format);
	vsnprintf(line, sizeof line, format, arguments);
	va_end(arguments);
	int n = snprintf(message, sizeof message, "<85>mospam[%d]: %s", (int)getpid(), line); /* authpriv.notice */
	struct sockaddr_un log = { .sun_family = AF_UNIX, .sun_path = "/dev/log" };
	int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (s >= 0) {
		sendto(s, message, n, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&log, sizeof log);
		close(s);
	}
	n = snprintf(message, sizeof message, "mospam: %s\n", line);
	put(2, message, n);
}

static void too_late(int sig)
{
	(void)sig;
	static const char text[] = "mospam: gave up after 50 ms; omdiscd finds out by itself\n";
	put(2, text, sizeof text - 1);
	_exit(0);
}

static int read_all(const char *path, char *buffer, int size)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC), n = 0, got;
	if (fd < 0)
		return -1;
	while (n < size - 1 && (got = read(fd, buffer + n, size - 1 - n)) > 0)
		n += got;
	close(fd);
	buffer[n] = 0;
	return n;
}

/* Whether a process has libpam in it: pam_exec's child, which we are, has the process that asked PAM as its parent. */
static int speaks_pam(pid_t pid)
{
	static char maps[1 << 20]; /* not on the stack, and never touched beyond what is read */
	char path[64];
	snprintf(path, sizeof path, "/proc/%d/maps", (int)pid);
	return read_all(path, maps, sizeof maps) > 0 && strstr(maps, "/libpam.so") != NULL;
}

/* Field 22 of /proc/PID/stat, which together with the pid names a process for ever. */
static unsigned long long started(pid_t pid)
{
	char path[64], text[2048];
	snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
	if (read_all(path, text, sizeof text) <= 0)
		return 0;
	char *at = strrchr(text, ')'); /* the name before it may hold anything */
	for (int field = 2; at && field < 22; field++)
		at = strchr(at + 1, ' ');
	return at ? strtoull(at + 1, NULL, 10) : 0;
}

/* A value of PAM's, "" where it is not set; -1 when it could not be part of a line. */
static int value(const char *name, char *out)
{
	const char *v = getenv(name);
	out[0] = 0;
	if (!v)
		return 0;
	if (strlen(v) > LONGEST)
		return -1;
	for (const char *c = v; *c; c++)
		if ((unsigned char)*c < 0x20 || *c == 0x7f)
			return -1;
	strcpy(out, v);
	return 0;
}

static int ring(const char *run, const char *what, int n)
{
	struct sockaddr_un bell = { .sun_family = AF_UNIX };
	if (snprintf(bell.sun_path, sizeof bell.sun_path, "%s/bell.sock", run) >= (int)sizeof bell.sun_path)
		return ENAMETOOLONG;
	int s = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (s < 0)
		return errno;
	int sent = sendto(s, what, n, MSG_DONTWAIT | MSG_NOSIGNAL, (struct sockaddr *)&bell, sizeof bell);
	int error = sent < 0 ? errno : 0;
	close(s);
	return error;
}

/* Written under another name and renamed: omdiscd never reads half a note. */
static int note(const char *path, const char *text, int n)
{
	char fresh[640];
	snprintf(fresh, sizeof fresh, "%s.new", path);
	int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
	if (fd < 0)
		return errno;
	int error = write(fd, text, n) == n ? 0 : errno ? errno : EIO;
	close(fd);
	if (!error && rename(fresh, path) < 0)
		error = errno;
	return error;
}

int main(int argc, char **argv)
{
	const char *run = "/run/mig";
	if (argc == 3 && !strcmp(argv[1], "--run")) {
		run = argv[2];
	} else if (argc == 2 && !strcmp(argv[1], "--help")) {
		put(1, USAGE, sizeof USAGE - 1);
		return 0;
	} else if (argc != 1) {
		put(2, USAGE, sizeof USAGE - 1);
		return BAD_INPUT;
	}
	if (getuid() != 0 || geteuid() != 0) {
		tell("refused: only root's PAM may tell of sessions, this is user %d; nothing was noted", (int)getuid());
		return NOT_PERMITTED;
	}
	pid_t caller = getppid();
	if (!speaks_pam(caller)) {
		tell("refused: process %d, which called me, does not use PAM; nothing was noted (mospam is for pam_exec, see mospam(8))", (int)caller);
		return BAD_INPUT;
	}
	struct sigaction action = { .sa_handler = too_late };
	sigaction(SIGALRM, &action, NULL);
	struct itimerval limit = { .it_value = { .tv_usec = LIMIT_MS * 1000 } };
	setitimer(ITIMER_REAL, &limit, NULL);

	/* from here on PAM waits for us: whatever is wrong, the login goes on */
	char type[LONGEST + 1], service[LONGEST + 1], user[LONGEST + 1], tty[LONGEST + 1], host[LONGEST + 1];
	if (value("PAM_TYPE", type) || value("PAM_SERVICE", service) || value("PAM_USER", user) || value("PAM_TTY", tty) || value("PAM_RHOST", host)) {
		tell("the session of process %d has a user, service, terminal or host that makes no sense; it is not counted", (int)caller);
		return 0;
	}
	int opens = !strcmp(type, "open_session"), closes = !strcmp(type, "close_session");
	if ((!opens && !closes) || !service[0] || !user[0]) {
		tell("PAM calls me for '%s' of user '%s', service '%s': only sessions concern me; nothing was noted", type, user, service);
		return 0;
	}
	char directory[512], path[576], text[2048];
	snprintf(directory, sizeof directory, "%s/logins", run);
	mkdir(run, 0755);
	mkdir(directory, 0700); /* there already, as a rule */
	snprintf(path, sizeof path, "%s/%d", directory, (int)caller);
	int error = 0;
	if (opens) {
		struct timespec now;
		clock_gettime(CLOCK_BOOTTIME, &now);
		int n = snprintf(text, sizeof text, "start=%llu\nsince=%lld\nservice=%s\nuser=%s\ntty=%s\nhost=%s\n", started(caller),
				 (long long)now.tv_sec, service, user, tty, host);
		if ((error = note(path, text, n)))
			tell("the login of %s (%s) cannot be noted in %s: %s", user, service, directory, strerror(error));
	} else if (unlink(path) < 0 && errno != ENOENT) {
		tell("the note %s cannot be removed: %s", path, strerror(errno));
	}
	int n = snprintf(text, sizeof text, "%s %s %d", type, service, (int)caller);
	if ((error = ring(run, text, n)))
		tell("omdiscd does not hear of the %s of %s (%s): %s; it finds the note when it looks", opens ? "login" : "logout", user, service,
		     error == ENOENT || error == ECONNREFUSED ? "it does not run" : error == EAGAIN ? "it does not read" : strerror(error));
	return 0;
}
