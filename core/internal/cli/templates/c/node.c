// NAME, a node of a Keyfire workflow: a reactor of the node ABI (sdk/node/ABI.md), which lists all that can be imported.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define IMPORT(name) __attribute__((import_module("keyfire_v1"), import_name(name)))
IMPORT("input_read") int32_t input_read(uint32_t offset, void *buf, uint32_t limit);
IMPORT("output_write") int32_t output_write(const void *p, uint32_t n);
IMPORT("error_set") int32_t error_set(const void *p, uint32_t n);

static void put(const char *s) { output_write(s, strlen(s)); }

// text ends the text of a member, as it stands in the JSON, with a zero and returns it: escapes are kept, which is right for putting it into
// JSON again. It returns NULL if there is none.
static char *text(char *json, const char *name) {
  char *p = strstr(json, name);
  if (!p) return NULL;
  p += strlen(name);
  p += strspn(p, " \t\r\n:");
  if (*p++ != '"') return NULL;
  for (char *q = p; *q; q++) {
    if (*q == '\\' && q[1]) q++;
    else if (*q == '"') {
      *q = 0;
      return p;
    }
  }
  return NULL;
}

__attribute__((export_name("run"))) int32_t run(int32_t size) {
  static const char missing[] = "{\"error\": {\"class\": \"failed\", \"message\": \"a name is needed to greet somebody\"}}";
  char *input = calloc(size + 1, 1);
  if (!input || input_read(0, input, size) != size) return 2;
  char *name = text(input, "\"name\"");
  if (!name || !*name) {
    error_set(missing, sizeof missing - 1);
    return 1;
  }
  put("{\"greeting\": \"Hello, ");
  put(name);
  put("\"}");
  return 0;
}
