// The load of bench/run: asks a server, checks every answer, and reads the server's CPU time.
// load NAME=VALUE...; prints one line of JSON. A wrong answer is reported and never counted.
//   port      of the server on 127.0.0.1
//   clients   connections, or concurrent ones with mode=new (64)
//   mode      kept: the next request on the same connection; new: a new connection for each (kept)
//   seconds   of measuring, after each client has got one answer (2)
//   settle    seconds of the same at a rate before, which are not measured (0)
//   rate      requests a second, by the clients in turn; 0: each asks again at once (0)
//   path      what is asked for (/primary); paths: a file with one in each line, asked in turn
//   body      a file with the expected body; @STAMP@ stands for 16 digits (the time of the fetch,
//             CLOCK_MONOTONIC, microseconds), @SEEN@ for 10
//   pids      of the server, with commas: the CPU time of all their threads is read
//   tls       1: TLS 1.3, a full handshake for each connection; resume: 1: a resumed one
//   cert, key of the client
//   hold      1: after one answer each, prints "open" and waits for the end of standard input
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { EVENTS = 256, BYTES_MAX = 4096, OPENING_MAX = 64, PATHS_MAX = 128, BUCKETS = 100000 };
enum { SILENCE_US = 10000000, WAITED_US = 20000, BUCKET_US = 10, SHOWN_MAX = 5, TURN_US = 10000 };
enum state { CLOSED, IDLE, OPENING, ASKING, ENDING };

struct client {
  int fd;
  enum state state;
  int registered, answered;
  size_t got;
  long long sent_us;
  SSL *tls;
  SSL_SESSION *session;
  char *bytes;
};

struct part {
  size_t at, length;
};

static struct client *clients;
static long client_count = 64, asking;
static int poller, is_new, resumes, measuring, stopping, port;
static double seconds = 2, settle, rate;
static const char *pids = "";
static char *requests[PATHS_MAX];
static size_t request_bytes[PATHS_MAX];
static int path_count, next_path;
static char body[2048];
static struct part parts[4];
static int part_count;
static size_t body_bytes, stamp_at;
static int has_stamp;
static SSL_CTX *context;
static long answers, wrong, waited, resumed, late;
static long long longest_us, oldest_us;
static unsigned buckets[BUCKETS];

static long long now_us(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1000000LL + now.tv_nsec / 1000;
}

static void fail(const char *what) {
  perror(what);
  exit(2);
}

// ---- CPU time

static long long cpu_ns(void) {
  char list[1024], path[600], *rest = list, *pid;
  long long total = 0;
  snprintf(list, sizeof list, "%s", pids);
  while ((pid = strsep(&rest, ",")) && *pid) {
    snprintf(path, sizeof path, "/proc/%s/task", pid);
    DIR *tasks = opendir(path);
    // nginx's cache loader ends after a minute; an ended server answers nothing
    if (!tasks) continue;
    struct dirent *entry;
    while ((entry = readdir(tasks))) {
      snprintf(path, sizeof path, "/proc/%s/task/%s/schedstat", pid, entry->d_name);
      FILE *file = entry->d_name[0] == '.' ? NULL : fopen(path, "r");
      long long one = 0;
      if (file && fscanf(file, "%lld", &one) == 1) total += one;
      if (file) fclose(file);
    }
    closedir(tasks);
  }
  return total;
}

// ---- what is asked and expected

static void add_path(const char *path) {
  if (path_count == PATHS_MAX) exit(2);
  const char *close = is_new ? "Connection: close\r\n" : "";
  int count = asprintf(&requests[path_count],
                       "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nUser-Agent: bench\r\n%s\r\n", path,
                       close);
  request_bytes[path_count++] = (size_t)count;
}

static void read_paths(const char *name) {
  char line[300];
  FILE *file = fopen(name, "r");
  if (!file) fail(name);
  while (fgets(line, sizeof line, file)) {
    line[strcspn(line, "\n")] = 0;
    add_path(line);
  }
  fclose(file);
}

// Splits the expected body into its constant parts.
static void read_body(const char *name) {
  char text[2048], *at = text;
  FILE *file = fopen(name, "r");
  if (!file) fail(name);
  text[fread(text, 1, sizeof text - 64, file)] = 0;
  fclose(file);
  while (*at) {
    char *mark = strchr(at, '@');
    size_t length = mark ? (size_t)(mark - at) : strlen(at);
    parts[part_count++] = (struct part){body_bytes, length};
    memcpy(body + body_bytes, at, length);
    body_bytes += length;
    if (!mark) break;
    int is_stamp = strncmp(mark, "@STAMP@", 7) == 0;
    if (is_stamp) {
      stamp_at = body_bytes;
      has_stamp = 1;
    }
    body_bytes += is_stamp ? 16 : 10;
    at = strchr(mark + 1, '@') + 1;
  }
}

