/* names: asks several name servers at once, and says what the one says that knows most.

   A machine in two networks has a name server in each, and each knows the names of its own network. Who is
   told of both in resolv.conf asks the first, and takes its "no such name" for an answer (man 5 resolv.conf).
   This one is told of all of them in SERVERS, an IPv4 address a line, which it reads for each question. It waits
   at 127.0.0.1, UDP port 53; where another does so already, it ends. Messages are those of RFC 1035. */

#include "bare.h"

enum {
    READ = 0, WRITE = 1, OPEN = 2, CLOSE = 3, POLL = 7, SIGACTION = 13, SOCKET = 41, CONNECT = 42, SENDTO = 44,
    RECVFROM = 45, BIND = 49, FORK = 57, EXIT = 60
};
enum { O_RDONLY = 0, AF_INET = 2, SOCK_DGRAM = 2, POLLIN = 1, SIGCHLD = 17, SIG_IGN = 1 };
#define SERVERS "/run/names"

enum { FEW = 8, MESSAGE = 4096, HEADER = 12, PATIENCE_MS = 2000 };
enum { NOTHING, REFUSED, NO_SUCH_NAME, NO_SUCH_RECORD, FOUND };

struct address { unsigned short family; unsigned char port[2], ip[4], rest[8]; };
struct asked { int socket; short wanted, got; };
struct action { long handler; unsigned long flags, restorer, mask; };

static unsigned char question[MESSAGE], replies[2][MESSAGE];
static struct address client, servers[FEW];
static struct asked asked[FEW];
static struct action ignore;

static void set_ip(struct address *address, int a, int b, int c, int d)
{
    address->family = AF_INET;
    address->port[1] = 53;
    address->ip[0] = a;
    address->ip[1] = b;
    address->ip[2] = c;
    address->ip[3] = d;
}

/* Read whom to ask; returns how many there are. */
static int read_servers(void)
{
    static char text[512];
    long file = sys(OPEN, SERVERS, O_RDONLY, 0), got, i;
    int part[4], at = 0, count = 0;
    if (file < 0) return 0;
    got = sys(READ, file, text, sizeof text);
    sys(CLOSE, file);
    part[0] = 0;
    for (i = 0; i < got && count < FEW; i++) {
        if (text[i] >= '0' && text[i] <= '9') part[at] = part[at] * 10 + text[i] - '0';
        else if (text[i] == '.' && at < 3) part[++at] = 0;
        else {
            if (at == 3) set_ip(&servers[count++], part[0], part[1], part[2], part[3]);
            part[at = 0] = 0;
        }
    }
    return count;
}

/* Put the question to all; returns how many were asked. */
static int ask(int size)
{
    int count = read_servers(), i;
    for (i = 0; i < count; i++) {
        asked[i].socket = sys(SOCKET, AF_INET, SOCK_DGRAM, 0);
        asked[i].wanted = POLLIN;
        sys(CONNECT, asked[i].socket, &servers[i], sizeof servers[i]);
        sys(WRITE, asked[i].socket, question, size);
    }
    return count;
}

/* Tell how much a reply says. */
static int worth(const unsigned char *reply)
{
    int code = reply[3] & 15;
    if (code == 3) return NO_SUCH_NAME;
    if (code) return REFUSED;
    return reply[6] || reply[7] ? FOUND : NO_SUCH_RECORD;
}

/* Ask, and give the best reply to whoever wants to know, as soon as it is known to be the best. */
static void answer(int socket, int size)
{
    int count = ask(size), left = count, best = NOTHING, next = 0, i;
    long got, best_size = 0;
    unsigned char *reply;
    while (left && best < FOUND && sys(POLL, asked, count, PATIENCE_MS) > 0)
        for (i = 0; i < count; i++) {
            if (!asked[i].got) continue;
            reply = replies[next];
            got = sys(READ, asked[i].socket, reply, MESSAGE);
            if (got >= 2 && (reply[0] != question[0] || reply[1] != question[1])) continue;
            asked[i].socket = -1; /* poll passes it over; it is closed with all else at the end */
            left--;
            if (got < HEADER || worth(reply) <= best) continue;
            best = worth(reply);
            best_size = got;
            next = !next;
        }
    if (best) sys(SENDTO, socket, replies[!next], best_size, 0, &client, sizeof client);
}

void run(long *stack)
{
    static struct address here;
    int socket = sys(SOCKET, AF_INET, SOCK_DGRAM, 0), size;
    long got;
    set_ip(&here, 127, 0, 0, 1);
    if (sys(BIND, socket, &here, sizeof here) < 0) sys(EXIT, 1);
    ignore.handler = SIG_IGN; /* nobody has to wait for those that answer */
    sys(SIGACTION, SIGCHLD, &ignore, 0, 8);
    for (;;) {
        size = sizeof client;
        got = sys(RECVFROM, socket, question, MESSAGE, 0, &client, &size);
        if (got < HEADER || sys(FORK)) continue;
        answer(socket, got);
        sys(EXIT, 0);
    }
}
