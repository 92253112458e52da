/* verify [-m MIB] [-w MIB] [-t THREADS] [-f FILE] [-o MS] [-p US] [-s SECONDS] [-b]: a program that notices when anything is wrong with it.
 *
 *   -m  memory, in MiB (4); every page has a generation, from which the words in it follow
 *   -w  how much of it is rewritten most of the time, in MiB (1)
 *   -t  threads beside the first (1), each with 2 MiB of stack that it verifies and a counter
 *   -f  numbered lines to FILE (opened for appending) and FILE.offset (written at its offset), one every 5 ms, read back by `files`
 *   -o  a line "tick" on standard output every so many ms
 *   -p  sleep so many us between rounds (0: burn the CPU)
 *   -s  end with status 0 after so many seconds of its own clock
 *   -b  in the background: never look at standard input
 *
 * Commands, a line each: ids, echo TEXT, all (verify every page), files, gap (longest gap in its progress so far; starts anew), clock,
 * count, cat FILE, make FILE TEXT, cd DIR, env NAME, quit STATUS.  End of file on standard input: status 7.  A violation: status 3. */
#define _GNU_SOURCE
#include "guest.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { PAGE = 4096, WORDS = 8, PAGES_A_ROUND = 50, STACK = 2 << 20, MAX_THREADS = 64 };

static const size_t word_offset[WORDS] = { 0, 64, 512, 1024, 1536, 2048, 3000, 4088 };

struct memory {
    char *base;
    uint32_t *generation;
    size_t pages, hot;
};

struct worker {
    pthread_t thread;
    volatile unsigned long ticks;
};

struct sequence_file {
    const char *name;
    int fd;
    unsigned long lines;
};

static struct worker workers[MAX_THREADS];
static int worker_count = 1;

static uint64_t expected_word(size_t page, uint32_t generation, int word)
{
    return (page * 0x9E3779B97F4A7C15ull) ^ (generation * 0xD6E8FEB86659FD93ull) ^ (word * 0xA0761D6478BD642Full);
}

static uint64_t *word_at(struct memory *m, size_t page, int word)
{
    return (uint64_t *)(m->base + page * PAGE + word_offset[word]);
}

static size_t wrong_words(struct memory *m, size_t page)
{
    size_t wrong = 0;

    for (int w = 0; w < WORDS; w++)
        wrong += *word_at(m, page, w) != expected_word(page, m->generation[page], w);
    return wrong;
}

static void write_page(struct memory *m, size_t page, uint32_t generation)
{
    m->generation[page] = generation;
    for (int w = 0; w < WORDS; w++)
        *word_at(m, page, w) = expected_word(page, generation, w);
}

static void make_memory(struct memory *m, size_t mib, size_t hot_mib)
{
    m->pages = (mib << 20) / PAGE;
    m->hot = (hot_mib << 20) / PAGE;
    if (m->hot > m->pages)
        m->hot = m->pages;
    m->base = mmap(NULL, m->pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    m->generation = calloc(m->pages, sizeof *m->generation);
    if (m->base == MAP_FAILED || !m->generation)
        fail("no memory");
    for (size_t page = 0; page < m->pages; page++)
        write_page(m, page, 0);
}

/* Verify and rewrite some pages: mostly hot ones, every 64th from anywhere. */
static void step(struct memory *m)
{
    static uint64_t random = 88172645463325252ull;

    for (int i = 0; i < PAGES_A_ROUND; i++) {
        size_t page;

        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        page = (random >> 8) % (random % 64 ? m->hot : m->pages);
        if (wrong_words(m, page))
            fail("page %zu of generation %u is not as it was written", page, m->generation[page]);
        write_page(m, page, m->generation[page] + 1);
    }
}

static void *verify_stack(void *argument)
{
    struct worker *self = argument;
    volatile char local[STACK];

    for (size_t i = 0; i < STACK; i++)
        local[i] = 5;
    for (;;) {
        for (size_t i = 0; i < STACK; i += PAGE)
            if (local[i] != 5)
                fail("the stack of a thread is not as it was written");
        self->ticks++;
        usleep(2000);
    }
    return NULL;
}

static void start_workers(void)
{
    pthread_attr_t attributes;

    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 4 * STACK);
    for (int i = 0; i < worker_count; i++)
        if (pthread_create(&workers[i].thread, &attributes, verify_stack, &workers[i]))
            fail("no thread");
}