// Returns the bytes of the complete answer, 0 if some are missing, -1 if it is wrong.
static long check(const char *bytes, size_t count) {
  if (count < 16) return 0;
  const char *end = memmem(bytes, count, "\r\n\r\n", 4);
  if (!end) return 0;
  const char *field = memmem(bytes, (size_t)(end - bytes), "ength: ", 7);
  if (memcmp(bytes, "HTTP/1.", 7) != 0 || memcmp(bytes + 8, " 200 ", 5) != 0 || !field) return -1;
  size_t head = (size_t)(end - bytes) + 4;
  if ((size_t)atol(field + 7) != body_bytes) return -1;
  if (count < head + body_bytes) return 0;
  for (int one = 0; one < part_count; one++)
    if (memcmp(bytes + head + parts[one].at, body + parts[one].at, parts[one].length) != 0)
      return -1;
  if (has_stamp && measuring) {
    char stamp[17] = {0};
    memcpy(stamp, bytes + head + stamp_at, 16);
    long long age = now_us() - atoll(stamp);
    if (age > oldest_us) oldest_us = age;
  }
  return (long)(head + body_bytes);
}

// ---- a client

static void report(struct client *one, const char *why) {
  if (wrong++ < SHOWN_MAX) {
    fprintf(stderr, "wrong answer: %s (%s)\n%.*s\n", why, strerror(errno), (int)one->got,
            one->bytes);
  }
}

static void drop(struct client *one) {
  if (one->state == ASKING || one->state == OPENING || one->state == ENDING) asking--;
  if (one->tls) {
    SSL_set_shutdown(one->tls, SSL_SENT_SHUTDOWN | SSL_RECEIVED_SHUTDOWN);
    SSL_free(one->tls);
    one->tls = NULL;
  }
  if (one->fd >= 0) close(one->fd);
  one->fd = -1;
  one->state = CLOSED;
}

static void broken(struct client *one, const char *why) {
  report(one, why);
  drop(one);
}

static int keep_session(SSL *tls, SSL_SESSION *session) {
  struct client *one = SSL_get_app_data(tls);
  SSL_SESSION_free(one->session);
  one->session = session;
  return 1;
}

static void watch(struct client *one, unsigned events) {
  struct epoll_event event = {.events = events | EPOLLET, .data.ptr = one};
  int change = one->registered ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  if (epoll_ctl(poller, change, one->fd, &event) < 0) fail("epoll_ctl");
  one->registered = 1;
}

// Sends the next request. The client is connected.
static void ask(struct client *one) {
  int path = next_path;
  next_path = next_path + 1 == path_count ? 0 : next_path + 1;
  if (one->state == IDLE) asking++;
  one->state = ASKING;
  one->got = 0;
  if (rate > 0 || !measuring) one->sent_us = now_us();
  if (one->tls) {
    if (SSL_write(one->tls, requests[path], (int)request_bytes[path]) > 0) return;
  } else if (send(one->fd, requests[path], request_bytes[path], MSG_NOSIGNAL) > 0) {
    return;
  } else if (errno == EAGAIN) {
    one->state = OPENING;
    watch(one, EPOLLIN | EPOLLOUT);
    return;
  }
  broken(one, "a request could not be sent");
}

static void connect_tls(struct client *one) {
  int result = SSL_do_handshake(one->tls);
  if (result == 1) {
    if (measuring && SSL_session_reused(one->tls)) resumed++;
    ask(one);
    return;
  }
  int error = SSL_get_error(one->tls, result);
  if (error == SSL_ERROR_WANT_READ) return;
  if (error == SSL_ERROR_WANT_WRITE || (error == SSL_ERROR_SYSCALL && errno == ENOTCONN)) {
    watch(one, EPOLLIN | EPOLLOUT);
    return;
  }
  broken(one, "a handshake failed");
}

