#ifndef TUTTI_LAUNCH_H
#define TUTTI_LAUNCH_H

#include <stdint.h>

// How an argument of a step is meant.
enum { NUMBER = 0, ADDRESS = 1, RESULT = 2 };

// Steps that are more than one system call have numbers below zero.
enum {
	OPEN_TARGET = -1,
	MOUNT_ON = -2,
	MASK = -3,
	MAKE_READ_ONLY = -4,
	CHECK_NULL = -5,
	OWN_STDIO = -6,
	CHECK_DIRECTORY = -7,
	LOAD_FILTER = -8,
	RESET_SIGNALS = -9,
	EXECUTE = -10,
	FAILED = -11,
};

// What OPEN_TARGET makes where there is nothing, and what it takes.
enum { TARGET_FILE = 1, TARGET_PLAIN = 2, TARGET_PROC = 4 };

#define ALLOWED 4

struct step {
	int64_t call;
	int64_t arg[6];
	uint8_t kind[8];
	int32_t allowed[ALLOWED]; // errors that are none
	int32_t skip_failed;      // steps to leave out after an allowed error
	int32_t skip_done;        // steps to leave out otherwise
	int64_t result;
};

struct program {
	struct step *steps;
	int64_t count;
	char *data;
	int64_t failed; // the step that failed
	int64_t error;  // its errno
};

// tutti_launch returns the ID of a process that has run the program, or a negative errno. Whether
// the process failed is in the program. It is born among the processes of the one that the pidfd ns is of; below zero: among ours.
int64_t tutti_launch(struct program *p, int64_t flags, int64_t ns);

// What is handed to a process that runs a program before all else of it, followed by the steps and the data. Those without a size are
// offsets in the data, of strings; see struct watch.
struct handed {
	int64_t mark;
	int64_t count; // of steps
	int64_t flags;
	int64_t lasting; // where data begins that is needed when the program has run
	int64_t running; // what the record begins with while the process runs, until its ID
	int64_t temporary, record, ended, log, log_room, socket, groups, oom;
	int64_t wait, wait_size, kill, kill_size, signal, signal_size, done, done_size;
};

#define HANDED_MARK 0x02697474757400

// The files of such a process: the output of what it begins, and, after what this one reads, what that writes to.
enum { ANSWER_FILE = 3, HANDED_FILE = 5, OUTPUT_FILES = 6, OUTPUT_ENDS = 8 };

void tutti_first_limit(uint64_t *soft, uint64_t *hard);

#endif
