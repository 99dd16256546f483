// NAME, a node of a Keyfire workflow. ctx has config, log, secret(name), kv, http(request), random(n), fail(status, code, message) and
// unavailable(message); fetch, console, crypto and setTimeout are there, too. The function may be async.
export default function (input, ctx) {
  if (!input.name) throw new Error('a name is needed to greet somebody');
  ctx.log.info('greeting', input.name);
  return { greeting: `Hello, ${input.name}` };
}
