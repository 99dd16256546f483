// What a script finds around it, and how it is called. The host evaluates this file once, before the script, and calls what it returns with its one
// function: ask(name, argument), both texts, which gives a text. Everything here is an ordinary value of the script's own world: a script that
// changes it harms only itself.
(function (ask) {
  'use strict';
  const { parse, stringify } = JSON;
  const { atob, btoa } = globalThis;

  class NodeError extends Error {
    constructor(kind, message, ownWords = false) {
      super(message);
      Object.defineProperty(this, 'ownWords', { value: ownWords });
      this.kind = kind;
    }
    get name() { return 'NodeError'; }
  }

  // Stop unwinds the script after ctx.fail.
  class Stop extends Error {
    constructor(fail) {
      super(fail.message);
      this.fail = fail;
    }
  }

  const call = (name, argument) => {
    const answer = parse(ask(name, stringify(argument ?? null)));
    if (answer.error) throw new NodeError(answer.error.kind, answer.error.message);
    return answer.value;
  };

  // show writes any value, also one whose own functions fail.
  const show = (v) => {
    try {
      if (typeof v === 'string') return v;
      if (v instanceof Error) return `${v.name}: ${v.message}\n${v.stack ?? ''}`.trimEnd();
      return stringify(v) ?? String(v);
    } catch {
      try {
        return String(v);
      } catch {
        return `(${typeof v})`;
      }
    }
  };
  const logger = (level) => (...list) => { call('log', { level, text: list.map(show).join(' ') }); };
  const log = { debug: logger('debug'), info: logger('info'), warn: logger('warn'), error: logger('error') };

  // UTF-8, which the engine has no functions for.
  class TextEncoder {
    get encoding() { return 'utf-8'; }
    encode(text = '') {
      const out = [];
      for (const c of String(text)) {
        let p = c.codePointAt(0);
        if (p >= 0xd800 && p <= 0xdfff) p = 0xfffd;
        if (p < 0x80) out.push(p);
        else if (p < 0x800) out.push(0xc0 | p >> 6, 0x80 | p & 63);
        else if (p < 0x10000) out.push(0xe0 | p >> 12, 0x80 | p >> 6 & 63, 0x80 | p & 63);
        else out.push(0xf0 | p >> 18, 0x80 | p >> 12 & 63, 0x80 | p >> 6 & 63, 0x80 | p & 63);
      }
      return new Uint8Array(out);
    }
  }
  const bytesOf = (data) => (ArrayBuffer.isView(data) ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength) : new Uint8Array(data));
  const binary = (data) => {
    const b = bytesOf(data);
    let s = '';
    for (let i = 0; i < b.length; i += 4096) s += String.fromCharCode(...b.subarray(i, i + 4096));
    return s;
  };
  class TextDecoder {
    #fatal;
    constructor(label = 'utf-8', options = {}) {
      if (!/^utf-?8$/i.test(label)) throw new RangeError(`only utf-8 is known, not ${label}`);
      this.#fatal = Boolean(options.fatal);
    }
    get encoding() { return 'utf-8'; }
    get fatal() { return this.#fatal; }
    decode(data = new Uint8Array()) {
      const answer = call('decode', btoa(binary(data)));
      if (this.#fatal && !answer.valid) throw new TypeError('the bytes are not UTF-8');
      return answer.text;
    }
  }
  const fromBase64 = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

  const crypto = {
    getRandomValues(array) {
      if (!ArrayBuffer.isView(array) || array instanceof DataView || array instanceof Float32Array || array instanceof Float64Array) {
        throw new TypeError('getRandomValues wants an array of whole numbers');
      }
      bytesOf(array).set(fromBase64(call('random', array.byteLength)));
      return array;
    },
    randomUUID() {
      const b = this.getRandomValues(new Uint8Array(16));
      b[6] = b[6] & 15 | 64;
      b[8] = b[8] & 63 | 128;
      const hex = Array.from(b, (n) => n.toString(16).padStart(2, '0')).join('');
      return hex.replace(/^(.{8})(.{4})(.{4})(.{4})/, '$1-$2-$3-$4-');
    },
  };

  // The engine seeds its own generator once, with the time. This one is seeded anew in each invocation.
  let seed = null;
  Math.random = function random() {
    seed ??= crypto.getRandomValues(new Uint32Array(4));
    const next = () => { // xoshiro128**
      const result = Math.imul(((n) => n << 7 | n >>> 25)(Math.imul(seed[1], 5)), 9) >>> 0;
      const t = seed[1] << 9;
      seed[2] ^= seed[0];
      seed[3] ^= seed[1];
      seed[1] ^= seed[2];
      seed[0] ^= seed[3];
      seed[2] ^= t;
      seed[3] = seed[3] << 11 | seed[3] >>> 21;
      return result;
    };
    return ((next() >>> 5) * 0x4000000 + (next() >>> 6)) / 0x20000000000000;
  };

  const timers = [];
  let timerId = 0;
  const setTimeout = (f, delay = 0, ...list) => {
    if (typeof f !== 'function') throw new TypeError('setTimeout wants a function');
    timers.push({ id: ++timerId, at: Date.now() + Math.max(0, Number(delay) || 0), run: () => f(...list) });
    return timerId;
  };
  const clearTimeout = (id) => {
    const i = timers.findIndex((t) => t.id === id);
    if (i >= 0) timers.splice(i, 1);
  };

  const headerList = (headers) => {
    if (!headers) return [];
    const list = typeof headers[Symbol.iterator] === 'function' ? [...headers] : Object.entries(headers);
    return list.map(([name, value]) => [String(name), String(value)]);
  };
  class Headers {
    #list;
    constructor(list) { this.#list = list; }
    get(name) {
      const found = this.#list.filter(([n]) => n.toLowerCase() === String(name).toLowerCase()).map(([, v]) => v);
      return found.length ? found.join(', ') : null;
    }
    has(name) { return this.get(name) !== null; }
    *[Symbol.iterator]() { yield* this.#list.map(([n, v]) => [n.toLowerCase(), v]); }
    entries() { return this[Symbol.iterator](); }
    toJSON() { return Object.fromEntries(this); }
  }
  // send gives a response whose body is there already.
  const send = ({ method, url, headers, body }) => {
    const list = headerList(headers);
    const request = { method: method ?? (body === undefined ? 'GET' : 'POST'), url: String(url), headers: list };
    if (body !== undefined && body !== null) {
      if (typeof body === 'string') request.text = body;
      else if (body instanceof ArrayBuffer || ArrayBuffer.isView(body)) request.base64 = btoa(binary(body));
      else {
        request.text = stringify(body);
        if (!list.some(([n]) => n.toLowerCase() === 'content-type')) list.push(['Content-Type', 'application/json']);
      }
    }
    return call('http', request);
  };
  const bodyBytes = (r) => (r.base64 !== undefined ? fromBase64(r.base64) : new TextEncoder().encode(r.text));
  const bodyText = (r) => (r.base64 !== undefined ? new TextDecoder().decode(fromBase64(r.base64)) : r.text);
  const http = (request) => {
    const r = send(typeof request === 'string' ? { url: request } : request);
    const headers = new Headers(r.headers);
    return {
      status: r.status, ok: r.status >= 200 && r.status < 300, headers,
      header: (name) => headers.get(name),
      get body() { return bodyText(r); },
      json: () => parse(bodyText(r)),
      bytes: () => bodyBytes(r),
    };
  };
  // fetch is http with the names and the promises that the web gives it.
  const fetch = async (url, init = {}) => {
    const r = send({ method: init.method ?? 'GET', url, headers: init.headers, body: init.body });
    return {
      status: r.status, ok: r.status >= 200 && r.status < 300, url: String(url), headers: new Headers(r.headers), redirected: false, type: 'basic',
      text: async () => bodyText(r),
      json: async () => parse(bodyText(r)),
      bytes: async () => bodyBytes(r),
      arrayBuffer: async () => bodyBytes(r).buffer,
    };
  };

  const text = (value, what) => {
    if (value === null || value === undefined) return null;
    if (typeof value !== 'string') throw new TypeError(`${what} is a text; turn others into one with JSON.stringify`);
    return value;
  };
  const kv = {
    get: (key) => call('kv_get', { key: String(key) }),
    put: (key, value) => { call('kv_put', { key: String(key), value: text(value, 'a value') }); },
    delete: (key) => { call('kv_put', { key: String(key), value: null }); },
    compareAndSwap: (key, old, value) => call('kv_cas', { key: String(key), old: text(old, 'the old value'), value: text(value, 'a value') }),
  };

  let config;
  const ctx = Object.freeze({
    get config() { return (config ??= call('config')); },
    log: Object.freeze(log),
    secret: (name) => call('secret', String(name)),
    kv: Object.freeze(kv),
    http,
    random: (n) => crypto.getRandomValues(new Uint8Array(n)),
    fail(status, code, message) {
      if (!Number.isInteger(status) || status < 400 || status > 599 || typeof code !== 'string' || !/^[a-z0-9_]{1,64}$/.test(code)) {
        throw new RangeError(`ctx.fail(${show(status)}, ${show(code)}): a status is 400 to 599, and a code 1 to 64 characters of a-z, 0-9 and _: ${message}`);
      }
      throw new Stop({ status, code, message: String(message ?? code) });
    },
    unavailable(message) { throw new NodeError('unavailable', String(message), true); },
  });

  const define = (target, values) => {
    for (const [name, value] of Object.entries(values)) Object.defineProperty(target, name, { value, writable: true, configurable: true });
  };
  define(globalThis, {
    console: { log: log.info, info: log.info, debug: log.debug, warn: log.warn, error: log.error, trace: log.debug },
    crypto, TextEncoder, TextDecoder, setTimeout, clearTimeout, fetch, NodeError,
  });

  let ended = false;
  // place is where in the script an error came from.
  const place = (e) => {
    if (e?.ownWords === true) return '';
    const found = /\bnode\.js:\d+(:\d+)?/.exec(typeof e?.stack === 'string' ? e.stack : '');
    return found ? ` (${found[0]})` : '';
  };
  const describe = (e) => {
    if (e instanceof NodeError) return e.message;
    return e instanceof Error ? `${e.name}: ${e.message}` : show(e);
  };
  const said = (e) => {
    if (e instanceof Stop) return { fail: e.fail };
    if (e instanceof Error && !(e instanceof NodeError)) {
      log.error(show(e));
    }
    const kind = e instanceof NodeError ? e.kind : 'failed';
    return { error: { class: kind, message: describe(e).slice(0, 8000) + place(e) } };
  };
  const failed = (e) => {
    if (ended) return;
    let words;
    try {
      words = stringify(said(e));
    } catch { // the value's own functions fail, too
      words = stringify({ error: { class: 'failed', message: `the script threw what cannot be described: ${show(e)}` } });
    }
    ended = true;
    ask('failed', words);
  };
  const succeeded = (value) => {
    let out;
    try {
      out = stringify(value === undefined ? null : value);
      if (out === undefined) throw new TypeError(`the output is a ${typeof value}, which is not JSON`);
    } catch (e) {
      return failed(e);
    }
    if (ended) return;
    ended = true;
    ask('done', out);
  };

  let handler;
  return {
    // load takes the script's exports.
    load(exports) {
      handler = exports.default;
      if (typeof handler !== 'function') {
        throw new TypeError('the script exports no function; it must have one: export default function (input, ctx) { ... }');
      }
    },
    // begin starts an invocation. Whatever it leaves to promises, the host lets them do next.
    begin(input) {
      seed = null;
      try {
        const result = handler(parse(input), ctx);
        if (result !== null && typeof result === 'object' && typeof result.then === 'function') Promise.resolve(result).then(succeeded, failed);
        else succeeded(result);
      } catch (e) {
        failed(e);
      }
    },
    // wake is called when no promise can go on: it waits for the next timer.
    wake() {
      if (timers.length === 0) return failed(new NodeError('failed', 'the script waits for a promise that nothing will settle', true));
      let first = 0;
      timers.forEach((t, i) => { if (t.at < timers[first].at) first = i; });
      const [timer] = timers.splice(first, 1);
      const wait = timer.at - Date.now();
      if (wait > 0) call('sleep', wait);
      try {
        timer.run();
      } catch (e) {
        failed(e);
      }
    },
    // say describes what the script threw while it was loaded.
    say: (e) => describe(e) + place(e),
  };
});
