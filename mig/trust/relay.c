/* relay: TLS 1.3 between a plain socket of ours and a TCP connection; one process for all connections of its owner.
 *
 *   relay --make FILE                 write a new private key and its self-signed certificate (PEM) to FILE, which must not exist
 *   relay --serve FILE --control N    serve; N is a SOCK_SEQPACKET unix socket
 *
 * Each message on N is an order (struct order), most with two descriptors:
 *   'C', 'S'  speak TLS as client or server.  Descriptors: the TCP connection, and one end of a unix stream socketpair, whose other end the
 *             owner uses as if it were the connection.  The first HEADER bytes that arrive there say whose certificate the peer has
 *             proved to own, or what went wrong; the owner decides whether it wants to speak with it.  Ends of stream pass in both
 *             directions.  The number names the connection from now on.
 *   'F'       the connection of that number, on which nothing is on its way, carries FUSE messages from now on: of /dev/fuse (first
 *             descriptor) instead of the socket.  The second, an eventfd, is written when that ends.
 *   'X'       end the connection of that number.
 * When N is closed the process ends with its last connection, so it outlives an owner that has handed connections on to others; but
 * connections of /dev/fuse end with their owner: nobody else has the mount.
 *
 * It knows no policy and checks no names: certificates only carry keys, and whose they are is known to the owner (mig.trust.store).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/ssl.h>
#include <openssl/x509.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER = 128 << 10, FUSE_BUFFER = (1 << 20) + (64 << 10), FUSE_HEADER = 16, SOCKET_BUFFER = 1 << 20, DIGEST = 32, TEXT = 127, HEADER = 1 + DIGEST + TEXT, ROUNDS = 4, EVENTS = 64,
	LOOK_MS = 4000, PROBES = 5, RARELY_MS = 60000 };
#ifndef TCP_RTO_MAX_MS
#define TCP_RTO_MAX_MS 44
#endif

struct order {
	uint64_t number;
	char what;
};

struct buffer {
	unsigned char *data;
	size_t from, to, size;
};

struct conn {
	uint64_t number;
	int tcp, plain;           /* plain: a unix socket, or /dev/fuse */
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
	struct conn *next;
};

static SSL_CTX *context;
static struct conn *all;
static int epoll;

static void die(const char *what)
{
	unsigned long e = ERR_get_error();
	fprintf(stderr, "relay: %s: %s\n", what, e ? ERR_error_string(e, NULL) : strerror(errno));
	exit(1);
}

static int any_certificate(int ok, X509_STORE_CTX *store)
{
	(void)ok, (void)store;
	return 1; /* that the peer has its private key is proved by TLS; whether we know it is the owner's question */
}

static void make(const char *path)
{
	EVP_PKEY *key = EVP_EC_gen("P-256");
	X509 *cert = X509_new();
	if (!key || !cert)
		die("no key");
	X509_set_version(cert, 2);
	ASN1_INTEGER_set(X509_get_serialNumber(cert), 1);
	ASN1_TIME_set_string(X509_getm_notBefore(cert), "19700101000000Z");
	ASN1_TIME_set_string(X509_getm_notAfter(cert), "99991231235959Z");
	X509_NAME_add_entry_by_txt(X509_get_subject_name(cert), "CN", MBSTRING_ASC, (const unsigned char *)"mig", -1, -1, 0);
	X509_set_issuer_name(cert, X509_get_subject_name(cert));
	if (!X509_set_pubkey(cert, key) || !X509_sign(cert, key, EVP_sha256()))
		die("no certificate");
	int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
	FILE *f = fd < 0 ? NULL : fdopen(fd, "w");
	if (!f)
		die(path);
	if (!PEM_write_PrivateKey(f, key, NULL, NULL, 0, NULL, NULL) || !PEM_write_X509(f, cert) || fflush(f) || fsync(fd))
		die(path);
	fclose(f);
}

static void prepare(const char *path)
{
	context = SSL_CTX_new(TLS_method());
	if (!context || !SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION))
		die("no TLS 1.3");
	SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256");
	if (SSL_CTX_use_certificate_file(context, path, SSL_FILETYPE_PEM) != 1 || SSL_CTX_use_PrivateKey_file(context, path, SSL_FILETYPE_PEM) != 1)
		die(path);
	SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, any_certificate);
	SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
	SSL_CTX_set_num_tickets(context, 0);
	SSL_CTX_set_max_cert_list(context, 8 << 10);
	SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
	SSL_CTX_set_read_ahead(context, 1);
	SSL_CTX_set_default_read_buffer_len(context, 4 * (SSL3_RT_MAX_PLAIN_LENGTH + 256));
}

