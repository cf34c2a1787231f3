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
// the process failed is in the program.
int64_t tutti_launch(struct program *p, int64_t flags);

// What is handed to a process that runs a program before all else of it, followed by the steps and the data. The
// last four are offsets in the data, of strings.
struct handed {
	int64_t mark;
	int64_t count; // of steps
	int64_t flags;
	int64_t temporary; // the path of the record while it is written
	int64_t record;    // its path: what is before, the ID of the process, when it began, and what is after
	int64_t before;
	int64_t after;
};

#define HANDED_MARK 0x01697474757400

// The files of such a process.
enum { ANSWER_FILE = 3, HANDED_FILE = 5 };

// tutti_begun tells of the process that was begun before all else; pid is 0 when none was. The time is that of the clock,
// in nanoseconds.
void tutti_begun(int64_t *pid, int64_t *at);

void tutti_first_limit(uint64_t *soft, uint64_t *hard);

#endif