static void open_client(struct client *one) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  int flag = 1;
  one->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  if (one->fd < 0) fail("socket");
  one->registered = 0;
  one->got = 0;
  one->state = OPENING;
  asking++;
  if (!is_new) setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &flag, sizeof flag);
  if (connect(one->fd, (struct sockaddr *)&at, sizeof at) < 0 && errno != EINPROGRESS)
    fail("connect");
  if (context) {
    one->tls = SSL_new(context);
    SSL_set_app_data(one->tls, one);
    SSL_set_fd(one->tls, one->fd);
    SSL_set_connect_state(one->tls);
    if (one->session) SSL_set_session(one->tls, one->session);
    watch(one, EPOLLIN);
    one->sent_us = now_us();
    connect_tls(one);
    return;
  }
  ask(one);
  if (one->state == ASKING) watch(one, EPOLLIN);
}

static void start(struct client *one) {
  if (one->state == CLOSED) open_client(one);
  else ask(one);
}

static void answered(struct client *one) {
  one->answered = 1;
  one->got = 0;
  if (!measuring) return;
  answers++;
  if (rate == 0) return;
  long long wait = now_us() - one->sent_us;
  if (wait > longest_us) longest_us = wait;
  if (wait > WAITED_US) waited++;
  buckets[wait / BUCKET_US < BUCKETS ? wait / BUCKET_US : BUCKETS - 1]++;
}

// Returns what recv does, for TLS as well.
static ssize_t receive(struct client *one) {
  size_t room = BYTES_MAX - one->got;
  if (!one->tls) return recv(one->fd, one->bytes + one->got, room, 0);
  int count = SSL_read(one->tls, one->bytes + one->got, (int)room);
  if (count > 0) return count;
  int error = SSL_get_error(one->tls, count);
  errno = error == SSL_ERROR_WANT_READ ? EAGAIN : errno;
  return error == SSL_ERROR_WANT_READ ? -1 : 0;
}

// After the answer of a connection for one request: its end.
static void await_end(struct client *one) {
  one->state = ENDING;
  ssize_t count = receive(one);
  if (count < 0 && errno == EAGAIN) return;
  if (count > 0) {
    one->got = (size_t)count;
    broken(one, "bytes after the answer");
    return;
  }
  drop(one);
  if (rate == 0 && measuring && !stopping) start(one);
}

static void proceed(struct client *one) {
  if (one->state == ENDING) {
    await_end(one);
    return;
  }
  if (one->state == OPENING) {
    if (one->tls) connect_tls(one);
    else ask(one);
    return;
  }
  for (;;) {
    ssize_t count = receive(one);
    if (count < 0 && errno == EAGAIN) return;
    if (one->state == IDLE && count <= 0) {
      broken(one, "a kept connection was closed");
      return;
    }
    if (count <= 0) {
      broken(one, "closed before a complete answer");
      return;
    }
    one->got += (size_t)count;
    long length = check(one->bytes, one->got);
    if (length < 0 || (size_t)length < one->got * (length > 0)) {
      broken(one, "not what was expected");
      return;
    }
    if (length > 0) break;
  }
  answered(one);
  if (is_new) {
    await_end(one);
    return;
  }
  if (rate == 0 && measuring && !stopping) {
    ask(one);
    return;
  }
  one->state = IDLE;
  asking--;
}

// ---- phases

static void turn(long wait_us) {
  struct epoll_event events[EVENTS];
  struct timespec wait = {.tv_nsec = wait_us * 1000};
  int ready = epoll_pwait2(poller, events, EVENTS, &wait, NULL);
  for (int one = 0; one < ready; one++) {
    struct client *client = events[one].data.ptr;
    if (client->state != CLOSED) proceed(client);
  }
}

static void finish(void) {
  long long limit = now_us() + SILENCE_US;
  while (asking > 0 && now_us() < limit) turn(TURN_US);
  if (asking > 0) {
    fprintf(stderr, "wrong answer: none within 10 s, %ld requests\n", asking);
    wrong += asking;
  }
}

// Each client gets one answer.
static void warm_up(void) {
  for (long next = 0; next < client_count;) {
    while (asking < OPENING_MAX && next < client_count) start(&clients[next++]);
    turn(TURN_US);
  }
  finish();
  // session tickets that came late
  if (!is_new && context) turn(TURN_US);
}

static void at_once(void) {
  long long limit = now_us() + (long long)(seconds * 1e6);
  for (long one = 0; one < client_count; one++) start(&clients[one]);
  while (now_us() < limit) {
    turn(TURN_US);
    if (wrong > 1000) break;
    // clients whose connection broke
    if (wrong > 0 || asking < client_count)
      for (long one = 0; one < client_count; one++)
        if (clients[one].state == CLOSED) start(&clients[one]);
  }
}

