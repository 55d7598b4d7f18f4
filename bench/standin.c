// The stand-in for Patroni of bench/run: a leader's answer after a delay, counted.
// standin PORT DELAY_MS [away]; environment: BODY, a file with the answer, in which @STAMP@ and
// @SEEN@ are replaced by the time of the request (CLOCK_MONOTONIC, microseconds, 16 digits) and by
// the time at which the DCS was last seen (Unix seconds, 10 digits).
// away: the DCS was last seen at the start, and answers that need it never come.
// GET /bench/count returns the number of requests so far, except those for /config.
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 64, WAITING = 8192 };

struct waiting {
  int fd;
  long long due_us, asked_us;
  int is_config;
};

static struct waiting queue[WAITING];
static unsigned first, last;
static char body[1024];
static long long delay_us;
static long requests;
static time_t started;
static int away;

static long long now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static void put(char *text, const char *mark, size_t digits, long long value) {
  char *at = strstr(text, mark), number[24];
  if (!at) return;
  size_t length = strlen(mark);
  memmove(at + digits, at + length, strlen(at + length) + 1);
  snprintf(number, sizeof number, "%0*lld", (int)digits, value);
  memcpy(at, number, digits);
}

static void reply(int fd, const char *text) {
  char bytes[2048];
  int count = snprintf(bytes, sizeof bytes,
                       "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n"
                       "Content-Length: %zu\r\n\r\n%s",
                       strlen(text), text);
  if (send(fd, bytes, (size_t)count, MSG_NOSIGNAL) < 0) perror("send");
  close(fd);
}

static void answer(const struct waiting *one) {
  char text[1100];
  if (one->is_config) {
    reply(one->fd, "{\"ttl\": 30, \"loop_wait\": 10, \"retry_timeout\": 10}");
    return;
  }
  strcpy(text, body);
  put(text, "@STAMP@", 16, one->asked_us);
  put(text, "@SEEN@", 10, away ? started : time(NULL));
  reply(one->fd, text);
}

static void serve(int fd, int poll) {
  char request[4096], text[32];
  ssize_t count = recv(fd, request, sizeof request - 1, 0);
  if (count < 0 && errno == EAGAIN) return;
  if (count <= 0) {
    close(fd);
    return;
  }
  request[count] = 0;
  if (strncmp(request, "GET /bench/count ", 17) == 0) {
    snprintf(text, sizeof text, "%ld", requests);
    reply(fd, text);
    return;
  }
  int is_config = strncmp(request, "GET /config ", 12) == 0;
  if (!is_config) requests++;
  if (away && (is_config || strncmp(request, "GET /cluster ", 13) == 0)) return;
  struct waiting one = {.fd = fd, .asked_us = now_us(), .is_config = is_config};
  one.due_us = one.asked_us + delay_us;
  if (delay_us == 0 || last - first == WAITING) {
    answer(&one);
    return;
  }
  epoll_ctl(poll, EPOLL_CTL_DEL, fd, NULL);
  queue[last++ % WAITING] = one;
}

int main(int count, char **arguments) {
  if (count < 3) return 2;
  delay_us = atoll(arguments[2]) * 1000;
  away = count > 3;
  started = time(NULL) - 60;
  FILE *file = fopen(getenv("BODY"), "r");
  if (!file || fread(body, 1, 900, file) == 0) return 1;
  int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
  struct sockaddr_in at = {.sin_family = AF_INET};
  at.sin_port = htons((unsigned short)atoi(arguments[1]));
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  if (bind(listener, (struct sockaddr *)&at, sizeof at) < 0 || listen(listener, 4096) < 0) {
    perror("listen");
    return 1;
  }
  int poll = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
  epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
  for (;;) {
    long long left = first == last ? 1000000 : queue[first % WAITING].due_us - now_us();
    int ready = epoll_wait(poll, events, EVENTS, left <= 0 ? 0 : (int)((left + 999) / 1000));
    for (int each = 0; each < ready; each++) {
      int fd = events[each].data.fd;
      if (fd != listener) {
        serve(fd, poll);
        continue;
      }
      while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
      }
    }
    while (first != last && queue[first % WAITING].due_us <= now_us())
      answer(&queue[first++ % WAITING]);
  }
}
