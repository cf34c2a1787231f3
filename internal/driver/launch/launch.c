#define _GNU_SOURCE
#include "launch.h"
#include "watch.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/openat2.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PROC_MAGIC 0x9fa0
#ifndef RESOLVE_IN_ROOT
#define RESOLVE_IN_ROOT 0x10
#endif
#ifndef RESOLVE_NO_SYMLINKS
#define RESOLVE_NO_SYMLINKS 0x04
#endif

static struct rlimit first_limit;

// Go raises the number of files that a process may have open, before any of its code could ask.
__attribute__((constructor)) static void note_first_limit(void)
{
	getrlimit(RLIMIT_NOFILE, &first_limit);
}

void tutti_first_limit(uint64_t *soft, uint64_t *hard)
{
	*soft = first_limit.rlim_cur;
	*hard = first_limit.rlim_max;
}

// All of the following returns a negative errno where it fails, and is run by a process that shares
// its memory with the one that started it, a thread of which waits meanwhile: it calls nothing that
// keeps state.

static int64_t sys(int64_t nr, int64_t a, int64_t b, int64_t c, int64_t d, int64_t e, int64_t f)
{
	long r = syscall(nr, a, b, c, d, e, f);
	return r == -1 ? -errno : r;
}

static int64_t open_in(int root, const char *path, uint64_t flags, uint64_t resolve)
{
	struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = RESOLVE_IN_ROOT | resolve};
	return sys(SYS_openat2, root, (int64_t)path, (int64_t)&how, sizeof how, 0, 0);
}

// open_target opens what is to be mounted on, below root, and makes it if need be: a file with this mode, or
// directories; those above a file are for everybody to go through.
static int64_t open_target(int root, const char *path, int64_t mode, int64_t what)
{
	uint64_t resolve = what & TARGET_PLAIN ? RESOLVE_NO_SYMLINKS : 0;
	int64_t fd = open_in(root, path, O_PATH, resolve);
	if (fd == -ENOENT) {
		char upto[PATH_MAX];
		size_t n = strlen(path);
		if (n >= sizeof upto)
			return -ENAMETOOLONG;
		memcpy(upto, path, n + 1);
		int64_t parent = open_in(root, "/", O_PATH | O_DIRECTORY, 0);
		if (parent < 0)
			return parent;
		for (char *name = upto + strspn(upto, "/"); *name;) {
			char *end = name + strcspn(name, "/");
			char *next = end + strspn(end, "/");
			int last = !*next;
			*end = 0;
			int64_t r;
			if (last && what & TARGET_FILE) {
				r = sys(SYS_openat, parent, (int64_t)name, O_CREAT | O_EXCL | O_NOFOLLOW | O_WRONLY | O_CLOEXEC, mode, 0, 0);
				if (r >= 0)
					close(r);
				close(parent);
				if (r < 0)
					return r;
				break;
			}
			fd = open_in(root, upto, O_PATH | O_DIRECTORY, resolve);
			if (fd == -ENOENT) {
				r = sys(SYS_mkdirat, parent, (int64_t)name, what & TARGET_FILE ? 0755 : mode, 0, 0, 0);
				fd = r < 0 && r != -EEXIST ? r : open_in(root, upto, O_PATH | O_DIRECTORY, resolve);
			}
			close(parent);
			if (fd < 0)
				return fd;
			parent = fd;
			if (!last)
				*end = '/';
			name = next;
		}
		if (what & TARGET_FILE)
			fd = open_in(root, path, O_PATH, resolve);
	}
	if (fd < 0)
		return fd;
	// Nothing is mounted into a file system of processes: it could tell lies of them.
	struct statfs st;
	int64_t r = what & TARGET_PROC ? 0 : sys(SYS_fstatfs, fd, (int64_t)&st, 0, 0, 0, 0);
	if (r == 0 && !(what & TARGET_PROC) && st.f_type == PROC_MAGIC)
		r = -EPERM;
	if (r < 0) {
		close(fd);
		return r;
	}
	return fd;
}

