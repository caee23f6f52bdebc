/* reborn: tells a machine that was copied while it ran who it is now.

   reborn          waits at the port org.serai.birth, for good
   reborn -a       the same; it also sets the IPv4 addresses that it is told
   reseed TEXT     has all random numbers seeded anew with TEXT at once; the same program

   A copy is told by one line, when it has been asleep in here since before it was copied. Nothing is
   executed then, everything that can be is open already: what a machine does for the first time is
   what takes time. A line has words with one blank between them, and at most LINE bytes:

       serai1 NONCE SEED SECONDS NANOSECONDS
       serai1 NONCE SEED SECONDS NANOSECONDS NAME MACHINE-ID keep|anew OLD=NEW[=ADDRESS/LENGTH=[ROUTER]]...
       serai1-name NONCE NAME

   The first is for one that is who it was, at another time; the last for one that has been told all else
   before. OLD and NEW are MAC addresses; "anew": its
   links go down and up, so that they lose the addresses that came of the old ones. The IPv4 address and the
   way out are what its DHCP client will be given: where nobody else minds, they are set at once. A copy's ssh server is
   ended, since it still has the host keys of another; whoever starts it anew gives it others
   (debian/own-ssh-keys), and until then there is SSH_ENDED instead of SSH_PID. The answer is
   "ok NONCE" or "error NONCE STEP ERRNO" (STEP is the letter of the one that failed first; the others
   are done all the same). A line that is none is not answered, one that comes again is done once.

   It is made without a C library, see bare.h. */

#include "bare.h"

enum {
    READ = 0, WRITE = 1, OPEN = 2, CLOSE = 3, LSEEK = 8, SIGPROCMASK = 14, IOCTL = 16, PREAD = 17,
    NANOSLEEP = 35, GETPID = 39, SOCKET = 41, EXIT = 60, KILL = 62, FCNTL = 72, FTRUNCATE = 77, RENAME = 82,
    SIGTIMEDWAIT = 128, SETHOSTNAME = 170, GETDENTS = 217, SETTIME = 227
};
enum {
    O_RDONLY = 0, O_WRONLY = 1, O_RDWR = 2, O_NONBLOCK = 04000, O_ASYNC = 020000, O_CLOEXEC = 02000000,
    F_SETFL = 4, F_SETOWN = 8, SEEK_END = 2, SIG_BLOCK = 0, SIGTERM = 15, SIGIO = 29, ENOENT = 2, EAGAIN = 11, EROFS = 30
};
enum {
    RNDRESEEDCRNG = 0x5207, GIFNAME = 0x8910, GIFFLAGS = 0x8913, SIFFLAGS = 0x8914, SIFHWADDR = 0x8924,
    GIFHWADDR = 0x8927, SIFADDR = 0x8916, SIFNETMASK = 0x891c, ADDRT = 0x890b, RTF_UP = 1, RTF_GATEWAY = 2,
    IFF_UP = 1, AF_INET = 2, SOCK_DGRAM = 2, CLOEXEC_SOCKET = 02000000
};
#define PORTS "/sys/class/virtio-ports"
#define SSH_PID "/run/sshd.pid"
#define SSH_ENDED "/run/sshd.reborn"

enum { LINE = 2048, WORDS = 64, NONCE = 32, MAC = 6, NAME = 16, FEW = 16 };

struct port { char name[NAME]; unsigned short family; unsigned char mac[MAC]; char rest[16]; };
struct index { char name[NAME]; int index; char rest[20]; };
struct flags { char name[NAME]; short flags; char rest[22]; };
struct inet { unsigned short family, port; unsigned char address[4]; char rest[8]; };
struct address { char name[NAME]; struct inet inet; char rest[8]; };
struct route { /* struct rtentry of linux/route.h */
    long rest1;
    struct inet target, router, mask;
    unsigned short flags, rest2;
    long rest3, rest4;
    short metric;
    char *name;
    unsigned long rest5[3];
};
struct time { long seconds, nanoseconds; };

static int port, urandom, socket, devices;
static char line[LINE], done[NONCE], answer[NONCE + 64];
static char *words[WORDS];
static int failed_step, failed_with, unsaid, sets_addresses;

static int same(const char *one, const char *other)
{
    int n = 0;
    while (one[n] && one[n] == other[n]) n++;
    return one[n] == other[n];
}

static char *put(char *to, const char *text)
{
    while (*text) *to++ = *text++;
    *to = 0;
    return to;
}

static char *put_number(char *to, int number)
{
    if (number > 9) to = put_number(to, number / 10);
    *to++ = '0' + number % 10;
    *to = 0;
    return to;
}

