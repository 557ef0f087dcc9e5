/*
 * openloop sends requests that are due at even distances, whether or not earlier ones were answered, over keep-alive
 * connections, and says how long each took from the moment it was due.
 *
 * usage: openloop PORT REQUEST_FILE BODY_BYTES CONNECTIONS REQUESTS_PER_SECOND SECONDS
 *
 * A request that comes due while every connection waits for an answer is sent as soon as one does not. One thread, one
 * epoll instance; it sleeps until the next request is due or an answer comes. Output: the number of requests, then
 * microseconds: p50, p99 and p99.9 of due to answered, p99 of due to sent, and the median of the p99 of every tenth of a
 * second, which those few do not move in which the machine stood still.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { HEAD = 16384, LEAD = 10 * 1000 * 1000, PATIENCE = 10 };

struct connection {
	int fd;
	int64_t due;
	size_t number;        /* of the request among all */
	size_t have;          /* bytes of the answer so far */
	size_t want;          /* of the whole answer; 0 until its head is complete */
	char head[HEAD];
};

static void fail(const char *what) {
	fprintf(stderr, "openloop: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void wrong(const char *what) {
	fprintf(stderr, "openloop: %s\n", what);
	exit(1);
}

static int64_t now(void) {
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static int order(const void *a, const void *b) {
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
	return (x > y) - (x < y);
}

static uint32_t quantile(const uint32_t *sorted, size_t n, double share) {
	return sorted[(size_t)((n - 1) * share)];
}

static char request[1 << 20], sink[1 << 20];
static size_t request_bytes, body_bytes;

static void ask(struct connection *c, size_t number, int64_t due) {
	c->number = number;
	c->due = due;
	c->have = c->want = 0;
	for (size_t done = 0; done < request_bytes;) {
		ssize_t n = send(c->fd, request + done, request_bytes - done, MSG_NOSIGNAL);
		if (n < 0 && errno == EAGAIN) continue; /* a request fits into the socket: this is rare and short */
		if (n < 0) fail("send");
		done += n;
	}
}

/* Reads what there is. Returns 1 when the answer is complete. */
static int hear(struct connection *c) {
	for (;;) {
		int in_head = c->want == 0;
		char *to = in_head ? c->head + c->have : sink;
		ssize_t n = recv(c->fd, to, in_head ? HEAD - 1 - c->have : sizeof sink, 0);
		if (n < 0 && errno == EAGAIN) return 0;
		if (n < 0) fail("recv");
		if (n == 0) wrong("a connection was closed");
		c->have += n;
		if (in_head) {
			c->head[c->have] = 0;
			char *end = strstr(c->head, "\r\n\r\n");
			if (end == NULL) {
				if (c->have == HEAD - 1) wrong("a head without an end");
				continue;
			}
			if (strncmp(c->head, "HTTP/1.1 200", 12) != 0) wrong("an answer is not 200");
			c->want = end + 4 - c->head + body_bytes;
		}
		if (c->have > c->want) wrong("an answer is too long");
		if (c->have == c->want) return 1;
	}
}

int main(int argc, char **argv) {
	if (argc != 7) wrong("usage: openloop PORT REQUEST_FILE BODY_BYTES CONNECTIONS REQUESTS_PER_SECOND SECONDS");
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[1]))};
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	FILE *f = fopen(argv[2], "r");
	if (f == NULL) fail(argv[2]);
	request_bytes = fread(request, 1, sizeof request, f);
	body_bytes = strtoul(argv[3], NULL, 10);
	int connections = atoi(argv[4]);
	double rate = atof(argv[5]);
	size_t total = rate * atof(argv[6]), sent = 0, answered = 0;
	if (connections < 1 || total < 1) wrong("nothing to do");

	uint32_t *took = calloc(total, sizeof *took), *late = calloc(total, sizeof *late); /* tenths of a microsecond */
	struct connection **idle = calloc(connections, sizeof *idle);
	struct epoll_event *events = calloc(connections, sizeof *events);
	if (!took || !late || !idle || !events) fail("calloc");
	int ep = epoll_create1(0), free_ones = 0, on = 1;
	if (ep < 0) fail("epoll_create");
	for (int i = 0; i < connections; i++) {
		struct connection *c = calloc(1, sizeof *c);
		if (!c || (c->fd = socket(AF_INET, SOCK_STREAM, 0)) < 0) fail("socket");
		if (connect(c->fd, (struct sockaddr *)&address, sizeof address) < 0) fail("connect");
		setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
		fcntl(c->fd, F_SETFL, O_NONBLOCK);
		struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.ptr = c};
		if (epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &ev) < 0) fail("epoll_ctl");
		idle[free_ones++] = c;
	}
	int64_t start = now() + LEAD, last = start + (int64_t)((atof(argv[6]) + PATIENCE) * 1e9);
	while (answered < total) {
		int64_t t = now();
		for (; sent < total && free_ones > 0; sent++) {
			int64_t due = start + (int64_t)(sent * 1e9 / rate);
			if (due > t) break;
			late[sent] = (t - due) / 100;
			ask(idle[--free_ones], sent, due);
			t = now();
		}
		int64_t until = last;
		if (sent < total && free_ones > 0) until = start + (int64_t)(sent * 1e9 / rate);
		int64_t wait = until > t ? until - t : 0;
		struct timespec timeout = {wait / 1000000000, wait % 1000000000};
		int n = epoll_pwait2(ep, events, connections, &timeout, NULL);
		if (n < 0 && errno != EINTR) fail("epoll_pwait2");
		if (n <= 0 && now() > last) wrong("answers are missing");
		for (int i = 0; i < n; i++) {
			struct connection *c = events[i].data.ptr;
			if (!hear(c)) continue;
			took[c->number] = (now() - c->due) / 100;
			answered++;
			idle[free_ones++] = c;
		}
	}
	size_t tenth = rate / 10, tenths = tenth ? total / tenth : 0;
	uint32_t *usual = calloc(tenths + 1, sizeof *usual);
	if (!usual) fail("calloc");
	for (size_t i = 0; i < tenths; i++) {
		qsort(took + i * tenth, tenth, sizeof *took, order);
		usual[i] = quantile(took + i * tenth, tenth, 0.99);
	}
	qsort(usual, tenths, sizeof *usual, order);
	qsort(took, total, sizeof *took, order);
	qsort(late, total, sizeof *late, order);
	printf("%zu %.1f %.1f %.1f %.1f %.1f\n", total, quantile(took, total, 0.5) / 10.0,
		quantile(took, total, 0.99) / 10.0, quantile(took, total, 0.999) / 10.0, quantile(late, total, 0.99) / 10.0,
		tenths ? quantile(usual, tenths, 0.5) / 10.0 : 0.0);
	return 0;
}
