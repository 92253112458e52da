/* target MIB FILE: fills MIB of memory with what does not compress, then works on 64 MiB of it, which lie behind the first 7/8 (whoever sends
 * memory in the order of addresses shall not send them first by chance), for ever and looks at its clock at each step.  The line
 * "ready" goes to FILE when the work begins, and on SIGUSR1 "steps N", the work done so far, and "longest MS": the longest time in which
 * it did not run since the last such line.  FILE is open only while a line is written, so that it is no matter of whoever moves this process. */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char *path;
static volatile sig_atomic_t asked;

static void ask(int sig) {
	(void)sig;
	asked = 1;
}

static double now_ms(void) {
	struct timespec t;
	clock_gettime(CLOCK_REALTIME, &t); /* CRIU lets the monotonic clock stand still while the process does */
	return t.tv_sec * 1e3 + t.tv_nsec * 1e-6;
}

static void note(const char *line) {
	int fd = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
	if (fd < 0 || write(fd, line, strlen(line)) < 0 || close(fd) < 0)
		exit(1);
}

int main(int argc, char **argv) {
	if (argc != 3)
		return 2;
	size_t words = ((size_t)atol(argv[1]) << 20) / sizeof(uint64_t), hot = (64 << 20) / sizeof(uint64_t);
	uint64_t *memory = malloc(words * sizeof(uint64_t)), state = 88172645463325252ull;
	if (!memory)
		return 1;
	path = argv[2];
	for (size_t i = 0; i < words; i++) {
		state ^= state << 13, state ^= state >> 7, state ^= state << 17;
		memory[i] = state;
	}
	if (hot > words)
		hot = words;
	uint64_t *place = memory + (words / 8 < hot ? words - hot : words / 8 * 7);
	signal(SIGUSR1, ask);
	note("ready\n");
	double longest = 0;
	unsigned long steps = 0;
	for (double last = now_ms();;) {
		state ^= state << 13, state ^= state >> 7, state ^= state << 17;
		place[state % hot] ^= 1;
		steps++;
		double now = now_ms();
		if (now - last > longest)
			longest = now - last;
		last = now;
		if (asked) {
			char line[96];
			asked = 0;
			snprintf(line, sizeof line, "steps %lu\nlongest %.3f\n", steps, longest);
			note(line);
			longest = 0;
			last = now_ms(); /* the writing is no pause */
		}
	}
}