/* Read a number of at most 18 digits; -1 where it is none. */
static long number_of(const char *text)
{
    long number = 0;
    int n = 0;
    while (text[n] >= '0' && text[n] <= '9' && n < 19) number = number * 10 + text[n++] - '0';
    return n && n < 19 && !text[n] ? number : -1;
}

/* Note what came of a step; a file that is not there, or can't be written, is nothing to note. */
static void note(int step, long result)
{
    if (result >= 0 || result == -ENOENT || result == -EROFS || failed_step) return;
    failed_step = step;
    failed_with = -result;
}

static void pause(long seconds)
{
    struct time time;
    time.seconds = seconds;
    time.nanoseconds = 0;
    sys(NANOSLEEP, &time, 0);
}

static void reseed(const char *seed)
{
    note('r', sys(WRITE, urandom, seed, length(seed)));
    note('r', sys(IOCTL, urandom, RNDRESEEDCRNG, 0));
}

static void set_clock(long seconds, long nanoseconds)
{
    struct time time;
    time.seconds = seconds;
    time.nanoseconds = nanoseconds;
    note('c', sys(SETTIME, 0, &time));
}

/* Write TEXT and a newline to a file, where it has something else already. */
static void rewrite(const char *path, char *text)
{
    int end = length(text);
    long file = sys(OPEN, path, O_WRONLY | O_CLOEXEC, 0);
    note('f', file);
    if (file < 0) return;
    if (sys(LSEEK, file, 0, SEEK_END) > 0) {
        note('f', sys(FTRUNCATE, file, 0));
        sys(LSEEK, file, 0, 0);
        text[end] = '\n';
        note('f', sys(WRITE, file, text, end + 1));
        text[end] = 0;
    }
    sys(CLOSE, file);
}

/* Read the first line of a file, without its end, into a text of at most SIZE bytes; 0 where there is none. */
static int read_line(const char *path, char *text, int size)
{
    long file = sys(OPEN, path, O_RDONLY | O_CLOEXEC, 0), got;
    int n = 0;
    if (file < 0) return 0;
    got = sys(READ, file, text, size - 1);
    sys(CLOSE, file);
    while (n < got && text[n] != '\n') n++;
    text[n] = 0;
    return n > 0;
}

/* End the ssh server, if the process that its file names is one; who is logged in stays. */
static void end_ssh(void)
{
    static char pid[20], path[40], name[20];
    if (!read_line(SSH_PID, pid, sizeof pid) || number_of(pid) <= 1) return;
    put(put(put(path, "/proc/"), pid), "/comm");
    if (!read_line(path, name, sizeof name) || !same(name, "sshd")) return;
    note('s', sys(RENAME, SSH_PID, SSH_ENDED));
    sys(KILL, number_of(pid), SIGTERM);
}

static int digit(char hex)
{
    if (hex >= '0' && hex <= '9') return hex - '0';
    if (hex >= 'a' && hex <= 'f') return hex - 'a' + 10;
    return -1;
}

/* Read "52:54:00:12:34:56"; returns what follows it, 0 where it is none. */
static const char *read_mac(const char *text, unsigned char *mac)
{
    int i;
    for (i = 0; i < MAC; i++) {
        if (digit(text[0]) < 0 || digit(text[1]) < 0) return 0;
        mac[i] = digit(text[0]) * 16 + digit(text[1]);
        text += 2;
        if (i < MAC - 1 && *text++ != ':') return 0;
    }
    return text;
}

static void set_up(struct port *port, int up)
{
    struct flags wanted;
    int i;
    for (i = 0; i < NAME; i++) wanted.name[i] = port->name[i];
    note('l', sys(IOCTL, socket, GIFFLAGS, &wanted));
    wanted.flags = up ? wanted.flags | IFF_UP : wanted.flags & ~IFF_UP;
    note('l', sys(IOCTL, socket, SIFFLAGS, &wanted));
}

/* Have a network port use its next IPv6 addresses at once: the host knows that nobody else has them, and to
   ask around first takes seconds (RFC 4862, 5.4). What asks for addresses afterwards puts that back. */
static void trust(const char *port)
{
    static char path[64];
    long file;
    put(put(put(path, "/proc/sys/net/ipv6/conf/"), port), "/accept_dad");
    if ((file = sys(OPEN, path, O_WRONLY | O_CLOEXEC, 0)) < 0) return;
    sys(WRITE, file, "0\n", 2);
    sys(CLOSE, file);
}

/* Read "10.0.0.7"; returns what follows it, 0 where it is none. */
static const char *read_inet(const char *text, struct inet *inet)
{
    int i, number;
    for (i = 0; i < 8; i++) inet->rest[i] = 0;
    inet->family = AF_INET;
    inet->port = 0;
    for (i = 0; i < 4; i++) {
        if (*text < '0' || *text > '9') return 0;
        for (number = 0; *text >= '0' && *text <= '9' && number < 256; text++) number = number * 10 + *text - '0';
        if (number > 255 || (i < 3 && *text++ != '.')) return 0;
        inet->address[i] = number;
    }
    return text;
}

