/* tree: a parent and three children, which hand numbered messages round a ring of pipes and notice a lost, doubled or damaged one.
 *
 * Commands on standard input, a line each: ids, count, quit STATUS.  End of file: status 7.  A violation anywhere: the parent's status 3. */
#define _GNU_SOURCE
#include "guest.h"

#include <signal.h>
#include <sys/wait.h>

enum { CHILDREN = 3, MESSAGE = 1500, PACE_US = 500 };

struct message {
    uint64_t number;
    unsigned char body[MESSAGE];
};

static unsigned char body_byte(uint64_t number, size_t at)
{
    return (number * 31 + at * 7) & 0xff;
}

static void fill(struct message *m, uint64_t number)
{
    m->number = number;
    for (size_t i = 0; i < MESSAGE; i++)
        m->body[i] = body_byte(number, i);
}

/* 1: the message with this number is whole; 0: the writer has closed. */
static int take(int fd, struct message *m, uint64_t number, const char *who)
{
    size_t have = 0;

    while (have < sizeof *m) {
        ssize_t n = read(fd, (char *)m + have, sizeof *m - have);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            fail("%s: read: %s", who, strerror(errno));
        if (n == 0) {
            if (have)
                fail("%s: the ring broke within a message", who);
            return 0;
        }
        have += n;
    }
    if (m->number != number)
        fail("%s: message %lu where %lu was due", who, m->number, number);
    for (size_t i = 0; i < MESSAGE; i++)
        if (m->body[i] != body_byte(number, i))
            fail("%s: message %lu is damaged", who, number);
    return 1;
}

static void hand_on(int from, int to, int child)
{
    struct message m;
    char who[16];
    pid_t parent = getppid();

    is_child = 1;
    snprintf(who, sizeof who, "child %d", child);
    for (uint64_t number = 0; take(from, &m, number, who); number++) {
        if (getppid() != parent)
            fail("%s: has another parent", who);
        if (write_all(to, (char *)&m, sizeof m))
            fail("%s: write: %s", who, strerror(errno));
    }
    _exit(0);
}

/* Close the ring behind the last message; every child must end well. */
static void finish(int first, int last, pid_t children[CHILDREN], int status)
{
    struct message m;
    int child_status;

    close(first);
    if (take(last, &m, ~0ull, "parent"))
        fail("a message too many");
    for (int i = 0; i < CHILDREN; i++)
        if (waitpid(children[i], &child_status, 0) != children[i] || child_status)
            fail("child %d ended with %#x", i, child_status);
    say("bye");
    exit(status);
}

int main(void)
{
    int pipes[CHILDREN + 1][2];
    pid_t children[CHILDREN];
    struct message m;
    char line[256];

    signal(SIGPIPE, SIG_IGN);
    for (int i = 0; i <= CHILDREN; i++)
        if (pipe(pipes[i]))
            fail("pipe: %s", strerror(errno));
    for (int i = 0; i < CHILDREN; i++) {
        children[i] = fork();
        if (children[i] < 0)
            fail("fork: %s", strerror(errno));
        if (children[i] == 0) {
            for (int j = 0; j <= CHILDREN; j++) {
                if (j != i)
                    close(pipes[j][0]);
                if (j != i + 1)
                    close(pipes[j][1]);
            }
            hand_on(pipes[i][0], pipes[i + 1][1], i);
        }
    }
    for (int i = 0; i <= CHILDREN; i++) {
        if (i != CHILDREN)
            close(pipes[i][0]);
        if (i != 0)
            close(pipes[i][1]);
    }
    say("ready pid=%d", getpid());
    for (uint64_t number = 0;; number++) {
        int got;

        fill(&m, number);
        if (write_all(pipes[0][1], (char *)&m, sizeof m))
            fail("write: %s", strerror(errno));
        memset(&m, 0, sizeof m);
        if (!take(pipes[CHILDREN][0], &m, number, "parent"))
            fail("a child has gone");
        while ((got = next_command(line, 0)) == 1) {
            if (!strcmp(line, "ids"))
                say("ids pid=%d ppid=%d children=%d,%d,%d", getpid(), getppid(), children[0], children[1], children[2]);
            else if (!strcmp(line, "count"))
                say("count %lu", number);
            else if (!strncmp(line, "quit ", 5))
                finish(pipes[0][1], pipes[CHILDREN][0], children, atoi(line + 5));
            else
                say("unknown command: %s", line);
        }
        if (got < 0)
            finish(pipes[0][1], pipes[CHILDREN][0], children, STATUS_EOF);
        usleep(PACE_US);
    }
}
