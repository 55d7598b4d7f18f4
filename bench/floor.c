// The floor of bench/run: an epoll server that parses nothing and answers each read with the same
// bytes. floor PORT keep|close [defer] [CERTIFICATE KEY]; with a certificate it speaks TLS by
// OpenSSL.
#define _GNU_SOURCE
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
#include <unistd.h>

enum { EVENTS = 256, DESCRIPTORS = 65536 };

static char answer[1024];
static size_t answer_bytes;
static SSL_CTX *context;
static SSL *sessions[DESCRIPTORS];
static int closes;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void end(int fd) {
  if (sessions[fd]) {
    SSL_shutdown(sessions[fd]);
    SSL_free(sessions[fd]);
    sessions[fd] = NULL;
  }
  close(fd);
}

// Returns 1 when the connection is still open.
static int serve_tls(int fd) {
  char request[4096];
  int count;
  // SSL_read performs the handshake as well
  while ((count = SSL_read(sessions[fd], request, sizeof request)) > 0) {
    if (SSL_write(sessions[fd], answer, (int)answer_bytes) <= 0 || closes) {
      end(fd);
      return 0;
    }
    // a short read: all that has come is read
    if (SSL_pending(sessions[fd]) == 0) return 1;
  }
  if (SSL_get_error(sessions[fd], count) == SSL_ERROR_WANT_READ) return 1;
  end(fd);
  return 0;
}

static int serve(int fd) {
  if (context) return serve_tls(fd);
  char request[4096];
  ssize_t count = recv(fd, request, sizeof request, 0);
  if (count < 0 && errno == EAGAIN) return 1;
  if (count <= 0 || send(fd, answer, answer_bytes, MSG_NOSIGNAL) < 0 || closes) {
    end(fd);
    return 0;
  }
  return 1;
}

static int listen_on(int port, int defers) {
  int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)port)};
  at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
  // accepted sockets inherit it
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
  if (defers) setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &one, sizeof one);
  if (bind(fd, (struct sockaddr *)&at, sizeof at) < 0) fail("bind");
  if (listen(fd, 4096) < 0) fail("listen");
  return fd;
}

static void make_answer(void) {
  char body[512];
  FILE *file = fopen(getenv("BODY"), "r");
  if (!file) fail("BODY");
  size_t bytes = fread(body, 1, sizeof body - 1, file);
  fclose(file);
  body[bytes] = 0;
  answer_bytes = (size_t)snprintf(answer, sizeof answer,
                                  "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                                  "Content-Length: %zu\r\n%s\r\n%s",
                                  bytes, closes ? "Connection: close\r\n" : "", body);
}

int main(int count, char **arguments) {
  if (count < 3) return 2;
  signal(SIGPIPE, SIG_IGN);
  closes = strcmp(arguments[2], "close") == 0;
  int at = 3, defers = 0;
  if (at < count && strcmp(arguments[at], "defer") == 0) defers = at++;
  make_answer();
  if (at + 1 < count) {
    context = SSL_CTX_new(TLS_server_method());
    SSL_CTX_set_mode(context, SSL_MODE_RELEASE_BUFFERS);
    if (SSL_CTX_use_certificate_chain_file(context, arguments[at]) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, arguments[at + 1], SSL_FILETYPE_PEM) != 1) {
      fputs("no certificate or key\n", stderr);
      return 1;
    }
  }
  int listener = listen_on(atoi(arguments[1]), defers), poll = epoll_create1(0);
  struct epoll_event event = {.events = EPOLLIN, .data.fd = listener}, events[EVENTS];
  epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
  for (;;) {
    int ready = epoll_wait(poll, events, EVENTS, -1);
    for (int one = 0; one < ready; one++) {
      int fd = events[one].data.fd;
      if (fd != listener) {
        serve(fd);
        continue;
      }
      while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= DESCRIPTORS) fail("too many connections");
        if (context) {
          sessions[fd] = SSL_new(context);
          SSL_set_fd(sessions[fd], fd);
          SSL_set_accept_state(sessions[fd]);
        }
        if (!serve(fd)) continue;
        event = (struct epoll_event){.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(poll, EPOLL_CTL_ADD, fd, &event);
      }
    }
  }
}