/* Set a port's IPv4 address and its way out, told as "=10.0.0.7/24=10.0.0.1"; what is told otherwise is left. */
static void settle(const struct port *port, const char *told)
{
    static struct address new;
    static struct route way;
    int i, bits = 0;
    if (*told++ != '=' || !(told = read_inet(told, &new.inet)) || *told++ != '/') return;
    while (*told >= '0' && *told <= '9' && bits <= 32) bits = bits * 10 + *told++ - '0';
    if (bits < 1 || bits > 32) return;
    for (i = 0; i < NAME; i++) new.name[i] = port->name[i];
    note('a', sys(IOCTL, socket, SIFADDR, &new));
    for (i = 0; i < 4; i++, bits -= 8)
        new.inet.address[i] = bits >= 8 ? 255 : bits > 0 ? 256 - (1 << (8 - bits)) : 0;
    note('a', sys(IOCTL, socket, SIFNETMASK, &new));
    if (*told++ != '=' || !read_inet(told, &way.router)) return;
    way.target.family = way.mask.family = AF_INET;
    way.flags = RTF_UP | RTF_GATEWAY;
    way.name = new.name;
    sys(IOCTL, socket, ADDRT, &way); /* where there is one already, that stays */
}

/* Give a network port the address that belongs to the one it has; returns how many did that, 1 or 0. */
static int readdress(struct port *port, char **pairs, int count, int anew)
{
    unsigned char old[MAC], new[MAC];
    const char *rest;
    int i, k;
    if (sys(IOCTL, socket, GIFHWADDR, port) < 0 || port->family != 1) return 0;
    for (i = 0; i < count; i++) {
        rest = read_mac(pairs[i], old);
        if (!rest || *rest != '=' || !(rest = read_mac(rest + 1, new))) continue;
        for (k = 0; k < MAC && port->mac[k] == old[k]; k++);
        if (k < MAC) continue;
        for (k = 0; k < MAC; k++) port->mac[k] = new[k];
        if (anew) {
            set_up(port, 0);
            trust(port->name);
        }
        note('m', sys(IOCTL, socket, SIFHWADDR, port));
        if (anew) set_up(port, 1);
        if (anew && sets_addresses) settle(port, rest);
        return 1;
    }
    return 0;
}

/* Go through the first network ports by their numbers; returns how many have a new address. A list of
   all takes a copied machine longer than whatever else is done with them. */
static int readdress_few(char **pairs, int count, int anew)
{
    struct index each;
    struct port port;
    int done = 0, i;
    for (each.index = 1; each.index < FEW && done < count; each.index++) {
        if (sys(IOCTL, socket, GIFNAME, &each) < 0) continue;
        for (i = 0; i < NAME; i++) port.name[i] = each.name[i];
        done += readdress(&port, pairs, count, anew);
    }
    return done;
}

/* Go through all network ports: /proc/net/dev has one a line, its name before a colon. */
static void readdress_all(char **pairs, int count, int anew)
{
    static char list[4096];
    struct port port;
    long at = 0, got, i;
    int n = 0, is_name = 1;
    while ((got = sys(PREAD, devices, list, sizeof list, at)) > 0) {
        for (i = 0; i < got; i++) {
            if (list[i] == '\n') {
                n = 0;
                is_name = 1;
            } else if (list[i] == ':' && is_name) {
                while (n < NAME) port.name[n++] = 0;
                readdress(&port, pairs, count, anew);
                is_name = 0;
            } else if (list[i] != ' ') {
                if (n < NAME - 1) port.name[n++] = list[i];
                else is_name = 0;
            }
        }
        at += got;
    }
}

static void reply(const char *nonce)
{
    char *to = put(answer, failed_step ? "error " : "ok ");
    to = put(to, nonce);
    if (failed_step) {
        *to++ = ' ';
        *to++ = failed_step;
        *to++ = ' ';
        to = put_number(to, failed_with);
    }
    *to++ = '\n';
    unsaid = to - answer;
}

/* Send the answer that is due, if there is one; while nobody is connected, it stays due. */
static void say(void)
{
    if (unsaid && sys(WRITE, port, answer, unsaid) != -EAGAIN) unsaid = 0;
}

static void take_name(char *name)
{
    note('h', sys(SETHOSTNAME, name, length(name)));
    rewrite("/etc/hostname", name);
}

