/* churn [-m MIB] [-t THREADS] [-b MIB] [-f FILE] [-n] [-q] [-p US]: a program that changes its address space all the time, and knows what
 * every word of it must be.
 *
 *   -m  MiB of memory that only wait to be verified, a page now and then (32): what still arrives while the rest goes on
 *   -t  threads that churn, each on blocks of its own (3)
 *   -b  MiB of an 8 GiB sparse map that are used (16)
 *   -f  a file to map privately (of any content; 1 MiB is written to it)
 *   -n  no children: neither fork nor exec
 *   -q  in the background: never look at standard input
 *   -p  sleep so many us between steps (0)
 *
 * A step is one of: write, verify, MADV_DONTNEED, map anew in place, unmap and map elsewhere, mremap (moved, onto another block, grown,
 * shrunk, MREMAP_DONTUNMAP), mprotect and back, brk up and down, malloc/realloc/free, a deep stack, a child that verifies and writes (by fork,
 * and one by fork and execve).
 *
 * Commands, a line each: all (verify everything), count (steps so far), quit STATUS, exec (replace itself by itself: everything starts anew).
 * End of file on standard input: status 7.  A wrong word: a line with ERROR, status 3. */
#define _GNU_SOURCE
#include "guest.h"

#include <fcntl.h>
#include <malloc.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { PAGE = 4096, WORDS = PAGE / 8, MAX_PAGES = 1024, BLOCKS = 10, MAX_THREADS = 16, HUGE = 2 << 20 };

enum kind { ANON, THP, FILE_COW, SHARED, LOCKED, BRK };

/* What each page of a block must hold: 0 nothing (zero, or the file's page), else the words that follow from the number. */
struct block {
    enum kind kind;
    char *base;
    size_t pages, first; /* first: of the file */
    uint64_t *value;
};

struct churner {
    pthread_t thread;
    int number;
    uint64_t random, next_value;
    struct block block[BLOCKS];
    volatile unsigned long steps;
};

static struct churner churners[MAX_THREADS];
static int churner_count = 3, file_fd = -1, children = 1, pause_us;
static char **own_argv;
static volatile int hold, holding; /* threads stand still for `all` */
static char *still, *sparse;
static size_t still_pages, sparse_pages, sparse_stride;
static uint64_t zero_page[WORDS], file_words[MAX_PAGES / 4 * WORDS];

static uint64_t next_random(struct churner *c)
{
    c->random ^= c->random << 13;
    c->random ^= c->random >> 7;
    c->random ^= c->random << 17;
    return c->random >> 11;
}

static uint64_t word(uint64_t value, int w)
{
    return value * 0x9E3779B97F4A7C15ull ^ (w + 1) * 0xD6E8FEB86659FD93ull;
}

static void fill(void *page, uint64_t value)
{
    uint64_t *p = page;

    for (int w = 0; w < WORDS; w++)
        p[w] = word(value, w);
}

static int wrong(const volatile void *page, uint64_t value)
{
    const volatile uint64_t *p = page;

    for (int w = 0; w < WORDS; w++)
        if (p[w] != word(value, w))
            return w + 1;
    return 0;
}

static void check_page(struct churner *c, struct block *b, size_t page, const char *when)
{
    const char *at = b->base + page * PAGE;
    const uint64_t *expected = b->kind == FILE_COW ? file_words + (b->first + page) * WORDS : zero_page;
    int w = 0;

    if (b->value[page])
        w = wrong(at, b->value[page]);
    else if (memcmp(at, expected, PAGE))
        for (w = 1; ((uint64_t *)at)[w - 1] == expected[w - 1]; w++)
            ;
    if (w)
        fail("thread %d %s: kind %d page %zu of %zu at %p word %d is %#lx (value %#lx)", c->number, when, b->kind, page, b->pages, at, w - 1,
            ((uint64_t *)at)[w - 1], b->value[page]);
}

static void check_block(struct churner *c, struct block *b, const char *when)
{
    for (size_t page = 0; page < b->pages; page++)
        check_page(c, b, page, when);
}

static void write_page(struct churner *c, struct block *b, size_t page)
{
    b->value[page] = ++c->next_value;
    fill(b->base + page * PAGE, b->value[page]);
}

static void *must(void *p, const char *what)
{
    if (p == MAP_FAILED)
        fail("%s: %s", what, strerror(errno));
    return p;
}

static void *map(size_t bytes, int flags)
{
    return must(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0), "mmap");
}

