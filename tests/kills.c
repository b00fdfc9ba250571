/* Stops the process before every step by which it changes a file: where a kill could find it.

   Preloaded, it stands before the C library's functions, which Python, TensorStore and Orbax all
   change files by. Of files under $KILLS_UNDER it writes a step's name to the file descriptor
   $KILLS_TO and stops the process (SIGSTOP) until somebody lets it go on. A write has two steps:
   before it, and when half of its bytes are written. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static const char *under;
static int to;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

__attribute__((constructor)) static void begin(void) {
  under = getenv("KILLS_UNDER");
  to = under ? atoi(getenv("KILLS_TO")) : -1;
}

/* Whether the file is under $KILLS_UNDER, so that the process was stopped. */
static int stop_at(const char *step, int folder, const char *name) {
  char link[32], path[2 * PATH_MAX] = "", line[2 * PATH_MAX + 32];
  int error = errno, inside;
  if (name[0] != '/') {
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    readlink(link, path, PATH_MAX - 1);
    if (name[0]) strcat(path, "/");
  }
  strncat(path, name, PATH_MAX - 1);
  inside = under && !strncmp(path, under, strlen(under));
  if (inside) {
    pthread_mutex_lock(&one_at_a_time);
    int length = snprintf(line, sizeof line, "%s %s\n", step, path + strlen(under));
    syscall(SYS_write, to, line, length);
    raise(SIGSTOP);
    pthread_mutex_unlock(&one_at_a_time);
  }
  errno = error;
  return inside;
}

static int stop_fd(const char *step, int fd) { return stop_at(step, fd, ""); }

int openat(int folder, const char *name, int flags, ...) {
  va_list more;
  va_start(more, flags);
  int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0;
  va_end(more);
  if (flags & (O_CREAT | O_TRUNC)) stop_at("create", folder, name);
  return syscall(SYS_openat, folder, name, flags, mode);
}

int open(const char *name, int flags, ...) {
  va_list more;
  va_start(more, flags);
  int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(more, int) : 0;
  va_end(more);
  return openat(AT_FDCWD, name, flags, mode);
}

int open64(const char *, int, ...) __attribute__((alias("open")));
int openat64(int, const char *, int, ...) __attribute__((alias("openat")));

ssize_t write(int fd, const void *bytes, size_t n) {
  size_t half = n / 2;
  if (!stop_fd("write", fd) || !half) return syscall(SYS_write, fd, bytes, n);
  ssize_t first = syscall(SYS_write, fd, bytes, half);
  if (first < (ssize_t)half) return first;
  stop_fd("write half of", fd);
  ssize_t rest = syscall(SYS_write, fd, (const char *)bytes + half, n - half);
  return rest < 0 ? first : first + rest;
}

ssize_t writev(int fd, const struct iovec *parts, int n) {
  if (!stop_fd("write", fd)) return syscall(SYS_writev, fd, parts, n);
  ssize_t done = 0;
  for (int i = 0; i < n; i++) {
    ssize_t written = write(fd, parts[i].iov_base, parts[i].iov_len);
    if (written < 0) return done ? done : -1;
    done += written;
    if (written < (ssize_t)parts[i].iov_len) break;
  }
  return done;
}

int fsync(int fd) {
  stop_fd("flush", fd);
  return syscall(SYS_fsync, fd);
}

int ftruncate(int fd, off_t length) {
  stop_fd("cut", fd);
  return syscall(SYS_ftruncate, fd, length);
}

int ftruncate64(int, off64_t) __attribute__((alias("ftruncate")));

int renameat(int from, const char *name, int onto, const char *other) {
  stop_at("rename", from, name);
  return syscall(SYS_renameat2, from, name, onto, other, 0);
}

int rename(const char *name, const char *other) {
  return renameat(AT_FDCWD, name, AT_FDCWD, other);
}

int unlinkat(int folder, const char *name, int flags) {
  stop_at("delete", folder, name);
  return syscall(SYS_unlinkat, folder, name, flags);
}

int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }

int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdirat(int folder, const char *name, mode_t mode) {
  stop_at("mkdir", folder, name);
  return syscall(SYS_mkdirat, folder, name, mode);
}

int mkdir(const char *name, mode_t mode) { return mkdirat(AT_FDCWD, name, mode); }