/* Take on all that a line says which has so many words. */
static void take_all(int count, long seconds, long nanoseconds)
{
    int anew;
    reseed(words[2]);
    set_clock(seconds, nanoseconds);
    if (count <= 5) return;
    take_name(words[5]);
    rewrite("/etc/machine-id", words[6]);
    end_ssh();
    anew = same(words[7], "anew");
    if (readdress_few(words + 8, count - 8, anew) < count - 8)
        readdress_all(words + 8, count - 8, anew);
}

/* Do what a line says, and answer it. */
static void obey(void)
{
    int count = 0, is_name;
    long seconds, nanoseconds;
    char *at = line;
    while (*at && count < WORDS) {
        words[count++] = at;
        while (*at && *at != ' ') at++;
        if (*at) *at++ = 0;
    }
    is_name = count == 3 && same(words[0], "serai1-name");
    if (*at || count < 3 || length(words[1]) >= NONCE) return;
    if (!is_name) {
        if (count < 5 || (count > 5 && count < 8) || !same(words[0], "serai1")) return;
        seconds = number_of(words[3]);
        nanoseconds = number_of(words[4]);
        if (seconds < 0 || nanoseconds < 0) return;
        if (count > 5 && !same(words[7], "anew") && !same(words[7], "keep")) return;
    }
    if (!same(words[1], done)) {
        failed_step = 0;
        if (is_name) take_name(words[2]);
        else take_all(count, seconds, nanoseconds);
        put(done, words[1]);
    }
    reply(words[1]);
}

/* Tell whether a port of that name in /sys is ours. */
static int is_ours(const char *port)
{
    static char path[128], name[32];
    long file, got;
    put(put(put(path, PORTS "/"), port), "/name");
    if ((file = sys(OPEN, path, O_RDONLY | O_CLOEXEC, 0)) < 0) return 0;
    got = sys(READ, file, name, sizeof name - 1);
    sys(CLOSE, file);
    name[got > 0 ? got : 0] = 0;
    return same(name, "org.serai.birth\n");
}

/* Open our port, wherever the bus has put it; negative where there is none (yet). */
static long open_port(void)
{
    static char list[2048], path[64];
    long folder = sys(OPEN, PORTS, O_RDONLY | O_CLOEXEC, 0), got, found = -1;
    char *entry;
    if (folder < 0) return -1;
    while (found < 0 && (got = sys(GETDENTS, folder, list, sizeof list)) > 0)
        for (entry = list; found < 0 && entry < list + got; entry += *(unsigned short *)(entry + 16))
            if (length(entry + 19) < 32 && is_ours(entry + 19)) {
                put(put(path, "/dev/"), entry + 19);
                found = sys(OPEN, path, O_RDWR | O_NONBLOCK | O_CLOEXEC, 0);
                break;
            }
    sys(CLOSE, folder);
    return found;
}

/* Wait at the port for good. It says by SIGIO that a line has come, or that somebody has (dis)connected:
   while nobody is, a read or a poll would return at once, and a write would wait. A line may come before
   the kernel has heard who it is from. */
static void stay(void)
{
    unsigned long mask = 1UL << (SIGIO - 1);
    int n = 0, is_too_long = 0;
    char byte;
    long got, i;
    static char chunk[LINE];
    sys(SIGPROCMASK, SIG_BLOCK, &mask, 0, 8);
    while ((port = open_port()) < 0) pause(1);
    socket = sys(SOCKET, AF_INET, SOCK_DGRAM | CLOEXEC_SOCKET, 0);
    devices = sys(OPEN, "/proc/self/net/dev", O_RDONLY | O_CLOEXEC, 0);
    sys(FCNTL, port, F_SETOWN, sys(GETPID));
    sys(FCNTL, port, F_SETFL, O_NONBLOCK | O_ASYNC);
    for (;;) {
        got = sys(READ, port, chunk, sizeof chunk);
        say();
        if (got <= 0) sys(SIGTIMEDWAIT, &mask, 0, 0, 8);
        for (i = 0; i < got; i++) {
            byte = chunk[i];
            if (byte == '\n') {
                line[n] = 0;
                if (!is_too_long) obey();
                say();
                n = is_too_long = 0;
            } else if (n < LINE - 1) line[n++] = byte;
            else is_too_long = 1;
        }
    }
}

void run(long *stack)
{
    char **argv = (char **)(stack + 1);
    int is_reseed = length(argv[0]) >= 6 && same(argv[0] + length(argv[0]) - 6, "reseed");
    urandom = sys(OPEN, "/dev/urandom", O_WRONLY | O_CLOEXEC, 0);
    sets_addresses = !is_reseed && argv[1] && same(argv[1], "-a");
    if (!is_reseed) stay();
    if (!argv[1] || urandom < 0) sys(EXIT, 1);
    reseed(argv[1]);
    sys(EXIT, failed_step != 0);
}