static void name_of(char *to, size_t room, int64_t fd) { snprintf(to, room, "/proc/self/fd/%d", (int)fd); }

static int64_t mount_on(int64_t target, const char *source, const char *type, int64_t flags, const char *data)
{
	char to[32];
	name_of(to, sizeof to, target);
	return sys(SYS_mount, (int64_t)source, (int64_t)to, (int64_t)type, flags, (int64_t)data, 0);
}

// mask hides a file behind the null device, and a directory behind an empty one.
static int64_t mask(const char *path, int64_t null)
{
	int64_t fd = sys(SYS_openat, AT_FDCWD, (int64_t)path, O_PATH | O_CLOEXEC, 0, 0, 0);
	if (fd == -ENOENT)
		return 0;
	if (fd < 0)
		return fd;
	struct stat st;
	int64_t r = fstat(fd, &st) ? -errno : 0;
	if (r == 0 && S_ISDIR(st.st_mode)) {
		r = mount_on(fd, "tmpfs", "tmpfs", MS_RDONLY, "nr_blocks=1,nr_inodes=1");
		if (r < 0) // some kernels want two
			r = mount_on(fd, "tmpfs", "tmpfs", MS_RDONLY, "nr_blocks=1,nr_inodes=2");
	} else if (r == 0) {
		char from[32];
		name_of(from, sizeof from, null);
		r = mount_on(fd, from, NULL, MS_BIND, NULL);
	}
	close(fd);
	return r;
}

static int64_t make_read_only(const char *path)
{
	int64_t r = sys(SYS_mount, (int64_t)path, (int64_t)path, 0, MS_BIND | MS_REC, 0, 0);
	if (r < 0)
		return r == -ENOENT ? 0 : r;
	struct statfs st;
	r = sys(SYS_statfs, (int64_t)path, (int64_t)&st, 0, 0, 0, 0);
	if (r < 0)
		return r;
	int64_t flags = st.f_flags & (MS_NOSUID | MS_NODEV | MS_NOEXEC);
	return sys(SYS_mount, (int64_t)path, (int64_t)path, 0, flags | MS_BIND | MS_REMOUNT | MS_RDONLY, 0, 0);
}

static int is_null(const struct stat *st) { return S_ISCHR(st->st_mode) && st->st_rdev == makedev(1, 3); }

static int64_t check_null(int64_t fd)
{
	struct stat st;
	if (fstat(fd, &st))
		return -errno;
	return is_null(&st) ? 0 : -ENODEV;
}

static int64_t own_stdio(int64_t uid)
{
	for (int fd = 0; fd < 3; fd++) {
		struct stat st;
		if (fstat(fd, &st))
			return -errno;
		if (st.st_uid == uid || is_null(&st))
			continue;
		int64_t r = sys(SYS_fchown, fd, uid, -1, 0, 0, 0);
		if (r < 0 && r != -EPERM && r != -EROFS)
			return r;
	}
	return 0;
}

// check_directory refuses a working directory outside the root, which a path by way of an open file
// could lead to.
static int64_t check_directory(void)
{
	char path[PATH_MAX];
	int64_t r = sys(SYS_getcwd, (int64_t)path, sizeof path, 0, 0, 0, 0);
	if (r < 0)
		return r == -ERANGE ? 0 : r; // a long one begins like others
	return path[0] == '/' ? 0 : -EXDEV;
}

static int64_t load_filter(int64_t flags, char *program, int64_t count)
{
	struct sock_fprog p = {.len = count, .filter = (struct sock_filter *)program};
	return sys(SYS_seccomp, 1 /* SECCOMP_SET_MODE_FILTER */, flags, (int64_t)&p, 0, 0, 0);
}

static int64_t reset_signals(void)
{
	char none[64] = {0}; // a struct sigaction of the kernel's, or more than one
	for (int s = 1; s <= 64; s++)
		if (s != SIGKILL && s != SIGSTOP)
			sys(SYS_rt_sigaction, s, (int64_t)none, 0, 8, 0, 0);
	return sys(SYS_rt_sigprocmask, SIG_SETMASK, (int64_t)none, 0, 8, 0, 0);
}

