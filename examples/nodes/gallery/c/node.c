// The gallery's node in C. By default it is a reactor of sdk/node/ABI.md; with -DEXTISM it is an Extism plugin. It needs no C library's stdio, so
// the module stays small.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static char *out;
static size_t out_size, out_room;

static void put(const char *s, size_t n) {
  if (out_size + n > out_room) {
    out_room = (out_size + n) * 2;
    out = realloc(out, out_room);
    if (!out) __builtin_trap();
  }
  memcpy(out + out_size, s, n);
  out_size += n;
}

static void puts_(const char *s) { put(s, strlen(s)); }

static void put_number(uint64_t v) {
  char digits[20];
  int n = sizeof digits;
  do digits[--n] = '0' + v % 10;
  while (v /= 10);
  put(digits + n, sizeof digits - n);
}

// unescape finds the member "document" of the input and decodes its text in place. It returns NULL if there is none.
static char *unescape(char *s, size_t n, size_t *size) {
  static const char name[] = "\"document\"";
  char *end = s + n, *p = s;
  while (p + sizeof name - 1 < end && memcmp(p, name, sizeof name - 1) != 0) p++;
  if (p + sizeof name - 1 >= end) return NULL;
  p += sizeof name - 1;
  while (p < end && *p != '"') p++;
  char *start = ++p, *to = start;
  while (p < end && *p != '"') {
    if (*p != '\\') {
      *to++ = *p++;
      continue;
    }
    p++;
    switch (*p++) {
      case 'n': *to++ = '\n'; break;
      case 'r': *to++ = '\r'; break;
      case 't': *to++ = '\t'; break;
      case 'b': *to++ = '\b'; break;
      case 'f': *to++ = '\f'; break;
      case 'u': p += 4; *to++ = '?'; break;  // other characters do not matter to the totals
      default: *to++ = p[-1];
    }
  }
  *size = to - start;
  return start;
}

// number reads up to ten digits; it returns UINT64_MAX for anything else.
static uint64_t number(const char *s, size_t n, uint64_t most) {
  uint64_t v = 0;
  if (n == 0 || n > 10) return UINT64_MAX;
  for (size_t i = 0; i < n; i++) {
    if (s[i] < '0' || s[i] > '9') return UINT64_MAX;
    v = v * 10 + (s[i] - '0');
  }
  return v > most ? UINT64_MAX : v;
}

static struct { uint64_t orders, units, cents; } totals[26 * 26];

// add reads one line and returns which field is wrong, or NULL.
static const char *add(const char *line, size_t n) {
  const char *field[6];
  size_t size[6];
  int fields = 0;
  for (const char *p = line, *end = line + n, *start = p;; p++) {
    if (p < end && *p != ',') continue;
    if (fields == 5) return "fields";
    field[fields] = start;
    size[fields++] = p - start;
    start = p + 1;
    if (p == end) break;
  }
  if (fields != 5) return "fields";
  if (size[0] == 0) return "id";
  const char *c = field[2];
  if (size[2] != 2 || c[0] < 'A' || c[0] > 'Z' || c[1] < 'A' || c[1] > 'Z') return "country";
  uint64_t qty = number(field[3], size[3], 1000000);
  if (qty == 0 || qty == UINT64_MAX) return "qty";
  uint64_t price = number(field[4], size[4], 1000000000);
  if (price == UINT64_MAX) return "price";
  int at = (c[0] - 'A') * 26 + c[1] - 'A';
  totals[at].orders++;
  totals[at].units += qty;
  totals[at].cents += qty * price;
  return NULL;
}

// summarize writes the output for an input. It returns 0 if the input has no document.
static int summarize(char *input, size_t n) {
  size_t size, line = 0, accepted = 0, rejected = 0;
  char *p = unescape(input, n, &size);
  if (!p) return 0;
  out_size = 0;  // a call finds everything as new; a measurement calls the same instance again
  memset(totals, 0, sizeof totals);
  puts_("{\"rejected\":[");
  for (char *end = p + size; p <= end;) {
    char *stop = memchr(p, '\n', end - p);
    if (!stop) stop = end;
    if (++line > 1 && stop > p) {
      const char *reason = add(p, stop - p);
      if (reason) {
        puts_(rejected++ ? ",{\"line\":" : "{\"line\":");
        put_number(line);
        puts_(",\"reason\":\"");
        puts_(reason);
        puts_("\"}");
      } else {
        accepted++;
      }
    }
    p = stop + 1;
  }
  puts_("],\"accepted\":");
  put_number(accepted);
  puts_(",\"countries\":[");
  int some = 0;
  for (int i = 0; i < 26 * 26; i++) {
    if (!totals[i].orders) continue;
    char code[2] = {'A' + i / 26, 'A' + i % 26};
    puts_(some++ ? ",{\"country\":\"" : "{\"country\":\"");
    put(code, 2);
    puts_("\",\"orders\":");
    put_number(totals[i].orders);
    puts_(",\"units\":");
    put_number(totals[i].units);
    puts_(",\"cents\":");
    put_number(totals[i].cents);
    puts_("}");
  }
  puts_("]}");
  return 1;
}

#ifndef EXTISM

#define IMPORT(name) __attribute__((import_module("keyfire_v1"), import_name(name)))
IMPORT("input_read") int32_t input_read(uint32_t offset, void *buf, uint32_t limit);
IMPORT("output_write") int32_t output_write(const void *p, uint32_t n);
IMPORT("error_set") int32_t error_set(const void *p, uint32_t n);
IMPORT("log") int32_t log_(uint32_t level, const void *p, uint32_t n);

__attribute__((export_name("run"))) int32_t run(int32_t size) {
  static const char missing[] = "{\"error\":{\"class\":\"failed\",\"message\":\"the input has no text called document\"}}";
  static const char done[] = "summarized";
  char *input = malloc(size);
  if (!input || input_read(0, input, size) != size) return 2;
  if (!summarize(input, size)) {
    error_set(missing, sizeof missing - 1);
    return 1;
  }
  log_(1, done, sizeof done - 1);
  output_write(out, out_size);
  free(input);
  return 0;
}

#else

#define IMPORT(name) __attribute__((import_module("extism:host/env"), import_name(name)))
IMPORT("input_length") uint64_t input_length(void);
IMPORT("input_load_u8") uint32_t input_load_u8(uint64_t at);
IMPORT("alloc") uint64_t alloc(uint64_t size);
IMPORT("store_u8") void store_u8(uint64_t at, uint32_t v);
IMPORT("output_set") void output_set(uint64_t at, uint64_t size);
IMPORT("error_set") void error_set(uint64_t at);

static uint64_t hand_over(const char *s, size_t n) {
  uint64_t at = alloc(n);
  for (size_t i = 0; i < n; i++) store_u8(at + i, (uint8_t)s[i]);
  return at;
}

__attribute__((export_name("run_test"))) int32_t run_test(void) {
  static const char missing[] = "the input has no text called document";
  size_t size = input_length();
  char *input = malloc(size);
  if (!input) return 2;
  for (size_t i = 0; i < size; i++) input[i] = input_load_u8(i);
  if (!summarize(input, size)) {
    error_set(hand_over(missing, sizeof missing - 1));
    return 1;
  }
  output_set(hand_over(out, out_size), out_size);
  free(input);
  return 0;
}

#endif