static void at_rate(double length) {
  long long begun = now_us(), limit = begun + (long long)(length * 1e6), now, count = 0;
  static long next;
  while ((now = now_us()) < limit && wrong <= 1000) {
    while (count < (double)(now - begun) * rate / 1e6) {
      struct client *one = &clients[next];
      if (one->state != IDLE && one->state != CLOSED) {
        late++;
        break;
      }
      start(one);
      next = next + 1 == client_count ? 0 : next + 1;
      count++;
    }
    long long due = begun + (long long)((double)count * 1e6 / rate), left = due - now_us();
    turn(left <= 0 ? 0 : left < TURN_US ? (long)left : TURN_US);
  }
}

static long long median_us(void) {
  long long count = 0;
  for (long one = 0; one < BUCKETS; one++)
    if ((count += buckets[one]) * 2 > answers) return one * BUCKET_US;
  return 0;
}

static void measure(void) {
  if (settle > 0) at_rate(settle);
  finish();
  late = 0;
  long long cpu = cpu_ns(), begun = now_us();
  measuring = 1;
  if (rate > 0) at_rate(seconds);
  else at_once();
  stopping = 1;
  finish();
  double took = (double)(now_us() - begun) / 1e6;
  // the server has gone to sleep, so that its time is complete
  usleep(5000);
  cpu = cpu_ns() - cpu;
  printf("{\"answers\": %ld, \"wrong\": %ld, \"cpu_ns\": %lld, \"seconds\": %.3f, "
         "\"resumed\": %ld, \"late\": %ld, \"waited\": %ld, \"longest_us\": %lld, "
         "\"oldest_us\": %lld, \"median_us\": %lld}\n",
         answers, wrong, cpu, took, resumed, late, waited, longest_us, oldest_us, median_us());
}

static void use_tls(const char *certificate, const char *key) {
  context = SSL_CTX_new(TLS_client_method());
  SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION);
  SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
  SSL_CTX_set_read_ahead(context, 1);
  if (resumes) {
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(context, keep_session);
  }
  if (certificate && (SSL_CTX_use_certificate_chain_file(context, certificate) != 1 ||
                      SSL_CTX_use_PrivateKey_file(context, key, SSL_FILETYPE_PEM) != 1))
    exit(2);
}

int main(int count, char **arguments) {
  const char *path = "/primary", *paths = NULL, *expected = NULL, *certificate = NULL, *key = NULL;
  int holds = 0, tls = 0;
  for (int at = 1; at < count; at++) {
    char *value = strchr(arguments[at], '=');
    if (!value) return 2;
    *value++ = 0;
    const char *name = arguments[at];
    if (strcmp(name, "port") == 0) port = atoi(value);
    else if (strcmp(name, "clients") == 0) client_count = atol(value);
    else if (strcmp(name, "mode") == 0) is_new = strcmp(value, "new") == 0;
    else if (strcmp(name, "seconds") == 0) seconds = atof(value);
    else if (strcmp(name, "settle") == 0) settle = atof(value);
    else if (strcmp(name, "rate") == 0) rate = atof(value);
    else if (strcmp(name, "path") == 0) path = value;
    else if (strcmp(name, "paths") == 0) paths = value;
    else if (strcmp(name, "body") == 0) expected = value;
    else if (strcmp(name, "pids") == 0) pids = value;
    else if (strcmp(name, "tls") == 0) tls = atoi(value);
    else if (strcmp(name, "resume") == 0) resumes = atoi(value);
    else if (strcmp(name, "cert") == 0) certificate = value;
    else if (strcmp(name, "key") == 0) key = value;
    else if (strcmp(name, "hold") == 0) holds = atoi(value);
    else return 2;
  }
  if (!expected) return 2;
  signal(SIGPIPE, SIG_IGN);
  read_body(expected);
  if (paths) read_paths(paths);
  else add_path(path);
  if (tls) use_tls(certificate, key);
  poller = epoll_create1(0);
  clients = calloc((size_t)client_count, sizeof *clients);
  for (long one = 0; one < client_count; one++) {
    clients[one].fd = -1;
    clients[one].bytes = malloc(BYTES_MAX);
  }
  warm_up();
  if (holds) {
    printf("open\n");
    fflush(stdout);
    while (getchar() != EOF) continue;
    return wrong > 0;
  }
  measure();
  return 0;
}
