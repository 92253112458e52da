/* relay: TLS 1.3 between a plain socket of ours and a TCP connection; one process for all connections of its owner.
 *
 *   relay --make FILE                 write a new private key and its self-signed certificate (PEM) to FILE, which must not exist
 *   relay --serve FILE --control N    serve; N is a SOCK_SEQPACKET unix socket
 *
 * Each message on N is an order (struct order), most with two descriptors:
 *   'C', 'S'  speak TLS as client or server; 'L' as a client whose connection outlives its TCP connection (lasting.c).  Descriptors: the TCP connection, and one end of a unix stream socketpair, whose other end the
 *             owner uses as if it were the connection.  The first HEADER bytes that arrive there say whose certificate the peer has
 *             proved to own, or what went wrong; the owner decides whether it wants to speak with it.  Ends of stream pass in both
 *             directions.  The number names the connection from now on.
 *   'F'       the connection of that number, on which nothing is on its way, carries FUSE messages from now on: of /dev/fuse (first
 *             descriptor) instead of the socket.  The second, an eventfd, is written when that ends.
 *   'X'       end the connection of that number.
 *   'A'       the server of that connection has another address, which follows the order.
 * When N is closed the process ends with its last connection, so it outlives an owner that has handed connections on to others; but
 * connections of /dev/fuse end with their owner: nobody else has the mount.
 *
 * It knows no policy and checks no names: certificates only carry keys, and whose they are is known to the owner (mig.trust.store).
 */
#include "relay.h"
#include <errno.h>
#include <fcntl.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { FUSE_HEADER = 16, SOCKET_BUFFER = 1 << 20, ROUNDS = 4, EVENTS = 64, LOOK_MS = 4000, DOUBTFUL_LOOK_MS = 2000, PROBES = 5, RARELY_MS = 60000 };

struct order {
	uint64_t number;
	char what, pad[7];
};

SSL_CTX *context;
struct conn *all;
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
	lasting_prepare();
}

/* edge-triggered: each wake-up goes on until nothing moves any more */
static void watch(int how, int fd, struct conn *c)
{
	struct epoll_event e = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = c};
	if (epoll_ctl(epoll, how, fd, &e))
		die("epoll_ctl");
}

void add(int fd, struct conn *c)
{
	watch(EPOLL_CTL_ADD, fd, c);
}

void hand_over(int fd, struct conn *c)
{
	watch(EPOLL_CTL_MOD, fd, c);
}

/* Closing is not enough where another process holds the same description. */
void forget(int fd)
{
	epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
}

/* Of the handshake: the first that is written to the owner, so there is room. */
void tell_owner(struct conn *c, int what, const char *text)
{
	unsigned char h[HEADER] = {what};
	X509 *cert = what == PROVED ? SSL_get0_peer_certificate(c->ssl) : NULL;
	unsigned int n = DIGEST;
	if (cert)
		X509_digest(cert, EVP_sha256(), h + 1, &n);
	snprintf((char *)h + 1 + DIGEST, TEXT, "%s", text);
	if (send(c->plain, h, sizeof h, MSG_NOSIGNAL) != sizeof h)
		c->plain_gone = 1;
}

static int shake(struct conn *c)
{
	char text[TEXT];
	int r = SSL_do_handshake(c->ssl), why = SSL_get_error(c->ssl, r);
	if (r != 1 && (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE))
		return 0;
	c->shaken = 1;
	if (r == 1) {
		if (!lasting_met(c))
			tell_owner(c, PROVED, SSL_get_cipher(c->ssl));
		return 1;
	}
	int saved = errno;
	unsigned long e = ERR_get_error();
	const char *reason = e ? ERR_reason_error_string(e) : NULL;
	snprintf(text, sizeof text, "%s", reason ? reason : saved ? strerror(saved) : "the peer closed the connection");
	tell_owner(c, FAILED, text);
	free(c->lasting);
	c->lasting = NULL;
	c->tls_end = c->broken = 1;
	return 1;
}

int would_block(void)
{
	return errno == EAGAIN || errno == EINTR;
}

/* What the owner says, into up. */
static int listen_up(struct conn *c)
{
	struct buffer *b = &c->up;
	unsigned char *to = b->data;
	size_t room = b->size;
	if (c->plain_end || (c->lasting ? !lasting_take(c) : b->from != b->to))
		return 0;
	if (c->lasting)
		to = b->data + b->to + FRAME, room = c->fuse ? FUSE_BUFFER : BUFFER;
	ssize_t n = read(c->plain, to, room);
	if (n > 0 && c->lasting)
		lasting_taken(c, n);
	else if (n > 0)
		b->from = 0, b->to = n;
	else if (n < 0 && c->fuse && errno == ENOENT)
		return 1; /* the request was interrupted before it was read */
	else if (n == 0 || !would_block())
		c->plain_end = 1;
	else
		return 0;
	return 1;
}

