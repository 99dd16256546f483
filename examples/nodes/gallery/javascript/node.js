// The gallery's node in JavaScript.
export default function (input, ctx) {
  const rejected = [];
  const totals = new Map();
  let accepted = 0;
  input.document.split('\n').forEach((line, i) => {
    if (i === 0 || line === '') return;
    const order = parse(line);
    if (order.reason) return rejected.push({ line: i + 1, reason: order.reason });
    accepted++;
    const t = totals.get(order.country) ?? { country: order.country, orders: 0, units: 0, cents: 0 };
    t.orders++;
    t.units += order.qty;
    t.cents += order.qty * order.price;
    totals.set(order.country, t);
  });
  const countries = [...totals.values()].sort((a, b) => (a.country < b.country ? -1 : 1));
  ctx.log.info('summarized', { accepted, rejected: rejected.length });
  return { accepted, rejected, countries };
}

function parse(line) {
  const f = line.split(',');
  if (f.length !== 5) return { reason: 'fields' };
  if (f[0] === '') return { reason: 'id' };
  if (!/^[A-Z]{2}$/.test(f[2])) return { reason: 'country' };
  const qty = number(f[3], 1_000_000);
  if (!qty) return { reason: 'qty' };
  const price = number(f[4], 1_000_000_000);
  if (price === null) return { reason: 'price' };
  return { country: f[2], qty, price };
}

function number(s, most) {
  if (!/^[0-9]{1,10}$/.test(s) || Number(s) > most) return null;
  return Number(s);
}
