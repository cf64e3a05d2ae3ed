/* Between a rank and its TCP sockets, by LD_PRELOAD: what a stranger on the wire could do.
   WIRE_KEEP=FILE    append all that is sent to it
   WIRE_FLIP=N       change a bit of byte N of what is sent by send()
   WIRE_AGAIN=N      send the piece with byte N of that twice */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* Bytes that send() has passed on. */
static ssize_t passed;

static int by_tcp(int fd)
{
    int domain = AF_UNIX;
    socklen_t len = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain != AF_UNIX;
}

static void keep(const void *bytes, size_t n)
{
    const char *path = getenv("WIRE_KEEP");
    int file = path && n ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    if (file < 0) return;
    if (write(file, bytes, n) != (ssize_t)n) abort();
    close(file);
}

/* The place that a variable says, if it is in the next n bytes; else -1. */
static ssize_t place(const char *name, size_t n)
{
    const char *text = getenv(name);
    ssize_t at = text ? atol(text) - passed : -1;
    return at < (ssize_t)n ? at : -1;
}

ssize_t send(int fd, const void *bytes, size_t n, int flags)
{
    ssize_t (*real)(int, const void *, size_t, int) =
        (ssize_t (*)(int, const void *, size_t, int))dlsym(RTLD_NEXT, "send");
    if (!by_tcp(fd)) return real(fd, bytes, n, flags);
    ssize_t flip = place("WIRE_FLIP", n), again = place("WIRE_AGAIN", n), sent;
    if (flip >= 0) {
        unsigned char *changed = malloc(n);
        memcpy(changed, bytes, n);
        changed[flip] ^= 1;
        sent = real(fd, changed, n, flags);
        free(changed);
    } else {
        sent = real(fd, bytes, n, flags);
    }
    if (sent > 0) {
        keep(bytes, (size_t)sent);
        passed += sent;
        if (again >= 0 && again < sent && real(fd, bytes, (size_t)sent, flags) != sent) abort();
    }
    return sent;
}

ssize_t sendmsg(int fd, const struct msghdr *m, int flags)
{
    ssize_t (*real)(int, const struct msghdr *, int) =
        (ssize_t (*)(int, const struct msghdr *, int))dlsym(RTLD_NEXT, "sendmsg");
    ssize_t sent = real(fd, m, flags), left = sent;
    for (size_t i = 0; left > 0 && by_tcp(fd) && i < m->msg_iovlen; i++) {
        size_t part = m->msg_iov[i].iov_len < (size_t)left ? m->msg_iov[i].iov_len : (size_t)left;
        keep(m->msg_iov[i].iov_base, part);
        left -= (ssize_t)part;
    }
    return sent;
}