static void add(int fd, struct conn *c)
{
	/* edge-triggered: each wake-up goes on until nothing moves any more */
	struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e))
		die("epoll_ctl");
}

static void header(struct conn *c, int ok, const char *text)
{
	unsigned char *h = c->back.data;
	memset(h, 0, HEADER);
	h[0] = ok;
	X509 *cert = ok ? SSL_get0_peer_certificate(c->ssl) : NULL;
	unsigned int n = DIGEST;
	if (cert)
		X509_digest(cert, EVP_sha256(), h + 1, &n);
	snprintf((char *)h + 1 + DIGEST, TEXT, "%s", text);
	c->back.to = HEADER;
	c->shaken = 1;
}

static int shake(struct conn *c)
{
	char text[TEXT];
	int r = SSL_do_handshake(c->ssl), why = SSL_get_error(c->ssl, r);
	if (r == 1) {
		header(c, 1, SSL_get_cipher(c->ssl));
		return 1;
	}
	if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
		return 0;
	int saved = errno;
	unsigned long e = ERR_get_error();
	const char *reason = e ? ERR_reason_error_string(e) : NULL;
	snprintf(text, sizeof text, "%s", reason ? reason : saved ? strerror(saved) : "the peer closed the connection");
	header(c, 0, text);
	c->tls_end = c->broken = 1;
	return 1;
}

static int would_block(void)
{
	return errno == EAGAIN || errno == EINTR;
}

static int upwards(struct conn *c)
{
	struct buffer *b = &c->up;
	int moved = 0;
	if (b->from == b->to && !c->plain_end) {
		ssize_t n = read(c->plain, b->data, b->size);
		if (n > 0) {
			b->from = 0, b->to = n;
			moved = 1;
		} else if (n < 0 && c->fuse && errno == ENOENT) {
			moved = 1; /* the request was interrupted before it was read */
		} else if (n == 0 || !would_block()) {
			c->plain_end = moved = 1;
		}
	}
	while (b->from < b->to && !c->broken) {
		int n = SSL_write(c->ssl, b->data + b->from, b->to - b->from);
		if (n > 0) {
			b->from += n;
			moved = 1;
			continue;
		}
		int why = SSL_get_error(c->ssl, n);
		if (why != SSL_ERROR_WANT_WRITE && why != SSL_ERROR_WANT_READ)
			c->broken = moved = 1;
		break;
	}
	if (c->broken)
		b->from = b->to;
	if (c->plain_end && b->from == b->to && !c->told_tls) {
		int r = c->broken ? 0 : SSL_shutdown(c->ssl);
		if (r >= 0 || SSL_get_error(c->ssl, r) != SSL_ERROR_WANT_WRITE) {
			shutdown(c->tcp, SHUT_WR);
			c->told_tls = moved = 1;
		}
	}
	return moved;
}

/* Whole answers to /dev/fuse, which takes a message a write. */
static int answer_fuse(struct conn *c)
{
	struct buffer *b = &c->back;
	int moved = 0;
	while (b->to - b->from >= FUSE_HEADER) {
		uint32_t length;
		memcpy(&length, b->data + b->from, sizeof length);
		if (length < FUSE_HEADER || length > b->size) {
			c->tls_end = c->broken = c->plain_gone = moved = 1; /* not our protocol */
			break;
		}
		if (b->to - b->from < length)
			break;
		/* ENOENT, EINVAL: the request was interrupted, nobody waits for this */
		if (write(c->plain, b->data + b->from, length) < 0 && errno != ENOENT && errno != EINVAL && !would_block()) {
			c->plain_end = c->plain_gone = moved = 1;
			break;
		}
		b->from += length;
		moved = 1;
	}
	if (b->from) {
		memmove(b->data, b->data + b->from, b->to - b->from);
		b->to -= b->from, b->from = 0;
	}
	return moved;
}

