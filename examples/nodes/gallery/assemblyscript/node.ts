// The gallery's node in AssemblyScript: a reactor of sdk/node/ABI.md.

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

class Total {
  orders: u64 = 0;
  units: u64 = 0;
  cents: u64 = 0;
}

// Finds the member "document" of the input and decodes its text; null if there is none.
function documentOf(input: string): string | null {
  const name = '"document"';
  const at = input.indexOf(name);
  if (at < 0) return null;
  let i = input.indexOf('"', at + name.length) + 1;
  const parts = new Array<string>();
  let start = i;
  for (; i < input.length; i++) {
    const c = input.charCodeAt(i);
    if (c == 0x22) {
      parts.push(input.substring(start, i));
      return parts.join("");
    }
    if (c != 0x5c) continue;
    parts.push(input.substring(start, i));
    const e = input.charAt(++i);
    if (e == "n") parts.push("\n");
    else if (e == "r") parts.push("\r");
    else if (e == "t") parts.push("\t");
    else if (e == "u") {
      i += 4;
      parts.push("?"); // other characters do not matter to the totals
    } else parts.push(e);
    start = i + 1;
  }
  return null;
}

// Reads up to ten digits; -1 is anything else.
function number(s: string, most: i64): i64 {
  if (s.length == 0 || s.length > 10) return -1;
  let v: i64 = 0;
  for (let i = 0; i < s.length; i++) {
    const c = s.charCodeAt(i) - 0x30;
    if (c < 0 || c > 9) return -1;
    v = v * 10 + c;
  }
  return v > most ? -1 : v;
}

function upper(c: i32): bool {
  return c >= 0x41 && c <= 0x5a;
}

// Adds one line to the totals and returns which field is wrong, or "".
function add(line: string, totals: Map<string, Total>): string {
  const f = line.split(",");
  if (f.length != 5) return "fields";
  if (f[0].length == 0) return "id";
  if (f[2].length != 2 || !upper(f[2].charCodeAt(0)) || !upper(f[2].charCodeAt(1))) return "country";
  const qty = number(f[3], 1000000);
  if (qty <= 0) return "qty";
  const price = number(f[4], 1000000000);
  if (price < 0) return "price";
  if (!totals.has(f[2])) totals.set(f[2], new Total());
  const t = totals.get(f[2]);
  t.orders += 1;
  t.units += qty;
  t.cents += <u64>(qty * price);
  return "";
}

function summarize(document: string): string {
  const totals = new Map<string, Total>();
  const rejected = new Array<string>();
  let accepted = 0;
  const lines = document.split("\n");
  for (let i = 1; i < lines.length; i++) {
    if (lines[i].length == 0) continue;
    const reason = add(lines[i], totals);
    if (reason == "") accepted++;
    else rejected.push('{"line":' + (i + 1).toString() + ',"reason":"' + reason + '"}');
  }
  const codes = totals.keys().sort();
  const countries = new Array<string>();
  for (let i = 0; i < codes.length; i++) {
    const t = totals.get(codes[i]);
    countries.push('{"country":"' + codes[i] + '","orders":' + t.orders.toString() + ',"units":' + t.units.toString() + ',"cents":' + t.cents.toString() + "}");
  }
  return '{"accepted":' + accepted.toString() + ',"rejected":[' + rejected.join(",") + '],"countries":[' + countries.join(",") + "]}";
}

export function run(size: i32): i32 {
  const buf = new ArrayBuffer(size);
  inputRead(0, changetype<usize>(buf), size);
  const document = documentOf(String.UTF8.decode(buf));
  if (document === null) {
    const e = String.UTF8.encode('{"error":{"class":"failed","message":"the input has no text called document"}}');
    errorSet(changetype<usize>(e), e.byteLength);
    return 1;
  }
  const out = String.UTF8.encode(summarize(document));
  const line = String.UTF8.encode("summarized");
  logWrite(1, changetype<usize>(line), line.byteLength);
  outputWrite(changetype<usize>(out), out.byteLength);
  return 0;
}