static void make_block(struct churner *c, struct block *b, enum kind kind)
{
    b->kind = kind;
    b->first = 0;
    b->pages = 16 + next_random(c) % 400;
    switch (kind) {
    case ANON:
        b->base = map(b->pages * PAGE, 0);
        break;
    case THP:
        b->pages = HUGE / PAGE;
        b->base = map(2 * HUGE, 0);
        {
            char *aligned = (char *)(((uintptr_t)b->base + HUGE - 1) & ~(uintptr_t)(HUGE - 1));

            if (aligned > b->base)
                munmap(b->base, aligned - b->base);
            munmap(aligned + HUGE, b->base + HUGE - aligned);
            b->base = aligned;
        }
        madvise(b->base, HUGE, MADV_HUGEPAGE);
        break;
    case FILE_COW:
        b->pages = 128;
        b->first = next_random(c) % 128;
        b->base = must(mmap(NULL, b->pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, file_fd, b->first * PAGE), "mmap of the file");
        break;
    case SHARED:
        b->base = must(mmap(NULL, b->pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0), "shared mmap");
        break;
    case LOCKED:
        b->pages = 16;
        b->base = map(b->pages * PAGE, 0);
        mlock(b->base, b->pages * PAGE); /* may be refused: then it is ordinary memory */
        break;
    case BRK:
        b->pages = 64;
        b->base = must(sbrk(b->pages * PAGE), "sbrk");
        break;
    }
    memset(b->value, 0, MAX_PAGES * sizeof *b->value);
    for (size_t page = 0; page < b->pages; page++)
        if (next_random(c) % 4)
            write_page(c, b, page);
}

static void unmap(struct block *b)
{
    if (munmap(b->base, b->pages * PAGE))
        fail("munmap: %s", strerror(errno));
}

static void forget(struct block *b, size_t page, size_t n)
{
    memset(b->value + page, 0, n * sizeof *b->value);
}

static void grow_or_shrink(struct churner *c, struct block *b)
{
    size_t pages = 8 + next_random(c) % (MAX_PAGES - 8);

    if (b->kind == BRK)
        return;
    b->base = must(mremap(b->base, b->pages * PAGE, pages * PAGE, MREMAP_MAYMOVE), "mremap to another size");
    if (pages > b->pages)
        forget(b, b->pages, pages - b->pages);
    b->pages = pages;
}

static void move(struct churner *c, struct block *b, int flags)
{
    /* a place of our own, then onto it */
    char *to = map(b->pages * PAGE, 0), *from = b->base;

    if (next_random(c) % 2)
        fill(to, 1); /* something to be replaced */
    b->base = must(mremap(from, b->pages * PAGE, b->pages * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | flags, to), "mremap");
    if (flags) { /* MREMAP_DONTUNMAP: the old place is empty now */
        for (size_t page = 0; page < b->pages; page += 1 + next_random(c) % 3)
            if (memcmp(from + page * PAGE, zero_page, PAGE))
                fail("thread %d: what mremap left behind is not zero", c->number);
        munmap(from, b->pages * PAGE);
    }
}

static void resize_brk(struct churner *c, struct block *b)
{
    size_t n = 1 + next_random(c) % 32;

    if (b->pages > 32 && next_random(c) % 2) {
        if (sbrk(-(intptr_t)(n * PAGE)) == (void *)-1)
            fail("brk down: %s", strerror(errno));
        b->pages -= n;
    } else if (b->pages + n < MAX_PAGES) {
        must(sbrk(n * PAGE), "brk up");
        forget(b, b->pages, n);
        b->pages += n;
    }
}

static void use_malloc(struct churner *c)
{
    size_t bytes = (1 + next_random(c) % 96) * PAGE, more = bytes + next_random(c) % 64 * PAGE;
    uint64_t value = ++c->next_value;
    char *p = malloc(bytes + 64), *aligned = p;

    for (size_t at = 0; at + PAGE <= bytes; at += PAGE)
        fill(aligned + at, value + at);
    p = realloc(p, more + 64);
    for (size_t at = 0; at + PAGE <= bytes; at += PAGE)
        if (wrong(p + at, value + at))
            fail("thread %d: memory that was reallocated", c->number);
    free(p);
    c->next_value += bytes;
}

static __attribute__((noinline)) void deep(struct churner *c, int depth)
{
    volatile uint64_t local[2 * WORDS];
    uint64_t value = ++c->next_value;

    fill((void *)local, value);
    if (depth)
        deep(c, depth - 1);
    if (wrong(local, value))
        fail("thread %d: its stack, %d calls deep", c->number, depth);
}

