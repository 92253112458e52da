/* The deputy: what a migrated process is at home, under its own pid.
 *
 * It is started by execveat() inside of the process itself, so it has that process's pid, parent, process group, session, terminal,
 * descriptors, and a signal mask of "all blocked".  It has no libc, no heap, no threads and no policy: one poll loop over a signalfd
 * and a SOCK_SEQPACKET link, whose other end is the home agent's.  x86-64.
 *
 * environment: DEPUTY=<link fd>,<signals to drop, hex mask>,<comm>
 * packets:     from us  H hello (a = our pid)   S a signal (a = number, b = si_code, data = struct signalfd_siginfo)
 *              to us    Z stop by signal a      C close descriptor a      X end as wait status a says      R reap children
 * The layout is mirrored in link.py. */

typedef long L;
typedef unsigned long U;

enum { /* system calls */
	READ = 0, CLOSE = 3, POLL = 7, RT_SIGACTION = 13, RT_SIGPROCMASK = 14, SETITIMER = 38, GETPID = 39, SENDTO = 44, WAIT4 = 61,
	KILL = 62, RT_SIGPENDING = 127, RT_SIGTIMEDWAIT = 128, PRCTL = 157, SETRLIMIT = 160, EXIT_GROUP = 231, SIGNALFD4 = 289,
};
enum { SIGCHLD = 17, SIGCONT = 18, SIGSTOP = 19 };
enum { SIG_UNBLOCK = 1, SIG_SETMASK = 2, SFD_CLOEXEC = 02000000, MSG_NOSIGNAL = 0x4000, POLLIN = 1, RLIMIT_CORE = 4 };
enum { PR_SET_DUMPABLE = 4, PR_SET_NAME = 15, PR_SET_CHILD_SUBREAPER = 36 };
enum { WNOHANG = 1, WALL = 0x40000000, SIGSET_BYTES = 8 };

struct pollfd { int fd; short events, revents; };
struct packet { unsigned char op, pad[3]; int a; L b; int data[32]; };
struct siginfo { int signo, err, code, rest[29]; }; /* struct signalfd_siginfo, 128 bytes */

static const U ALL = ~0UL;
static int link_fd;

static L sc6(L n, L a, L b, L c, L d, L e, L f)
{
	L r;
	register L r10 asm("r10") = d, r8 asm("r8") = e, r9 asm("r9") = f;
	asm volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
	return r;
}
static L sc(L n, L a, L b, L c, L d) { return sc6(n, a, b, c, d, 0, 0); }

/* Blocks while the agent is away and the link is full; signals meanwhile wait in the kernel, as for any busy process. */
static void say(int op, int a, L b, const struct siginfo *si)
{
	static struct packet p;
	int n = 16;
	p.op = op, p.a = a, p.b = b;
	if (si) {
		for (int i = 0; i < 32; i++)
			p.data[i] = ((const int *)si)[i];
		n += sizeof *si;
	}
	sc6(SENDTO, link_fd, (L)&p, n, MSG_NOSIGNAL, 0, 0);
}

/* The default action of a signal, for real: the parent sees what it would have seen of the process itself. */
static void act(int sig)
{
	L dfl[4] = { 0, 0, 0, 0 };
	U bit = 1UL << (sig - 1);
	sc(RT_SIGACTION, sig, (L)dfl, 0, SIGSET_BYTES);
	sc(KILL, sc(GETPID, 0, 0, 0, 0), sig, 0, 0);
	sc(RT_SIGPROCMASK, SIG_UNBLOCK, (L)&bit, 0, SIGSET_BYTES); /* stops or ends here */
	sc(RT_SIGPROCMASK, SIG_SETMASK, (L)&ALL, 0, SIGSET_BYTES);
}

static void stop(int sig)
{
	U pending = 0;
	act(sig);
	/* Continued means that a SIGCONT waits for the signalfd now (the stop signal had discarded older ones).  Without it we never stopped:
	 * the kernel ignores the terminal's stop signals in an orphaned process group. */
	sc(RT_SIGPENDING, (L)&pending, SIGSET_BYTES, 0, 0);
	if (!(pending >> (SIGCONT - 1) & 1))
		sc(KILL, sc(GETPID, 0, 0, 0, 0), SIGSTOP, 0, 0);
}

