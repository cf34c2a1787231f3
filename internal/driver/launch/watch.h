#ifndef TUTTI_WATCH_H
#define TUTTI_WATCH_H

#include <stdint.h>
#include <sys/types.h>
#include <time.h>

// Of all that is kept of a process's output: lines that are longer come in parts.
#define LONGEST_LINE (16 << 10)
#define CHUNK (32 << 10)

// What a process is remembered to have printed in its first moments.
#define EARLY_BYTES (64 << 10)
#define EARLY_PIECES 128
#define EARLY_SECONDS 5

#define CONNECTIONS 16

enum { STDOUT = 0, STDERR = 1, STREAMS = 2 };

// watch is what a watch needs to know. Requests and the answer are as they go over the socket.
struct watch {
	const char *temporary; // the path of the record while it is written
	const char *record;
	const char *ended;     // what the record begins with when the process has ended
	const char *log;
	int64_t log_room;      // bytes that the log may hold; below zero: nothing is kept
	const char *socket;
	const char *groups;    // directories to be removed at the end, each ended by a zero byte, the last by two
	const char *oom;       // a file with a line "oom_kill" and a number
	const char *wait, *kill, *signal, *done;
	int64_t wait_size, kill_size, signal_size, done_size;
};

struct connection {
	int fd;
	int waits; // for the end, and is to be told of it; otherwise nothing was read of it yet
};

struct stream {
	int fd;      // -1: it has ended
	size_t size; // of what was read and is in no file yet: the beginning of a line, and more when the log is full
	char unkept[LONGEST_LINE + CHUNK];
};

// watched is how far a watch has come.
struct watched {
	int on; // 0: there was no watch
	int64_t pid;
	struct timespec began;
	int ended, status; // as of waitpid
	int listener;
	int connections;
	struct connection connection[CONNECTIONS];
	struct stream stream[STREAMS];
	int pieces; // of the early output; below zero: there was too much, or it is too old
	struct piece {
		int stream;
		size_t size;
	} piece[EARLY_PIECES];
	size_t early_size;
	char early[EARLY_BYTES];
};

extern struct watched tutti_watched;

// tutti_watch keeps what a process prints that this one has started, answers who asks for its end or sends it a
// signal, and when it has ended records that and ends this process. It returns when anything else is asked for.
void tutti_watch(const struct watch *w);

// tutti_time writes a time as RFC 3339 has it, 30 bytes without the end.
int tutti_time(char *to, size_t room, const struct timespec *at);

#endif