static void open_sequence(struct sequence_file *f, const char *name, int flags)
{
    f->name = name;
    f->fd = open(name, O_RDWR | O_CREAT | O_TRUNC | flags, 0644);
    if (f->fd < 0)
        fail("%s: %s", name, strerror(errno));
}

static void write_sequence(struct sequence_file *f)
{
    char line[32];
    int n = snprintf(line, sizeof line, "%010lu\n", f->lines++);

    if (write_all(f->fd, line, n))
        fail("%s: %s", f->name, strerror(errno));
}

/* The file under its name holds exactly the lines written. */
static void check_sequence(struct sequence_file *f)
{
    unsigned long number, count = 0;
    struct stat by_name, by_descriptor;
    FILE *in = fopen(f->name, "r");

    if (!in)
        fail("%s: %s", f->name, strerror(errno));
    while (fscanf(in, "%lu\n", &number) == 1)
        if (number != count++)
            fail("%s: line %lu says %lu", f->name, count - 1, number);
    fclose(in);
    if (count != f->lines)
        fail("%s: %lu lines written, %lu in it", f->name, f->lines, count);
    if (stat(f->name, &by_name) || fstat(f->fd, &by_descriptor) || by_name.st_ino != by_descriptor.st_ino)
        fail("%s: is another file now", f->name);
    say("file %s lines=%lu", f->name, count);
}

static void say_ids(void)
{
    char host[65] = "", where[256] = "?";
    const char *tty = ttyname(STDIN_FILENO);

    gethostname(host, sizeof host);
    say("ids pid=%d ppid=%d sid=%d pgid=%d tpgid=%d uid=%d tty=%s host=%s cwd=%s", getpid(), getppid(), getsid(0), getpgid(0),
        tcgetpgrp(STDIN_FILENO), getuid(), tty ? tty : "-", host, getcwd(where, sizeof where) ? where : "?");
}

static void say_all(struct memory *m)
{
    size_t wrong = 0;

    for (size_t page = 0; page < m->pages; page++)
        wrong += wrong_words(m, page);
    if (wrong)
        fail("%zu words in memory are not as they were written", wrong);
    say("all pages=%zu wrong=0", m->pages);
}

static void say_count(unsigned long rounds)
{
    unsigned long ticks = 0, slowest = ~0ul;

    for (int i = 0; i < worker_count; i++) {
        ticks += workers[i].ticks;
        if (workers[i].ticks < slowest)
            slowest = workers[i].ticks;
    }
    say("count rounds=%lu threads=%d ticks=%lu slowest=%lu", rounds, worker_count, ticks, worker_count ? slowest : 0);
}

static void say_file(const char *name)
{
    char text[200] = "";
    FILE *in = fopen(name, "r");

    if (!in) {
        say("cat failed: %s", strerror(errno));
        return;
    }
    if (fgets(text, sizeof text, in))
        text[strcspn(text, "\n")] = 0;
    fclose(in);
    say("cat %s", text);
}

static void make_file(char *arguments)
{
    char *text = strchr(arguments, ' ');
    int fd;

    if (text)
        *text++ = 0;
    fd = open(arguments, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || (text && write_all(fd, text, strlen(text))))
        say("make failed: %s", strerror(errno));
    else
        say("made %s", arguments);
    if (fd >= 0)
        close(fd);
}

/* Progress in its own clock, and that the clocks go forward together. */
struct watch {
    double mono, mono_start, real_start, gap, skew;
};

static void watch_clocks(struct watch *w)
{
    double mono = seconds(CLOCK_MONOTONIC), skew;

    if (mono < w->mono)
        fail("CLOCK_MONOTONIC went back by %.6f s", w->mono - mono);
    if (mono - w->mono > w->gap)
        w->gap = mono - w->mono;
    skew = (seconds(CLOCK_REALTIME) - w->real_start) - (mono - w->mono_start);
    if (skew < 0)
        skew = -skew;
    if (skew > w->skew)
        w->skew = skew;
    w->mono = mono;
}

