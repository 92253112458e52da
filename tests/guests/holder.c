/* holder KIND...: holds what cannot move, says "ready", and waits.
 *
 * Kinds: io_uring, device (/dev/fuse), tcp-listen, tcp-pair (connected to itself), udp, packet.  Status 4: this machine does not give it. */
#define _GNU_SOURCE
#include "guest.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/socket.h>
#include <sys/syscall.h>

enum { STATUS_UNAVAILABLE = 4 };

static int unavailable(const char *what)
{
    say("unavailable %s: %s", what, strerror(errno));
    exit(STATUS_UNAVAILABLE);
}

static int bound(int type, struct sockaddr_in *address)
{
    socklen_t n = sizeof *address;
    int s = socket(AF_INET, type, 0);

    memset(address, 0, sizeof *address);
    address->sin_family = AF_INET;
    address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (s < 0 || bind(s, (struct sockaddr *)address, sizeof *address) || getsockname(s, (struct sockaddr *)address, &n))
        unavailable("inet socket");
    return s;
}

static void hold(const char *kind)
{
    struct io_uring_params ring = { 0 };
    struct sockaddr_in address;

    if (!strcmp(kind, "io_uring")) {
        if (syscall(SYS_io_uring_setup, 4, &ring) < 0)
            unavailable(kind);
    } else if (!strcmp(kind, "device")) {
        if (open("/dev/fuse", O_RDWR) < 0)
            unavailable(kind);
    } else if (!strcmp(kind, "udp")) {
        bound(SOCK_DGRAM, &address);
    } else if (!strcmp(kind, "packet")) {
        if (socket(AF_PACKET, SOCK_RAW, 0) < 0)
            unavailable(kind);
    } else if (!strcmp(kind, "tcp-listen") || !strcmp(kind, "tcp-pair")) {
        int listener = bound(SOCK_STREAM, &address), client;

        if (listen(listener, 4))
            unavailable(kind);
        if (!strcmp(kind, "tcp-pair")) {
            client = socket(AF_INET, SOCK_STREAM, 0);
            if (client < 0 || connect(client, (struct sockaddr *)&address, sizeof address) || accept(listener, NULL, NULL) < 0)
                unavailable(kind);
            close(listener);
        }
    } else {
        fprintf(stderr, "unknown kind %s\n", kind);
        exit(2);
    }
}

int main(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        hold(argv[i]);
    say("ready pid=%d", getpid());
    for (;;)
        pause();
}
