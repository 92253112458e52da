/* lasting: connections of the relay that outlive their TCP connection.
 *
 * A client asks for one by ALPN ("mig-lasting").  What the owners say then travels in frames, and each side keeps what it has sent until the
 * other has it.  When the TCP connection is silent (nothing is acknowledged for some seconds: a cut, or an address that is not ours any more),
 * the client makes another beside it (ALPN "mig-again"), says which connection it is to go on with, and both send again what did not arrive.
 * A TCP connection that ends or is reset is no such case: the other relay, its owner or its machine are gone.
 *
 * A frame is a word (u32, little endian: 24 bits of length, 8 bits of kind) and its payload:
 *   D  data; E  the end of the stream.  These two, words included, are what is counted and sent again.
 *   A  u64: bytes that have arrived.  H  the connection's id, first of all, from the client.
 *   R  id, u64 bytes that have arrived, u64 number of the attempt; answered by O  u64 bytes that have arrived, or N: there is none with that id.
 *      It must be of the same certificate.  What comes late, from an earlier attempt, is refused.
 * Frames other than D and E stand between these, not within them; but an O comes first.
 */
#include "relay.h"
#include <errno.h>
#include <openssl/err.h>
#include <openssl/rand.h>
#include <openssl/x509.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
	ID = 16,
	WORD = FRAME + ID + 16,    /* the longest frame that is no data */
	ACK_EVERY = 32 << 10,      /* bytes */
	MOST = 64 << 20,           /* bytes kept for a peer that acknowledges nothing */
	DOUBT_MS = 2000,           /* without an acknowledgement that is due; the second look in a row that finds it so decides */
	CONNECT_MS = 3500, ANSWER_MS = 10000, GIVE_UP_MS = 300000, LINGER_MS = 3000,
};
enum { DATA = 'D', END = 'E', ACK = 'A', HELLO = 'H', RESUME = 'R', OK = 'O', NO = 'N' };
enum { NOTHING, A_WORD, SOME_DATA };

static const unsigned char lasting_name[] = "\x0bmig-lasting", again_name[] = "\x09mig-again";

struct lasting {
	int client;
	unsigned char id[ID], digest[DIGEST];
	struct sockaddr_storage home; /* where the server is */
	socklen_t home_size;
	/* sending: up.data[up.from, at) has been sent and is kept, [at, up.to) is to be sent, all of it whole frames */
	size_t at;
	uint32_t left_out;            /* bytes of the frame in which at is */
	uint64_t base;                /* the place of up.from in the stream */
	int end_queued;
	unsigned char word[WORD];     /* a frame that is no data, to be sent */
	size_t word_size;
	int stuck;                    /* what TLS wants to be given again */
	/* receiving */
	uint32_t left_in;             /* bytes of data that are still to come in this frame */
	uint64_t got, told;           /* bytes that have arrived; of which the peer knows */
	int owe;                      /* tell it now */
	unsigned char part[WORD];     /* the beginning of a frame */
	size_t have, want;
	int over;                     /* TLS has ended */
	/* going on */
	struct conn *heir;
	uint64_t attempts;            /* client: made; server: the last one heard of; an heir: its own */
	int resuming;                 /* a connection that wants to go on with another one */
	int asked;                    /* an heir that has said so */
	long begun, torn, leaving;    /* when (0: not): an heir began; the server may use another TCP connection; only the answer is waited for */
	int doubts, wanted;           /* looks in a row that found it silent; another TCP connection is to be made */
};

static uint64_t le64(const unsigned char *p)
{
	uint64_t v;
	memcpy(&v, p, sizeof v);
	return v;
}

static uint32_t length(const unsigned char *frame)
{
	return frame[0] | frame[1] << 8 | frame[2] << 16;
}

static void frame(unsigned char *p, int kind, uint32_t size)
{
	p[0] = size, p[1] = size >> 8, p[2] = size >> 16, p[3] = kind;
}

static void say(struct lasting *l, int kind, const void *a, size_t a_size, uint64_t n, int numbers, uint64_t m)
{
	frame(l->word, kind, a_size + 8 * numbers);
	if (a_size)
		memcpy(l->word + FRAME, a, a_size);
	if (numbers > 0)
		memcpy(l->word + FRAME + a_size, &n, 8);
	if (numbers > 1)
		memcpy(l->word + FRAME + a_size + 8, &m, 8);
	l->word_size = FRAME + a_size + 8 * numbers;
}