static void child(struct churner *c)
{
    is_child = 1;
    for (int i = 0; i < 40; i++) {
        struct block *b = c->block + next_random(c) % BLOCKS;
        size_t page = next_random(c) % b->pages;

        check_page(c, b, page, "in a child");
        if (b->kind != SHARED && next_random(c) % 2) {
            write_page(c, b, page);
            check_page(c, b, page, "in a child that wrote");
        }
        if (b->kind == ANON && next_random(c) % 8 == 0) {
            madvise(b->base, b->pages * PAGE, MADV_DONTNEED);
            forget(b, 0, b->pages);
            check_page(c, b, page, "in a child that discarded");
        }
    }
    if (next_random(c) % 4 == 0) {
        execve("/proc/self/exe", (char *[]) { "churn", "-Z", NULL }, (char *[]) { NULL });
        fail("execve: %s", strerror(errno));
    }
    _exit(0);
}

static void have_child(struct churner *c)
{
    int status;
    pid_t pid = fork();

    if (pid < 0)
        fail("fork: %s", strerror(errno));
    if (!pid)
        child(c);
    for (int i = 0; i < 20; i++) { /* beside it */
        struct block *b = c->block + next_random(c) % BLOCKS;
        size_t page = next_random(c) % b->pages;

        if (b->kind != SHARED && next_random(c) % 2)
            write_page(c, b, page);
        check_page(c, b, page, "beside a child");
    }
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (status)
        fail("thread %d: a child ended with %#x", c->number, status);
}

static void check_still(struct churner *c)
{
    size_t page = next_random(c) % still_pages, far = next_random(c) % sparse_pages;
    int w = wrong(still + page * PAGE, page + 7);

    if (w)
        fail("page %zu of %zu that was never changed, word %d is %#lx", page, still_pages, w - 1, ((uint64_t *)(still + page * PAGE))[w - 1]);
    w = wrong(sparse + far * sparse_stride, far + 3);
    if (w)
        fail("page %zu of the sparse map, word %d", far, w - 1);
    if (memcmp(sparse + far * sparse_stride + PAGE * (1 + next_random(c) % (sparse_stride / PAGE - 1)), zero_page, PAGE))
        fail("a page of the sparse map that was never written is not zero");
}

static void step(struct churner *c)
{
    struct block *b = c->block + next_random(c) % BLOCKS;
    size_t page = next_random(c) % b->pages, n = 1 + next_random(c) % (b->pages - page);
    enum kind kind = b->kind;

    check_still(c);
    check_page(c, b, page, "before a step");
    switch (next_random(c) % 16) {
    case 0: case 1: case 2:
        for (size_t i = 0; i < n && i < 16; i++)
            write_page(c, b, page + i);
        break;
    case 3:
        check_block(c, b, "all of it");
        break;
    case 4: case 5:
        if (kind == LOCKED || kind == SHARED)
            break;
        if (madvise(b->base + page * PAGE, n * PAGE, MADV_DONTNEED))
            fail("MADV_DONTNEED: %s", strerror(errno));
        forget(b, page, n);
        break;
    case 6:
        if (kind != ANON && kind != THP)
            break;
        must(mmap(b->base + page * PAGE, n * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), "mmap over");
        forget(b, page, n);
        /* several areas now: mremap takes one at a time */
        check_page(c, b, page, "mapped anew");
        check_block(c, b, "before it goes");
        unmap(b);
        make_block(c, b, kind);
        break;
    case 7:
        if (kind != BRK) {
            check_block(c, b, "before it goes");
            unmap(b);
            make_block(c, b, kind);
        }
        break;
    case 8: case 9:
        if (kind == ANON || kind == THP || kind == SHARED)
            move(c, b, 0);
        break;
    case 10:
        if (kind == ANON)
            move(c, b, MREMAP_DONTUNMAP);
        break;
    case 11:
        if (kind == ANON)
            grow_or_shrink(c, b);
        break;
    case 12:
        if (mprotect(b->base, b->pages * PAGE, PROT_READ))
            fail("mprotect: %s", strerror(errno));
        check_page(c, b, page, "read-only");
        if (mprotect(b->base, b->pages * PAGE, PROT_READ | PROT_WRITE))
            fail("mprotect back: %s", strerror(errno));
        break;
    case 13:
        if (kind == BRK)
            resize_brk(c, b);
        else
            use_malloc(c);
        break;
    case 14:
        deep(c, 1 + next_random(c) % 40);
        break;
    case 15:
        if (children && next_random(c) % 8 == 0)
            have_child(c);
        break;
    }
    if (b->value)
        check_page(c, b, next_random(c) % b->pages, "after a step");
    c->steps++;
}

static void *churn(void *argument)
{
    struct churner *c = argument;

    for (;;) {
        if (hold) {
            __sync_fetch_and_add(&holding, 1);
            while (hold)
                usleep(200);
            __sync_fetch_and_sub(&holding, 1);
        }
        step(c);
        if (pause_us)
            usleep(pause_us);
    }
    return NULL;
}

