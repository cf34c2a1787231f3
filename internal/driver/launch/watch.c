#define _GNU_SOURCE
#include "watch.h"
#include "launch.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

struct watched tutti_watched;

static struct watched *const it = &tutti_watched;
static int log_file = -1;
static off_t log_size;

int tutti_time(char *to, size_t room, const struct timespec *at)
{
	struct tm t;
	gmtime_r(&at->tv_sec, &t);
	return snprintf(to, room, "%04d-%02d-%02dT%02d:%02d:%02d.%09ldZ", t.tm_year + 1900, t.tm_mon + 1, t.tm_mday, t.tm_hour,
			t.tm_min, t.tm_sec, at->tv_nsec);
}

static void complain(const char *what) { dprintf(2, "%s: %s\n", what, strerror(errno)); }

// flush appends text to the log. What cannot be written is lost, as on a full disk, which is told once, and the process goes on.
static void flush(const char *text, size_t size)
{
	static int told;
	while (size > 0) {
		ssize_t n = write(log_file, text, size);
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0) {
			if (!told++)
				complain("write log");
			return;
		}
		log_size += n;
		text += n;
		size -= n;
	}
}

#define HEAD 40 // of an entry: the time, the stream, whether it is whole, and a space after each

// next_entry returns the size of the next entry's text, and whether a newline follows; below zero: what is there is no entry yet.
static ssize_t next_entry(const char *from, size_t size, int over, int *whole)
{
	const char *end = memchr(from, '\n', size < LONGEST_LINE ? size : LONGEST_LINE);
	*whole = end != NULL;
	if (end)
		return end - from;
	if (size >= LONGEST_LINE)
		return LONGEST_LINE;
	return over && size > 0 ? (ssize_t)size : -1;
}

// keep writes the whole lines of what a stream has printed, and when it is over the rest. It returns 0, and does nothing, where
// the log has no room for them.
static int keep(const struct watch *w, int n, int over)
{
	static char out[64 << 10];
	struct stream *s = &it->stream[n];
	if (w->log_room < 0) {
		s->size = 0;
		return 1;
	}
	int whole;
	off_t needed = 0;
	ssize_t length;
	for (size_t at = 0; (length = next_entry(s->unkept + at, s->size - at, over, &whole)) >= 0; at += length + whole)
		needed += HEAD + length + 1;
	if (log_size + needed > w->log_room)
		return 0;
	size_t at = 0, filled = 0;
	for (; (length = next_entry(s->unkept + at, s->size - at, over, &whole)) >= 0; at += length + whole) {
		if (filled + HEAD + length + 1 > sizeof out) {
			flush(out, filled);
			filled = 0;
		}
		struct timespec now;
		clock_gettime(CLOCK_REALTIME, &now);
		filled += tutti_time(out + filled, sizeof out - filled, &now);
		memcpy(out + filled, n == STDERR ? " stderr " : " stdout ", 8);
		memcpy(out + filled + 8, whole ? "F " : "P ", 2);
		memcpy(out + filled + 10, s->unkept + at, length);
		filled += 10 + length;
		out[filled++] = '\n';
	}
	flush(out, filled);
	memmove(s->unkept, s->unkept + at, s->size - at);
	s->size -= at;
	return 1;
}

// remember notes what was printed in the first moments.
static void remember(int n, const char *text, size_t size)
{
	if (it->pieces < 0)
		return;
	struct timespec now;
	clock_gettime(CLOCK_REALTIME, &now);
	if (it->pieces == EARLY_PIECES || it->early_size + size > EARLY_BYTES || now.tv_sec - it->began.tv_sec > EARLY_SECONDS) {
		it->pieces = -1;
		return;
	}
	it->piece[it->pieces++] = (struct piece){n, size};
	memcpy(it->early + it->early_size, text, size);
	it->early_size += size;
}

// take reads what a stream has printed. It returns 0 where the log has no room for that.
static int take(const struct watch *w, int n)
{
	struct stream *s = &it->stream[n];
	ssize_t got = read(s->fd, s->unkept + s->size, CHUNK);
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return 1;
	if (got <= 0) {
		close(s->fd);
		s->fd = -1;
		return keep(w, n, 1);
	}
	remember(n, s->unkept + s->size, got);
	s->size += got;
	return keep(w, n, 0);
}