static void finish(int status)
{
	L none[2] = { 0, 0 };
	int sig = status & 127;
	if (sig) {
		/* a core of the deputy would overwrite or replace the guest's */
		sc(SETRLIMIT, RLIMIT_CORE, (L)none, 0, 0);
		sc(PRCTL, PR_SET_DUMPABLE, 0, 0, 0);
		act(sig);
		sc(EXIT_GROUP, 128 + sig, 0, 0, 0); /* init of a pid namespace survives its own signals */
	}
	sc(EXIT_GROUP, status >> 8 & 255, 0, 0, 0);
}

/* Children of the process that we were, killed when it moved: nobody else waits for them. */
static void reap(void)
{
	while (sc(WAIT4, -1, 0, WALL | WNOHANG, 0) > 0)
		;
}

static U number(char **p, int base)
{
	U v = 0;
	for (;; (*p)++) {
		int c = **p, digit = c >= '0' && c <= '9' ? c - '0' : base == 16 && c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
		if (digit < 0)
			break;
		v = v * base + digit;
	}
	if (**p)
		(*p)++;
	return v;
}

__attribute__((used)) void deputy(L *sp)
{
	char **env = (char **)(sp + 1 + *sp + 1), *config = 0;
	L zero[4] = { 0, 0, 0, 0 };
	static struct packet order;
	static struct siginfo si;
	U drop;

	for (; *env; env++)
		if ((*env)[0] == 'D' && (*env)[5] == 'Y' && (*env)[6] == '=')
			config = *env + 7;
	if (!config)
		sc(EXIT_GROUP, 2, 0, 0, 0);
	sc(RT_SIGPROCMASK, SIG_SETMASK, (L)&ALL, 0, SIGSET_BYTES);
	for (int timer = 0; timer < 3; timer++) /* interval timers survive execve; the guest has its own */
		sc(SETITIMER, timer, (L)zero, 0, 0);
	link_fd = number(&config, 10);
	drop = number(&config, 16);
	while (drop && sc(RT_SIGTIMEDWAIT, (L)&drop, 0, (L)zero, SIGSET_BYTES) > 0)
		; /* pending when the process was dumped: the guest has them */
	sc(PRCTL, PR_SET_NAME, (L)config, 0, 0);
	sc(PRCTL, PR_SET_CHILD_SUBREAPER, 1, 0, 0);
	reap(); /* their SIGCHLD may be long gone */

	struct pollfd fds[2] = { { sc(SIGNALFD4, -1, (L)&ALL, SIGSET_BYTES, SFD_CLOEXEC), POLLIN, 0 }, { link_fd, POLLIN, 0 } };
	say('H', sc(GETPID, 0, 0, 0, 0), 0, 0);
	for (;;) {
		sc(POLL, (L)fds, 2, -1, 0);
		if (fds[0].revents && sc(READ, fds[0].fd, (L)&si, sizeof si, 0) == sizeof si) {
			if (si.signo == SIGCHLD && si.code > 0)
				reap();
			else
				say('S', si.signo, si.code, &si);
		}
		if (fds[1].revents) {
			if (sc(READ, link_fd, (L)&order, sizeof order, 0) <= 0)
				fds[1].fd = -1; /* cannot be while we hold a copy of the agent's end; then: wait for signals */
			else if (order.op == 'Z')
				stop(order.a);
			else if (order.op == 'C') {
				if (order.a != link_fd && order.a != fds[0].fd)
					sc(CLOSE, order.a, 0, 0, 0);
			} else if (order.op == 'R')
				reap(); /* the holder of our old memory ends without a signal */
			else if (order.op == 'X')
				finish(order.a);
		}
	}
}

asm(".globl _start\n"
    "_start: mov %rsp, %rdi\n"
    " and $-16, %rsp\n"
    " call deputy\n"
    " hlt");
