import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.HashMap;
import java.util.Map;
import java.util.Random;
import java.util.concurrent.atomic.AtomicLong;
import java.util.concurrent.atomic.AtomicReference;

/**
 * Check MIB: so much of live objects, and threads that replace them all the time, so that the collector moves them; each object says what it
 * must hold.  A line on standard input: everything is verified, the answer is "good" with what has been done, or "ERROR".
 */
public class Check {
    static final int THREADS = 4, SIZE = 4096;
    static final AtomicLong replaced = new AtomicLong();
    static final AtomicReference<String> wrong = new AtomicReference<>();
    static int lines;

    /** An object that knows its contents. */
    static class Item {
        final long seed;
        final byte[] data = new byte[SIZE];
        final String text;

        Item(long seed) {
            this.seed = seed;
            new Random(seed).nextBytes(data);
            text = "item " + seed;
        }

        boolean whole() {
            byte[] again = new byte[SIZE];
            new Random(seed).nextBytes(again);
            return java.util.Arrays.equals(data, again) && text.equals("item " + seed);
        }
    }

    /** One thread's objects. */
    static class Worker extends Thread {
        final Map<Integer, Item> items = new HashMap<>();
        final int count;
        final Random chance;

        Worker(int number, int count) {
            this.count = count;
            chance = new Random(number);
            for (int i = 0; i < count; i++)
                items.put(i, new Item(chance.nextLong()));
            setDaemon(true);
        }

        @Override
        public void run() {
            while (true) {
                synchronized (items) {
                    int at = chance.nextInt(count);
                    if (!items.get(at).whole())
                        wrong.compareAndSet(null, "object " + at);
                    items.put(at, new Item(chance.nextLong()));
                }
                replaced.incrementAndGet();
            }
        }

        void verify() {
            synchronized (items) {
                for (Map.Entry<Integer, Item> e : items.entrySet())
                    if (!e.getValue().whole())
                        wrong.compareAndSet(null, "object " + e.getKey());
            }
        }
    }

    static void say(String text) {
        System.out.printf("%08d %s%n", lines++, text);
        System.out.flush();
    }

    public static void main(String[] arguments) throws Exception {
        int each = Integer.parseInt(arguments[0]) * (1 << 20) / SIZE / THREADS;
        Worker[] workers = new Worker[THREADS];
        for (int i = 0; i < THREADS; i++)
            workers[i] = new Worker(i, each);
        for (Worker w : workers)
            w.start();
        say("ready");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        while (in.readLine() != null) {
            for (Worker w : workers)
                w.verify();
            say(wrong.get() == null ? "good replaced=" + replaced.get() : "ERROR " + wrong.get());
        }
    }
}
