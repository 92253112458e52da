/* What the guest programs share: output that survives cut-short writes, numbered lines, a clock, commands on standard input.
 *
 * A line on standard output is "NNNNNNNN WORD ...", numbered from 0 without a gap.  What must never be is told as "NNNNNNNN ERROR ..." and
 * ends the program with status 3. */
#ifndef GUEST_H
#define GUEST_H

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { STATUS_ERROR = 3, STATUS_EOF = 7 };

static inline double seconds(clockid_t clock)
{
    struct timespec t;

    clock_gettime(clock, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* A signal or a freeze may cut a blocked write short. */
static inline int write_all(int fd, const char *data, size_t n)
{
    while (n) {
        ssize_t k = write(fd, data, n);

        if (k < 0 && errno != EINTR)
            return -1;
        if (k > 0) {
            data += k;
            n -= k;
        }
    }
    return 0;
}

static pthread_mutex_t say_lock = PTHREAD_MUTEX_INITIALIZER;

static inline void say(const char *format, ...)
{
    static unsigned long lines;
    char text[1024];
    va_list arguments;
    int n;

    pthread_mutex_lock(&say_lock);
    n = snprintf(text, sizeof text, "%08lu ", lines++);
    va_start(arguments, format);
    n += vsnprintf(text + n, sizeof text - n - 1, format, arguments);
    va_end(arguments);
    if (n > (int)sizeof text - 2)
        n = sizeof text - 2;
    text[n++] = '\n';
    write_all(STDOUT_FILENO, text, n);
    pthread_mutex_unlock(&say_lock);
}

/* In a child, whose lines would not fit into its parent's numbers, an error goes to standard error. */
static __attribute__((unused)) int is_child;

#define fail(...)                                            \
    do {                                                     \
        if (is_child)                                        \
            dprintf(STDERR_FILENO, "ERROR " __VA_ARGS__);    \
        else                                                 \
            say("ERROR " __VA_ARGS__);                       \
        _exit(STATUS_ERROR);                                 \
    } while (0)

/* The next whole line of standard input, without its newline: 1 a line, 0 none yet, -1 end of file.  Waits up to `milliseconds`. */
static inline int next_command(char line[256], int milliseconds)
{
    static char partial[256];
    static size_t have;
    struct pollfd in = { STDIN_FILENO, POLLIN, 0 };

    while (poll(&in, 1, milliseconds) > 0) {
        char c;
        ssize_t n = read(STDIN_FILENO, &c, 1);

        if (n < 0 && (errno == EINTR || errno == EAGAIN))
            return 0;
        if (n <= 0)
            return -1;
        if (c == '\n') {
            memcpy(line, partial, have);
            line[have] = 0;
            have = 0;
            return 1;
        }
        if (have < sizeof partial - 1)
            partial[have++] = c;
        milliseconds = 0;
    }
    return 0;
}

#endif