static int choose(SSL *ssl, const unsigned char **out, unsigned char *size, const unsigned char *in, unsigned int in_size, void *arg)
{
	(void)ssl, (void)arg;
	for (const unsigned char *p = in; p < in + in_size; p += 1 + *p)
		if ((*p == lasting_name[0] && !memcmp(p, lasting_name, 1 + *p)) || (*p == again_name[0] && !memcmp(p, again_name, 1 + *p))) {
			*out = p + 1, *size = *p;
			return SSL_TLSEXT_ERR_OK;
		}
	return SSL_TLSEXT_ERR_NOACK;
}

void lasting_prepare(void)
{
	SSL_CTX_set_alpn_select_cb(context, choose, NULL);
}

static int speaks(SSL *ssl, const unsigned char *name)
{
	const unsigned char *chosen;
	unsigned int size;
	SSL_get0_alpn_selected(ssl, &chosen, &size);
	return size == name[0] && !memcmp(chosen, name + 1, size);
}

static void digest(SSL *ssl, unsigned char *to)
{
	unsigned int n = DIGEST;
	X509 *cert = SSL_get0_peer_certificate(ssl);
	if (cert)
		X509_digest(cert, EVP_sha256(), to, &n);
}

int lasting_begin(struct conn *c)
{
	struct lasting *l = c->lasting = calloc(1, sizeof *l);
	if (!l)
		return 0;
	l->client = 1;
	l->home_size = sizeof l->home;
	return RAND_bytes(l->id, ID) == 1 && !getpeername(c->tcp, (struct sockaddr *)&l->home, &l->home_size) &&
	       !SSL_set_alpn_protos(c->ssl, lasting_name, sizeof lasting_name - 1);
}

int lasting_met(struct conn *c)
{
	int again = speaks(c->ssl, again_name);
	if (!again && !speaks(c->ssl, lasting_name)) { /* neither was asked for, or an older relay is there */
		free(c->lasting);
		c->lasting = NULL;
		return 0;
	}
	if (!c->lasting)
		c->lasting = calloc(1, sizeof *c->lasting);
	struct lasting *l = c->lasting;
	if (!l) {
		c->dead = 1;
		return 1;
	}
	digest(c->ssl, l->digest);
	l->resuming = again;
	l->want = again ? WORD : FRAME;
	if (l->client)
		say(l, HELLO, l->id, ID, 0, 0, 0);
	return again;
}

/* -- sending ------------------------------------------------------------------------------------------------------------------ */

/* Room for need more bytes at the end of up; 0: not before the peer has acknowledged something. */
static int reserve(struct conn *c, size_t need)
{
	struct buffer *b = &c->up;
	if (b->size - b->to >= need)
		return 1;
	if (b->from && (b->to - b->from <= b->from || b->size >= MOST)) {
		memmove(b->data, b->data + b->from, b->to - b->from);
		c->lasting->at -= b->from, b->to -= b->from, b->from = 0;
	}
	size_t size = b->size;
	while (size - b->to < need)
		size *= 2;
	return size == b->size || (size <= MOST && make_room(b, size));
}

int lasting_take(struct conn *c)
{
	struct lasting *l = c->lasting;
	return l->at == c->up.to && reserve(c, FRAME + (c->fuse ? FUSE_BUFFER : BUFFER));
}

void lasting_taken(struct conn *c, size_t n)
{
	frame(c->up.data + c->up.to, DATA, n);
	c->up.to += FRAME + n;
}

static size_t frame_at(struct conn *c, size_t at)
{
	return FRAME + length(c->up.data + at);
}

/* Forget what the peer has; 0: it cannot have that. */
static int release(struct conn *c, uint64_t arrived)
{
	struct lasting *l = c->lasting;
	struct buffer *b = &c->up;
	if (arrived < l->base || arrived - l->base > l->at - b->from)
		return 0;
	while (b->from < l->at && l->base + frame_at(c, b->from) <= arrived) {
		size_t n = frame_at(c, b->from);
		l->base += n, b->from += n;
	}
	if (b->from == b->to) {
		b->from = b->to = l->at = 0;
		size_t usual = FRAME + 2 * (c->fuse ? FUSE_BUFFER : BUFFER);
		if (b->size > 2 * usual)
			make_room(b, usual);
	}
	return 1;
}

int lasting_settled(struct conn *c)
{
	return c->up.from == c->up.to && !c->lasting->owe;
}

/* Whether the write came to nothing; notes what to do with it. */
static int held_up(struct conn *c, int n, int what)
{
	if (n > 0) {
		c->lasting->stuck = NOTHING;
		return 0;
	}
	int why = SSL_get_error(c->ssl, n);
	if (why == SSL_ERROR_WANT_WRITE || why == SSL_ERROR_WANT_READ)
		c->lasting->stuck = what;
	else
		c->broken = 1;
	return 1;
}