static void start(int number)
{
    /* one of each kind, the rest ordinary */
    static const enum kind kinds[BLOCKS] = { ANON, THP, FILE_COW, SHARED, LOCKED, ANON, ANON, ANON, ANON, ANON };
    struct churner *c = churners + number;

    c->number = number;
    c->random = 88172645463325252ull + number * 7919 + getpid();
    c->next_value = (uint64_t)(number + 1) << 40;
    for (int i = 0; i < BLOCKS; i++) {
        c->block[i].value = map(MAX_PAGES * sizeof(uint64_t), 0);
        make_block(c, c->block + i, kinds[i] == FILE_COW && file_fd < 0 ? ANON : kinds[i]);
    }
    if (pthread_create(&c->thread, NULL, churn, c))
        fail("no thread");
}

static void say_all(void)
{
    size_t pages = still_pages;

    hold = 1;
    while (holding < churner_count)
        usleep(200);
    for (size_t page = 0; page < still_pages; page++)
        if (wrong(still + page * PAGE, page + 7))
            fail("page %zu of %zu that was never changed", page, still_pages);
    for (size_t page = 0; page < sparse_pages; page++)
        if (wrong(sparse + page * sparse_stride, page + 3))
            fail("page %zu of the sparse map", page);
    for (int i = 0; i < churner_count; i++)
        for (int k = 0; k < BLOCKS; k++) {
            check_block(churners + i, churners[i].block + k, "all");
            pages += churners[i].block[k].pages;
        }
    hold = 0;
    while (holding)
        usleep(200);
    say("all pages=%zu wrong=0", pages);
}

static void open_file(const char *name)
{
    file_fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    for (size_t i = 0; i < sizeof file_words / sizeof *file_words; i++)
        file_words[i] = i * 0xA0761D6478BD642Full;
    if (file_fd < 0 || write_all(file_fd, (char *)file_words, sizeof file_words))
        fail("%s: %s", name, strerror(errno));
}

int main(int argc, char **argv)
{
    size_t mib = 32, sparse_mib = 16;
    int option, background = 0;
    char line[256];

    own_argv = argv;
    mallopt(M_ARENA_MAX, 4 * MAX_THREADS); /* each thread its own: the brk heap is for the first thread's block alone */
    while ((option = getopt(argc, argv, "m:t:b:f:p:nqZ")) != -1)
        switch (option) {
        case 'm': mib = atol(optarg); break;
        case 't': churner_count = atoi(optarg); break;
        case 'b': sparse_mib = atol(optarg); break;
        case 'f': open_file(optarg); break;
        case 'p': pause_us = atoi(optarg); break;
        case 'n': children = 0; break;
        case 'q': background = 1; break;
        case 'Z': return 0; /* what a child became */
        default: return 2;
        }
    if (churner_count < 1 || churner_count > MAX_THREADS || !mib || !sparse_mib || sparse_mib > 1024)
        return 2;
    still_pages = (mib << 20) / PAGE;
    still = map(still_pages * PAGE, 0);
    for (size_t page = 0; page < still_pages; page++)
        fill(still + page * PAGE, page + 7);
    sparse_pages = (sparse_mib << 20) / PAGE;
    sparse_stride = (8ul << 30) / PAGE / sparse_pages * PAGE;
    sparse = map(8ul << 30, MAP_NORESERVE);
    madvise(sparse, 8ul << 30, MADV_NOHUGEPAGE);
    for (size_t page = 0; page < sparse_pages; page++)
        fill(sparse + page * sparse_stride, page + 3);
    hold = 1;
    for (int i = 0; i < churner_count; i++)
        start(i);
    while (holding < churner_count)
        usleep(200);
    unmap(churners[0].block + BLOCKS - 1);
    make_block(churners, churners[0].block + BLOCKS - 1, BRK);
    hold = 0;
    say("ready pid=%d", getpid());
    for (;;) {
        int got = background ? (pause(), 0) : next_command(line, 1000);

        if (got < 0) {
            say("eof");
            return STATUS_EOF;
        }
        if (!got)
            continue;
        if (!strcmp(line, "all"))
            say_all();
        else if (!strcmp(line, "count")) {
            unsigned long steps = 0;

            for (int i = 0; i < churner_count; i++)
                steps += churners[i].steps;
            say("count steps=%lu", steps);
        } else if (!strncmp(line, "quit ", 5)) {
            say("bye");
            _exit(atoi(line + 5));
        } else if (!strcmp(line, "exec")) {
            say("exec");
            execv("/proc/self/exe", own_argv);
            fail("execv: %s", strerror(errno));
        } else
            say("unknown command: %s", line);
    }
}
