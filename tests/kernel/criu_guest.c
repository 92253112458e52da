/* A guest for the CRIU tests: `criu_guest MODE`, results as lines on stdout (a file).  Prints "ready" when it is in place. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec + t.tv_nsec / 1e9;
}

int main(int argc, char **argv)
{
	const char *mode = argc > 1 ? argv[1] : "";
	double began;
	int ret = 0, client = -1, server = -1;

	setvbuf(stdout, NULL, _IONBF, 0);
	if (!strcmp(mode, "inet")) {
		struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
		socklen_t n = sizeof a;
		int l = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM, 0);
		if (bind(l, (void *)&a, n) || listen(l, 1) || getsockname(l, (void *)&a, &n) || connect(c, (void *)&a, n) ||
		    accept(l, NULL, NULL) < 0)
			return 1;
	}
	if (!strcmp(mode, "lock")) {
		int fd = open("/proc/self/exe", O_RDONLY);
		if (fd < 0 || flock(fd, LOCK_SH))
			return 1;
	}
	if (!strcmp(mode, "pending")) {
		sigset_t s;
		sigemptyset(&s);
		sigaddset(&s, SIGUSR1);
		sigaddset(&s, SIGUSR2);
		sigprocmask(SIG_BLOCK, &s, NULL);
		raise(SIGUSR2); /* to this thread */
		kill(getpid(), SIGUSR1);
	}
	if (!strcmp(mode, "waiting")) { /* a connection that is not accepted; the listening socket has the higher descriptor */
		struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "waiting.sock"};
		client = socket(AF_UNIX, SOCK_STREAM, 0);
		server = socket(AF_UNIX, SOCK_STREAM, 0);
		if (bind(server, (void *)&a, sizeof a) || listen(server, 1) || connect(client, (void *)&a, sizeof a))
			return 1;
	}
	printf("ready\n");
	began = now();
	if (!strcmp(mode, "nanosleep")) {
		struct timespec req = {2, 0}, rem = {0, 0};
		ret = nanosleep(&req, &rem);
	} else if (!strcmp(mode, "poll")) {
		int p[2];
		if (pipe(p))
			return 1;
		struct pollfd f = {.fd = p[0], .events = POLLIN};
		ret = poll(&f, 1, 1000);
	} else if (!strcmp(mode, "waiting")) {
		char got[8];
		raise(SIGSTOP);
		server = accept(server, NULL, NULL);
		ret = write(client, "four", 4) == 4 ? read(server, got, sizeof got) : -1;
	} else {
		for (long i = 0;; i++) {
			struct timespec tick = {0, 5000000};
			printf("%ld\n", i);
			nanosleep(&tick, NULL);
		}
	}
	printf("%d %d %.3f\n", ret, ret < 0 ? errno : 0, now() - began);
	return 0;
}