// pointers turns a list of offsets, ended by -1, into one of addresses.
static char **pointers(char *data, int64_t *list)
{
	char **out = (char **)list;
	for (; *list != -1; list++)
		*list = (int64_t)(data + *list);
	*list = 0;
	return out;
}

// execute tries one path after the other, each ended by a zero byte, the last by two.
static int64_t execute(const char *paths, char **argv, char **envp)
{
	const char *next = paths + strlen(paths) + 1;
	if (!*next)
		return sys(SYS_execve, (int64_t)paths, (int64_t)argv, (int64_t)envp, 0, 0, 0);
	for (; *paths; paths += strlen(paths) + 1) {
		int64_t r = sys(SYS_execve, (int64_t)paths, (int64_t)argv, (int64_t)envp, 0, 0, 0);
		if (r != -ENOENT && r != -ENOTDIR && r != -EACCES)
			return r;
	}
	return -ENOENT;
}

static int64_t do_step(struct program *p, struct step *s, int64_t *a)
{
	switch (s->call) {
	case OPEN_TARGET:
		return open_target(a[0], (char *)a[1], a[2], a[3]);
	case MOUNT_ON:
		return mount_on(a[0], (char *)a[1], (char *)a[2], a[3], (char *)a[4]);
	case MASK:
		return mask((char *)a[0], a[1]);
	case MAKE_READ_ONLY:
		return make_read_only((char *)a[0]);
	case CHECK_NULL:
		return check_null(a[0]);
	case OWN_STDIO:
		return own_stdio(a[0]);
	case CHECK_DIRECTORY:
		return check_directory();
	case LOAD_FILTER:
		return load_filter(a[0], (char *)a[1], a[2]);
	case RESET_SIGNALS:
		return reset_signals();
	case FAILED:
		return a[0] < 0 ? a[0] : 0;
	case EXECUTE:
		return execute((char *)a[0], pointers(p->data, (int64_t *)a[1]), pointers(p->data, (int64_t *)a[2]));
	}
	return s->call < 0 ? -ENOSYS : sys(s->call, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static int child(void *arg)
{
	struct program *p = arg;
	for (int64_t i = 0; i < p->count; i++) {
		struct step *s = &p->steps[i];
		int64_t a[6];
		for (int k = 0; k < 6; k++) {
			a[k] = s->arg[k];
			if (s->kind[k] == ADDRESS)
				a[k] += (int64_t)p->data;
			else if (s->kind[k] == RESULT)
				a[k] = p->steps[s->arg[k]].result;
		}
		s->result = do_step(p, s, a);
		if (s->result >= 0) {
			i += s->skip_done;
			continue;
		}
		int allowed = 0;
		for (int k = 0; k < ALLOWED; k++)
			allowed |= s->allowed[k] && s->result == -s->allowed[k];
		if (!allowed) {
			p->failed = i;
			p->error = -s->result;
			sys(SYS_exit_group, 127, 0, 0, 0, 0, 0);
		}
		i += s->skip_failed;
	}
	p->failed = p->count; // a program ends by executing another
	p->error = ENOEXEC;
	sys(SYS_exit_group, 127, 0, 0, 0, 0, 0);
	return 0;
}

// be_born makes the process. Those of a thread whose children belong elsewhere cannot be its threads, so that nobody else may have that
// thread before it is back.
static int64_t be_born(struct program *p, int64_t flags, int64_t ns, char *stack)
{
	int64_t own = -1, r = 0;
	if (ns >= 0) {
		own = sys(SYS_openat, AT_FDCWD, (int64_t)"/proc/thread-self/ns/pid", O_RDONLY | O_CLOEXEC, 0, 0, 0);
		if (own < 0)
			return own;
		r = sys(SYS_setns, ns, CLONE_NEWPID, 0, 0, 0, 0);
	}
	if (r == 0) {
		r = clone(child, stack, flags | CLONE_VM | CLONE_VFORK | SIGCHLD, p);
		if (r < 0)
			r = -errno;
		if (ns >= 0 && sys(SYS_setns, own, CLONE_NEWPID, 0, 0, 0, 0) < 0)
			abort(); // it is what the thread was in
	}
	if (ns >= 0)
		close(own);
	return r;
}

int64_t tutti_launch(struct program *p, int64_t flags, int64_t ns)
{
	const size_t room = 128 << 10;
	char *stack = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	if (stack == MAP_FAILED)
		return -errno;
	p->failed = p->error = 0;
	// A handler of Go's would not know the process it runs in.
	uint64_t all = ~(uint64_t)0, before = 0;
	sys(SYS_rt_sigprocmask, SIG_SETMASK, (int64_t)&all, (int64_t)&before, sizeof all, 0, 0);
	int64_t pid = be_born(p, flags, ns, stack + room);
	sys(SYS_rt_sigprocmask, SIG_SETMASK, (int64_t)&before, 0, sizeof before, 0, 0);
	munmap(stack, room);
	return pid;
}

static void record_begin(const struct watch *w, const char *running)
{
	int fd = open(w->temporary, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
	if (fd < 0)
		return; // who goes on records it as well, and tells why it cannot
	char at[40];
	tutti_time(at, sizeof at, &tutti_watched.began);
	int n = dprintf(fd, "%s%lld,\"started\":\"%s\",\"exitCode\":0}", running, (long long)tutti_watched.pid, at);
	if (close(fd) == 0 && n > 0)
		rename(w->temporary, w->record);
}

// begin runs a program before there is anything of Go's in a process whose last argument is "begin", and watches what that becomes: for
// most of them nothing else is ever needed, and Go's beginning takes more than all of this together.
__attribute__((constructor)) static void begin(int argc, char **argv)
{
	struct stat st;
	if (argc < 3 || strcmp(argv[argc - 1], "begin") || fstat(HANDED_FILE, &st) || st.st_size < (off_t)sizeof(struct handed))
		return;
	struct handed *h = mmap(NULL, st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, HANDED_FILE, 0);
	if (h == MAP_FAILED || h->mark != HANDED_MARK)
		return;
	// Left alone from the beginning. What is begun has its own way with them.
	const int spared[] = {SIGHUP, SIGINT, SIGTERM, SIGPIPE};
	for (size_t i = 0; i < sizeof spared / sizeof *spared; i++)
		signal(spared[i], SIG_IGN);
	struct program p = {.steps = (struct step *)(h + 1), .count = h->count};
	p.data = (char *)(p.steps + p.count);
	clock_gettime(CLOCK_REALTIME, &tutti_watched.began);
	int64_t pid = tutti_launch(&p, h->flags, -1);
	if (pid < 0 || p.error) {
		if (pid >= 0)
			waitpid(pid, NULL, 0);
		dprintf(ANSWER_FILE, "step %lld %lld", (long long)(pid < 0 ? -1 : p.failed), (long long)(pid < 0 ? -pid : p.error));
		_exit(1);
	}
	tutti_watched.pid = pid;
	for (int fd = ANSWER_FILE; fd < OUTPUT_ENDS; fd++)
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	close(OUTPUT_ENDS + STDOUT);
	close(OUTPUT_ENDS + STDERR);
	close(HANDED_FILE);
	// Only what is needed from here on is kept.
	size_t size = (char *)h + st.st_size - (p.data + h->lasting);
	char *kept = malloc(size);
	if (!kept)
		return;
	memcpy(kept, p.data + h->lasting, size);
#define KEPT(name) .name = kept + (h->name - h->lasting)
	struct watch w = {
			KEPT(temporary), KEPT(record), KEPT(ended), KEPT(log), KEPT(socket), KEPT(groups), KEPT(oom), .log_room = h->log_room,
			KEPT(wait), KEPT(kill), KEPT(signal), KEPT(done), .wait_size = h->wait_size, .kill_size = h->kill_size,
			.signal_size = h->signal_size, .done_size = h->done_size,
	};
	record_begin(&w, kept + (h->running - h->lasting));
	munmap(h, st.st_size);
	tutti_watch(&w);
	free(kept);
}