static int downwards(struct conn *c)
{
	struct buffer *b = &c->back;
	int moved = 0;
	if (b->from == b->to)
		b->from = b->to = 0;
	while (b->to < b->size && b->from == 0 && !c->tls_end) {
		int n = SSL_read(c->ssl, b->data + b->to, b->size - b->to);
		if (n > 0) {
			b->to += n;
			moved = 1;
			continue;
		}
		int why = SSL_get_error(c->ssl, n);
		if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE)
			break;
		c->tls_end = moved = 1;
		if (why != SSL_ERROR_ZERO_RETURN)
			c->broken = 1;
		break;
	}
	if (c->fuse && !c->plain_gone)
		moved |= answer_fuse(c);
	while (b->from < b->to && !c->plain_gone && !c->fuse) {
		ssize_t n = send(c->plain, b->data + b->from, b->to - b->from, MSG_NOSIGNAL);
		if (n > 0) {
			b->from += n;
			moved = 1;
			continue;
		}
		if (!would_block())
			c->plain_gone = moved = 1;
		break;
	}
	if (c->plain_gone)
		b->from = b->to;
	if (c->tls_end && (b->from == b->to || c->fuse) && !c->told_plain) {
		if (c->fuse)
			c->dead = 1; /* what waits for an answer fails when nobody holds the device any more */
		else
			shutdown(c->plain, SHUT_WR);
		c->told_plain = moved = 1;
	}
	return moved;
}

/* Whether the owner has closed its end altogether, not just said that it writes no more. */
static int deserted(struct conn *c)
{
	if (c->fuse)
		return 0;
	struct pollfd p = {.fd = c->plain};
	return poll(&p, 1, 0) == 1 && p.revents & (POLLHUP | POLLERR);
}

static void pump(struct conn *c)
{
	int moved = 1;
	/* a few rounds, then the others: a question on one connection must not wait behind a flood on another */
	for (int i = 0; moved && i < ROUNDS; i++) {
		ERR_clear_error();
		errno = 0;
		if (!c->shaken) {
			if (deserted(c)) { /* its owner has lost patience */
				c->dead = 1;
				return;
			}
			moved = shake(c);
			continue;
		}
		moved = upwards(c) | downwards(c);
		if (c->fuse && c->plain_end)
			c->dead = 1; /* unmounted */
		/* over in both directions, or nobody is left on our side, or nothing can come or go any more */
		if (c->told_tls && (c->told_plain || c->plain_gone || deserted(c)))
			c->dead = 1;
		if (c->broken && c->tls_end && c->told_plain)
			c->dead = 1;
		if (c->dead)
			return;
	}
	c->again = moved;
}

static void bury(void)
{
	for (struct conn **p = &all; *p;) {
		struct conn *c = *p;
		if (!c->dead) {
			p = &c->next;
			continue;
		}
		*p = c->next;
		/* closing is not enough where another process holds the same description */
		epoll_ctl(epoll, EPOLL_CTL_DEL, c->tcp, NULL);
		epoll_ctl(epoll, EPOLL_CTL_DEL, c->plain, NULL);
		SSL_free(c->ssl);
		close(c->tcp);
		close(c->plain);
		if (c->down >= 0) {
			uint64_t one = 1;
			if (write(c->down, &one, sizeof one) < 0)
				perror("relay: eventfd");
			close(c->down);
		}
		free(c->up.data);
		free(c->back.data);
		free(c);
	}
}

static struct conn *numbered(uint64_t number)
{
	struct conn *c = all;
	while (c && (c->number != number || c->dead))
		c = c->next;
	return c;
}

static int make_room(struct buffer *b, size_t size)
{
	unsigned char *data = realloc(b->data, size);
	if (data)
		b->data = data, b->size = size;
	return data != NULL;
}

static void carry_fuse(struct conn *c, int fuse, int down)
{
	if (!c || !c->shaken || c->fuse || !make_room(&c->up, FUSE_BUFFER) || !make_room(&c->back, FUSE_BUFFER)) {
		uint64_t one = 1;
		if (write(down, &one, sizeof one) < 0)
			perror("relay: eventfd");
		close(fuse);
		close(down);
		return;
	}
	epoll_ctl(epoll, EPOLL_CTL_DEL, c->plain, NULL);
	close(c->plain);
	c->plain = fuse, c->down = down, c->fuse = 1;
	fcntl(fuse, F_SETFL, O_NONBLOCK);
	add(fuse, c);
	pump(c);
}