int lasting_send(struct conn *c)
{
	struct lasting *l = c->lasting;
	struct buffer *b = &c->up;
	int moved = 0;
	if (c->broken)
		b->from = b->to = l->at = 0;
	if (l->torn || c->broken)
		return 0;
	if (c->plain_end && !l->end_queued && l->at == b->to && reserve(c, FRAME)) {
		frame(b->data + b->to, END, 0);
		b->to += FRAME;
		l->end_queued = 1;
	}
	while (!c->broken) {
		int between = !l->left_out || (l->word_size && l->word[3] == OK);
		if (between && l->stuck != SOME_DATA && !l->word_size && (l->owe || l->got - l->told >= ACK_EVERY)) {
			say(l, ACK, NULL, 0, l->got, 1, 0);
			l->told = l->got, l->owe = 0;
		}
		if (between && l->stuck != SOME_DATA && l->word_size) {
			if (held_up(c, SSL_write(c->ssl, l->word, l->word_size), A_WORD))
				break;
			l->word_size = 0;
		} else if (l->at < b->to) {
			if (!l->left_out)
				l->left_out = frame_at(c, l->at);
			int n = SSL_write(c->ssl, b->data + l->at, l->left_out);
			if (held_up(c, n, SOME_DATA))
				break;
			l->at += n, l->left_out -= n;
		} else {
			break;
		}
		moved = 1;
	}
	if (l->end_queued && l->at == b->to && !c->told_tls)
		c->told_tls = moved = 1;
	return moved;
}

/* -- receiving ---------------------------------------------------------------------------------------------------------------- */

/* A frame's word, or a whole frame that is no data, is there; 0: this is not our protocol. */
static int take_part(struct conn *c)
{
	struct lasting *l = c->lasting;
	int kind = l->part[3];
	uint32_t size = length(l->part);
	if (l->have == FRAME && size) {
		if (kind == DATA) {
			l->left_in = size;
		} else if (kind == ACK && size == 8) {
			l->want = FRAME + 8;
			return 1;
		} else if (kind == HELLO && size == ID) {
			l->want = FRAME + ID;
			return 1;
		} else {
			return 0;
		}
	}
	l->have = 0, l->want = FRAME;
	switch (kind) {
	case END:
		c->tls_end = l->owe = 1;
		/* fall through */
	case DATA:
		l->got += FRAME;
		return 1;
	case ACK:
		return release(c, le64(l->part + FRAME));
	case HELLO:
		memcpy(l->id, l->part + FRAME, ID);
		return !l->client;
	}
	return 0;
}

int lasting_receive(struct conn *c)
{
	struct lasting *l = c->lasting;
	struct buffer *b = &c->back;
	int moved = 0;
	while (!l->over && !l->torn) {
		unsigned char *to = l->part + l->have;
		size_t room = l->want - l->have;
		if (l->left_in) {
			if (b->from || b->to == b->size)
				break;
			to = b->data + b->to, room = b->size - b->to;
			if (room > l->left_in)
				room = l->left_in;
		}
		int n = SSL_read(c->ssl, to, room);
		if (n <= 0) {
			int why = SSL_get_error(c->ssl, n);
			if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE)
				l->over = c->tls_end = c->broken = moved = 1;
			break;
		}
		moved = 1;
		if (l->left_in) {
			b->to += n, l->left_in -= n, l->got += n;
			continue;
		}
		l->have += n;
		if (l->have == l->want && !take_part(c))
			l->over = c->tls_end = c->broken = 1;
	}
	return moved;
}

/* -- going on ----------------------------------------------------------------------------------------------------------------- */

/* c goes on over the TCP connection of fresh, from what the peer says it has; 0: that does not fit. */
static int go_on(struct conn *c, struct conn *fresh, uint64_t arrived)
{
	struct lasting *l = c->lasting;
	if (!release(c, arrived))
		return 0;
	l->at = c->up.from + (arrived - l->base);
	l->left_out = l->at > c->up.from ? c->up.from + frame_at(c, c->up.from) - l->at : 0;
	l->told = l->got, l->have = 0, l->want = FRAME, l->word_size = 0, l->stuck = NOTHING, l->doubts = l->wanted = 0, l->torn = l->leaving = 0, l->heir = NULL;
	c->told_tls = 0, c->often = 0;
	for (struct conn *o = all; o; o = o->next)
		if (o->heir_to == c)
			o->heir_to = NULL, o->dead = 1;
	forget(c->tcp);
	SSL_free(c->ssl);
	close(c->tcp);
	c->ssl = fresh->ssl, c->tcp = fresh->tcp;
	hand_over(c->tcp, c);
	fresh->ssl = NULL, fresh->tcp = -1, fresh->dead = 1;
	return 1;
}