static int upwards(struct conn *c)
{
	struct buffer *b = &c->up;
	int moved = listen_up(c);
	if (c->lasting)
		moved |= lasting_send(c);
	while (!c->lasting && b->from < b->to && !c->broken) {
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
	if (c->plain_end && b->from == b->to && !c->told_tls && (!c->lasting || c->broken)) {
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
	if (c->lasting)
		moved = lasting_receive(c);
	while (!c->lasting && b->to < b->size && b->from == 0 && !c->tls_end) {
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
int deserted(struct conn *c)
{
	if (c->fuse)
		return 0;
	struct pollfd p = {.fd = c->plain};
	return poll(&p, 1, 0) == 1 && p.revents & (POLLHUP | POLLERR);
}

void pump(struct conn *c)
{
	int moved = 1;
	if (c->plain < 0 || lasting_resumes(c)) {
		ERR_clear_error();
		lasting_pursue(c);
		return;
	}
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
			if (lasting_resumes(c)) {
				lasting_pursue(c);
				return;
			}
			continue;
		}
		moved = upwards(c) | downwards(c);
		if (c->fuse && c->plain_end)
			c->dead = 1; /* unmounted */
		/* over in both directions, or nobody is left on our side, or nothing can come or go any more */
		if (c->told_tls && (c->told_plain || c->plain_gone || deserted(c)) && (!c->lasting || c->broken || lasting_settled(c)))
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
	for (struct conn *c = all; c; c = c->next)
		if (c->dead && c->lasting)
			lasting_bury(c);
	for (struct conn **p = &all; *p;) {
		struct conn *c = *p;
		if (!c->dead) {
			p = &c->next;
			continue;
		}
		*p = c->next;
		SSL_free(c->ssl);
		for (int i = 0; i < 2; i++) {
			int fd = i ? c->tcp : c->plain;
			if (fd >= 0) {
				forget(fd);
				close(fd);
			}
		}
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

int make_room(struct buffer *b, size_t size)
{
	unsigned char *data = realloc(b->data, size);
	if (data)
		b->data = data, b->size = size;
	return data != NULL;
}

static void carry_fuse(struct conn *c, int fuse, int down)
{
	if (!c || !c->shaken || c->fuse || (c->up.size < FUSE_BUFFER && !make_room(&c->up, FUSE_BUFFER)) || !make_room(&c->back, FUSE_BUFFER)) {
		uint64_t one = 1;
		if (write(down, &one, sizeof one) < 0)
			perror("relay: eventfd");
		close(fuse);
		close(down);
		return;
	}
	forget(c->plain);
	close(c->plain);
	c->plain = fuse, c->down = down, c->fuse = 1;
	fcntl(fuse, F_SETFL, O_NONBLOCK);
	add(fuse, c);
	pump(c);
}

/* One more order; 0 when the owner has closed the control socket. */
static int obey(int control)
{
	struct {
		struct order order;
		struct sockaddr_storage address;
	} got;
	union {
		struct cmsghdr align;
		char space[CMSG_SPACE(2 * sizeof(int))];
	} u;
	struct iovec iov = {&got, sizeof got};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = u.space, .msg_controllen = sizeof u.space};
	ssize_t n = recvmsg(control, &m, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
	if (n < 0)
		return would_block();
	if (n == 0)
		return 0;
	if (n < (ssize_t)sizeof got.order)
		return 1;
	struct order order = got.order;
	if (order.what == 'A') {
		struct conn *c = numbered(order.number);
		if (c)
			lasting_moved(c, (struct sockaddr *)&got.address, n - sizeof order);
		return 1;
	}
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
	if (order.what == 'L' && !lasting_begin(c)) {
		free(c->lasting);
		c->lasting = NULL;
	}
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
static int look_after(struct conn *c)
{
	struct tcp_info info = {0};
	socklen_t n = sizeof info;
	int late;

	if (getsockopt(c->tcp, IPPROTO_TCP, TCP_INFO, &info, &n))
		return 0;
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
	return c->lasting && lasting_doubts(c, &info);
}

long now_ms(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000L + t.tv_nsec / 1000000;
}

static void serve(int control)
{
	long looked = now_ms(), soon = LOOK_MS;
	struct epoll_event events[EVENTS], e = {.events = EPOLLIN, .data.ptr = NULL};
	int open = 1;
	epoll = epoll_create1(EPOLL_CLOEXEC);
	if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, control, &e))
		die("epoll");
	while (open || all) {
		int again = 0;
		for (struct conn *c = all; c; c = c->next)
			again |= c->again;
		int n = epoll_wait(epoll, events, EVENTS, again ? 0 : all ? soon : -1);
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
		if (now_ms() - looked >= soon) {
			looked = now_ms(), soon = LOOK_MS;
			for (struct conn *c = all; c; c = c->next)
				if (!c->dead && look_after(c))
					soon = DOUBTFUL_LOOK_MS;
			for (struct conn *c = all; c; c = c->next)
				if (!c->dead && c->lasting)
					lasting_look(c);
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
