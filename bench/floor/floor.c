/*
 * floor copies bytes between each client and an upstream connection of its own, and knows nothing of HTTP.
 * What a proxy costs above it is the price of being an HTTP proxy; below it the kernel's loopback leaves little room.
 *
 * usage: floor PORT UPSTREAM_PORT THREADS
 *
 * Per thread one epoll instance and one listening socket (SO_REUSEPORT), edge-triggered, registered once. A read
 * that returns less than asked for means the socket is drained, so a message costs one recv and one send a side.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { BUFFER = 16384 };

struct side {
	int fd;
	int readable, eof, dead;
	struct side *peer;
	struct side *next;      /* in the list of sides to free after a batch of events */
	char *left;             /* read from this side, not yet taken by the peer */
	size_t left_len;
};

static int port, upstream_port;

static void die(const char *what) {
	perror(what);
	exit(1);
}

static struct sockaddr_in loopback(int p) {
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(p)};
	a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	return a;
}

static struct side *watch(int ep, int fd) {
	struct side *s = calloc(1, sizeof *s);
	if (!s) die("calloc");
	s->fd = fd;
	int on = 1;
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
	struct epoll_event ev = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, .data.ptr = s};
	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev) < 0) die("epoll_ctl");
	return s;
}

/* Sends n bytes to s; what it does not take is kept with the side it came from. Returns -1 when s is broken. */
static int put(struct side *from, struct side *s, const char *b, size_t n) {
	while (n > 0) {
		ssize_t k = send(s->fd, b, n, MSG_NOSIGNAL);
		if (k < 0) {
			if (errno != EAGAIN) return -1;
			char *copy = malloc(n);
			if (!copy) die("malloc");
			memcpy(copy, b, n);
			free(from->left);
			from->left = copy;
			from->left_len = n;
			return 0;
		}
		b += k;
		n -= k;
	}
	free(from->left);
	from->left = NULL;
	from->left_len = 0;
	return 0;
}

/* Moves what can be moved from s to its peer. Returns -1 when the pair is finished. */
static int relay(struct side *s) {
	char buf[BUFFER];
	if (s->left) {
		char *b = s->left;
		size_t n = s->left_len;
		s->left = NULL;
		int r = put(s, s->peer, b, n);
		free(b);
		if (r < 0 || s->left) return r;
	}
	while (s->readable) {
		ssize_t k = recv(s->fd, buf, sizeof buf, 0);
		if (k == 0) return -1;
		if (k < 0) {
			if (errno != EAGAIN) return -1;
			s->readable = 0;
			break;
		}
		if ((size_t)k < sizeof buf && !s->eof) s->readable = 0;
		if (put(s, s->peer, buf, k) < 0) return -1;
		if (s->left) return 0;
	}
	return 0;
}

static void *loop(void *unused) {
	(void)unused;
	int ep = epoll_create1(EPOLL_CLOEXEC);
	int l = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	int on = 1;
	if (ep < 0 || l < 0) die("socket");
	setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	setsockopt(l, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on);
	struct sockaddr_in a = loopback(port), up = loopback(upstream_port);
	if (bind(l, (struct sockaddr *)&a, sizeof a) < 0 || listen(l, 4096) < 0) die("listen");
	struct epoll_event ev = {.events = EPOLLIN, .data.ptr = NULL};
	if (epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev) < 0) die("epoll_ctl");

	struct epoll_event evs[256];
	for (;;) {
		int n = epoll_wait(ep, evs, 256, -1);
		struct side *finished = NULL;
		for (int i = 0; i < n; i++) {
			struct side *s = evs[i].data.ptr;
			if (!s) {
				int fd = accept4(l, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
				if (fd < 0) continue;
				int u = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
				if (u < 0 || connect(u, (struct sockaddr *)&up, sizeof up) < 0) {
					close(fd);
					if (u >= 0) close(u);
					continue;
				}
				fcntl(u, F_SETFL, O_NONBLOCK); /* only now: a connection on loopback is there at once */
				struct side *c = watch(ep, fd), *b = watch(ep, u);
				c->peer = b;
				b->peer = c;
				continue;
			}
			if (s->dead) continue;
			if (evs[i].events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR)) s->readable = 1;
			if (evs[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) s->eof = 1;
			int broken = 0;
			if (s->readable) broken = relay(s) < 0;
			if (!broken && (evs[i].events & EPOLLOUT) && s->peer->left) broken = relay(s->peer) < 0;
			if (broken) {
				struct side *p = s->peer;
				close(s->fd);
				close(p->fd);
				s->dead = p->dead = 1;
				s->next = p;
				p->next = finished;
				finished = s;
			}
		}
		while (finished) {
			struct side *s = finished;
			finished = s->next;
			free(s->left);
			free(s);
		}
	}
	return NULL;
}

int main(int argc, char **argv) {
	if (argc != 4) {
		fprintf(stderr, "usage: floor PORT UPSTREAM_PORT THREADS\n");
		return 64;
	}
	port = atoi(argv[1]);
	upstream_port = atoi(argv[2]);
	signal(SIGPIPE, SIG_IGN);
	for (int i = 1; i < atoi(argv[3]); i++) {
		pthread_t t;
		if (pthread_create(&t, NULL, loop, NULL)) die("pthread_create");
	}
	loop(NULL);
}