/* One more order; 0 when the owner has closed the control socket. */
static int obey(int control)
{
	struct order order;
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(2 * sizeof(int))];
	} u;
	struct iovec iov = {&order, sizeof order};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.space, .msg_controllen = sizeof u.space};
	ssize_t n = recvmsg(control, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (n < 0)
		return would_block();
	if (n == 0)
		return 0;
	if (n != sizeof order)
		return 1;
	if (order.what == 'X') {
		struct conn *c = numbered(order.number);
		if (c)
			c->dead = 1;
		return 1;
	}
	struct cmsghdr *h = CMSG_FIRSTHDR(&m);
	if (!h || h->cmsg_type != SCM_RIGHTS || h->cmsg_len != CMSG_LEN(2 * sizeof(int)))
		return 1;
	int fds[2];
	memcpy(fds, CMSG_DATA(h), sizeof fds);
	if (order.what == 'F') {
		carry_fuse(numbered(order.number), fds[0], fds[1]);
		return 1;
	}
	struct conn *c = calloc(1, sizeof *c);
	SSL *ssl = c ? SSL_new(context) : NULL;
	if (!ssl || !SSL_set_fd(ssl, fds[0]) || !make_room(&c->up, BUFFER) || !make_room(&c->back, BUFFER)) {
		SSL_free(ssl);
		if (c) {
			free(c->up.data);
			free(c->back.data);
		}
		free(c);
		close(fds[0]);
		close(fds[1]);
		return 1;
	}
	c->number = order.number, c->tcp = fds[0], c->plain = fds[1], c->down = -1, c->ssl = ssl;
	fcntl(c->tcp, F_SETFL, O_NONBLOCK);
	fcntl(c->plain, F_SETFL, O_NONBLOCK);
	setsockopt(c->plain, SOL_SOCKET, SO_SNDBUF, &(int){SOCKET_BUFFER}, sizeof(int));
	(order.what == 'S' ? SSL_set_accept_state : SSL_set_connect_state)(ssl);
	c->next = all;
	all = c;
	add(c->tcp, c);
	add(c->plain, c);
	pump(c);
	return 1;
}

/* What cannot be sent at all (the address or the route is gone, or the peer's window is closed) waits under the probe timer, and the kernel
 * gives the connection up after net.ipv4.tcp_retries2 (15) probes, whatever TCP_USER_TIMEOUT says: with tries as frequent as ours after half
 * a minute.  So from the fifth on they are rare, and what can be sent again is tried here. */
static void look_after(struct conn *c)
{
	struct tcp_info info = {0};
	socklen_t n = sizeof info;
	int late;

	if (getsockopt(c->tcp, IPPROTO_TCP, TCP_INFO, &info, &n))
		return;
	if (info.tcpi_probes)
		setsockopt(c->tcp, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int)); /* sends what waits */
	late = info.tcpi_probes >= PROBES;
	n = sizeof c->often;
	if (late && !c->often && !getsockopt(c->tcp, IPPROTO_TCP, TCP_RTO_MAX_MS, &c->often, &n)) {
		setsockopt(c->tcp, IPPROTO_TCP, TCP_RTO_MAX_MS, &(int){RARELY_MS}, sizeof(int));
	} else if (!late && c->often) {
		setsockopt(c->tcp, IPPROTO_TCP, TCP_RTO_MAX_MS, &c->often, sizeof c->often);
		c->often = 0;
	}
}

static long now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000L + t.tv_nsec / 1000000;
}

static void serve(int control)
{
	long looked = now_ms();
	struct epoll_event events[EVENTS], e = {.events = EPOLLIN, .data.ptr = NULL};
	int open = 1;
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, control, &e))
		die("epoll");
	while (open || all) {
		int again = 0;
		for (struct conn *c = all; c; c = c->next)
			again |= c->again;
		int n = epoll_wait(epoll, events, EVENTS, again ? 0 : all ? LOOK_MS : -1);
		for (int i = 0; i < n; i++) {
			struct conn *c = events[i].data.ptr;
			if (c && !c->dead)
				pump(c);
			if (!c && !obey(control)) {
				close(control);
				open = 0;
				for (c = all; c; c = c->next)
					c->dead |= c->fuse;
			}
		}
		for (struct conn *c = all; c; c = c->next)
			if (c->again && !c->dead)
				pump(c);
		if (now_ms() - looked >= LOOK_MS) {
			looked = now_ms();
			for (struct conn *c = all; c; c = c->next)
				if (!c->dead)
					look_after(c);
		}
		bury();
	}
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "--make")) {
		make(argv[2]);
		return 0;
	}
	if (argc != 5 || strcmp(argv[1], "--serve") || strcmp(argv[3], "--control")) {
		fprintf(stderr, "usage: relay --make FILE | --serve FILE --control N\n");
		return 2;
	}
	signal(SIGPIPE, SIG_IGN);
	signal(SIGINT, SIG_IGN);
	signal(SIGHUP, SIG_IGN);
	prctl(PR_SET_NAME, "mig-relay");
	prepare(argv[2]);
	serve(atoi(argv[4]));
	return 0;
}
