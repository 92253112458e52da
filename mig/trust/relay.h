/* What the parts of the relay share: a connection, and who moves its bytes. */
#ifndef RELAY_H
#define RELAY_H
#define _GNU_SOURCE
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

enum { BUFFER = 128 << 10, FUSE_BUFFER = (1 << 20) + (64 << 10), DIGEST = 32, TEXT = 127, HEADER = 1 + DIGEST + TEXT };
enum { FAILED, PROVED, RESUMED }; /* the first byte of what the owner is told of a handshake */
#ifndef TCP_RTO_MAX_MS
#define TCP_RTO_MAX_MS 44
#define TCP_RTO_MIN_US 45
#define TCP_DELACK_MAX_US 46
#endif

struct buffer {
	unsigned char *data;
	size_t from, to, size;
};

struct lasting;

struct conn {
	uint64_t number;
	int tcp, plain;           /* plain: a unix socket, or /dev/fuse; -1 for an heir */
	int fuse, down;           /* whether it is, and the eventfd that is written at the end */
	SSL *ssl;
	int shaken;               /* the handshake is over, well or not */
	int plain_end, tls_end;   /* nothing more comes from there */
	int plain_gone;           /* nobody takes what we write there */
	int broken;               /* nothing more can be written to TLS */
	int told_tls, told_plain; /* the end has been passed on */
	int again, dead;
	int often;                /* milliseconds between two probes before they were made rare; 0: they are not */
	struct buffer up, back;   /* plain to TLS, TLS to plain */
	struct lasting *lasting;  /* what it needs to outlive its TCP connection; NULL: it does not */
	struct conn *heir_to;     /* this is an attempt to replace the TCP connection of that one */
	struct conn *next;
};

extern SSL_CTX *context;
extern struct conn *all;

int would_block(void);
int deserted(struct conn *c);
int make_room(struct buffer *b, size_t size);
void add(int fd, struct conn *c);     /* to those that are waited for */
void hand_over(int fd, struct conn *c); /* one of them, to another connection */
void forget(int fd);
void tell_owner(struct conn *c, int what, const char *text);
void pump(struct conn *c);
long now_ms(void);

/* lasting.c */
void lasting_prepare(void);
int lasting_begin(struct conn *c);       /* before the handshake of a client's connection; 0: no memory */
int lasting_met(struct conn *c);         /* after a handshake: 1 when the peer wants to go on with an older connection */
int lasting_take(struct conn *c);        /* room for what is read from the owner next */
void lasting_taken(struct conn *c, size_t n);
int lasting_send(struct conn *c);
int lasting_receive(struct conn *c);
int lasting_settled(struct conn *c);     /* the peer has all that was sent */
int lasting_resumes(struct conn *c);      /* a peer that wants to go on with an older connection */
void lasting_pursue(struct conn *c);     /* an heir, or a peer that wants to go on */
void lasting_look(struct conn *c);
void lasting_bury(struct conn *c);
int lasting_doubts(struct conn *c, const struct tcp_info *info);
void lasting_moved(struct conn *c, const struct sockaddr *to, socklen_t size);
enum { FRAME = 4 };
#endif