/* Server: the frame R is there. */
static void answer(struct conn *c)
{
	struct lasting *l = c->lasting;
	const unsigned char *id = l->part + FRAME;
	struct conn *old = all;
	while (old && !(old->lasting && !old->lasting->client && !old->lasting->resuming && !old->dead && !old->broken && !memcmp(old->lasting->id, id, ID) &&
			!memcmp(old->lasting->digest, l->digest, DIGEST)))
		old = old->next;
	uint64_t arrived = le64(id + ID), attempt = le64(id + ID + 8);
	int ours = l->part[3] == RESUME && length(l->part) == WORD - FRAME && old;
	if (ours && attempt <= old->lasting->attempts) { /* a later one was quicker */
		tell_owner(c, RESUMED, "");
		c->dead = 1;
		return;
	}
	if (ours && go_on(old, c, arrived)) {
		old->lasting->attempts = attempt;
		say(old->lasting, OK, NULL, 0, old->lasting->got, 1, 0);
		tell_owner(c, RESUMED, "");
		pump(old);
		return;
	}
	say(l, NO, NULL, 0, 0, 0, 0);
	SSL_write(c->ssl, l->word, l->word_size);
	tell_owner(c, FAILED, "it goes on with a connection that is not here");
	c->dead = 1;
}

static void give_up(struct conn *heir)
{
	if (heir->heir_to && heir->heir_to->lasting->heir == heir)
		heir->heir_to->lasting->heir = NULL;
	heir->heir_to = NULL;
	heir->dead = 1;
}

static void lose(struct conn *c)
{
	c->lasting->torn = 0;
	c->lasting->over = c->tls_end = c->broken = 1;
	pump(c);
}

/* Client: as far as it goes now. */
static void inherit(struct conn *heir)
{
	struct lasting *l = heir->lasting;
	struct conn *c = heir->heir_to;
	int r, why;
	if (!heir->shaken) {
		struct pollfd p = {.fd = heir->tcp, .events = POLLOUT};
		if (poll(&p, 1, 0) != 1)
			return;
		if ((r = SSL_do_handshake(heir->ssl)) != 1) {
			why = SSL_get_error(heir->ssl, r);
			if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE)
				give_up(heir);
			return;
		}
		heir->shaken = 1;
		digest(heir->ssl, l->digest);
		if (!speaks(heir->ssl, again_name) || memcmp(l->digest, c->lasting->digest, DIGEST)) { /* somebody else has the address */
			give_up(heir);
			return;
		}
		l->want = FRAME;
	}
	if (!l->asked) {
		l->attempts = ++c->lasting->attempts;
		say(l, RESUME, c->lasting->id, ID, c->lasting->got, 2, l->attempts);
		if (SSL_write(heir->ssl, l->word, l->word_size) <= 0) {
			give_up(heir);
			return;
		}
		l->asked = 1;
		if (!c->lasting->torn)
			c->lasting->torn = now_ms();
	}
	while ((r = SSL_read(heir->ssl, l->part + l->have, l->want - l->have)) > 0) {
		l->have += r;
		if (l->have < l->want)
			continue;
		if (l->part[3] == OK && length(l->part) == 8 && l->want == FRAME) {
			l->want = FRAME + 8;
			continue;
		}
		int late = l->attempts != c->lasting->attempts; /* the server has heard of a later one, or will */
		give_up(heir);
		if (late)
			return;
		if (l->part[3] != OK || !go_on(c, heir, le64(l->part + FRAME)))
			lose(c);
		else
			pump(c);
		return;
	}
	why = SSL_get_error(heir->ssl, r);
	if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE)
		give_up(heir);
}

int lasting_resumes(struct conn *c)
{
	return c->lasting && c->lasting->resuming;
}

void lasting_pursue(struct conn *c)
{
	struct lasting *l = c->lasting;
	if (c->heir_to) {
		inherit(c);
		return;
	}
	if (deserted(c)) { /* its owner has lost patience */
		c->dead = 1;
		return;
	}
	while (l->have < l->want) {
		int n = SSL_read(c->ssl, l->part + l->have, l->want - l->have);
		if (n <= 0) {
			int why = SSL_get_error(c->ssl, n);
			if (why != SSL_ERROR_WANT_READ && why != SSL_ERROR_WANT_WRITE)
				c->dead = 1;
			return;
		}
		l->have += n;
	}
	answer(c);
}