static void hang_up(int i)
{
	close(it->connection[i].fd);
	it->connection[i] = it->connection[--it->connections];
}

static void say_done(const struct watch *w, int i)
{
	send(it->connection[i].fd, w->done, w->done_size, MSG_NOSIGNAL | MSG_DONTWAIT);
	hang_up(i);
}

// signal_of reads a number of CBOR after the beginning of a request for a signal; below zero: it is another request.
static int signal_of(const struct watch *w, const unsigned char *request, ssize_t size)
{
	ssize_t at = w->signal_size;
	if (size <= at || memcmp(request, w->signal, at))
		return -1;
	if (size == at + 1 && request[at] < 24)
		return request[at];
	return size == at + 2 && request[at] == 24 && request[at + 1] <= 64 ? request[at + 1] : -1;
}

// attend does what is asked for on a connection. It returns 0, and has read nothing, where that takes more than is known here.
static int attend(const struct watch *w, int i)
{
	struct connection *c = &it->connection[i];
	unsigned char request[128];
	ssize_t n = recv(c->fd, request, sizeof request, MSG_PEEK | MSG_DONTWAIT);
	if (n < 0 && (errno == EAGAIN || errno == EINTR))
		return 1;
	if (n <= 0 || c->waits) {
		hang_up(i);
		return 1;
	}
	int number = signal_of(w, request, n);
	int kills = n == w->kill_size && !memcmp(request, w->kill, n);
	if (number < 0 && !kills && (n != w->wait_size || memcmp(request, w->wait, n)))
		return 0;
	recv(c->fd, request, n, MSG_DONTWAIT);
	// It was not waited for yet: its ID is its own.
	if (number >= 0) {
		kill(it->pid, number);
		say_done(w, i);
		return 1;
	}
	if (kills)
		kill(it->pid, SIGKILL);
	c->waits = 1;
	return 1;
}

static int oom_killed(const char *path)
{
	char text[1024];
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	ssize_t n = read(fd, text, sizeof text - 1);
	close(fd);
	text[n < 0 ? 0 : n] = 0;
	for (char *line = text; line; line = strchr(line, '\n')) {
		line += *line == '\n';
		if (!strncmp(line, "oom_kill ", 9))
			return atoll(line + 9) > 0;
	}
	return 0;
}

static void remove_group(const char *path)
{
	for (useconds_t pause = 1000; rmdir(path) && errno != ENOENT; pause *= 2) {
		if (errno != EBUSY || pause > 200000) {
			complain("free what the task held");
			return;
		}
		usleep(pause); // what ran in it is about to vanish
	}
}

