// NAME, a node of a Keyfire workflow. ctx has config, log, secret(name), http({method, url, headers, body}), kv, fail(status, code, message) and
// unavailable(message).
export default function (input, ctx) {
  if (!input.name) throw new Error('a name is needed to greet somebody');
  ctx.log.info('greeting', input.name);
  return { greeting: `Hello, ${input.name}` };
}