static void copy_option(int from, int to, int level, int option)
{
	int value;
	socklen_t n = sizeof value;
	if (!getsockopt(from, level, option, &value, &n))
		setsockopt(to, level, option, &value, sizeof value);
}

static void begin_heir(struct conn *c)
{
	static const int tcp_options[] = {TCP_NODELAY, TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_USER_TIMEOUT, TCP_RTO_MAX_MS, TCP_RTO_MIN_US, TCP_DELACK_MAX_US};
	struct lasting *l = c->lasting, *own = calloc(1, sizeof *own);
	struct conn *heir = calloc(1, sizeof *heir);
	SSL *ssl = SSL_new(context);
	int s = socket(l->home.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (!own || !heir || !ssl || s < 0 || !SSL_set_fd(ssl, s) || SSL_set_alpn_protos(ssl, again_name, sizeof again_name - 1))
		goto none;
	copy_option(c->tcp, s, SOL_SOCKET, SO_KEEPALIVE);
	for (size_t i = 0; i < sizeof tcp_options / sizeof *tcp_options; i++)
		copy_option(c->tcp, s, IPPROTO_TCP, tcp_options[i]);
	if (c->often)
		setsockopt(s, IPPROTO_TCP, TCP_RTO_MAX_MS, &c->often, sizeof c->often);
	if (connect(s, (struct sockaddr *)&l->home, l->home_size) && errno != EINPROGRESS)
		goto none;
	SSL_set_connect_state(ssl);
	heir->tcp = s, heir->plain = heir->down = -1, heir->ssl = ssl, heir->lasting = own, heir->heir_to = c;
	own->begun = now_ms();
	l->heir = heir;
	heir->next = all;
	all = heir;
	add(s, heir);
	return;
none:
	SSL_free(ssl);
	if (s >= 0)
		close(s);
	free(heir);
	free(own);
}

int lasting_doubts(struct conn *c, const struct tcp_info *info)
{
	struct lasting *l = c->lasting;
	int due = info->tcpi_unacked || info->tcpi_probes || info->tcpi_backoff;
	l->doubts = due && info->tcpi_last_ack_recv >= DOUBT_MS ? l->doubts + 1 : 0;
	if (info->tcpi_last_ack_recv < DOUBT_MS)
		l->wanted = 0; /* it lives */
	return l->doubts || l->wanted || l->torn;
}

static int same_home(struct conn *a, struct conn *b)
{
	return a->lasting->home_size == b->lasting->home_size && !memcmp(&a->lasting->home, &b->lasting->home, a->lasting->home_size);
}

void lasting_look(struct conn *c)
{
	struct lasting *l = c->lasting;
	long now = now_ms();
	if (c->told_tls && !lasting_settled(c) && (c->told_plain || c->plain_gone || deserted(c))) {
		if (!l->leaving)
			l->leaving = now;
		c->dead |= now - l->leaving > LINGER_MS;
	}
	if (!l->client || !c->shaken || c->broken || c->dead)
		return;
	if (l->torn && now - l->torn > GIVE_UP_MS) {
		lose(c);
		return;
	}
	/* what is true of one is true of all that go the same way; who has nothing to send cannot find out by himself */
	for (struct conn *o = all; o && !l->wanted; o = o->next)
		l->wanted = o->lasting && o->lasting->client && !o->dead && o->lasting->doubts >= 2 && same_home(o, c);
	if (l->heir) {
		/* who has asked keeps its TCP connection: the server may have gone over to it, and would take its end for ours */
		struct lasting *h = l->heir->lasting;
		if (now - h->begun > (h->asked ? ANSWER_MS : CONNECT_MS)) {
			if (h->asked)
				l->heir = NULL;
			else
				give_up(l->heir);
		}
	}
	if ((l->wanted || l->torn) && !l->heir)
		begin_heir(c);
}

void lasting_moved(struct conn *c, const struct sockaddr *to, socklen_t size)
{
	struct lasting *l = c->lasting;
	if (!l || !l->client || size > sizeof l->home)
		return;
	memset(&l->home, 0, sizeof l->home);
	memcpy(&l->home, to, size);
	l->home_size = size;
	l->wanted = 1;
}

void lasting_bury(struct conn *c)
{
	if (c->ssl && c->shaken && !c->broken && !c->heir_to)
		SSL_shutdown(c->ssl); /* so that the peer does not wait for us to go on */
	if (c->heir_to && c->heir_to->lasting->heir == c)
		c->heir_to->lasting->heir = NULL;
	for (struct conn *o = all; o; o = o->next)
		if (o->heir_to == c)
			o->heir_to = NULL, o->dead = 1;
	free(c->lasting);
	c->lasting = NULL;
}
