// NAME, a node of a Keyfire workflow: a reactor of the node ABI (sdk/node/ABI.md), which lists all that can be imported.

@external("keyfire_v1", "input_read")
declare function inputRead(offset: u32, buf: usize, limit: u32): i32;
@external("keyfire_v1", "output_write")
declare function outputWrite(ptr: usize, size: u32): i32;
@external("keyfire_v1", "error_set")
declare function errorSet(ptr: usize, size: u32): i32;
@external("keyfire_v1", "log")
declare function logWrite(level: u32, ptr: usize, size: u32): i32;

// Called when an assertion, an index or an allocation fails: the log of the step says what and where. With --use abort=node/abort it takes the
// place of the function that would be imported from a host of AssemblyScript's own.
export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  const what = message === null ? "abort" : message;
  const where = file === null ? "" : " at " + file + ":" + line.toString() + ":" + column.toString();
  const text = String.UTF8.encode(what + where);
  logWrite(3, changetype<usize>(text), text.byteLength);
  unreachable();
}

// Returns the text of a member, as it stands in the JSON: escapes are kept, which is right for putting it into JSON again.
function text(json: string, name: string): string {
  const key = '"' + name + '"';
  let i = json.indexOf(key);
  if (i < 0) return "";
  i = json.indexOf('"', i + key.length) + 1;
  if (i == 0) return "";
  const start = i;
  for (; i < json.length; i++) {
    const c = json.charCodeAt(i);
    if (c == 0x5c) i++;
    else if (c == 0x22) return json.substring(start, i);
  }
  return "";
}

export function run(size: i32): i32 {
  const buf = new ArrayBuffer(size);
  inputRead(0, changetype<usize>(buf), size);
  const name = text(String.UTF8.decode(buf), "name");
  if (name == "") {
    const e = String.UTF8.encode('{"error": {"class": "failed", "message": "a name is needed to greet somebody"}}');
    errorSet(changetype<usize>(e), e.byteLength);
    return 1;
  }
  const out = String.UTF8.encode('{"greeting": "Hello, ' + name + '"}');
  outputWrite(changetype<usize>(out), out.byteLength);
  return 0;
}