static void obey(char *line, struct memory *m, struct sequence_file files[2], struct watch *w, unsigned long rounds)
{
    if (!strcmp(line, "ids"))
        say_ids();
    else if (!strncmp(line, "echo ", 5))
        say("%s", line + 5);
    else if (!strcmp(line, "all"))
        say_all(m);
    else if (!strcmp(line, "files")) {
        check_sequence(&files[0]);
        check_sequence(&files[1]);
    } else if (!strcmp(line, "gap")) {
        watch_clocks(w); /* it may have stood still since the last round began */
        say("gap %.1f ms", w->gap * 1e3);
        w->gap = 0;
    } else if (!strcmp(line, "clock"))
        say("clock monotonic=%.3f skew=%.3f", w->mono, w->skew);
    else if (!strcmp(line, "count"))
        say_count(rounds);
    else if (!strncmp(line, "cat ", 4))
        say_file(line + 4);
    else if (!strncmp(line, "make ", 5))
        make_file(line + 5);
    else if (!strncmp(line, "cd ", 3))
        say("cd %s", chdir(line + 3) ? strerror(errno) : "done");
    else if (!strncmp(line, "env ", 4))
        say("env %s", getenv(line + 4) ? getenv(line + 4) : "-");
    else if (!strncmp(line, "quit ", 5)) {
        say("bye");
        exit(atoi(line + 5));
    } else
        say("unknown command: %s", line);
}

int main(int argc, char **argv)
{
    size_t mib = 4, hot_mib = 1;
    const char *file = NULL;
    long tick_ms = 0, pause_us = 0;
    double end = 0, next_tick, next_line, next_look;
    int option, background = 0;
    unsigned long rounds = 0, ticks = 0;
    struct memory memory;
    struct sequence_file files[2];
    struct watch watch = { 0 };
    char line[256];

    while ((option = getopt(argc, argv, "m:w:t:f:o:p:s:b")) != -1)
        switch (option) {
        case 'm': mib = atol(optarg); break;
        case 'w': hot_mib = atol(optarg); break;
        case 't': worker_count = atoi(optarg); break;
        case 'f': file = optarg; break;
        case 'o': tick_ms = atol(optarg); break;
        case 'p': pause_us = atol(optarg); break;
        case 's': end = atof(optarg); break;
        case 'b': background = 1; break;
        default: return 2;
        }
    if (worker_count < 0 || worker_count > MAX_THREADS || !mib || !hot_mib)
        return 2;
    make_memory(&memory, mib, hot_mib);
    start_workers();
    memset(files, 0, sizeof files);
    if (file) {
        char *second;

        if (asprintf(&second, "%s.offset", file) < 0)
            fail("no memory");
        open_sequence(&files[0], file, O_APPEND);
        open_sequence(&files[1], second, 0);
    }
    watch.mono = watch.mono_start = seconds(CLOCK_MONOTONIC);
    watch.real_start = seconds(CLOCK_REALTIME);
    next_tick = next_line = next_look = watch.mono;
    say("ready pid=%d", getpid());
    for (;;) {
        step(&memory);
        rounds++;
        watch_clocks(&watch);
        if (file && watch.mono >= next_line) {
            next_line = watch.mono + 0.005;
            write_sequence(&files[0]);
            write_sequence(&files[1]);
        }
        if (tick_ms && watch.mono >= next_tick) {
            next_tick = watch.mono + tick_ms * 1e-3;
            say("tick %lu", ticks++);
        }
        if (end && watch.mono - watch.mono_start >= end) {
            say_all(&memory);
            say("done gap %.1f ms", watch.gap * 1e3);
            return 0;
        }
        if (!background && watch.mono >= next_look) {
            int got;

            next_look = watch.mono + 0.002;
            while ((got = next_command(line, 0)) == 1)
                if (!strcmp(line, "files") && !file)
                    say("unknown command: files");
                else
                    obey(line, &memory, files, &watch, rounds);
            if (got < 0) {
                say("eof");
                return STATUS_EOF;
            }
        }
        if (pause_us)
            usleep(pause_us);
    }
}