static void record_end(const struct watch *w, int code, int oom, const struct timespec *finished)
{
	int fd = open(w->temporary, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
	char from[40], to[40];
	tutti_time(from, sizeof from, &it->began);
	tutti_time(to, sizeof to, finished);
	int ok = fd >= 0 && dprintf(fd, "%s,\"started\":\"%s\",\"finished\":\"%s\",\"exitCode\":%d%s}", w->ended, from, to, code, oom ? ",\"oom\":true" : "") > 0;
	if (fd >= 0)
		ok = close(fd) == 0 && ok;
	if (!ok || rename(w->temporary, w->record))
		complain("record status");
}

// drain takes all that is still to come of the output, if it comes soon: a descriptor that left the process keeps a pipe open. It
// returns 0 where the log has no room for it.
static int drain(const struct watch *w)
{
	struct timespec now, until;
	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_sec += 5;
	for (;;) {
		struct pollfd p[STREAMS];
		int open = 0;
		for (int n = 0; n < STREAMS; n++) {
			p[n] = (struct pollfd){.fd = it->stream[n].fd, .events = POLLIN};
			open |= p[n].fd >= 0;
		}
		clock_gettime(CLOCK_MONOTONIC, &now);
		int64_t left = (until.tv_sec - now.tv_sec) * 1000 + (until.tv_nsec - now.tv_nsec) / 1000000;
		if (!open || left <= 0)
			break;
		if (poll(p, STREAMS, left) < 0 && errno != EINTR)
			break;
		for (int n = 0; n < STREAMS; n++)
			if (p[n].fd >= 0 && p[n].revents && !take(w, n))
				return 0;
	}
	for (int n = 0; n < STREAMS; n++)
		if (it->stream[n].fd >= 0 && !keep(w, n, 1))
			return 0;
	return 1;
}

// finish is the end of this process with the one that it watches. It returns where more is to be done than is known here.
static void finish(const struct watch *w)
{
	struct timespec finished;
	while (waitpid(it->pid, &it->status, 0) < 0)
		if (errno != EINTR)
			return;
	it->ended = 1;
	clock_gettime(CLOCK_REALTIME, &finished);
	if (!drain(w))
		return;
	struct stat st;
	for (const char *g = w->groups; *g; g += strlen(g) + 1)
		if (stat(g, &st) == 0 && st.st_nlink > 2) // it has made others in there
			return;
	int code = WIFSIGNALED(it->status) ? 128 + WTERMSIG(it->status) : WEXITSTATUS(it->status);
	int oom = code && *w->oom && oom_killed(w->oom);
	for (const char *g = w->groups; *g; g += strlen(g) + 1)
		remove_group(g);
	record_end(w, code, oom, &finished);
	for (int i = it->connections - 1; i >= 0; i--)
		if (it->connection[i].waits)
			say_done(w, i);
	unlink(w->socket);
	_exit(0);
}

static int set_up(const struct watch *w)
{
	struct stat st;
	log_file = open(w->log, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
	if (log_file < 0 || fstat(log_file, &st))
		return -1;
	log_size = st.st_size;
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	if (strlen(w->socket) >= sizeof address.sun_path)
		return -1;
	strcpy(address.sun_path, w->socket);
	unlink(w->socket);
	it->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (it->listener < 0 || bind(it->listener, (struct sockaddr *)&address, sizeof address) || listen(it->listener, SOMAXCONN))
		return -1;
	for (int n = 0; n < STREAMS; n++) {
		it->stream[n].fd = OUTPUT_FILES + n;
		if (fcntl(OUTPUT_FILES + n, F_SETFL, O_NONBLOCK))
			return -1;
	}
	return syscall(SYS_pidfd_open, it->pid, 0);
}

void tutti_watch(const struct watch *w)
{
	it->listener = -1;
	int child = set_up(w);
	if (child < 0) { // who goes on tries it again, and tells why it cannot
		close(it->listener);
		close(log_file);
		return;
	}
	it->on = 1;
	if (write(ANSWER_FILE, "ok", 2) < 0)
		complain("say that the task runs"); // the agent has gone, and the next one will see
	close(ANSWER_FILE);
	int more = 0;
	while (!more) {
		enum { CHILD, LISTENER, FIRST_STREAM, FIRST_CONNECTION = FIRST_STREAM + STREAMS };
		struct pollfd p[FIRST_CONNECTION + CONNECTIONS] = {
				[CHILD] = {.fd = child, .events = POLLIN},
				[LISTENER] = {.fd = it->listener, .events = POLLIN},
		};
		for (int n = 0; n < STREAMS; n++)
			p[FIRST_STREAM + n] = (struct pollfd){.fd = it->stream[n].fd, .events = POLLIN};
		int connections = it->connections;
		for (int i = 0; i < connections; i++)
			p[FIRST_CONNECTION + i] = (struct pollfd){.fd = it->connection[i].fd, .events = POLLIN};
		if (poll(p, FIRST_CONNECTION + connections, -1) < 0) {
			more = errno != EINTR;
			continue;
		}
		for (int n = 0; n < STREAMS; n++)
			more |= p[FIRST_STREAM + n].revents && !take(w, n);
		for (int i = connections - 1; i >= 0; i--) // from the last: one that hangs up leaves its place to that
			more |= p[FIRST_CONNECTION + i].revents && !attend(w, i);
		if (p[LISTENER].revents) {
			int fd = accept4(it->listener, NULL, NULL, SOCK_CLOEXEC);
			if (fd >= 0)
				it->connection[it->connections++] = (struct connection){.fd = fd};
			more |= fd < 0 && errno != EAGAIN && errno != EINTR && errno != ECONNABORTED;
			more |= it->connections == CONNECTIONS;
		}
		if (p[CHILD].revents && !more) {
			finish(w);
			more = 1;
		}
	}
	close(child);
	close(log_file);
}
